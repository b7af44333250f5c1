"""One run of online training with posttrain, as JSON on the last line of stdout. A process of its own, in
posttrain's environment, started by `rl.py`.

It is the product's own path: the `train` step with its defaults, but for what the comparison fixes (prompts
and their order, samples, their length, learning rate and its schedule, AdamW's constants).
"""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import side
import torch
from measure import Steps
from ours_train import PRECISION, shuffled_back, train, watching
from rl_workload import LAYOUTS, digest

from posttrain.training import online, rollout_data
from posttrain.training.source import Work

METHODS = ("grpo", *LAYOUTS)


def run(args: Namespace, scratch: Path) -> dict[str, Any]:
    watch = Watch(args)
    prompts = shuffled_back(args, args.work / "prompts.jsonl", scratch / "prompts.jsonl", args.prompts)
    with watch.installed():
        train(args, scratch, args.prompts, **settings(args, prompts))
    return side.result(
        "posttrain",
        watch.steps,
        watch.profile,
        parts_s=watch.parts[args.warmup :],
        answer_tokens=watch.tokens,
        losses=watch.losses,
        rewards=watch.rewards,
        prompts=watch.prompts,
    )


def settings(args: Namespace, prompts: Path) -> dict[str, Any]:
    policy, scorer = str(args.work / "talker"), str(args.work / "scorer")
    method: dict[str, Any] = {"name": "grpo", "kl": 0.04} if args.method == "grpo" else {"name": "ppo"}
    judge: Any = "rl_judges:Evens"
    if args.method in LAYOUTS:
        judge = {"name": "rl_judges:Whole", "model": scorer, "precision": PRECISION[args.dtype]}
    if args.method in ("ppo-separate", "ppo-lora"):
        method["critic"] = scorer if args.method == "ppo-separate" else "lora"
    return {
        "model": {"path": policy, "lora": {}} if args.method == "ppo-lora" else policy,
        "method": method,
        "online": {
            "prompts": str(prompts),
            "judge": judge,
            "n": args.samples,
            "max_new_tokens": args.tokens,
            "truncated": "judge",
        },
    }


class Watch:
    """Looks on while the product trains: whole steps, and what each spends on its parts.

    parts: for each step, seconds of sampling, of scoring (the judge), of log-probs (and values) under the
    policy and under the reference, of the update, and of what is left.
    """

    def __init__(self, args: Namespace) -> None:
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
            watching(self.steps.begin, self.ended),
            mock.patch.object(online, "answer", self._answer(online.answer)),
            mock.patch.object(online, "policy_data", self._policy_data(online.policy_data)),
            mock.patch.object(rollout_data, "along_tokens", self._along(rollout_data.along_tokens)),
            mock.patch.object(online.Online, "batches", self._batches(online.Online.batches)),
        ):
            yield

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
    arguments = side.online_parser(__doc__, METHODS).parse_args()
    side.show(lambda scratch: run(arguments, scratch))
