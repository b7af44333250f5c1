"""The sampling benchmark: both sides write as many tokens, and its bounds count what they say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_both_sides_write_as_many_tokens(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, workload = bench("sampling_side"), bench("workload")
    w = workload.Workload(
        vocab=2000, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, pairs=4, prompt_mean=20
    )
    workload.make(tmp_path, w)
    monkeypatch.setattr(sampling, "WORKLOAD", w)
    job = sampling.Job(prompts=3, samples=2, tokens=5)
    for opened in (sampling.posttrain, sampling.transformers):
        written = opened(tmp_path, torch.float32)(job)
        assert 20 < written <= 30  # random weights rarely say the stop token


def test_work_by_hand(bench: Any) -> None:
    """A prompt of 3 tokens, 2 samples of 3: one prefill, two steps of two rows. Hidden 4, vocabulary 10."""
    sampling, workload = bench("sampling_bounds"), bench("workload")
    w = workload.Workload(vocab=10, hidden=4, layers=1, heads=1, kv_heads=1, intermediate=8)
    work = sampling.work_of(sampling.Job(prompts=1, samples=2, tokens=3), w, [3])
    weights = 4 * (4 * 4) + 3 * (4 * 8)  # q, k, v, o and the three of the MLP
    head = 10 * 4
    assert sum(work.linear.values()) == 2 * (weights * (3 + 4) + head * (1 + 4))
    assert work.attention == 4 * 4 * (6 + 2 * (4 + 5))  # the prompt's triangle; each row sees 4 keys, then 5
    cells = 2 * 3 + 2 * (1 + 2)  # the prompt's in either step; in each row 1 of its own, then 2
    assert work.moved == 3 * (weights + head) + 2 * 4 * cells
