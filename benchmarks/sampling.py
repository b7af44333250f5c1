"""Sampling: posttrain's local engine against transformers' `generate`, from the same weights and prompts.

As a script it is one run of one side, or the machine's bounds, as JSON on the last line of stdout; `part` is
the benchmark's. Both sides draw from the whole distribution at temperature 1; ours also returns log-probs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from matrix_rate import DTYPES, linear_shapes, rates
from measure import by_kind, process_peak_rss_mib
from workload import EOS, PAD, Workload, pairs

SIDES = ("posttrain", "transformers")


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

    def run(side: str) -> dict[str, Any]:
        done = subprocess.run([*call, "--side", side], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"sampling, {side} failed\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    bounds = run("bounds")
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
        "bounds": bounds,
        "share_of_bound": {
            "products": round(bounds["products_s"] / ours["median"], 3),
            "bytes": round(bounds["bytes_s"] / ours["median"], 3),
        },
        "rounds": rounds,
    }
    return {"sampling": found}


def asked(job: Job) -> list[list[int]]:
    """The first prompts of the workload."""
    return [prompt for prompt, _, _ in pairs(Workload(pairs=job.prompts))]


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


def bounds(job: Job, dtype: str) -> dict[str, Any]:
    """Seconds of the products alone, and of reading weights and cache alone.

    Each prompt once through the layers and its last state through the head; then for each token one row of
    every product, its attention, and one read of all weights, of each prompt's cache and of each row's own.
    Rates are the better of those on as many rows as are decoded and on many.
    """
    w = Workload()
    rows = job.prompts * job.samples
    few, many = rates(w, dtype, rows), rates(w, dtype, 2048)
    lengths = [len(prompt) for prompt in asked(job)]
    width = w.hidden // w.heads
    seconds = flop = 0.0
    tokens = sum(lengths) + rows * (job.tokens - 1)
    heads = job.prompts + rows * (job.tokens - 1)
    for shape, times in (*linear_shapes(w).items(), ((w.vocab, w.hidden), 1)):
        name = f"{shape[0]}x{shape[1]}"
        work = 2.0 * shape[0] * shape[1] * times * (heads if shape[0] == w.vocab else tokens)
        flop += work
        seconds += work / max(few[name]["forward"], many[name]["forward"])
    steps = job.tokens - 1
    seen = sum(n * (n + 1) / 2 + job.samples * steps * (n + (steps + 1) / 2) for n in lengths)
    work = 4.0 * width * w.heads * w.layers * seen
    flop += work
    seconds += work / many["attention"]["rate"]
    size = torch.finfo(DTYPES[dtype]).bits // 8
    weights = w.vocab * w.hidden + sum(a * b * times for (a, b), times in linear_shapes(w).items())
    cell = 2 * w.kv_heads * width * w.layers
    cache = sum(lengths) * steps + rows * steps * (steps + 1) / 2
    moved = size * (weights * (steps + 1) + cell * cache)
    rate = read_rate()
    return {
        "gflop": round(flop / 1e9, 1),
        "products_s": round(seconds / 1e9, 3),
        "gbytes": round(moved / 1e9, 2),
        "read_gb_per_s": round(rate, 1),
        "bytes_s": round(moved / rate / 1e9, 3),
        "rates_few_rows": {name: value.get("forward") for name, value in few.items()},
        "rates_many_rows": {name: value.get("forward") for name, value in many.items()},
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
    return result | ({"profile": by_kind(profile, Workload.vocab)} if args.profile else {})


if __name__ == "__main__":
    main()
