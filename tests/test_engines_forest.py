"""The decoder of models that run as forests: who enters and leaves, what is held, and in how few shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import GREEDY, model_of, prompts_of, tokens_of
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.engines import prefill as reading
from posttrain.engines.forest_decoder import ForestDecoder
from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.shapes import whole_rows, whole_tokens
from posttrain.engines.waiting import SharedPrompts, alike, families_of
from posttrain.engines.wave import Wave

HOT = SamplingParams(n=5, max_new_tokens=40, temperature=1.5, seed=11)


@pytest.fixture
def steps(monkeypatch) -> list[list[tuple[int, int, int]]]:
    """For each step, (rows, slots, cells) of every wave in it."""
    seen = []
    step = ForestDecoder.step

    def spy(self, waves, tokens):
        logits = step(self, waves, tokens)
        seen.append([(len(wave), len(wave.slots.lengths), wave.cells) for wave in waves])
        return logits

    monkeypatch.setattr(ForestDecoder, "step", spy)
    return seen


def test_rows_enter_and_leave_and_each_says_what_it_would_alone(steps):
    """Room for some prompts only: others enter while the first, some rows fewer, still write."""
    hf = tiny_model("qwen2")
    hf.generation_config.eos_token_id = [*range(2, 20)]
    model = model_of(hf)
    prompts = prompts_of(6, 3, 12, 6, 20, 33, 4, 9)
    together = LocalEngine(model, batch_tokens=900).generate(prompts, HOT)
    assert any(len(waves) > 1 for waves in steps)
    rows = [sum(size for size, _, _ in waves) for waves in steps]
    assert min(rows) < max(rows) / 3
    assert any(later > sooner for sooner, later in itertools.pairwise(rows))
    lengths = {len(answer.token_ids) for answers in together for answer in answers}
    assert len(lengths) > 10
    for batch_tokens in (1, 300, 100_000):
        assert tokens_of(LocalEngine(model, batch_tokens).generate(prompts, HOT)) == tokens_of(together)


def test_a_prompt_is_held_once_for_all_its_samples(steps):
    """One prompt of 100 tokens, 32 samples of 20: 128 cells for it and 32 for each row."""
    engine = LocalEngine(model_of(tiny_model("llama")))
    engine._stop_ids = torch.tensor([], dtype=torch.long)
    engine.generate(prompts_of(100), SamplingParams(n=32, max_new_tokens=20))
    assert steps[-1] == [(32, 1, 128 + 32 * 32)]


def test_slots_go_with_the_last_of_their_rows(steps):
    """Three prompts, two of which end at once: the answer to the third goes on without them."""
    hf = tiny_model("llama")
    prompts = prompts_of(40, 41, 42)
    with torch.no_grad():
        first = [int(hf(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in prompts]
    assert first[2] not in first[:2]
    hf.generation_config.eos_token_id = first[:2]
    LocalEngine(model_of(hf)).generate(prompts, GREEDY)
    assert [(rows, slots) for ((rows, slots, _),) in steps][:1] == [(1, 1)]


@pytest.mark.parametrize("arch", ["qwen2", "mistral", "gemma3"])
def test_rows_may_fork_from_any_prefix_of_what_was_read(arch):
    """A row is a slot, how much of it the row sees, and its own tokens: logits against the plain forward."""
    hf = tiny_model(arch)
    model = model_of(hf)
    (text, other), own = prompts_of(37, 12), prompts_of(4, 4, 4, 4, seed=9)
    with torch.inference_mode():
        slots, _ = reading.prefill(model.hf, [text, other], [(0, 37), (1, 12)])
        wave = Wave(slots, [0, 0, 1, 0], [5, 37, 12, 20], 4, torch.device("cpu"))
        for step in range(4):
            logits = ForestDecoder(model.hf).step([wave], torch.tensor([said[step] for said in own]))
        rows = [text[:5] + own[0], text + own[1], other + own[2], text[:20] + own[3]]
        expected = torch.stack([hf(torch.tensor([row])).logits[0, -1] for row in rows])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_what_rows_see_grows_token_by_token_as_if_made_anew():
    """35 steps: beyond the first 32 cells, and with rows that have left."""
    model = model_of(tiny_model("llama"))
    with torch.inference_mode():
        slots, _ = reading.prefill(model.hf, prompts_of(9, 40), [(0, 9), (1, 40)])
        wave = Wave(slots, [0, 0, 1, 1, 1], [9, 4, 40, 7, 40], 8, torch.device("cpu"))
        decoder = ForestDecoder(model.hf)
        for step in range(35):
            if step == 20:
                wave.select([1, 2, 4, 0], 3)
            decoder.step([wave], torch.arange(len(wave)))
            wave.said -= 1
            kept = wave._masks.pop(None)
            for ours, anew in zip(kept, wave._mask(None, torch.float32), strict=True):
                assert torch.equal(ours, anew)
            wave.said += 1


def test_prompts_beyond_one_forward_are_read_in_several(monkeypatch):
    model, prompts = model_of(tiny_model("mistral")), prompts_of(20, 19, 18, 17)
    whole = LocalEngine(model).generate(prompts, HOT)
    forwards = []
    plant = reading.plant
    monkeypatch.setattr(reading, "plant", lambda trees: forwards.append(trees) or plant(trees))
    monkeypatch.setattr(reading, "_PREFILL", 40)
    assert tokens_of(LocalEngine(model).generate(prompts, HOT)) == tokens_of(whole)
    assert len(forwards) == 2


def test_weights_may_change_between_calls():
    model = model_of(tiny_model("qwen2"))
    engine, prompts = LocalEngine(model), prompts_of(5, 9)
    before = engine.generate(prompts, GREEDY)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.mul_(-1.3)
    after = engine.generate(prompts, GREEDY)
    assert tokens_of(after) != tokens_of(before)
    assert after == LocalEngine(model).generate(prompts, GREEDY)


def test_in_bf16_logps_are_those_of_a_dense_forward_but_for_rounding():
    model = model_of(tiny_model("qwen2").to(torch.bfloat16))
    prompts = prompts_of(30, 9)
    found = LocalEngine(model).generate(prompts, SamplingParams(n=4, max_new_tokens=40))
    for prompt, answers in zip(prompts, found, strict=True):
        for answer in answers:
            with torch.no_grad():
                dense = model.hf(torch.tensor([[*prompt, *answer.token_ids]])).logits[0].float()
            said = torch.tensor(answer.token_ids)[:, None]
            expected = dense[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, said)[:, 0]
            gap = (torch.tensor(answer.model_logps) - expected).abs()
            assert gap.mean() < 0.02
            assert gap.max() < 0.2


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.linear.default, torch.ops.aten.bmm.default):
            sizes = tuple(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))
            self.shapes.add((str(func), *sizes))
        return func(*args, **(kwargs or {}))


def test_products_come_in_few_shapes():
    """Decoding ever other numbers of prompts of ever other lengths ends up adding no new shape."""
    engine = LocalEngine(model_of(tiny_model("llama")))
    params = SamplingParams(n=3, max_new_tokens=6)
    new = []
    seen: set[tuple] = set()
    for i in range(40):
        lengths = [3 + (7 * i + 5 * j) % 29 for j in range(1 + i % 6)]
        with Products() as products:
            engine.generate(prompts_of(*lengths, seed=i), params)
        new.append(len(products.shapes - seen))
        seen |= products.shapes
    assert sum(new[-10:]) <= sum(new[:10]) / 10
    assert new[0] > 10


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    samples=st.integers(1, 9),
    limit=st.integers(1, 40),
    batch_tokens=st.integers(1, 2000),
)
def test_every_sample_begins_once_and_within_its_room(lengths, samples, limit, batch_tokens):
    """Waves end one by one, the oldest first; what is held stays within bounds, but for a row alone."""
    waiting = waiting_of(lengths, limit, range(len(lengths)), samples, batch_tokens)
    begun: list[tuple[int, int]] = []
    held: list[tuple[int, int]] = []  # tokens and rows of each wave
    while waiting:
        for wave in waiting.admit(sum(tokens for tokens, _ in held)):
            begun += wave
            held.append((sum(lengths[i] for i in {i for i, _ in wave}) + len(wave) * limit, len(wave)))
        assert sum(tokens for tokens, _ in held) <= batch_tokens or [rows for _, rows in held] == [1]
        if held:
            held.pop(0)
    assert sorted(begun) == [(i, j) for i in range(len(lengths)) for j in range(samples)]


def waiting_of(lengths, limit, holders, samples, batch_tokens):
    limits = [limit] * len(lengths)
    return SharedPrompts(families_of(lengths, holders, samples), lengths, limits, holders, batch_tokens)


def test_prompts_of_other_lengths_get_other_waves():
    """Two prompts of 2,000 tokens and thirty of 30, two samples each: apart 2 * 2048 + 32 * 32 slot tokens,
    together 32 * 2048. Where the lengths are alike, a wave of its own would cost more than it saves.
    """
    families = [[(i, 0), (i, 1)] for i in range(32)]
    names = [name for family in families for name in family]
    long, short = alike(families, [2000] * 2 + [30] * 30)
    assert {i for i, _ in long} == {0, 1}
    assert sorted(long + short) == names
    assert alike(families, [40] * 2 + [30] * 30) == [names]


def test_sizes_are_rounded_to_few():
    assert [whole_rows(n) for n in (1, 2, 3, 5, 8, 9, 17, 100, 300)] == [1, 2, 4, 8, 8, 16, 32, 112, 320]
    assert [whole_tokens(n) for n in (1, 32, 33, 511, 512, 513, 4100)] == [32, 32, 64, 512, 512, 576, 4608]
