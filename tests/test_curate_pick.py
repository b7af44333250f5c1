"""Splitting: no prompt on both sides, and rows added later move no other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from posttrain.common.errors import DataError
from posttrain.prompts.pick import pick, place
from posttrain.prompts.spool import Entry

PLAIN: dict[str, Any] = {"limit": None, "take": "head", "holdout": None, "shuffle": False, "seed": 0}


def entries(groups: list[int]) -> list[Entry]:
    return [Entry(i, 1, f"g{group}", "prompt", "s", "", 1, 1) for i, group in enumerate(groups)]


def offsets(rows: list[Entry]) -> list[int]:
    return [row.offset for row in rows]


groups = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@settings(deadline=None)
@given(groups=groups, more=groups, share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_share_is_stable_when_rows_are_added(
    groups: list[int], more: list[int], share: float, seed: int
) -> None:
    out = {g for g in {*groups, *more} if place(f"g{g}", seed) < share}
    assume(out & {*groups} and {*groups} - out)
    before = pick(entries(groups), **{**PLAIN, "holdout": share, "seed": seed})
    after = pick(entries(groups + more), **{**PLAIN, "holdout": share, "seed": seed})
    assert not {row.group for row in before.kept} & {row.group for row in before.heldout}
    assert offsets(after.kept)[: len(before.kept)] == offsets(before.kept)
    assert offsets(after.heldout)[: len(before.heldout)] == offsets(before.heldout)


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(groups=groups, count=st.integers(1, 20), seed=st.integers(0, 5))
def test_a_count_takes_whole_prompts_and_no_more_than_it_must(
    groups: list[int], count: int, seed: int
) -> None:
    sizes = {g: groups.count(g) for g in groups}
    assume(len(groups) - count >= max(sizes.values()))
    picked = pick(entries(groups), **{**PLAIN, "holdout": count, "seed": seed})
    kept, held = ({row.group for row in side} for side in (picked.kept, picked.heldout))
    assert not kept & held
    assert len(picked.kept) + len(picked.heldout) == len(groups)
    last = max(held, key=lambda group: place(group, seed))
    assert count <= len(picked.heldout) < count + sizes[int(last[1:])]


def test_a_share_holds_out_about_that_share() -> None:
    picked = pick(entries(list(range(20_000))), **{**PLAIN, "holdout": 0.1})
    assert abs(len(picked.heldout) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    other = pick(entries(list(range(20_000))), **{**PLAIN, "holdout": 0.1, "seed": 1})
    assert offsets(other.heldout) != offsets(picked.heldout)


def test_limits_and_order() -> None:
    rows = entries(list(range(100)))
    assert offsets(pick(rows, **{**PLAIN, "limit": 7}).kept) == list(range(7))
    drawn = offsets(pick(rows, **{**PLAIN, "limit": 7, "take": "random"}).kept)
    assert len(drawn) == 7
    assert drawn == sorted(drawn) != list(range(7))
    assert drawn == offsets(pick(rows, **{**PLAIN, "limit": 7, "take": "random"}).kept)
    assert drawn != offsets(pick(rows, **{**PLAIN, "limit": 7, "take": "random", "seed": 1}).kept)
    shuffled = offsets(pick(rows, **{**PLAIN, "shuffle": True}).kept)
    assert sorted(shuffled) == list(range(100)) != shuffled
    assert offsets(pick(rows, **{**PLAIN, "limit": 1000}).kept) == list(range(100))


@pytest.mark.parametrize("holdout", [0.5, 1, 3])
def test_a_side_without_rows_is_an_error(holdout: float) -> None:
    with pytest.raises(DataError, match=r"holdout: .* of 3 rows with 1 different prompts"):
        pick(entries([5, 5, 5]), **{**PLAIN, "holdout": holdout})
