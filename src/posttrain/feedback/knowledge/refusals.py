"""The `refusals` step: of a probe and of bogus questions, rows that teach a model to say what it knows and to
refuse where it does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.common.config import Config, DataRef
from posttrain.common.errors import DataError
from posttrain.common.step import Step, StepContext
from posttrain.feedback.knowledge.asking import rejects_summary
from posttrain.feedback.knowledge.posterior import Knowledge
from posttrain.feedback.knowledge.probed import PROBE, Probed, State, read_probe
from posttrain.feedback.verifiers import compiled
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.formats.write import write_records
from posttrain.records import (
    Comparison,
    Demonstration,
    Prompt,
    Provenance,
    Response,
    Row,
    Samples,
    prompt_key,
    row_id,
)

REFUSALS = (
    "I do not know.",
    "I am not sure about that, so I would rather not guess.",
    "I don't have reliable information about that.",
    "That is something I do not know.",
)

NOTHING = "'asks' finds nothing in the question"
PLACE = re.compile(r"\{(\w+)\}")

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
    """Write `rows.jsonl`, and `rejected.jsonl` with the questions that gave no row and why."""
    rows: list[Row] = []
    counts: Counter[str] = Counter(dict.fromkeys(_KINDS[cfg.to], 0))
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        for number, (samples, probed) in enumerate(read_probe(cfg.probe), 1):
            made = list(_rows(cfg, samples, probed))
            rows += [row for _, row in made]
            counts.update(kind for kind, _ in made)
            if not made:
                error = RowError("knowledge", _why(cfg, probed), by_choice=True)
                rejects.add(f"{cfg.probe}/{PROBE}", number, error, probed.model_dump(mode="json"))
        for number, prompt in enumerate(_bogus(cfg, rows), 1):
            refusal = _refusal(cfg, prompt)
            if refusal is None:
                rejects.add(cfg.bogus or "", number, RowError("messages", NOTHING), prompt.text)
                continue
            rows.append(_demonstration(cfg, prompt, refusal, "bogus", prompt.provenance.id))
            counts["bogus_refused"] += 1
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


def _rows(cfg: RefusalsConfig, samples: Samples, probed: Probed) -> Iterator[tuple[str, Row]]:
    """(what it teaches, row) of one question."""
    prompt, refusal = samples.prompt, _refusal(cfg, samples.prompt)
    right, wrong = (_drawn(cfg, samples, probed, state) for state in ("right", "wrong"))
    if cfg.to == "comparisons":
        if refusal is None:
            return
        if probed.knowledge in cfg.prefer_answer:
            for answer in right:
                yield "answer_preferred", _comparison(samples, probed, answer, refusal)
        if probed.knowledge in cfg.prefer_refusal:
            for answer in wrong:
                yield "refusal_preferred", _comparison(samples, probed, refusal, answer)
    elif probed.knowledge == "usually":
        for answer in right:
            yield "answered", _demonstration(cfg, prompt, answer, probed.knowledge, probed.samples, samples)
    elif probed.knowledge == "rarely" and refusal is not None:
        yield "refused", _demonstration(cfg, prompt, refusal, probed.knowledge, probed.samples)


def _why(cfg: RefusalsConfig, probed: Probed) -> str:
    used = {"usually", "rarely"} if cfg.to == "demonstrations" else {*cfg.prefer_answer, *cfg.prefer_refusal}
    if probed.knowledge not in used:
        return f"{probed.knowledge} known, of which no {cfg.to} are made"
    if cfg.asks is not None and re.search(cfg.asks, probed.question) is None:
        return NOTHING
    return f"{probed.knowledge} known, and no answer of the kind that is wanted was sampled"


def _drawn(cfg: RefusalsConfig, samples: Samples, probed: Probed, state: State) -> list[Response]:
    """The question's distinct answers of a state, at most `per_question`, drawn by the seed."""
    found: dict[str, Response] = {}
    for response, each in zip(samples.responses, probed.states, strict=True):
        if each == state:
            found.setdefault(response.text, response)
    ranked = sorted(found, key=lambda text: row_id(cfg.seed, probed.key, text))
    return [found[text] for text in ranked[: cfg.per_question]]


def _refusal(cfg: RefusalsConfig, prompt: Prompt) -> Response | None:
    """None where `asks` finds nothing in the question."""
    found = re.search(cfg.asks, prompt.text) if cfg.asks is not None else None
    if cfg.asks is not None and found is None:
        return None
    text = cfg.refusals[int(row_id("refusal", cfg.seed, prompt_key(prompt)), 16) % len(cfg.refusals)]
    groups = found.groupdict("") if found else {}
    return Response(text=PLACE.sub(lambda place: groups[place[1]], text))


def _demonstration(
    cfg: RefusalsConfig,
    prompt: Prompt,
    response: Response,
    why: str,
    parent: str,
    samples: Samples | None = None,
) -> Demonstration:
    """samples: where the response is the model's own."""
    return Demonstration(
        provenance=Provenance(
            id=row_id("refusals", parent, cfg.seed, response.text),
            source=prompt.provenance.source,
            licence=prompt.provenance.licence,
            makers=prompt.provenance.makers | {"response": _maker(samples), "choice": why},
            parents=(parent,),
        ),
        prompt=prompt,
        response=response,
    )


def _comparison(samples: Samples, probed: Probed, chosen: Response, rejected: Response) -> Comparison:
    sides = {"chosen": chosen, "rejected": rejected}
    makers = {
        side: _maker(samples if response in samples.responses else None) for side, response in sides.items()
    }
    origin = samples.prompt.provenance
    return Comparison(
        provenance=Provenance(
            id=row_id("refusals", probed.samples, chosen.text, rejected.text),
            source=origin.source,
            licence=origin.licence,
            makers=origin.makers | makers | {"preference": f"probe, {probed.knowledge}"},
            parents=(probed.samples,),
        ),
        prompt=samples.prompt,
        chosen=chosen,
        rejected=rejected,
        judge="probe",
    )


def _maker(samples: Samples | None) -> str:
    return "refusal" if samples is None else samples.provenance.makers.get("response", samples.model)
