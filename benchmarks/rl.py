"""The parts of the benchmark on the online methods: a step of GRPO against TRL's, PPO's step in its parts,
and losses on given tensors.

A step is sampling and learning: prompts are answered by the policy, answers are scored, the reference gives
its log-probs, one update is made.

Imported by the process of `run.py`; each run is a process of its own (`rl_ours.py`, `rl_trl.py`,
`rl_bounds.py`, `rl_losses_ours.py`, `rl_losses_trl.py`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import rl_workload
from bench import TOLERANCE, Bench, Round, by_turns, each, ratio, say, spread
from rl_cases import CASES
from rl_workload import LAYOUTS

SCRIPTS = {"posttrain": "rl_ours.py", "trl": "rl_trl.py"}
SIDES = tuple(SCRIPTS)
# TRL's default recomputes activations in the backward. A user may choose otherwise: memory for time, and time
# for memory.
TRL: dict[str, Any] = {"checkpointing": True}
OTHERS = {
    "without gradient checkpointing": {"checkpointing": False},
    "with microbatches of 8": {"checkpointing": True, "micro": 8},
}
COMPARED = ("loss", "gradient_norm")
GIVEN = 3  # answers of each prompt, where losses are compared


def grpo(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs on the same prompts, whichever first by turns; then TRL's other settings, once each."""
    limits = bench.run("posttrain", "rl_bounds.py", threads=bench.threads, **_options(bench))

    def run(side: str) -> dict[str, Any]:
        return _grpo(bench, side, TRL if side == "trl" else {})

    rounds = by_turns(bench, "grpo", SIDES, run, lambda done: f"{done['step_s']:.1f} s a step")
    step = statistics.median(done["posttrain"]["step_s"] for done in rounds)
    parts = {side: mean_parts(done[side]["parts_s"] for done in rounds) for side in SIDES}
    found = {
        "job": asdict(bench.online.job),
        "speed_ratio": ratio(rounds, "step_s", "trl", "posttrain"),
        "cpu_time_ratio": ratio(rounds, "step_cpu_s", "trl", "posttrain"),
        "memory_ratio": ratio(rounds, "peak_memory_mib", "posttrain", "trl"),
        "step_s": each(rounds, "step_s", SIDES),
        "peak_memory_mib": each(rounds, "peak_memory_mib", SIDES),
        "parts_s": parts,
        "share_of_matrix_rate": shares(limits, parts["posttrain"], step),
        "bounds": limits,
        "same_prompts": all(_comparable(bench, done[side]) for done in rounds for side in SIDES),
        "trl_otherwise": {name: _otherwise(bench, name, rounds) for name in OTHERS},
        "rounds": rounds,
    }
    return {"grpo": found}


def _grpo(bench: Bench, side: str, settings: dict[str, Any]) -> dict[str, Any]:
    return summary(bench.run(side, SCRIPTS[side], method="grpo", **_options(bench) | settings))


def _otherwise(bench: Bench, name: str, rounds: list[Round]) -> dict[str, Any]:
    """One run of TRL with other settings, of one measured step, and our side's same step over it."""
    settings = {"steps": 1, **OTHERS[name]}
    if "micro" in settings:
        settings["micro"] = min(settings["micro"], _answers(bench))
    run = _grpo(bench, "trl", settings)
    say(f"grpo, TRL {name}: a step takes {run['step_s']:.1f} s, {run['peak_memory_mib']:.0f} MiB")
    ours = [done["posttrain"] for done in rounds]
    return {
        "speed_ratio": round(run["step_s"] / statistics.median(one["steps_s"][0] for one in ours), 4),
        "memory_ratio": round(
            statistics.median(one["peak_memory_mib"] for one in ours) / run["peak_memory_mib"], 4
        ),
        **run,
    }


def ppo(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """PPO's step in its parts, with peak memory, for each way of holding its models; by turns, so that a
    slow while slows all.
    """
    runs: dict[str, list[dict[str, Any]]] = {layout: [] for layout in LAYOUTS}
    for i in range(bench.rounds):
        for layout in LAYOUTS:
            done = bench.run("posttrain", SCRIPTS["posttrain"], method=layout, **_options(bench))
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


def losses(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Losses and gradients' norms of both sides on the same tokens, rewards, old and reference log-probs."""
    job = bench.online.job
    made = bench.run("posttrain", "rl_losses_ours.py", prepare=True, prompts=job.prompts, samples=GIVEN)
    ours = bench.run("posttrain", "rl_losses_ours.py")
    theirs = bench.run("trl", "rl_losses_trl.py")
    found = {}
    for case in CASES:
        for dtype, tolerance in TOLERANCE.items():
            name = f"{case} {dtype}"
            apart = {
                key: abs(ours[name][key] - theirs[name][key]) / abs(theirs[name][key]) for key in COMPARED
            }
            found[name] = {
                "posttrain": ours[name],
                "trl": theirs[name],
                "relative_difference": {key: float(f"{x:.2e}") for key, x in apart.items()},
                "tolerance": tolerance,
                "agree": max(apart.values()) <= tolerance,
            }
            say(f"{name}: loss apart by {apart['loss']:.1e}, gradient's norm by {apart['gradient_norm']:.1e}")
    return {"rl_given": made, "rl_agreement": found}


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


def shares(limits: dict[str, Any], parts: dict[str, float], step: float) -> dict[str, float]:
    """Seconds of bare products over seconds taken, of each part of our step and of the whole."""
    alone = {part: limits[part]["products_s"] for part in ("sampling", "reference_logps", "update")}
    found = {part: round(seconds / parts[part], 3) for part, seconds in alone.items()}
    return found | {"step": round(sum(alone.values()) / step, 3)}


def _options(bench: Bench) -> dict[str, Any]:
    online = bench.online
    return {"warmup": online.warmup, "steps": online.steps, **asdict(online.job)}


def _answers(bench: Bench) -> int:
    return bench.online.job.prompts * bench.online.job.samples


def _comparable(bench: Bench, run: dict[str, Any]) -> bool:
    """Whether a run answered the wanted prompts, step by step, each answer at its full length."""
    job, online = bench.online.job, bench.online
    asked = rl_workload.prompts(bench.workload, job, online.warmup + online.steps)
    wanted = [rl_workload.digest(asked[i : i + job.prompts]) for i in range(0, len(asked), job.prompts)]
    return run["prompts"] == wanted and run["answer_tokens"] == _answers(bench) * job.tokens


PARTS = {"grpo": grpo, "ppo": ppo, "losses": losses}
