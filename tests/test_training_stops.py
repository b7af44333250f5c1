"""Training that stops: on what it cannot use, where it diverges, and cut off in the middle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from kills import kill_proof, stumbling
from training_home import tiny_home, train  # noqa: F401

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, TrainingError
from posttrain.training.train import TrainConfig


def test_held_out_rows_that_cannot_be_measured_are_refused(home, tmp_path):
    with pytest.raises(DataError, match="no row that could be measured"):
        train(
            home, tmp_path, {"name": "sft"}, "demos.jsonl", heldout=str(home / "long.jsonl"), max_length=200,
            max_rejected=1.0, steps=1,
        )  # fmt: skip


def test_a_diverging_run_stops_with_its_batch(home, tmp_path):
    with pytest.raises(TrainingError, match=r"(diverges|is (nan|inf)).*rows.*bad_batch.json") as caught:
        train(
            home, tmp_path, {"name": "sft"}, "demos.jsonl", epochs=200,
            optimizer={"lr": 30.0, "clip": 0, "warmup": 0.2},
        )  # fmt: skip
    saved = json.loads((tmp_path / "bad_batch.json").read_text())
    assert saved["rows"]
    assert saved["rows"][0]["row"] in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_plan_goes_on_where_it_was():
    from posttrain.training.offline import Plan

    for plan in (Plan((1,) * 23, seed=3, rows=5), Plan(tuple(range(1, 24)), seed=3, rows=5, tokens=40)):
        every = list(plan.batches(0, 40))
        assert len(every) == 40
        assert all(list(plan.batches(start, start + 3)) == every[start : start + 3] for start in range(37))


def test_a_nan_stops_before_the_weights_are_touched(home, tmp_path, monkeypatch):
    from posttrain.training.methods import sft
    from posttrain.training.methods.base import Loss

    real, calls = sft.loss, []

    def poisoned(cfg, out, batch):
        calls.append(1)
        result = real(cfg, out, batch)
        return Loss(result.items * (float("nan") if len(calls) == 3 else 1), result.weights)

    monkeypatch.setitem(
        __import__("posttrain.training.methods", fromlist=["METHODS"]).METHODS,
        "sft",
        dataclasses.replace(sft.METHOD, loss=poisoned),
    )
    with pytest.raises(TrainingError, match="the loss is nan at step 3"):
        train(home, tmp_path, {"name": "sft"}, "demos.jsonl", steps=9)


def test_rows_that_do_not_fit_are_rejected_and_counted(home, tmp_path):
    with pytest.raises(DataError, match="max_rejected"):
        train(home, tmp_path / "a", {"name": "sft"}, "demos.jsonl", max_length=60)
    summary = train(
        home, tmp_path / "b", {"name": "sft"}, "demos.jsonl", max_length=60, max_rejected=0.9, steps=1
    )
    lines = [json.loads(line) for line in (tmp_path / "b/rejected.jsonl").read_text().splitlines()]
    assert len(lines) == summary["rows"]["rejected"] > 0
    assert "longer than 60 tokens" in lines[0]["reason"]
    assert summary["rows"]["kept"] + summary["rows"]["rejected"] == 24


def test_configs_that_do_not_hold_together_are_refused():
    base = {"model": "m", "data": "d"}
    with pytest.raises(ConfigError, match="needs heldout"):
        parse(TrainConfig, {**base, "method": {"name": "sft"}, "early_stopping": 2}, "x")
    with pytest.raises(ConfigError, match="uses none"):
        parse(TrainConfig, {**base, "method": {"name": "sft"}, "reference": "r"}, "x")
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer.lrr' \(did you mean 'lr'"):
        parse(TrainConfig, {**base, "method": {"name": "sft"}, "optimizer": {"lrr": 1}}, "x")
    assert parse(TrainConfig, {**base, "method": {"name": "dpo"}}, "x").optimizer.lr == 1e-6


def test_killed_training_continues_to_the_same_bits(home, tmp_path):
    fields = {
        "method": {"name": "dpo"},
        "model": str(home / "base"),
        "data": str(home / "pairs.jsonl"),
        "epochs": 60,
        "heldout": 0.2,
        "evaluate_every": 20,
    }
    assert kill_proof(tmp_path, fields, kills=3, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_many_times(home, tmp_path, seed):
    methods = [("sft", "demos.jsonl"), ("reward", "pairs.jsonl"), ("dpo", "pairs.jsonl")]
    name, data = methods[seed % 3]
    fields = {
        "method": {"name": name},
        "model": str(home / "base"),
        "data": str(home / data),
        "epochs": 100,
        "precision": ["bfloat16", "float32"][seed % 2],
    }
    if seed % 2:
        fields["model"] = {"path": str(home / "base"), "lora": {"rank": 4, "dropout": 0.2}}
    assert kill_proof(tmp_path, fields, kills=10, seed=seed) >= 3


def test_a_run_goes_on_with_as_many_threads_or_says_so(home, tmp_path, monkeypatch):
    """Sums of other parts round otherwise: torch.arange(3e6).sqrt().sum() by one thread and by two, say."""
    began = torch.get_num_threads()

    def run():
        return train(home, tmp_path, {"name": "sft"}, "demos.jsonl", steps=8, checkpoint_seconds=1e-9)

    def interrupted():
        try:
            return run()
        finally:
            torch.set_num_threads(began + 1)

    with pytest.raises(
        TrainingError, match=rf"'threads': {began}}}.*'threads': {began + 1}}}.*OMP_NUM_THREADS"
    ):
        stumbling(monkeypatch, interrupted)
    torch.set_num_threads(began)
    assert stumbling(monkeypatch, run)["steps"] == 8


def test_no_state_of_another_machine_is_needed(home, tmp_path):
    """A damaged checkpoint is named, not guessed around."""
    (tmp_path / "state").mkdir(parents=True)
    Path(tmp_path / "state/checkpoint.pt").write_bytes(b"half a file")
    from posttrain.common.errors import StoreError

    with pytest.raises(StoreError, match=r"checkpoint.pt cannot be read.*delete it"):
        train(home, tmp_path, {"name": "sft"}, "demos.jsonl", steps=1)
