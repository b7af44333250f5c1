"""Verifiers on responses and rows that no honest model or author writes: they answer in time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import completion, serving
from hypothesis import given
from hypothesis import strategies as st

from posttrain.feedback.alias_match import AliasMatch
from posttrain.feedback.fact_grades import RuleGrader
from posttrain.feedback.fact_llm import LlmGrader
from posttrain.feedback.instructions.judge import Instructions
from posttrain.feedback.instructions.layout import Placeholders, Title
from posttrain.feedback.instructions.lengths import sentences
from posttrain.feedback.judge import Account
from posttrain.feedback.maths import answers
from posttrain.feedback.maths.judge import Maths
from posttrain.feedback.multiple_choice import MultipleChoice
from posttrain.feedback.verifiers import ExactMatch
from posttrain.records import Message, Prompt, Provenance, Response

MANY = 20_000
PATIENCE_S = 5.0  # of processor time; each of these took minutes, or would have
JUDGES = {
    "maths": (Maths(unmarked="last_number"), "12"),
    "exact_match": (ExactMatch(answer=r"answer is (\w+)"), "x"),
    "alias_match": (AliasMatch(within=True), "x"),
    "multiple_choice": (MultipleChoice(), "A"),
}


def ask(reference: str | None = None, **tags: Any) -> Prompt:
    return Prompt(
        provenance=Provenance(id="p"),
        messages=(Message(role="user", content="Why?"),),
        reference=reference,
        tags={name: json.dumps(value) for name, value in tags.items()},
    )


@pytest.mark.parametrize(
    "text", ["the answer is ", "answer is. ", "option ", "#### some words\n", "\\boxed{"]
)
@pytest.mark.parametrize("name", JUDGES)
def test_a_response_that_says_it_again_and_again(name: str, text: str) -> None:
    config, reference = JUDGES[name]
    judge = config.open()  # type: ignore[attr-defined]
    start = time.process_time()
    [verdict] = judge.score([(ask(reference), Response(text=text * MANY))])
    assert time.process_time() - start < PATIENCE_S
    assert len(verdict.reason) < 1000, "a verdict does not repeat a response as long as a book"


def test_a_graded_fact_is_not_repeated_in_full() -> None:
    [graded] = RuleGrader().open().grade([(ask("Paris"), Response(text="Rome " * MANY))])
    assert graded.grade == "incorrect"
    assert len(graded.reason) < 1000


def test_half_a_character_can_be_written_down() -> None:
    [verdict] = ExactMatch().open().score([(ask("x"), Response(text="\ud83d!", token_ids=(1,)))])
    assert verdict.reason.encode() == rb"answered '\ud83d!'"


def all_declared(text: str) -> str | None:
    """What `declared` means, without its haste: of all that a text marks, the last that is not empty."""
    found = [(m.start(), answers._of_gsm8k(m)) for m in answers._GSM8K.finditer(text)]
    for pattern in (answers._SAYS, answers._HEADING):
        found += [(m.start(), answers._of_words(m)) for m in pattern.finditer(text)]
    found = [(start, answer) for start, answer in [*found, *answers._boxed(text)] if answer]
    return max(found)[1] if found else None


PIECES = [
    "the answer is",
    ":",
    " 12",
    ".",
    "\n",
    "#### ",
    "#### So now",
    "\\boxed{3}",
    " and ",
    "final answer\n",
    " $x$",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_the_last_answer_is_the_one_that_all_would_give(text: str) -> None:
    assert answers.declared(text) == all_declared(text)


@pytest.mark.parametrize("text", ["a. ", "Dr. ", "etc. ", "1. ", "... "])
def test_counting_sentences_takes_no_more_than_reading_them(text: str) -> None:
    start = time.process_time()
    sentences(text * MANY)
    assert time.process_time() - start < PATIENCE_S


def test_placeholders_and_titles_that_never_close() -> None:
    start = time.process_time()
    assert not Placeholders(num_placeholders=1).followed("[" * 10 * MANY)
    assert not Title().followed("<" * 10 * MANY)
    assert time.process_time() - start < PATIENCE_S
    assert Placeholders(num_placeholders=3).followed("[a] [b\n] [[c] []")
    assert not Placeholders(num_placeholders=4).followed("[a] [b\n] [[c] []")
    assert [
        Title().followed(text) for text in ("<<a>>", "<<>>", "<< >>", "<a>", ">> <<", "x << a >> y\n")
    ] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("keywords:existence", {"keywords": [" "]}),
        ("keywords:frequency", {"keyword": "", "frequency": 1, "relation": "at least"}),
        ("keywords:forbidden_words", {"forbidden_words": ["no", "\n"]}),
        ("detectable_content:postscript", {"postscript_marker": " "}),
        ("detectable_format:multiple_sections", {"section_spliter": " ", "num_sections": 1}),
        ("combination:repeat_prompt", {"prompt_to_repeat": "  "}),
        ("startend:end_checker", {"end_phrase": ' "'}),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": " "},
        ),
        (["keywords:existence"], {"keywords": ["a"]}),
        ({"kind": "a"}, {}),
    ],
)
def test_an_instruction_that_says_nothing_is_not_followed_by_everything(kind: Any, parameters: Any) -> None:
    """A blank phrase stands in every response: such a row has no verdict, and the step goes on."""
    judge = Instructions().open()
    [verdict] = judge.score([(ask(instruction_id_list=[kind], kwargs=[parameters]), Response(text="Hello."))])
    assert verdict.score is None
    assert "instruction" in verdict.reason


def test_json_with_long_numbers_is_json() -> None:
    judge = Instructions().open()
    prompt = ask(instruction_id_list=["detectable_format:json_format"])
    [verdict] = judge.score([(prompt, Response(text=f'{{"a": {"9" * 5000}}}'))])
    assert verdict.score == 1.0


def test_a_grader_that_says_half_a_character_is_asked_again(tmp_path: Path) -> None:
    with serving(lambda body: completion("\ud800" if len(body["messages"]) == 1 else "CORRECT")) as (url, _):
        config = LlmGrader(name="llm", base_url=url, model="m")
        [graded] = config.open(Account(tmp_path, "x")).grade([(ask("Paris"), Response(text="Paris."))])
    assert graded.grade == "correct"
