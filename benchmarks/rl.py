"""The online methods: a step of GRPO against TRL's, PPO's step in its parts, and losses on given tensors.

A step is sampling and learning: prompts are answered by the policy, answers are scored, the reference gives
its log-probs, one update is made.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import rl_workload
from rl_cases import CASES
from workload import Workload

HERE = Path(__file__).resolve().parent
SIDES = {"posttrain": "rl_ours.py", "trl": "rl_trl.py"}
LAYOUTS = {"ppo-separate": 4, "ppo-shared": 3, "ppo-lora": 2}  # models held
TOLERANCE = {"bf16": 1e-2, "f32": 1e-4}  # largest relative difference of a loss
# TRL's default recomputes activations in the backward. A user may choose otherwise: memory for time, and time
# for memory.
TRL: dict[str, Any] = {"checkpointing": True}
OTHERS = {
    "without gradient checkpointing": {"checkpointing": False},
    "with microbatches of 8": {"checkpointing": True, "micro": 8},
}
GIVEN = 3  # answers of each prompt, where losses are compared


def grpo(bench: Any, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs on the same prompts, whichever first by turns; then TRL's other settings, once each."""
    from run import say, spread

    limits = bounds(bench)
    rounds = []
    for i in range(bench.rounds):
        pair: dict[str, Any] = {"busy_before": machine.busy_share()}
        for side in list(SIDES) if i % 2 == 0 else list(SIDES)[::-1]:
            options = _options(bench) | (TRL if side == "trl" else {})
            pair[side] = summary(bench.run(side, SIDES[side], method="grpo", **options))
        rounds.append(pair)
        steps = ", ".join(f"{side} {pair[side]['step_s']:.1f} s" for side in SIDES)
        say(f"grpo, pair {i + 1} of {bench.rounds}: a step takes {steps}")

    def ratio(key: str, over: str, under: str) -> dict[str, float]:
        return spread([pair[over][key] / pair[under][key] for pair in rounds])

    step = statistics.median(pair["posttrain"]["step_s"] for pair in rounds)
    parts = {side: mean_parts(pair[side]["parts_s"] for pair in rounds) for side in SIDES}
    found = {
        "job": asdict(bench.online.job),
        "speed_ratio": ratio("step_s", "trl", "posttrain"),
        "cpu_time_ratio": ratio("step_cpu_s", "trl", "posttrain"),
        "memory_ratio": ratio("peak_memory_mib", "posttrain", "trl"),
        "step_s": {side: spread([pair[side]["step_s"] for pair in rounds]) for side in SIDES},
        "peak_memory_mib": {
            side: spread([pair[side]["peak_memory_mib"] for pair in rounds]) for side in SIDES
        },
        "parts_s": parts,
        "share_of_matrix_rate": shares(limits, parts["posttrain"], step),
        "bounds": limits,
        "same_prompts": all(_comparable(bench, pair[side]) for pair in rounds for side in SIDES),
        "trl_otherwise": {name: _otherwise(bench, name, rounds) for name in OTHERS},
        "rounds": rounds,
    }
    return {"grpo": found}


def _otherwise(bench: Any, name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One run of TRL with other settings, of one measured step, and our side's same step over it."""
    from run import say

    setting = dict(OTHERS[name])
    if "micro" in setting:
        setting["micro"] = min(setting["micro"], _answers(bench))
    run = summary(bench.run("trl", SIDES["trl"], method="grpo", **_options(bench) | {"steps": 1} | setting))
    say(f"grpo, TRL {name}: a step takes {run['step_s']:.1f} s, {run['peak_memory_mib']:.0f} MiB")
    ours = [pair["posttrain"] for pair in rounds]
    return {
        "speed_ratio": round(run["step_s"] / statistics.median(one["steps_s"][0] for one in ours), 4),
        "memory_ratio": round(
            statistics.median(one["peak_memory_mib"] for one in ours) / run["peak_memory_mib"], 4
        ),
        **run,
    }


def ppo(bench: Any, methods: list[str]) -> dict[str, Any]:
    """PPO's step in its parts, with peak memory, for each way of holding its models; by turns, so that a
    slow while slows all.
    """
    from run import say, spread

    runs: dict[str, list[dict[str, Any]]] = {layout: [] for layout in LAYOUTS}
    for i in range(bench.rounds):
        for layout in LAYOUTS:
            done = bench.run("posttrain", SIDES["posttrain"], method=layout, **_options(bench))
            runs[layout].append(summary(done))
            say(f"{layout}, round {i + 1} of {bench.rounds}: a step takes {runs[layout][-1]['step_s']:.1f} s")
    return {
        "ppo": {
            layout: {
                "models_held": LAYOUTS[layout],
                "step_s": spread([run["step_s"] for run in done]),
                "parts_s": mean_parts(run["parts_s"] for run in done),
                "peak_memory_mib": spread([run["peak_memory_mib"] for run in done]),
                "rounds": done,
            }
            for layout, done in runs.items()
        }
    }


def losses(bench: Any, methods: list[str]) -> dict[str, Any]:
    """Losses and gradients' norms of both sides on the same tokens, rewards, old and reference log-probs."""
    from run import say

    job = bench.online.job
    bench.run(
        "posttrain",
        "rl_losses_ours.py",
        prepare=True,
        prompts=job.prompts,
        samples=GIVEN,
    )
    ours = bench.run("posttrain", "rl_losses_ours.py")
    theirs = bench.run("trl", "rl_losses_trl.py")
    found = {}
    for case in CASES:
        for dtype, tolerance in TOLERANCE.items():
            name = f"{case} {dtype}"
            apart = {
                key: abs(ours[name][key] - theirs[name][key]) / abs(theirs[name][key]) for key in ours[name]
            }
            found[name] = {
                "posttrain": ours[name],
                "trl": theirs[name],
                "relative_difference": {key: float(f"{x:.2e}") for key, x in apart.items()},
                "tolerance": tolerance,
                "agree": max(apart.values()) <= tolerance,
            }
            say(f"{name}: loss apart by {apart['loss']:.1e}, gradient's norm by {apart['gradient_norm']:.1e}")
    return {"rl_agreement": found}


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """What a run comes to, a step."""
    return {
        "step_s": round(statistics.mean(run["step_s"]), 3),
        "step_cpu_s": round(statistics.mean(run["step_cpu_s"]), 3),
        "parts_s": mean_parts(run["parts_s"]),
        "peak_memory_mib": round(run["process_peak_rss_mib"], 1),
        "steps_s": [round(s, 3) for s in run["step_s"]],
        "losses": run["losses"],
        "rewards": run["rewards"],
        "answer_tokens": run["answer_tokens"],
        "prompts": run["prompts"],
        "threads": run["threads"],
    }


def mean_parts(steps: Iterable[dict[str, float]]) -> dict[str, float]:
    """Seconds of each part of a step, the mean over steps."""
    found = list(steps)
    return {name: round(statistics.mean(step[name] for step in found), 3) for name in found[0]}


def bounds(bench: Any) -> dict[str, Any]:
    """Seconds of a step's bare products, measured in a process of its own like everything else."""
    job, online = bench.online.job, bench.online
    call = [sys.executable, HERE / "rl_bounds.py", "--threads", bench.threads, "--work", bench.work]
    call += ["--warmup", online.warmup, "--steps", online.steps]
    call += ["--prompts", job.prompts, "--samples", job.samples, "--tokens", job.tokens]
    done = subprocess.run(list(map(str, call)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def shares(limits: dict[str, Any], parts: dict[str, float], step: float) -> dict[str, float]:
    """Seconds of bare products over seconds taken, of each part of our step and of the whole."""
    alone = {part: limits[part]["products_s"] for part in ("sampling", "reference_logps", "update")}
    found = {part: round(seconds / parts[part], 3) for part, seconds in alone.items()}
    return found | {"step": round(sum(alone.values()) / step, 3)}


def _options(bench: Any) -> dict[str, Any]:
    online = bench.online
    return {"warmup": online.warmup, "steps": online.steps, **asdict(online.job)}


def _answers(bench: Any) -> int:
    return bench.online.job.prompts * bench.online.job.samples


def _comparable(bench: Any, run: dict[str, Any]) -> bool:
    """Whether a run answered the wanted prompts, step by step, each answer at its full length."""
    job, online = bench.online.job, bench.online
    w: Workload = bench.workload
    asked = rl_workload.prompts(w, job, online.warmup + online.steps)
    wanted = [rl_workload.digest(asked[i : i + job.prompts]) for i in range(0, len(asked), job.prompts)]
    return run["prompts"] == wanted and run["answer_tokens"] == _answers(bench) * job.tokens


PARTS = {"grpo": grpo, "ppo": ppo, "losses": losses}
