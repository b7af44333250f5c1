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
    result = bench("ours_side").run(args, scratch)
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
