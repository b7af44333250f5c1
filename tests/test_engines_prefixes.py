"""Prompts that are prefixes of one another share what is read and held: the same answers, counted once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import model_of, prompts_of, tokens_of
from test_engines_forest import waiting_of
from tiny import tiny_model

from posttrain.engines import forest_decoder, local
from posttrain.engines import prefill as reading
from posttrain.engines.forest_decoder import ForestDecoder
from posttrain.engines.local import LocalEngine
from posttrain.engines.prefixes import holders
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.scripted import ScriptedEngine

HOT = SamplingParams(n=3, max_new_tokens=40, temperature=1.5, seed=11)


@pytest.fixture
def held(monkeypatch) -> list[tuple[int, int, int]]:
    """For each wave that begins, (tokens read, slots, tokens they are wide)."""
    begun = []
    read = []
    begin, plant = ForestDecoder.begin, reading.plant

    def spy(self, *args):
        read.clear()
        wave, logits = begin(self, *args)
        begun.append((sum(read), len(wave.slots.lengths), wave.slots.width))
        return wave, logits

    monkeypatch.setattr(reading, "plant", lambda trees: read.append(trees[0].size) or plant(trees))
    monkeypatch.setattr(ForestDecoder, "begin", spy)
    return begun


def test_holders_by_hand():
    """[1] and [1, 2] lie in [1, 2, 3]; of the two that are equal one holds both; [1, 9] begins otherwise."""
    assert holders([[1, 2], [1, 2, 3], [4], (1,), (1, 2, 3), [1, 9]]) == [4, 4, 2, 4, 4, 5]
    assert holders([]) == []


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=12))
def test_a_holder_begins_with_its_prompts_and_nothing_longer_begins_with_it(prompts):
    found = holders(prompts)
    for prompt, h in zip(prompts, found, strict=True):
        assert prompts[h][: len(prompt)] == prompt
        assert found[h] == h
        assert all(
            len(other) == len(prompts[h]) for other in prompts if other[: len(prompts[h])] == prompts[h]
        )
    assert len(set(found)) == len({tuple(prompts[h]) for h in found})


@pytest.mark.parametrize("arch", ["qwen2", "mistral", "gemma3"])
def test_prefixes_say_what_they_say_in_slots_of_their_own(arch, monkeypatch):
    """Windows of 8 tokens too, rows that leave, and caches too small for a whole family."""
    hf = tiny_model(arch)
    hf.generation_config.eos_token_id = [*range(2, 12)]
    model = model_of(hf)
    text, other, late = prompts_of(37, 12, 30)
    fork = text[:20] + late  # begins like the text, and is no prefix of it
    prompts = [text[:5], text, other, text[:20], text, fork, text[:36], other[:11]]
    shared = {size: LocalEngine(model, size).generate(prompts, HOT) for size in (100_000, 400, 1)}
    for module in (local, forest_decoder):
        monkeypatch.setattr(module, "holders", lambda prompts: [*range(len(prompts))])
    apart = LocalEngine(model).generate(prompts, HOT)
    assert len({len(answer.token_ids) for answers in apart for answer in answers}) > 5
    for answers in shared.values():
        assert tokens_of(answers) == tokens_of(apart)
        for row, expected in zip(answers, apart, strict=True):
            for answer, wanted in zip(row, expected, strict=True):
                ours, theirs = torch.tensor(answer.model_logps), torch.tensor(wanted.model_logps)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_all_prefixes_of_a_trajectory_are_read_once_and_held_in_one_slot(held):
    """30 prefixes of 200 tokens, the last of them the whole: one slot of 224, where each had its own."""
    (text,) = prompts_of(200)
    prefixes = [text[: 55 + 5 * i] for i in range(30)]
    engine = LocalEngine(model_of(tiny_model("llama")))
    engine.generate(prefixes, SamplingParams(n=2, max_new_tokens=3))
    assert held == [(200, 1, 224)]


def test_equal_prompts_are_read_and_held_once(held):
    """Named four times, a prompt has four answers of its own."""
    short, long = prompts_of(9, 30)
    engine = LocalEngine(model_of(tiny_model("llama")))
    params = SamplingParams(max_new_tokens=12, temperature=1.5)
    found = engine.generate([short, long, short, short, short], params)
    assert len({answers[0].token_ids for answers in found}) == 5
    assert held == [(39, 2, 32)]
    assert tokens_of(found)[:2] == tokens_of(engine.generate([short, long], params))


def test_each_prompt_may_have_a_limit_of_its_own():
    """What it says up to there is what it says without."""
    engine = LocalEngine(model_of(tiny_model("llama", eos_token_id=None)))
    engine._stop_ids = torch.tensor([], dtype=torch.long)
    (text,) = prompts_of(20)
    prompts, params = [text, text[:7], text[:9]], SamplingParams(n=2, max_new_tokens=30)
    whole = engine.generate(prompts, params)
    found = engine.generate(prompts, params, limits=[40, 3, 12])
    for answers, wanted, limit in zip(found, whole, (30, 3, 12), strict=True):
        for answer, expected in zip(answers, wanted, strict=True):
            assert answer.token_ids == expected.token_ids[:limit]
            assert answer.finish == "length"
    echo = ScriptedEngine(lambda prompt, j: (*prompt, 1, 2, j))
    said = echo.generate([[5], [6]], params, limits=[2, 9])
    assert tokens_of(said) == [[(5, 1), (5, 1)], [(6, 1, 2, 0), (6, 1, 2, 1)]]
    assert [answers[0].finish for answers in said] == ["length", "stop"]


@settings(deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=20),
    samples=st.integers(1, 5),
    limit=st.integers(1, 20),
    batch_tokens=st.integers(1, 500),
)
def test_families_begin_whole_and_within_their_room(prompts, samples, limit, batch_tokens):
    """A family is split only where it never fits; what waves hold is the longest prompt of each family."""
    lengths, holder = [len(prompt) for prompt in prompts], holders(prompts)
    waiting = waiting_of(lengths, limit, holder, samples, batch_tokens)
    begun: list[list[tuple[int, int]]] = []
    held: list[tuple[int, int]] = []  # tokens and rows of each wave
    while waiting:
        for wave in waiting.admit(sum(tokens for tokens, _ in held)):
            begun.append(wave)
            longest = {
                h: max(lengths[i] for i, _ in wave if holder[i] == h) for h in {holder[i] for i, _ in wave}
            }
            assert waiting.prompt_tokens(wave) == sum(longest.values())
            held.append((sum(longest.values()) + len(wave) * limit, len(wave)))
        assert sum(tokens for tokens, _ in held) <= batch_tokens or [rows for _, rows in held] == [1]
        if held:
            held.pop(0)
    assert sorted(name for wave in begun for name in wave) == [
        (i, j) for i in range(len(prompts)) for j in range(samples)
    ]
    for h in set(holder):
        waves = [wave for wave in begun if any(holder[i] == h for i, _ in wave)]
        assert len(waves) == 1 or lengths[h] + holder.count(h) * samples * limit > batch_tokens
