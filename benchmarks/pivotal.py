"""The part of the benchmark on the pivotal search: posttrain's against the plain method of the Phi-4 report,
with the same weights, questions, prefixes and number of rollouts from each.

Imported by the process of `run.py`; the runs are `pivotal_ours.py` and `pivotal_plain.py`, each in a process
of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import Bench, by_turns, each, ratio
from pivotal_case import Job

SIDES = ("posttrain", "plain")
# Of the prefixes, drawn at random, that the plain side is timed on: all of them would take most of an hour.
SHARE = 1 / 24


def pivotal(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs of both sides, whichever first by turns. The plain side makes a share of what the last
    run of ours asked the model for, one prefix after the other.
    """
    job = Job(questions=4 * bench.online.job.prompts)
    options = {**asdict(job), "threads": bench.threads, "requests": bench.work / "requests.json"}

    def run(side: str) -> dict[str, Any]:
        if side == "posttrain":
            return bench.run("posttrain", "pivotal_ours.py", **options)
        return bench.run("posttrain", "pivotal_plain.py", share=SHARE, **options)

    rounds = by_turns(bench, "pivotal", SIDES, run, lambda done: f"{done['seconds']:.0f} s")
    found = {
        "job": asdict(job),
        "speed_ratio": ratio(rounds, "seconds", "plain", "posttrain"),
        "cpu_time_ratio": ratio(rounds, "cpu_seconds", "plain", "posttrain"),
        "memory_ratio": ratio(rounds, "peak_memory_mib", "posttrain", "plain"),
        "seconds": each(rounds, "seconds", SIDES),
        "rounds": rounds,
    }
    return {"pivotal": found}


PARTS = {"pivotal": pivotal}
