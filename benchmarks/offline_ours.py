"""One run of posttrain on sft, dpo or the reward model, as JSON on the last line of stdout. A process of its
own, in posttrain's environment, started by `offline.py`.

It is the product's own path: the `train` step with its defaults, but for what the comparison fixes (batch,
order, learning rate and its schedule, AdamW's constants, no centring of rewards: what TRL does by default).
The reference's log-probs are computed once before the loop; their cost is charged to the pairs they were
computed for.
"""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import side
import torch
from measure import Steps, peak_rss_mib, reset_peak_rss
from ours_train import shuffled_back, train, watching
from workload import digest

from posttrain.models.forest import Forest, paths_of
from posttrain.training import fit as loop
from posttrain.training import run as around

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo", "beta": 0.1},
    "reward": {"name": "reward", "centring": 0.0},
}


def run(args: Namespace, scratch: Path) -> dict[str, Any]:
    watch = Watch(args)
    source = args.work / ("sft.jsonl" if args.method == "sft" else "pairs.jsonl")
    with watch.installed():
        train(
            args,
            scratch,
            args.batch,
            model=str(args.work / ("scorer" if args.method == "reward" else "policy")),
            method=METHODS[args.method],
            data=str(shuffled_back(args, source, scratch / "rows.jsonl", args.batch)),
            reference=str(args.work / "reference") if args.other_reference else None,
        )
    return side.result(
        "posttrain",
        watch.steps,
        watch.profile,
        method=args.method,
        dtype=args.dtype,
        outside_s_per_pair=watch.outside / watch.pairs,
        outside_cpu_s_per_pair=watch.outside_cpu / watch.pairs,
        losses=watch.losses,
        batches=watch.batches,
        peak_rss_mib=watch.peak,
    )


class Watch:
    """Looks on while the product trains: times and losses where it writes its metrics, the reference's
    cost, batches.
    """

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.steps = Steps(args.warmup)
        self.pairs = (args.warmup + args.steps) * args.batch
        self.outside = self.outside_cpu = self.peak = 0.0
        self.losses: list[float] = []
        self.batches: list[str] = []
        self.profile = torch.profiler.profile(record_shapes=True) if args.profile else None
        self._profiling = False
        self._sequences: list[tuple[list[int], int]] = []

    @contextlib.contextmanager
    def installed(self) -> Any:
        with (
            watching(self.began, self.ended),
            mock.patch.object(loop, "forward", self._forward(loop.forward)),
            mock.patch.object(around, "reference_logps", self._reference(around.reference_logps)),
        ):
            yield

    def began(self) -> None:
        self.profile_on()
        self.steps.begin()

    def profile_on(self) -> None:
        """From here to the last step; loading and saving are left out."""
        if self.profile and not self._profiling:
            self.profile.start()
            self._profiling = True

    def ended(self, values: dict[str, float]) -> None:
        self.steps.end()
        self.losses.append(values["loss"])
        if self.profile and len(self.losses) == self.args.warmup + self.args.steps:
            self.profile.stop()
        self.peak = max(self.peak, peak_rss_mib()) if self.steps.seconds else self.peak
        if self._sequences:
            self.batches.append(digest(self._sequences))
            self._sequences = []

    def _forward(self, inner: Any) -> Any:
        def forward(model: Any, forest: Forest, *rest: Any) -> Any:
            if self.args.check:
                wanted = forest.lengths.tolist() if self.args.method != "reward" else [0] * forest.branches
                paths = [forest.tokens[path].tolist() for path in paths_of(forest)]
                self._sequences += [(path, int(n)) for path, n in zip(paths, wanted, strict=True)]
            return inner(model, forest, *rest)

        return forward

    def _reference(self, inner: Any) -> Any:
        def reference_logps(*args: Any, **kwargs: Any) -> Any:
            self.profile_on()
            reset_peak_rss()
            wall, cpu = time.perf_counter(), time.process_time()
            found = inner(*args, **kwargs)
            self.outside += time.perf_counter() - wall
            self.outside_cpu += time.process_time() - cpu
            self.peak = max(self.peak, peak_rss_mib())
            return found

        return reference_logps


if __name__ == "__main__":
    arguments = side.offline_arguments(__doc__)
    side.show(lambda scratch: run(arguments, scratch))
