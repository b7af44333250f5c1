"""One training run of posttrain on the workload, as JSON on the last line of stdout.

It is the product's own path: the `train` step with its defaults, but for what the comparison fixes (batch,
order, learning rate and its schedule, AdamW's constants, no centring of rewards: what TRL does by default).
The reference's log-probs are computed once before the loop; their cost is charged to the pairs they were
computed for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import Steps, by_kind, peak_rss_mib, process_peak_rss_mib, reset_peak_rss
from workload import Workload, digest

from posttrain.common.step import StepContext
from posttrain.models.forest import Forest, paths_of
from posttrain.training import fit as loop
from posttrain.training import run as around
from posttrain.training.metrics import Metrics
from posttrain.training.offline import Plan
from posttrain.training.train import STEP, TrainConfig

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo", "beta": 0.1},
    "reward": {"name": "reward", "centring": 0.0},
}
PRECISION = {"bf16": "bfloat16", "f32": "float32"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that workload.make filled")
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--dtype", choices=sorted(PRECISION), default="bf16")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument(
        "--other-reference", action="store_true", help="a reference that is not the policy (DPO)"
    )
    parser.add_argument("--check", action="store_true", help="hash the batches as they reach the model")
    parser.add_argument("--profile", action="store_true", help="profile the reference and the loop")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        result = run(args, Path(scratch))
    print(json.dumps(result))


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    watch = Watch(args)
    rows = shuffled_back(args, scratch / "rows.jsonl")
    cfg = config(args, rows)
    ctx = StepContext(out=scratch / "out", state=scratch / "state", label=args.method)
    with watch.installed():
        STEP.run(cfg, ctx)
    return {
        "side": "posttrain",
        "method": args.method,
        "dtype": args.dtype,
        "step_s": watch.steps.seconds,
        "step_cpu_s": watch.steps.cpu_seconds,
        "outside_s_per_pair": watch.outside / watch.pairs,
        "outside_cpu_s_per_pair": watch.outside_cpu / watch.pairs,
        "losses": watch.losses,
        "batches": watch.batches,
        "peak_rss_mib": watch.peak,
        "process_peak_rss_mib": process_peak_rss_mib(),
        "threads": torch.get_num_threads(),
        "profile": by_kind(watch.profile, Workload.vocab) if watch.profile else None,
    }


def config(args: argparse.Namespace, rows: Path) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": str(args.work / ("scorer" if args.method == "reward" else "policy")),
            "method": METHODS[args.method],
            "data": str(rows),
            "reference": str(args.work / "reference") if args.other_reference else None,
            "steps": args.warmup + args.steps,
            "batch_size": args.batch,
            "optimizer": {"lr": args.lr, "betas": (0.9, 0.999), "warmup": 0.0, "schedule": "constant"},
            "precision": PRECISION[args.dtype],
            "device": "cpu",
        }
    )


def shuffled_back(args: argparse.Namespace, path: Path) -> Path:
    """The workload's rows in an order that the trainer's own shuffle turns into the workload's order."""
    source = args.work / ("sft.jsonl" if args.method == "sft" else "pairs.jsonl")
    count = (args.warmup + args.steps) * args.batch
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    seed = TrainConfig.model_fields["seed"].default
    order = [i for batch in Plan((1,) * count, seed, args.batch).epoch(0) for i in batch]
    placed = dict(zip(order, lines, strict=True))
    path.write_text("".join(placed[i] + "\n" for i in range(count)), encoding="utf-8")
    return path


class Watch:
    """Looks on while the product trains: times and losses where it writes its metrics, the reference's
    cost, batches.
    """

    def __init__(self, args: argparse.Namespace) -> None:
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
            mock.patch.object(loop, "Metrics", self._metrics()),
            mock.patch.object(loop, "forward", self._forward(loop.forward)),
            mock.patch.object(around, "reference_logps", self._reference(around.reference_logps)),
        ):
            yield

    def _metrics(self) -> type[Metrics]:
        watch = self

        class Watched(Metrics):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                watch.profile_on()
                watch.steps.begin()

            def write(self, step: int, split: str, values: dict[str, float]) -> None:
                super().write(step, split, values)
                watch.ended(values["loss"])

        return Watched

    def profile_on(self) -> None:
        """From here to the last step; loading and saving are left out."""
        if self.profile and not self._profiling:
            self.profile.start()
            self._profiling = True

    def ended(self, loss: float) -> None:
        self.steps.end()
        self.losses.append(loss)
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
    main()
