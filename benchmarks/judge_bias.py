"""What a judge's errors do to labels, and what two orders and a calibration undo: the oracle as an LLM judge
with noise and position bias of chosen size, on pairs of answers of which one is known to be better. JSON.

    python benchmarks/judge_bias.py --pairs 300
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.common.step import StepContext
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.formats import read_records, write_records
from posttrain.playground.sources import Comparisons
from posttrain.records import Comparison, Samples, prompt_key, row_id

NOISE = 1.0
AREAS = {"arithmetic": 1.0, "atlas": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        json.dump(
            {"pairs": given.pairs, "noise": NOISE, "runs": list(runs(Path(folder), given.pairs))},
            sys.stdout,
            indent=2,
        )


def runs(home: Path, n: int) -> Iterator[dict[str, Any]]:
    """Each size of the bias in one order, in both that agree, as soft labels, and as calibrated ones."""
    drawn = Comparisons(n=2 * n, areas=AREAS).rows()
    pairs = list({prompt_key(row.prompt): row for row in drawn}.values())[:n]  # one pair a prompt
    truth = {row_id(row.chosen.text, row.rejected.text, row.prompt.text) for row in pairs}
    write_records(home / "pairs.jsonl", samples(pairs))
    write_records(home / "labelled.jsonl", Comparisons(n=n, draw=1, areas=AREAS).rows())
    ways: dict[str, dict[str, Any]] = {
        "one order": {"orders": 1},
        "both orders agree": {},
        "soft": {"both_agree": False, "repeats": 3, "temperature": 1.0},
        "soft, calibrated": {"both_agree": False, "repeats": 3, "temperature": 1.0, "calibrate": True},
    }
    for bias in (0.0, 1.0, 2.0):
        for name, way in ways.items():
            yield {"bias": bias, "way": name, **judged(home, bias, dict(way), truth)}


def samples(pairs: Sequence[Comparison]) -> Iterator[Samples]:
    """The two answers of each pair, in every other one the better first."""
    for i, row in enumerate(pairs):
        sides = (row.chosen, row.rejected) if i % 2 else (row.rejected, row.chosen)
        yield Samples(provenance=row.provenance, prompt=row.prompt, responses=sides)


def judged(home: Path, bias: float, way: dict[str, Any], truth: set[str]) -> dict[str, Any]:
    calibrate = {"calibrate": str(home / "labelled.jsonl")} if way.pop("calibrate", False) else {}
    judge = {"name": "playground/llm_judge", "ask": "compare", **way}
    judge["errors"] = {"noise": NOISE, "position_bias": bias}
    cfg = JudgeConfig.model_validate(
        {"data": str(home / "pairs.jsonl"), "judge": judge, "pairs": "all", **calibrate}
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        summary = STEP.run(cfg, StepContext(out, out / "state", "judge", home / "cache"))
        rows = read_records(out, Comparison)
    right = [row_id(row.chosen.text, row.rejected.text, row.prompt.text) in truth for row in rows]
    sure = [1.0 if row.probability is None else row.probability for row in rows]
    position = summary.get("position", {})
    return {
        "rows": len(rows),
        "right": round(sum(right) / len(rows), 3),
        "said": round(sum(sure) / len(rows), 3),
        "brier": round(sum((p - r) ** 2 for p, r in zip(sure, right, strict=True)) / len(rows), 3),
        "flip_rate": position.get("flip_rate"),
        "first_wins": position.get("first_wins"),
    }


if __name__ == "__main__":
    main()
