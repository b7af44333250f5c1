"""The formats that are recognised, in the order in which they are tried: the first that fits reads."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError, DataError
from posttrain.formats import hh, instructions, oasst, oasst_flat, own, questions, scored, trl
from posttrain.formats.build import Origin
from posttrain.formats.convert import CONVERSIONS, plural
from posttrain.formats.fields import Plain
from posttrain.formats.raw import Raw
from posttrain.formats.rejects import Rejects, RowError
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    Prompt,
    Rating,
    Row,
)

Reader = Callable[[Plain, Origin], Iterator[Row | RowError]]


@dataclass(frozen=True)
class Format:
    """One way of writing rows.

    shape: its columns, as messages and the documentation show them.
    matches: whether a plain row is written so.
    reads: kind -> reader; the first kind is what the format gives where no kind is asked for.
        A reader yields rows, and a RowError for each part of the row that it could not use or that was left
        out; it raises RowError where nothing of the row can be used.
    gather: where what belongs together stands in many rows of a file: makes one row of them, before `reads`.
    """

    shape: tuple[str, ...]
    matches: Callable[[Plain], bool]
    reads: Mapping[type[Row], Reader]
    gather: Callable[[Iterable[Raw], Rejects], Iterator[Raw]] | None = None


OASST: Mapping[type[Row], Reader] = {
    Demonstration: oasst.read_demonstrations,
    Comparison: oasst.read_comparisons,
    Prompt: oasst.read_prompts,
}
FORMATS: dict[str, Format] = {
    "records": Format(("kind", "provenance"), own.matches, {Row: own.read}),
    "oasst": Format(
        ("message_tree_id", "prompt", "replies"),
        oasst.matches,
        OASST,
    ),
    "oasst-flat": Format(
        ("message_id", "parent_id", "role", "text"), oasst_flat.matches, OASST, oasst_flat.gather
    ),
    "hh": Format(("chosen", "rejected"), hh.matches, {Comparison: hh.read}),
    "trl-preference": Format(
        ("prompt", "chosen", "rejected"), trl.is_preference, {Comparison: trl.read_preference}
    ),
    "scored": Format(
        ("prompt", "completions", "scores"),
        scored.matches,
        {Rating: scored.read_ratings, Comparison: scored.read_comparisons, Demonstration: scored.read_best},
    ),
    "trl-unpaired": Format(("prompt", "completion", "label"), trl.is_unpaired, {Rating: trl.read_unpaired}),
    "trl-completion": Format(
        ("prompt", "completion"), trl.is_completion, {Demonstration: trl.read_completion}
    ),
    "trl-messages": Format(
        ("messages",),
        trl.is_messages,
        {Demonstration: trl.read_messages, Prompt: trl.read_messages_prompt},
    ),
    "sharegpt": Format(
        ("conversations",),
        instructions.is_sharegpt,
        {Demonstration: instructions.read_sharegpt, Prompt: instructions.read_sharegpt_prompt},
    ),
    "alpaca": Format(
        ("instruction", "input", "output"), instructions.is_alpaca, {Demonstration: instructions.read_alpaca}
    ),
    "self-instruct": Format(
        ("instruction", "instances"),
        instructions.is_self_instruct,
        {Demonstration: instructions.read_self_instruct},
    ),
    "gsm8k": Format(("question", "answer"), questions.is_gsm8k, {Demonstration: questions.read_gsm8k}),
    "facts": Format(
        ("question", "answer"),
        questions.is_facts,
        {Prompt: questions.read_facts, Demonstration: questions.read_facts_demonstration},
    ),
    "mt-bench": Format(("turns",), questions.is_turns_only, {Prompt: questions.read_mt_bench}),
    "trl-prompt": Format(("prompt",), trl.is_prompt, {Prompt: trl.read_prompt}),
    "text": Format(("text",), trl.is_text, {Document: trl.read_text}),
}


def named_format(name: str) -> Format:
    """The format called `name`. Raises ConfigError with the nearest name."""
    if name not in FORMATS:
        raise ConfigError(f"no format named '{name}': {nearest(name, [*FORMATS, 'auto'])}")
    return FORMATS[name]


def recognise(rows: Sequence[Plain], file: str) -> str:
    """The name of the format that most of `rows` (the first ones of a file) are written in.

    Raises DataError with the columns found, the formats known, and the nearest of them.
    """
    votes: dict[str, int] = {}
    for row in rows:
        name = next((name for name, format in FORMATS.items() if format.matches(row)), None)
        if name:
            votes[name] = votes.get(name, 0) + 1
    if votes:
        return max(votes, key=lambda name: votes[name])
    found = list(dict.fromkeys(key for row in rows for key in row))
    name = max(FORMATS, key=lambda name: _likeness(FORMATS[name].shape, found))
    known = "; ".join(f"{name} ({', '.join(format.shape)})" for name, format in FORMATS.items())
    raise DataError(
        f"{file}: no reader recognises its rows. Columns found: {_shown(found)}. "
        f"Nearest: {name} ({', '.join(FORMATS[name].shape)}). Known: {known}. "
        f"Rename the columns, or say which it is with `format:`"
    )


def reader(name: str, kind: type[Row] | None, file: str) -> Reader:
    """The reader of format `name` that gives rows of `kind`, or rows that convert to it.

    Raises DataError where the format cannot give that kind.
    """
    reads = named_format(name).reads
    if kind is None or kind is Row or Row in reads:
        return next(iter(reads.values()))
    if kind in reads:
        return reads[kind]
    for given, read in reads.items():
        if (given, kind) in CONVERSIONS:
            return read
    ways = [plural(k) for k in reads] + [plural(b) for a, b in CONVERSIONS if a in reads and b not in reads]
    raise DataError(
        f"{file}: rows of the format '{name}' cannot be read as {plural(kind)}, only as "
        f"{', '.join(dict.fromkeys(ways))}"
    )


def _shown(columns: Sequence[Any]) -> str:
    """Names of columns for a message, which a file that is no table may have made long and unprintable."""
    names = [ascii(str(name))[1:-1] if not str(name).isprintable() else str(name) for name in columns[:20]]
    more = f", … ({len(columns)})" if len(columns) > 20 else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in names) + more or "none"


def _likeness(shape: Sequence[str], found: Sequence[Any]) -> float:
    """How much the columns found and the shape look like each other: 1 where they are the same words."""
    if not found:
        return 0.0
    alike = [[difflib.SequenceMatcher(None, key, str(other)).ratio() for other in found] for key in shape]
    there, asked = [max(row) for row in alike], [max(column) for column in zip(*alike, strict=True)]
    return (sum(there) / len(there) + sum(asked) / len(asked)) / 2
