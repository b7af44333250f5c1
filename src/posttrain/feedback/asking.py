"""Putting responses to a judge, and making rows of what it says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from posttrain.feedback.best_of_n import best_index
from posttrain.feedback.judge import Judge, PairJudge, Verdict
from posttrain.feedback.pairing import Candidate, Group, Pair, by_preference, by_score, judgeable, to_compare
from posttrain.feedback.position import count_orders
from posttrain.feedback.verdict_rows import comparison, demonstration, rating
from posttrain.feedback.verdicts import preference_by, preferences_of, score_by, verdicts_of
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Row, row_id

if TYPE_CHECKING:
    from posttrain.feedback.judging import JudgeConfig

WHY = "why: "  # opens the names under which the reasons for no answer are counted


def ratings(cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]) -> list[Row]:
    """A row for every response; those that were cut off and those without an answer have None for a score."""
    every = [(group, i, c) for group in groups for i, c in enumerate(group.candidates)]
    whole = [(group.prompt, c) for group, _, c in every if c.response.finish != "length"]
    verdicts = iter(_verdicts(cfg, judge, whole))
    made: list[Row] = []
    for group, i, candidate in every:
        cut_off = candidate.response.finish == "length"
        verdict = CUT_OFF if cut_off else next(verdicts)
        if cut_off:
            counts["cut_off"] += 1
        elif verdict.score is None:
            counts["no_answer"] += 1
            counts[WHY + verdict.reason] += 1
        made.append(rating(group.prompt, i, candidate, verdict, cfg.judge.label))
    return made


def by_scoring(cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]) -> list[Row]:
    """Comparisons by the scores of each response."""
    made: list[Row] = []
    for group, field, said in _scored(cfg, judge, groups, counts):
        found = by_score(field, said, cfg.pairs, cfg.min_gap, _rng(cfg, group), counts)
        made += _rows(cfg, group, found, counts)
    return made


def by_choosing(cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]) -> list[Row]:
    """The best response to each prompt; prompts without a score, or with too low a one, are counted."""
    made: list[Row] = []
    for group, field, said in _scored(cfg, judge, groups, counts):
        counts["no_answer"] += sum(verdict.score is None for verdict in said)
        best = best_index(said, _rng(cfg, group))
        score = None if best is None else said[best].score
        if best is None or score is None:
            counts["unscored_prompts"] += 1
        elif cfg.min_score is not None and score < cfg.min_score:
            counts["below_min_score"] += 1
        else:
            made.append(demonstration(group.prompt, field[best], cfg.judge.label, cfg.aspect, len(field)))
    return made


def by_comparing(
    cfg: JudgeConfig, judge: PairJudge, groups: Sequence[Group], counts: Counter[str]
) -> list[Row]:
    """Comparisons by the judge's own comparing."""
    proposed = [to_compare(judgeable(group, counts), cfg.pairs, _rng(cfg, group)) for group in groups]
    asked = [
        (group.prompt, a.response, b.response)
        for group, pairs in zip(groups, proposed, strict=True)
        for a, b in pairs
    ]
    preferences = iter(preferences_of(judge, asked, f"judge '{cfg.judge.name}'"))
    made: list[Row] = []
    for group, pairs in zip(groups, proposed, strict=True):
        found = []
        for first, second in pairs:
            preference = preference_by(next(preferences), cfg.aspect)
            count_orders(preference, counts)
            if preference.probability is None:
                counts[WHY + preference.reason] += 1
            found.append(by_preference(first, second, preference, cfg.min_gap, counts))
        made += _rows(cfg, group, [pair for pair in found if pair], counts)
    return made


def _rows(cfg: JudgeConfig, group: Group, pairs: Sequence[Pair], counts: Counter[str]) -> list[Row]:
    counts["unpaired"] += not pairs
    return [comparison(group.prompt, pair, cfg.judge.label, cfg.aspect) for pair in pairs]


def _scored(
    cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]
) -> Iterator[tuple[Group, list[Candidate], list[Verdict]]]:
    """Each group with those of its responses that can be judged, and what the judge says of them."""
    fields = [judgeable(group, counts) for group in groups]
    asked = [(group.prompt, c) for group, field in zip(groups, fields, strict=True) for c in field]
    verdicts = iter(_verdicts(cfg, judge, asked))
    for group, field in zip(groups, fields, strict=True):
        said = [next(verdicts) for _ in field]
        counts.update(WHY + verdict.reason for verdict in said if verdict.score is None)
        yield group, field, said


def _verdicts(cfg: JudgeConfig, judge: Judge, asked: Sequence[tuple[Prompt, Candidate]]) -> list[Verdict]:
    """The verdicts with the aspect's score for their score."""
    items = [(prompt, candidate.response) for prompt, candidate in asked]
    said = verdicts_of(judge, items, f"judge '{cfg.judge.name}'")
    return [score_by(verdict, cfg.aspect) for verdict in said]


def _rng(cfg: JudgeConfig, group: Group) -> random.Random:
    """Chance that depends on the seed and the responses alone, not on what else is judged."""
    return random.Random(row_id(cfg.seed, [candidate.row for candidate in group.candidates]))
