"""What rows that run together have said so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from posttrain.engines.protocol import Completion, SamplingParams
from posttrain.engines.sampling import Draw, uniforms
from posttrain.engines.shapes import whole_rows
from posttrain.engines.waiting import Name

# Finished rows leave the batch once they are this share of it: leaving costs a copy of what stays.
_LEAVE = 1 / 8


class Answers:
    """The answers of one batch, and which of them each row of the batch writes.

    names: (prompt, sample) of each. limits: new tokens each may have. rows: [R] the answer of each row; rows
    that only round the batch's size up write the last, which nobody reads.
    """

    def __init__(
        self, names: Sequence[Name], limits: Sequence[int], params: SamplingParams, device: torch.device
    ) -> None:
        self.names = list(names)
        self.step = 0
        self.steps = max(limits)
        count = len(names)
        self.limits = torch.tensor([*limits, 0], device=device)
        self.tokens = torch.zeros(count + 1, self.steps, dtype=torch.long, device=device)
        self.logps = torch.zeros(count + 1, self.steps, device=device)
        self.model_logps = torch.zeros(count + 1, self.steps, device=device)
        self.lengths = torch.zeros(count + 1, dtype=torch.long, device=device)  # 0: under way
        self.lengths[count] = 1
        self.stopped = torch.zeros(count + 1, dtype=torch.bool, device=device)
        self.rows = torch.arange(whole_rows(count), device=device).clamp_(max=count)
        self._look()
        self._noise: Tensor | None = None
        if params.temperature > 0:
            noise = torch.from_numpy(uniforms(params.seed, self.names, self.steps)).to(device)
            self._noise = torch.cat([noise, torch.zeros_like(noise[:1])])

    def noise(self) -> Tensor | None:
        """[R] float64 for each row's next token; None for greedy decoding."""
        return None if self._noise is None else self._noise[self.rows, self.step]

    def tails(self, length: int, tokens: Tensor) -> list[list[int]]:
        """The last tokens each row has said, at most `length`, and `tokens` [R] behind them."""
        said = self.tokens[self.rows, max(0, self.step - length) : self.step]
        return torch.cat([said, tokens[:, None]], 1).tolist()

    def take(self, drawn: Draw, ended: Tensor) -> tuple[Tensor, int]:
        """Note one token of each row, `ended` [R] saying whether it is the last by itself.

        Returns which rows go on, and how many answers are over just now.
        """
        rows, step = self.rows, self.step
        self.tokens[rows, step] = drawn.tokens
        self.logps[rows, step] = drawn.logps
        self.model_logps[rows, step] = drawn.model_logps
        self.step += 1
        finished = self._under_way & (ended | (self._ends == step + 1))
        count = int(finished.sum())
        if count:
            self.lengths[rows[finished]] = self.step
            self.stopped[rows[finished & ended]] = True
            self._look()
        return self._going, count

    def _look(self) -> None:
        """Find out anew which rows go on, after one of them ended or left."""
        self._under_way = self.lengths[self.rows] == 0
        self._going = self._under_way.nonzero()[:, 0]
        self._ends = self.limits[self.rows]

    def leave(self, going: Tensor) -> Tensor | None:
        """Let rows that are over leave if that is worth its copy; returns those that stay [R'], if so."""
        size = whole_rows(len(going))
        if size > (1 - _LEAVE) * len(self.rows):
            return None
        over = torch.ones(len(self.rows), dtype=torch.bool, device=going.device)
        over[going] = False
        kept = torch.cat([going, over.nonzero()[: size - len(going), 0]])
        self.rows = self.rows[kept]
        self._look()
        return kept

    def completions(self) -> Iterator[tuple[Name, Completion]]:
        """Each answer by its name."""
        columns = (self.tokens, self.logps, self.model_logps, self.lengths, self.stopped)
        for name, ids, logps, own, length, stopped in zip(
            self.names, *(column[:-1].tolist() for column in columns), strict=True
        ):
            yield (
                name,
                Completion(
                    tuple(ids[:length]),
                    tuple(logps[:length]),
                    "stop" if stopped else "length",
                    tuple(own[:length]),
                ),
            )
