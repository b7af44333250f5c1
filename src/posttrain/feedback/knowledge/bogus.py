"""The `bogus` step: questions that look real and that nothing answers, written by a model or made elsewhere,
rated, and kept only where attempts to answer them disagree.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from posttrain.common.config import Config, DataRef
from posttrain.common.errors import DataError
from posttrain.common.step import Step, StepContext
from posttrain.feedback.fact_grades import REFUSALS
from posttrain.feedback.judge import spent_by
from posttrain.feedback.judge_use import JudgeField, account_of
from posttrain.feedback.knowledge.agreement import agreement
from posttrain.feedback.knowledge.asking import Asked, ask, check_draws, rejects_summary
from posttrain.feedback.knowledge.bogus_rating import rated
from posttrain.feedback.knowledge.bogus_writing import Candidate, Drop, Writer, given, written
from posttrain.feedback.verifiers import compiled, without_answer
from posttrain.formats.rejects import Rejects, RowError
from posttrain.formats.write import write_records
from posttrain.records import Prompt, Samples, prompt_key

ATTEMPTS = "attempts.jsonl"


class Attempts(Asked):
    """Who tries to answer, as of `sample`."""

    n: int = Field(8, ge=2)

    @model_validator(mode="after")
    def _draws(self) -> Self:
        check_draws(self)
        return self


class BogusConfig(Config):
    """questions, writer: real questions, and the model that makes a bogus one of each; or candidates: bogus
    questions made elsewhere (their tag `real` has the real one).

    judge, min_quality: who rates how well a candidate is made, and what it must have at least; None keeps
    all. attempts: who tries to answer each candidate. It is kept where no answer is given by more than the
    share `max_agreement` of the attempts that are whole, of which there must be `min_attempts`; a refusal
    agrees with nothing. answer: a regular expression that finds the answer in an attempt, as of
    `alias_match`. refusals: as of the grader `rule`.
    """

    questions: DataRef | None = None
    writer: Writer | None = None
    candidates: DataRef | None = None
    judge: JudgeField | None = None
    min_quality: float | None = None
    attempts: Attempts
    max_agreement: float = Field(0.5, ge=0, lt=1)
    min_attempts: int = Field(4, ge=2)
    answer: str | None = None
    refusals: tuple[str, ...] = Field(REFUSALS)

    @field_validator("answer")
    @classmethod
    def _compiles(cls, answer: str | None) -> str | None:
        return answer if answer is None else compiled(answer).pattern

    @model_validator(mode="after")
    def _together(self) -> BogusConfig:
        if (self.candidates is None) == (self.questions is None):
            raise ValueError("give either 'candidates' or 'questions'")
        if (self.questions is None) != (self.writer is None):
            raise ValueError("'questions' and 'writer' go together")
        if (self.judge is None) != (self.min_quality is None):
            raise ValueError("'judge' and 'min_quality' go together")
        if self.min_attempts > self.attempts.n:
            raise ValueError(
                f"'min_attempts' is {self.min_attempts}, and there are only {self.attempts.n} attempts"
            )
        return self


def run(cfg: BogusConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` (Prompts with the tag `answerable: no`), `attempts.jsonl` (Samples: the attempts to
    answer those) and `rejected.jsonl`. What a killed run finished is kept, and what was paid is not paid
    again.
    """
    told: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    whys: dict[str, Counter[str]] = {}
    source = cfg.candidates or cfg.questions or ""
    with Rejects(ctx.out / "rejected.jsonl") as rejects:

        def drop(candidate: Candidate, kind: str, why: str) -> None:
            counts[kind] += 1
            whys.setdefault(kind, Counter())[without_answer(why)] += 1
            error = RowError("prompt", f"{kind.replace('_', ' ')}: {why}", by_choice=True)
            rejects.add(source, candidate.number, error, candidate.text)

        if cfg.questions and cfg.writer:
            found, told["writing"] = written(cfg.writer, cfg.questions, ctx, drop)
        else:
            found = given(source, drop)
        counts["candidates"] = len(found) + counts.total()
        if cfg.judge and cfg.min_quality is not None and found:
            judge = cfg.judge.open(account_of(ctx))
            found = rated(judge, cfg.judge.name, cfg.min_quality, found, ctx, drop)
            told |= {"judging_cost": spent} if (spent := spent_by(judge)) else {}
        kept, told["attempts"] = _disagreeing(cfg, ctx, found, drop)
        rejects.tell(ctx.label)
    if not kept:
        top = "; ".join(_most(kind, whys[kind]) for kind in whys) or "it has no rows"
        raise DataError(
            f"{source}: not one bogus question is left of {counts['candidates']}: {top}; all of them: "
            f"{rejects.path}"
        )
    write_records(ctx.out / "rows.jsonl", [prompt for prompt, _ in kept])
    write_records(ctx.out / ATTEMPTS, [samples for _, samples in kept])
    if "no_rating" in whys:
        told["no_rating_reasons"] = dict(whys["no_rating"].most_common(5))
    return {"rows": len(kept), **counts, **rejects_summary(rejects), **told}


STEP = Step("bogus", BogusConfig, run, version=1)


def _most(kind: str, whys: Counter[str]) -> str:
    """How many candidates were left out for one reason, and what was said of most of them."""
    return f"{whys.total()} × {kind.replace('_', ' ')} ({whys.most_common(1)[0][0]})"


def _disagreeing(
    cfg: BogusConfig, ctx: StepContext, candidates: list[Candidate], drop: Drop
) -> tuple[list[tuple[Prompt, Samples]], dict[str, Any]]:
    """Those that no answer unites the attempts on, and what asking told."""
    if not candidates:
        return [], {}
    prompts = [candidate.prompt for candidate in candidates]
    rows, summary = ask(cfg.attempts, prompts, ctx, "attempts")
    answers = {prompt_key(row.prompt): row for row in rows}
    kept = []
    shares = []
    for candidate in candidates:
        row = answers.get(prompt_key(candidate.prompt))
        found = agreement(row.responses if row else (), cfg.answer, cfg.refusals)
        if row is None or found.whole < cfg.min_attempts:
            drop(candidate, "few_attempts", f"{found.whole} of {cfg.attempts.n} are whole")
            continue
        shares.append(found.share)
        if found.share > cfg.max_agreement:
            drop(candidate, "attempts_agree", f"{found.most} of {found.whole} say '{found.answer}'")
            continue
        words = f"{found.most} of {found.whole} attempts agree at most"
        prompt = candidate.chosen(words)
        kept.append((prompt, row.model_copy(update={"prompt": prompt})))
    told = {"mean_agreement": sum(shares) / len(shares) if shares else None}
    return kept, told | {"sampling": summary}
