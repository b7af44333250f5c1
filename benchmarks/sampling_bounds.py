"""How long sampling would take at the machine's own matrix rate and at its rate of reading memory, as JSON on
the last line of stdout. A process of its own, in posttrain's environment, started by `sampling.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import side
import torch
from matrix_rate import DTYPES, linear_shapes, rates
from sampling_side import WORKLOAD, Job, asked, parser_of
from workload import Workload


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


if __name__ == "__main__":
    parsed = parser_of(__doc__).parse_args()
    torch.set_num_threads(parsed.threads)
    side.show(lambda _: bounds(Job(tokens=parsed.tokens), parsed.dtype))
