"""The train step end to end on tiny models: what it learns and writes, and that packing cannot change it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from kills import metrics
from safetensors.torch import load_file
from tiny import tiny_folder
from training_home import comparisons, demonstrations, tiny_home, train  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.formats import write_records
from posttrain.training.train import STEP, TrainConfig


@pytest.mark.parametrize(
    ("method", "data"),
    [("pretrain", "texts.jsonl"), ("sft", "demos.jsonl"), ("reward", "pairs.jsonl"), ("dpo", "pairs.jsonl")],
)
def test_every_method_learns_its_data(home, tmp_path, method, data):
    summary = train(
        home,
        tmp_path,
        {"name": method},
        data,
        epochs=24 if method == "pretrain" else 6,
        heldout=str(home / data),
        optimizer={"lr": 3e-3},
    )
    assert summary["heldout_after"]["loss"] < 0.8 * summary["heldout_before"]["loss"]
    first, last = metrics(tmp_path)[0], metrics(tmp_path)[-1]
    assert last["loss"] < first["loss"]
    assert {"gradient_norm", "lr", "tokens_per_second", "memory_mb"} <= last.keys()
    if method in ("dpo", "reward"):
        assert summary["heldout_after"]["accuracy"] == 1.0
        assert last["reward_margin"] > 0
    if method == "dpo":
        assert first["loss"] == pytest.approx(
            0.6931, abs=1e-4
        )  # the policy is its own reference before a step
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert last["kl"] > 0
    loader = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    loaded = loader.from_pretrained(tmp_path / "model")
    assert loaded.config.vocab_size == 384


def test_packing_and_micro_batches_cannot_change_the_loss(home, tmp_path):
    """The same run in forests of one row and of a whole batch: the same numbers, so nothing is averaged
    twice.
    """
    for method, data in (("sft", "demos.jsonl"), ("dpo", "pairs.jsonl")):
        for tokens in (1, 100_000):
            out = tmp_path / f"{method}{tokens}"
            train(home, out, {"name": method}, data, steps=6, optimizer={"lr": 1e-3}, micro_tokens=tokens)
        one, whole = metrics(tmp_path / f"{method}1"), metrics(tmp_path / f"{method}100000")
        for a, b in zip(one, whole, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=2e-3)


def test_one_step_is_plain_adamw_on_the_dense_loss(home, tmp_path):
    """The whole step against transformers and torch alone: mean over all supervised tokens of the batch."""
    train(
        home, tmp_path, {"name": "sft"}, "demos.jsonl", steps=1, batch_size=4, seed=5,
        optimizer={"lr": 1e-3, "warmup": 0, "clip": 0, "schedule": "constant"},
    )  # fmt: skip
    from posttrain.models.load import load_model
    from posttrain.training.offline import Plan

    rows = demonstrations()
    model = load_model(str(home / "base"), dtype=torch.float32)
    encoded = model.template.conversations([(r.prompt, r.response) for r in rows])
    chosen = next(Plan(tuple([1] * len(rows)), seed=5, rows=4).batches(0, 1))
    plain = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    losses = []
    for i in chosen:
        ids, mask = torch.tensor([encoded[i].tokens]), torch.tensor(encoded[i].mask)
        logq = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses.append(-logq.gather(1, ids[0, 1:, None]).squeeze(1)[mask[1:]])
    torch.cat(losses).mean().backward()
    torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0).step()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    for (name, a), (_, b) in zip(trained.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_reference_log_probs_are_computed_once(home, tmp_path):
    """A change of beta or loss finds them again; new rows are appended; other weights do not hit."""
    cache = tmp_path / "cache"

    def run(name, **fields):
        given = {
            "model": str(home / "base"), "data": str(home / "pairs.jsonl"), "steps": 2, "precision":
            "float32", **fields
        }  # fmt: skip
        cfg = parse(TrainConfig, given, "test")
        return STEP.run(cfg, StepContext(tmp_path / name, tmp_path / name / "state", "test", cache))[
            "reference"
        ]

    assert run("a", method={"name": "dpo"}) == {"computed": 24, "found": 0}
    assert run("b", method={"name": "dpo", "beta": 0.5, "loss": "hinge"}) == {"computed": 0, "found": 24}
    write_records(tmp_path / "more.jsonl", comparisons(30))
    assert run("c", method={"name": "dpo"}, data=str(tmp_path / "more.jsonl")) == {"computed": 6, "found": 24}
    assert run("d", method={"name": "dpo"}, precision="bfloat16")["computed"] == 24
    assert run("e", method={"name": "dpo"}, model=str(tmp_path / "a/model"))["computed"] == 24
    shutil.copytree(home / "base", tmp_path / "turned")
    config = json.loads((tmp_path / "turned/config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 10  # the same weights, other log-probs
    (tmp_path / "turned/config.json").write_text(json.dumps(config))
    assert run("f", method={"name": "dpo"}, model=str(tmp_path / "turned"))["computed"] == 24


def test_another_reference_is_really_used(home, tmp_path):
    tiny_folder("qwen2", tmp_path / "other", seed=9)
    train(home, tmp_path / "run", {"name": "dpo"}, "pairs.jsonl", steps=1, reference=str(tmp_path / "other"))
    assert abs(metrics(tmp_path / "run")[0]["loss"] - 0.6931) > 1e-3


def test_early_stopping_keeps_the_best_weights(home, tmp_path):
    """Training on noise at a high rate overfits; what is saved is the best step's, not the last's."""
    fields = {
        "heldout": 0.3,
        "evaluate_every": 2,
        "early_stopping": 3,
        "optimizer": {"lr": 1e-2, "schedule": "constant"},
    }
    summary = train(home, tmp_path, {"name": "sft"}, "demos.jsonl", epochs=60, **fields)
    held = metrics(tmp_path, "heldout")
    best = min(held, key=lambda line: line["loss"])
    assert summary["best_step"] == best["step"] < summary["steps"] < 180
    again = train(
        home,
        tmp_path / "again",
        {"name": "sft"},
        "demos.jsonl",
        heldout=0.3,
        steps=1,
        model=str(tmp_path / "model"),
    )
    assert again["heldout_before"]["loss"] == pytest.approx(best["loss"], rel=1e-3)
    assert summary["heldout_after"]["loss"] == best["loss"]


def test_ema_is_what_is_saved(home, tmp_path):
    fields = {"steps": 5, "optimizer": {"lr": 1e-3, "ema": 0.5}}
    train(home, tmp_path / "ema", {"name": "sft"}, "demos.jsonl", **fields)
    train(home, tmp_path / "last", {"name": "sft"}, "demos.jsonl", steps=5, optimizer={"lr": 1e-3})
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("ema", "last"))
    gaps = [(a[k].float() - b[k].float()).abs().max().item() for k in a]
    assert 0 < max(gaps) < 0.01


def test_held_out_loss_is_that_of_what_is_saved(home, tmp_path):
    """With a slow moving average the saved weights are far from the last ones."""
    fields = {"steps": 6, "heldout": 0.3, "optimizer": {"lr": 1e-2, "ema": 0.9}}
    told = train(home, tmp_path / "run", {"name": "sft"}, "demos.jsonl", **fields)
    again = train(
        home, tmp_path / "again", {"name": "sft"}, "demos.jsonl", heldout=0.3, steps=1,
        model=str(tmp_path / "run/model"),
    )  # fmt: skip
    assert told["heldout_after"]["loss"] == pytest.approx(again["heldout_before"]["loss"], rel=1e-5)


def test_reward_heads_compute_in_float32_beside_a_bf16_trunk(home, tmp_path, monkeypatch):
    from posttrain.training import fit

    seen = []

    def spy(model, forest, needs, temperature, inner=fit.forward):
        seen.append((model.reward_head.weight.dtype, next(model.hf.parameters()).dtype))
        return inner(model, forest, needs, temperature)

    monkeypatch.setattr(fit, "forward", spy)
    train(home, tmp_path, {"name": "reward"}, "pairs.jsonl", steps=1, precision="bfloat16")
    assert set(seen) == {(torch.float32, torch.bfloat16)}


def test_the_moving_average_is_shown_and_put_away():
    """`Optimizer.averaged` shows the average and puts back what was there."""
    from posttrain.training.optim import Optimizer
    from posttrain.training.schedule import OptimizerConfig

    for dtype in (torch.float32, torch.bfloat16):
        p = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = Optimizer([p], OptimizerConfig(ema=0.5), 0.1, dtype)
        (p.float() ** 2).sum().backward()
        optimizer.step(1.0, 1.0)
        last = p.detach().clone()
        with optimizer.averaged():
            assert torch.equal(p, optimizer.ema[0].to(dtype))
            assert not torch.equal(p, last)
        assert torch.equal(p, last)


def test_lora_trains_only_its_adapter_and_saves_merged(home, tmp_path):
    model = {"path": str(home / "base"), "lora": {"rank": 4}}
    summary = train(
        home, tmp_path, {"name": "dpo"}, "pairs.jsonl", model=model, epochs=4, optimizer={"lr": 3e-3}
    )
    assert summary["trained_parameters"] < 0.5 * summary["parameters"]
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert metrics(tmp_path)[-1]["loss"] < 0.6
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(home / "base")
    moved = {
        n
        for (n, a), b in zip(merged.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved
    assert not any("norm" in name or "embed" in name for name in moved)
    assert (tmp_path / "model/adapter/adapter_model.safetensors").exists()


def test_tensorboard_gets_the_metrics(home, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(home, tmp_path, {"name": "sft"}, "demos.jsonl", steps=3, log=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(
        [m["loss"] for m in metrics(tmp_path)]
    )
