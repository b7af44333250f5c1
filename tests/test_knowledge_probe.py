"""What a model knows: posteriors by hand, the probe's states, and samples and grades that are kept."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from chat_server import completion, serving
from tiny import tiny_folder

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.feedback.fact_grades import Graded, RuleGrader
from posttrain.feedback.fact_llm import NOTHING, TEMPLATE, filled
from posttrain.feedback.knowledge.check import CheckGrader
from posttrain.feedback.knowledge.posterior import Thresholds, believe
from posttrain.feedback.knowledge.probe import STEP, ProbeConfig
from posttrain.feedback.knowledge.probed import read_probe, state_of
from posttrain.formats import read_records, write_records
from posttrain.records import Message, Prompt, Provenance, Response, Samples


def ask(i, reference="Paris", **tags):
    return Prompt(
        messages=(Message(role="user", content=f"What is thing {i}?"),),
        reference=reference,
        tags=tags,
        provenance=Provenance(id=f"q{i}"),
    )


# The posterior


def test_the_posterior_by_hand():
    found = believe(Thresholds(), right=4, not_right=0)
    # uniform prior: Beta(5, 1) has the distribution function x^5
    assert (found.alpha, found.beta) == (5, 1)
    assert found.mean == pytest.approx(5 / 6)
    assert found.above == pytest.approx(1 - 0.5**5)
    assert found.below == pytest.approx(0.2**5)
    assert (found.low, found.high) == pytest.approx((0.025**0.2, 0.975**0.2))
    none = believe(Thresholds(), right=0, not_right=9)
    assert none.below == pytest.approx(1 - 0.8**10)  # Beta(1, 10)
    assert believe(Thresholds(prior=(2, 3)), 1, 1).mean == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("right", "not_right", "knowledge"),
    [
        (3, 0, "usually"),  # 1 - 0.5^4 = 0.94
        (2, 0, "undecided"),  # 0.875: too few, and never wrong
        (0, 10, "rarely"),  # 1 - 0.8^11 = 0.914
        (0, 9, "undecided"),  # 0.893
        (5, 5, "sometimes"),
        (9, 1, "usually"),
        (0, 0, "undecided"),
    ],
)
def test_classes_follow_the_thresholds(right, not_right, knowledge):
    assert believe(Thresholds(), right, not_right).knowledge == knowledge


def test_thresholds_are_explicit():
    assert believe(Thresholds(certainty=0.85), 2, 0).knowledge == "usually"
    assert believe(Thresholds(rarely=0.3), 0, 9).knowledge == "rarely"
    # a prior that is sure does not decide where nothing was seen
    assert believe(Thresholds(prior=(1, 100)), 0, 0).knowledge == "undecided"
    with pytest.raises(ConfigError, match="'rarely'"):
        parse(Thresholds, {"rarely": 0.6}, "t")


# Grades and states


def test_an_unknown_key_of_a_grader_is_told_with_that_graders_own_names():
    grader = {"name": "llm", "base_url": "http://x", "model": "m", "base_ur": "y"}
    with pytest.raises(ConfigError, match=r"'grader\.llm\.base_ur' \(did you mean 'base_url'\?\)"):
        parse(ProbeConfig, {"prompts": "q.jsonl", "model": "m", "grader": grader}, "t")


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        ("rul", "'grader': no grader named 'rul' (did you mean 'rule'?)"),
        ({"name": "chek"}, "no grader named 'chek' (did you mean 'check'?)"),
        (
            {"within": True},
            "a grader is a name or a mapping with a 'name' (rule, llm, check), got {'within': True}",
        ),
    ],
)
def test_a_grader_that_is_none_is_told_with_the_nearest(grader, said):
    from posttrain.evaluation.tasks import read_task

    with pytest.raises(ConfigError) as e:
        parse(ProbeConfig, {"prompts": "q.jsonl", "model": "m", "grader": grader}, "t")
    assert said in str(e.value)
    with pytest.raises(ValueError, match="grader"):
        read_task({"name": "short_facts", "data": "q.jsonl", "grader": grader})


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_k": 1}])
def test_one_answer_ten_times_is_no_ten_draws(greedy):
    with pytest.raises(ConfigError, match="gives 10 times the same answer"):
        parse(ProbeConfig, {"prompts": "q.jsonl", "model": "m", **greedy}, "t")
    parse(ProbeConfig, {"prompts": "q.jsonl", "model": "m", "n": 1, **greedy}, "t")
    from posttrain.feedback.knowledge.bogus import BogusConfig

    with pytest.raises(ConfigError, match="gives 8 times the same answer"):
        parse(BogusConfig, {"candidates": "c.jsonl", "attempts": {"model": "m", **greedy}}, "t")


def test_grades_become_states():
    assert state_of(Graded("correct")) == "right"
    assert state_of(Graded("incorrect")) == "wrong"
    assert state_of(Graded("not_attempted")) == "refused"
    assert state_of(Graded(None, "cut off", asked=False)) == "ungradable"
    assert state_of(Graded(None, "the grader's answer cannot be read")) == "ungradable"
    assert state_of(Graded(None, uncertain=True)) == "uncertain"


def test_nothing_answers_a_question_about_nothing():
    bogus = ask(1, reference=None, answerable="no")
    said = ["It is Rome.", "I do not know.", "", "Not sure, Rome."]
    items = [(bogus, Response(text=text, token_ids=(5,), finish="stop")) for text in said]
    grades = [g.grade for g in RuleGrader(answer=r"is (\w+)").open().grade(items)]
    assert grades == ["incorrect", "not_attempted", "not_attempted", "incorrect"]
    odd = ask(1, answerable="no")  # a row that has an answer all the same
    assert RuleGrader().open().grade([(odd, Response(text="Paris"))])[0].grade == "incorrect"
    plain = ask(1, reference=None)
    assert RuleGrader().open().grade([(plain, items[0][1])])[0].grade is None


def test_a_server_is_told_that_nothing_answers_a_question():
    bogus = ask(1, reference=None, answerable="no")
    told = filled(TEMPLATE, bogus, Response(text="Rome"))
    assert NOTHING in told
    assert NOTHING not in filled(TEMPLATE, ask(1), Response(text="Rome"))


CHECKED = {
    "paris": "correct",  # word for word
    "I don't know.": "not_attempted",
    "The city of light": "correct",  # the server says TRUE
    "It is Rome": "incorrect",
    "Somewhere in France": None,  # UNCERTAIN
    "I don't know, perhaps Paris": "incorrect",  # holds the answer, so the server decides
    "mumble": None,  # the server's word cannot be read, twice
}


def test_a_server_is_asked_only_where_the_rule_cannot_tell(tmp_path):
    words = {"light": "TRUE", "Rome": "**False**", "Somewhere": "uncertain.", "perhaps": "FALSE"}

    def answer(body):
        text = body["messages"][0]["content"]
        return completion(next((w for part, w in words.items() if part in text), "well, maybe"))

    with serving(answer) as (url, seen):
        cfg = parse(CheckGrader, {"name": "check", "base_url": url, "model": "m"}, "t")
        items = [(ask(0), Response(text=text)) for text in CHECKED]
        said = cfg.open().grade(items)
        assert [g.grade for g in said] == list(CHECKED.values())
        assert [g.uncertain for g in said] == [text.startswith("Somewhere") for text in CHECKED]
        assert len(seen.bodies) == 6  # five answers, and the last one's second attempt
        bogus = ask(0, reference=None, answerable="no")
        assert cfg.open().grade([(bogus, Response(text="Rome"))])[0].grade == "incorrect"
        assert len(seen.bodies) == 6


# The step


def probe(out, prompts, **fields):
    cfg = parse(ProbeConfig, {"prompts": str(prompts), **fields}, "t")
    out.mkdir(parents=True, exist_ok=True)
    return STEP.run(cfg, StepContext(out, out / "state", "t"))


def served(body):
    """Right, wrong, a refusal, a cut-off answer or silence, as the question's number and the draw say."""
    number = int(body["messages"][-1]["content"].split()[-1].rstrip("?"))
    said = ["Paris", "Paris" if body["seed"] % 2 else "Rome", "Rome", "I don't know."][number]
    return completion(said, finish="stop")


def test_a_probe_of_a_server_by_hand_and_nothing_is_paid_twice(tmp_path):
    write_records(tmp_path / "q.jsonl", [ask(i, level="easy") for i in range(4)])
    with serving(served) as (url, seen):
        engine = {"name": "http", "base_url": url, "model": "m"}
        said = probe(tmp_path / "out", tmp_path / "q.jsonl", engine=engine, n=12)
        assert len(seen.bodies) == 48
        again = probe(tmp_path / "out", tmp_path / "q.jsonl", engine=engine, n=12)
        assert len(seen.bodies) == 48
    assert {k: v for k, v in said.items() if k != "sampling"} == {
        k: v for k, v in again.items() if k != "sampling"
    }
    assert said["knowledge"] == {"usually": 1, "sometimes": 1, "rarely": 2, "undecided": 0}
    pairs = list(read_probe(str(tmp_path / "out")))
    assert [one.knowledge for _, one in pairs] == ["usually", "sometimes", "rarely", "rarely"]
    assert pairs[0][0].prompt.tags == {"level": "easy", "knowledge": "usually"}
    assert pairs[0][1].counts["right"] == 12
    assert pairs[3][1].counts["refused"] == 12
    for row, one in pairs:
        assert Counter(one.states)["right"] == sum(r.text == "Paris" for r in row.responses)
    row, one = pairs[1]
    k = one.counts["right"]
    assert one.mean == (1 + k) / 14
    assert row.provenance.parents == ("q1",)


def test_a_grader_that_is_paid_is_not_paid_again(tmp_path):
    write_records(tmp_path / "q.jsonl", [ask(i) for i in range(3)])

    def answer(body):
        text = body["messages"][0]["content"]
        return completion("UNCERTAIN" if "You check an answer" in text else f"Somewhere {body['seed']}")

    with serving(answer) as (url, seen):
        server = {"base_url": url, "model": "m"}
        fields = {"engine": {"name": "http", **server}, "grader": {"name": "check", **server}, "n": 4}
        said = probe(tmp_path / "out", tmp_path / "q.jsonl", **fields)
        assert len(seen.bodies) == 24
        for kept in (tmp_path / "out/state/grades").iterdir():
            kept.unlink()  # as if it had been killed before it could write them
        again = probe(tmp_path / "out", tmp_path / "q.jsonl", **fields)
        assert len(seen.bodies) == 24
    assert said["samples"] == again["samples"] == {**dict.fromkeys(said["samples"], 0), "uncertain": 12}
    assert said["grading_cost"]["completion_tokens"] == 36
    assert said["sampling"]["completion_tokens"] == 36


def test_what_cannot_be_graded_is_neither_right_nor_wrong(tmp_path):
    write_records(tmp_path / "q.jsonl", [ask(0), ask(2), ask(3, reference=None)])

    def answer(body):
        cut = body["seed"] % 3 == 0
        return completion("Paris", finish="length" if cut else "stop", tokens=64 if cut else 3)

    with serving(answer) as (url, _):
        engine = {"name": "http", "base_url": url, "model": "m"}
        said = probe(tmp_path / "out", tmp_path / "q.jsonl", engine=engine, n=9)
    (_, one), _, (_, last) = read_probe(str(tmp_path / "out"))
    cut = one.counts["ungradable"]
    assert 0 < cut < 9
    assert (one.alpha, one.beta) == (1 + 9 - cut, 1)  # those that were cut off count for nothing
    assert last.counts["ungradable"] == 9
    assert last.knowledge == "undecided"
    assert said["right_by_class"] == {"usually": 1.0, "sometimes": None, "rarely": None, "undecided": None}


def test_questions_without_any_reference_are_told_before_anyone_is_asked(tmp_path):
    prompts = [ask(0, reference=None), ask(1, reference=None)]
    path = tmp_path / "q.jsonl"
    write_records(path, prompts)
    with serving(served) as (url, seen), pytest.raises(DataError, match="none of the 2 questions") as e:
        probe(tmp_path / "out", path, engine={"name": "http", "base_url": url, "model": "m"})
    assert not seen.bodies
    assert "give rows with 'reference'" in str(e.value)


def test_a_local_model_is_probed_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    model = tiny_folder("qwen2", tmp_path / "m")
    write_records(tmp_path / "q.jsonl", [ask(i) for i in range(5)])
    fields = {"model": str(model), "precision": "float32", "n": 3, "max_new_tokens": 6, "seed": 1}
    whole = probe(tmp_path / "a", tmp_path / "q.jsonl", **fields)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("posttrain.feedback.fact_grades.RuleOpened.grade", killed)
        with pytest.raises(KeyboardInterrupt):
            probe(tmp_path / "b", tmp_path / "q.jsonl", **fields)
    assert not (tmp_path / "b/rows.jsonl").exists()
    with monkeypatch.context() as m:  # what was sampled is read, and no model writes again
        m.setattr("posttrain.engines.local.LocalEngine.generate", killed)
        after = probe(tmp_path / "b", tmp_path / "q.jsonl", **fields)
    assert after == whole
    for name in ("rows.jsonl", "probe.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = read_records(tmp_path / "a", Samples)
    assert all(response.token_ids for row in rows for response in row.responses)
    assert math.isclose(sum(whole["samples"].values()), 15)


def test_nq_open_rows_are_read_as_they_are(tmp_path):
    rows = [
        {"question": "when was the last time anyone was on the moon", "answer": ["14 Dec", "December 1972"]},
        {"question": "who wrote he ain't heavy", "answer": ["Bobby Scott", "Bob Russell"]},
    ]
    (tmp_path / "nq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(body):
        moon = "moon" in body["messages"][-1]["content"]
        return completion("The December, 1972." if moon else "Neil Diamond")

    with serving(answer) as (url, _):
        engine = {"name": "http", "base_url": url, "model": "m"}
        probe(tmp_path / "out", tmp_path / "nq.jsonl", engine=engine)
    assert [one.knowledge for _, one in read_probe(str(tmp_path / "out"))] == ["usually", "rarely"]


def test_a_folder_that_is_no_probe_is_told(tmp_path):
    with pytest.raises(DataError, match="a step `probe` wrote"):
        read_probe(str(tmp_path))
