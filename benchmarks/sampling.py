"""The part of the benchmark on sampling: posttrain's local engine against transformers' `generate`, from the
same weights and prompts.

Imported by the process of `run.py`; each run is `sampling_side.py` in a process of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import Bench, by_turns, each, ratio, spread
from sampling_side import SIDES, Job


def sampling(bench: Bench, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs of both sides, whichever first by turns, and how near the machine's bounds ours comes."""
    job = Job()
    options = {"threads": bench.threads, "tokens": job.tokens}

    def run(side: str) -> dict[str, Any]:
        return bench.run("posttrain", "sampling_side.py", side=side, **options)

    limits = bench.run("posttrain", "sampling_bounds.py", **options)
    rounds = by_turns(bench, "sampling", SIDES, run, lambda done: f"{done['tokens_per_s']:.0f} tokens/s")
    ours = spread([done["posttrain"]["seconds"] for done in rounds])
    found = {
        "job": asdict(job),
        "speed_ratio": ratio(rounds, "tokens_per_s", "posttrain", "transformers"),
        "memory_ratio": ratio(rounds, "peak_memory_mib", "posttrain", "transformers"),
        "tokens_per_s": each(rounds, "tokens_per_s", SIDES),
        "bounds": limits,
        "share_of_bound": {
            "products": round(limits["products_s"] / ours["median"], 3),
            "bytes": round(limits["bytes_s"] / ours["median"], 3),
        },
        "rounds": rounds,
    }
    return {"sampling": found}


PARTS = {"sampling": sampling}
