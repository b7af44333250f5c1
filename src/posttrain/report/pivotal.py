"""What a search for pivotal tokens found: its counts and costs, and answers with p(success) along them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.report.collect import Artifact, number, read_lines
from posttrain.report.text import amount, duration, visible

SHOWN = 6  # answers of a search
LIMIT = 600  # characters of a prompt
_STATES = {
    "kept": "searched",
    "easy": "too easy",
    "hard": "too hard",
    "unknown": "not to be judged",
    "no answer": "without a whole answer",
}

# What became of the claim that the other token moves p the other way.
_PAIRS = {"confirmed": "against", "refuted": "no pair with", "undecided": "not clear against"}


def pivotal_views(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """One a step `pivotal`."""
    return [_view(artifact) for artifact in artifacts if artifact.kind == "pivotal"]


def _view(artifact: Artifact) -> dict[str, Any]:
    answers = list(read_lines(artifact.folder / "trajectories.jsonl"))
    found = [a for a in answers if any(p.get("state") == "confirmed" for p in a.get("pivots", []))]
    return {
        "name": artifact.name,
        "facts": list(_facts(artifact.summary)),
        "answers": [_answer(each) for each in found[:SHOWN]],
        "with_pivots": len(found),
        "of": len(answers),
        "coverage": None if (error := number(artifact.config.get("error"))) is None else 1 - error,
    }


def _facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and numbers, as a list of terms."""
    states = summary.get("states") or {}
    told = ", ".join(f"{amount(states[s])} {text}" for s, text in _STATES.items() if states.get(s))
    yield "questions", told or amount(summary.get("questions"))
    yield (
        "candidates",
        f"{amount(summary.get('candidates'))}: {amount(summary.get('confirmed'))} confirmed on new rollouts, "
        f"{amount(summary.get('refuted'))} refuted, {amount(summary.get('not_clear'))} not clear",
    )
    yield "pairs", amount(summary.get("comparisons"))
    ledger = summary.get("ledger") or {}
    cost = (
        f"{amount(ledger.get('rollouts'))} rollouts, {amount(ledger.get('tokens_decoded'))} tokens decoded, "
        f"{amount(ledger.get('tokens_prefilled'))} read, {amount(ledger.get('oracle_calls'))} judge calls"
    )
    third = ledger.get("cut_off", 0) + ledger.get("no_answer", 0)
    if third:
        cost += f"; {amount(ledger['cut_off'])} cut off, {amount(ledger['no_answer'])} without a grade"
    yield "cost", cost
    each = ledger.get("a_confirmed_pivot")
    if each:
        yield (
            "a confirmed pivot",
            f"{amount(round(each['rollouts']))} rollouts, {amount(round(each['tokens_decoded']))} tokens "
            f"decoded, {duration(each['seconds'])}",
        )


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens with the p(success) that holds after the stretch each belongs to."""
    pivots = {int(p["at"]): p for p in answer["pivots"] if p.get("state") == "confirmed"}
    points = [point for point in answer["points"] if number(point.get("p")) is not None]
    start, rest = (points[0], points[1:]) if points and points[0]["after"] == 0 else (None, points)
    tokens, at = [], 0
    for i, piece in enumerate(answer["pieces"]):
        while at < len(rest) and rest[at]["after"] <= i:
            at += 1
        point = rest[at] if at < len(rest) else None
        tokens.append(_token(piece, i, point, pivots.get(i)))
    return {
        "prompt": visible(str(answer["prompt"]), LIMIT),
        "reference": answer.get("reference"),
        "success": bool(answer["success"]),
        "start": None
        if start is None
        else {"p": start["p"], "told": _told("p before the first token", start, "p")},
        "tokens": tokens,
        "pivots": [_pivot(answer["pieces"][i], p) for i, p in sorted(pivots.items())],
        "points": [{"after": p["after"], "text": _told("", p, "p")} for p in points],
    }


def _token(
    piece: str, i: int, point: Mapping[str, Any] | None, pivot: Mapping[str, Any] | None
) -> dict[str, Any]:
    if pivot is not None:
        text, p = _told(f"token {i + 1}, pivotal: p after it", pivot, "p_token"), pivot["p_token"]
    elif point is not None:
        text, p = _told(f"token {i + 1}: p after token {point['after']}", point, "p"), point["p"]
    else:
        text, p = f"token {i + 1}: no rollout could be judged", None
    return {
        "text": _shown(piece),
        "p": p,
        "told": text,
        "pivot": None if pivot is None else ("rises" if pivot["rises"] else "falls"),
    }


def _shown(piece: str) -> str:
    """A token that has no shape of its own gets one."""
    if not piece:
        return "■"
    return visible(piece, None).text.replace("\n", "⏎\n")


def _told(what: str, numbers: Mapping[str, Any], name: str) -> str:
    """`what` 0.63 [0.50, 0.74], n 64."""
    ends = f"[{numbers[f'{name}_low']:.2f}, {numbers[f'{name}_high']:.2f}]"
    unknown = int(numbers.get(f"{name}_unknown", 0))
    text = f"{what} {numbers[name]:.2f} {ends}, {int(numbers[f'{name}_n'])} rollouts".strip()
    return f"{text}, {unknown} more not to be judged" if unknown else text


def _pivot(piece: str, pivot: Mapping[str, Any]) -> dict[str, Any]:
    other = None
    if "p_other" in pivot:
        other = {"text": _shown(str(pivot.get("other_text", ""))), "told": _told("", pivot, "p_other")}
    return {
        "text": _shown(piece),
        "rises": pivot["rises"],
        "before": _told("", pivot, "p_before"),
        "after": _told("", pivot, "p_token"),
        "change": f"{pivot['change']:+.2f} [{pivot['change_low']:+.2f}, {pivot['change_high']:+.2f}]".replace(
            "-", "−"
        ),
        "other": other,
        "pair": _PAIRS.get(str(pivot.get("pair")), ""),
    }
