"""The `judge` step: a judge scores or compares responses; of its verdicts come comparisons, ratings or the
best responses to learn from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, model_validator

from posttrain.common.chunks import in_chunks
from posttrain.common.config import Config, DataRef
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.files import atomic
from posttrain.common.progress import progress
from posttrain.common.step import Step, StepContext
from posttrain.feedback.asking import ASPECT, WHY, by_choosing, by_comparing, by_scoring, ratings
from posttrain.feedback.judge import Account, Judge, PairJudge
from posttrain.feedback.judge_use import JudgeField, account_of
from posttrain.feedback.label_cost import cost_of
from posttrain.feedback.pairing import Group, Pairs
from posttrain.feedback.position import position_summary
from posttrain.feedback.verdict_rows import grouped
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects
from posttrain.formats.write import line_of
from posttrain.records import Comparison, Row

if TYPE_CHECKING:
    from posttrain.feedback.calibrating import Calibration

# Prompts between two saved states: what a killed run loses at most.
_CHUNK = 256


_IDLE = {
    "comparisons": {"min_score"},
    "ratings": {"pairs", "min_gap", "min_score", "aspect", "calibrate"},
    "demonstrations": {"pairs", "min_gap", "calibrate"},
}


class JudgeConfig(Config):
    """Who judges what, and what becomes of it.

    data: samples (those of one prompt are judged together, also from several files), comparisons (judged
    anew), demonstrations or ratings. judge: a name, or `{name: …, settings…}`.
    to: "comparisons", "ratings", or "demonstrations": the best response to each prompt, to learn from it
    (rejection sampling). min_score: what the best must have at least to become a demonstration.
    pairs: the best against the worst by score; all of them; or two at random. With "all" and "random" a judge
    that can compare does so; otherwise, and for one aspect of a judge that also scores, scores decide.
    min_gap: difference of scores, or of the two probabilities, that a pair needs at least.
    aspect: "overall", or a part of the judge's verdicts to go by; several make pairs by each.
    calibrate: comparisons labelled by people or an oracle: the probabilities of a judge that compares become
    how often it is right when it is as sure.
    seed: of random pairs, of which response a judge sees first, and of which is best among equals.
    max_rejected: share of rows that may be unreadable before the step fails.
    """

    data: DataRef | list[DataRef]
    judge: JudgeField
    to: Literal["comparisons", "ratings", "demonstrations"] = "comparisons"
    pairs: Pairs = "best_worst"
    min_gap: float = Field(0.0, ge=0)
    min_score: float | None = None
    aspect: str | tuple[str, ...] = "overall"
    calibrate: DataRef | list[DataRef] | None = None
    seed: int = 0
    max_rejected: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _used(self) -> JudgeConfig:
        idle = _IDLE[self.to] & self.model_fields_set
        if idle:
            raise ValueError(f"'{min(idle)}' is set, but {self.to} make no use of it; leave it out")
        if not self.aspects or len(set(self.aspects)) < len(self.aspects):
            raise ValueError(f"aspect: expected different aspects, got {list(self.aspects)}")
        if len(self.aspects) > 1 and self.to != "comparisons":
            raise ValueError(f"aspect: {self.to} go by one of them, got {list(self.aspects)}")
        return self

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.aspect,) if isinstance(self.aspect, str) else self.aspect


def run(cfg: JudgeConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` and `rejected.jsonl`. What a killed run finished is kept."""
    rows: list[Row] = []
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        for path in [cfg.data] if isinstance(cfg.data, str) else cfg.data:
            rows.extend(read_records(path, rejects=rejects))
    rejects.kept = len(rows)
    rejects.check(cfg.max_rejected)
    groups = grouped(rows)
    judge = _opened(cfg, account_of(ctx))
    maps, told = _calibrated(cfg, judge)
    counts: Counter[str] = Counter(rejected=rejects.rejected)
    with (
        progress(ctx.label, len(groups), "prompt") as bar,
        atomic(ctx.out / "rows.jsonl", "wb") as f,
    ):
        for first, *lines in in_chunks(groups, _CHUNK, ctx.state, partial(_judge_chunk, cfg, judge, maps)):
            here = json.loads(first)
            counts.update(here)
            f.writelines(lines)
            bar.advance(here["prompts"])
    summary = _summary(cfg, counts)
    summary |= position_summary(counts) | told | cost_of(judge, summary[cfg.to])
    if not summary[cfg.to]:
        raise DataError(f"judge {cfg.judge.label}: not one of the {cfg.to} came of it: {summary}")
    return summary


STEP = Step("judge", JudgeConfig, run, version=1)


def _compares(cfg: JudgeConfig, judge: Judge | PairJudge) -> bool:
    """Whether pairs are compared as such; a best and worst take scores, and so does one aspect where there
    are any.
    """
    if cfg.to != "comparisons" or cfg.pairs == "best_worst" or not isinstance(judge, PairJudge):
        return False
    return cfg.aspects == ("overall",) or not isinstance(judge, Judge)


def _opened(cfg: JudgeConfig, account: Account | None) -> Judge | PairJudge:
    """Raises ConfigError where the judge cannot do what is asked."""
    judge = cfg.judge.open(account)
    if isinstance(judge, Judge) or _compares(cfg, judge):
        return judge
    if cfg.to != "comparisons":
        raise ConfigError(f"judge '{cfg.judge.name}' compares and does not score, so it gives no {cfg.to}")
    raise ConfigError(f"judge '{cfg.judge.name}' compares and does not score: set pairs to all or random")


def _calibrated(cfg: JudgeConfig, judge: Judge | PairJudge) -> tuple[dict[str, Calibration], dict[str, Any]]:
    """What maps the judge's probabilities, by aspect; and what the summary tells of it."""
    if cfg.calibrate is None:
        return {}, {}
    if not _compares(cfg, judge):
        raise ConfigError(
            f"calibrate: judge '{cfg.judge.name}' scores here, and gives no probabilities; a judge that "
            "compares does, with pairs: all or random"
        )
    from posttrain.feedback.calibrating import calibrations

    paths = [cfg.calibrate] if isinstance(cfg.calibrate, str) else cfg.calibrate
    rows = [row for path in paths for row in read_records(path, Comparison)]
    name = f"judge '{cfg.judge.name}'"
    maps, told = calibrations(cast(PairJudge, judge), rows, cfg.aspects, cfg.seed, name)
    return maps, {"calibration": told}


def _judge_chunk(
    cfg: JudgeConfig,
    judge: Judge | PairJudge,
    maps: dict[str, Calibration],
    number: int,
    groups: Sequence[Group],
) -> list[bytes]:
    """One line of counts, then the rows."""
    counts = Counter(prompts=len(groups), responses=sum(len(group.candidates) for group in groups))
    if _compares(cfg, judge):
        made = by_comparing(cfg, cast(PairJudge, judge), groups, counts, maps)
    else:
        ask = {"ratings": ratings, "comparisons": by_scoring, "demonstrations": by_choosing}[cfg.to]
        made = ask(cfg, cast(Judge, judge), groups, counts)
    counts[cfg.to] = len(made)
    return [json.dumps(counts).encode() + b"\n", *map(line_of, made)]


def _summary(cfg: JudgeConfig, counts: Counter[str]) -> dict[str, Any]:
    """What became of the responses; nothing that gave no preference is left unsaid."""
    names = ["prompts", "responses", cfg.to, "cut_off", "no_answer", "rejected"]
    if cfg.to == "comparisons":
        names += ["ties", "too_close", "identical", "unpaired"]
    if cfg.to == "demonstrations":
        names += ["identical", "unscored_prompts", "below_min_score"]
    why = Counter({k.removeprefix(WHY): n for k, n in counts.items() if k.startswith(WHY)})
    by_aspect = {aspect: counts[ASPECT + aspect] for aspect in cfg.aspects}
    return (
        {"judge": cfg.judge.label}
        | {n: counts[n] for n in names}
        | ({"by_aspect": by_aspect} if len(by_aspect) > 1 else {})
        | {"no_answer_reasons": dict(why.most_common(5))}
    )
