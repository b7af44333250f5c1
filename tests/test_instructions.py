"""Every kind of verifiable instruction, on responses that a person has counted."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from posttrain.common.config import parse
from posttrain.feedback.instructions.judge import Instructions
from posttrain.feedback.instructions.kinds import KINDS
from posttrain.feedback.instructions.lengths import sentences
from posttrain.formats import read_records
from posttrain.records import Message, Prompt, Provenance, Response

AT_LEAST, LESS = "at least", "less than"


def words(n, relation):
    return {"relation": relation, "num_words": n}


def count_sentences(n, relation):
    return {"relation": relation, "num_sentences": n}


def first_word(paragraphs, nth, word):
    return {"num_paragraphs": paragraphs, "nth_paragraph": nth, "first_word": word}


CASES = [
    ("length_constraints:number_words", words(3, AT_LEAST), "One two, three.", True),
    ("length_constraints:number_words", words(3, LESS), "One two, three.", False),
    ("length_constraints:number_words", words(3, LESS), "One two", True),
    ("length_constraints:number_words", words(2, AT_LEAST), "don't", True),
    ("length_constraints:number_words", words(1, AT_LEAST), " ... ", False),
    ("length_constraints:number_sentences", count_sentences(2, AT_LEAST), "Hi. I am Ann.", True),
    (
        "length_constraints:number_sentences",
        count_sentences(2, AT_LEAST),
        "Dr. Smith paid 3.50 dollars.",
        False,
    ),
    ("length_constraints:number_sentences", count_sentences(2, LESS), "Really?! Yes", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\nOne\n***\nTwo\n***", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\n***\nTwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, "One\n***\n\n***\nTwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n\nTwo", False),
    ("length_constraints:nth_paragraph_first_word", first_word(2, 2, "so"), "A b\n\nSo, c d", True),
    ("length_constraints:nth_paragraph_first_word", first_word(2, 2, "so"), "A b\n\n\n\n'So' it is", True),
    ("length_constraints:nth_paragraph_first_word", first_word(2, 2, "so"), "A b\n\nSoon", False),
    ("length_constraints:nth_paragraph_first_word", first_word(2, 2, "so"), "A\n\nSo\n\nC", False),
    ("length_constraints:nth_paragraph_first_word", first_word(1, 2, "so"), "So", False),
    ("keywords:existence", {"keywords": ["Cat", "a.b"]}, "The cat said A.B", True),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A cat", False),
    ("keywords:existence", {"keywords": ["a.b"]}, "axb", False),
    ("keywords:existence", {"keywords": ["correlate"]}, "correlated", True),
    ("keywords:frequency", {"keyword": "sun", "frequency": 3, "relation": AT_LEAST}, "Sun, sun, SUN!", True),
    ("keywords:frequency", {"keyword": "sun", "frequency": 3, "relation": LESS}, "Sun, sun, SUN!", False),
    ("keywords:frequency", {"keyword": "c++", "frequency": 1, "relation": AT_LEAST}, "I like C++.", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Concatenate", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A CAT.", False),
    ("keywords:forbidden_words", {"forbidden_words": ["c++", "dog"]}, "I like C++.", False),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": AT_LEAST}, "Eel", True),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": LESS}, "Eel", False),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": AT_LEAST}, "Oh!", True),
    ("language:response_language", {"language": "de"}, "Das ist ein Satz auf Deutsch.", True),
    ("language:response_language", {"language": "de"}, "This is an English sentence.", False),
    ("language:response_language", {"language": "zh-cn"}, "这是一个中文句子。", True),
    ("language:response_language", {"language": "en"}, "42", None),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name] of [address],", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name of [town]", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP. S. Call me", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\n\nP.S. Call me", False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S. Call", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "The ps command", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "List:\n* a\n  - b", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b\n* c", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n\n* a", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 0}, "1. a\n2. b", True),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", True),
    ("detectable_format:constrained_response", {}, "My answer is perhaps.", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "2 * 3", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "* *", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "**a**", False),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        True,
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 1},
        "Section 1",
        False,
    ),
    ("detectable_format:json_format", {}, '{"a": [1, null]}', True),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', True),
    ("detectable_format:json_format", {}, "{'a': 1}", False),
    ("detectable_format:json_format", {}, 'Here: {"a": 1}', False),
    ("detectable_format:json_format", {}, '{"a": NaN}', False),
    ("detectable_format:json_format", {}, "[" * 100000, False),
    ("detectable_format:title", {}, "<<Ode to Joy>>\nFreude", True),
    ("detectable_format:title", {}, "<< >>", False),
    ("detectable_format:title", {}, "<Ode>", False),
    ("combination:two_responses", {}, "One\n******\nTwo", True),
    ("combination:two_responses", {}, "One\n******\nOne", False),
    ("combination:two_responses", {}, "One\n******\nTwo\n******\nThree", False),
    ("combination:two_responses", {}, "One", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, "say hi. Hi!", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "Hi! Say hi.", False),
    ("startend:end_checker", {"end_phrase": "Any other questions?"}, '"... any other questions?"\n', True),
    ("startend:end_checker", {"end_phrase": "Any other questions?"}, "Any other questions? No.", False),
    ("startend:quotation", {}, ' "All of it." ', True),
    ("startend:quotation", {}, "“All of it.”", True),
    ("startend:quotation", {}, '"Some" of it.', False),
    ("startend:quotation", {}, '"', False),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        "I SAY no",
        True,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": LESS},
        "Say No 42",
        True,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        "SAY NO",
        False,
    ),
    ("change_case:english_capital", {}, "THIS IS AN ENGLISH SENTENCE, NO. 1.", True),
    ("change_case:english_capital", {}, "THIS IS AN ENGLISH SENTENCe.", False),
    ("change_case:english_capital", {}, "DAS IST EIN LANGER SATZ AUF DEUTSCH.", False),
    ("change_case:english_capital", {}, "YES.", True),
    ("change_case:english_lowercase", {}, "this is all in lower case, number 1.", True),
    ("change_case:english_lowercase", {}, "this is not, I fear.", False),
    ("change_case:english_lowercase", {}, "123", False),
    ("punctuation:no_comma", {}, "No. None; at all", True),
    ("punctuation:no_comma", {}, "No, none", False),
]


@pytest.mark.parametrize(("kind", "given", "text", "followed"), CASES)
def test_a_checker(kind, given, text, followed):
    assert parse(KINDS[kind], given, kind).followed(text) is followed


def test_every_kind_is_tested_both_ways():
    assert len(KINDS) >= 20
    for kind in KINDS:
        assert {followed for name, _, _, followed in CASES if name == kind} >= {True, False}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("Hello", 1),
        ("Hello. World.", 2),
        ("Hello.World", 1),
        ("Mr. and Mrs. Jones met Dr. No. They ran.", 2),
        ("It costs $3.50. That is much.", 2),
        ("J. R. R. Tolkien wrote it.", 1),
        ("It was I. The other lied.", 2),
        ("He came at 5 p.m. The train left.", 2),
        ("He came at 5 p.m. Tuesday.", 1),
        ("Really?! Yes... no", 2),
        ("Is it No. 5? no. it is no. 6.", 3),
        ("all in small letters. two sentences, e.g. this.", 2),
        ("1. First\n2. Second", 1),
        ("1. First.\n2. Second.", 2),
        ("A title\n\nA sentence.", 2),
        ("これは文です。それも文です。", 2),
        ("Wait (really?) yes.", 2),
    ],
)
def test_sentences(text, count):
    assert len(sentences(text)) == count


def prompt(ids, kwargs=None, **tags):
    tags |= {"instruction_id_list": json.dumps(ids)}
    tags |= {} if kwargs is None else {"kwargs": json.dumps(kwargs)}
    messages = (Message(role="user", content="?"),)
    return Prompt(provenance=Provenance(id="p"), messages=messages, tags=tags)


def verdict(asked, text, finish=None, **fields):
    (said,) = Instructions(**fields).open().score([(asked, Response(text=text, finish=finish))])
    return said


THREE = prompt(
    ["punctuation:no_comma", "length_constraints:number_words", "startend:quotation"],
    [{}, {"relation": "at least", "num_words": 3, "language": None}, {}],
)


def test_a_verdict_has_the_share_and_whether_all_were():
    said = verdict(THREE, "One two, three.")
    assert said.parts["share"] == pytest.approx(1 / 3)
    assert (said.score, said.parts["all"]) == (0.0, 0.0)
    assert said.reason == "not followed: punctuation:no_comma, startend:quotation"
    whole = verdict(THREE, '"One two three."')
    assert (whole.score, whole.parts, whole.reason) == (
        1.0,
        {"share": 1.0, "all": 1.0, "share_loose": 1.0, "all_loose": 1.0},
        "all followed",
    )
    assert verdict(THREE, "One two, three.", score="share").score == pytest.approx(1 / 3)


def test_the_loose_reading_forgives_a_first_line_a_last_line_and_asterisks():
    for text in (
        'Sure, here it is:\n"One two three."',
        '"One two three."\nHope it helps, bye',
        '*"One two three."*',
    ):
        said = verdict(THREE, text)
        assert said.parts["all"] == 0.0
        assert said.parts["all_loose"] == 1.0
        assert verdict(THREE, text, score="all_loose").score == 1.0
    both = verdict(THREE, 'Sure:\n"One two three."\nBye')
    assert both.parts["share_loose"] == 1.0


def test_what_cannot_be_told_leaves_open_only_what_depends_on_it():
    asked = prompt(["language:response_language", "punctuation:no_comma"], [{"language": "en"}, {}])
    open_one = verdict(asked, "42")
    assert open_one.parts["share"] is None
    assert open_one.parts["all"] is None
    assert (open_one.parts["share_loose"], open_one.parts["all_loose"]) == (None, None)
    assert open_one.reason == "cannot be told: language:response_language"
    broken = verdict(asked, "4,2")
    assert broken.parts["share"] is None
    assert broken.parts["all"] == 0.0


def test_a_kind_may_stand_twice():
    twice = prompt(["keywords:existence"] * 2, [{"keywords": ["a"]}, {"keywords": ["b"]}])
    said = verdict(twice, "a", score="share")
    assert (said.score, said.reason) == (0.5, "not followed: keywords:existence#2")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (prompt([]), "no instructions"),
        (
            Prompt(provenance=Provenance(id="p"), messages=(Message(role="user", content="?"),)),
            "no instructions",
        ),
        (prompt(["punctuation:no_coma"]), "did you mean 'punctuation:no_comma'"),
        (prompt(["punctuation:no_comma"], [{}, {}]), "1 instructions with 2 sets"),
        (prompt(["punctuation:no_comma"], [3]), "no JSON list"),
        (prompt(["length_constraints:number_words"], [{"num_words": 3}]), "'relation' is missing"),
        (prompt(["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}]), "relation"),
        (prompt(["language:response_language"], [{"language": "xx"}]), "no language 'xx'"),
    ],
)
def test_instructions_that_cannot_be_read_are_no_answer(asked, why):
    said = verdict(asked, "x")
    assert said.score is None
    assert re.search(re.escape(why), said.reason)


def test_a_cut_off_response_is_no_answer():
    assert verdict(THREE, "One", finish="length").reason == "cut off"
    with pytest.raises(ValidationError):
        Instructions(score="some")


def test_ifevals_own_files_are_read_as_they_are(tmp_path: Path):
    row = {
        "key": 1000,
        "prompt": "Write a summary without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [
            {"num_words": None, "relation": None},
            {"num_words": 2.0, "relation": "at least"},  # a column with gaps makes floats of integers
        ],
    }
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (asked,) = read_records(path, Prompt)
    assert verdict(asked, "All good.").score == 1.0
    assert verdict(asked, "Good").reason == "not followed: length_constraints:number_words"


@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in CASES}))
@pytest.mark.parametrize("text", ["\n" * 10000, "<" * 5000, "* " * 5000, "a. " * 5000, "[" * 5000 + " x"])
def test_degenerate_responses_take_no_time(kind, text):
    given = next(given for name, given, *_ in CASES if name == kind)
    began = time.process_time()
    parse(KINDS[kind], given, kind).followed(text)
    assert time.process_time() - began < 2
