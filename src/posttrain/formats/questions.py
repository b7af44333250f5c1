"""Questions with known answers: GSM8K, short facts, MT-Bench."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from posttrain.formats.build import Origin, demonstration, prompt, response, user
from posttrain.formats.fields import Plain, listed, named, tags, text, whole
from posttrain.formats.rejects import RowError
from posttrain.records import Demonstration, Prompt

FINAL = "####"
CALCULATOR = re.compile(r"<<[^<>]*>>")


def is_gsm8k(row: Plain) -> bool:
    answer = row.get("answer")
    return isinstance(row.get("question"), str) and isinstance(answer, str) and FINAL in answer


def read_gsm8k(row: Plain, origin: Origin) -> Iterator[Demonstration]:
    """{"question", "answer"}, the answer ending in "#### number". Cobbe et al. 2021.

    The reference is the number without its thousands separators. The response is the answer, its last line
    included; calculator annotations are taken out unless the option `calculator` keeps them.
    """
    answer = text(row, "answer")
    worked, _, final = answer.rpartition(FINAL)
    if not final.strip() or not worked.strip():
        raise RowError("answer", f"expected steps and then '{FINAL} number': got {named(answer)}")
    words = answer if origin.options.calculator else CALCULATOR.sub("", answer)
    asked = prompt(
        [user(text(row, "question"))],
        origin,
        reference=final.strip().replace(",", ""),
        tags=tags(row, ("question", "answer")),
        field="question",
    )
    yield demonstration(asked, response(words, "answer"), origin)


def is_facts(row: Plain) -> bool:
    """A question and its right answers; one that needs a text or choices beside it is another thing."""
    answers = row.get("answer", row.get("answers"))
    alone = not any(name in row for name in ("context", "passage", "choices", "options"))
    return isinstance(row.get("question"), str) and isinstance(answers, (str, list, dict)) and alone


def read_facts(row: Plain, origin: Origin) -> Iterator[Prompt]:
    """{"question", "answer": "…" | ["…", …] | {"value", "aliases"}}: a prompt with every right answer."""
    name = "answer" if row.get("answer") is not None else "answers"
    answers = _answers(row, name)
    left = tags(row, ("question", name))
    if len(answers) > 1:
        left["references"] = json.dumps(answers, ensure_ascii=False)
    yield prompt([user(text(row, "question"))], origin, reference=answers[0], tags=left, field="question")


def read_facts_demonstration(row: Plain, origin: Origin) -> Iterator[Demonstration]:
    """The first of the right answers is the response."""
    for asked in read_facts(row, origin):
        yield demonstration(asked, response(asked.references[0], "answer"), origin)


def _answers(row: Plain, name: str) -> list[str]:
    value = row.get(name)
    if isinstance(value, dict):
        aliases = value.get("aliases")
        value = [value.get("value"), *(aliases if isinstance(aliases, list) else [])]
    found = listed({name: value}, name) if isinstance(value, list) else [text(row, name)]
    texts = [whole(answer, f"{name}[{i}]") for i, answer in enumerate(found)]
    if not all(answer.strip() for answer in texts):
        raise RowError(name, "an empty answer")
    return list(dict.fromkeys(texts))


def is_turns_only(row: Plain) -> bool:
    turns = row.get("turns")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


def read_mt_bench(row: Plain, origin: Origin) -> Iterator[Prompt]:
    """{"turns": [first question, next, …], "reference": [one a turn]}: the first question is the prompt.

    The later turns need the model's own answers before them: they travel in tags["next_turns"] and
    tags["next_references"], as JSON lists. Zheng et al. 2023.
    """
    first, *later = (whole(turn, f"turns[{i}]") for i, turn in enumerate(listed(row, "turns")))
    known = row.get("reference")
    answers = (
        [] if known is None else [whole(a, f"reference[{i}]") for i, a in enumerate(listed(row, "reference"))]
    )
    left = tags(row, ("turns", "reference"))
    if later:
        left["next_turns"] = json.dumps(later, ensure_ascii=False)
    if answers[1:]:
        left["next_references"] = json.dumps(answers[1:], ensure_ascii=False)
    yield prompt(
        [user(text({"turns": first}, "turns"))], origin, reference=answers[0] if answers else None, tags=left
    )
