"""Batches of answers just sampled: the policy answers, a judge scores, the loop learns, and round again."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from posttrain.common.errors import TrainingError
from posttrain.engines.local import LocalEngine
from posttrain.feedback.judge import Judge
from posttrain.feedback.label_cost import cost_of
from posttrain.models.forest import Branch
from posttrain.records import row_id
from posttrain.training.methods.base import REFERENCE, Example, Method
from posttrain.training.monitor import Golds, Monitor
from posttrain.training.offline import encode_rows
from posttrain.training.rollout import Answers, Asked, Group, add_counts, answer, means
from posttrain.training.rollout_data import drawn_metrics, policy_data, reference_stream, rows_of
from posttrain.training.rollout_view import RolloutView
from posttrain.training.sample_log import RolloutLog, kept_answers
from posttrain.training.source import Data, Offline, Part, Work

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.training.train import TrainConfig

EMPTY = 10  # rollouts in a row that may give too little to learn from before the run stops


@dataclass
class Progress:
    """All that changes from rollout to rollout. number: rollouts learned from before this one. kl: weight of
    the KL in force. asked: rollouts of prompts used up (more than `number` where some gave too little).
    counts: over all rollouts.
    """

    number: int = 0
    asked: int = 0
    kl: float = 0.0
    data: Data | None = None
    metrics: dict[str, float] | None = None
    counts: Counter[str] | None = None


@final
class Online:
    """A `Source` of optimizer steps; `updates` of them learn from each rollout.

    reference: the frozen model of the KL, None where there is none. repeated: prompts left out because they
    stand among the others. beside: rows learned beside the answers.
    monitor: looks whether the reward is still worth having.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        method: Method,
        model: Model,
        reference: Model | None,
        judge: Judge,
        prompts: Sequence[Asked],
        longest: int | None,
        repeated: int,
        out: Path,
        label: str,
        beside: tuple[Part, Offline] | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        assert cfg.online is not None
        self.cfg, self.online, self.method, self.label = cfg, cfg.online, method, label
        self.model, self.reference, self.judge = model, reference, judge
        self.prompts, self.longest, self.beside, self.monitor = prompts, longest, beside, monitor
        self.engine = LocalEngine(model, cfg.online.batch_tokens)
        self.per_rollout = min(cfg.online.rollout_prompts or cfg.batch_size, len(prompts))
        self.parts = -(-self.per_rollout // cfg.batch_size)  # minibatches of one pass
        self.updates = self.parts * cfg.online.passes
        self.samples, self.checks = RolloutLog(out / "samples.jsonl"), RolloutLog(out / "monitor.jsonl")
        self.view = RolloutView()
        self.now = Progress(kl=getattr(cfg.method, "kl", 0.0), counts=Counter(repeated_prompts=repeated))
        self.ended = ""  # why there was nothing left to learn

    def note(self, values: Mapping[str, float]) -> str:
        """See `Source`."""
        self.view.add(values)
        return self.view.note()

    def steps(self, epochs: float) -> int:
        """Optimizer steps in so many passes over the prompts."""
        return max(1, math.ceil(round(epochs * len(self.prompts) / self.per_rollout, 6))) * self.updates

    def _prompts(self, rollout: int) -> list[Asked]:
        """Those of one rollout: passes over all, each shuffled anew, laid end to end, so that every rollout
        has as many.
        """
        count = len(self.prompts)
        places = range(rollout * self.per_rollout, (rollout + 1) * self.per_rollout)
        orders = {
            turn: np.random.default_rng((self.cfg.seed, turn)).permutation(count)
            for turn in {place // count for place in places}
        }
        return [self.prompts[orders[place // count][place % count]] for place in places]

    def batches(self, start: int, stop: int) -> Iterator[Work]:
        """See `Source`."""
        for log in (self.samples, self.checks):  # of what a killed run did after this state
            log.cut(self.now.asked)
        beside = self.beside[1].plan.batches(start, stop) if self.beside else None
        for step in range(start, stop):
            number, update = divmod(step, self.updates)
            if (self.now.data is None or self.now.number != number) and not self._next(number):
                return
            assert self.now.data is not None
            chosen = self._minibatch(number, update)
            part = self.beside[0].of(next(beside)) if self.beside and beside else None
            yield Work(self.now.data, chosen, self.now.metrics or {}, part)

    def _minibatch(self, number: int, update: int) -> list[int]:
        """Examples of one update: each pass over a rollout is shuffled and cut into equal parts."""
        assert self.now.data is not None
        turn, place = divmod(update, self.parts)
        rng = np.random.default_rng((self.cfg.seed, number, turn))
        order = rng.permutation(len(self.now.data.examples))
        return np.array_split(order, self.parts)[place].tolist()

    def _next(self, number: int) -> bool:
        """Rollouts until there is something to learn from in each update; False where there no longer is.

        Raises TrainingError where there was nothing to begin with.
        """
        now = self.now
        for _ in range(EMPTY):
            answers = self._answer(self._prompts(now.asked), now.asked)
            now.asked += 1
            counts: Counter[str] = Counter(rollouts=1, **answers.counts)
            data, metrics = self._learnable(answers, number, counts)
            assert now.counts is not None
            add_counts(now.counts, counts)
            enough = data is not None and len(data.examples) >= self.parts
            now.counts["too_few"] += not enough
            seen, golds = self._watch(answers.groups, number, metrics) if enough else ({}, None)
            self.samples.write(now.asked - 1, kept_answers(answers.groups, self.online.keep_samples, golds))
            if self.ended:
                return False
            self.view.show(answers.groups)
            if enough:
                now.number, now.data = number, data
                now.metrics = {"rollout": float(now.asked), **means(answers), **metrics, **seen}
                self._adapt(number, metrics, sum(len(group.answers) for group in answers.groups))
                return True
        reason = (
            f"{EMPTY} rollouts in a row gave too little to learn from: {dict(now.counts or {})}. Answers "
            "that are cut off (raise max_new_tokens, or set `truncated`), answers without a score, and for "
            "comparisons prompts whose answers all score the same, teach nothing"
        )
        if number == 0:
            raise TrainingError(reason)
        self.ended = f"ended after {number} rollouts: {reason}"
        print(f"{self.label}: {self.ended}", file=sys.stderr)
        return False

    def _watch(
        self, groups: Sequence[Group], number: int, metrics: dict[str, float]
    ) -> tuple[dict[str, float], Golds | None]:
        """What the monitor sees in rollout `number`, where it is to look; an alarm may end the run."""
        if self.monitor is None or not self.monitor.due(number):
            return {}, None
        seen, golds = self.monitor.check(groups, self.now.asked - 1)  # as samples.jsonl counts
        away = {"kl": metrics["kl"]} if "kl" in metrics else {}
        self.checks.write(self.now.asked - 1, [{**away, **seen}])
        if self.monitor.alarm and self.monitor.cfg.stop:
            self.ended = f"ended after {number} rollouts: {self.monitor.why()}"
        return seen, golds

    def _answer(self, asked: Sequence[Asked], number: int) -> Answers:
        seed = int(row_id(self.cfg.seed, "rollout", number), 16) >> 1
        return answer(
            self.engine,
            self.model.template,
            self.judge,
            asked,
            self.online.sampling(seed),
            self.online.truncated,
            self.online.end_penalty,
            f"{self.label}: rollout {number + 1}",
        )

    def _learnable(
        self, answers: Answers, number: int, counts: Counter[str]
    ) -> tuple[Data | None, dict[str, float]]:
        if self.method.advantages is None:
            return self._from_rows(answers.groups, number, counts)
        least = getattr(self.cfg.method, "least_samples", 1)
        groups = [group for group in answers.groups if len(group.answers) >= least]
        counts["lone"] += sum(0 < len(group.answers) < least for group in answers.groups)
        if not groups:
            return None, {}
        alike = sum(len({answer.reward for answer in group.answers}) == 1 for group in groups)
        counts["alike"] += alike if least > 1 else 0
        data, metrics = policy_data(
            self.method,
            self.cfg.method,  # type: ignore[arg-type]  # a method with advantages has a PolicyConfig
            groups,
            self.model,
            self.reference,
            temperature=self.online.temperature,
            kl=self.now.kl,
            learns=self._learns(number),
            several=self.updates > 1,
            budget=self.cfg.micro_tokens,
        )
        return data, metrics

    def _learns(self, number: int) -> bool:
        """Whether the policy learns from this rollout, or its critic alone."""
        return number >= getattr(self.cfg.method, "critic_warmup", 0)

    def _adapt(self, number: int, metrics: dict[str, float], answers: int) -> None:
        """The weight of the KL after this rollout: Ziegler et al. (arXiv 1909.08593), section 2.2. While the
        policy stands still its KL says nothing of the weight.
        """
        target = getattr(self.cfg.method, "kl_target", None)
        if target is not None and "kl" in metrics and self._learns(number):
            error = min(max(metrics["kl"] / target - 1, -0.2), 0.2)
            self.now.kl *= 1 + error * answers / self.cfg.method.kl_horizon  # type: ignore[attr-defined]

    def _from_rows(
        self, groups: Sequence[Group], number: int, counts: Counter[str]
    ) -> tuple[Data | None, dict[str, float]]:
        judge = self.online.judge.label
        rows = rows_of(self.method, self.online, groups, self.cfg.seed + number, judge, counts)
        made = encode_rows(
            self.method, self.cfg.method, rows, self.model.template, self.longest, self.label, quiet=True
        )
        counts["rejected"] += len(made.rejected)
        if not made.examples:
            return None, {}
        streams, heat = {}, self.online.temperature
        if self.reference is not None:
            streams[REFERENCE] = reference_stream(self.reference, made, self.cfg.micro_tokens, heat)
        drawn = drawn_metrics(groups, self.reference, heat, self.cfg.micro_tokens)
        return Data(made.examples, streams, temperature=heat), {"rows": float(len(made.examples)), **drawn}

    def summary(self) -> dict[str, Any]:
        """For the manifest: what was sampled, and what could not be learned from."""
        counts = self.now.counts or Counter()
        early = {"ended_early": self.ended} if self.ended else {}
        seen: dict[str, Any] = cost_of(self.judge, counts["answers"])
        if self.monitor:
            seen["monitor"] = self.monitor.summary() | cost_of(self.monitor.judge, counts["answers"])
        known = {k: counts[k] for k in sorted(counts)}
        return {"online": {"rollouts": counts["rollouts"], **known, **seen, **early}}

    def _conditions(self) -> dict[str, Any]:
        """What a run must go on with to give the same bits, beside its key and the loop's own."""
        found = {"online.batch_tokens": self.online.batch_tokens}
        found |= _computed_with(self.online.judge.model_dump(mode="json"), "online.judge")
        if self.online.monitor is not None:
            found |= _computed_with(self.online.monitor.judge.model_dump(mode="json"), "online.monitor.judge")
        return found

    def state(self) -> dict[str, Any]:
        """See `Source`; plain data alone."""
        now = self.now
        return {
            **{name: getattr(now, name) for name in ("number", "asked", "kl", "metrics")},
            "counts": dict(now.counts or {}),
            "data": None if now.data is None else _plain(now.data),
            "monitor": None if self.monitor is None else self.monitor.state(),
            "conditions": self._conditions(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """See `Source`."""
        before, conditions = state["conditions"], self._conditions()
        if before != conditions:
            raise TrainingError(
                f"{self.label}: the interrupted run sampled and judged with {before}, this one would with "
                f"{conditions}: the result would be neither's. Go on as it was begun, or delete the state "
                "folder of this step to begin again"
            )
        own = {name: value for name, value in state.items() if name not in ("monitor", "conditions")}
        data = None if state["data"] is None else _from_plain(state["data"])
        self.now = Progress(**{**own, "data": data, "counts": Counter(state["counts"])})
        if self.monitor is not None:
            self.monitor.load(state["monitor"])


def _computed_with(settings: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What a judge computes with that is not in the step's key and yet decides its scores' last bits."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name in ("micro_tokens", "device"):
                yield f"{place}.{name}", value
            else:
                yield from _computed_with(value, f"{place}.{name}")
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from _computed_with(value, f"{place}.{number}")


def _plain(data: Data) -> dict[str, Any]:
    examples = [
        (e.row, [(list(b.tokens), list(b.mask)) for b in e.branches], dict(e.columns), e.family)
        for e in data.examples
    ]
    return {
        "examples": examples,
        "streams": {k: list(v) for k, v in data.streams.items()},
        "along": {k: list(v) for k, v in data.along.items()},
        "temperature": data.temperature,
    }


def _from_plain(state: dict[str, Any]) -> Data:
    examples = [
        Example(row, tuple(Branch(tokens, mask) for tokens, mask in branches), columns, family=family)
        for row, branches, columns, family in state["examples"]
    ]
    return Data(examples, state["streams"], state["along"], state["temperature"])
