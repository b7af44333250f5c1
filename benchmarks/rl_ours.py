"""One run of online training with posttrain, as JSON on the last line of stdout.

It is the product's own path: the `train` step with its defaults, but for what the comparison fixes (prompts
and their order, samples, their length, learning rate and its schedule, AdamW's constants).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import Steps, by_kind, peak_rss_mib, process_peak_rss_mib
from ours_side import PRECISION
from rl_workload import digest
from workload import Workload

from posttrain.common.step import StepContext
from posttrain.training import fit as loop
from posttrain.training import online, rollout_data
from posttrain.training.metrics import Metrics
from posttrain.training.offline import Plan
from posttrain.training.source import Work
from posttrain.training.train import STEP, TrainConfig

# How many of PPO's models are held: `separate` four, `shared` three (the critic is a head on the policy),
# `lora` two (policy, critic and reference are one base with two adapters; the reward model stands apart).
LAYOUTS = {"ppo-separate": 4, "ppo-shared": 3, "ppo-lora": 2}
METHODS = ("grpo", *LAYOUTS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that rl_workload.make filled")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--dtype", choices=sorted(PRECISION), default="bf16")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--profile", action="store_true", help="profile the steps by kind of work")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        result = run(args, Path(scratch))
    print(json.dumps(result))


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    watch = Watch(args)
    cfg = config(args, shuffled_back(args, scratch / "prompts.jsonl"))
    with watch.installed():
        STEP.run(cfg, StepContext(out=scratch / "out", state=scratch / "state", label=args.method))
    return {
        "side": "posttrain",
        "step_s": watch.steps.seconds,
        "step_cpu_s": watch.steps.cpu_seconds,
        "parts_s": watch.parts[args.warmup :],
        "answer_tokens": watch.tokens,
        "losses": watch.losses,
        "rewards": watch.rewards,
        "prompts": watch.prompts,
        "peak_rss_mib": peak_rss_mib(),
        "process_peak_rss_mib": process_peak_rss_mib(),
        "threads": torch.get_num_threads(),
        "profile": by_kind(watch.profile, Workload.vocab) if watch.profile else None,
    }


def config(args: argparse.Namespace, prompts: Path) -> TrainConfig:
    policy, scorer = str(args.work / "talker"), str(args.work / "scorer")
    method: dict[str, Any] = {"name": "grpo", "kl": 0.04} if args.method == "grpo" else {"name": "ppo"}
    judge: Any = "rl_judges:Evens"
    if args.method in LAYOUTS:
        judge = {"name": "rl_judges:Whole", "model": scorer, "precision": PRECISION[args.dtype]}
    if args.method in ("ppo-separate", "ppo-lora"):
        method["critic"] = scorer if args.method == "ppo-separate" else "lora"
    return TrainConfig.model_validate(
        {
            "model": {"path": policy, "lora": {}} if args.method == "ppo-lora" else policy,
            "method": method,
            "online": {
                "prompts": str(prompts),
                "judge": judge,
                "n": args.samples,
                "max_new_tokens": args.tokens,
                "truncated": "judge",
            },
            "steps": args.warmup + args.steps,
            "batch_size": args.prompts,
            "optimizer": {"lr": args.lr, "betas": (0.9, 0.999), "warmup": 0.0, "schedule": "constant"},
            "precision": PRECISION[args.dtype],
            "device": "cpu",
        }
    )


def shuffled_back(args: argparse.Namespace, path: Path) -> Path:
    """The prompts in an order that the rollouts' own shuffle turns into the wanted order."""
    count = (args.warmup + args.steps) * args.prompts
    lines = (args.work / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    seed = TrainConfig.model_fields["seed"].default
    order = [i for batch in Plan((1,) * count, seed, args.prompts).epoch(0) for i in batch]
    placed = dict(zip(order, lines, strict=True))
    path.write_text("".join(placed[i] + "\n" for i in range(count)), encoding="utf-8")
    return path


class Watch:
    """Looks on while the product trains: whole steps, and what each spends on its parts.

    parts: for each step, seconds of sampling, of scoring (the judge), of log-probs (and values) under the
    policy and under the reference, of the update, and of what is left.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.steps = Steps(args.warmup)
        self.parts: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.rewards: list[float] = []
        self.prompts: list[str] = []
        self.tokens = 0
        self.profile = torch.profiler.profile(record_shapes=True) if args.profile else None
        self._now: dict[str, float] = defaultdict(float)
        self._reference: Any = None
        self._updating = 0.0

    @contextlib.contextmanager
    def installed(self) -> Any:
        with (
            mock.patch.object(loop, "Metrics", self._metrics()),
            mock.patch.object(online, "answer", self._answer(online.answer)),
            mock.patch.object(online, "policy_data", self._policy_data(online.policy_data)),
            mock.patch.object(rollout_data, "along_tokens", self._along(rollout_data.along_tokens)),
            mock.patch.object(online.Online, "batches", self._batches(online.Online.batches)),
        ):
            yield

    def _metrics(self) -> type[Metrics]:
        watch = self

        class Watched(Metrics):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                watch.steps.begin()

            def write(self, step: int, split: str, values: dict[str, float]) -> None:
                super().write(step, split, values)
                watch.ended(values)

        return Watched

    def ended(self, values: dict[str, float]) -> None:
        """A step is over."""
        self._now["update"] = time.perf_counter() - self._updating
        self.steps.end()
        self.parts.append({name: round(s, 3) for name, s in self._now.items()})
        self._now = defaultdict(float)
        self.losses.append(values["loss"])
        self.rewards.append(values["reward"])
        done = len(self.losses)
        if self.profile and done == self.args.warmup:
            self.profile.start()
        if self.profile and done == self.args.warmup + self.args.steps:
            self.profile.stop()

    def _answer(self, inner: Any) -> Any:
        def answer(engine: Any, template: Any, judge: Any, asked: Any, *rest: Any) -> Any:
            done = inner(engine, template, judge, asked, *rest)
            self._now["sampling"] += done.seconds["sampling"]
            self._now["scoring"] += done.seconds["judging"]
            self.tokens = done.counts["tokens"]
            self.prompts.append(digest(one.ids for one in asked))
            return done

        return answer

    def _policy_data(self, inner: Any) -> Any:
        def policy_data(method: Any, cfg: Any, groups: Any, policy: Any, reference: Any, **how: Any) -> Any:
            self._reference = reference
            return inner(method, cfg, groups, policy, reference, **how)

        return policy_data

    def _along(self, inner: Any) -> Any:
        def along_tokens(model: Any, *args: Any, **how: Any) -> Any:
            began = time.perf_counter()
            found = inner(model, *args, **how)
            name = "reference_logps" if model is self._reference else "policy_logps"
            self._now[name] += time.perf_counter() - began
            return found

        return along_tokens

    def _batches(self, inner: Any) -> Any:
        def batches(source: Any, start: int, stop: int) -> Iterator[Work]:
            found = inner(source, start, stop)
            while True:
                began = time.perf_counter()
                work = next(found, None)
                if work is None:
                    return
                self._updating = time.perf_counter()
                self._now["rest"] += self._updating - began - sum(self._now.values())
                yield work

        return batches


if __name__ == "__main__":
    main()
