"""What labels cost, for a step's summary."""

from __future__ import annotations

from typing import Any

from posttrain.feedback.judge import Judge, PairJudge, spent_by


def cost_of(judge: Judge | PairJudge, labels: int) -> dict[str, Any]:
    """What the judge was paid over all runs of the step, with tokens and money a label; empty for one that is
    not paid. labels: rows that came of it; what gave none is part of their price.
    """
    spent = spent_by(judge)
    return {"cost": _per_label(spent, labels)} if spent else {}


def _per_label(spent: dict[str, Any], labels: int) -> dict[str, Any]:
    if "prompt_tokens" not in spent:  # by part
        return {part: _per_label(its, labels) for part, its in spent.items()}
    tokens, usd = spent["prompt_tokens"] + spent["completion_tokens"], spent["usd"]
    return spent | {
        "tokens_per_label": tokens / labels if labels else None,
        "usd_per_label": usd / labels if labels and usd is not None else None,
    }
