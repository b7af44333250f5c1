"""The http engine as its tests run it: in a `sample` step, or as a client alone, against a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.engines import retrying
from posttrain.engines.openai_client import ChatClient
from posttrain.engines.sample import STEP, SampleConfig
from posttrain.engines.server import Request, Server
from posttrain.formats.write import write_records
from posttrain.records import Message, Prompt, Provenance, Samples

SECRET = "sk-very-secret-0123"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait little before asking again."""
    monkeypatch.setattr(retrying, "_FIRST_S", 0.01)


def ask(name: str, content="Say it") -> Prompt:
    return Prompt(provenance=Provenance(id=name), messages=(Message(role="user", content=content),))


PROMPTS = [ask(f"p{i}", f"Say {i}") for i in range(4)]


def config(folder: Path, url: str, prompts=PROMPTS, engine=None, **fields) -> SampleConfig:
    write_records(folder / "prompts.jsonl", prompts)
    used = {"name": "http", "base_url": url, "model": "writer-1"} | (engine or {})
    given = {"engine": used, "prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 50}
    return parse(SampleConfig, given | fields, "test")


def out_of(folder: Path) -> Path:
    return folder / f"sample-{folder.name}"


def run(folder: Path, url: str, prompts=PROMPTS, engine=None, cache: Path | None = None, **fields):
    cfg = config(folder, url, prompts, engine, **fields)
    summary = STEP.run(cfg, StepContext(out_of(folder), folder / "state", "sample", cache))
    lines = (out_of(folder) / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [Samples.model_validate_json(line) for line in lines]


def rejected(folder: Path) -> list[dict]:
    text = (out_of(folder) / "rejected.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def client(folder: Path, url: str, **fields) -> ChatClient:
    server = parse(Server, {"base_url": url, "model": "judge-1"} | fields, "test")
    return ChatClient(server, folder / "replies.sqlite", "payer")


def question(text: str = "Hi", draw: str = "", max_tokens: int = 50) -> Request:
    return Request({"messages": [{"role": "user", "content": text}]}, max_tokens, draw)
