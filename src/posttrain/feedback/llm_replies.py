"""What an LLM judge answered, read strictly: all grades, each on its scale, or why there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.feedback.llm_rubric import FAULTS, SIDES, Ask, Aspect

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


class Unreadable(ValueError):
    """An answer that is not of the form that was asked for; the message is one of few, to be counted."""


@dataclass(frozen=True)
class Grades:
    """Of one response. by: aspect to grade. faults: what the judge named before it graded."""

    by: Mapping[str, int]
    faults: str


def read_grades(text: str, rubric: Sequence[Aspect], ask: Ask) -> tuple[Grades, ...]:
    """The grades of the response, or of the first and the second.

    The text is one JSON object, at most inside one fence of ```; its keys are those asked for, each once.
    Raises Unreadable.
    """
    said = _load(text.strip())
    if ask == "score":
        return (_grades(said, rubric, ""),)
    _keys(said, SIDES, "")
    return tuple(_grades(said[side], rubric, f" of '{side}'") for side in SIDES)


def _load(text: str) -> Any:
    fenced = _FENCED.match(text)
    try:
        return json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as e:
        raise Unreadable(str(e) if isinstance(e, Unreadable) else "no JSON") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unreadable("a key stands twice")
    return found


def _grades(said: Any, rubric: Sequence[Aspect], where: str) -> Grades:
    _keys(said, (FAULTS, *(aspect.name for aspect in rubric)), where)
    if not isinstance(said[FAULTS], str):
        raise Unreadable(f"'{FAULTS}'{where} is no text")
    for aspect in rubric:
        grade = said[aspect.name]
        if type(grade) is not int:
            raise Unreadable(f"'{aspect.name}'{where} is no whole number")
        if not aspect.low <= grade <= aspect.high:
            raise Unreadable(f"'{aspect.name}'{where} is not from {aspect.low} to {aspect.high}")
    return Grades({aspect.name: said[aspect.name] for aspect in rubric}, said[FAULTS])


def _keys(said: Any, wanted: Sequence[str], where: str) -> None:
    if not isinstance(said, dict):
        raise Unreadable(f"no JSON object{where}")
    missing = [name for name in wanted if name not in said]
    if missing:
        raise Unreadable(f"'{missing[0]}'{where} is missing")
    if len(said) > len(wanted):
        raise Unreadable(f"keys{where} that nobody asked for")
