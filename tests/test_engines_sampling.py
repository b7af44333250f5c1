"""From logits to tokens: filters against transformers' own, draws against the exact distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, TrainingError
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.sampling import draw, invert, probabilities, uniforms


def logits(seed: int, rows: int, vocab: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
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
    found = probabilities(raw, params)
    torch.testing.assert_close(
        found / found.sum(-1, keepdim=True), expected.softmax(-1), rtol=1e-4, atol=1e-6
    )


def test_a_tie_at_the_last_place_of_top_k_keeps_both():
    found = probabilities(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), SamplingParams(top_k=2))
    assert (found > 0).tolist() == [[True, True, True, False]]


def test_top_p_keeps_no_more_of_a_tie_than_it_needs():
    """Four equal tokens: 0.6 takes three of them, those of lower id."""
    found = probabilities(torch.zeros(1, 4), SamplingParams(top_p=0.6))
    assert found.tolist() == [[0.25, 0.25, 0.25, 0.0]]


@pytest.mark.parametrize("scale", [0.0, 0.1, 8.0])
def test_top_p_over_a_large_vocabulary(scale):
    """Flat, so that all must be sorted, all equal, and peaked: against a plain sort of 5,000 tokens."""
    raw = logits(3, 4, 5000, scale)
    found = probabilities(raw, SamplingParams(top_p=0.7))
    for row, weights in zip(raw.softmax(-1).double().tolist(), found.tolist(), strict=True):
        before, kept = 0.0, set()
        for i in sorted(range(len(row)), key=lambda i: -row[i]):
            if before >= 0.7:
                break
            kept.add(i)
            before += row[i]
        assert {i for i, weight in enumerate(weights) if weight} == kept


def test_top_p_always_keeps_the_likeliest():
    found = probabilities(torch.tensor([[9.0, 0.0, 0.0]]), SamplingParams(top_p=1e-6))
    assert (found > 0).tolist() == [[True, False, False]]


def test_a_draw_inverts_the_cumulative_distribution():
    weights = torch.tensor([[0.2, 0.4, 0.0, 1.4]])  # twice a distribution: what is drawn is its share
    for uniform, expected in ((0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 3), (0.9999, 3)):
        token, share = invert(weights, torch.tensor([uniform], dtype=torch.float64))
        assert token.item() == expected
        assert share.item() == pytest.approx(weights[0, expected].item() / 2)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), vocab=st.sampled_from([1, 7, 255, 256, 257, 700]))
def test_two_steps_draw_what_one_would(seed, vocab):
    """Against one cumulative sum over the whole vocabulary, blocks of it full, cut off and empty."""
    weights = probabilities(logits(seed, 16, vocab, scale=5.0), SamplingParams(min_p=0.01))
    uniform = torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tokens, _ = invert(weights, uniform)
    cumulative = weights.double().cumsum(-1)
    below = (cumulative - weights.double()).gather(-1, tokens[:, None])[:, 0] / cumulative[:, -1]
    above = cumulative.gather(-1, tokens[:, None])[:, 0] / cumulative[:, -1]
    assert ((below <= uniform + 1e-6) & (uniform <= above + 1e-6)).all()


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), end=st.sampled_from(["first", "last"]), vocab=st.sampled_from([50, 900]))
def test_what_is_ruled_out_is_never_drawn(seed, end, vocab):
    """At both ends of the unit interval, where a sum that is not quite 1 would reach past the last token."""
    weights = probabilities(logits(seed, 64, vocab, scale=8.0), SamplingParams(top_k=5))
    uniform = 0.0 if end == "first" else 1 - 2**-53
    tokens, share = invert(weights, torch.full((64,), uniform, dtype=torch.float64))
    assert (share > 0).all()
    allowed = [row.nonzero()[:, 0] for row in weights]
    assert tokens.tolist() == [int(ids[0] if end == "first" else ids[-1]) for ids in allowed]


def test_greedy_takes_the_mode_with_certainty():
    raw = logits(0, 5, 20)
    drawn = draw(raw, SamplingParams(temperature=0), None)
    assert drawn.tokens.tolist() == raw.argmax(-1).tolist()
    assert drawn.logps.tolist() == [0.0] * 5
    torch.testing.assert_close(drawn.model_logps, raw.log_softmax(-1).amax(-1))


def test_log_probs_of_the_draw_and_of_the_model():
    """By hand: log 1, log 2, log 4 at temperature 1/2 weigh 1, 4, 16, of which top_k leaves two."""
    raw = torch.tensor([[1.0, 2.0, 4.0]]).log()
    drawn = draw(raw, SamplingParams(temperature=0.5, top_k=2), torch.tensor([0.1], dtype=torch.float64))
    assert drawn.tokens.item() == 1
    assert drawn.logps.item() == pytest.approx(math.log(4 / 20))
    assert drawn.model_logps.item() == pytest.approx(math.log(2 / 7))


def test_log_probs_of_the_model_stay_finite_for_what_only_heat_could_draw():
    raw = torch.tensor([[0.0, 150.0]])
    drawn = draw(raw, SamplingParams(temperature=100.0), torch.tensor([0.0], dtype=torch.float64))
    assert drawn.tokens.item() == 0
    assert drawn.model_logps.item() == pytest.approx(-150.0)


def test_rows_are_drawn_alike_whatever_is_beside_them():
    """More rows than are worked on at once; the last row alone gets the same."""
    raw = logits(1, 40, 30_000)
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for params in (SamplingParams(), SamplingParams(top_p=0.9, temperature=0.7)):
        together, alone = draw(raw, params, uniform), draw(raw[-1:], params, uniform[-1:])
        assert together.tokens[-1:].equal(alone.tokens)
        assert together.logps[-1:].equal(alone.logps)


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


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}]
)
def test_logits_that_are_no_numbers_are_an_error(wrong, fields):
    """In one row of three, at one token of many, in the last block, which is not whole."""
    given = logits(0, 3, 600)
    given[1, 599] = wrong
    params = SamplingParams(**fields)
    noise = torch.rand(3, dtype=torch.float64) if params.temperature else None
    with pytest.raises(TrainingError, match=r"logits are not finite numbers.*lower optimizer\.lr"):
        draw(given, params, noise)
    given[1, 599] = -math.inf  # a token that is ruled out is none
    draw(given, params, noise)
