"""The benchmark compares like with like: token ids are known, and posttrain trains on exactly those."""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL: dict[str, Any] = {
    "vocab": 2000,
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "intermediate": 64,
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark module the way its scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def small(bench: Any, tmp_path: Path) -> tuple[Any, Any, Path]:
    workload = bench("workload")
    w = workload.Workload(**SMALL, pairs=12, batch=4, prompt_mean=20, response_mean=10)
    workload.make(tmp_path, w)
    return workload, w, tmp_path


def test_text_of_the_workload_is_its_token_ids(small: tuple[Any, Any, Path]) -> None:
    import json

    from transformers import AutoTokenizer

    workload, w, folder = small
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    for line, (prompt, chosen, rejected) in zip(lines, workload.pairs(w), strict=True):
        row = json.loads(line)
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
        assert asked["input_ids"] == prompt
        for side, ids in (("chosen", chosen), ("rejected", rejected)):
            whole = tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=True)
            assert whole["input_ids"] == prompt + ids


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_our_side_trains_on_the_wanted_batches(small: tuple[Any, Any, Path], bench: Any, method: str) -> None:
    workload, w, folder = small
    args = argparse.Namespace(
        work=folder, method=method, dtype="f32", warmup=1, steps=2, batch=4, lr=1e-4, check=True,
        other_reference=method == "dpo", profile=False,
    )  # fmt: skip
    scratch = folder / "scratch"
    scratch.mkdir()
    result = bench("offline_ours").run(args, scratch)
    assert result["batches"] == [workload.digest(batch) for batch in workload.expected(w, method)]
    assert len(result["step_s"]) == 2
    assert (result["outside_s_per_pair"] > 0) == (method == "dpo")
    if method == "sft":
        assert result["losses"][0] == pytest.approx(math.log(w.vocab), rel=0.05)


def test_model_flops_by_hand(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of 3 prompt, 2 chosen and 1 rejected tokens; hidden 4, one layer, one head, vocabulary 10."""
    matrix_rate, workload = bench("matrix_rate"), bench("workload")
    w = workload.Workload(
        pairs=1, batch=1, vocab=10, hidden=4, layers=1, heads=1, kv_heads=1, intermediate=8, seed=0
    )
    monkeypatch.setattr(matrix_rate, "pairs", lambda _: [([2, 5, 3], [6, 1], [1])])
    layers = 2 * 6 * (4 * (4 * 4) + 3 * (4 * 8))  # q, k, v, o and the three of the MLP, on 6 tokens
    head = 2 * 3 * 10 * 4  # on 3 response tokens
    seen = 6 + (2 * 3 + 3) + (1 * 3 + 1)  # the prompt's triangle, then what each response sees
    attention = 4 * 4 * seen
    assert matrix_rate.products(w, "dpo", 1).total == (layers + head + attention) * 4
    assert matrix_rate.products(w, "reward", 1).total == (layers + attention) * 3


@pytest.fixture
def online(small: tuple[Any, Any, Path], bench: Any) -> tuple[Any, Any, Path, Any]:
    rl_workload = bench("rl_workload")
    _, w, folder = small
    job = rl_workload.Rollouts(prompts=2, samples=3, tokens=8)
    rl_workload.make(folder, w, job, steps=3)
    return rl_workload, w, folder, job


@pytest.mark.parametrize("method", ["grpo", "ppo-separate", "ppo-shared", "ppo-lora"])
def test_our_side_answers_the_wanted_prompts_at_full_length(
    online: tuple[Any, Any, Path, Any], bench: Any, method: str
) -> None:
    rl_workload, w, folder, job = online
    args = argparse.Namespace(
        work=folder, method=method, dtype="f32", warmup=1, steps=2, lr=1e-4, profile=False,
        prompts=2, samples=3, tokens=8,
    )  # fmt: skip
    scratch = folder / "scratch"
    scratch.mkdir()
    result = bench("rl_ours").run(args, scratch)
    asked = rl_workload.prompts(w, job, 3)
    assert result["prompts"] == [rl_workload.digest(asked[i : i + 2]) for i in (0, 2, 4)]
    assert result["answer_tokens"] == 2 * 3 * 8
    names = {"sampling", "scoring", "reference_logps", "rest", "update"}
    for parts, step in zip(result["parts_s"], result["step_s"], strict=True):
        assert parts.keys() == names if method == "grpo" else names | {"policy_logps"}
        assert sum(parts.values()) == pytest.approx(step, abs=0.01)


def test_the_model_of_the_online_methods_never_stops(online: tuple[Any, Any, Path, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rl_workload, w, folder, _ = online
    model = AutoModelForCausalLM.from_pretrained(folder / "talker", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    for prompt, response, _ in rl_workload.given(w, 4, 2):
        ids = torch.tensor([prompt + response[:-1]])
        said = model(ids).logits[0].softmax(-1)
        assert said[:, 1].max() < 1e-6 < plain(ids).logits[0].softmax(-1)[:, 1].min()
        assert said.max() < 20 / w.vocab  # and no other token takes its place


def test_our_losses_are_those_of_the_given_tensors(online: tuple[Any, Any, Path, Any], bench: Any) -> None:
    """Against the definition, from a dense forward of plain transformers: two answers a prompt, with rewards
    a and b, so that their advantages are ±(a - b) / 2 over |a - b| / √2 + 1e-4.
    """
    import torch
    from transformers import AutoModelForCausalLM

    rl_workload, _, folder, _ = online
    ours = bench("rl_losses_ours")
    ours.prepare(argparse.Namespace(work=folder, prompts=3, samples=2))
    rows = rl_workload.read_given(folder / "given.jsonl")
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    total, tokens = 0.0, 0
    for i, row in enumerate(rows):
        gap = (row.reward - rows[i ^ 1].reward) / 2
        advantage = gap / (abs(gap) * math.sqrt(2) + 1e-4)
        with torch.no_grad():
            logits = model(torch.tensor([row.prompt + row.response])).logits[0, len(row.prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(row.response)[:, None])[:, 0]
        ratio = (logps - torch.tensor(row.old)).exp()
        assert ((ratio < 0.8) | (ratio > 1.28)).any()
        total -= torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).sum().item()
        tokens += len(row.response)
    assert ours.run(folder, "dapo", "f32")["loss"] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("zero", [False, True])
def test_our_losses_of_kto_have_the_reference_point_asked_for(
    online: tuple[Any, Any, Path, Any], bench: Any, zero: bool
) -> None:
    """Against equation 8 from a dense forward of plain transformers; z is of each prompt under the answer
    before it, and so far from 0 that the loss tells the two apart.
    """
    import torch
    from transformers import AutoModelForCausalLM

    rl_workload, _, folder, _ = online
    ours = bench("rl_losses_ours")
    ours.prepare(argparse.Namespace(work=folder, prompts=2, samples=2))
    models = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ("policy", "reference")]

    def ratio(prompt: list[int], response: list[int]) -> float:
        with torch.no_grad():
            logits = [m(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] for m in models]
        logps = [x.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item() for x in logits]
        return logps[0] - logps[1]

    name = "kto, reference point 0" if zero else "kto"
    case = bench("rl_cases").CASES[name]
    rows = rl_workload.answers(rl_workload.read_given(folder / "given.jsonl"), case.answer)
    z = sum(ratio(row.prompt, rows[i - 1].response) for i, row in enumerate(rows)) / len(rows)
    assert z > 0.01
    total = 0.0
    for row in rows:
        gain = ratio(row.prompt, row.response) - (0 if zero else z)
        weight = 1.0 if zero else 1.2 if row.reward > 0 else 0.9
        total += weight / (1 + math.exp(0.1 * (gain if row.reward > 0 else -gain)))
    said = ours.run(folder, name, "f32")
    assert said["loss"] == pytest.approx(total / len(rows), rel=1e-6)
    assert ("reference_point" in said) == (not zero)


def test_flops_of_a_rollout_by_hand(bench: Any) -> None:
    """One prompt of 3 tokens, two answers of 2; hidden 4, one layer, one head, vocabulary 10."""
    workload, rl_workload = bench("workload"), bench("rl_workload")
    w = workload.Workload(vocab=10, hidden=4, layers=1, heads=1, kv_heads=1, intermediate=8)
    p = bench("rl_bounds").products(w, rl_workload.Rollouts(1, 2, 2), [3])
    layers = 2 * (3 + 2 * 2) * (4 * (4 * 4) + 3 * (4 * 8))  # q, k, v, o and the three of the MLP
    head = 2 * (2 * 2) * 10 * 4
    seen = (1 + 2 + 3) + 2 * (4 + 5)  # the prompt's triangle, then what each answer's tokens see
    assert sum(p.linear.values()) == layers + head
    assert p.attention == 4 * 4 * seen
