"""One run of the plain method of the Phi-4 report (arXiv:2412.08905, section 4.3), as JSON on the last line
of stdout. A process of its own, in posttrain's environment, started by `pivotal.py`.

One prefix at a time through transformers' `generate`, batches of five samples, nothing kept from one prefix
for another, and the oracle asked about each answer.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from typing import Any

import pivotal_case
import side
import torch
from matrix_rate import DTYPES
from measure import process_peak_rss_mib
from pivotal_case import BATCH, Job, Request
from rl_workload import read_workload
from workload import PAD


def success(model: Any, prompt: list[int], request: Request, job: Job, ends: set[int]) -> Counter[str]:
    """Of so many rollouts from one prefix: how many are right, how many tokens they have, and how many were
    computed, those behind an answer's end in a batch that still goes on included.
    """
    start = torch.tensor([[*prompt, *request.prefix]])
    found: Counter[str] = Counter(rollouts=request.n, tokens_prefilled=request.n * start.shape[1])
    for first in range(0, request.n, BATCH):
        rows = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=min(BATCH, request.n - first),
            max_new_tokens=job.tokens - len(request.prefix),
            pad_token_id=PAD,
        )[:, start.shape[1] :].tolist()
        for row in rows:
            end = next((i for i, token in enumerate(row) if token in ends), None)
            found["tokens_computed"] += len(row)
            found["tokens"] += len(row) if end is None else end + 1
            if end is not None:
                found["right"] += pivotal_case.right(request.question, [*request.prefix, *row[: end + 1]])
    return found


def drawn(levels: list[list[Request]], share: float) -> list[Request]:
    """A share of the requests, at random; what they cost is that share of what all cost, but for chance."""
    requests = [request for level in levels for request in level]
    random.Random(0).shuffle(requests)
    return requests[: max(1, round(share * len(requests)))]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A warm-up of a few tokens, then the requests one by one. seconds, cpu_seconds: of all requests, where
    only a share was made; the counts are those of that share.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    job, w = pivotal_case.job_of(args), read_workload(args.work)
    model: Any = AutoModelForCausalLM.from_pretrained(args.work / "policy", dtype=DTYPES[args.dtype])
    ends = pivotal_case.stops(w, job)
    model.generation_config.eos_token_id = ends
    prompts = pivotal_case.prompts(w, job)
    success(model, prompts[0], Request(0, [], 2), Job(tokens=4), set(ends))
    torch.manual_seed(0)
    levels = pivotal_case.read(args.requests)
    requests = drawn(levels, args.share)
    found: Counter[str] = Counter()
    started, cpu = time.perf_counter(), time.process_time()
    for request in requests:
        found += success(model, prompts[request.question], request, job, set(ends))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    share = found["rollouts"] / sum(request.n for level in levels for request in level)
    return {
        "share": round(share, 4),
        "seconds": round(seconds / share, 2),
        "cpu_seconds": round(cpu / share, 2),
        "requests": len(requests),
        **found,
        "peak_memory_mib": round(process_peak_rss_mib(), 1),
    }


if __name__ == "__main__":
    parser = pivotal_case.parser_of(__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the requests, drawn at random")
    parsed = parser.parse_args()
    side.show(lambda _: run(parsed))
