"""Groups of rows that are sampled at the same time: the same answers, and faults that end them all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engines import model_of, prompts_of, tokens_of
from tiny import tiny_model

from posttrain.engines.forest_decoder import ForestDecoder
from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.side_by_side import groups, side_by_side
from posttrain.engines.waiting import dealt


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_groups_say_what_one_says(two_threads, monkeypatch):
    """Three equal prompts, whose 90 rows are cut at 60, and another's 30 rows: 60 for each thread."""
    hf = tiny_model("mistral")
    hf.generation_config.eos_token_id = [*range(2, 12)]
    short, long = prompts_of(7, 20)
    model, prompts = model_of(hf), [long, short, long, long]
    params = SamplingParams(n=30, max_new_tokens=30, temperature=1.5, seed=3)
    begun = []
    begin = ForestDecoder.begin

    def spy(self, asked, slot, rows):
        begun.append((len(slot), torch.get_num_threads()))
        return begin(self, asked, slot, rows)

    monkeypatch.setattr(ForestDecoder, "begin", spy)
    together = LocalEngine(model).generate(prompts, params)
    assert sorted(begun) == [(60, 1), (60, 1)]
    assert torch.get_num_threads() == 2
    assert LocalEngine(model).generate(prompts, params) == together  # to the same bits
    begun.clear()
    torch.set_num_threads(1)
    alone = LocalEngine(model).generate(prompts, params)
    assert begun == [(120, 1)]
    assert tokens_of(together) == tokens_of(alone)


def test_groups_are_of_32_rows_or_more_and_no_more_than_threads(two_threads):
    hf = tiny_model("llama")
    assert [groups(rows, hf) for rows in (0, 1, 63, 64, 1000)] == [1, 1, 1, 2, 2]
    assert groups(1000, tiny_model("gemma3")) == 2
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert groups(1000, tiny_model("llama", rope_parameters=dynamic)) == 1
    assert groups(1000, hf.to("meta")) == 1
    torch.set_num_threads(1)
    assert groups(1000, tiny_model("llama")) == 1


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 5))
def test_samples_are_dealt_evenly_and_all(sizes, count):
    families = [[(i, j) for j in range(size)] for i, size in enumerate(sizes)]
    hands = dealt(families, count)
    assert sorted(name for hand in hands for family in hand for name in family) == [
        name for family in families for name in family
    ]
    assert len(hands) <= count
    share = -(-sum(sizes) // count)
    for hand in hands:
        assert sum(map(len, hand)) < 2 * share or sum(sizes) == 0
        assert all(len(family) <= share for family in hand)


def test_a_fault_in_one_group_ends_the_others(two_threads):
    def fails(over):
        raise ValueError("damaged")

    def waits(over):
        assert over.wait(30)

    for works in ([fails, waits], [waits, fails]):
        with pytest.raises(ValueError, match="damaged"):
            side_by_side(works)
        assert torch.get_num_threads() == 2
    assert side_by_side([lambda over: 1, lambda over: 2]) == [1, 2]
    assert side_by_side([]) == []
