"""Columns against a baseline: which verdicts and which bold figures the paired intervals allow."""

from __future__ import annotations

import pytest

from posttrain.evaluation.compare import Point
from posttrain.evaluation.contrasts import contrast


def column(text: str, cluster: int = 1) -> list[Point]:
    """One point a character: 1, 0, or ? for no value. cluster: characters of one prompt."""
    return [
        Point(f"i{i}", f"c{i // cluster}", None if mark == "?" else float(mark))
        for i, mark in enumerate(text)
    ]


GOOD, BAD, HALF = "1" * 20, "0" * 20, "01" * 10


def test_a_column_that_beats_all_others_is_best_and_the_rest_are_not() -> None:
    cells = contrast({"a": column(BAD), "b": column(HALF), "c": column(GOOD)}, "a")
    assert [cells[name].best for name in "abc"] == [False, False, True]
    assert cells["a"].against is None
    assert [cells[name].verdict for name in "abc"] == [None, "better", "better"]
    assert cells["c"].against is not None
    assert cells["c"].against.mean == 1.0


def test_the_highest_mean_is_not_best_while_one_other_could_be_as_good() -> None:
    near = "1" + HALF[1:]  # one of twenty more
    cells = contrast({"a": column(BAD), "b": column(HALF), "c": column(near)}, "a")
    assert cells["c"].value.mean == 0.55
    assert not any(cell.best for cell in cells.values())


def test_less_can_be_better_and_for_some_metrics_neither_is() -> None:
    columns = {"a": column(HALF), "b": column(BAD), "c": column(GOOD)}
    cells = contrast(columns, "a", lower_is_better=True)
    assert [cells[name].verdict for name in "abc"] == [None, "better", "worse"]
    assert [name for name in "abc" if cells[name].best] == ["b"]
    cells = contrast(columns, "a", directed=False)
    assert {cell.verdict for cell in cells.values()} == {None}
    assert not any(cell.best for cell in cells.values())
    assert cells["c"].against is not None
    assert cells["c"].against.mean == 0.5


def test_answers_to_one_prompt_are_not_independent() -> None:
    # 12 of 20 against 4 of 20 is beyond doubt for 20 prompts, and not for 4 prompts asked five times each
    some, few = "11111" + "11111" + "11000" + "00000", "11110" + "00000" + "00000" + "00000"
    assert contrast({"a": column(few), "b": column(some)}, "a")["b"].verdict == "better"
    assert contrast({"a": column(few, 5), "b": column(some, 5)}, "a")["b"].verdict == "same"


def test_a_column_without_values_is_unknown_not_beaten() -> None:
    cells = contrast({"a": column(BAD), "b": column(GOOD), "c": column("?" * 20)}, "a")
    assert not cells["b"].best
    assert cells["c"].value.missing == 20
    assert cells["c"].verdict is None
    assert cells["b"].verdict == "better"


def test_pairs_without_two_values_are_counted_and_left_out() -> None:
    cells = contrast({"a": column("0011" * 5), "b": column("1?11" * 5)}, "a")
    against = cells["b"].against
    assert against is not None
    assert (against.n, against.missing) == (15, 5)
    assert against.mean == pytest.approx(1 / 3)


def test_a_higher_level_asks_for_more() -> None:
    after = "1" * 4 + "0" * 16  # 4 of 20 against none
    assert contrast({"a": column(BAD), "b": column(after)}, "a", level=0.9)["b"].verdict == "better"
    assert contrast({"a": column(BAD), "b": column(after)}, "a", level=0.999)["b"].verdict == "same"


def test_without_the_baseline_there_is_a_value_and_no_difference() -> None:
    cells = contrast({"b": column(GOOD)}, "a")
    assert cells["b"].value.mean == 1.0
    assert cells["b"].against is None


def test_the_same_fall_everywhere_is_a_fall() -> None:
    def level(value: float) -> list[Point]:
        return [Point(f"i{i}", f"c{i}", value) for i in range(20)]

    cells = contrast({"a": level(100.0), "b": level(0.0), "c": level(100.0)}, "a", amount=True)
    assert [cells[name].verdict for name in "abc"] == [None, "worse", "same"]
    cells = contrast({"a": level(3.0), "b": level(2.0)}, "a", amount=True, lower_is_better=True)
    assert (cells["b"].verdict, cells["b"].best) == ("better", True)
    alone = {name: [Point("i", "c", value)] for name, value in (("a", 3.0), ("b", 2.0))}
    assert contrast(alone, "a", amount=True)["b"].verdict is None, "one prompt is no evidence"
