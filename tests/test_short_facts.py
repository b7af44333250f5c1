"""The task that tells what a model knows, gets wrong and does not claim to know: shares by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from evaluation_world import context, small_world  # noqa: F401
from scipy.stats import t
from test_evaluation_judged import scripted

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.evaluation.compare import Point, difference, estimate
from posttrain.evaluation.summary import _points
from posttrain.evaluation.task import EvalContext, Outcome
from posttrain.evaluation.tasks.short_facts import ShortFacts, metrics_of
from posttrain.feedback.fact_grades import Graded, RuleGrader
from posttrain.formats import write_records
from posttrain.records import Message, Prompt, Provenance, Response

REFERENCES = ("Bobby Scott", "Bob Russell")


def ask(i=0, references=REFERENCES, level="easy"):
    tags = {"references": json.dumps(references), "level": level} if references else {"level": level}
    messages = (Message(role="user", content=f"Who wrote song {i}?"),)
    reference = references[0] if references else None
    return Prompt(provenance=Provenance(id=f"q{i}"), messages=messages, reference=reference, tags=tags)


SAID = ["Bob Russell", "Neil Diamond", "I don't know.", "Bob Russell", "Bob Russell or not, I don't know"]


def shares(monkeypatch, world, tmp_path, **fields):
    def answer(i, j):
        cut = i == 5
        return Response(text="Bob" if cut else SAID[i], token_ids=(5,), finish="length" if cut else "stop")

    monkeypatch.setattr(EvalContext, "respond", scripted(answer))
    prompts = [ask(i, level="hard" if i < 2 else "easy") for i in range(6)]
    write_records(tmp_path / "facts.jsonl", [*prompts, prompts[0]])
    given = {"data": str(tmp_path / "facts.jsonl"), "group_by": "level", **fields}
    task = parse(ShortFacts, given, "test")
    return task.evaluate(context(world / "sft"))


def test_the_shares_of_a_task(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    outcomes = shares(monkeypatch, world, tmp_path, grader={"name": "rule", "within": True})
    # by hand: right, wrong, refused, right, both at once (ungraded), cut off
    assert len(outcomes) == 6
    found = {m: estimate(_points(outcomes, m)) for m in outcomes[0].metrics}
    assert {m: (round(e.mean, 9), e.n, e.missing) for m, e in found.items()} == {
        "correct": (0.5, 4, 2),
        "incorrect": (0.25, 4, 2),
        "not_attempted": (0.25, 4, 2),
        "ungraded": (0.2, 5, 1),
        "correct_given_attempted": (round(2 / 3, 9), 3, 2),
        # harmonic mean of 2/4 and 2/3
        "f_score": (round(2 / (1 / 0.5 + 1 / (2 / 3)), 9), 4, 2),
        "finished": (round(5 / 6, 9), 6, 0),
    }
    assert all(e.low is not None and e.low <= e.mean <= e.high for e in found.values())
    assert [o.note for o in outcomes][4:] == ["both 'Bob Russell' and 'I don't know'", "cut off"]
    assert [o.group for o in outcomes] == ["hard"] * 2 + ["easy"] * 4


def test_prompts_that_share_a_tag_are_one_cluster(world, monkeypatch, tmp_path):
    outcomes = shares(monkeypatch, world, tmp_path, cluster_by="level")
    assert {o.cluster for o in outcomes} == {"easy", "hard"}
    apart = shares(monkeypatch, world, tmp_path, cluster_by="no such tag")
    assert len({o.cluster for o in apart}) == 6


def test_the_interval_of_the_f_score_is_that_of_the_ratio():
    grades = ["correct"] * 6 + ["incorrect"] * 3 + ["not_attempted"] * 3
    values = [metrics_of(Graded(g))["f_score"] for g in grades]
    weights = [1.0 if g == "not_attempted" else 2.0 for g in grades]
    found = estimate(
        [Point(str(i), str(i), v, w) for i, (v, w) in enumerate(zip(values, weights, strict=True))]
    )
    n, c, i = 12, 0.5, 0.25
    assert found.mean == pytest.approx(2 * c / (1 + c + i))
    # delta method on 2C / (1 + C + I): gradient times the covariance of one answer's indicators
    d = 1 + c + i
    gc, gi = 2 / d - 2 * c / d**2, -2 * c / d**2
    variance = gc**2 * c * (1 - c) + gi**2 * i * (1 - i) - 2 * gc * gi * c * i
    half = t.ppf(0.975, n - 1) * math.sqrt(variance / (n - 1))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


def test_two_models_are_compared_on_what_both_attempted():
    def outcomes(grades):
        return [Outcome(str(i), str(i), metrics_of(Graded(g))) for i, g in enumerate(grades)]

    before = outcomes(["correct", "incorrect", "not_attempted", "incorrect"])
    after = outcomes(["correct", "correct", "correct", "not_attempted"])
    name = "correct_given_attempted"
    found = difference(_points(before, name), _points(after, name))
    assert (found.mean, found.n) == (0.5, 2)
    never = outcomes(["not_attempted"] * 4)
    assert difference(_points(before, name), _points(never, name)).mean is None
    assert estimate(_points(never, name)).mean is None


def test_a_grader_is_named_in_a_recipe(tmp_path: Path):
    given = {"data": "facts.jsonl"}
    assert parse(ShortFacts, {**given, "grader": "rule"}, "t").grader == RuleGrader()
    server = {"name": "llm", "base_url": "http://x/v1", "model": "g"}
    assert parse(ShortFacts, {**given, "grader": server}, "t").grader.model == "g"
    with pytest.raises(ConfigError, match="grader"):
        parse(ShortFacts, {**given, "grader": "person"}, "t")
    with pytest.raises(ConfigError, match="withn"):
        parse(ShortFacts, {**given, "grader": {"name": "rule", "withn": True}}, "t")
