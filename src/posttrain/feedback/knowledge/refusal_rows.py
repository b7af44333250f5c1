"""The rows that one question of a probe gives, and one bogus question."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from posttrain.feedback.knowledge.probed import Probed, State
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

if TYPE_CHECKING:
    from posttrain.feedback.knowledge.refusals import RefusalsConfig

PLACE = re.compile(r"\{(\w+)\}")


def rows_of(cfg: RefusalsConfig, samples: Samples, probed: Probed) -> Iterator[tuple[str, Row]]:
    """(what it teaches, row) of one question."""
    prompt, refusal = samples.prompt, refusal_to(cfg, samples.prompt)
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
            yield "answered", demonstration(cfg, prompt, answer, probed.knowledge, probed.samples, samples)
    elif probed.knowledge == "rarely" and refusal is not None:
        yield "refused", demonstration(cfg, prompt, refusal, probed.knowledge, probed.samples)


def refusal_to(cfg: RefusalsConfig, prompt: Prompt) -> Response | None:
    """None where `asks` finds nothing in the question."""
    found = re.search(cfg.asks, prompt.text) if cfg.asks is not None else None
    if cfg.asks is not None and found is None:
        return None
    text = cfg.refusals[int(row_id("refusal", cfg.seed, prompt_key(prompt)), 16) % len(cfg.refusals)]
    groups = found.groupdict("") if found else {}
    return Response(text=PLACE.sub(lambda place: groups[place[1]], text))


def demonstration(
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


def _drawn(cfg: RefusalsConfig, samples: Samples, probed: Probed, state: State) -> list[Response]:
    """The question's distinct answers of a state, at most `per_question`, drawn by the seed."""
    found: dict[str, Response] = {}
    for response, each in zip(samples.responses, probed.states, strict=True):
        if each == state:
            found.setdefault(response.text, response)
    ranked = sorted(found, key=lambda text: row_id(cfg.seed, probed.key, text))
    return [found[text] for text in ranked[: cfg.per_question]]


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
