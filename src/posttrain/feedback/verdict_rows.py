"""Rows in, rows out, of the `judge` step: what there is to judge, and verdicts as other rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from posttrain.common.errors import DataError
from posttrain.feedback.judge import Verdict
from posttrain.feedback.pairing import Candidate, Group, Pair
from posttrain.formats.convert import plural
from posttrain.records import (
    Comparison,
    Demonstration,
    Prompt,
    Provenance,
    Rating,
    Row,
    Samples,
    prompt_key,
    row_id,
)


def grouped(rows: Iterable[Row]) -> list[Group]:
    """What to judge together, in the order of the rows: all samples of one prompt, whoever wrote them.

    Every other row is a group of its own: a comparison's two responses, a demonstration's or rating's one.
    Raises DataError for rows that hold no response.
    """
    groups: dict[str, Group] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Samples | Comparison | Demonstration | Rating):
            raise DataError(
                f"row {row.provenance.id}: {plural(type(row))} hold no responses to judge; `sample` some"
            )
        key = prompt_key(row.prompt) if isinstance(row, Samples) else str(number)
        before = groups[key].candidates if key in groups else ()
        prompt = groups[key].prompt if key in groups else row.prompt
        groups[key] = Group(prompt, (*before, *_candidates(row)))
    return list(groups.values())


def _candidates(row: Samples | Comparison | Demonstration | Rating) -> Iterator[Candidate]:
    name, makers = row.provenance.id, row.provenance.makers
    if isinstance(row, Samples):
        for response in row.responses:
            yield Candidate(response, name, makers.get("response", row.model))
    elif isinstance(row, Comparison):
        yield Candidate(row.chosen, name, makers.get("chosen", ""))
        yield Candidate(row.rejected, name, makers.get("rejected", ""))
    else:
        yield Candidate(row.response, name, makers.get("response", ""))


def comparison(prompt: Prompt, pair: Pair, judge: str, aspect: str) -> Comparison:
    chosen, rejected = pair.chosen, pair.rejected
    sides = {"chosen": chosen.maker, "rejected": rejected.maker}
    texts = (chosen.response.text, rejected.response.text)
    return Comparison(
        provenance=_provenance(
            row_id(prompt.provenance.id, judge, aspect, chosen.row, rejected.row, texts),
            prompt,
            sides | {"preference": judge},
            chosen.row,
            rejected.row,
        ),
        prompt=prompt,
        chosen=chosen.response,
        rejected=rejected.response,
        strength=pair.strength,
        probability=pair.probability,
        aspect=aspect,
        judge=judge,
    )


def demonstration(prompt: Prompt, best: Candidate, judge: str, aspect: str, of: int) -> Demonstration:
    """of: among how many responses that could be judged it is the best."""
    by = judge if aspect == "overall" else f"{judge}, {aspect}"
    makers = {"response": best.maker, "choice": f"best of {of} by {by}"}
    return Demonstration(
        provenance=_provenance(
            row_id(prompt.provenance.id, judge, aspect, best.row, best.response.text),
            prompt,
            makers,
            best.row,
        ),
        prompt=prompt,
        response=best.response,
    )


def rating(prompt: Prompt, position: int, candidate: Candidate, verdict: Verdict, judge: str) -> Rating:
    """position: of the candidate among the responses to its prompt."""
    makers = {"response": candidate.maker, "rating": judge}
    name = row_id(prompt.provenance.id, judge, candidate.row, position)
    return Rating(
        provenance=_provenance(name, prompt, makers, candidate.row),
        prompt=prompt,
        response=candidate.response,
        scores={"overall": verdict.score, **verdict.parts},
        judge=judge,
    )


def _provenance(name: str, prompt: Prompt, makers: dict[str, str], *rows: str) -> Provenance:
    origin = prompt.provenance
    return Provenance(
        id=name,
        source=origin.source,
        licence=origin.licence,
        makers=origin.makers | {part: maker for part, maker in makers.items() if maker},
        parents=tuple(dict.fromkeys(rows)),
    )
