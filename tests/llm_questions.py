"""What tests of LLM judges ask and are told: grades, a judge over a server, the texts of a question."""

from __future__ import annotations

import json
from pathlib import Path

from chat_server import Answer, completion
from http_engine import SECRET, impatient  # noqa: F401

from posttrain.common.config import parse
from posttrain.feedback.judge import Account
from posttrain.feedback.llm_judge import Llm
from posttrain.records import Message, Prompt, Provenance, Response


def grades(accuracy=5, style=4, detail=3, faults="none"):
    return {"faults": faults, "accuracy": accuracy, "style": style, "detail": detail}


def says(value, **more) -> Answer:
    return completion(value if isinstance(value, str) else json.dumps(value), **more)


def ask(text: str, reference: str | None = None) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(messages=messages, reference=reference, provenance=Provenance(id=f"p-{text}"))


def opened(folder: Path, url: str, **fields):
    cfg = parse(Llm, {"base_url": url, "model": "judge-1", "concurrency": 4} | fields, "test")
    return cfg.open_with(Account(folder, "payer"))


def shown(body) -> str:
    return body["messages"][0]["content"]


def places(body, *names):
    """The texts between the marks of a question."""
    text = shown(body)
    return tuple(text.split(f"<{name}-", 1)[1].split(">\n", 1)[1].split("\n</", 1)[0] for name in names)


ONE = [(ask("Why?"), Response(text="Because."))]
PAIR = [(ask("Why?"), Response(text="A good answer"), Response(text="bad"))]


def by_text(body):
    """Grades what is good, wherever it stands."""
    return says(
        {
            side: grades(5 if "good" in text else 2, faults="none" if "good" in text else "bad")
            for side, text in zip(("first", "second"), places(body, "first", "second"), strict=True)
        }
    )
