"""The machine's own matrix rate on the model's shapes, and how long a training step's products alone would
take at it. A script to run by itself, which `offline.py` also starts in a process of its own; the files of
bounds import its rates.

Model FLOPs are those of the mathematics: every token of the forest through the layers, wanted tokens
through the head, visible pairs through the attention; backward twice the forward, the reference once the
forward. What an implementation computes a second time (recomputed logits and scores) is not counted: it is
part of what keeps a step from the rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from workload import Workload, pairs

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
PARTS = ("forward", "input gradient", "weight gradient")


@dataclass(frozen=True)
class Products:
    """Model FLOPs of one step of one method, by shape. linear: outputs x inputs of a weight -> FLOPs of its
    forward.

    passes: how often the forward's FLOPs are spent on each part; the reference adds a forward.
    """

    linear: dict[tuple[int, int], float]
    attention: float
    forwards: int

    @property
    def total(self) -> float:
        return (sum(self.linear.values()) + self.attention) * (self.forwards + 2)


def products(w: Workload, method: str, batches: int) -> Products:
    """Mean model FLOPs of a step of `method` over the first `batches` batches."""
    layers: dict[tuple[int, int], float] = {}
    head = attention = 0.0
    width = w.hidden // w.heads
    for prompt, chosen, rejected in pairs(w)[: batches * w.batch]:
        responses = [len(chosen)] if method == "sft" else [len(chosen), len(rejected)]
        tokens = len(prompt) + sum(responses)
        for shape, times in linear_shapes(w).items():
            layers[shape] = layers.get(shape, 0.0) + 2.0 * shape[0] * shape[1] * times * tokens / batches
        if method != "reward":
            head += 2.0 * w.vocab * w.hidden * sum(responses) / batches
        seen = len(prompt) * (len(prompt) + 1) / 2 + sum(r * len(prompt) + r * (r + 1) / 2 for r in responses)
        attention += 4.0 * width * w.heads * w.layers * seen / batches
    if head:
        layers[(w.vocab, w.hidden)] = head
    return Products(layers, attention, 2 if method == "dpo" else 1)


def linear_shapes(w: Workload) -> dict[tuple[int, int], int]:
    """(outputs, inputs) of the layers' weights -> how many of them the whole model has."""
    keys = w.hidden // w.heads * w.kv_heads
    shapes: dict[tuple[int, int], int] = {}
    for shape, times in (
        ((w.hidden, w.hidden), 2),
        ((keys, w.hidden), 2),
        ((w.intermediate, w.hidden), 2),
        ((w.hidden, w.intermediate), 1),
    ):
        shapes[shape] = shapes.get(shape, 0) + times * w.layers
    return shapes


def rates(w: Workload, dtype: str, rows: int, seconds: float = 0.3) -> dict[str, dict[str, float]]:
    """GFLOP/s by weight shape and part, and of attention's batched products. rows: tokens of one product."""
    kind = DTYPES[dtype]
    found: dict[str, dict[str, float]] = {}
    for out, inner in [*linear_shapes(w), (w.vocab, w.hidden)]:
        n = rows if out != w.vocab else 256
        x, g = torch.randn(n, inner, dtype=kind), torch.randn(n, out, dtype=kind)
        weight = torch.randn(out, inner, dtype=kind)
        work = 2.0 * n * out * inner
        found[f"{out}x{inner}"] = {
            "rows": n,
            PARTS[0]: _rate(lambda x=x, m=weight: torch.nn.functional.linear(x, m), work, seconds),
            PARTS[1]: _rate(lambda g=g, m=weight: g @ m, work, seconds),
            PARTS[2]: _rate(lambda g=g, x=x: g.t() @ x, work, seconds),
        }
    found["attention"] = {"rate": _attention_rate(w, kind, seconds)}
    return found


def _attention_rate(w: Workload, kind: torch.dtype, seconds: float) -> float:
    """Mean rate of scores, answers and their gradients, for a mean response that sees a mean prompt."""
    width, group = w.hidden // w.heads, w.heads // w.kv_heads
    rows, keys = int(w.response_mean) * group, int(w.prompt_mean + w.response_mean)
    q, k = torch.randn(w.kv_heads, rows, width, dtype=kind), torch.randn(w.kv_heads, keys, width, dtype=kind)
    p = torch.randn(w.kv_heads, rows, keys, dtype=kind)
    work = 2.0 * w.kv_heads * rows * keys * width
    each = (
        lambda: torch.bmm(q, k.transpose(1, 2)),
        lambda: torch.bmm(p, k),
        lambda: torch.bmm(p.transpose(1, 2), q),
    )
    return statistics.harmonic_mean([_rate(f, work, seconds) for f in each])


def _rate(product: Callable[[], Tensor], work: float, seconds: float) -> float:
    """GFLOP/s of the fastest tenth of calls, so that being interrupted does not count."""
    for _ in range(3):
        product()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 20:
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return round(work / statistics.quantiles(times, n=10)[0] / 1e9, 1)


def ideal_seconds(p: Products, measured: dict[str, dict[str, float]]) -> float:
    """Seconds of a step of nothing but its products, each at the rate measured for its shape."""
    total = 0.0
    for (out, inner), work in p.linear.items():
        speed = measured[f"{out}x{inner}"]
        total += p.forwards * work / speed[PARTS[0]] + work / speed[PARTS[1]] + work / speed[PARTS[2]]
    total += p.attention * (p.forwards + 2) / measured["attention"]["rate"]
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    w = Workload()
    report: dict[str, object] = {}
    for dtype in args.dtypes:
        measured = rates(w, dtype, rows=mean_rows(w, args.batches))
        ideal = {}
        for method in ("sft", "dpo", "reward"):
            p = products(w, method, args.batches)
            seconds = ideal_seconds(p, measured)
            ideal[method] = {
                "model_gflop": round(p.total / 1e9, 1),
                "ideal_s": round(seconds, 3),
                "gflop_per_s": round(p.total / seconds / 1e9, 1),
            }
        report[dtype] = {"rates": measured, "steps": ideal}
    print(json.dumps(report, indent=1))


def mean_rows(w: Workload, batches: int) -> int:
    """Tokens of a mean batch of pairs, shared prompts once."""
    return sum(len(part) for row in pairs(w)[: batches * w.batch] for part in row) // batches


if __name__ == "__main__":
    main()
