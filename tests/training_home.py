"""A tiny model and rows of each kind, and the train step run on them."""

from __future__ import annotations

import random

import pytest
from tiny import tiny_folder

from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.formats import write_records
from posttrain.records import Comparison, Demonstration, Document, Message, Prompt, Provenance, Response
from posttrain.training.train import STEP, TrainConfig

WORDS = [
    "the", "river", "runs", "past", "a", "small", "town", "and", "the", "people", "there",
    "like", "to", "tell", "long", "stories", "about", "it",
]  # fmt: skip


def prompt(i):
    messages = (Message(role="user", content=f"Say something about number {i % 7}."),)
    return Prompt(messages=messages, provenance=Provenance(id=f"p{i}"))


def text(i, n):
    rng = random.Random(i)
    return " ".join(rng.choice(WORDS) for _ in range(n))


def demonstrations(n=24):
    return [
        Demonstration(
            prompt=prompt(i), response=Response(text=text(i, 3 + i % 9)), provenance=Provenance(id=f"d{i}")
        )
        for i in range(n)
    ]


def comparisons(n=24):
    return [
        Comparison(
            prompt=prompt(i),
            chosen=Response(text="yes " + text(i, 2 + i % 5)),
            rejected=Response(text="no " + text(i + 1000, 4 + i % 3)),
            strength=1.0,
            provenance=Provenance(id=f"c{i}"),
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module", name="home")
def tiny_home(tmp_path_factory):
    """A model folder and rows of each kind."""
    folder = tmp_path_factory.mktemp("home")
    tiny_folder("qwen2", folder / "base")
    write_records(folder / "demos.jsonl", demonstrations())
    write_records(folder / "pairs.jsonl", comparisons())
    long = Demonstration(
        prompt=prompt(0), response=Response(text=text(0, 400)), provenance=Provenance(id="long")
    )
    write_records(folder / "long.jsonl", [long])
    documents = [Document(text=text(i, 60), provenance=Provenance(id=f"t{i}")) for i in range(8)]
    write_records(folder / "texts.jsonl", documents)
    return folder


def train(home, out, method, data, **fields):
    given = {
        "model": str(home / "base"),
        "method": method,
        "data": str(home / data),
        "precision": "float32",
        **fields,
    }
    cfg = parse(TrainConfig, given, "test")
    return STEP.run(cfg, StepContext(out, out / "state", "test"))
