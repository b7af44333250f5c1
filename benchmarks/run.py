"""The benchmark: posttrain against TRL, and against transformers in sampling and in the pivotal search, on
the same model, tokens and machine, pair by pair, as JSON on stdout.

Each pair of runs is one process of either side right after the other, the first place changing from pair to
pair, so that whatever slows the machine for a while slows both. Ratios are taken within a pair.

This is the process that is started by hand or by `make bench`; `README.md` says what the other files are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import offline
import pivotal
import rl
import rl_workload
import sampling
import trl_env
import workload
from bench import HERE, Bench, Online

METHODS = ("sft", "dpo", "reward")
PARTS = offline.PARTS | sampling.PARTS | rl.PARTS | pivotal.PARTS
DEFAULT_PARTS = ("speed", "agreement", "sampling", "grpo", "ppo", "losses", "pivotal")


def main() -> None:
    args = arguments()
    rows = workload.Workload.batch * max(args.warmup + args.steps, offline.CHECKED_STEPS)
    w = workload.Workload(seed=args.seed, pairs=rows)
    pythons = {"posttrain": Path(sys.executable)}
    if set(args.parts) - {"sampling", "ppo", "pivotal"}:
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


if __name__ == "__main__":
    main()
