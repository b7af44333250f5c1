"""One GRPO run of TRL, as JSON on the last line of stdout. Runs in TRL's own environment.

TRL's defaults stand, but for what the comparison fixes: the group of samples and its length, the KL's
weight, learning rate and schedule, the order of the prompts, no checkpoints or reports, and the published
objective (every answer by the mean over its tokens), which costs what the default does. All answers of a step
are one microbatch, and activations are kept, unless options say otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Steps, by_kind, peak_rss_mib, process_peak_rss_mib
from rl_workload import digest, evens
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_side import Clock
from workload import Workload


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that rl_workload.make filled")
    parser.add_argument("--method", choices=("grpo",), default="grpo")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--micro", type=int, default=0, help="answers of one forward, 0 for all of a step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in backward")
    parser.add_argument("--profile", action="store_true", help="profile the steps by kind of work")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        result = run(args, scratch)
    print(json.dumps(result))


def run(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    steps = Steps(args.warmup)
    trainer = build(args, scratch)
    trainer.add_callback(Clock(steps))
    profile = None
    if args.profile:
        with torch.profiler.profile(record_shapes=True) as profile:
            trainer.train()
    else:
        trainer.train()
    return {
        "side": "trl",
        "step_s": steps.seconds,
        "step_cpu_s": steps.cpu_seconds,
        "parts_s": trainer.parts[args.warmup :],
        "answer_tokens": trainer.answer_tokens,
        "losses": trainer.losses,
        "rewards": trainer.rewards,
        "prompts": trainer.prompts,
        "peak_rss_mib": peak_rss_mib(),
        "process_peak_rss_mib": process_peak_rss_mib(),
        "threads": torch.get_num_threads(),
        "profile": by_kind(profile, Workload.vocab) if profile else None,
    }


def build(args: argparse.Namespace, scratch: str) -> Any:
    answers = args.prompts * args.samples
    micro = args.micro or answers
    config = GRPOConfig(
        output_dir=scratch,
        use_cpu=True,
        bf16=args.dtype == "bf16",
        gradient_checkpointing=args.checkpointing,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=answers // micro,
        num_generations=args.samples,
        max_completion_length=args.tokens,
        num_iterations=1,
        beta=0.04,
        loss_type="grpo",
        max_steps=args.warmup + args.steps,
        shuffle_dataset=False,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    with open(args.work / "prompts.jsonl") as f:
        lines = [json.loads(line) for line in f]
    model = args.work / "talker"
    return Watched(
        model=str(model),
        args=config,
        reward_funcs=[shares_of_even],
        train_dataset=Dataset.from_list(lines[: (args.warmup + args.steps) * args.prompts]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )


def shares_of_even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [evens(ids) for ids in completion_ids]


class Watched(GRPOTrainer):
    """Notes what each step spends on sampling, on the rest of the rollout (rewards, reference) and on the
    update, and on which prompts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.parts: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.rewards: list[float] = []
        self.prompts: list[str] = []
        self.answer_tokens = 0
        self._now: dict[str, float] = defaultdict(float)
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: list[Any]) -> Any:
        began = time.perf_counter()
        found = super()._generate(prompts)
        self._now["sampling"] += time.perf_counter() - began
        self.prompts.append(digest(found[0]))
        self.answer_tokens = sum(map(len, found[1]))
        self.rewards.append(sum(map(evens, found[1])) / len(found[1]))
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        began = time.perf_counter()
        found = super()._generate_and_score_completions(inputs)
        self._now["scoring_and_reference"] += time.perf_counter() - began - self._now["sampling"]
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        began, before = time.perf_counter(), sum(self._now.values()) - self._now["update"]
        loss = super().training_step(*args, **kwargs)
        rollout = sum(self._now.values()) - self._now["update"] - before
        self._now["update"] += time.perf_counter() - began - rollout
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.parts.append({name: round(s, 3) for name, s in self._now.items()})
            self._now = defaultdict(float)
        super().log(logs, *args, **kwargs)


if __name__ == "__main__":
    main()
