"""How well candidates for bogus questions are made, by a judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from posttrain.common.chunks import in_chunks
from posttrain.common.errors import ConfigError
from posttrain.common.step import StepContext
from posttrain.feedback.judge import Judge, PairJudge
from posttrain.feedback.knowledge.bogus_writing import REAL, TEMPLATE, Candidate, Drop, request
from posttrain.feedback.verdicts import verdicts_of
from posttrain.records import Message, Prompt, Provenance, Response

ALONE = (
    "Write a question of fact that sounds plausible and that nobody can answer, because what it asks about "
)
ALONE += "does not exist."
_CHUNK = 256  # candidates between two saved states


def rated(
    judge: Judge | PairJudge,
    name: str,
    least: float,
    candidates: Sequence[Candidate],
    ctx: StepContext,
    drop: Drop,
) -> list[Candidate]:
    """Those that the judge scores `least` or more, as responses to the request to write them (`judged`).

    Raises ConfigError for a judge that does not score.
    """
    if not isinstance(judge, Judge):
        raise ConfigError(f"judge '{name}' only compares two answers; bogus needs one that scores")
    kept = []
    at = iter(candidates)
    for lines in in_chunks(candidates, _CHUNK, ctx.state / "rating", partial(_rate, judge, name)):
        for line in lines:
            score, reason = json.loads(line)
            candidate = next(at)
            if score is None:
                drop(candidate, "no_rating", reason or "the judge gave none")
            elif score < least:
                drop(candidate, "low_quality", f"{score:g}, below {least:g}")
            else:
                kept.append(candidate.noted(f"quality {score:g} by {name}"))
    return kept


def _rate(judge: Judge, name: str, number: int, candidates: Sequence[Candidate]) -> list[bytes]:
    verdicts = verdicts_of(judge, [judged(one.prompt) for one in candidates], f"judge '{name}'")
    return [json.dumps([verdict.score, verdict.reason]).encode() + b"\n" for verdict in verdicts]


def judged(bogus: Prompt) -> tuple[Prompt, Response]:
    """What a judge sees: the request to make such a question of the real one, and this one as the answer."""
    real = bogus.tags.get(REAL)
    asked = request(TEMPLATE, real) if real else Message(role="user", content=ALONE)
    prompt = Prompt(messages=(asked,), provenance=Provenance(id=bogus.provenance.id))
    return prompt, Response(text=bogus.text)
