"""The engine in this process: any Hugging Face causal language model, batched, through its own cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from posttrain.common.errors import ConfigError
from posttrain.common.progress import progress
from posttrain.engines.decoder import Rows, Wiring, wire
from posttrain.engines.protocol import BATCH_TOKENS, Completion, SamplingParams
from posttrain.engines.sampling import distribution, draw, uniforms
from posttrain.engines.stopping import StopStrings, stop_ids

if TYPE_CHECKING:
    from posttrain.common.progress import Bar
    from posttrain.models.load import Model

# Finished rows leave the batch once they are this share of it: leaving costs a copy of what stays.
_LEAVE = 1 / 8


@final
class LocalEngine:
    """Samples from a model held in memory.

    A prompt is computed once and its cache shared out to its samples; prompts of like length share a batch,
    and rows that have finished leave it. batch_tokens: bound on rows times length, prompt and answer counted.
    Raises ConfigError for a model that has no LM head.
    """

    def __init__(self, model: Model, batch_tokens: int = BATCH_TOKENS) -> None:
        if not model.lm_head:
            raise ConfigError(
                f"{model.source} is a reward model without an LM head: it judges and cannot write"
            )
        self.model = model
        self.batch_tokens = batch_tokens
        self._wiring: Wiring | None = None
        # embeddings beyond the vocabulary only round its size up: no text has them
        self._known = max(model.tokenizer.get_vocab().values()) + 1
        self._stop_ids = torch.tensor(sorted(stop_ids(model)), device=model.hf.device)

    @property
    def max_length(self) -> int | None:
        """Tokens the model takes, prompt and answer together; None where it knows no end."""
        return getattr(self.model.hf.config.get_text_config(), "max_position_embeddings", None)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, label: str = "sample"
    ) -> list[list[Completion]]:
        """See `Engine`. An answer that reaches the model's length is cut off there."""
        limits = [self._limit(i, prompt, params) for i, prompt in enumerate(prompts)]
        lengths = [len(prompt) for prompt in prompts]
        out: dict[tuple[int, int], Completion] = {}
        with self._inference() as wiring, progress(label, len(prompts) * params.n, "response") as bar:
            for batch in _batches(lengths, limits, params.n, self.batch_tokens, wiring.mode != "padded"):
                answers = _Answers(batch, [limits[i] for i, _ in batch], self._stop_ids.device)
                self._run(wiring, prompts, answers, params, bar)
                out.update(answers.completions())
        return [[out[i, j] for j in range(params.n)] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """Yield the tokens of one answer as they are sampled: those of `generate([prompt], params)[0][0]`."""
        limit = self._limit(0, prompt, params)
        noise = _noise([(0, 0)], limit, params, self._stop_ids.device)
        stops = StopStrings(self.model, params.stop)
        said: list[int] = []
        with self._inference() as wiring:
            rows = Rows(wiring, [prompt])
        for step in range(limit):
            with self._inference():
                token, _ = draw(
                    distribution(rows.logits[:, : self._known], params),
                    None if noise is None else noise[:, step],
                )
                said.append(int(token))
            yield said[-1]
            if bool(torch.isin(token, self._stop_ids)) or stops.among([said])[0]:
                return
            if step + 1 < limit:
                with self._inference():
                    rows.push(token)

    @contextmanager
    def _inference(self) -> Iterator[Wiring]:
        hf = self.model.hf
        was_training = hf.training
        hf.eval()
        try:
            with torch.inference_mode():
                if self._wiring is None:
                    self._wiring = wire(hf)
                yield self._wiring
        finally:
            hf.train(was_training)

    def _limit(self, index: int, prompt: Sequence[int], params: SamplingParams) -> int:
        """New tokens a prompt may have."""
        if not len(prompt):
            raise ConfigError(f"prompt {index} has no tokens: there is nothing to continue")
        if self.max_length is None:
            return params.max_new_tokens
        room = self.max_length - len(prompt)
        if room < 1:
            raise ConfigError(
                f"prompt {index} has {len(prompt)} tokens and the model takes {self.max_length}, "
                "answer included: shorten the prompt or leave it out"
            )
        return min(params.max_new_tokens, room)

    def _run(
        self,
        wiring: Wiring,
        prompts: Sequence[Sequence[int]],
        answers: _Answers,
        params: SamplingParams,
        bar: Bar,
    ) -> None:
        """Write the answers of one batch."""
        device = self._stop_ids.device
        noise = _noise(answers.names, answers.steps, params, device)
        stops = StopStrings(self.model, params.stop)
        asked = list(dict.fromkeys(i for i, _ in answers.names))
        rows = Rows(wiring, [prompts[i] for i in asked])
        at = {prompt: place for place, prompt in enumerate(asked)}
        rows.select(torch.tensor([at[i] for i, _ in answers.names], device=device))
        live = torch.arange(len(answers.names), device=device)  # which answer each row of the batch is
        for step in range(answers.steps):
            uniform = None if noise is None else noise[live, step]
            token, logp = draw(distribution(rows.logits[:, : self._known], params), uniform)
            ended = torch.isin(token, self._stop_ids)
            if stops.texts:
                said = torch.cat([answers.tokens[live, max(0, step - stops.tail) : step], token[:, None]], 1)
                ended |= torch.tensor(stops.among(said.tolist()), device=device)
            going, finished = answers.take(step, live, token, logp, ended)
            bar.advance(finished)
            if not len(going):
                return
            if len(going) <= (1 - _LEAVE) * len(live):
                live, token = live[going], token[going]
                rows.select(going)
            rows.push(token)


class _Answers:
    """What one batch has said so far. names: (prompt, sample) of each answer."""

    def __init__(self, names: list[tuple[int, int]], limits: list[int], device: torch.device) -> None:
        self.names = names
        self.steps = max(limits)
        self.limits = torch.tensor(limits, device=device)  # [R]
        self.tokens = torch.zeros(len(names), self.steps, dtype=torch.long, device=device)
        self.logps = torch.zeros(len(names), self.steps, device=device)
        self.lengths = torch.zeros(len(names), dtype=torch.long, device=device)  # 0: under way
        self.stopped = torch.zeros(len(names), dtype=torch.bool, device=device)

    def take(
        self,
        step: int,
        live: Tensor,  # [L] answers that are in the batch; those over are passed by
        token: Tensor,  # [L]
        logp: Tensor,  # [L]
        ended: Tensor,  # [L] bool: the token is the last by itself
    ) -> tuple[Tensor, int]:
        """Note one token of each; return which of `live` go on, and how many ended just now."""
        self.tokens[live, step], self.logps[live, step] = token, logp
        under_way = self.lengths[live] == 0
        finished = under_way & (ended | (self.limits[live] == step + 1))
        self.lengths[live[finished]] = step + 1
        self.stopped[live[finished & ended]] = True
        return (under_way & ~finished).nonzero()[:, 0], int(finished.sum())

    def completions(self) -> dict[tuple[int, int], Completion]:
        rows = zip(
            self.names,
            self.tokens.tolist(),
            self.logps.tolist(),
            self.lengths.tolist(),
            self.stopped.tolist(),
            strict=True,
        )
        return {
            name: Completion(tuple(ids[:length]), tuple(logps[:length]), "stop" if stopped else "length")
            for name, ids, logps, length, stopped in rows
        }


def _noise(
    names: list[tuple[int, int]], steps: int, params: SamplingParams, device: torch.device
) -> Tensor | None:
    """Uniform noise [R, steps] float64, or None for greedy decoding."""
    if params.temperature == 0:
        return None
    return torch.from_numpy(uniforms(params.seed, names, steps)).to(device)


def _batches(
    lengths: list[int], limits: list[int], n: int, batch_tokens: int, even: bool
) -> Iterator[list[tuple[int, int]]]:
    """Rows (prompt, sample) that run together; the longest first, so that too large a batch fails at once.

    even: only prompts of one length share a batch.
    """
    batch: list[tuple[int, int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if even and batch and lengths[batch[-1][0]] != lengths[i]:
            yield batch
            batch, longest = [], 0
        for j in range(n):
            longest = max(longest, lengths[i] + limits[i])
            if batch and (len(batch) + 1) * longest > batch_tokens:
                yield batch
                batch, longest = [], lengths[i] + limits[i]
            batch.append((i, j))
    if batch:
        yield batch
