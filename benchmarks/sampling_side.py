"""One run of sampling with posttrain or with transformers, as JSON on the last line of stdout. A process of
its own, in posttrain's environment, started by `sampling.py`.

Both sides draw from the whole distribution at temperature 1; ours also returns log-probs.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import side
import torch
from matrix_rate import DTYPES
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


def timed(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """One warm-up of few tokens, then one measured run."""
    torch.set_num_threads(args.threads)
    opened = posttrain if args.side == "posttrain" else transformers
    sample = opened(args.work, DTYPES[args.dtype])
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


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Flags of a run and of its bounds."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--work", type=Path, required=True, help="folder that workload.make filled")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=Job.tokens)
    return parser


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    parsed = arguments()
    side.show(lambda _: timed(parsed, Job(tokens=parsed.tokens)))
