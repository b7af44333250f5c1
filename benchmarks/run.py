"""The benchmark: posttrain against TRL, and against transformers in sampling, on the same model, tokens and
machine, pair by pair, as JSON on stdout.

Each pair of runs is one process of either side right after the other, the first place changing from pair to
pair, so that whatever slows the machine for a while slows both. Ratios are taken within a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import rl
import rl_workload
import sampling
import trl_env
import workload

HERE = Path(__file__).resolve().parent
SIDES = ("posttrain", "trl")
METHODS = ("sft", "dpo", "reward")
TOLERANCE = {"bf16": 1e-2, "f32": 1e-4}  # largest relative difference of losses on the same batch
CHECKED_STEPS = 3
DEFAULT_PARTS = ("speed", "agreement")  # the others are to be asked for until they have run whole


@dataclass(frozen=True)
class Online:
    """The runs of the online methods; a step is a rollout and its update."""

    job: rl_workload.Rollouts
    warmup: int
    steps: int


@dataclass(frozen=True)
class Bench:
    """Where and on what the two sides run. work: the folder with models and data."""

    work: Path
    workload: workload.Workload
    pythons: dict[str, Path]
    threads: int
    rounds: int
    warmup: int
    steps: int
    online: Online

    def run(self, name: str, script: str | None = None, **options: Any) -> dict[str, Any]:
        """One run of one side in a process of its own; raises SystemExit with the end of its stderr."""
        script = script or ("trl_side.py" if name == "trl" else "ours_side.py")
        flags: list[str] = []
        for key, value in options.items():
            flag = "--" + key.replace("_", "-")
            flags += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
        with tempfile.TemporaryDirectory() as caches:
            own = {"HF_HOME": caches, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            own |= {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
            own |= {"OMP_NUM_THREADS": str(self.threads)}
            call = [self.pythons[name], HERE / script, "--work", self.work, *flags]
            done = subprocess.run(call, env={**os.environ, **own}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} {' '.join(flags)} failed\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = arguments()
    rows = workload.Workload.batch * max(args.warmup + args.steps, CHECKED_STEPS)
    w = workload.Workload(seed=args.seed, pairs=rows)
    pythons = {"posttrain": Path(sys.executable)}
    if set(args.parts) - {"sampling", "ppo"}:
        pythons["trl"] = trl_env.interpreter()
    with tempfile.TemporaryDirectory() as scratch:
        bench = bench_of(args, args.work or Path(scratch), w, pythons)
        workload.make(bench.work, w)
        if set(args.parts) & set(rl.PARTS):
            rl_workload.make(bench.work, w, bench.online.job, bench.online.warmup + bench.online.steps)
        report = describe(bench)
        for part in args.parts:
            report |= PARTS[part](bench, args.methods)
            write(args.out, report)
    print(json.dumps(report, indent=1))


def bench_of(args: argparse.Namespace, work: Path, w: workload.Workload, pythons: dict[str, Path]) -> Bench:
    """As asked for; quick is one short run of everything."""
    if args.quick:
        online = Online(rl_workload.Rollouts(2, 4, 16), 0, 1)
        return Bench(work, w, pythons, args.threads, 1, 0, 1, online)
    online = Online(rl_workload.Rollouts(), args.warmup, args.online_steps)
    return Bench(work, w, pythons, args.threads, args.rounds, args.warmup, args.steps, online)


def write(path: Path, report: dict[str, Any]) -> None:
    """After each part, so that an interrupted run leaves what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT_PARTS)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of speed runs per method")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the measured ones")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run")
    parser.add_argument(
        "--online-steps", type=int, default=2, help="measured steps of a run of an online method"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short run of everything: to try, not to measure"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=workload.Workload.seed)
    parser.add_argument("--work", type=Path, help="keep models and data in this folder")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "latest.json")
    return parser.parse_args()


def describe(bench: Bench) -> dict[str, Any]:
    counts = workload.token_counts(bench.workload, bench.warmup + bench.steps)
    return {
        "machine": machine.describe(bench.threads),
        "versions": {side: trl_env.versions(python) for side, python in bench.pythons.items()},
        "workload": asdict(bench.workload) | counts,
        "runs": {"rounds": bench.rounds, "warmup": bench.warmup, "steps": bench.steps},
    }


def speed(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs of each method, between two measurements of the machine's matrix rate."""
    rates = [matrix_rates(bench)]
    found = {method: measure(bench, method) for method in methods}
    rates.append(matrix_rates(bench))
    return {"speed": found, "matrix_rate": shares(bench, rates, found)}


def measure(bench: Bench, method: str) -> dict[str, Any]:
    """Pairs of speed runs of one method, and their ratios."""
    rounds = []
    for i in range(bench.rounds):
        pair: dict[str, Any] = {"busy_before": machine.busy_share()}
        for name in SIDES if i % 2 == 0 else SIDES[::-1]:
            pair[name] = summary(bench.run(name, method=method, warmup=bench.warmup, steps=bench.steps))
        rounds.append(pair)
        rates = ", ".join(f"{name} {pair[name]['pairs_per_s']:.2f} pairs/s" for name in SIDES)
        say(f"{method}, pair {i + 1} of {bench.rounds}: {rates}")

    def ratio(key: str, over: str, under: str) -> dict[str, float]:
        return spread([pair[over][key] / pair[under][key] for pair in rounds])

    return {
        "speed_ratio": ratio("pairs_per_s", "posttrain", "trl"),
        "cpu_time_ratio": ratio("cpu_s_per_pair", "trl", "posttrain"),
        "memory_ratio": ratio("peak_memory_mib", "posttrain", "trl"),
        "pairs_per_s": {name: spread([pair[name]["pairs_per_s"] for pair in rounds]) for name in SIDES},
        "peak_memory_mib": {
            name: spread([pair[name]["peak_memory_mib"] for pair in rounds]) for name in SIDES
        },
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


def spread(values: list[float]) -> dict[str, float]:
    kinds = (("median", statistics.median), ("min", min), ("max", max))
    return {name: round(kind(values), 4) for name, kind in kinds}


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
        for dtype, tolerance in TOLERANCE.items():
            options = {"method": method, "dtype": dtype, "warmup": 0, "steps": CHECKED_STEPS, "check": True}
            runs = {name: bench.run(name, **options, other_reference=method == "dpo") for name in SIDES}
            losses = {name: runs[name]["losses"] for name in SIDES}
            apart = [abs(a - b) / abs(b) for a, b in zip(losses["posttrain"], losses["trl"], strict=True)]
            found[f"{method} {dtype}"] = {
                "same_tokens": all(runs[name]["batches"] == wanted for name in SIDES),
                "losses": losses,
                "relative_difference": [float(f"{x:.2e}") for x in apart],
                "tolerance": tolerance,
                "agree": max(apart) <= tolerance,
            }
            say(f"{method} {dtype}: losses apart by {max(apart):.1e} at most")
    return {"agreement": found}


def matrix_rates(bench: Bench) -> dict[str, Any]:
    """bf16 rates, measured in a process of their own like everything else."""
    batches = str(bench.warmup + bench.steps)
    call = [sys.executable, HERE / "matrix_rate.py", "--threads", str(bench.threads), "--batches", batches]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["bf16"]


def shares(bench: Bench, rates: list[dict[str, Any]], found: dict[str, Any]) -> dict[str, Any]:
    """How near each side comes to the machine's own matrix rate: seconds of bare products over seconds
    taken.
    """
    steps = {}
    for method, result in found.items():
        alone = min(rate["steps"][method]["ideal_s"] for rate in rates)
        gflop = rates[0]["steps"][method]["model_gflop"]
        taken = {name: bench.workload.batch / result["pairs_per_s"][name]["median"] for name in SIDES}
        steps[method] = {
            "model_gflop": gflop,
            "products_alone_s": round(alone, 3),
            "products_alone_gflop_per_s": round(gflop / alone, 1),
            "step_s": {name: round(taken[name], 3) for name in SIDES},
            "share_of_matrix_rate": {name: round(alone / taken[name], 3) for name in SIDES},
        }
    return {"steps": steps, "before": rates[0]["rates"], "after": rates[1]["rates"]}


def profile(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Where the time of each side goes, by kind of work."""
    options = {"warmup": bench.warmup, "steps": 2, "profile": True}
    found = {m: {name: bench.run(name, method=m, **options)["profile"] for name in SIDES} for m in methods}
    return {"profile": found}


PARTS = {"speed": speed, "agreement": agreement, "profile": profile, "sampling": sampling.part} | rl.PARTS


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
