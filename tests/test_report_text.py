"""Numbers and untrusted text as the page writes them."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.report.curves import smooth
from posttrain.report.stages import column_scale, written_difference
from posttrain.report.text import Scale, amount, duration, scale, several, size, visible


@pytest.mark.parametrize(
    ("half", "written"),
    [(0.25, "1.23"), (0.31, "1.2"), (0.012, "1.235"), (0.09, "1.23"), (12.0, "1"), (1e-9, "1.2346")],
)
def test_digits_follow_the_interval(half: float, written: str):
    assert scale([1.23456], [2 * half], share=False).number(1.23456) == written


def test_a_number_without_an_interval_has_three_digits():
    assert scale([1234.5], [], share=False).number(1234.5) == "1,234"  # half to even, as Python rounds
    assert scale([0.01234], [], share=False).number(0.01234) == "0.0123"
    assert scale([0.0], [], share=False).number(0.0) == "0"


def test_proportions_are_percent():
    written = scale([0.5], [0.2], share=True)
    assert (written.number(0.5), written.unit) == ("50.0", "%")


def test_signs_are_true_and_zero_has_none_that_lies():
    written = Scale(1.0, 1, "")
    assert written.number(-2.0) == "−2.0"
    assert written.number(-0.01) == "0.0"
    assert written.number(-0.01, signed=True) == "+0.0"
    assert written.number(None) == "–"


def test_an_end_beyond_zero_is_not_written_as_zero():
    found = {
        "mean": -0.004,
        "low": -0.008,
        "high": -0.00003,
        "n": 3,
        "clusters": 3,
        "missing": 0,
        "method": "t",
    }
    assert written_difference(found, Scale(1.0, 2, "nats"))["interval"] == "[−0.00800, −0.00003]"
    spans = found | {"high": 0.00003}
    assert written_difference(spans, Scale(1.0, 2, "nats"))["interval"] == "[−0.008, +0.000]"


def test_a_metric_is_a_share_only_where_it_is_one_for_every_model():
    def estimate(model: str, method: str) -> dict[str, object]:
        return {
            "task": "t",
            "metric": "m",
            "group": "",
            "mean": 0.4,
            "low": 0.3,
            "high": 0.5,
            "method": method,
            "model": model,
        }

    task = {"label": "t", "units": {}}
    wilson, student = "Wilson at the effective sample size", "t over clusters"
    assert column_scale({"estimates": [estimate("a", wilson)] * 2}, task, "m").unit == "%"
    assert column_scale({"estimates": [estimate("a", wilson), estimate("b", student)]}, task, "m").unit == ""
    assert (
        column_scale({"estimates": [estimate("a", wilson)]}, task | {"units": {"m": "nats"}}, "m").unit
        == "nats"
    )


def test_times_sizes_and_counts():
    assert [duration(s) for s in (None, 0.04, 59.96, 125, 3599.7, 4320)] == [
        "–",
        "0.0 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 00 min",
        "1 h 12 min",
    ]
    assert [size(b) for b in (None, 512, 1536 * 1024, 300 * 2**20, 2.5 * 2**30)] == [
        "–",
        "512 B",
        "1.5 MiB",
        "300 MiB",
        "2.5 GiB",
    ]
    assert [amount(c) for c in (None, 999_999, 1_500_000, 2e12)] == ["–", "999,999", "1.50 M", "2.00 T"]
    assert (several(1, "item"), several(2, "item")) == ("1 item", "2 items")


@given(st.text(st.characters(), max_size=50))
def test_visible_text_holds_nothing_that_hides(text: str):
    shown = visible(text).text
    for char in shown:
        category = unicodedata.category(char)
        assert char in "\n\t" or category not in ("Cc", "Cs", "Zl", "Zp"), hex(ord(char))
        assert not 0x202A <= ord(char) <= 0x202E
        assert not 0x2066 <= ord(char) <= 0x2069
    shown.encode("utf-8")
    assert visible(shown).text == shown


def test_ordinary_writing_stays_as_it_is():
    for text in ("Grüße, 東京\n\tما هي؟ שלום 👍", "a-b_c <b>&amp;"):
        assert visible(text).text == text


def test_long_text_says_how_much_was_cut():
    shown = visible("x" * 5_000, 100)
    assert (len(shown.text), shown.cut) == (100, 4_900)
    assert visible("x" * 5_000, None).cut == 0


def test_smoothing_keeps_constants_and_straight_lines():
    line = np.arange(200.0)
    assert np.allclose(smooth(line), line)
    assert np.allclose(smooth(np.full(90, 3.0)), 3.0)
    assert smooth(np.array([5.0])) == [5.0]
    noisy = line + np.resize([1.0, -1.0], 200)
    assert np.abs(smooth(noisy) - line)[20:-20].max() < 0.2
