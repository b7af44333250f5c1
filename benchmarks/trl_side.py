"""One training run of TRL on the workload, as JSON on the last line of stdout. Runs in TRL's own environment.

TRL's defaults stand, but for what the comparison fixes (batch, order, learning rate, no checkpoints or
reports) and for gradient checkpointing, which is switched off: it costs TRL time, and a user who wants
speed switches it off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Steps, by_kind, peak_rss_mib, process_peak_rss_mib
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from workload import PAD, Workload, digest

METHODS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTConfig, SFTTrainer),
    "dpo": (DPOConfig, DPOTrainer),
    "reward": (RewardConfig, RewardTrainer),
}


class Clock(TrainerCallback):
    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.end()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that workload.make filled")
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument(
        "--other-reference", action="store_true", help="a reference that is not the policy (DPO)"
    )
    parser.add_argument("--check", action="store_true", help="hash the batches as they reach the model")
    parser.add_argument("--profile", action="store_true", help="profile the loop")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        result = run(args, scratch)
    print(json.dumps(result))


def run(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    steps = Steps(args.warmup)
    trainer, seen = build(args, scratch)
    trainer.add_callback(Clock(steps))
    profile = None
    if args.profile:
        with torch.profiler.profile(record_shapes=True) as profile:
            trainer.train()
    else:
        trainer.train()
    return {
        "side": "trl",
        "method": args.method,
        "dtype": args.dtype,
        "step_s": steps.seconds,
        "step_cpu_s": steps.cpu_seconds,
        "outside_s_per_pair": 0.0,
        "outside_cpu_s_per_pair": 0.0,
        "losses": [float(loss) for loss in seen["losses"]],
        "batches": seen["batches"],
        "peak_rss_mib": peak_rss_mib(),
        "process_peak_rss_mib": process_peak_rss_mib(),
        "threads": torch.get_num_threads(),
        "profile": by_kind(profile, Workload.vocab) if profile else None,
    }


def build(args: argparse.Namespace, scratch: str) -> tuple[Any, dict[str, list[Any]]]:
    """The trainer, and what its steps will have seen."""
    config_class, trainer_class = METHODS[args.method]
    config = config_class(
        output_dir=scratch,
        use_cpu=True,
        bf16=args.dtype == "bf16",
        gradient_checkpointing=False,
        per_device_train_batch_size=args.batch,
        max_steps=args.warmup + args.steps,
        train_sampling_strategy="sequential",
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    seen: dict[str, list[Any]] = {"losses": [], "batches": []}

    class Seen(trainer_class):  # type: ignore[misc,valid-type]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> torch.Tensor:
            if args.check:
                seen["batches"].append(digest(sequences(inputs)))
            loss = super().training_step(model, inputs, *rest, **kwargs)
            seen["losses"].append(loss.detach())
            return loss

    model = args.work / ("scorer" if args.method == "reward" else "policy")
    extra: dict[str, Any] = {}
    if args.method == "dpo" and args.other_reference:
        from transformers import AutoModelForCausalLM

        extra["ref_model"] = AutoModelForCausalLM.from_pretrained(
            args.work / "reference", dtype=torch.float32
        )
    trainer = Seen(
        model=str(model),
        args=config,
        train_dataset=rows(args),
        processing_class=AutoTokenizer.from_pretrained(model),
        **extra,
    )
    return trainer, seen


def rows(args: argparse.Namespace) -> Dataset:
    path = args.work / ("sft.jsonl" if args.method == "sft" else "pairs.jsonl")
    with open(path) as f:
        lines = [json.loads(line) for line in f]
    return Dataset.from_list(lines[: (args.warmup + args.steps) * args.batch])


def sequences(inputs: dict[str, torch.Tensor]) -> list[tuple[list[int], int]]:
    """What the batch holds without its padding. A reward model supervises no token of its own, so there it
    is 0.
    """
    found = []
    for i, ids in enumerate(inputs["input_ids"]):
        real = inputs["attention_mask"][i].bool() if "attention_mask" in inputs else ids != PAD
        if "completion_mask" in inputs:
            supervised = int(inputs["completion_mask"][i].sum())
        else:
            supervised = int((inputs["labels"][i] != -100).sum()) if "labels" in inputs else 0
        found.append((ids[real].tolist(), supervised))
    return found


if __name__ == "__main__":
    main()
