"""What a rollout is: which prompts it asks, what of it is counted, and what stands in the metrics."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from judges import Evens
from kills import metrics
from online_home import online_home
from safetensors.torch import load_file
from tiny import tiny_folder, tiny_tokenizer

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, TrainingError
from posttrain.common.step import StepContext
from posttrain.feedback.judge import Verdict
from posttrain.training.train import STEP, TrainConfig

GRPO = {"name": "grpo"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    online_home(folder, "Say number {}.", 9)
    return folder


def config(home: Path, method: dict[str, Any], online: dict[str, Any], **others: Any) -> TrainConfig:
    asked = {
        "prompts": str(home / "prompts.jsonl"), "judge": "judges:Evens", "n": 4, "max_new_tokens": 5,
        "truncated": "judge", **online,
    }  # fmt: skip
    given = {
        "model": str(home / "base"),
        "method": method,
        "online": asked,
        "batch_size": 4,
        "precision": "float32",
    }
    return parse(TrainConfig, {**given, "optimizer": {"lr": 3e-3}, **others}, "test")


def train(
    home: Path, out: Path, method: dict[str, Any], online: dict[str, Any], **others: Any
) -> dict[str, Any]:
    return STEP.run(config(home, method, online, **others), StepContext(out, out / "state", "test"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/model.safetensors")


def test_every_rollout_asks_as_many_prompts_and_each_comes_as_often(home, tmp_path):
    settings = {"rollout_prompts": 6, "keep_samples": 24}
    summary = train(home, tmp_path, GRPO, settings, batch_size=2, epochs=2)
    samples = lines(tmp_path / "samples.jsonl")
    assert Counter(s["rollout"] for s in samples) == {1: 6, 2: 6, 3: 6}
    assert set(Counter(s["prompt"] for s in samples).values()) == {2}  # 18 places: two passes over 9
    assert summary["online"]["rollouts"] == 3
    assert summary["online"]["too_few"] == 0
    assert summary["steps"] == 9
    assert [line["rollout"] for line in metrics(tmp_path)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
def test_the_kl_of_the_metrics_is_that_of_the_answers(home, tmp_path, method):
    """Not the loss's own, which is another quantity: nats a token on the rows, or KTO's reference point."""
    train(home, tmp_path, {"name": method}, {"monitor": {"judge": "judges:Odds"}}, epochs=2)
    watched = {line["rollout"]: line["kl"] for line in lines(tmp_path / "monitor.jsonl")}
    logged = {line["rollout"]: line["kl"] for line in metrics(tmp_path)}
    assert watched == logged
    assert len(set(logged.values())) > 2


def test_the_mismatch_of_sampler_and_trainer_is_logged_by_default(home, tmp_path):
    train(home, tmp_path, GRPO, {})
    assert all(0 <= line["sampler_mismatch"] < 1e-5 for line in metrics(tmp_path))


def test_groups_that_teach_nothing_are_counted_and_teach_nothing(home, tmp_path):
    """All rewards are 0.1, whose mean is not 0.1 in float32."""
    before = load_file(home / "base/model.safetensors")
    price = {"judge": "judges:Mute", "truncated": 0.1, "n": 7, "max_new_tokens": 2}
    for name in ("grpo", "rloo"):
        out = tmp_path / name
        summary = train(home, out, {"name": name, "kl": 0}, price)
        assert summary["online"]["alike"] == summary["online"]["rollouts"] * 4
        after = weights(out)
        assert all(torch.equal(before[k], after[k]) for k in after)


def test_a_cut_off_answer_is_judged_as_if_it_ended_less_a_penalty(home, tmp_path):
    """`pattern` gives no score to an answer that says it was cut off; everything matches this one."""
    judge = {"name": "pattern", "pattern": "(?s).*"}
    for name, penalty in (("free", 0.0), ("dear", 0.75)):
        settings = {"judge": judge, "end_penalty": penalty, "max_new_tokens": 2}
        summary = train(home, tmp_path / name, {"name": "grpo", "kl": 0}, settings)
        assert summary["online"].get("no_answer", 0) == 0
    free, dear = (metrics(tmp_path / name)[0] for name in ("free", "dear"))
    assert free["reward"] == 1.0
    assert dear["reward"] == pytest.approx(1 - 0.75 * dear["truncated"])
    assert dear["truncated"] > 0.5


class Wordy(Evens):
    """Says of every answer something else, and gives a score to the first of each ten alone."""

    def score(self, items):
        given = enumerate(super().score(items))
        return [v if i % 10 == 0 else Verdict(None, f"cannot read {i}") for i, v in given]


def test_reasons_that_are_all_different_do_not_fill_the_memory(home, tmp_path):
    settings = {"judge": f"{__name__}:Wordy", "n": 20}
    counts = train(home, tmp_path, {"name": "grpo", "kl": 0}, settings)["online"]
    reasons = {name: count for name, count in counts.items() if name.startswith("why: ")}
    assert len(reasons) == 51
    assert reasons["why: others"] > 0
    assert sum(reasons.values()) == counts["no_answer"] == counts["answers"] * 9 / 10


def test_a_stop_string_ends_answers(home, tmp_path):
    train(home, tmp_path, GRPO, {"stop": ["e"], "keep_samples": 100, "max_new_tokens": 40})
    samples = lines(tmp_path / "samples.jsonl")
    assert not any("e" in s["response"] for s in samples)
    assert any(s["finish"] == "stop" for s in samples)


def test_prompts_that_repeat_are_counted_and_those_without_room_rejected_where_they_stand(home, tmp_path):
    rows = (home / "prompts.jsonl").read_text().splitlines()
    long = json.loads(rows[0])
    long["messages"][0]["content"] = "number " * 60
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join([*rows, rows[0], rows[1], json.dumps(long)]) + "\n")
    given = {"prompts": str(path), "max_new_tokens": 5}
    out = tmp_path / "out"
    summary = train(home, out, GRPO, given, max_length=60, max_rejected=0.5)
    assert summary["online"]["repeated_prompts"] == 2
    assert summary["rows"]["kept"] == 9
    (rejected,) = lines(out / "rejected.jsonl")
    assert "no room for an answer" in rejected["reason"]
    with pytest.raises(DataError, match="no prompt to answer"):
        train(home, tmp_path / "none", GRPO, {**given, "max_new_tokens": 59}, max_length=60, max_rejected=1)


def test_prompts_of_another_format_are_counted_once(home, tmp_path):
    """Rows that have no ids of their own: a prompt is the same wherever it stands."""
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i % 6}."}) + "\n" for i in range(8)))
    summary = train(home, tmp_path / "out", GRPO, {"prompts": str(path)})
    assert summary["rows"]["kept"] == 6
    assert summary["online"]["repeated_prompts"] == 2


def test_a_mix_may_not_lose_more_rows_than_allowed(home, tmp_path):
    rows = [{"prompt": f"Say {i}.", "completion": "word " * (1 if i < 2 else 200)} for i in range(6)]
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix = {"mix": {"data": str(path), "method": "sft"}}
    with pytest.raises(DataError, match="longer than"):
        train(home, tmp_path / "out", GRPO, mix, max_length=60)
    summary = train(home, tmp_path / "allowed", GRPO, mix, max_length=60, max_rejected=0.5)
    assert (summary["rows"]["kept"], summary["rows"]["rejected"]) == (9 + 2, 4)


def test_a_warm_up_leaves_the_policy_alone_whatever_decays(home, tmp_path):
    method = {"name": "ppo", "critic": str(home / "base"), "critic_warmup": 100}
    train(home, tmp_path, method, {}, optimizer={"lr": 3e-3, "weight_decay": 0.5})
    before, after = load_file(home / "base/model.safetensors"), weights(tmp_path)
    assert all(torch.equal(before[k], after[k]) for k in after)
    assert "value_clipped" in metrics(tmp_path)[0]


def test_a_run_goes_on_only_with_what_it_sampled_and_judged_with(home, tmp_path, monkeypatch):
    from posttrain.training.optim import Optimizer

    step, count = Optimizer.step, [0]

    def stop(self: Optimizer, *args: Any) -> float:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Optimizer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(home, tmp_path, GRPO, {}, epochs=3, checkpoint_seconds=1e-9)
    with pytest.raises(TrainingError, match=r"online\.batch_tokens.*40"):
        train(home, tmp_path, GRPO, {"batch_tokens": 40}, epochs=3, checkpoint_seconds=1e-9)
    train(home, tmp_path, GRPO, {}, epochs=3, checkpoint_seconds=1e-9)


def test_models_that_number_their_tokens_otherwise_are_refused(home, tmp_path):
    tiny_folder("qwen2", tmp_path / "other", tokenizer=tiny_tokenizer(vocab_size=330))
    for method, others in (
        (GRPO, {"reference": str(tmp_path / "other")}),
        ({"name": "ppo", "critic": str(tmp_path / "other")}, {}),
    ):
        with pytest.raises(ConfigError, match="a token of one is none of the other's"):
            train(home, tmp_path / "out", method, {}, **others)


def test_weights_that_are_no_numbers_are_not_saved(home, tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        train(home, tmp_path, GRPO, {}, steps=1, optimizer={"lr": 1e38, "warmup": 0})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("method", "online", "said"),
    [
        ({"name": "kto", "good_above": 0.5}, {}, r"method\.good_above: kto on sampled answers"),
        ({"name": "kto", "aspect": "safety"}, {}, r"method\.aspect"),
        ({"name": "dpo", "soft_labels": True}, {}, r"method\.soft_labels"),
        ({"name": "rloo", "kl_estimate": "k2"}, {}, "kl_estimate is of the KL in the loss"),
        ({"name": "ppo", "kl_horizon": 7}, {}, "give that, too"),
        ({"name": "ppo", "kl_target": 6.0, "kl_horizon": 3}, {}, "kl would fall to 0"),
        (GRPO, {"rollout_prompts": 2}, "fewer than one update learns from"),
        (GRPO, {"truncated": True}, "a reward, judge or null, not true"),
        (GRPO, {"end_penalty": 1.0, "truncated": None}, "needs `truncated: judge`"),
        (GRPO, {"stop": [""]}, "an empty stop string"),
    ],
)
def test_settings_that_nothing_would_read_or_that_cannot_be_are_refused(home, method, online, said):
    with pytest.raises(ConfigError, match=said):
        config(home, method, online)
