"""A few answers of every rollout, kept to be looked at: in the terminal, in the report, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import final

from posttrain.common.files import atomic
from posttrain.training.rollout import Group


@final
class SampleLog:
    """Appends lines {rollout, prompt, response, reward, parts, finish} to `path`.

    keep: answers of a rollout, the first of as many prompts; always the same prompts' places, so nothing is
    picked for being good.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep

    def write(self, number: int, groups: Sequence[Group]) -> None:
        """Note rollout `number` (from 0); what a killed run wrote of it or after it is dropped."""
        if number == 0:
            self.path.unlink(missing_ok=True)
        lines = [
            {
                "rollout": number + 1,
                "prompt": group.asked.prompt.text,
                "response": group.answers[0].response.text,
                "reward": group.answers[0].reward,
                "parts": dict(group.answers[0].parts),
                "finish": group.answers[0].response.finish,
            }
            for group in groups
            if group.answers
        ][: self.keep]
        if lines:
            with open(self.path, "a", encoding="utf-8") as f:
                f.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def cut(self, rollouts: int) -> None:
        """Keep the lines of the first `rollouts` rollouts."""
        if not self.path.is_file():
            return
        kept = [line for line in self.path.read_bytes().splitlines(True) if _rollout(line) <= rollouts]
        with atomic(self.path, "wb") as f:
            f.writelines(kept)


def _rollout(line: bytes) -> float:
    """The number a line belongs to; half a line, cut off by a kill, to none."""
    try:
        return float(json.loads(line)["rollout"])
    except (ValueError, KeyError):
        return float("inf")
