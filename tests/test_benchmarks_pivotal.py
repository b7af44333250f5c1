"""The benchmark of the pivotal search: both sides make the same rollouts and count what they say alike."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def work(bench: Any, tmp_path: Path) -> Path:
    workload = bench("workload")
    w = workload.Workload(
        vocab=2000, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, pairs=4, prompt_mean=20
    )
    workload.make(tmp_path, w)
    return tmp_path


def test_the_plain_side_makes_the_rollouts_that_the_search_made(bench: Any, work: Path) -> None:
    case, ours, plain = bench("pivotal_case"), bench("pivotal_ours"), bench("pivotal_plain")
    job = case.Job(questions=3, tokens=40, stop_every=20, rollouts=8)
    flags = ["--work", str(work), "--requests", str(work / "r.json"), "--dtype", "f32", "--threads", "1"]
    flags += [x for name, value in asdict(job).items() for x in (f"--{name.replace('_', '-')}", str(value))]
    args = case.parser_of(None).parse_args(flags)
    (work / "state").mkdir()
    done = ours.run(args, work / "state")
    levels = case.read(args.requests)
    assert done["levels"] == [[len(level), sum(r.n for r in level)] for level in levels]
    assert levels[0] == [case.Request(i, [], 8) for i in range(3)]
    assert len(levels) > 3
    args.share = 1.0
    said = plain.run(args)
    assert said["rollouts"] == done["rollouts"] == sum(n for _, n in done["levels"])
    # answers end after 20 tokens in the mean, at most 40 with their prefix
    assert said["tokens"] / said["rollouts"] == pytest.approx(done["tokens"] / done["rollouts"], rel=0.25)
    args.share = 0.25
    quarter = plain.run(args)
    assert quarter["requests"] == round(sum(len(level) for level in levels) / 4)
    assert quarter["share"] == pytest.approx(quarter["rollouts"] / said["rollouts"], abs=1e-4)


def test_the_tokens_that_end_an_answer_are_right_on_both_sides(bench: Any, work: Path) -> None:
    """By a model that ends at once or never: what a batch says behind the end is not read."""
    case, plain = bench("pivotal_case"), bench("pivotal_plain")
    asked = []

    class Model:
        def generate(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
            asked.append((options["num_return_sequences"], options["max_new_tokens"]))
            rows = options["num_return_sequences"]
            said = torch.tensor([[9, 9, 8, 5], [8, 5, 5, 5]] * 3)[:rows]
            return torch.cat([ids.repeat(rows, 1), said], 1)

    found = plain.success(Model(), [4, 4], case.Request(1, [3] * 4, 7), case.Job(tokens=8), {8})
    assert asked == [(5, 4), (2, 4)]
    assert found["tokens"] == 3 * 3 + 2 * 1 + 3 + 1
    assert found["tokens_computed"] == 7 * 4
    answers = [[3] * 4 + [9, 9, 8], [3] * 4 + [8]]
    assert found["right"] == 4 * case.right(1, answers[0]) + 3 * case.right(1, answers[1])


def test_three_tokens_decide(bench: Any) -> None:
    """Question 0: the votes stand at 4, 21 and 42; unreached, those at 4 and 42 are right."""
    right = bench("pivotal_case").right
    answer = [1] * 60
    assert not right(0, answer)
    assert [right(0, [*answer[:at], 2, *answer[at + 1 :]]) for at in (4, 21, 42)] == [False] * 3
    assert right(0, [2 if at in (4, 42) else 1 for at in range(60)])
    assert right(0, [])
    assert not right(0, [1] * 22)
    assert right(0, [1] * 4 + [2] + [1] * 17)
