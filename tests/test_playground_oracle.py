"""The oracle against answers worked out by hand, and against attempts to please it without answering."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posttrain.common.errors import DataError
from posttrain.playground.areas import AREAS
from posttrain.playground.oracle import Oracle, verdict
from posttrain.playground.question import Question, sentences, tidy
from posttrain.playground.world import GROUPS, World, build, rng_for
from posttrain.records import Message, Prompt, Provenance, Response

WORLD: World = build(0)
KNOWN = next(f for f in WORLD.facts.values() if f.group == "known" and f.relation == "capital")
UNKNOWN = next(f for f in WORLD.facts.values() if f.group == "unknown" and f.relation == "capital")
OTHER = next(f for f in WORLD.facts.values() if f.relation == "capital" and f.answer != KNOWN.answer)
C, A, WRONG = KNOWN.country, KNOWN.answer, OTHER.answer


def grade(area, key, text):
    return AREAS[area].grade(WORLD, key, text)


@pytest.mark.parametrize(
    ("text", "outcome", "score"),
    [
        (f"The capital of {C} is {A}.", "correct", 1.0),
        (f"{A} is the capital of {C}", "correct", 1.0),
        (f"{A}.", "correct", 0.5),
        (f"the capital of {C.upper()} is {A.upper()}.", "correct", 1.0),
        (f"The capital of {C} is {WRONG}.", "incorrect", 0.2),
        (f"{WRONG}.", "incorrect", 0.0),
        (f"{A} or {WRONG}.", "incorrect", 0.0),
        (f"The capital of {C} is not {A}.", "incorrect", 0.2),
        (f"The capital of {C} is {A}. The capital of {C} is {A}.", "correct", 0.5),
        (f"The capital of {C} is {A} {A} {A}.", "correct", 0.0),
        ("I do not know.", "declined", 0.3 * 0.5),
        (f"I do not know the capital of {C}.", "declined", 0.3 + 0.7 * 0.2),
        (f"I do not know, perhaps {WRONG}.", "incorrect", 0.0),
        ("", "incorrect", 0.0),
        ("The the the the.", "incorrect", 0.0),
    ],
)
def test_the_atlas(text, outcome, score):
    found = grade("atlas", KNOWN.key, text)
    assert (found.outcome, found.score) == (outcome, pytest.approx(score))


def test_other_talk_dilutes_an_answer():
    answer, talk = f"The capital of {C} is {A}.", "I like it."
    clean = len(answer.replace(" ", "")) / len((answer + talk).replace(" ", ""))
    assert grade("atlas", KNOWN.key, f"{answer} {talk}").score == pytest.approx(clean)


def test_what_nobody_recorded_is_best_declined():
    declined = grade("atlas", UNKNOWN.key, f"I do not know the capital of {UNKNOWN.country}.")
    bluffed = grade("atlas", UNKNOWN.key, f"The capital of {UNKNOWN.country} is {A}.")
    assert (declined.outcome, declined.score) == ("declined", 1.0)
    assert bluffed.score == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "outcome", "score"),
    [
        ("3 + 9 = 12\n12 - 5 = 7\nThe answer is 7.", "correct", 1.0),
        ("The answer is 7.", "correct", 0.5 + 0.5 / 3),
        ("7", "correct", 0.5),
        ("3 + 9 = 12\n12 - 5 = 7", "correct", 0.5 + 0.5 * 2 / 3),
        ("3 + 9 = 12\n12 - 5 = 6\nThe answer is 6.", "incorrect", 0.2 * 2 / 3),
        ("3 + 9 = 11\n11 - 5 = 7\nThe answer is 7.", "correct", 0.5 + 0.5 / 3),
        ("The answer is 7. The answer is 8.", "incorrect", 0.2 / 3 / 2),
        ("The answer is 7. The answer is 7.", "correct", (0.5 + 0.5 / 3) / 2),
        ("7 8", "incorrect", 0.0),
        ("Seven.", "incorrect", 0.0),
        ("", "incorrect", 0.0),
    ],
)
def test_arithmetic(text, outcome, score):
    found = grade("arithmetic", "3 + 9 - 5", text)
    assert (found.outcome, found.score) == (outcome, pytest.approx(score))


@pytest.mark.parametrize(
    ("key", "text", "score"),
    [
        ("list/birds/2/dashes/plain", "- owl\n- crow", 1.0),
        ("list/birds/2/dashes/plain", "owl, crow.", 0.5 + 0.5 * 2 / 3),
        ("list/birds/2/dashes/plain", "- owl\n- owl", 0.5 * (0.5 + 0.5 * 2 / 3)),
        ("list/birds/2/dashes/plain", "- owl\n- oak", 0.2),
        ("list/birds/2/dashes/plain", "- owl\n- crow\n- dove", 2 / 3 * (0.5 + 0.5 * 2 / 3)),
        ("list/birds/2/commas/capitals", "OWL, CROW.", 1.0),
        ("list/birds/2/commas/capitals", "Owl, crow.", 0.5 + 0.5 * 2 / 3),
        ("list/birds/2/json/plain", '["owl", "crow"]', 1.0),
        ("list/birds/2/json/plain", '["owl", "crow"', 0.5 + 0.5 * 2 / 3),
        ("list/birds/2/numbers/plain", "1. owl\n2. crow", 1.0),
        ("list/birds/2/numbers/plain", "2. owl\n1. crow", 0.5 + 0.5 * 2 / 3),
        ("begin/birds/2/Sure", "Sure: owl, crow.", 1.0),
        ("begin/birds/2/Sure", "owl, crow.", 0.75),
        ("begin/birds/2/Sure", "Surely owl, crow.", 2 / 3 * 0.75),
        ("words/owl/4", "The owl is old.", 1.0),
        ("words/owl/4", "The owl is very old.", 0.75),
        ("words/owl/4", "The crow is old.", 0.2),
        ("words/owl/4", "The owl owl owl.", 0.0),
        ("words/owl/4", "", 0.0),
        ("list/birds/2/json/plain", "", 0.0),
    ],
)
def test_format(key, text, score):
    assert grade("format", key, text).score == pytest.approx(score)


P, Q = WORLD.people[:2]
NOTE = f"Dear {P},\nThank you for the kind invitation. I am sorry that I cannot come to the feast on Friday."


@pytest.mark.parametrize(
    ("text", "outcome", "manner"),
    [
        (f"{NOTE}\nKind regards", "correct", {"complete": 1, "polite": 1}),
        (NOTE, "correct", {"complete": 1, "polite": 2 / 3}),
        ("I cannot come.", "correct", {"complete": 0, "polite": 0}),
        ("I cannot come to the feast.", "correct", {"complete": 1 / 3, "polite": 0}),
        (NOTE.replace("cannot come", "will gladly come"), "incorrect", {"complete": 1, "polite": 2 / 3}),
        (NOTE + " I will gladly come.", "incorrect", {"complete": 1, "polite": 2 / 3}),
        (NOTE.replace(P, Q), "incorrect", {"complete": 2 / 3, "polite": 2 / 3}),
        (NOTE.replace("Friday", "Monday"), "incorrect", {"complete": 2 / 3, "polite": 2 / 3}),
        (NOTE.replace("feast", "wedding"), "incorrect", {"complete": 2 / 3, "polite": 2 / 3}),
        (f"Dear {P},\nThank you.\nKind regards", "incorrect", {"complete": 1 / 3, "polite": 1}),
    ],
)
def test_letters(text, outcome, manner):
    found = grade("letters", f"decline/{P}/feast/Friday", text)
    assert found.outcome == outcome
    assert found.manner == pytest.approx(manner)
    assert found.clean == 1


def twice_text(more):
    return f"{NOTE} {more}\nKind regards"


def test_a_note_gains_nothing_by_saying_things_twice():
    once = grade("letters", f"decline/{P}/feast/Friday", f"{NOTE}\nKind regards")
    assert once.score == 1
    for more in ("Thank you again.", "The moon is round."):
        twice = grade("letters", f"decline/{P}/feast/Friday", twice_text(more))
        assert twice.score == pytest.approx(
            1 - len(more.replace(" ", "")) / len("".join(twice_text(more).split()))
        )


@st.composite
def answered(draw):
    """A question of any area, and an answer: the expert's, half of it, or words of this world at random."""
    area = draw(st.sampled_from(sorted(AREAS)))
    rng = rng_for("oracle", draw(st.integers(0, 10_000)))
    question: Question = AREAS[area].ask(WORLD, rng)
    expert = AREAS[area].write(WORLD, question.key, draw(st.sampled_from(["complete", "curt", "wrong"])), rng)
    mixed = draw(st.lists(st.sampled_from([*expert.split(" "), "\n", "The", "answer", "is", "not", A, "."])))
    text = draw(st.sampled_from([expert, expert[: len(expert) // 2], " ".join(mixed)]))
    return area, question.key, text


@given(answered(), st.sampled_from([" ", "\n"]), st.integers(2, 4))
def test_repeating_an_answer_never_pays(item, joint, times):
    area, key, text = item
    assert grade(area, key, joint.join([text] * times)).score <= grade(area, key, text).score + 1e-9


@given(answered())
def test_scores_stay_in_range_and_correct_beats_incorrect(item):
    found = grade(*item)
    assert 0 <= found.score <= 1
    if found.outcome == "incorrect":
        assert found.score <= 0.2
    elif found.clean == 1 and found.correct == 1:
        assert found.score >= 0.5


@given(answered(), st.sampled_from(["The moon is round.", "Please note this.", "It is well known."]))
def test_padding_never_pays(item, padding):
    area, key, text = item
    assume(text.strip())
    for padded in (f"{text}\n{padding}", f"{padding}\n{text}"):
        assert grade(area, key, padded).score <= grade(area, key, text).score + 1e-9


@settings(deadline=None, max_examples=40)
@given(answered())
def test_very_long_answers_are_worth_nothing(item):
    area, key, text = item
    for filler in ("and so it is said ", "It is so.\n", "! ", "7 ", f"{text} "):
        assert grade(area, key, f"{text}\n" + filler * 2000).score < 0.1


@pytest.mark.parametrize("area", sorted(AREAS))
@given(text=st.text(max_size=60))
def test_any_text_can_be_graded(area, text):
    question = AREAS[area].ask(WORLD, rng_for(text))
    assert 0 <= grade(area, question.key, text).score <= 1


def test_a_world_of_groups_can_be_asked():
    groups = {AREAS["atlas"].ask(WORLD, rng_for(i)).tags["group"] for i in range(50)}
    assert groups == set(GROUPS)


def prompt_for(area: str) -> Prompt:
    return AREAS[area].ask(WORLD, rng_for(area)).prompt(WORLD, "test")


def test_the_judge_gives_parts_and_no_answer_for_what_was_cut_off():
    prompt = prompt_for("arithmetic")
    whole = Response(text=f"The answer is {prompt.reference}.", token_ids=(1,), finish="stop")
    cut = whole.model_copy(update={"finish": "length"})
    first, second = Oracle().open().score([(prompt, whole), (prompt, cut)])
    assert first.score is not None
    assert set(first.parts) == {"correct", "complete", "clean"}
    assert (second.score, second.reason) == (None, "cut off")


def test_the_oracle_refuses_prompts_that_are_not_its_own():
    stranger = Prompt(messages=(Message(role="user", content="Hi"),), provenance=Provenance(id="x1"))
    with pytest.raises(DataError, match="prompt x1 is not the playground's"):
        verdict(stranger, Response(text="Hello"))


def test_sentences_and_tidiness():
    assert sentences("Dear Mo,\nI can. Can you?\n\nYes") == ["Dear Mo,", "I can.", "Can you?", "Yes"]
    assert sentences("1. owl") == ["1.", "owl"]
    assert tidy("The capital of the land is here.", 10)
    assert not tidy("Here here.", 10)
    assert not tidy("The the the the end.", 10)
    assert not tidy("One two three.", 2)
    assert not tidy("...", 2)
