"""The `refusals` step: of a probe and of bogus questions, rows that teach a model to say what it knows and to
refuse where it does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.common.config import Config, DataRef
from posttrain.common.errors import DataError
from posttrain.common.step import Step, StepContext
from posttrain.feedback.knowledge.asking import rejects_summary
from posttrain.feedback.knowledge.posterior import Knowledge
from posttrain.feedback.knowledge.probed import PROBE, Probed, read_probe
from posttrain.feedback.knowledge.refusal_rows import PLACE, demonstration, refusal_to, rows_of
from posttrain.feedback.verifiers import compiled
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.formats.write import write_records
from posttrain.records import Demonstration, Prompt, Row, prompt_key

REFUSALS = (
    "I do not know.",
    "I am not sure about that, so I would rather not guess.",
    "I don't have reliable information about that.",
    "That is something I do not know.",
)

NOTHING = "'asks' finds nothing in the question"

# What the rows of each kind teach, as the summary counts them.
_KINDS = {
    "demonstrations": ("answered", "refused", "bogus_refused"),
    "comparisons": ("answer_preferred", "refusal_preferred"),
}


class RefusalsConfig(Config):
    """probe: the folder of a step `probe`. bogus: prompts that nothing answers, for demonstrations.

    to: "demonstrations": of an answer that was right where the model usually knows, of a refusal where it
    rarely does, and of a refusal to each bogus question. "comparisons": a right answer over a refusal in the
    classes of `prefer_answer`, a refusal over a wrong answer in those of `prefer_refusal`.
    refusals: what a refusal says; which one is drawn by `seed` and question. asks: a regular expression that
    finds in a question what it asks for; its named groups fill the places of the refusals, as in "The
    {thing} is not known.". A question in which it finds nothing gets no refusal.
    per_question: at most so many rows of each kind a question, from distinct answers drawn by `seed`.
    Answers of the model are token-exact where the probe's engine was.
    """

    probe: DataRef
    bogus: DataRef | None = None
    to: Literal["demonstrations", "comparisons"] = "demonstrations"
    refusals: tuple[str, ...] = Field(REFUSALS, min_length=1)
    asks: str | None = None
    prefer_answer: tuple[Knowledge, ...] = ("sometimes",)
    prefer_refusal: tuple[Knowledge, ...] = ("rarely",)
    per_question: int = Field(1, ge=1)
    seed: int = 0

    @field_validator("refusals")
    @classmethod
    def _said(cls, refusals: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in refusals):
            raise ValueError("an empty refusal")
        return refusals

    @model_validator(mode="after")
    def _filled(self) -> RefusalsConfig:
        known = set(compiled(self.asks).groupindex) if self.asks is not None else set()
        for text in self.refusals:
            unknown = set(PLACE.findall(text)) - known
            if unknown:
                raise ValueError(f"the refusal {text!r} has a place {{{min(unknown)}}}, no group of 'asks'")
        return self

    @model_validator(mode="after")
    def _used(self) -> RefusalsConfig:
        idle = {"bogus"} if self.to == "comparisons" else {"prefer_answer", "prefer_refusal"}
        for name in sorted(idle & self.model_fields_set):
            if getattr(self, name) is not None:
                raise ValueError(f"'{name}' is set, but {self.to} make no use of it; leave it out")
        return self


def run(cfg: RefusalsConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl`, and `rejected.jsonl` with the questions that gave no row and why.

    Raises DataError where no row came of it, or `asks` fits none of the questions that a refusal is for.
    """
    rows: list[Row] = []
    counts: Counter[str] = Counter(dict.fromkeys(_KINDS[cfg.to], 0))
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        for number, (samples, probed) in enumerate(read_probe(cfg.probe), 1):
            made = list(rows_of(cfg, samples, probed))
            rows += [row for _, row in made]
            counts.update(kind for kind, _ in made)
            if not made:
                error = RowError("knowledge", _why(cfg, probed), by_choice=True)
                rejects.add(f"{cfg.probe}/{PROBE}", number, error, probed.model_dump(mode="json"))
        for number, prompt in enumerate(_bogus(cfg, rows), 1):
            refusal = refusal_to(cfg, prompt)
            if refusal is None:
                error = RowError("messages", NOTHING, by_choice=True)
                rejects.add(cfg.bogus or "", number, error, prompt.text)
                continue
            rows.append(demonstration(cfg, prompt, refusal, "bogus", prompt.provenance.id))
            counts["bogus_refused"] += 1
        rejects.tell(ctx.label)
    unfit = sum(n for why, n in rejects.choices.items() if why.endswith(NOTHING))
    if unfit and not counts.total() - counts["answered"]:
        raise DataError(
            f"asks: {cfg.asks!r} finds nothing in any of the {unfit} questions that a refusal is for, so no "
            f"row would teach one; mend the expression, or leave it out. The questions: {rejects.path}"
        )
    if not rows:
        raise DataError(f"{cfg.probe}: not one of the {cfg.to} came of it: {dict(rejects.choices)}")
    write_records(ctx.out / "rows.jsonl", rows)
    return {"rows": len(rows), **counts, **rejects_summary(rejects)}


STEP = Step("refusals", RefusalsConfig, run, version=1)


def _bogus(cfg: RefusalsConfig, answered: Iterable[Row]) -> list[Prompt]:
    """Raises DataError where there is none, or one that a row of the probe answers."""
    if cfg.bogus is None:
        return []
    prompts = read_records(cfg.bogus, Prompt)
    if not prompts:
        raise DataError(f"bogus: {cfg.bogus} has no rows; leave it out, or give prompts that nothing answers")
    known = {
        prompt_key(row.prompt)
        for row in answered
        if isinstance(row, Demonstration) and row.provenance.makers["choice"] == "usually"
    }
    both = [prompt for prompt in prompts if prompt_key(prompt) in known]
    if both:
        raise DataError(
            f"bogus: {len(both)} of the prompts in {cfg.bogus} are questions that the probe's model answers "
            f"rightly, such as '{both[0].text}': rows would teach both. Give prompts that nothing answers"
        )
    return prompts


def _why(cfg: RefusalsConfig, probed: Probed) -> str:
    used = {"usually", "rarely"} if cfg.to == "demonstrations" else {*cfg.prefer_answer, *cfg.prefer_refusal}
    if probed.knowledge not in used:
        return f"{probed.knowledge} known, of which no {cfg.to} are made"
    if cfg.asks is not None and re.search(cfg.asks, probed.question) is None:
        return NOTHING
    return f"{probed.knowledge} known, and no answer of the kind that is wanted was sampled"
