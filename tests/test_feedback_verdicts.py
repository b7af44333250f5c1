"""What every use of a judge checks of its verdicts, and which models a judge holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation_world import context, small_world  # noqa: F401
from tiny import tiny_folder

from posttrain.common.config import Config
from posttrain.common.errors import PosttrainError
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks.judged import Judged
from posttrain.feedback.judge import Verdict, models_of
from posttrain.feedback.judge_use import read_judge
from posttrain.feedback.verdicts import finite, verdicts_of
from posttrain.models.load import load_model
from posttrain.records import Response
from posttrain.training.held import held_models


class Short(Config):
    """Says the same of every response but the last `missing`, of which it says nothing."""

    missing: int = 1
    infinite: bool = False

    def open(self):
        return self

    def score(self, items):
        number = float("inf") if self.infinite else 1.0
        return [Verdict(number, "", {"a": number, "b": 2.0})] * (len(items) - self.missing)


def test_too_few_and_too_many_verdicts_are_an_error():
    for missing, said in ((1, 2), (-1, 4)):
        with pytest.raises(PosttrainError, match=f"^it gave {said} answers to 3 questions; mend the judge$"):
            verdicts_of(Short(missing=missing), [None] * 3, "it")
    assert len(verdicts_of(Short(missing=0), [None] * 3, "it")) == 3


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_finite_number_is_no_answer(number: float):
    told = finite(Verdict(number, "why", {"a": number, "b": 1.0, "c": None}))
    assert told == Verdict(None, "not a finite number", {"a": None, "b": 1.0, "c": None})
    assert finite(Verdict(0.5, "why", {"a": number})) == Verdict(0.5, "why", {"a": None})


def test_the_task_judged_takes_neither(world: Path, monkeypatch: pytest.MonkeyPatch):
    def respond(self, prompts, params=None):
        return [(Response(text="a", finish="stop"),) for _ in prompts]

    monkeypatch.setattr(EvalContext, "respond", respond)

    def outcomes(**settings):
        judge = {"name": "test_feedback_verdicts:Short", **settings}
        return Judged(data=str(world / "prompts.jsonl"), judge=judge).evaluate(context(world / "sft"))

    with pytest.raises(PosttrainError, match="Short' gave 3 answers to 4 questions; mend the judge"):
        outcomes(missing=1)
    found = outcomes(missing=0, infinite=True)
    assert [(o.metrics["score"], o.metrics["score/a"], o.note) for o in found] == [
        (None, None, "not a finite number")
    ] * 4


def test_a_part_of_a_sum_that_says_too_little_is_named():
    judge = read_judge(
        {"name": "weighted_sum", "parts": [{"judge": "test_feedback_verdicts:Short", "name": "lazy"}]}
    ).open()
    with pytest.raises(PosttrainError, match="weighted_sum: part 'lazy' gave 1 answers to 2 questions"):
        judge.score([None] * 2)


def test_every_model_a_judge_holds_is_counted(tmp_path: Path):
    one = tiny_folder("qwen2", tmp_path / "one")
    model = load_model(str(one), dtype=torch.float32, reward_heads=("overall",))
    model.save(tmp_path / "reward")
    folder = str(tmp_path / "reward")
    single = {"name": "reward_model", "model": folder}
    ensemble = {"name": "reward_ensemble", "models": [folder, folder]}
    mixed = {
        "name": "weighted_sum",
        "parts": [{"judge": single}, {"judge": ensemble}, {"judge": "exact_match"}],
    }

    class Source:
        reference = None
        judge = None
        monitor = None

    def held(judge, monitor=None):
        source = Source()
        source.judge = read_judge(judge).open()
        if monitor:
            source.monitor = Source()
            source.monitor.judge = read_judge(monitor).open()
        return held_models(load_model(str(one), dtype=torch.float32), source)

    policy = sum(p.numel() for p in load_model(str(one), dtype=torch.float32).hf.parameters())
    judging = policy + model.reward_head.weight.numel()
    assert held("exact_match") == {"policy": policy}
    assert held(single) == {"policy": policy, "judge": judging}
    assert held(ensemble) == {"policy": policy, "judge 1": judging, "judge 2": judging}
    assert list(held(mixed, single)) == ["policy", "judge 1", "judge 2", "judge 3", "monitor"]
    assert models_of(read_judge({**ensemble, "keep": False}).open()) == []  # loaded for every call
