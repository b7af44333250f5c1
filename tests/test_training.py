"""The train step end to end on tiny models: what it writes, that packing cannot change it, that a kill
cannot either.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from kills import kill_proof
from safetensors.torch import load_file
from tiny import tiny_folder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, TrainingError
from posttrain.common.step import StepContext
from posttrain.formats import write_records
from posttrain.records import Comparison, Demonstration, Document, Message, Prompt, Provenance, Response
from posttrain.training.train import STEP, TrainConfig

WORDS = [
    "the",
    "river",
    "runs",
    "past",
    "a",
    "small",
    "town",
    "and",
    "the",
    "people",
    "there",
    "like",
    "to",
    "tell",
    "long",
    "stories",
    "about",
    "it",
]


def prompt(i):
    messages = (Message(role="user", content=f"Say something about number {i % 7}."),)
    return Prompt(messages=messages, provenance=Provenance(id=f"p{i}"))


def text(i, n):
    rng = random.Random(i)
    return " ".join(rng.choice(WORDS) for _ in range(n))


def demonstrations(n=24):
    return [
        Demonstration(
            prompt=prompt(i), response=Response(text=text(i, 3 + i % 9)), provenance=Provenance(id=f"d{i}")
        )
        for i in range(n)
    ]


def comparisons(n=24):
    return [
        Comparison(
            prompt=prompt(i),
            chosen=Response(text="yes " + text(i, 2 + i % 5)),
            rejected=Response(text="no " + text(i + 1000, 4 + i % 3)),
            strength=1.0,
            provenance=Provenance(id=f"c{i}"),
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model folder and rows of each kind."""
    folder = tmp_path_factory.mktemp("home")
    tiny_folder("qwen2", folder / "base")
    write_records(folder / "demos.jsonl", demonstrations())
    write_records(folder / "pairs.jsonl", comparisons())
    long = Demonstration(
        prompt=prompt(0), response=Response(text=text(0, 400)), provenance=Provenance(id="long")
    )
    write_records(folder / "long.jsonl", [long])
    documents = [Document(text=text(i, 60), provenance=Provenance(id=f"t{i}")) for i in range(8)]
    write_records(folder / "texts.jsonl", documents)
    return folder


def train(home, out, method, data, **fields):
    given = {
        "model": str(home / "base"),
        "method": method,
        "data": str(home / data),
        "precision": "float32",
        **fields,
    }
    cfg = parse(TrainConfig, given, "test")
    return STEP.run(cfg, StepContext(out, out / "state", "test"))


def metrics(out, split="train"):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


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


def test_held_out_rows_that_cannot_be_measured_are_refused(home, tmp_path):
    with pytest.raises(DataError, match="no row that could be measured"):
        train(
            home, tmp_path, {"name": "sft"}, "demos.jsonl", heldout=str(home / "long.jsonl"), max_length=200,
            max_rejected=1.0, steps=1,
        )  # fmt: skip


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


def test_no_state_of_another_machine_is_needed(home, tmp_path):
    """A damaged checkpoint is named, not guessed around."""
    (tmp_path / "state").mkdir(parents=True)
    Path(tmp_path / "state/checkpoint.pt").write_bytes(b"half a file")
    from posttrain.common.errors import StoreError

    with pytest.raises(StoreError, match=r"checkpoint.pt cannot be read.*delete it"):
        train(home, tmp_path, {"name": "sft"}, "demos.jsonl", steps=1)
