"""Rollouts by a model, graded by a judge; every level is kept, so that a killed step pays for none twice."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from posttrain.common.chunks import in_chunks
from posttrain.engines.protocol import Completion, Engine, SamplingParams
from posttrain.feedback.pivotal.grading import Answer, Grader, Grading, Question
from posttrain.feedback.pivotal.ledger import Ledger, shared_tokens
from posttrain.feedback.pivotal.rollouts import Ask, Rollout
from posttrain.feedback.verifiers import without_answer
from posttrain.records import row_id

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

# Rollouts between two saved states: what a killed run loses at most, and what one call of the engine makes.
# Seeds depend on it, so a change of it is a new version of the step.
_CHUNK = 8192


@final
class EngineRoller:
    """A `Roller`. An answer is a prefix and its continuation, of at most `sampling.max_new_tokens` together,
    so that a rollout from a prefix is what a rollout from the prompt that went this way would have been.
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
        self.questions, self.engine, self.sampling = questions, engine, sampling
        self.grading, self.state, self.label = grading, state, label
        self.grader = Grader(grading, questions, template)
        self.ledger = Ledger()

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """See `Roller`."""
        level = self.ledger.levels
        self.ledger.levels += 1
        over = {i: found for i, ask in enumerate(asks) if (found := self._over(ask)) is not None}
        to_roll = [ask for i, ask in enumerate(asks) if i not in over]
        size = max(1, _CHUNK // max((ask.n for ask in to_roll), default=1))
        fresh: list[list[Rollout]] = []
        work = partial(self._chunk, level)
        for first, *lines in in_chunks(to_roll, size, self.state / f"level-{level:04d}", work):
            booked = json.loads(first)
            self.ledger.book(booked["counts"], booked["seconds"])
            fresh += [[_read(each) for each in json.loads(line)] for line in lines]
        for ask, came in zip(to_roll, fresh, strict=True):
            for rollout in came:
                if rollout.whole:
                    answer = (ask.question, (*ask.prefix, *rollout.tokens))
                    self.grader.remember(answer, (rollout.success, rollout.reason))
        made = iter(fresh)
        return [over[i] if i in over else next(made) for i in range(len(asks))]

    def _over(self, ask: Ask) -> list[Rollout] | None:
        """The rollouts from a prefix that is a whole answer, or has no room for more; they cost nothing."""
        graded = self.grader.known((ask.question, ask.prefix))
        if graded is not None:
            return [Rollout((), *graded)] * ask.n
        if len(ask.prefix) >= self.sampling.max_new_tokens:
            return [Rollout((), *self.grading.cut_off, whole=False)] * ask.n
        return None

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
        rollouts = self._graded(asks, completions, counts)
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
        longest = self.sampling.max_new_tokens
        room = [longest - len(ask.prefix) for ask in asks for _ in range(ask.n // each)]
        seed = int(row_id(self.sampling.seed, level, number), 16) >> 1
        params = self.sampling.model_copy(update={"n": each, "seed": seed})
        label = f"{self.label}: {', '.join(sorted({ask.phase for ask in asks}))}, level {level + 1}"
        made = iter(self.engine.generate(repeated, params, label, room))
        return [[c for _ in range(ask.n // each) for c in next(made)] for ask in asks]

    def _graded(
        self, asks: Sequence[Ask], completions: Sequence[Sequence[Completion]], counts: Counter[str]
    ) -> list[list[Rollout]]:
        """Rollouts with their outcomes."""
        answers = [[self._whole(ask, c) for c in some] for ask, some in zip(asks, completions, strict=True)]
        whole = [answer for some in answers for answer in some if answer is not None]
        counts["oracle_calls"] += self.grader.grade(whole)
        made = []
        for ask, some, ends in zip(asks, completions, answers, strict=True):
            rollouts = []
            for c, answer in zip(some, ends, strict=True):
                said = None if answer is None else self.grader.known(answer)
                success, reason = self.grading.cut_off if said is None else said
                logps = () if ask.prefix else c.logps
                rollouts.append(Rollout(c.token_ids, success, reason, said is not None, logps))
            why = [r.reason for r in rollouts if r.whole and r.reason]
            counts["cut_off"] += sum(not r.whole for r in rollouts)
            counts["no_answer"] += len(why)
            counts.update(f"no_answer: {without_answer(reason)}" for reason in why)
            made.append(rollouts)
        return made

    def _whole(self, ask: Ask, completion: Completion) -> Answer | None:
        """The answer that a completion makes; None where it was cut off."""
        if completion.finish != "stop":
            return None
        return ask.question, (*ask.prefix, *completion.token_ids)


def _written(rollout: Rollout) -> list[Any]:
    return [rollout.tokens, rollout.success, rollout.reason, rollout.whole, rollout.logps]


def _read(line: Sequence[Any]) -> Rollout:
    tokens, success, reason, whole, logps = line
    return Rollout(tuple(tokens), success, reason, whole, tuple(logps))
