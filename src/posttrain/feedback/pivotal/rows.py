"""What the search found as rows: pairs to learn from, and answers with p(success) along them to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.feedback.pivotal.betting import Counts, differences, interval, tally
from posttrain.feedback.pivotal.candidates import Trajectory
from posttrain.feedback.pivotal.confirm import Arm, Trial
from posttrain.feedback.pivotal.grading import Question
from posttrain.feedback.pivotal.rollouts import Place
from posttrain.feedback.pivotal.search import Found
from posttrain.records import Comparison, Provenance, Response, row_id

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate


@dataclass(frozen=True)
class Maker:
    """Who made the rows. writer: the model with its sampling. error: 1 - coverage of the intervals."""

    template: ChatTemplate
    tokenizer: str
    writer: str
    judge: str
    error: float


def pair_of(trial: Trial, question: Question, maker: Maker) -> Comparison:
    """A confirmed pair: all tokens before the pivot, and the two tokens. `strength` is how far apart they are
    in p(success); `evidence` has each p and each difference, from fresh rollouts alone, with its interval.
    """
    candidate = trial.candidate
    assert candidate.other is not None
    tokens = (candidate.token, candidate.other) if candidate.rises else (candidate.other, candidate.token)
    arms = (trial.token, trial.other) if candidate.rises else (trial.other, trial.token)
    between = differences(arms[0].outcomes, arms[1].outcomes)
    evidence = (
        measured("p_before", tally(trial.before.outcomes), trial.before, maker.error)
        | measured("p_chosen", tally(arms[0].outcomes), arms[0], maker.error)
        | measured("p_rejected", tally(arms[1].outcomes), arms[1], maker.error)
        | changed("change", trial, maker.error)
        | _ends("between", between, -1, maker.error)
    )
    chosen, rejected = (_token(token, maker.template) for token in tokens)
    parent = question.prompt.provenance
    return Comparison(
        provenance=Provenance(
            id=row_id(parent.id, candidate.prefix, tokens, maker.writer, maker.judge),
            source=parent.source,
            licence=parent.licence,
            makers=parent.makers
            | {"chosen": maker.writer, "rejected": maker.writer, "preference": maker.judge},
            parents=(parent.id,),
        ),
        prompt=question.prompt,
        chosen=chosen,
        rejected=rejected,
        strength=max(evidence["p_chosen"] - evidence["p_rejected"], 0.0),
        aspect="p(success)",
        judge=maker.judge,
        prompt_token_ids=(*question.ids, *candidate.prefix),
        tokenizer=maker.tokenizer,
        evidence=evidence,
    )


def measured(name: str, counts: Counts, arm: Arm | Place, error: float) -> dict[str, float]:
    """A probability with its interval, and how many outcomes it rests on; nothing where there are none."""
    n = sum(counts.values())
    unknown = {f"{name}_unknown": float(arm.unknown)} if arm.unknown else {}
    return (_ends(name, counts, 0, error) if n else {}) | {f"{name}_n": float(n)} | unknown


def changed(name: str, trial: Trial, error: float) -> dict[str, float]:
    """By how much p changes at the pivot itself."""
    return _ends(name, differences(trial.token.outcomes, trial.before.outcomes), -1, error)


def _ends(name: str, counts: Counts, low: int, error: float) -> dict[str, float]:
    n = sum(counts.values())
    mean = sum(value * count for value, count in counts.items()) / n if n else 0.0
    ends = interval(counts, low, 1, error)
    return {name: mean, f"{name}_low": ends[0], f"{name}_high": ends[1]} if n else {}


def _token(token: int, template: ChatTemplate) -> Response:
    return Response(text=template.decode([token]), token_ids=(token,))


def question_line(question: Question, found: Found, error: float) -> dict[str, Any]:
    """What became of a question."""
    return {
        "id": question.prompt.provenance.id,
        "prompt": question.prompt.text,
        "reference": question.prompt.reference,
        "state": found.state,
        **measured("p", tally(found.start.outcomes), found.start, error),
        "trajectories": len(found.trajectories),
        "candidates": len(found.candidates),
        "undecided": found.undecided,
        "blind": found.blind,
    }


def trajectory_line(
    question: Question, trajectory: Trajectory, trials: Sequence[Trial], maker: Maker
) -> dict[str, Any]:
    """An answer, p(success) after the tokens where it was wanted, and what became of its candidates.

    points: from the rollouts of the search, which also chose what to look at. pivots: from fresh ones.
    """
    tokens = trajectory.along.tokens
    points = []
    for i in trajectory.probed:
        place = trajectory.along.places[i]
        points.append({"after": i} | measured("p", tally(place.outcomes), place, maker.error))
    return {
        "id": question.prompt.provenance.id,
        "prompt": question.prompt.text,
        "reference": question.prompt.reference,
        "success": trajectory.success,
        "token_ids": list(tokens),
        "logps": list(trajectory.logps),
        "pieces": pieces(tokens, maker.template),
        "points": points,
        "pivots": [pivot_line(trial, maker) for trial in trials],
    }


def pivot_line(trial: Trial, maker: Maker) -> dict[str, Any]:
    """What fresh rollouts said of a candidate."""
    candidate = trial.candidate
    line: dict[str, Any] = {
        "at": len(candidate.prefix),
        "token": candidate.token,
        "rises": candidate.rises,
        "state": trial.state,
        "pair": trial.pair,
        **measured("p_before", tally(trial.before.outcomes), trial.before, maker.error),
        **measured("p_token", tally(trial.token.outcomes), trial.token, maker.error),
        **changed("change", trial, maker.error),
    }
    if candidate.other is not None:
        line |= {"other": candidate.other, "other_text": maker.template.decode([candidate.other])}
        line |= measured("p_other", tally(trial.other.outcomes), trial.other, maker.error)
    return line


def pieces(tokens: Sequence[int], template: ChatTemplate) -> list[str]:
    """The text that each token adds; none for one that ends within a character, whose last token has it."""
    found, before = [], ""
    for i in range(1, len(tokens) + 1):
        text = template.decode(tokens[:i])
        if text.endswith("\ufffd") and i < len(tokens):
            text = before
        found.append(text.removeprefix(before))
        before = text
    return found
