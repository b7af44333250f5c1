"""TRL's losses on given tensors, as JSON on the last line of stdout. A process of its own, in TRL's
environment, started by `rl.py`.

TRL's trainers run one whole training step with their own code; what is given stands in for what they would
sample (`rollout_func`), score (the reward function), and remember (old and reference log-probs).
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

import side
import torch
from datasets import Dataset
from rl_cases import CASES, Case
from rl_workload import Given, answers, read_given, read_workload
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer
from trl_train import settings
from workload import conversation


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with given.jsonl")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=side.DTYPES, default=list(side.DTYPES))
    return parser.parse_args()


def run_all(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return {
        f"{case} {dtype}": run(args.work, case, dtype, scratch)
        for case in args.cases
        for dtype in args.dtypes
    }


def run(work: Path, name: str, dtype: str, scratch: Path) -> dict[str, float]:
    case = CASES[name]
    rows = read_given(work / "given.jsonl")
    # without recomputing activations, which changes no number
    common = settings(scratch, dtype, steps=1, lr=1e-6) | {"gradient_checkpointing": False}
    trainer = (groups if case.answer is None else unpaired)(work, case, rows, common)
    if trainer.ref_model is not None:
        other = AutoModelForCausalLM.from_pretrained(work / "reference", dtype=torch.float32)
        trainer.ref_model.load_state_dict(other.state_dict())
    trainer.train()
    (said,) = [line for line in trainer.state.log_history if "loss" in line]
    longest = max(len(row.response) for row in rows) if case.per_length else 1
    found = {"loss": said["loss"] * longest, "gradient_norm": said["grad_norm"] * longest}
    return found | ({"reference_point": said["kl"]} if case.estimates_reference_point else {})


def groups(work: Path, case: Case, rows: list[Given], common: dict[str, Any]) -> Any:
    """Answers to a prompt are a group; all answers are one batch."""
    w = read_workload(work)
    by_prompt = [list(group) for _, group in groupby(rows, key=lambda row: row.prompt)]
    config = GRPOConfig(
        **common,
        **case.trl,
        per_device_train_batch_size=len(rows),
        num_generations=len(by_prompt[0]),
        max_completion_length=max(len(row.response) for row in rows),
        shuffle_dataset=False,
    )

    class OnGiven(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            found["old_per_token_logps"] = self._as(found, [row.old for row in rows])
            if "ref_per_token_logps" in found and not case.computes_reference:
                found["ref_per_token_logps"] = self._as(found, [row.reference for row in rows])
            return found

        def _as(self, found: dict[str, torch.Tensor], values: list[list[float]]) -> torch.Tensor:
            padded = torch.zeros(found["completion_ids"].shape)
            for i, row in enumerate(values):
                padded[i, : len(row)] = torch.tensor(row)
            return padded

    return OnGiven(
        model=str(work / "policy"),
        args=config,
        reward_funcs=[lambda completion_ids, **_: [row.reward for row in rows]],
        train_dataset=Dataset.from_list(
            [{"prompt": conversation(w, group[0].prompt)["prompt"]} for group in by_prompt]
        ),
        processing_class=AutoTokenizer.from_pretrained(work / "policy"),
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [row.prompt for row in rows],
            "completion_ids": [row.response for row in rows],
            "logprobs": None,
        },
    )


def unpaired(work: Path, case: Case, rows: list[Given], common: dict[str, Any]) -> Any:
    """One answer of each prompt, good where its reward is positive; all in one batch."""
    w = read_workload(work)
    assert case.answer is not None
    alone = answers(rows, case.answer)
    return KTOTrainer(
        model=str(work / "policy"),
        args=KTOConfig(**common, **case.trl, per_device_train_batch_size=len(alone), max_length=None),
        train_dataset=Dataset.from_list(
            [
                {**conversation(w, row.prompt, completion=row.response), "label": row.reward > 0}
                for row in alone
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(work / "policy"),
    )


if __name__ == "__main__":
    parsed = arguments()
    side.show(lambda scratch: run_all(parsed, scratch))
