"""One GRPO run of TRL, as JSON on the last line of stdout. A process of its own, in TRL's environment,
started by `rl.py`.

TRL's defaults stand, but for what the comparison fixes: the group of samples and its length, the KL's
weight, learning rate and schedule, the order of the prompts, no checkpoints or reports, and the published
objective (every answer by the mean over its tokens), which costs what the default does. All answers of a step
are one microbatch, and activations are kept, unless options say otherwise.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import side
import torch
from rl_workload import digest, evens
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_train import rows, settings, train


def arguments() -> Namespace:
    parser = side.online_parser(__doc__, ("grpo",))
    parser.add_argument("--micro", type=int, default=0, help="answers of one forward, 0 for all of a step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in backward")
    return parser.parse_args()


def run(args: Namespace, scratch: Path) -> dict[str, Any]:
    trainer = build(args, scratch)
    steps, profile = train(trainer, args.warmup, args.profile)
    return side.result(
        "trl",
        steps,
        profile,
        parts_s=trainer.parts[args.warmup :],
        answer_tokens=trainer.answer_tokens,
        losses=trainer.losses,
        rewards=trainer.rewards,
        prompts=trainer.prompts,
    )


def build(args: Namespace, scratch: Path) -> Any:
    answers = args.prompts * args.samples
    micro = args.micro or answers
    steps = args.warmup + args.steps
    config = GRPOConfig(
        **settings(scratch, args.dtype, steps, args.lr),
        gradient_checkpointing=args.checkpointing,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=answers // micro,
        num_generations=args.samples,
        max_completion_length=args.tokens,
        num_iterations=1,
        beta=0.04,
        loss_type="grpo",
        shuffle_dataset=False,
        lr_scheduler_type="constant",
    )
    model = args.work / "talker"
    return Watched(
        model=str(model),
        args=config,
        reward_funcs=[shares_of_even],
        train_dataset=rows(args.work / "prompts.jsonl", steps * args.prompts),
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
    parsed = arguments()
    side.show(lambda scratch: run(parsed, scratch))
