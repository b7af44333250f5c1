"""What the parts of the benchmark have in common: runs in processes of their own, by turns, and ratios
within a round.

Imported by the process of `run.py` and by nothing that is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import rl_workload
import workload

HERE = Path(__file__).resolve().parent
TOLERANCE = {"bf16": 1e-2, "f32": 1e-4}  # largest relative difference of losses on the same tokens

# A run of each side by its name, and `busy_before`.
Round = dict[str, Any]


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

    def run(self, environment: str, script: str, /, **options: Any) -> dict[str, Any]:
        """What a script of this folder prints on its last line."""
        return json.loads(self.output(environment, script, work=self.work, **options).splitlines()[-1])

    def output(self, environment: str, script: str, /, **options: Any) -> str:
        """What a script prints that runs in a process of its own; raises SystemExit with the end of its
        stderr. options: the script's flags.
        """
        flags: list[str] = []
        for key, value in options.items():
            flag = "--" + key.replace("_", "-")
            flags += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
        with tempfile.TemporaryDirectory() as caches:
            own = {"HF_HOME": caches, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            own |= {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
            own |= {"OMP_NUM_THREADS": str(self.threads)}
            call = [self.pythons[environment], HERE / script, *flags]
            done = subprocess.run(call, env={**os.environ, **own}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{script} {' '.join(flags)} failed\n{done.stderr[-4000:]}")
        return done.stdout


def by_turns(
    bench: Bench,
    name: str,
    sides: Sequence[str],
    run: Callable[[str], dict[str, Any]],
    shown: Callable[[dict[str, Any]], str],
) -> list[Round]:
    """Rounds of one run of each side, whichever first by turns. shown: a run's speed in words, for stderr."""
    rounds = []
    for i in range(bench.rounds):
        done: Round = {"busy_before": machine.busy_share()}
        for side in sides if i % 2 == 0 else sides[::-1]:
            done[side] = run(side)
        rounds.append(done)
        speeds = ", ".join(f"{side} {shown(done[side])}" for side in sides)
        say(f"{name}, pair {i + 1} of {bench.rounds}: {speeds}")
    return rounds


def ratio(rounds: Sequence[Round], key: str, over: str, under: str) -> dict[str, float]:
    """Of two sides, within each round."""
    return spread([done[over][key] / done[under][key] for done in rounds])


def each(rounds: Sequence[Round], key: str, sides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Over the rounds, side by side."""
    return {side: spread([done[side][key] for done in rounds]) for side in sides}


def spread(values: list[float]) -> dict[str, float]:
    kinds = (("median", statistics.median), ("min", min), ("max", max))
    return {name: round(kind(values), 4) for name, kind in kinds}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
