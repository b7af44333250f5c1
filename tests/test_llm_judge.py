"""The judge `llm` against a real server: what it asks, what it takes for an answer, what it pays."""

from __future__ import annotations

import json

import pytest
from chat_server import Answer, completion, in_turn, serving
from http_engine import SECRET, impatient  # noqa: F401
from llm_questions import ONE, PAIR, ask, by_text, grades, opened, places, says, shown

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.feedback.llm_judge import Llm
from posttrain.feedback.llm_replies import Unreadable, read_grades
from posttrain.feedback.llm_rubric import RUBRIC, Aspect, filled, template_for
from posttrain.records import ImagePart, Message, Prompt, Provenance, Response, TextPart


def test_a_score_is_the_mean_of_the_aspects_and_its_parts_are_them(tmp_path):
    with serving(lambda body: says(grades(5, 4, 3, "too short"))) as (url, seen):
        (verdict,) = opened(tmp_path, url).score(ONE)
    assert (verdict.score, verdict.reason) == (4.0, "too short")
    assert verdict.parts == {"accuracy": 5, "style": 4, "detail": 3}
    (body,) = seen.bodies
    assert places(body, "prompt", "response") == ("Why?", "Because.")
    assert (body["temperature"], body["max_completion_tokens"]) == (0, 1024)
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == ["faults", "accuracy", "style", "detail"]
    assert form["schema"]["properties"]["style"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("by", "score"),
    [("accuracy", 5.0), ({"accuracy": 0.5, "detail": 0.5}, 4.0), ({"style": -1}, -4.0), ("mean", 4.0)],
)
def test_what_counts_is_chosen(tmp_path, by, score):
    with serving(lambda body: says(grades())) as (url, _):
        assert opened(tmp_path, url, by=by).score(ONE)[0].score == score


def test_repeats_are_draws_of_their_own_and_their_mean_is_over_those_that_can_be_read(tmp_path):
    answers = in_turn(says(grades(5)), says("I like it"), says(grades(2)))
    with serving(answers) as (url, seen):
        judge = opened(tmp_path, url, repeats=3, temperature=1.0, attempts=1, concurrency=1)
        (verdict,) = judge.score(ONE)
    assert verdict.parts == {"accuracy": 3.5, "style": 4, "detail": 3}
    assert len({body["seed"] for body in seen.bodies}) == 3


def test_repeats_are_draws_of_their_own_also_where_no_seed_is_sent(tmp_path):
    with serving(in_turn(says(grades(5)), says(grades(3)), says(grades(1)))) as (url, seen):
        fields = {"repeats": 3, "temperature": 1.0, "send_seed": False, "concurrency": 1}
        (verdict,) = opened(tmp_path, url, **fields).score(ONE)
    assert verdict.parts["accuracy"] == 3
    assert len(seen.bodies) == 3
    assert not any("seed" in body for body in seen.bodies)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I would give it a 5.", "no JSON"),
        (f"Here: {json.dumps(grades())}", "no JSON"),
        ("[5, 5, 5]", "no JSON object"),
        (json.dumps({"faults": "none", "accuracy": 5, "style": 5}), "'detail' is missing"),
        (json.dumps(grades() | {"overall": 5}), "keys that nobody asked for"),
        (json.dumps(grades(6)), "'accuracy' is not from 1 to 5"),
        (json.dumps(grades(0)), "'accuracy' is not from 1 to 5"),
        (json.dumps(grades(4.0)), "'accuracy' is no whole number"),
        (json.dumps(grades("4")), "'accuracy' is no whole number"),
        (json.dumps(grades(True)), "'accuracy' is no whole number"),
        (json.dumps(grades(None)), "'accuracy' is no whole number"),
        (json.dumps(grades(faults=["none"])), "'faults' is no text"),
        (json.dumps(grades())[:-1] + ', "style": 1}', "a key stands twice"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_grade_is_refused(text, why):
    with pytest.raises(Unreadable) as e:
        read_grades(text, RUBRIC, "score")
    assert str(e.value) == why


def test_a_fence_around_the_object_is_no_fault():
    (found,) = read_grades(f"```json\n{json.dumps(grades(), indent=1)}\n```", RUBRIC, "score")
    assert found.by == {"accuracy": 5, "style": 4, "detail": 3}
    pair = json.dumps({"first": grades(), "second": {"faults": "", "accuracy": 1}})
    with pytest.raises(Unreadable, match="'style' of 'second' is missing"):
        read_grades(pair, RUBRIC, "compare")


def test_an_unreadable_answer_is_told_what_was_wrong_and_asked_again(tmp_path):
    with serving(in_turn(says("Very good!"), says(grades(9)), says(grades(3)))) as (url, seen):
        judge = opened(tmp_path, url)
        assert judge.score(ONE)[0].parts["accuracy"] == 3
        assert judge.spent()["asked_again"] == 2
        again = seen.bodies[1]["messages"]
        assert again[1] == {"role": "assistant", "content": "Very good!"}
        assert "(unreadable: no JSON)" in again[2]["content"]
        assert "not from 1 to 5" in seen.bodies[2]["messages"][4]["content"]
        # all three are kept
        assert opened(tmp_path, url).score(ONE)[0].parts["accuracy"] == 3
        assert len(seen.bodies) == 3


def test_a_judge_that_never_gives_grades_gives_no_answer(tmp_path):
    with serving(lambda body: says("I cannot grade this.")) as (url, seen):
        (verdict,) = opened(tmp_path, url, attempts=2).score(ONE)
    assert (verdict.score, verdict.reason, verdict.parts) == (None, "unreadable: no JSON", {})
    assert len(seen.bodies) == 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (completion(None, refusal="no"), "no text"),
        (
            Answer({"choices": [{"message": {"content": None, "refusal": "I will not"}}], "usage": {}}),
            "refusal",
        ),
        (completion("", finish="content_filter"), "content filter"),
        (completion('{"faults": "a long', finish="length"), "unreadable: cut off"),
        (Answer({"error": {"message": "prompt too long"}}, 400), "refused: HTTP 400: prompt too long"),
    ],
)
def test_every_way_of_saying_nothing_is_the_third_state(tmp_path, answer, why):
    with serving(lambda body: answer) as (url, seen):
        (verdict,) = opened(tmp_path, url, attempts=2).score(ONE)
    assert (verdict.score, verdict.reason) == (None, why)
    assert len(seen.bodies) == (2 if why.startswith("unreadable") else 1)  # a refusal is an answer


def test_what_passes_by_itself_is_waited_out(tmp_path):
    answers = in_turn(Answer(b"", 429), Answer(b"oops", 500), Answer(drop=True), says(grades()))
    with serving(answers) as (url, _):
        judge = opened(tmp_path, url)
        assert judge.score(ONE)[0].score == 4
    assert judge.spent()["retries"] == 3


def test_what_cannot_be_asked_is_not_paid_for(tmp_path):
    picture = Message(role="user", content=(TextPart(text="What is it?"), ImagePart(image="cat.png")))
    image = Prompt(messages=(picture,), provenance=Provenance(id="i"))
    template = "{prompt} {reference} {response} {format}"
    items = [
        (image, Response(text="A cat")),
        (ask("Why?"), Response(text="Bec", finish="length")),
        (ask("Why?"), Response(text="Because")),
        (ask("2+2?", "4"), Response(text="4")),
    ]
    with serving(lambda body: says(grades())) as (url, seen):
        said = opened(tmp_path, url, template=template).score(items)
    assert [verdict.reason for verdict in said[:3]] == [
        "an image, which this judge is not shown",
        "cut off",
        "the prompt has no reference",
    ]
    assert said[3].score == 4
    assert len(seen.bodies) == 1
    assert places(seen.bodies[0], "reference") == ("4",)


def test_two_judges_of_one_step_are_each_booked_what_they_cost(tmp_path):
    with serving(lambda body: says(grades(), tokens=40, prompt=500)) as (url, _):
        one, other = (opened(tmp_path, url, seed=seed, budget={"tokens": 6000}) for seed in (1, 2))
        one.score(ONE)
        other.score(ONE * 2)
        assert (one.spent()["answers_paid"], one.spent()["prompt_tokens"]) == (1, 500)
        assert (other.spent()["answers_paid"], other.spent()["prompt_tokens"]) == (1, 500)
        again = opened(tmp_path, url, seed=1, budget={"tokens": 6000})
        again.score(ONE)
    assert (again.spent()["answers_paid"], again.spent()["cache_hits"]) == (1, 1)


def test_a_pair_of_which_one_side_cannot_be_shown_is_not_paid_for(tmp_path):
    picture = Message(role="user", content=(ImagePart(image="cat.png"),))
    image = Prompt(messages=(picture,), provenance=Provenance(id="i"))
    whole, cut = Response(text="Because."), Response(text="Bec", finish="length")
    items = [
        (ask("Why?"), cut, whole),
        (ask("Why?"), whole, cut),
        (image, whole, Response(text="A cat")),
        PAIR[0],
    ]
    with serving(by_text) as (url, seen):
        said = opened(tmp_path, url, ask="compare").compare(items)
    assert [each.reason for each in said] == [
        "cut off",
        "cut off",
        "an image, which this judge is not shown",
        "",
    ]
    assert [each.probability for each in said] == [None, None, None, 1.0]
    assert len(seen.bodies) == 2


def test_a_template_may_be_a_file_and_must_have_its_places(tmp_path):
    (tmp_path / "ask.txt").write_text('Grade {response} to {prompt}. {"not": "ours"} {format}')
    text = template_for("score", str(tmp_path / "ask.txt"))
    asked = filled(text, ask("Why?"), [Response(text="{prompt} \ud800", token_ids=(1,))], RUBRIC, "score")
    assert '{"not": "ours"}' in asked
    assert "\n{prompt} ?\n" in asked  # what is judged fills no place
    for template, missing in (
        ("{prompt} {format}", "{response}, which"),
        ("{prompt} {response}", "{format}, which"),
        ("ask-me.txt", r"{prompt}, .* \(a file 'ask-me.txt' is not there\)"),
    ):
        with pytest.raises(ConfigError, match=f"no place {missing}"):
            parse(Llm, {"base_url": "http://x/v1", "model": "m", "template": template}, "test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeats": 2}, "set temperature"),
        ({"by": "wit"}, "'wit' is no aspect"),
        ({"by": {}}, "no aspect"),
        ({"orders": 1}, "nothing is compared"),
        ({"ask": "compare", "orders": 1, "both_agree": False}, "there is one order"),
        ({"rubric": [{"name": "faults", "description": "x"}]}, "has a meaning"),
        ({"rubric": [{"name": "a", "description": "x", "low": 2, "high": 2}]}, "no grades"),
        ({"rubric": [{"name": "a", "description": "x"}] * 2}, "twice"),
        (
            {"rubric": [{"name": "a", "description": "x"}, {"name": "b", "description": "x", "high": 9}]},
            "different scales",
        ),
    ],
)
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        parse(Llm, {"base_url": "http://x/v1", "model": "m"} | fields, "test")


def test_a_pair_is_shown_both_ways_round(tmp_path):
    with serving(by_text) as (url, seen):
        (said,) = opened(tmp_path, url, ask="compare").compare(PAIR)
    assert (said.probability, said.orders) == (1.0, (1.0, 1.0))
    assert said.parts["accuracy"].probability == 1.0
    assert said.parts["style"].probability == 0.5  # 4 and 4: a tie
    both = {places(body, "first", "second") for body in seen.bodies}
    assert both == {("A good answer", "bad"), ("bad", "A good answer")}


def test_a_judge_that_likes_the_first_gives_no_preference(tmp_path):
    with serving(lambda body: says({"first": grades(5), "second": grades(3)})) as (url, seen):
        (said,) = opened(tmp_path / "a", url, ask="compare").compare(PAIR)
        assert (said.probability, said.reason) == (None, "the two orders disagree")
        assert said.orders == (1.0, 0.0)
        (soft,) = opened(tmp_path / "b", url, ask="compare", both_agree=False).compare(PAIR)
        assert soft.probability == 0.5
        (fooled,) = opened(tmp_path / "b", url, ask="compare", orders=1).compare(PAIR)
        assert (fooled.probability, fooled.orders) == (1.0, None)
    assert len(seen.bodies) == 4  # the last is in the cache


def test_a_soft_label_is_the_share_over_repeats_and_orders(tmp_path):
    """Of 4 answers in one order the good one wins 4, in the other 3: (1 + 3/4) / 2."""
    left = ["bad"]

    def say(body):
        first, _ = places(body, "first", "second")
        if first == "bad" and left:
            left.pop()
            return says({"first": grades(5), "second": grades(2)})
        return by_text(body)

    with serving(say) as (url, _):
        judge = opened(tmp_path, url, ask="compare", repeats=4, temperature=1.0, concurrency=1)
        (said,) = judge.compare(PAIR)
    assert said.orders == (1.0, 0.75)
    assert said.probability == 0.875


def test_one_order_that_cannot_be_read_is_no_answer(tmp_path):
    def say(body):
        first, _ = places(body, "first", "second")
        return by_text(body) if first != "bad" else says("Hm.")

    with serving(say) as (url, _):
        (said,) = opened(tmp_path, url, ask="compare", attempts=1).compare(PAIR)
    assert (said.probability, said.reason, said.orders) == (None, "unreadable: no JSON", None)


def test_a_server_without_schemas_is_asked_by_the_text_alone(tmp_path):
    with serving(lambda body: says(grades())) as (url, seen):
        opened(tmp_path, url, structured=None, temperature=None, send_seed=False).score(ONE)
    assert set(seen.bodies[0]) == {"model", "messages", "max_completion_tokens"}
    assert '"accuracy" (1 to 5)' in shown(seen.bodies[0])


def test_a_rubric_of_ones_own(tmp_path):
    rubric = [Aspect(name="kindness", description="Is it kind?", low=0, high=1).model_dump()]
    with serving(lambda body: says({"faults": "curt", "kindness": 0})) as (url, seen):
        (verdict,) = opened(tmp_path, url, rubric=rubric).score(ONE)
    assert (verdict.score, verdict.parts) == (0.0, {"kindness": 0})
    assert "- kindness (0 to 1): Is it kind?" in shown(seen.bodies[0])
