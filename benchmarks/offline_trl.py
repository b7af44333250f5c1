"""One run of TRL on sft, dpo or the reward model, as JSON on the last line of stdout. A process of its own,
in TRL's environment, started by `offline.py`.

TRL's defaults stand, but for what the comparison fixes (batch, order, learning rate, no checkpoints or
reports) and for gradient checkpointing, which is switched off: it costs TRL time, and a user who wants
speed switches it off.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import side
import torch
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl_train import rows, settings, train
from workload import PAD, digest

METHODS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTConfig, SFTTrainer),
    "dpo": (DPOConfig, DPOTrainer),
    "reward": (RewardConfig, RewardTrainer),
}


def run(args: Namespace, scratch: Path) -> dict[str, Any]:
    trainer, seen = build(args, scratch)
    steps, profile = train(trainer, args.warmup, args.profile)
    return side.result(
        "trl",
        steps,
        profile,
        method=args.method,
        dtype=args.dtype,
        outside_s_per_pair=0.0,
        outside_cpu_s_per_pair=0.0,
        losses=[float(loss) for loss in seen["losses"]],
        batches=seen["batches"],
    )


def build(args: Namespace, scratch: Path) -> tuple[Any, dict[str, list[Any]]]:
    """The trainer, and what its steps will have seen."""
    config_class, trainer_class = METHODS[args.method]
    steps = args.warmup + args.steps
    config = config_class(
        **settings(scratch, args.dtype, steps, args.lr),
        gradient_checkpointing=False,
        per_device_train_batch_size=args.batch,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
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
    data = args.work / ("sft.jsonl" if args.method == "sft" else "pairs.jsonl")
    trainer = Seen(
        model=str(model),
        args=config,
        train_dataset=rows(data, steps * args.batch),
        processing_class=AutoTokenizer.from_pretrained(model),
        **extra,
    )
    return trainer, seen


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
    arguments = side.offline_arguments(__doc__)
    side.show(lambda scratch: run(arguments, scratch))
