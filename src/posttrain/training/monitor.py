"""Whether what is rewarded is still what is wanted: a gold judge looks on while the policy learns.

Gao et al. (arXiv 2210.10760): as a policy moves away from where it began, the reward it learns from (the
proxy) goes on rising while what the reward stands for (gold) turns and falls.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np

from posttrain.feedback.judge import Judge, Verdict
from posttrain.feedback.verdicts import verdicts_of
from posttrain.records import prompt_key
from posttrain.training.rollout import MOST_REASONS, OTHERS

if TYPE_CHECKING:
    from posttrain.training.online_config import MonitorConfig
    from posttrain.training.rollout import Group

SHOWN = 0.95  # level of the interval that is written beside the gold reward

Golds = list[list[float | None]]  # gold score of each answer of each group; None: no answer


@dataclass(frozen=True)
class Sums:
    """One reward by prompt: how many answers, and their sum."""

    count: Mapping[str, int]
    total: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over all answers."""
        return sum(self.total.values()) / sum(self.count.values())

    def influence(self) -> dict[str, float]:
        """Each prompt's share of the error of the mean, scaled such that the squares add up to its variance.

        Linearised, with the G/(G-1) correction of G prompts (Liang & Zeger 1986). Needs two prompts.
        """
        answers, mean, g = sum(self.count.values()), self.mean, len(self.count)
        scale = math.sqrt(g / (g - 1)) / answers
        return {key: scale * (self.total[key] - n * mean) for key, n in self.count.items()}


@dataclass(frozen=True)
class Interval:
    """A number and its limits."""

    mean: float
    low: float
    high: float


def interval(after: Sums, before: Sums | None, level: float) -> Interval | None:
    """Mean of `after`, less that of `before` where given, by Student's t over prompts.

    Prompts that both hold are paired, the others independent: with the same prompts on both sides this is the
    paired t interval; with none in common it has Welch's standard error. Degrees of freedom: one less than
    the smaller side has prompts, which is exact in the first case and careful in the second. None with fewer
    than two prompts on a side.
    """
    from scipy.stats import t

    sides = [after] if before is None else [after, before]
    if min(len(side.count) for side in sides) < 2:
        return None
    error = after.influence()
    mean = after.mean
    if before is not None:
        mean -= before.mean
        for key, share in before.influence().items():
            error[key] = error.get(key, 0.0) - share
    freedom = min(len(side.count) for side in sides) - 1
    half = float(t.ppf(0.5 + level / 2, freedom)) * math.sqrt(sum(share**2 for share in error.values()))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Check:
    """What one look at a rollout's answers gave: both rewards of those to which both judges gave one."""

    rollout: int
    proxy: Sums
    gold: Sums


@dataclass
class History:
    """All that a run's later checks depend on. scale: mean and standard deviation of each reward's answers at
    the first check. streak: suspicious checks in a row. alarms: rollouts at which there was alarm.
    silent: why the gold judge gave no answer, and how often. unseen: checks in a row without any answer.
    """

    checks: int = 0
    best: Check | None = None
    last: Check | None = None
    scale: dict[str, tuple[float, float]] | None = None
    streak: int = 0
    alarms: list[int] = field(default_factory=list)
    silent: dict[str, int] = field(default_factory=dict)
    unseen: int = 0


@final
class Monitor:
    """Asks the gold judge and compares with the best so far.

    A check is suspicious where, against the best, gold has fallen by more than `tolerance` beyond its noise
    and the proxy has not. `patience` of them in a row are an alarm. The best moves only where gold has
    *risen* beyond its noise: the highest of many noisy means is high by luck, and what comes after would seem
    to have fallen from it.

    A gold judge that gives no answer at all sees nothing. That is an alarm at once where it has never given
    one, and after `patience` such checks in a row where it has.
    """

    def __init__(self, cfg: MonitorConfig, judge: Judge, label: str) -> None:
        self.cfg, self.judge, self.label = cfg, judge, label
        self.now = History()

    @property
    def alarm(self) -> bool:
        """Whether there is alarm now."""
        return self._fell or self._blind

    @property
    def _fell(self) -> bool:
        return self.now.streak >= self.cfg.patience

    @property
    def _blind(self) -> bool:
        never = self.now.best is None
        return self.now.unseen >= (1 if never else self.cfg.patience)

    def due(self, rollout: int) -> bool:
        """Whether rollout `rollout`, from 0, is to be checked; the first is of the policy as it began."""
        return rollout % self.cfg.every == 0

    def check(self, groups: Sequence[Group], rollout: int) -> tuple[dict[str, float], Golds]:
        """Look at the answers of a rollout: what to log of it, and the gold score of each answer."""
        began = time.monotonic()
        golds = self._golds(groups)
        found = _paired(groups, golds)
        asked = sum(len(row) for row in golds)
        missing = sum(gold is None for row in golds for gold in row)
        metrics = {"gold_no_answer": missing / max(asked, 1)}
        self.now.checks += 1
        before = self.alarm
        self.now.unseen = self.now.unseen + 1 if asked and missing == asked else 0
        if found:
            metrics |= self._compare(Check(rollout, *(_sums(found, i) for i in (1, 2))), found)
        self._tell(before)
        metrics |= {"alarm": float(self._fell), "monitor_seconds": round(time.monotonic() - began, 3)}
        return metrics, golds

    def _golds(self, groups: Sequence[Group]) -> Golds:
        items = [(group.asked.prompt, answer.response) for group in groups for answer in group.answers]
        said = iter(verdicts_of(self.judge, items, f"the monitor's judge '{self.cfg.judge.name}'"))
        return [[self._gold(next(said)) for _ in group.answers] for group in groups]

    def _gold(self, verdict: Verdict) -> float | None:
        if verdict.score is not None:
            return verdict.score
        why = verdict.reason or "no reason given"
        if why not in self.now.silent and len(self.now.silent) >= MOST_REASONS:
            why = OTHERS
        self.now.silent[why] = self.now.silent.get(why, 0) + 1
        return None

    def _compare(self, check: Check, found: list[tuple[str, float, float]]) -> dict[str, float]:
        now = self.now
        now.last = check
        if now.best is None:
            now.best = check
            now.scale = {"proxy": _spread(found, 1), "gold": _spread(found, 2)}
        self._judge_fall(check)
        if self._fell:
            now.alarms.append(check.rollout + 1)
        shown = interval(check.gold, None, SHOWN)
        ends = {} if shown is None else {"gold_low": shown.low, "gold_high": shown.high}
        metrics = {"proxy": check.proxy.mean, "gold": check.gold.mean, **ends}
        assert now.scale is not None
        for name, (mean, std) in now.scale.items():
            if std > 0:
                metrics[f"{name}_standardised"] = (metrics[name] - mean) / std
        return metrics

    def _tell(self, before: bool) -> None:
        """Say on stderr that an alarm begins or ends, or that nothing is seen any more."""
        if self.alarm != before:
            print(f"{self.label}: {self.why() if self.alarm else 'no alarm any more'}", file=sys.stderr)
        elif self.now.unseen == 1:
            print(f"{self.label}: {self._unseen()}", file=sys.stderr)

    def _judge_fall(self, check: Check) -> None:
        """Count a suspicious check, end a row of them, or take a better best."""
        now = self.now
        assert now.best is not None
        change = interval(check.gold, now.best.gold, self.cfg.level)
        if change is not None and change.low > 0:
            now.best = check
        fallen = change is not None and change.high < -self.cfg.tolerance
        now.streak = now.streak + 1 if fallen and check.proxy.mean >= now.best.proxy.mean else 0

    def why(self) -> str:
        """The alarm in words."""
        if not self._fell:
            return self._unseen()
        best, last = self.now.best, self.now.last
        assert best is not None and last is not None  # noqa: PT018
        return (
            f"alarm at rollout {last.rollout + 1}: since rollout {best.rollout + 1} the reward went from "
            f"{best.proxy.mean:.4g} to {last.proxy.mean:.4g} while the gold judge's fell from "
            f"{best.gold.mean:.4g} to {last.gold.mean:.4g}, beyond its noise in {self.now.streak} checks "
            "in a row: what is rewarded is no longer what is wanted"
        )

    def _unseen(self) -> str:
        reason, count = max(self.now.silent.items(), key=lambda each: each[1])
        checks = "a check" if self.now.unseen == 1 else f"{self.now.unseen} checks in a row"
        return (
            f"the monitor's judge '{self.cfg.judge.name}' gave no answer at all in {checks}, so nothing "
            f"watches the reward (most often, {count} times: {reason})"
        )

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        now = self.now
        found: dict[str, Any] = {"checks": now.checks, "alarms": now.alarms}
        for name, check in (("best", now.best), ("last", now.last)):
            if check is not None:
                means = {"proxy": check.proxy.mean, "gold": check.gold.mean}
                found[name] = {"rollout": check.rollout + 1, **means}
        return found | {"no_answer": dict(now.silent)}

    def state(self) -> dict[str, Any]:
        """What a killed run needs to go on; plain data alone."""
        return asdict(self.now)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        checks = {name: _check(state[name]) for name in ("best", "last")}
        self.now = History(**{**state, **checks})


def _check(plain: dict[str, Any] | None) -> Check | None:
    if plain is None:
        return None
    return Check(plain["rollout"], Sums(**plain["proxy"]), Sums(**plain["gold"]))


def _paired(groups: Sequence[Group], golds: Golds) -> list[tuple[str, float, float]]:
    """Prompt, proxy and gold of each answer that has both."""
    return [
        (prompt_key(group.asked.prompt), answer.reward, gold)
        for group, row in zip(groups, golds, strict=True)
        for answer, gold in zip(group.answers, row, strict=True)
        if gold is not None
    ]


def _sums(found: Sequence[tuple[str, float, float]], which: int) -> Sums:
    count: Counter[str] = Counter()
    total: dict[str, float] = {}
    for row in found:
        count[row[0]] += 1
        total[row[0]] = total.get(row[0], 0.0) + float(row[which])
    return Sums(dict(count), total)


def _spread(found: Sequence[tuple[str, float, float]], which: int) -> tuple[float, float]:
    values = np.array([row[which] for row in found], dtype=float)
    return float(values.mean()), float(values.std()) if np.ptp(values) else 0.0
