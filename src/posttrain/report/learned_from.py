"""What a model learned from, in words: rows and who judged them, or answers sampled as it learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.report.collect import Artifact, number
from posttrain.report.families import input_of
from posttrain.report.text import amount

ROWS = ("comparisons", "demonstrations", "ratings", "documents")


def learned_from(artifact: Artifact, artifacts: Sequence[Artifact]) -> str:
    """Rows, or prompts and the answers that were sampled and judged; a reward model with what it is from."""
    told = artifact.summary
    kept = number((told.get("rows") or {}).get("kept"))
    online = told.get("online")
    if online:
        judge = judge_in_words((artifact.config.get("online") or {}).get("judge"), artifact, artifacts)
        return f"{amount(kept)} prompts, {amount(online.get('answers'))} of its own answers scored by {judge}"
    source = input_of(artifact, artifact.config.get("data"), artifacts)
    if source is None:
        return f"{amount(kept)} rows"
    kind = _rows(source)
    if source.kind != "judge":
        return f"{amount(kept)} {kind}"
    judge = judge_in_words(source.config.get("judge"), source, artifacts)
    if kind == "demonstrations":
        answers = amount(number(source.summary.get("responses")))
        return f"{amount(kept)} demonstrations, the best of {answers} answers by {judge}"
    return f"{amount(kept)} {kind} by {judge}"


def judge_in_words(judge: Any, artifact: Artifact, artifacts: Sequence[Artifact]) -> str:
    """Its name, and the feedback that those of its models learned from that are on the page."""
    if not isinstance(judge, dict):
        return str(judge or "a judge")
    name = str(judge.get("name", "a judge"))
    label = name.rpartition("/")[2].replace("_", " ")
    refs = [judge["model"]] if judge.get("model") else judge.get("models") or []
    made = [found for ref in refs if (found := input_of(artifact, ref, artifacts))]
    if not made:
        return label
    return f"a {label} from {learned_from(made[0], artifacts)}"


def models_held(artifact: Artifact) -> dict[str, Any] | None:
    """names: of the roles; parameters: of them all, in words. None where the step does not tell."""
    held = artifact.summary.get("models")
    if not isinstance(held, dict) or not held:
        return None
    return {"names": ", ".join(held), "parameters": f"{amount(sum(held.values()))} parameters"}


def _rows(source: Artifact) -> str:
    """What the rows are, as the step that made them says or as they say themselves."""
    from posttrain.report.costs import count_rows

    for kind in ROWS:
        if number(source.summary.get(kind)):
            return kind
    kinds = count_rows(source, "rows.jsonl").kinds
    return f"{next(iter(kinds))}s" if len(kinds) == 1 else "rows"
