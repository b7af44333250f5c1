"""The judge `llm` against a real server: what it asks, what it takes for an answer, what it pays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import Answer, completion, in_turn, serving
from http_engine import SECRET, impatient  # noqa: F401

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.common.step import StepContext
from posttrain.engines.server import OutOfBudget, ServerError
from posttrain.feedback.judge import Account
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.feedback.llm_judge import Llm
from posttrain.feedback.llm_replies import Unreadable, read_grades
from posttrain.feedback.llm_rubric import RUBRIC, Aspect, filled, template_for
from posttrain.flow.oneoff import run_into
from posttrain.formats.write import write_records
from posttrain.records import ROW, ImagePart, Message, Prompt, Provenance, Response, Samples, TextPart


def grades(accuracy=5, style=4, detail=3, faults="none"):
    return {"faults": faults, "accuracy": accuracy, "style": style, "detail": detail}


def says(value, **more) -> Answer:
    return completion(value if isinstance(value, str) else json.dumps(value), **more)


def ask(text: str, reference: str | None = None) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(messages=messages, reference=reference, provenance=Provenance(id=f"p-{text}"))


def opened(folder: Path, url: str, **fields):
    cfg = parse(Llm, {"base_url": url, "model": "judge-1", "concurrency": 4} | fields, "test")
    return cfg.open_with(Account(folder, "payer"))


def shown(body) -> str:
    return body["messages"][0]["content"]


def places(body, *names):
    """The texts between the marks of a question."""
    text = shown(body)
    return tuple(text.split(f"<{name}-", 1)[1].split(">\n", 1)[1].split("\n</", 1)[0] for name in names)


ONE = [(ask("Why?"), Response(text="Because."))]
PAIR = [(ask("Why?"), Response(text="A good answer"), Response(text="bad"))]


def by_text(body):
    """Grades what is good, wherever it stands."""
    return says(
        {
            side: grades(5 if "good" in text else 2, faults="none" if "good" in text else "bad")
            for side, text in zip(("first", "second"), places(body, "first", "second"), strict=True)
        }
    )


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


def test_a_template_may_be_a_file_and_must_have_its_places(tmp_path):
    (tmp_path / "ask.txt").write_text('Grade {response} to {prompt}. {"not": "ours"} {format}')
    text = template_for("score", str(tmp_path / "ask.txt"))
    asked = filled(text, ask("Why?"), [Response(text="{prompt} \ud800", token_ids=(1,))], RUBRIC, "score")
    assert '{"not": "ours"}' in asked
    assert "\n{prompt} ?\n" in asked  # what is judged fills no place
    for template, missing in (("{prompt} {format}", "response"), ("{prompt} {response}", "format")):
        with pytest.raises(ConfigError, match=f"no place {{{missing}}}"):
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


def test_the_mean_and_accuracy_may_disagree(tmp_path):
    """Higher in accuracy, lower in the mean: pairs from either are asked for by `aspect`, and paid once."""

    def say(body):
        right, nice = grades(5, 1, 1), grades(3, 5, 5)
        first, _ = places(body, "first", "second")
        sides = (right, nice) if "right" in first else (nice, right)
        return says(dict(zip(("first", "second"), sides, strict=True)))

    samples = [Response(text="right and rude"), Response(text="charming")]
    with serving(say) as (url, seen):
        summary, by_mean = run(tmp_path / "mean", url, samples, cache=tmp_path)
        assert (summary["cost"]["answers_paid"], summary["cost"]["tokens_per_label"]) == (2, 26.0)
        other, by_accuracy = run(tmp_path / "accuracy", url, samples, cache=tmp_path, aspect="accuracy")
        assert (other["cost"]["answers_paid"], other["cost"]["cache_hits"]) == (0, 2)
    assert [row.chosen.text for row in by_mean] == ["charming"]
    assert [(row.chosen.text, row.aspect) for row in by_accuracy] == [("right and rude", "accuracy")]
    assert len(seen.bodies) == 2


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


def run(folder: Path, url: str, responses, cache=None, ask_for="compare", judge=(), **fields):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Why?"), responses=tuple(responses), model="m")]
    cfg = config(folder, url, rows, ask_for, dict(judge), **fields)
    out = folder / f"judge-{folder.name}"
    summary = STEP.run(cfg, StepContext(out, folder / "state", "judge", cache))
    lines = (out / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [ROW.validate_json(line) for line in lines]


def config(folder, url, rows, ask_for="compare", judge=None, **fields) -> JudgeConfig:
    write_records(folder / "rows.jsonl", rows)
    named = {"name": "llm", "base_url": url, "model": "judge-1", "ask": ask_for} | (judge or {})
    made = {"data": str(folder / "rows.jsonl"), "judge": named}
    made |= {"pairs": "all"} if ask_for == "compare" else {}
    return parse(JudgeConfig, made | fields, "test")


def test_the_step_tells_flips_position_and_price(tmp_path):
    """Of three pairs one is read the same way in both orders; in two, what stands first wins."""

    def say(body):
        first, second = places(body, "first", "second")
        if {first, second} == {"good", "bad"}:
            return by_text(body)
        return says({"first": grades(5), "second": grades(4)}, tokens=5, prompt=20)

    budget = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
    responses = [Response(text=text) for text in ("good", "bad", "ugly")]
    with serving(say) as (url, _):
        summary, rows = run(tmp_path, url, responses, judge={"budget": budget})
    assert [(row.chosen.text, row.rejected.text, row.judge) for row in rows] == [
        ("good", "bad", "llm judge-1")
    ]
    # of the six judgements four favour the first by its place, and one the good one where it is first
    assert summary["position"] == {
        "pairs": 3,
        "flip_rate": pytest.approx(2 / 3),
        "agreed": pytest.approx(1 / 3),
        "first_wins": pytest.approx(5 / 6),
    }
    assert summary["no_answer_reasons"] == {"the two orders disagree": 2}
    cost = summary["cost"]
    assert (cost["prompt_tokens"], cost["completion_tokens"]) == (2 * 10 + 4 * 20, 2 * 3 + 4 * 5)
    assert cost["tokens_per_label"] == 126
    assert cost["usd_per_label"] == pytest.approx((100 + 260) / 1e6)


def test_ratings_keep_the_third_state(tmp_path):
    def say(body):
        (text,) = places(body, "response")
        return says("No.") if text == "odd" else says(grades(2))

    with serving(say) as (url, _):
        summary, rows = run(
            tmp_path,
            url,
            [Response(text="odd"), Response(text="plain")],
            ask_for="score",
            to="ratings",
        )
    assert [row.scores for row in rows] == [
        {"overall": None},
        {"overall": 3.0, "accuracy": 2, "style": 4, "detail": 3},
    ]
    assert summary["no_answer_reasons"] == {"unreadable: no JSON": 1}


def test_a_step_that_ran_out_of_budget_pays_for_nothing_twice(tmp_path):
    many = [Response(text=f"answer {i}") for i in range(8)]
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Why?"), responses=tuple(many), model="m")]

    def make(tokens):
        judge = {"budget": {"tokens": tokens}, "concurrency": 1}
        return config(tmp_path, url, rows, "score", judge, to="ratings")

    with serving(lambda body: says(grades(), tokens=40, prompt=500)) as (url, seen):
        with pytest.raises(OutOfBudget, match="run again to go on"):
            run_into(STEP, make(5000), tmp_path / "made")
        before = len(seen.bodies)
        assert 0 < before < 8
        done = run_into(STEP, make(100_000), tmp_path / "made")
    assert len(seen.bodies) == 8
    assert (done.summary["ratings"], done.summary["cost"]["answers_paid"]) == (8, 8)
    assert done.summary["cost"]["cache_hits"] == before


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Why?"), responses=(ONE[0][1],), model="m")]

    def make():
        return config(tmp_path, url, rows, "score", {"api_key_env": "JUDGE_KEY"}, to="ratings")

    with serving(lambda body: says(grades())) as (url, seen):
        run_into(STEP, make(), tmp_path / "made")
        assert seen.headers[0]["authorization"] == f"Bearer {SECRET}"
    refused = Answer({"error": {"message": f"bad key {SECRET}"}}, 401)
    with serving(lambda body: refused) as (url, _):
        with pytest.raises(ServerError) as e:
            run_into(STEP, make(), tmp_path / "refused")
        assert SECRET not in str(e.value)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())


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
