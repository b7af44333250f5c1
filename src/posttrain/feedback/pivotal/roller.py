"""Rollouts by a model, graded by a judge; every level is kept, so that a killed step pays for none twice."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from posttrain.common.chunks import in_chunks
from posttrain.engines.protocol import Completion, Engine, SamplingParams
from posttrain.feedback.judge import Judge
from posttrain.feedback.pivotal.ledger import Ledger, shared_tokens
from posttrain.feedback.pivotal.rollouts import Ask, Rollout
from posttrain.feedback.verdicts import verdicts_of
from posttrain.records import Prompt, Response, row_id

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

# Rollouts between two saved states: what a killed run loses at most, and what one call of the engine makes.
# Seeds depend on it, so a change of it is a new version of the step.
_CHUNK = 8192

Policy = Literal["exclude", "failure"]
Path_ = tuple[int, tuple[int, ...]]  # question, all tokens of an answer


@dataclass(frozen=True)
class Question:
    """A prompt and its token ids, up to where the answer begins."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Grading:
    """What counts as success. success, no_answer, truncated: as in `PivotalConfig`. name: of the judge."""

    judge: Judge
    name: str
    success: float
    no_answer: Policy
    truncated: Policy


@final
class EngineRoller:
    """A `Roller`. An answer is a prefix and its continuation, of at most `sampling.max_new_tokens` together,
    so that a rollout from a prefix is what a rollout from the prompt that went this way would have been.

    Equal answers to a question are put to the judge once.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        engine: Engine,
        template: ChatTemplate,
        grading: Grading,
        sampling: SamplingParams,
        state: Path,
        label: str,
    ) -> None:
        self.questions, self.engine, self.template = questions, engine, template
        self.grading, self.sampling, self.state, self.label = grading, sampling, state, label
        self.ledger = Ledger()
        self._graded: dict[Path_, tuple[bool | None, str]] = {}  # whole answers that were judged

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """See `Roller`."""
        level = self.ledger.levels
        self.ledger.levels += 1
        over = {i: found for i, ask in enumerate(asks) if (found := self._over(ask)) is not None}
        to_roll = [ask for i, ask in enumerate(asks) if i not in over]
        size = max(1, _CHUNK // max((ask.n for ask in to_roll), default=1))
        fresh = []
        work = partial(self._chunk, level)
        for first, *lines in in_chunks(to_roll, size, self.state / f"level-{level:04d}", work):
            booked = json.loads(first)
            self.ledger.book(booked["counts"], booked["seconds"])
            fresh += [[_read(each) for each in json.loads(line)] for line in lines]
        for ask, came in zip(to_roll, fresh, strict=True):
            self._remember(ask, came)
        made = iter(fresh)
        return [over[i] if i in over else next(made) for i in range(len(asks))]

    def _over(self, ask: Ask) -> list[Rollout] | None:
        """The rollouts from a prefix that is a whole answer, or has no room for more; they cost nothing."""
        graded = self._graded.get((ask.question, ask.prefix))
        if graded is not None:
            return [Rollout((), *graded)] * ask.n
        if len(ask.prefix) >= self.sampling.max_new_tokens:
            return [Rollout((), *self._cut_off(), whole=False)] * ask.n
        return None

    def _remember(self, ask: Ask, came: Sequence[Rollout]) -> None:
        for rollout in came:
            if rollout.whole:
                path = (ask.question, (*ask.prefix, *rollout.tokens))
                self._graded[path] = (rollout.success, rollout.reason)

    def _chunk(self, level: int, number: int, asks: Sequence[Ask]) -> list[bytes]:
        """A line of costs, then one for each request."""
        started = time.monotonic()
        completions = self._generate(level, number, asks)
        generated = time.monotonic()
        counts: Counter[str] = Counter()
        prompts = [(*self.questions[ask.question].ids, *ask.prefix) for ask in asks]
        counts["tokens_prefilled"] = shared_tokens(prompts)
        for ask, ids, some in zip(asks, prompts, completions, strict=True):
            counts["tokens_prefilled_if_not_shared"] += ask.n * len(ids)
            for name, n in (("rollouts", ask.n), ("tokens_decoded", sum(len(c.token_ids) for c in some))):
                counts[name] += n
                counts[f"{name}: {ask.phase}"] += n
        rollouts = self._grade(asks, completions, counts)
        seconds = {"generating": generated - started, "judging": time.monotonic() - generated}
        lines: list[Any] = [{"counts": counts, "seconds": seconds}]
        lines += [[_written(each) for each in some] for some in rollouts]
        return [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]

    def _generate(self, level: int, number: int, asks: Sequence[Ask]) -> list[list[Completion]]:
        """One call of the engine: it takes one n for all, so a prefix that wants more stands there again."""
        each = math.gcd(*(ask.n for ask in asks))
        repeated = [
            (*self.questions[ask.question].ids, *ask.prefix) for ask in asks for _ in range(ask.n // each)
        ]
        room = self.sampling.max_new_tokens - min(len(ask.prefix) for ask in asks)
        seed = int(row_id(self.sampling.seed, level, number), 16) >> 1
        params = self.sampling.model_copy(update={"n": each, "max_new_tokens": room, "seed": seed})
        label = f"{self.label}: {', '.join(sorted({ask.phase for ask in asks}))}, level {level + 1}"
        made = iter(self.engine.generate(repeated, params, label))
        return [[c for _ in range(ask.n // each) for c in next(made)] for ask in asks]

    def _grade(
        self, asks: Sequence[Ask], completions: Sequence[Sequence[Completion]], counts: Counter[str]
    ) -> list[list[Rollout]]:
        """Rollouts with their outcomes; what ran past the answer's last allowed token is cut there."""
        paths: list[list[Path_ | None]] = []
        for ask, some in zip(asks, completions, strict=True):
            room = self.sampling.max_new_tokens - len(ask.prefix)
            paths.append(
                [
                    (ask.question, (*ask.prefix, *c.token_ids))
                    if c.finish == "stop" and len(c.token_ids) <= room
                    else None
                    for c in some
                ]
            )
        said = dict(self._graded)
        new = [p for p in dict.fromkeys(p for some in paths for p in some if p) if p not in said]
        counts["oracle_calls"] += len(new)
        said.update(zip(new, self._judged(new), strict=True))
        made = []
        for ask, some, ends in zip(asks, completions, paths, strict=True):
            room = self.sampling.max_new_tokens - len(ask.prefix)
            counts["cut_off"] += sum(path is None for path in ends)
            why = [said[path][1] for path in ends if path is not None and said[path][1]]
            counts["no_answer"] += len(why)
            counts.update(f"no_answer: {reason}" for reason in why)
            made.append(
                [
                    _rollout(ask, c.token_ids[:room], c.logps[:room], path and said[path], self._cut_off())
                    for c, path in zip(some, ends, strict=True)
                ]
            )
        return made

    def _judged(self, paths: Sequence[Path_]) -> list[tuple[bool | None, str]]:
        """Success of each answer; where the judge cannot tell, why, and what the policy makes of it."""
        items = []
        for question, tokens in paths:
            response = Response(text=self.template.decode(tokens), token_ids=tokens, finish="stop")
            items.append((self.questions[question].prompt, response))
        grading = self.grading
        verdicts = verdicts_of(grading.judge, items, f"judge '{grading.name}'") if items else []
        return [
            (_by(grading.no_answer), v.reason or "no answer")
            if v.score is None
            else (v.score >= grading.success, "")
            for v in verdicts
        ]

    def _cut_off(self) -> tuple[bool | None, str]:
        return _by(self.grading.truncated), "cut off"


def _by(policy: Policy) -> bool | None:
    return False if policy == "failure" else None


def _rollout(
    ask: Ask,
    tokens: Sequence[int],
    logps: Sequence[float],
    said: tuple[bool | None, str] | None,
    cut_off: tuple[bool | None, str],
) -> Rollout:
    success, reason = cut_off if said is None else said
    kept = () if ask.prefix else tuple(logps)
    return Rollout(tuple(tokens), success, reason, said is not None, kept)


def _written(rollout: Rollout) -> list[Any]:
    return [rollout.tokens, rollout.success, rollout.reason, rollout.whole, rollout.logps]


def _read(line: Sequence[Any]) -> Rollout:
    tokens, success, reason, whole, logps = line
    return Rollout(tuple(tokens), success, reason, whole, tuple(logps))
