"""One kind of record seen as another: what `as:` does where a format does not give the kind by itself.

A row made from another names it as its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from posttrain.formats.rejects import RowError
from posttrain.records import (
    KINDS,
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Provenance,
    Rating,
    Response,
    Row,
    Samples,
    row_id,
)

PLURALS: dict[str, type[Row]] = {
    "samples" if name == "samples" else f"{name}s": kind for name, kind in KINDS.items()
}


def plural(kind: type[Row]) -> str:
    """The word for many rows of a kind: `prompts`, `demonstrations`, …"""
    return next(name for name, known in PLURALS.items() if known is kind)


def convert(row: Row, kind: type[Row]) -> Iterator[Row]:
    """`row` as rows of `kind`; itself where it is one. Raises RowError where there is no way."""
    if isinstance(row, kind):
        yield row
        return
    way = CONVERSIONS.get((type(row), kind))
    if way is None:
        raise RowError("kind", f"not to be read as {plural(kind)}: this is one of the {plural(type(row))}")
    yield from way(row)


def _prompt(row: Any) -> Iterator[Prompt]:
    yield row.prompt


def _chosen(row: Comparison) -> Iterator[Demonstration]:
    if row.prompt_token_ids is not None:
        raise RowError("chosen", "a token-exact comparison: its responses are pieces, not whole answers")
    yield Demonstration(
        provenance=_derived(row, "demonstration", "response", "chosen"),
        prompt=row.prompt,
        response=row.chosen,
    )


def _unpaired(row: Comparison) -> Iterator[Rating]:
    if row.prompt_token_ids is not None:
        raise RowError("chosen", "a token-exact comparison: its responses are pieces, not whole answers")
    for part, answer, label in (("chosen", row.chosen, True), ("rejected", row.rejected, False)):
        yield Rating(
            provenance=_derived(row, "rating", "response", part),
            prompt=row.prompt,
            response=answer,
            label=label,
            judge=row.judge,
        )


def _document(row: Any) -> Iterator[Document]:
    """The words of the turns, a blank line between them: no template, no roles."""
    answer: Response | None = getattr(row, "response", None) or getattr(row, "chosen", None)
    turns: tuple[Message, ...] = (row if isinstance(row, Prompt) else row.prompt).messages
    words = [turn.text for turn in turns] + ([answer.text] if answer else [])
    yield Document(provenance=_derived(row, "document"), text="\n\n".join(words))


def _derived(row: Row, kind: str, part: str = "", source_part: str = "") -> Provenance:
    """Provenance of a row made from `row`; whoever made `source_part` there made `part` here."""
    old = row.provenance
    makers = {part: old.makers[source_part]} if source_part in old.makers else {}
    if kind == "rating" and "preference" in old.makers:
        makers["label"] = old.makers["preference"]
    id = row_id(kind, old.id, source_part)
    return Provenance(id=id, source=old.source, licence=old.licence, makers=makers, parents=(old.id,))


CONVERSIONS: Mapping[tuple[type[Row], type[Row]], Callable[[Any], Iterator[Row]]] = {
    (Demonstration, Prompt): _prompt,
    (Comparison, Prompt): _prompt,
    (Rating, Prompt): _prompt,
    (Samples, Prompt): _prompt,
    (Comparison, Demonstration): _chosen,
    (Comparison, Rating): _unpaired,
    (Prompt, Document): _document,
    (Demonstration, Document): _document,
    (Comparison, Document): _document,
}
