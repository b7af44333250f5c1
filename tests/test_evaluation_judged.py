"""The task that has a judge score what a model says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import context, prompt, small_world  # noqa: F401

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks.judged import Judged
from posttrain.feedback.judge import Verdict
from posttrain.formats import write_records
from posttrain.records import (
    Prompt,
    Response,
)


class Shortest(Config):
    """A judge that likes short answers, and has nothing to say of every second one."""

    pairs: bool = False

    def open(self) -> Any:
        return self if self.pairs else ShortestJudge()

    def compare(self, items: Any) -> Any:
        raise AssertionError("nobody asked")


class ShortestJudge:
    def __init__(self) -> None:
        self.seen: list[tuple[Prompt, Response]] = []

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        self.seen += items
        assert all(response.finish == "stop" for _, response in items)
        return [
            Verdict(None, "no opinion") if i % 2 else Verdict(-float(len(r.text)), "", {"length": 1.0})
            for i, (_, r) in enumerate(items)
        ]


def scripted(said: Callable[[int, int], Response]) -> Callable[..., Any]:
    """Stands in for the model's answers: `said(place of the prompt, number of the sample)`."""

    def respond(
        self: EvalContext, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[tuple[Response, ...]]:
        n = (params or self.sampling).n
        return [tuple(said(i, j) for j in range(n)) for i in range(len(prompts))]

    return respond


def test_judged_answers_keep_the_third_state_apart(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def said(i: int, j: int) -> Response:
        cut = (i, j) == (0, 1)
        return Response(text="x" * (i + 1), token_ids=(5,) * (i + 1), finish="length" if cut else "stop")

    monkeypatch.setattr(EvalContext, "respond", scripted(said))
    prompts = [*(prompt(i) for i in range(4)), prompt(7, "river " * 600), prompt(1)]
    write_records(tmp_path / "prompts.jsonl", prompts)
    task = Judged(
        data=str(tmp_path / "prompts.jsonl"),
        judge="test_evaluation_judged:Shortest",  # type: ignore[arg-type]  # read by the field's validator
        sampling=SamplingParams(n=2),
        group_by="level",
    )
    outcomes = task.evaluate(context(world / "sft"))
    # prompt 1 stands twice and counts once; prompt 7 does not fit; answers asked: (0, 0), (1, 0), (1, 1), …
    assert len(outcomes) == 10
    assert len({o.item for o in outcomes}) == 10
    assert [o.cluster for o in outcomes[::2]] == [o.cluster for o in outcomes[1::2]]
    scores = [(o.metrics["score"], o.note) for o in outcomes]
    assert scores == [
        (-1.0, ""),
        (None, "cut off"),
        (None, "no opinion"),
        (-2.0, ""),
        (None, "no opinion"),
        (-3.0, ""),
        (None, "no opinion"),
        (-4.0, ""),
        (None, "no room for an answer"),
        (None, "no room for an answer"),
    ]
    assert [o.metrics["finished"] for o in outcomes] == [1, 0, 1, 1, 1, 1, 1, 1, None, None]
    assert [o.metrics["tokens"] for o in outcomes][:4] == [1, None, 2, 2]
    assert outcomes[0].metrics["score/length"] == 1
    assert outcomes[1].metrics["score/length"] is None


def test_a_judge_that_only_compares_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EvalContext, "respond", scripted(lambda i, j: Response(text="a", finish="stop")))
    judge = {"name": "test_evaluation_judged:Shortest", "pairs": True}
    task = Judged(data=str(world / "prompts.jsonl"), judge=judge)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only compares two answers"):
        task.evaluate(context(world / "sft"))


def test_a_reward_model_judges_what_a_policy_really_says(world: Path):
    judge = {"name": "reward_model", "model": str(world / "reward"), "precision": "float32", "device": "cpu"}
    sampling = SamplingParams(max_new_tokens=40, temperature=2.0)
    task = Judged(data=str(world / "prompts.jsonl"), judge=judge, sampling=sampling)  # type: ignore[arg-type]
    outcomes = task.evaluate(context(world / "sft"))
    assert len(outcomes) == 4
    for outcome in outcomes:
        assert (outcome.metrics["score"] is None) == (outcome.metrics["finished"] == 0)
    again = task.evaluate(context(world / "sft"))
    assert again == outcomes
