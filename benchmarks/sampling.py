"""Sampling: posttrain's local engine against transformers' `generate`, from the same weights and prompts.

As a script it is one run of one side, or the machine's bounds, as JSON on the last line of stdout; `part` is
the benchmark's. Both sides draw from the whole distribution at temperature 1; ours also returns log-probs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import torch
from matrix_rate import DTYPES, linear_shapes, rates
from measure import by_kind, process_peak_rss_mib
from workload import EOS, PAD, Workload, pairs

SIDES = ("posttrain", "transformers")
WORKLOAD = Workload()


@dataclass(frozen=True)
class Job:
    """What is sampled: so many prompts of the workload, samples of each, new tokens of each."""

    prompts: int = 16
    samples: int = 8
    tokens: int = 96


def part(bench: Any, methods: list[str]) -> dict[str, Any]:
    """Pairs of runs of both sides, whichever first by turns, and how near the machine's bounds ours comes."""
    from run import say, spread

    job = Job()
    call = [sys.executable, Path(__file__), "--work", bench.work, "--threads", str(bench.threads)]
    call += ["--tokens", str(job.tokens)]

    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    own |= {"OMP_NUM_THREADS": str(bench.threads), "TOKENIZERS_PARALLELISM": "false"}

    def run(side: str) -> dict[str, Any]:
        done = subprocess.run(
            [*call, "--side", side], env={**os.environ, **own}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"sampling, {side} failed\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    limits = run("bounds")
    rounds = []
    for i in range(bench.rounds):
        pair: dict[str, Any] = {"busy_before": machine.busy_share()}
        for side in SIDES if i % 2 == 0 else SIDES[::-1]:
            pair[side] = run(side)
        rounds.append(pair)
        speeds = ", ".join(f"{side} {pair[side]['tokens_per_s']:.0f} tokens/s" for side in SIDES)
        say(f"sampling, pair {i + 1} of {bench.rounds}: {speeds}")
    ours = spread([pair["posttrain"]["seconds"] for pair in rounds])
    found = {
        "job": asdict(job),
        "speed_ratio": spread(
            [pair["posttrain"]["tokens_per_s"] / pair["transformers"]["tokens_per_s"] for pair in rounds]
        ),
        "memory_ratio": spread(
            [
                pair["posttrain"]["peak_memory_mib"] / pair["transformers"]["peak_memory_mib"]
                for pair in rounds
            ]
        ),
        "tokens_per_s": {s: spread([pair[s]["tokens_per_s"] for pair in rounds]) for s in SIDES},
        "bounds": limits,
        "share_of_bound": {
            "products": round(limits["products_s"] / ours["median"], 3),
            "bytes": round(limits["bytes_s"] / ours["median"], 3),
        },
        "rounds": rounds,
    }
    return {"sampling": found}


def asked(job: Job) -> list[list[int]]:
    """The first prompts of the workload."""
    return [prompt for prompt, _, _ in pairs(replace(WORKLOAD, pairs=job.prompts))]


def posttrain(work: Path, dtype: torch.dtype) -> Callable[[Job], int]:
    """A function that samples and returns how many tokens it got."""
    from posttrain.engines.local import LocalEngine
    from posttrain.engines.protocol import SamplingParams
    from posttrain.models.load import load_model

    engine = LocalEngine(load_model(work / "policy", dtype=dtype))

    def sample(job: Job) -> int:
        found = engine.generate(asked(job), SamplingParams(n=job.samples, max_new_tokens=job.tokens))
        return sum(len(answer.token_ids) for answers in found for answer in answers)

    return sample


def transformers(work: Path, dtype: torch.dtype) -> Callable[[Job], int]:
    """The same of transformers: prompts padded on the left, each repeated for its samples."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(work / "policy", dtype=dtype)

    def sample(job: Job) -> int:
        prompts = asked(job)
        width = max(map(len, prompts))
        said = model.generate(
            torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=job.samples,
            max_new_tokens=job.tokens,
            pad_token_id=PAD,
        )[:, width:]
        end = said == EOS
        return int((end.cumsum(1) - end.long() == 0).sum())

    return sample


@dataclass(frozen=True)
class Work:
    """What sampling cannot do without. linear: (outputs, inputs) of a weight -> FLOPs. attention: FLOPs.
    moved: numbers read from memory.
    """

    linear: dict[tuple[int, int], float]
    attention: float
    moved: float


def work_of(job: Job, w: Workload, lengths: list[int]) -> Work:
    """Each prompt once through the layers and its last state through the head; then, for each token but the
    last, one row of every product and its attention. Every step reads all weights, every prompt's cache once,
    and each row's own.
    """
    rows, steps = job.prompts * job.samples, job.tokens - 1
    tokens, states = sum(lengths) + rows * steps, job.prompts + rows * steps
    linear = {shape: 2.0 * shape[0] * shape[1] * n * tokens for shape, n in linear_shapes(w).items()}
    linear[w.vocab, w.hidden] = 2.0 * w.vocab * w.hidden * states
    width = w.hidden // w.heads
    seen = sum(n * (n + 1) / 2 + job.samples * steps * (n + (steps + 1) / 2) for n in lengths)
    weights = w.vocab * w.hidden + sum(a * b * n for (a, b), n in linear_shapes(w).items())
    cells = sum(lengths) * steps + rows * steps * (steps + 1) / 2
    cell = 2 * w.kv_heads * width * w.layers
    return Work(linear, 4.0 * width * w.heads * w.layers * seen, weights * (steps + 1) + cell * cells)


def bounds(job: Job, dtype: str) -> dict[str, Any]:
    """Seconds of the products alone, at the better of the rates on as many rows as are decoded and on many;
    and seconds of reading weights and cache alone.
    """
    work = work_of(job, WORKLOAD, [len(prompt) for prompt in asked(job)])
    few, many = (rates(WORKLOAD, dtype, rows) for rows in (job.prompts * job.samples, 2048))
    best = {
        shape: max(found[f"{shape[0]}x{shape[1]}"]["forward"] for found in (few, many))
        for shape in work.linear
    }
    seconds = sum(flop / best[shape] for shape, flop in work.linear.items()) / 1e9
    seconds += work.attention / many["attention"]["rate"] / 1e9
    gbytes = work.moved * torch.finfo(DTYPES[dtype]).bits / 8 / 1e9
    rate = read_rate()
    return {
        "gflop": round((sum(work.linear.values()) + work.attention) / 1e9, 1),
        "gflop_per_s": {f"{a}x{b}": rate for (a, b), rate in best.items()},
        "products_s": round(seconds, 3),
        "gbytes": round(gbytes, 2),
        "read_gb_per_s": round(rate, 1),
        "bytes_s": round(gbytes / rate, 3),
    }


def read_rate() -> float:
    """GB/s of reading memory that no cache holds: the best of ten."""
    x = torch.ones(2**28)  # 1 GiB
    times = []
    for _ in range(10):
        started = time.perf_counter()
        x.sum()
        times.append(time.perf_counter() - started)
    return x.numel() * 4 / min(times) / 1e9


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that workload.make filled")
    parser.add_argument("--side", choices=(*SIDES, "bounds"), required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=Job.tokens)
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    job = Job(tokens=args.tokens)
    with contextlib.redirect_stdout(sys.stderr):
        result = bounds(job, args.dtype) if args.side == "bounds" else timed(args, job)
    print(json.dumps(result))


def timed(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """One warm-up of few tokens, then one measured run."""
    side = posttrain if args.side == "posttrain" else transformers
    sample = side(args.work, DTYPES[args.dtype])
    sample(Job(2, 2, 4))
    torch.manual_seed(0)
    profile: Any = torch.profiler.profile(record_shapes=True) if args.profile else contextlib.nullcontext()
    started, cpu = time.perf_counter(), time.process_time()
    with profile:
        tokens = sample(job)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    result = {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_memory_mib": round(process_peak_rss_mib(), 1),
    }
    return result | ({"profile": by_kind(profile, WORKLOAD.vocab)} if args.profile else {})


if __name__ == "__main__":
    main()
