"""What is kept of every rollout beside its metrics: a few answers, and what the monitor saw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from posttrain.common.files import atomic
from posttrain.training.rollout import Group


@final
class RolloutLog:
    """Appends lines to `path`, each with the number of its `rollout`, from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, number: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Note lines of rollout `number`, from 0."""
        if lines:
            with open(self.path, "a", encoding="utf-8") as f:
                f.writelines(
                    json.dumps({"rollout": number + 1, **line}, ensure_ascii=False) + "\n" for line in lines
                )

    def cut(self, rollouts: int) -> None:
        """Keep the lines of the first `rollouts` rollouts: what a killed run wrote after them is dropped."""
        if not self.path.is_file():
            return
        kept = [line for line in self.path.read_bytes().splitlines(True) if _rollout(line) <= rollouts]
        with atomic(self.path, "wb") as f:
            f.writelines(kept)


def kept_answers(
    groups: Sequence[Group], keep: int, golds: Sequence[Sequence[float | None]] | None
) -> list[dict[str, Any]]:
    """The first answer to each of the first `keep` prompts: always the same places, so that nothing is picked
    for being good. golds: gold scores of all answers, where the monitor looked.
    """
    places = [i for i, group in enumerate(groups) if group.answers][:keep]
    return [_line(groups[i], {} if golds is None else {"gold": golds[i][0]}) for i in places]


def _line(group: Group, gold: dict[str, float | None]) -> dict[str, Any]:
    answer = group.answers[0]
    return {
        "prompt": group.asked.prompt.text,
        "response": answer.response.text,
        "tokens": len(answer.response.token_ids or ()),
        "reward": answer.reward,
        **gold,
        "parts": dict(answer.parts),
        "finish": answer.response.finish,
    }


def _rollout(line: bytes) -> float:
    """The number a line belongs to; half a line, cut off by a kill, to none."""
    try:
        return float(json.loads(line)["rollout"])
    except (ValueError, KeyError):
        return float("inf")
