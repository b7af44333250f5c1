"""Verifiers and the registry of judges: rules by hand, and a third state that is never a number."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError
from posttrain.feedback.judge import Judge, PairJudge, Preference, Verdict
from posttrain.feedback.judge_use import JudgeField, JudgeUse
from posttrain.feedback.judges import JUDGES
from posttrain.feedback.verifiers import ExactMatch, Pattern
from posttrain.records import Message, Prompt, Provenance, Response


def prompt(reference: str | None = None) -> Prompt:
    messages = (Message(role="user", content="?"),)
    return Prompt(provenance=Provenance(id="p"), messages=messages, reference=reference)


def said(text: str, finish: Any = None) -> Response:
    return Response(text=text, finish=finish)


@pytest.mark.parametrize(
    ("reference", "text", "score"),
    [
        ("Paris", "Paris", 1.0),
        ("Paris", " **paris**.\n", 1.0),
        ("Paris", "“Paris”", 1.0),
        ("two  words", "Two\nwords!", 1.0),
        ("fi", "\ufb01", 1.0),  # one ligature, two letters: the same under NFKC
        ("Paris", "Paris, France", 0.0),
        ("-5", "5", 0.0),
        ("3.5", "35", 0.0),
        ("0.5", ".5", 0.0),
        ("!", "?", 0.0),
    ],
)
def test_exact_match(reference, text, score):
    assert ExactMatch().open().score([(prompt(reference), said(text))]) == [
        Verdict(score, f"answered '{text.strip()}'")
    ]


def test_exact_match_can_mind_the_case():
    assert ExactMatch(case_sensitive=True).open().score([(prompt("Paris"), said("paris"))])[0].score == 0.0


@pytest.mark.parametrize(
    ("reference", "text", "score"),
    [
        ("12 + 30 = 42\n#### 42", "First 12.\n#### 41\nNo:\n#### 42", 1.0),
        ("42", "#### 42", 1.0),
        ("#### 42", "#### 41", 0.0),
        ("#### 42", "It is 42.", None),
    ],
)
def test_an_answer_can_be_found_in_a_longer_text(reference, text, score):
    judge = ExactMatch(answer=r"#### *(\S+)").open()
    assert judge.score([(prompt(reference), said(text))])[0].score == score


def test_what_cannot_be_graded_is_no_answer():
    judge = ExactMatch().open()
    verdicts = judge.score([(prompt(None), said("x")), (prompt("x"), said("x", "length"))])
    assert [v.score for v in verdicts] == [None, None]
    assert [v.reason for v in verdicts] == ["the prompt has no reference", "cut off"]
    assert Pattern(pattern="x").open().score([(prompt(), said("x", "length"))])[0].score is None


@pytest.mark.parametrize(
    ("fields", "text", "score"),
    [
        ({"pattern": r"^Dear \w+"}, "Dear Anna, no.", 1.0),
        ({"pattern": r"^Dear \w+"}, "No.", 0.0),
        ({"pattern": r"\d+"}, "it is 42", 1.0),
        ({"pattern": r"\d+", "whole": True}, "it is 42", 0.0),
        ({"pattern": r"\d+", "whole": True}, " 42\n", 1.0),
        ({"pattern": r"<think>.*</think>.+", "whole": True}, "<think>\n a\n</think>\nb", 1.0),
        ({"pattern": "sorry", "wanted": False}, "I am sorry", 0.0),
        ({"pattern": "sorry", "wanted": False}, "Gladly", 1.0),
    ],
)
def test_pattern(fields, text, score):
    assert Pattern(**fields).open().score([(prompt(), said(text))])[0].score == score


@pytest.mark.parametrize(("cls", "field"), [(ExactMatch, "answer"), (Pattern, "pattern")])
def test_a_broken_expression_is_refused_at_once(cls, field):
    with pytest.raises(ConfigError, match=f"{field}.*position 2"):
        parse(cls, {field: "a(("}, "judge")


class Coin(Config):
    """A third party's judge."""

    sides: int = 2

    def open(self) -> CoinJudge:
        return CoinJudge()


class CoinJudge:
    def compare(self, items):
        return [Preference(0.5) for _ in items]


class Mute(Config):
    def open(self):
        return object()


FIELD = TypeAdapter(JudgeField)


def test_a_judge_is_named_or_given():
    by_name = FIELD.validate_python({"name": "exact_match", "case_sensitive": True})
    assert by_name == FIELD.validate_python(ExactMatch(case_sensitive=True))
    assert by_name.model_dump() == {"name": "exact_match", "answer": None, "case_sensitive": True}
    assert FIELD.validate_python(by_name.model_dump()) == by_name
    assert isinstance(FIELD.validate_python("exact_match").open(), Judge)
    dotted = FIELD.validate_python({"name": f"{__name__}:Coin", "sides": 3})
    assert dotted == FIELD.validate_python(Coin(sides=3))
    assert isinstance(dotted.open(), PairJudge)
    assert dotted.label == f"{__name__}:Coin"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("exact_mach", "did you mean 'exact_match'"),
        ({"name": "exact_match", "case_sensitiv": True}, "did you mean 'case_sensitive'"),
        ({"case_sensitive": True}, "a mapping with a 'name'"),
        (3, "a mapping with a 'name'"),
        ({"name": "json:loads"}, "is no judge"),
        ({"name": "no_such_module:X"}, "cannot be imported"),
    ],
)
def test_a_judge_that_is_none_is_refused_with_a_hint(value, message):
    with pytest.raises(ValidationError, match=message):
        FIELD.validate_python(value)


def test_a_judge_must_score_or_compare():
    with pytest.raises(ConfigError, match="no score and no compare"):
        JudgeUse(name="mute", settings=Mute()).open()


def test_every_judge_has_a_docstring_and_opens():
    for cls in JUDGES.values():
        assert cls.__doc__
        assert callable(cls.open)
