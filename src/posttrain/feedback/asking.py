"""Putting responses to a judge, and making rows of what it says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.feedback.best_of_n import best_index
from posttrain.feedback.judge import Judge, PairJudge, Verdict
from posttrain.feedback.pairing import Candidate, Group, Pair, by_preference, by_score, judgeable, to_compare
from posttrain.feedback.position import count_orders
from posttrain.feedback.verdict_rows import comparison, demonstration, rating
from posttrain.feedback.verdicts import preference_by, preferences_of, score_by, verdicts_of
from posttrain.feedback.verifiers import CUT_OFF, without_answer
from posttrain.records import Row, row_id

if TYPE_CHECKING:
    from posttrain.feedback.calibrating import Calibration
    from posttrain.feedback.judging import JudgeConfig

WHY = "why: "  # opens the names under which the reasons for no answer are counted
ASPECT = "aspect: "  # … and the pairs of each aspect


def ratings(cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]) -> list[Row]:
    """A row for every response; those that were cut off and those without an answer have None for a score."""
    every = [(group, i, c) for group in groups for i, c in enumerate(group.candidates)]
    whole = [(group.prompt, c) for group, _, c in every if c.response.finish != "length"]
    verdicts = iter(verdicts_of(judge, [(p, c.response) for p, c in whole], f"judge '{cfg.judge.name}'"))
    made: list[Row] = []
    for group, i, candidate in every:
        cut_off = candidate.response.finish == "length"
        verdict = CUT_OFF if cut_off else next(verdicts)
        if cut_off:
            counts["cut_off"] += 1
        elif verdict.score is None:
            counts["no_answer"] += 1
            counts.update(_whys([verdict.reason]))
        made.append(rating(group.prompt, i, candidate, verdict, cfg.judge.label))
    return made


def by_scoring(cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]) -> list[Row]:
    """Comparisons by the scores of each response, for each aspect."""
    made: list[Row] = []
    for group, field, said in _scored(cfg, judge, groups, counts):
        found = 0
        for aspect in cfg.aspects:
            mine = [score_by(verdict, aspect) for verdict in said]
            counts.update(_whys(verdict.reason for verdict in mine if verdict.score is None))
            pairs = by_score(field, mine, cfg.pairs, cfg.min_gap, _rng(cfg, group), counts)
            made += _rows(cfg, group, pairs, aspect, counts)
            found += len(pairs)
        counts["unpaired"] += not found
    return made


def by_choosing(cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]) -> list[Row]:
    """The best response to each prompt; prompts without a score, or with too low a one, are counted."""
    made: list[Row] = []
    (aspect,) = cfg.aspects
    for group, field, whole in _scored(cfg, judge, groups, counts):
        said = [score_by(verdict, aspect) for verdict in whole]
        counts.update(_whys(verdict.reason for verdict in said if verdict.score is None))
        counts["no_answer"] += sum(verdict.score is None for verdict in said)
        best = best_index(said, _rng(cfg, group))
        score = None if best is None else said[best].score
        if best is None or score is None:
            counts["unscored_prompts"] += 1
        elif cfg.min_score is not None and score < cfg.min_score:
            counts["below_min_score"] += 1
        else:
            made.append(demonstration(group.prompt, field[best], cfg.judge.label, aspect, len(field)))
    return made


def by_comparing(
    cfg: JudgeConfig,
    judge: PairJudge,
    groups: Sequence[Group],
    counts: Counter[str],
    calibrated: Mapping[str, Calibration],
) -> list[Row]:
    """Comparisons by the judge's own comparing, for each aspect. calibrated: what maps its probabilities."""
    proposed = [to_compare(judgeable(group, counts), cfg.pairs, _rng(cfg, group)) for group in groups]
    asked = [
        (group.prompt, a.response, b.response)
        for group, pairs in zip(groups, proposed, strict=True)
        for a, b in pairs
    ]
    preferences = iter(preferences_of(judge, asked, f"judge '{cfg.judge.name}'"))
    made: list[Row] = []
    for group, pairs in zip(groups, proposed, strict=True):
        said = [next(preferences) for _ in pairs]
        found = 0
        for aspect in cfg.aspects:
            mine = [preference_by(each, aspect) for each in said]
            for preference in mine:
                count_orders(preference, counts, ("by_source", source_of(group)), ("by_aspect", aspect))
            counts.update(_whys(each.reason for each in mine if each.probability is None))
            if aspect in calibrated:
                mine = [calibrated[aspect].of(each) for each in mine]
            sided = [
                by_preference(first, second, preference, cfg.min_gap, counts)
                for (first, second), preference in zip(pairs, mine, strict=True)
            ]
            rows = _rows(cfg, group, [pair for pair in sided if pair], aspect, counts)
            made += rows
            found += len(rows)
        counts["unpaired"] += not found
    return made


def source_of(group: Group) -> str:
    """The data set that a prompt comes from: the file or generator, without the line."""
    source = group.prompt.provenance.source
    file, _, line = source.rpartition(":")
    return file if line.isdigit() else source


def _whys(reasons: Iterable[str]) -> Iterator[str]:
    """What reasons for no answer are counted by."""
    return (WHY + without_answer(reason) for reason in reasons)


def _rows(
    cfg: JudgeConfig, group: Group, pairs: Sequence[Pair], aspect: str, counts: Counter[str]
) -> list[Row]:
    counts[ASPECT + aspect] += len(pairs)
    return [comparison(group.prompt, pair, cfg.judge.label, aspect) for pair in pairs]


def _scored(
    cfg: JudgeConfig, judge: Judge, groups: Sequence[Group], counts: Counter[str]
) -> Iterator[tuple[Group, list[Candidate], list[Verdict]]]:
    """Each group with those of its responses that can be judged, and what the judge says of each."""
    fields = [judgeable(group, counts) for group in groups]
    asked = [(group.prompt, c.response) for group, field in zip(groups, fields, strict=True) for c in field]
    verdicts = iter(verdicts_of(judge, asked, f"judge '{cfg.judge.name}'"))
    for group, field in zip(groups, fields, strict=True):
        yield group, field, [next(verdicts) for _ in field]


def _rng(cfg: JudgeConfig, group: Group) -> random.Random:
    """Chance that depends on the seed and the responses alone, not on what else is judged."""
    return random.Random(row_id(cfg.seed, [candidate.row for candidate in group.candidates]))
