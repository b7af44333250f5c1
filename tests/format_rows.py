"""Rows of other formats, and what the readers make of them in short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.formats import ReadOptions, Rejects, read_rows
from posttrain.records import Comparison, Demonstration, Document, Prompt, Row


def said(*turns: str) -> list[dict[str, str]]:
    """Turns that alternate, beginning with the user's."""
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]


def show(row: Any) -> Any:
    """What matters of a row, in short."""
    if isinstance(row, Document):
        return row.text
    prompt = row if isinstance(row, Prompt) else row.prompt
    turns = tuple(f"{m.role[0]}:{m.text}" for m in prompt.messages)
    if isinstance(row, Prompt):
        return turns
    if isinstance(row, Demonstration):
        return turns, row.response.text
    if isinstance(row, Comparison):
        return turns, row.chosen.text, row.rejected.text
    return turns, row.response.text, row.label if row.label is not None else row.scores


def one_format(
    tmp_path: Path, row: Any, kind: type[Row] | None, **options: Any
) -> tuple[str, list[Any], Rejects]:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with Rejects() as rejects:
        rows = list(read_rows(path, kind, options=ReadOptions(**options), rejects=rejects))
    return rejects.formats[str(path)], rows, rejects


ULTRA = {
    "source": "evol_instruct",
    "instruction": "Name a colour.",
    "completions": [
        {
            "model": "alpaca-7b",
            "response": "Table.",
            "overall_score": 1.0,
            "annotations": {"honesty": {"Rating": "2", "Rationale": "…"}, "truthfulness": {"Rating": "N/A"}},
        },
        {
            "model": "gpt-4",
            "response": "Blue.",
            "overall_score": 8.5,
            "annotations": {"honesty": {"Rating": "5"}, "truthfulness": {"Rating": "5"}},
        },
        {
            "model": "bard",
            "response": "Sky.",
            "overall_score": 4.0,
            "annotations": {"honesty": {"Rating": "5"}, "truthfulness": {"Rating": "1"}},
        },
    ],
}
