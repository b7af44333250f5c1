"""pass@k: the estimate against every subset, the third state, and the task on a model's answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from evaluation_world import context, prompt, small_world  # noqa: F401
from test_evaluation_judged import scripted

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.summary import summarise
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks import read_task
from posttrain.evaluation.tasks.pass_at_k import PassAtK, pass_at_k
from posttrain.feedback.best_of_n import expected_best
from posttrain.feedback.judge import Verdict
from posttrain.formats import write_records
from posttrain.records import Message, Prompt, Provenance, Response


def test_the_estimate_is_the_share_of_sets_that_hold_a_right_one() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            answers = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                sets = list(itertools.combinations(answers, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, sets)) / len(sets))
                # the best of k by a score of 1 and 0 is the same thing
                scores = [float(right) for right in answers]
                assert pass_at_k(n, c, k) == pytest.approx(expected_best(scores, scores, k))
    for n, c, k in ((3, 1, 0), (3, 1, 4), (3, 4, 1), (3, -1, 1)):
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(n, c, k)


def test_the_estimate_by_hand_and_for_many() -> None:
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)  # one of the ten triples has only wrong ones
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 3, 1) == pytest.approx(3e-4)


def test_the_estimate_has_no_bias_where_the_plain_one_has() -> None:
    """Right with probability 0.2 each, 6 answers, k = 3: the truth is 1 − 0.8³ = 0.488."""
    rng = random.Random(0)
    rights = [sum(rng.random() < 0.2 for _ in range(6)) for _ in range(20_000)]
    # values lie in [0, 1], so the mean's standard error is below 0.5 / √20000 = 0.0036
    assert fmean(pass_at_k(6, c, 3) for c in rights) == pytest.approx(0.488, abs=0.011)
    assert fmean(1 - (1 - c / 6) ** 3 for c in rights) < 0.488 - 0.011


class Says(Config):
    """Reads the verdict off the answer: right, wrong, or anything else for none."""

    scale: float = 1.0

    def open(self) -> Any:
        return SaysJudge(self.scale)


class SaysJudge:
    def __init__(self, scale: float) -> None:
        self.scores = {"right": scale, "wrong": 0.0}

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [
            Verdict(self.scores.get(r.text), "" if r.text in self.scores else "cannot tell") for _, r in items
        ]


class Compares(Config):
    def open(self) -> Any:
        return self

    def compare(self, items: Any) -> Any:
        raise AssertionError("nobody asked")


def task(tmp_path: Path, judge: Any, n: int, prompts: Sequence[Prompt]) -> PassAtK:
    write_records(tmp_path / "prompts.jsonl", list(prompts))
    use = read_task(
        {
            "name": "pass_at_k", "data": str(tmp_path / "prompts.jsonl"), "judge": judge,
            "sampling": SamplingParams(n=n).model_dump(),
        }
    )  # fmt: skip
    found: PassAtK = use.task
    return found


def test_every_k_from_the_same_answers_and_the_third_state_apart(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [["right", "wrong", "wrong"], ["wrong", "wrong", "wrong"], ["right", "hm", "CUT"], ["hm"] * 3]

    def said(i: int, j: int) -> Response:
        text = answers[i][j]
        return Response(text=text, token_ids=(5,), finish="length" if text == "CUT" else "stop")

    monkeypatch.setattr(EvalContext, "respond", scripted(said))
    prompts = [*(prompt(i) for i in range(4)), prompt(9, "river " * 600), prompt(0)]
    measured = task(tmp_path, "test_pass_at_k:Says", 3, prompts)
    outcomes = measured.evaluate(context(world / "sft"))
    third = pytest.approx(1 / 3)
    assert [o.metrics for o in outcomes] == [
        {"pass@1": third, "pass@2": pytest.approx(2 / 3), "pass@3": 1.0, "unscored": 0.0},
        {"pass@1": 0.0, "pass@2": 0.0, "pass@3": 0.0, "unscored": 0.0},
        {"pass@1": 1.0, "pass@2": None, "pass@3": None, "unscored": 2.0},
        {"pass@1": None, "pass@2": None, "pass@3": None, "unscored": 3.0},
        {"pass@1": None, "pass@2": None, "pass@3": None, "unscored": 3.0},
    ]
    assert outcomes[2].note == "cannot tell; cut off"
    assert outcomes[4].note == "no room for an answer"
    use = read_task(measured).model_copy(update={"label": "code"})
    summary = summarise([use], {"m": "m"}, {"m": "policy"}, {("m", "code"): outcomes})
    first = next(e for e in summary["estimates"] if e["metric"] == "pass@1")
    assert (first["n"], first["clusters"], first["missing"]) == (3, 3, 2)
    assert first["mean"] == pytest.approx((1 / 3 + 0 + 1) / 3)


def test_judges_that_cannot_say_right_or_wrong_are_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        EvalContext, "respond", scripted(lambda i, j: Response(text="right", token_ids=(5,), finish="stop"))
    )
    half = {"name": "test_pass_at_k:Says", "scale": 0.5}
    with pytest.raises(ConfigError, match=r"gave a score of 0\.5; pass_at_k needs one that says 1"):
        task(tmp_path, half, 1, [prompt(0)]).evaluate(context(world / "sft"))
    with pytest.raises(ConfigError, match="only compares two answers"):
        task(tmp_path, "test_pass_at_k:Compares", 1, [prompt(0)]).evaluate(EvalContext("nowhere"))


def test_programs_that_a_model_wrote(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the prompt's tests to pass@2 through the sandbox."""
    texts = ["```python\ndef f(x):\n    return x + 1\n```", "```python\ndef f(x):\n    return x\n```"]
    monkeypatch.setattr(
        EvalContext, "respond", scripted(lambda i, j: Response(text=texts[j], token_ids=(5,), finish="stop"))
    )
    asked = Prompt(
        provenance=Provenance(id="p"),
        messages=(Message(role="user", content="Write f(x), one more than x."),),
        tags={"test_list": '["assert f(1) == 2", "assert f(-1) == 0"]'},
    )
    judge = {"name": "python_tests", "sandbox": "rlimits"}
    (outcome,) = task(tmp_path, judge, 2, [asked]).evaluate(context(world / "sft"))
    assert outcome.metrics == {"pass@1": 0.5, "pass@2": 1.0, "unscored": 0.0}
    assert "assert f(1) == 2" in outcome.note
