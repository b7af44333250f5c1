"""The parts of the benchmark on sft, dpo and the reward model: speed and memory against TRL, agreement of
losses, and where the time goes.

Imported by the process of `run.py`; each run is a process of its own (`offline_ours.py`, `offline_trl.py`).
"""

from __future__ import annotations

import json
from typing import Any

import workload
from bench import TOLERANCE, Bench, by_turns, each, ratio, say

SCRIPTS = {"posttrain": "offline_ours.py", "trl": "offline_trl.py"}
SIDES = tuple(SCRIPTS)
CHECKED_STEPS = 3


def speed(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs of each method, between two measurements of the machine's matrix rate."""
    rates = [matrix_rates(bench)]
    found = {method: measure(bench, method) for method in methods}
    rates.append(matrix_rates(bench))
    return {"speed": found, "matrix_rate": shares(bench, rates, found)}


def measure(bench: Bench, method: str) -> dict[str, Any]:
    """Pairs of speed runs of one method, and their ratios."""

    def run(side: str) -> dict[str, Any]:
        return summary(bench.run(side, SCRIPTS[side], method=method, warmup=bench.warmup, steps=bench.steps))

    rounds = by_turns(bench, method, SIDES, run, lambda done: f"{done['pairs_per_s']:.2f} pairs/s")
    return {
        "speed_ratio": ratio(rounds, "pairs_per_s", "posttrain", "trl"),
        "cpu_time_ratio": ratio(rounds, "cpu_s_per_pair", "trl", "posttrain"),
        "memory_ratio": ratio(rounds, "peak_memory_mib", "posttrain", "trl"),
        "pairs_per_s": each(rounds, "pairs_per_s", SIDES),
        "peak_memory_mib": each(rounds, "peak_memory_mib", SIDES),
        "rounds": rounds,
    }


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """What a run comes to. Work done once outside the steps (the reference) is charged to the pairs it
    served.
    """
    pairs = workload.Workload.batch * len(run["step_s"])
    seconds = sum(run["step_s"]) + run["outside_s_per_pair"] * pairs
    cpu = sum(run["step_cpu_s"]) + run["outside_cpu_s_per_pair"] * pairs
    return {
        "pairs_per_s": round(pairs / seconds, 4),
        "cpu_s_per_pair": round(cpu / pairs, 4),
        "peak_memory_mib": round(run["process_peak_rss_mib"], 1),
        "peak_memory_of_steps_mib": round(run["peak_rss_mib"], 1),
        "step_s": [round(s, 3) for s in run["step_s"]],
        "outside_s_per_pair": round(run["outside_s_per_pair"], 4),
        "losses": run["losses"],
    }


def matrix_rates(bench: Bench) -> dict[str, Any]:
    """bf16 rates, measured in a process of their own like everything else."""
    batches = bench.warmup + bench.steps
    said = bench.output("posttrain", "matrix_rate.py", threads=bench.threads, batches=batches)
    return json.loads(said)["bf16"]


def shares(bench: Bench, rates: list[dict[str, Any]], found: dict[str, Any]) -> dict[str, Any]:
    """How near each side comes to the machine's own matrix rate: seconds of bare products over seconds
    taken.
    """
    steps = {}
    for method, result in found.items():
        alone = min(rate["steps"][method]["ideal_s"] for rate in rates)
        gflop = rates[0]["steps"][method]["model_gflop"]
        taken = {side: bench.workload.batch / result["pairs_per_s"][side]["median"] for side in SIDES}
        steps[method] = {
            "model_gflop": gflop,
            "products_alone_s": round(alone, 3),
            "products_alone_gflop_per_s": round(gflop / alone, 1),
            "step_s": {side: round(taken[side], 3) for side in SIDES},
            "share_of_matrix_rate": {side: round(alone / taken[side], 3) for side in SIDES},
        }
    return {"steps": steps, "before": rates[0]["rates"], "after": rates[1]["rates"]}


def agreement(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Losses of both sides on the same batches from the same weights, and whether the tokens were the same.

    The first loss is before any update. DPO runs against a reference that is not the policy, else its first
    loss would be ln 2 whatever is computed.
    """
    found: dict[str, Any] = {}
    for method in methods:
        wanted = [
            workload.digest(batch) for batch in workload.expected(bench.workload, method)[:CHECKED_STEPS]
        ]
        options = {"method": method, "other_reference": method == "dpo"}
        options |= {"warmup": 0, "steps": CHECKED_STEPS, "check": True}
        for dtype, tolerance in TOLERANCE.items():
            runs = {side: bench.run(side, SCRIPTS[side], dtype=dtype, **options) for side in SIDES}
            losses = {side: runs[side]["losses"] for side in SIDES}
            apart = [abs(a - b) / abs(b) for a, b in zip(losses["posttrain"], losses["trl"], strict=True)]
            found[f"{method} {dtype}"] = {
                "same_tokens": all(runs[side]["batches"] == wanted for side in SIDES),
                "losses": losses,
                "relative_difference": [float(f"{x:.2e}") for x in apart],
                "tolerance": tolerance,
                "agree": max(apart) <= tolerance,
            }
            say(f"{method} {dtype}: losses apart by {max(apart):.1e} at most")
    return {"agreement": found}


def profile(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Where the time of each side goes, by kind of work."""

    def run(side: str, method: str) -> Any:
        options = {"warmup": bench.warmup, "steps": 2, "profile": True}
        return bench.run(side, SCRIPTS[side], method=method, **options)["profile"]

    return {"profile": {method: {side: run(side, method) for side in SIDES} for method in methods}}


PARTS = {"speed": speed, "agreement": agreement, "profile": profile}
