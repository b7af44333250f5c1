"""A folder to train online in: a tiny model and prompts."""

from __future__ import annotations

from pathlib import Path

from tiny import tiny_folder

from posttrain.formats import write_records
from posttrain.records import Message, Prompt, Provenance


def online_home(folder: Path, says: str, n: int) -> list[Prompt]:
    """Write `base/` and `prompts.jsonl`: `n` prompts that say `says` with their number in it."""
    tiny_folder("qwen2", folder / "base")
    prompts = [
        Prompt(messages=(Message(role="user", content=says.format(i)),), provenance=Provenance(id=f"p{i}"))
        for i in range(n)
    ]
    write_records(folder / "prompts.jsonl", prompts)
    return prompts
