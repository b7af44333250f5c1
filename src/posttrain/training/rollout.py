"""A rollout: the policy answers prompts, a judge scores, and what cannot be learned from is counted."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from posttrain.engines.protocol import Engine, SamplingParams
from posttrain.engines.token_writer import as_response
from posttrain.feedback.judge import Judge, Verdict
from posttrain.feedback.verdicts import verdicts_of
from posttrain.records import Prompt, Response

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

TRUNCATED, NO_ANSWER, WHY = "truncated", "no_answer", "why: "
# Reasons for no answer that are counted each by itself: a judge may say something else of every answer.
MOST_REASONS, OTHERS = 50, "others"


@dataclass(frozen=True)
class Asked:
    """A prompt with its tokens."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """One answer that can be learned from. parts: what the judge's parts gave, where they gave something."""

    response: Response
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The answers to one prompt that have a reward."""

    asked: Asked
    answers: tuple[Scored, ...]


@dataclass(frozen=True)
class Answers:
    """groups: in the order of the prompts, those without any scored answer included. counts: of answers and
    tokens, of those cut off, and of those without a score by reason. seconds: where the time went.
    """

    groups: list[Group]
    counts: Counter[str]
    seconds: dict[str, float]


def answer(
    engine: Engine,
    template: ChatTemplate,
    judge: Judge,
    asked: Sequence[Asked],
    params: SamplingParams,
    truncated: float | Literal["judge"] | None,
    end_penalty: float,
    label: str,
) -> Answers:
    """Sample and score. truncated: reward of an answer that was cut off, or to ask the judge, whose score
    then loses `end_penalty`; None leaves such answers out.
    """
    began = time.monotonic()
    sampled = engine.generate([one.ids for one in asked], params, label)
    responses = [[as_response(c, template, params.stop) for c in completions] for completions in sampled]
    between = time.monotonic()
    judged = [
        (i, j)
        for i, row in enumerate(responses)
        for j, response in enumerate(row)
        if response.finish == "stop" or truncated == "judge"
    ]
    items = [(asked[i].prompt, _ended(responses[i][j])) for i, j in judged]
    verdicts = verdicts_of(judge, items, f"the judge of the rollouts ({type(judge).__name__})")
    by_place = dict(zip(judged, verdicts, strict=True))
    counts: Counter[str] = Counter()
    groups = []
    for i, row in enumerate(responses):
        kept = [_scored(r, by_place.get((i, j)), truncated, end_penalty, counts) for j, r in enumerate(row)]
        groups.append(Group(asked[i], tuple(answer for answer in kept if answer is not None)))
    seconds = {"sampling": between - began, "judging": time.monotonic() - between}
    return Answers(groups, counts, seconds)


def _ended(response: Response) -> Response:
    """As a judge is to see it: judges give no score to an answer that says it was cut off."""
    return response if response.finish == "stop" else response.model_copy(update={"finish": None})


def _scored(
    response: Response,
    verdict: Verdict | None,
    truncated: float | Literal["judge"] | None,
    end_penalty: float,
    counts: Counter[str],
) -> Scored | None:
    counts["answers"] += 1
    counts["tokens"] += len(response.token_ids or ())
    counts[TRUNCATED] += response.finish != "stop"
    if verdict is None:
        return Scored(response, truncated) if isinstance(truncated, float) else None
    if verdict.score is None or not math.isfinite(verdict.score):
        counts[NO_ANSWER] += 1
        counts[WHY + (verdict.reason or "not a finite number")] += 1
        return None
    penalty = 0.0 if response.finish == "stop" else end_penalty
    return Scored(
        response, verdict.score - penalty, {k: v for k, v in verdict.parts.items() if v is not None}
    )


def add_counts(total: Counter[str], counts: Mapping[str, int]) -> None:
    """Add to the counts of a run, which hold the first MOST_REASONS reasons and the rest as one."""
    for name, count in counts.items():
        reasons = sum(known.startswith(WHY) for known in total)
        new = name.startswith(WHY) and name not in total
        total[WHY + OTHERS if new and reasons >= MOST_REASONS else name] += count


def means(answers: Answers) -> dict[str, float]:
    """What a rollout was like, for the metrics: rewards, their parts, lengths, shares of what was lost."""
    counts, total = answers.counts, max(answers.counts["answers"], 1)
    scored = [answer for group in answers.groups for answer in group.answers]
    found = {
        "truncated": counts[TRUNCATED] / total,
        "no_answer": counts[NO_ANSWER] / total,
        "response_tokens": counts["tokens"] / total,
    }
    if scored:
        rewards = [answer.reward for answer in scored]
        mean = sum(rewards) / len(rewards)
        found |= {
            "reward": mean,
            "reward_std": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5,
        }
        lengths = [len(answer.response.token_ids or ()) for answer in scored]
        found |= _correlation(rewards, lengths)
    for part in sorted({name for answer in scored for name in answer.parts}):
        values = [answer.parts[part] for answer in scored if part in answer.parts]
        name = f"reward_{part}"
        found["reward_part_std" if name == "reward_std" else name] = sum(values) / len(values)
    return found | {f"{name}_seconds": round(s, 3) for name, s in answers.seconds.items()}


def _correlation(rewards: Sequence[float], lengths: Sequence[int]) -> dict[str, float]:
    """length_correlation: Pearson's, of reward and length over the answers; none where either is the same for
    all.
    """
    if len(set(rewards)) < 2 or len(set(lengths)) < 2:
        return {}
    return {"length_correlation": statistics.correlation(rewards, lengths)}
