"""What both sides measure and how: the clock of the steps, the peak of resident memory, a profile by kind
of work. Imported by the processes of either side.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections import defaultdict
from pathlib import Path
from typing import Any


class Steps:
    """A step lasts from the end of the one before to its own end, so that batching and logging are in it.

    seconds: wall time of each measured step. cpu_seconds: processor time of all threads in it, which a busy
    machine disturbs less. Memory is the high-water mark of the process's resident set, reset when the
    measured steps begin.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._last = self._last_cpu = 0.0
        self._ended = 0

    def begin(self) -> None:
        """Call where the first step begins."""
        if self.warmup == 0:
            reset_peak_rss()
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Call where a step ends."""
        now, cpu = time.perf_counter(), time.process_time()
        self._ended += 1
        if self._ended > self.warmup:
            self.seconds.append(now - self._last)
            self.cpu_seconds.append(cpu - self._last_cpu)
        if self._ended == self.warmup:
            reset_peak_rss()
        self._last, self._last_cpu = time.perf_counter(), time.process_time()


def reset_peak_rss() -> None:
    """Start the kernel's high-water mark anew (Linux; elsewhere the mark of the whole process stands)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib() -> float:
    """MiB of resident memory at its highest since `reset_peak_rss`."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return process_peak_rss_mib()


def process_peak_rss_mib() -> float:
    """MiB of resident memory at its highest since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Which operators stand for which kind of work; the first fragment found in an operator's name decides.
KINDS = (
    ("attention", ("scaled_dot_product", "flash_attention", "::bmm", "::baddbmm")),
    ("matrix product", ("::mm", "::addmm", "mkldnn_linear", "::linear", "::matmul")),
    ("optimizer", ("adam", "clip_grad", "foreach")),
    (
        "copy and cast",
        ("copy_", "_to_copy", "::cat", "::clone", "::index", "::gather", "::scatter", "masked_fill"),
    ),
    ("fill and allocate", ("fill_", "zero_", "empty")),
)


def by_kind(profile: Any, vocab: int) -> dict[str, Any]:
    """Share of the CPU's own time by kind of work, and the costliest operators.

    Work on tensors with a dimension of `vocab` is named apart: it is the head's (and the embedding's).
    """
    kinds: dict[str, float] = defaultdict(float)
    operators: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profile.key_averages(group_by_input_shape=True):
        name = event.key.lower()
        kind = next(
            (k for k, parts in KINDS if any(part in name for part in parts)), "element-wise and other"
        )
        sizes = [size for shape in event.input_shapes if isinstance(shape, list) for size in shape]
        where = "head: " if vocab in sizes and kind != "optimizer" else ""
        kinds[where + kind] += event.self_cpu_time_total
        operators[where + event.key][0] += event.self_cpu_time_total
        operators[where + event.key][1] += event.count
    total = sum(kinds.values())
    top = sorted(operators.items(), key=lambda item: -item[1][0])[:12]
    return {
        "seconds": round(total / 1e6, 2),
        "shares": {k: round(v / total, 3) for k, v in sorted(kinds.items(), key=lambda item: -item[1])},
        "top": {name: {"share": round(us / total, 3), "calls": int(calls)} for name, (us, calls) in top},
    }
