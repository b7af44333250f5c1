"""The drawing of known, left open and wrong."""

from __future__ import annotations

import pytest

from posttrain.report import evolution


def test_the_whiskers_stand_at_the_ends_of_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(evolution, "_whisker", lambda axes, y, low, high: drawn.append((low, high)))
    share = {"mean": 0.5, "low": 0.4, "high": 0.7}
    wrong = {"mean": 0.25, "low": 0.2, "high": 0.35}
    evolution.draw_shares([{"model": "m", "shares": [share, {"mean": 0.25}, wrong]}], "p", wide=True)
    assert drawn == [(0.4, 0.7), (pytest.approx(0.65), pytest.approx(0.8))]
