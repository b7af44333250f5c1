"""From logits to tokens: filters against transformers' own, draws against the exact distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.sampling import distribution, draw, uniforms


def logits(seed: int, rows: int, vocab: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.05, 1.0),
    min_p=st.none() | st.floats(0.0, 0.9),
)
def test_filters_are_those_of_transformers(seed, temperature, top_k, top_p, min_p):
    raw = logits(seed, 3, 30)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = raw / temperature
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None and top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    torch.testing.assert_close(distribution(raw, params), expected.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_a_tie_at_the_last_place_keeps_both():
    found = distribution(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), SamplingParams(top_k=2))
    assert found.isfinite().tolist() == [[True, True, True, False]]


def test_top_p_always_keeps_the_likeliest():
    found = distribution(torch.tensor([[9.0, 0.0, 0.0]]), SamplingParams(top_p=1e-6))
    assert found.tolist() == [[0.0, -math.inf, -math.inf]]


def test_a_draw_inverts_the_cumulative_distribution():
    logps = torch.tensor([[0.1, 0.2, 0.0, 0.7]]).log()
    for uniform, expected in ((0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 3), (0.9999, 3)):
        token, logp = draw(logps, torch.tensor([uniform], dtype=torch.float64))
        assert token.item() == expected
        assert logp.item() == pytest.approx(logps[0, expected].item())


@given(seed=st.integers(0, 10_000), end=st.sampled_from(["first", "last"]))
def test_what_is_ruled_out_is_never_drawn(seed, end):
    """At both ends of the unit interval, where a sum that is not quite 1 would reach past the last token."""
    logps = distribution(logits(seed, 64, 50, scale=8.0), SamplingParams(top_k=5))
    uniform = 0.0 if end == "first" else 1 - 2**-53
    tokens, logp = draw(logps, torch.full((64,), uniform, dtype=torch.float64))
    assert torch.isfinite(logp).all()
    allowed = [row.isfinite().nonzero()[:, 0] for row in logps]
    assert tokens.tolist() == [int(ids[0] if end == "first" else ids[-1]) for ids in allowed]


def test_greedy_takes_the_mode_with_certainty():
    raw = logits(0, 5, 20)
    tokens, logp = draw(distribution(raw, SamplingParams(temperature=0)), None)
    assert tokens.tolist() == raw.argmax(-1).tolist()
    assert logp.tolist() == [0.0] * 5


def test_noise_belongs_to_the_row_and_not_to_the_batch():
    together = uniforms(7, [(0, 0), (0, 1), (5, 2)], 40)
    assert np.array_equal(together[2:], uniforms(7, [(5, 2)], 40))
    assert np.array_equal(together[:, :10], uniforms(7, [(0, 0), (0, 1), (5, 2)], 10))
    rows = [*map(tuple, together.tolist()), tuple(uniforms(8, [(0, 0)], 40)[0].tolist())]
    assert len(set(rows)) == 4


def test_noise_does_not_change_between_releases():
    """Runs are compared by their seeds: a change here changes what every recipe samples."""
    assert uniforms(1, [(2, 3)], 2).tolist() == [[0.7198955456932165, 0.012702050455707714]]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"n": 0}, {"top_p": 0}, {"stop": [""]}, {"max_new_token": 3}, {"seed": -1}]
)
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse(SamplingParams, wrong, "sample")
