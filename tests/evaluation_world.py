"""Two policies, a reward model and rows to measure them on, for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer

from posttrain.evaluation.task import EvalContext
from posttrain.formats import write_records
from posttrain.models.load import load_model
from posttrain.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Provenance,
    Response,
)

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


QUESTIONS = ["What is 12 + 30?", "Name a city beside the river.", "Write a polite email.", "Add the tens."]


GOOD = ["It is 42.", "The capital.", "Dear Anna, thank you.", "First the tens, then the ones."]


BAD = ["It is 7.", "No.", "I cannot come.", "def add(a, b)"]


def prompt(i: int, text: str = "") -> Prompt:
    return Prompt(
        provenance=Provenance(id=f"p{i}"),
        messages=(Message(role="user", content=text or QUESTIONS[i % 4]),),
        tags={"level": "easy" if i % 2 else "hard"},
    )


def demonstrations() -> list[Demonstration]:
    return [
        Demonstration(provenance=Provenance(id=f"d{i}"), prompt=prompt(i), response=Response(text=GOOD[i]))
        for i in range(4)
    ]


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            provenance=Provenance(id=f"c{i}"),
            prompt=prompt(i),
            chosen=Response(text=GOOD[i % 4]),
            rejected=Response(text=BAD[(i + i // 4) % 4]),
        )
        for i in range(8)
    ]


@pytest.fixture(scope="module", name="world")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies and a reward model, and rows to measure them on."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("base", "sft")):
        tiny_folder("llama", folder / name, seed=seed, tokenizer=tiny_tokenizer(chat_template=CHAT))
    reward = load_model(folder / "sft", dtype=torch.float32, reward_heads=("overall",), seed=3)
    reward.save(folder / "reward")
    write_records(folder / "demos.jsonl", demonstrations())
    write_records(folder / "pairs.jsonl", comparisons())
    write_records(folder / "prompts.jsonl", [prompt(i) for i in range(4)])
    return folder


def context(path: Path, **fields: Any) -> EvalContext:
    return EvalContext(str(path), precision="float32", device="cpu", **fields)
