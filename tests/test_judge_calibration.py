"""Soft labels that mean what they say, pairs by several aspects at once, and flips of each data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.feedback.calibrating import Calibration, _held_out, fit
from posttrain.feedback.judge import Preference, Verdict
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.feedback.labelled import asked_of
from posttrain.feedback.position import first_wins, flipped
from posttrain.formats.write import write_records
from posttrain.records import ROW, Comparison, Message, Prompt, Provenance, Response, Row, Samples


def ask(text: str, source: str = "a.jsonl:1") -> Prompt:
    return Prompt(
        provenance=Provenance(id=text, source=source), messages=(Message(role="user", content=text),)
    )


def answers(question: str, *texts: str, source: str = "a.jsonl:1", model: str = "m") -> Samples:
    return Samples(
        provenance=Provenance(id=f"{question}-{model}"),
        prompt=ask(question, source),
        responses=tuple(Response(text=text) for text in texts),
        model=model,
    )


def labelled(question: str, chosen: str, rejected: str, aspect: str = "overall") -> Comparison:
    return Comparison(
        provenance=Provenance(id=f"{question}{aspect}"),
        prompt=ask(question),
        chosen=Response(text=chosen),
        rejected=Response(text=rejected),
        aspect=aspect,
    )


class Sure:
    """Prefers the greater number, as sure as its text says ("n sure s")."""

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Preference]:
        return [self._one(first.text, second.text) for _, first, second in items]

    def _one(self, first: str, second: str) -> Preference:
        (a, x), (b, y) = (tuple(map(float, text.split(" sure "))) for text in (first, second))
        p = 0.5 if a == b else x if a > b else 1 - y
        parts = {"accuracy": Preference(1 - p, orders=(1 - p, 1 - p))}
        return Preference(p, parts=parts, orders=(p, 0.0 if a > b else 1.0))


class SureConfig(Config):
    def open(self) -> Sure:
        return Sure()


class Scores(Config):
    def open(self) -> Any:
        class Judge:
            def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
                return [
                    Verdict(float(len(r.text)), parts={"short": -float(len(r.text)), "none": None})
                    for _, r in items
                ]

        return Judge()


def judge(
    folder: Path, rows: Sequence[Row], judge: Any = None, **fields: Any
) -> tuple[Any, list[Comparison]]:
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "data.jsonl", rows)
    if "calibrate" in fields:
        write_records(folder / "labels.jsonl", fields["calibrate"])
        fields["calibrate"] = str(folder / "labels.jsonl")
    given: Mapping[str, Any] = {
        "data": str(folder / "data.jsonl"),
        "judge": judge or SureConfig(),
        "pairs": "all",
    }
    cfg = parse(JudgeConfig, {**given, **fields}, "judge")
    summary = STEP.run(cfg, StepContext(folder / "out", folder / "state", "judge"))
    lines = (folder / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [ROW.validate_json(line) for line in lines]  # type: ignore[misc]


def labels(right: int, wrong: int, sure: float, opens: str) -> list[Comparison]:
    """Pairs about which the judge is `sure`, of which the labels say that it is right in so many."""
    made = []
    for i in range(right + wrong):
        better, worse = f"2 sure {sure}", f"1 sure {sure}"
        made.append(labelled(f"{opens} {i}", *((better, worse) if i < right else (worse, better))))
    return made


def test_the_map_is_isotonic_and_counts_half_an_answer_more() -> None:
    """By hand: 0.6: (3 + ½)/(4 + 1) = 0.7; 0.8: (2 + ½)/5 = 0.5; falling, so both become the mean 0.6; 1.0:
    (8 + ½)/(9 + 1) = 0.85, no lower.
    """
    sure = [0.6] * 4 + [0.8] * 4 + [1.0] * 9
    right = [1, 1, 1, 0] + [1, 1, 0, 0] + [1] * 8 + [0]
    made = fit(sure, right)  # type: ignore[arg-type]
    assert made.confidence == (0.6, 0.8, 1.0)
    assert made.right == pytest.approx((0.6, 0.6, 0.85))


def test_levels_that_become_one_count_by_their_answers() -> None:
    """By hand: 0.6: (1 + ½)/2 = 0.75; 0.8: (3 + ½)/10 = 0.35; together (1.5 + 3.5)/12, weights 2 and 10."""
    made = fit([0.6] + [0.8] * 9, [1] + [1] * 3 + [0] * 6)  # type: ignore[arg-type]
    assert made.right == pytest.approx((5 / 12, 5 / 12))


def test_each_half_of_the_prompts_is_judged_by_the_map_of_the_other() -> None:
    """Sure of 1 it is right in all ten of one half, wrong in all ten of the other. By hand: the first half
    goes by 0.5/11, which is held at ½: errors of ¼; the second by 10.5/11.
    """
    sure, right = np.ones(20), np.array([1.0] * 10 + [0.0] * 10)
    found = _held_out(sure, right, np.array([0] * 10 + [1] * 10))
    assert found == pytest.approx((0.25 + (10.5 / 11) ** 2) / 2)
    assert _held_out(sure, right, np.zeros(20, dtype=int)) is None


def test_what_the_map_makes_of_a_preference() -> None:
    made = Calibration((0.6, 0.8, 1.0), (0.4, 0.7, 0.9))
    told = {
        p: made.of(Preference(p, orders=(p, p))).probability for p in (0.9, 0.1, 0.8, 0.6, 0.5, 0.55, 1.0)
    }
    assert told == pytest.approx({0.9: 0.8, 0.1: 0.2, 0.8: 0.7, 0.6: 0.5, 0.5: 0.5, 0.55: 0.5, 1.0: 0.9})
    assert made.of(Preference(None, "why")) == Preference(None, "why")
    assert made.of(Preference(0.9, orders=(1.0, 0.8))).orders == (1.0, 0.8)


def test_soft_labels_become_how_often_the_labels_agree(tmp_path: Path) -> None:
    """Sure of 0.75 it is right in 24 of 30: 24.5/31; sure of 1 in 27 of 30: 27.5/31."""
    known = [*labels(24, 6, 0.75, "a"), *labels(27, 3, 1.0, "b")]
    rows = [answers("x", "2 sure 0.75", "1 sure 0.75"), answers("y", "1 sure 1", "2 sure 1")]
    plain, before = judge(tmp_path / "plain", rows)
    summary, after = judge(tmp_path / "calibrated", rows, calibrate=known)
    assert [row.probability for row in before] == [0.75, None]
    assert [row.probability for row in after] == pytest.approx([24.5 / 31, 27.5 / 31])
    assert [row.chosen.text for row in after] == ["2 sure 0.75", "2 sure 1"]
    told = summary["calibration"]["overall"]
    assert (told["pairs"], told["answered"], told["ties"]) == (60, 60, 0)
    assert told["agreement"] == pytest.approx(51 / 60)
    assert told["brier"] == pytest.approx((24 * 0.25**2 + 6 * 0.75**2 + 3) / 60)
    assert told["map"] == [
        {"confidence": 0.75, "probability": pytest.approx(24.5 / 31), "pairs": 30},
        {"confidence": 1.0, "probability": pytest.approx(27.5 / 31), "pairs": 30},
    ]
    assert told["brier_calibrated"] < told["brier"] + 0.02
    assert "calibration" not in plain


def test_a_judge_no_better_than_chance_makes_no_pairs(tmp_path: Path) -> None:
    rows = [answers("x", "2 sure 0.9", "1 sure 0.9"), answers("y", "2 sure 1", "1 sure 1")]
    known = [*labels(5, 15, 0.9, "a"), *labels(18, 2, 1.0, "b")]
    summary, made = judge(tmp_path, rows, calibrate=known)
    assert [row.chosen.text for row in made] == ["2 sure 1"]
    assert (summary["ties"], summary["no_answer"]) == (1, 0)


def test_an_aspect_is_calibrated_by_its_own_labels_or_else_by_the_whole(tmp_path: Path) -> None:
    """The judge's accuracy prefers the smaller number; labels of accuracy say that it is right in that."""
    rows = [answers("x", "2 sure 0.75", "1 sure 0.75")]
    whole = labels(15, 5, 0.75, "a")
    accuracy = [labelled(f"c {i}", "1 sure 0.75", "2 sure 0.75", "accuracy") for i in range(20)]
    summary, made = judge(
        tmp_path / "own", rows, aspect=["overall", "accuracy"], calibrate=[*whole, *accuracy]
    )
    assert {row.aspect: row.probability for row in made} == pytest.approx(
        {"overall": 15.5 / 21, "accuracy": 20.5 / 21}
    )
    assert summary["calibration"]["accuracy"]["agreement"] == 1.0
    other, _ = judge(tmp_path / "whole", rows, aspect=["overall", "accuracy"], calibrate=whole)
    assert other["calibration"]["accuracy"]["agreement"] == 0.25


def test_what_calibration_needs(tmp_path: Path) -> None:
    rows = [answers("x", "2 sure 0.75", "1 sure 0.75")]
    with pytest.raises(
        DataError, match="of 19 pairs labelled for 'overall' the judge prefers a side in 19; 20"
    ):
        judge(tmp_path, rows, calibrate=labels(19, 0, 0.75, "a"))
    with pytest.raises(ConfigError, match="gives no probabilities"):
        judge(tmp_path, rows, Scores(), calibrate=labels(19, 1, 0.75, "a"))
    for to in ("ratings", "demonstrations"):
        with pytest.raises(ConfigError, match="'calibrate' is set"):
            parse(JudgeConfig, {"data": "d", "judge": "exact_match", "to": to, "calibrate": "c"}, "judge")


def test_pairs_from_several_aspects_in_one_step(tmp_path: Path) -> None:
    """The mean and accuracy disagree here: a pair in both, turned round; the judge is asked once."""
    rows = [answers("x", "2 sure 0.75", "1 sure 0.75"), answers("y", "3 sure 1", "3 sure 0.9")]
    summary, made = judge(tmp_path, rows, aspect=["overall", "accuracy"])
    assert [(row.chosen.text, row.aspect) for row in made] == [
        ("2 sure 0.75", "overall"),
        ("1 sure 0.75", "accuracy"),
    ]
    assert summary["by_aspect"] == {"overall": 1, "accuracy": 1}
    assert len({row.provenance.id for row in made}) == 2
    assert (summary["ties"], summary["unpaired"]) == (2, 1), "a prompt without a pair by any aspect"
    position = summary["position"]
    assert position["pairs"] == 4
    assert position["by_aspect"]["overall"]["pairs"] == position["by_aspect"]["accuracy"]["pairs"] == 2


def test_scores_of_several_aspects(tmp_path: Path) -> None:
    rows = [answers("x", "long answer", "short")]
    summary, made = judge(tmp_path, rows, Scores(), pairs="best_worst", aspect=["overall", "short", "none"])
    assert [(row.chosen.text, row.aspect, row.strength) for row in made] == [
        ("long answer", "overall", 6.0),
        ("short", "short", 6.0),
    ]
    assert summary["no_answer"] == 2


class LikesTheFirst:
    """Sure of whoever stands first."""

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Preference]:
        return [Preference(0.9, parts={"style": Preference(1.0)}) for _ in items]


def test_a_judge_that_likes_the_first_is_right_half_of_the_time_about_labels() -> None:
    rows = [labelled(f"q{i}", "good", "bad") for i in range(200)]
    said = asked_of(LikesTheFirst(), rows, 0, "judge")
    agreed = [each.probability == 0.9 for each in said]
    # three standard errors of a fair coin
    assert sum(agreed) / 200 == pytest.approx(0.5, abs=3 * 0.5 / 200**0.5)
    assert [each.parts["style"].probability for each in said] == [float(first) for first in agreed]
    assert {each.probability for each in said} == {0.9, 1 - 0.9}
    assert asked_of(LikesTheFirst(), rows, 0, "judge") == said
    assert asked_of(LikesTheFirst(), rows, 1, "judge") != said


@pytest.mark.parametrize(
    ("orders", "flips", "first"),
    [
        ((1.0, 1.0), False, 0.5),  # the first response, wherever it stands
        ((1.0, 0.0), True, 1.0),  # whoever stands first
        ((0.2, 0.9), True, 0.0),  # whoever stands second
        ((0.5, 1.0), False, 0.25),  # a tie is no other response
        ((0.5, 0.5), False, 0.5),
    ],
)
def test_what_a_flip_is(orders: tuple[float, float], flips: bool, first: float) -> None:
    assert flipped(orders) == flips
    assert first_wins(orders) == first


def test_flips_are_told_for_each_data_set_and_model(tmp_path: Path) -> None:
    """In a.jsonl the second order turns the preference round; answers of two models stand in one group."""
    rows = [
        answers("x", "2 sure 1", source="a.jsonl:4", model="ours"),
        answers("x", "1 sure 1", source="a.jsonl:4", model="theirs"),
        answers("y", "3 sure 1", "3 sure 1.0", source="b.jsonl:7"),
        answers("z", "5 sure 1", "4 sure 1", source="b.jsonl:9"),
    ]
    summary, made = judge(tmp_path, rows)
    assert {maker for row in made for maker in row.provenance.makers.values()} >= {"ours", "theirs"}
    told = summary["position"]["by_source"]
    assert {name: part["pairs"] for name, part in told.items()} == {"a.jsonl": 1, "b.jsonl": 2}
    assert told["a.jsonl"]["flip_rate"] in (0.0, 1.0)
    assert sum(part["flip_rate"] * part["pairs"] for part in told.values()) == pytest.approx(
        summary["position"]["flip_rate"] * 3
    )
    one, _ = judge(tmp_path / "one", rows[:2])
    assert "by_source" not in one["position"], "one data set is the whole"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aspect": []}, "expected different aspects"),
        ({"aspect": ["accuracy", "accuracy"]}, "expected different aspects"),
        ({"aspect": ["a", "b"], "to": "demonstrations", "pairs": None}, "demonstrations go by one of them"),
    ],
)
def test_aspects_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in fields.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        parse(JudgeConfig, {"data": "d", "judge": "exact_match", **given}, "judge")
