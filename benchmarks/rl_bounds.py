"""How long the bare products of a step of GRPO would take at the machine's own matrix rate, as JSON on the
last line of stdout. A process of its own, in posttrain's environment, started by `rl.py`.

Model FLOPs are those of the mathematics (see `matrix_rate`): a prompt goes through the layers once for all
its samples, in sampling, under the reference and in the update.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rl_workload
import side
import torch
from matrix_rate import DTYPES, PARTS, Products, linear_shapes, rates
from rl_workload import Rollouts
from sampling_bounds import work_of
from sampling_side import Job
from workload import Workload


def products(w: Workload, job: Rollouts, lengths: Sequence[int]) -> Products:
    """Of one forward over prompts of these lengths, each with its answers."""
    answers = job.samples * job.tokens
    tokens = sum(lengths) + len(lengths) * answers
    linear = {(a, b): 2.0 * a * b * n * tokens for (a, b), n in linear_shapes(w).items()}
    linear[w.vocab, w.hidden] = 2.0 * w.vocab * w.hidden * len(lengths) * answers
    own = job.tokens * (job.tokens + 1) / 2
    seen = sum(n * (n + 1) / 2 + job.samples * (job.tokens * n + own) for n in lengths)
    return Products(linear, 4.0 * w.hidden * w.layers * seen, 1)


def seconds(p: Products, measured: dict[str, dict[str, float]], backward: bool) -> float:
    """Of the forward's products at the rates measured for their shapes; with the backward's, where asked."""
    parts = PARTS if backward else PARTS[:1]
    total = sum(
        work / measured[f"{out}x{inner}"][part] for (out, inner), work in p.linear.items() for part in parts
    )
    return (total + p.attention * len(parts) / measured["attention"]["rate"]) / 1e9


def bounds(w: Workload, job: Rollouts, asked: list[list[list[int]]], dtype: str) -> dict[str, Any]:
    """Means over steps; asked: the prompts of each."""
    many, few = rates(w, dtype, 2048), rates(w, dtype, job.prompts * job.samples)
    best = {shape: max(found[shape].get(PARTS[0], 0) for found in (many, few)) for shape in many}
    found: dict[str, dict[str, float]] = {
        name: {"gflop": 0.0, "products_s": 0.0} for name in ("sampling", "reference_logps", "update")
    }

    def add(name: str, flop: float, alone: float) -> None:
        found[name]["gflop"] += flop / 1e9 / len(asked)
        found[name]["products_s"] += alone / len(asked)

    for prompts in asked:
        lengths = [len(prompt) for prompt in prompts]
        p = products(w, job, lengths)
        forward = sum(p.linear.values()) + p.attention
        add("reference_logps", forward, seconds(p, many, backward=False))
        add("update", 3 * forward, seconds(p, many, backward=True))
        work = work_of(Job(len(prompts), job.samples, job.tokens), w, lengths)
        alone = sum(flop / best[f"{a}x{b}"] for (a, b), flop in work.linear.items()) / 1e9
        alone += work.attention / many["attention"]["rate"] / 1e9
        add("sampling", sum(work.linear.values()) + work.attention, alone)
    return {name: {key: round(value, 3) for key, value in part.items()} for name, part in found.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that rl_workload.make filled")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    side.add_rollouts(parser)
    return parser.parse_args()


def of_a_folder(args: argparse.Namespace) -> dict[str, Any]:
    """Of the measured steps of the prompts in a folder."""
    torch.set_num_threads(args.threads)
    w, job = rl_workload.read_workload(args.work), Rollouts(args.prompts, args.samples, args.tokens)
    rows = rl_workload.prompts(w, job, args.warmup + args.steps)
    asked = [rows[i : i + job.prompts] for i in range(args.warmup * job.prompts, len(rows), job.prompts)]
    return bounds(w, job, asked, args.dtype)


if __name__ == "__main__":
    parsed = arguments()
    side.show(lambda _: of_a_folder(parsed))
