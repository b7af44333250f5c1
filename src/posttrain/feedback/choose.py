"""The verb `choose`: which sampled prompts are worth a label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.common.chunks import in_chunks
from posttrain.common.config import Config, DataRef, Runtime
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.files import atomic
from posttrain.common.progress import progress
from posttrain.common.step import Step, StepContext
from posttrain.feedback.choose_criteria import CRITERIA, Found, measure
from posttrain.feedback.judge import Judge
from posttrain.feedback.judge_use import JudgeField, account_of
from posttrain.feedback.pairing import Candidate, Group, judgeable
from posttrain.feedback.verdict_rows import grouped
from posttrain.feedback.verdicts import verdicts_of
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects
from posttrain.formats.write import write_records
from posttrain.models.precision import Precision
from posttrain.models.spec import SpecField
from posttrain.records import Prompt, Samples, prompt_key, row_id

# Prompts between two saved states: what a killed run loses at most.
_CHUNK = 256

Strategy = Literal["random", "disagreement", "near_ties", "coverage"]
_NEEDS = {"disagreement": "judge", "near_ties": "judge", "coverage": "model"}
_ALSO = {"coverage": {"labelled", "precision"}}


class ChooseConfig(Config):
    """Pick `n` prompts, with all their answers, from samples; the others are not lost, choice.jsonl has them.

    strategy: "random". "disagreement": the prompts on whose best and worst answer the members of a reward
    ensemble disagree most. "near_ties": those whose best and worst answer the judge scores most alike.
    "coverage": prompts that leave none far from a chosen one (`choose_coverage`).
    judge: who predicts, for the two strategies in the middle: a reward_ensemble (disagreement; its scores are
    read as log-odds, so normalise: false), any judge that scores (near_ties).
    model: whose hidden states say how alike prompts are, for coverage. labelled: rows whose prompts are
    covered already.
    min_answers: distinct answers that were not cut off a prompt needs to be chosen at all.
    seed: of what is random, and of which of two equals comes first. No strategy looks at the rows' order.
    max_rejected: share of rows that may be unreadable before the step fails.
    """

    data: DataRef | list[DataRef]
    n: int = Field(ge=1)
    strategy: Strategy = "random"
    judge: JudgeField | None = None
    model: SpecField | None = None
    labelled: DataRef | list[DataRef] | None = None
    min_answers: int = Field(2, ge=1)
    seed: int = 0
    max_rejected: float = Field(0.01, ge=0, le=1)
    precision: Precision = "auto"
    device: Annotated[str, Runtime()] = "auto"

    @model_validator(mode="after")
    def _fitting(self) -> ChooseConfig:
        needed = _NEEDS.get(self.strategy)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"'{needed}' is missing: {self.strategy} goes by a {needed}")
        idle = {"judge", "model", "labelled", "precision"} - _ALSO.get(self.strategy, set()) - {needed}
        for name in sorted(idle & self.model_fields_set):
            if getattr(self, name) is not None:
                raise ValueError(f"'{name}' is set, but {self.strategy} makes no use of it; leave it out")
        if (
            self.strategy == "disagreement"
            and self.judge
            and getattr(self.judge.settings, "normalise", False)
        ):
            raise ValueError(
                "disagreement reads the members' scores as log-odds; with 'normalise: true' (the default) "
                f"{self.judge.name} gives standard deviations; set normalise: false in the judge"
            )
        if needed == "judge" and self.min_answers < 2:
            raise ValueError(f"min_answers: {self.strategy} compares answers, so it needs 2 or more")
        return self


@dataclass(frozen=True)
class Prospect:
    """A prompt that may be chosen. answers: those of its answers that can be judged."""

    key: str
    prompt: Prompt
    answers: tuple[Candidate, ...]


def run(cfg: ChooseConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` (the chosen samples), `choice.jsonl` (a line a prompt: chosen or not, and why) and
    `rejected.jsonl`. Answers that a killed run had judged are kept.
    """
    rows = _read(cfg, ctx)
    counts: Counter[str] = Counter()
    prospects = _prospects(cfg, grouped(rows), counts)
    found = _found(cfg, ctx, prospects, counts)
    ranked = rank(cfg, found)
    chosen = {one.key: place for place, one in enumerate(ranked[: cfg.n], 1)}
    if not chosen:
        raise DataError(f"choose {cfg.strategy}: not one prompt to choose: {_summary(cfg, counts, [])}")
    told = {one.key: one for one in [*found, *ranked]}
    values = {key: told[key].value for key in chosen}
    makers = {key: _words(cfg, place, len(chosen), len(ranked), values[key]) for key, place in chosen.items()}
    kept = [_with_choice(row, makers[key]) for row in rows if (key := prompt_key(row.prompt)) in makers]
    write_records(ctx.out / "rows.jsonl", kept)
    _write_choice(ctx, rows, told, chosen)
    return _summary(cfg, counts, list(values.values())) | {"rows": len(kept)}


STEP = Step("choose", ChooseConfig, run, version=1)


def rank(cfg: ChooseConfig, found: Sequence[Found]) -> list[Found]:
    """Those that can be chosen, the most wanted first; of equals, the seed and their text decide."""
    from posttrain.feedback.choose_coverage import farthest_first

    usable = sorted((one for one in found if not one.why), key=lambda one: row_id(cfg.seed, one.key))
    if cfg.strategy == "coverage":
        return farthest_first(usable, cfg.n)
    if cfg.strategy == "random":
        return usable
    sign = -1 if cfg.strategy == "disagreement" else 1
    return sorted(usable, key=lambda one: sign * one.number)


def _read(cfg: ChooseConfig, ctx: StepContext) -> list[Samples]:
    rows = []
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        for path in [cfg.data] if isinstance(cfg.data, str) else cfg.data:
            rows.extend(read_records(path, Samples, rejects=rejects))
    rejects.kept = len(rows)
    rejects.check(cfg.max_rejected)
    return rows


def _prospects(cfg: ChooseConfig, groups: Sequence[Group], counts: Counter[str]) -> list[Prospect]:
    counts["prompts"] = len(groups)
    answers = {prompt_key(group.prompt): judgeable(group, counts) for group in groups}
    prospects = [
        Prospect(key, group.prompt, tuple(some))
        for group, (key, some) in zip(groups, answers.items(), strict=True)
        if len(some) >= cfg.min_answers
    ]
    counts["few_answers"] = len(groups) - len(prospects)
    return prospects


def _found(
    cfg: ChooseConfig, ctx: StepContext, prospects: Sequence[Prospect], counts: Counter[str]
) -> list[Found]:
    """What the strategy goes by, of each prospect."""
    if cfg.strategy == "random":
        return [Found(prospect.key) for prospect in prospects]
    if cfg.strategy == "coverage":
        from posttrain.feedback.choose_coverage import embedded

        found = embedded(cfg, [(one.key, one.prompt) for one in prospects], ctx.label)
    else:
        found = _judged(cfg, ctx, prospects, counts)
    counts["unscored_prompts"] = sum(bool(one.why) for one in found)
    counts.update(f"why: {one.why}" for one in found if one.why)
    return found


def _judged(
    cfg: ChooseConfig, ctx: StepContext, prospects: Sequence[Prospect], counts: Counter[str]
) -> list[Found]:
    assert cfg.judge is not None
    judge = cfg.judge.open(account_of(ctx))
    if not isinstance(judge, Judge):
        raise ConfigError(f"judge '{cfg.judge.name}' compares and does not score, so nothing is predicted")
    name = f"judge '{cfg.judge.name}'"
    work = partial(_judge_chunk, judge, name, CRITERIA[cfg.strategy])
    found = []
    with progress(ctx.label, len(prospects), "prompt") as bar:
        for lines in in_chunks(prospects, _CHUNK, ctx.state, work):
            for told in map(json.loads, lines):
                found.append(Found(told["key"], told["value"], told["why"]))
                counts["no_answer"] += told["no_answer"]
            bar.advance(len(lines))
    return found


def _judge_chunk(
    judge: Judge, name: str, criterion: Any, number: int, some: Sequence[Prospect]
) -> list[bytes]:
    items = [(one.prompt, each.response) for one in some for each in one.answers]
    said = iter(verdicts_of(judge, items, name))
    lines = []
    for one in some:
        verdicts = [next(said) for _ in one.answers]
        told = measure(one.key, verdicts, criterion)
        silent = sum(verdict.score is None for verdict in verdicts)
        line = {"key": told.key, "value": told.value, "why": told.why, "no_answer": silent}
        lines.append(json.dumps(line).encode() + b"\n")
    return lines


def _words(cfg: ChooseConfig, place: int, chosen: int, of: int, value: float | None) -> str:
    """Who chose, as the rows' provenance tells it."""
    by = f" by {cfg.judge.label}" if cfg.judge else ""
    told = "" if value is None else f" {value:.4g}"
    return f"{cfg.strategy}{told}{by}, {place} of {chosen} from {of}"


def _with_choice(row: Samples, words: str) -> Samples:
    makers = row.provenance.makers | {"choice": words}
    return row.model_copy(update={"provenance": row.provenance.model_copy(update={"makers": makers})})


def _write_choice(
    ctx: StepContext, rows: Sequence[Samples], found: dict[str, Found], chosen: dict[str, int]
) -> None:
    ids: dict[str, list[str]] = {}
    for row in rows:
        ids.setdefault(prompt_key(row.prompt), []).append(row.provenance.id)
    with atomic(ctx.out / "choice.jsonl") as f:
        for key, some in ids.items():
            told = found.get(key, Found(key, None, "too few answers that are whole and distinct"))
            line = {"prompt": key, "rows": some, "chosen": key in chosen, "place": chosen.get(key)}
            f.write(json.dumps(line | {"value": told.value, "why_not": told.why}) + "\n")


def _summary(cfg: ChooseConfig, counts: Counter[str], values: Sequence[float | None]) -> dict[str, Any]:
    """What became of the prompts; those that could not be chosen are counted by reason."""
    names = ("prompts", "few_answers", "unscored_prompts", "cut_off", "identical", "no_answer")
    why = Counter({k.removeprefix("why: "): n for k, n in counts.items() if k.startswith("why: ")})
    numbers = [value for value in values if value is not None]
    return (
        {"strategy": cfg.strategy, "wanted": cfg.n, "chosen": len(values)}
        | {name: counts[name] for name in names}
        | {"unscored_reasons": dict(why.most_common(5))}
        | ({"values": {"first": numbers[0], "last": numbers[-1]}} if numbers else {})
    )
