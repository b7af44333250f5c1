"""The engine in this process: any Hugging Face causal language model, many rows a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor

from posttrain.common.errors import ConfigError
from posttrain.common.progress import progress
from posttrain.engines.answers import Answers
from posttrain.engines.decoder import RowDecoder
from posttrain.engines.forest_decoder import ForestDecoder
from posttrain.engines.packed import packed
from posttrain.engines.prefixes import holders
from posttrain.engines.protocol import BATCH_TOKENS, Completion, SamplingParams, limits_of
from posttrain.engines.sampling import Draw, draw, uniforms
from posttrain.engines.shapes import longest
from posttrain.engines.side_by_side import SharedBar, groups, side_by_side
from posttrain.engines.stopping import StopStrings, stop_ids
from posttrain.engines.waiting import (
    Name,
    PaddedBatches,
    SharedPrompts,
    Waiting,
    dealt,
    families_of,
)
from posttrain.models.rope import common_length

if TYPE_CHECKING:
    from posttrain.common.progress import Bar
    from posttrain.models.load import Model


class Batch(Protocol):
    """Rows that a decoder continues."""

    def __len__(self) -> int: ...

    def select(self, kept: list[int], wanted: int) -> None: ...


@dataclass
class _Party:
    """Rows that began together, and what they have said."""

    batch: Batch
    answers: Answers
    prompt_tokens: int

    @property
    def held(self) -> int:
        """Tokens that its cache may come to hold."""
        return self.prompt_tokens + len(self.answers.rows) * self.answers.steps


@dataclass(frozen=True)
class _Call:
    """What `generate` is asked for. limits: new tokens that each prompt may have."""

    decoder: Any
    prompts: Sequence[Sequence[int]]
    limits: list[int]
    params: SamplingParams
    stops: StopStrings
    bar: Bar


@final
class LocalEngine:
    """Samples from a model held in memory.

    A model that runs as a forest reads each prompt once for all its samples, which share its cache; rows that
    have finished leave, and waiting prompts enter. Any other model gets batches of padded rows.
    batch_tokens: bound on the tokens in the cache, prompts and answers counted, but for what rounds shapes.
    Nothing that follows from weights is kept between calls: they may change in place.
    Raises ConfigError for a model that has no LM head.
    """

    def __init__(self, model: Model, batch_tokens: int = BATCH_TOKENS) -> None:
        if not model.lm_head:
            raise ConfigError(
                f"{model.source} is a reward model without an LM head: it judges and cannot write"
            )
        self.model = model
        self.batch_tokens = batch_tokens
        self._decoders: dict[type, Any] = {}
        # embeddings beyond the vocabulary only round its size up: no text has them
        self._known = max(model.tokenizer.get_vocab().values()) + 1
        self._stop_ids = torch.tensor(sorted(stop_ids(model)), device=model.hf.device)

    @property
    def max_length(self) -> int | None:
        """Tokens the model takes, prompt and answer together; None where it knows no end."""
        return longest(self.model.hf)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        label: str = "sample",
        limits: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See `Engine`. An answer that reaches the model's length is cut off there."""
        wanted = limits_of(prompts, params, limits)
        allowed = [self._limit(i, prompt, wanted[i]) for i, prompt in enumerate(prompts)]
        with (
            self._inference(max(map(len, prompts), default=0) + max(allowed, default=0)) as decoder,
            packed(self.model.hf, max(allowed, default=0)),
            progress(label, len(prompts) * params.n, "response") as bar,
        ):
            stops = StopStrings(self.model, params.stop)
            call = _Call(decoder, prompts, allowed, params, stops, SharedBar(bar))
            written = side_by_side([partial(self._write, call, each) for each in self._waiting(call)])
        out = {name: completion for each in written for name, completion in each.items()}
        return [[out[i, j] for j in range(params.n)] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """Yield the tokens of one answer as they are sampled: those of `generate([prompt], params)[0][0]`.

        Until it has ended or is closed, the weights must not change.
        """
        limit = self._limit(0, prompt, params.max_new_tokens)
        with packed(self.model.hf, limit):
            yield from self._stream(prompt, params, limit)

    def _stream(self, prompt: Sequence[int], params: SamplingParams, limit: int) -> Iterator[int]:
        noise = None
        if params.temperature > 0:
            noise = torch.from_numpy(uniforms(params.seed, [(0, 0)], limit)).to(self._stop_ids.device)
        stops = StopStrings(self.model, params.stop)
        said: list[int] = []
        end = len(prompt) + limit
        with self._inference(end) as decoder:
            batch, logits = decoder.begin([prompt], [0], 1)
        for step in range(limit):
            with self._inference(end):
                token = draw(
                    logits[:, : self._known], params, None if noise is None else noise[:, step]
                ).tokens
                said.append(int(token))
            yield said[-1]
            if bool(torch.isin(token, self._stop_ids)) or stops.among([said])[0]:
                return
            if step + 1 < limit:
                with self._inference(end):
                    logits = decoder.step([batch], token)

    @contextmanager
    def _inference(self, end: int) -> Iterator[Any]:
        """A decoder for rows of at most `end` tokens; some that are over may go on beside the others."""
        hf, common = self.model.hf, common_length(self.model.base.config)
        kind: type[Any] = ForestDecoder if self.model.forest and end <= (common or end) else RowDecoder
        was_training = hf.training
        hf.eval()
        try:
            with torch.inference_mode():
                if kind not in self._decoders:
                    self._decoders[kind] = kind(hf)
                yield self._decoders[kind]
        finally:
            hf.train(was_training)

    def _limit(self, index: int, prompt: Sequence[int], wanted: int) -> int:
        """New tokens a prompt may have, of those wanted."""
        if not len(prompt):
            raise ConfigError(f"prompt {index} has no tokens: there is nothing to continue")
        if self.max_length is None:
            return wanted
        room = self.max_length - len(prompt)
        if room < 1:
            raise ConfigError(
                f"prompt {index} has {len(prompt)} tokens and the model takes {self.max_length}, "
                "answer included: shorten the prompt or leave it out"
            )
        return min(wanted, room)

    def _waiting(self, call: _Call) -> list[Waiting]:
        """Who waits, in groups that are written at the same time."""
        lengths, n = [len(prompt) for prompt in call.prompts], call.params.n
        if not call.decoder.joins:
            even = call.decoder.wiring.mode != "padded"
            return [PaddedBatches(lengths, call.limits, n, self.batch_tokens, even)]
        holder = holders(call.prompts)
        hands = dealt(families_of(lengths, holder, n), groups(len(lengths) * n, self.model.hf))
        room = self.batch_tokens // max(len(hands), 1)
        return [SharedPrompts(hand, lengths, call.limits, holder, room) for hand in hands]

    def _write(self, call: _Call, waiting: Waiting, over: Event) -> dict[Name, Completion]:
        """The answers of one group; fewer where it is `over` before."""
        out: dict[Name, Completion] = {}
        for answers in self._run(call, waiting, over):
            out.update(answers.completions())
        return out

    def _run(self, call: _Call, waiting: Waiting, over: Event) -> Iterator[Answers]:
        """Write all answers; yields those that began together once all of them are over."""
        parties: list[_Party] = []
        logits: list[Tensor] = []  # [R, V] each, together those of all parties' next tokens
        while (waiting or parties) and not over.is_set():
            held = sum(party.held for party in parties)
            for names in waiting.admit(held) if waiting else []:
                batch, answers, first = self._begin(call, names)
                parties.append(_Party(batch, answers, waiting.prompt_tokens(names)))
                logits.append(first)
            going: list[_Party] = []
            tokens: list[Tensor] = []
            drawn = self._draw(parties, logits[0] if len(logits) == 1 else torch.cat(logits), call)
            for party, said in zip(parties, drawn, strict=True):
                if said is None:
                    yield party.answers
                else:
                    going.append(party)
                    tokens.append(said)
            parties = going
            logits = []
            if parties:
                logits.append(call.decoder.step([party.batch for party in parties], torch.cat(tokens)))

    def _begin(self, call: _Call, names: list[Name]) -> tuple[Batch, Answers, Tensor]:
        answers = Answers(names, [call.limits[i] for i, _ in names], call.params, self._stop_ids.device)
        asked = list(dict.fromkeys(i for i, _ in names))
        at = {prompt: place for place, prompt in enumerate(asked)}
        slot = [at[i] for i, _ in names]
        batch, logits = call.decoder.begin([call.prompts[i] for i in asked], slot, len(answers.rows))
        return batch, answers, logits

    def _draw(self, parties: Sequence[_Party], logits: Tensor, call: _Call) -> list[Tensor | None]:
        """For each party one token a row, from logits [R, V] of all their rows; see `_note`."""
        noise = [own for party in parties if (own := party.answers.noise()) is not None]
        drawn = draw(logits[:, : self._known], call.params, torch.cat(noise) if noise else None)
        ended = torch.isin(drawn.tokens, self._stop_ids)
        out, start = [], 0
        for party in parties:
            rows = slice(start, start + len(party.batch))
            out.append(self._note(party, drawn[rows], ended[rows], call))
            start = rows.stop
        return out

    def _note(self, party: _Party, drawn: Draw, ended: Tensor, call: _Call) -> Tensor | None:
        """One token for each row, or None where all answers are over; rows that are over may leave."""
        answers, stops = party.answers, call.stops
        if stops.texts:
            tails = answers.tails(stops.tail, drawn.tokens)
            ended = ended | torch.tensor(stops.among(tails), device=ended.device)
        going, finished = answers.take(drawn, ended)
        call.bar.advance(finished)
        if not len(going):
            return None
        kept = answers.leave(going)
        if kept is None:
            return drawn.tokens
        party.batch.select(kept.tolist(), len(going))
        return drawn.tokens[kept]
