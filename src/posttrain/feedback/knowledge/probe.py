"""The `probe` step: which questions a model knows the answer to, from several samples each."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from pydantic import Field, model_validator

from posttrain.common.chunks import in_chunks
from posttrain.common.errors import DataError, PosttrainError
from posttrain.common.files import atomic
from posttrain.common.step import Step, StepContext
from posttrain.engines import sample
from posttrain.engines.sample import SampleConfig
from posttrain.feedback.fact_grades import ANSWERABLE, Graded, Grader, RuleGrader, answerable
from posttrain.feedback.judge import Paid
from posttrain.feedback.judge_use import account_of
from posttrain.feedback.knowledge.asking import check_draws
from posttrain.feedback.knowledge.graders import GraderField
from posttrain.feedback.knowledge.posterior import Thresholds, believe
from posttrain.feedback.knowledge.probed import PROBE, STATES, TAG, Probed, state_of
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects
from posttrain.formats.write import write_records
from posttrain.records import Prompt, Samples, prompt_key

_CHUNK = 256  # questions between two saved states of the grading


class ProbeConfig(SampleConfig, Thresholds):
    """Who is asked what and how often, as of `sample`; what counts as right; and, as of `Thresholds`, when a
    question is known.

    prompts: questions with reference answers. n: answers a question, each drawn by itself, so not greedy.
    grader: `rule`, or `{name: rule | llm | check, …}`, as of the task short_facts; `check` asks a server only
    where the rule cannot tell.
    """

    n: int = Field(10, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    grader: GraderField = RuleGrader()

    @model_validator(mode="after")
    def _draws(self) -> Self:
        check_draws(self)
        return self


def run(cfg: ProbeConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` (Samples, each prompt with the tag `knowledge`), `probe.jsonl` (a `Probed` a
    question) and `rejected.jsonl`. What a killed run sampled and graded is kept, and what was paid is not
    paid again.
    """
    _check_gradable(cfg.prompts)
    state = ctx.state / "sampling"
    inner = StepContext(ctx.state / "sampled" / ctx.out.name, state, ctx.label, ctx.cache or ctx.state)
    sampled = sample.run(cfg, inner)
    shutil.copyfile(inner.out / "rejected.jsonl", ctx.out / "rejected.jsonl")
    rows = read_records(inner.out / "rows.jsonl", Samples)
    grader = cfg.grader.open(account_of(ctx))
    probed: list[Probed] = []
    for lines in in_chunks(rows, _CHUNK, ctx.state / "grades", partial(_grade_chunk, grader)):
        for line in lines:
            row = rows[len(probed)]
            probed.append(_probed(cfg, row, [Graded(**told) for told in json.loads(line)]))
    write_records(ctx.out / "rows.jsonl", map(_tagged, rows, probed))
    with atomic(ctx.out / PROBE) as f:
        f.writelines(one.model_dump_json() + "\n" for one in probed)
    paid = {"grading_cost": grader.spent()} if isinstance(grader, Paid) else {}
    return _summary(probed) | {"tokens": sampled["tokens"]} | paid | {"sampling": sampled}


STEP = Step("probe", ProbeConfig, run, version=2)


def _check_gradable(path: str) -> None:
    """Raise DataError where no answer to any of the questions could be graded: before anyone is asked."""
    prompts = read_records(path, Prompt, rejects=Rejects())
    if prompts and not any(prompt.references or not answerable(prompt) for prompt in prompts):
        raise DataError(
            f"prompts: none of the {len(prompts)} questions in {path} has a reference answer, so nothing "
            f"can be graded; give rows with 'reference', or with the tag '{ANSWERABLE}: no'"
        )


def _grade_chunk(grader: Grader, number: int, rows: Sequence[Samples]) -> list[bytes]:
    """A line a question: the grades of its samples."""
    items = [(row.prompt, response) for row in rows for response in row.responses]
    said = grader.grade(items)
    if len(said) != len(items):
        raise PosttrainError(f"the grader gave {len(said)} grades to {len(items)} answers")
    grades = iter(said)
    return [json.dumps([vars(next(grades)) for _ in row.responses]).encode() + b"\n" for row in rows]


def _probed(cfg: ProbeConfig, row: Samples, grades: Sequence[Graded]) -> Probed:
    states = [state_of(graded) for graded in grades]
    counts = Counter(states)
    belief = believe(cfg, counts["right"], counts["wrong"] + counts["refused"])
    return Probed(
        samples=row.provenance.id,
        key=prompt_key(row.prompt),
        question=row.prompt.text,
        knowledge=belief.knowledge,
        counts={state: counts[state] for state in STATES},
        alpha=belief.alpha,
        beta=belief.beta,
        mean=belief.mean,
        low=belief.low,
        high=belief.high,
        above_usually=belief.above,
        below_rarely=belief.below,
        states=tuple(states),
        reasons=tuple(graded.reason for graded in grades),
    )


def _tagged(row: Samples, probed: Probed) -> Samples:
    tags = row.prompt.tags | {TAG: probed.knowledge}
    return row.model_copy(update={"prompt": row.prompt.model_copy(update={"tags": tags})})


def _summary(probed: Sequence[Probed]) -> dict[str, Any]:
    """How many questions are known how well, and what the samples were. right_by_class: the share of right
    ones among the graded samples of a class, None where there is none.
    """
    classes = Counter(one.knowledge for one in probed)
    samples = {state: sum(one.counts[state] for one in probed) for state in STATES}
    shares: dict[str, float | None] = {}
    for name in ("usually", "sometimes", "rarely", "undecided"):
        mine = [one for one in probed if one.knowledge == name]
        graded = sum(one.counts[state] for one in mine for state in ("right", "wrong", "refused"))
        shares[name] = sum(one.counts["right"] for one in mine) / graded if graded else None
    return {
        "questions": len(probed),
        "knowledge": {name: classes[name] for name in shares},  # type: ignore[index]  # its own names
        "samples": samples,
        "right_by_class": shares,
    }
