"""Weights laid out for the kernels while a batch is sampled: the same numbers, and nothing left behind."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_engines import model_of, prompts_of
from tiny import FOREST_ARCHS, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.engines import packed as module
from posttrain.engines.local import LocalEngine
from posttrain.engines.packed import packed
from posttrain.engines.protocol import SamplingParams

PARAMS = SamplingParams(n=3, max_new_tokens=40, seed=1)

WIDER = {"hidden_size": 128, "intermediate_size": 352}

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def linears(hf: torch.nn.Module) -> list[torch.nn.Module]:
    return [one for one in hf.modules() if type(one) is torch.nn.Linear]


def large(hf: torch.nn.Module) -> int:
    return sum(one.weight.numel() > 4096 for one in linears(hf))


def swapped(hf: torch.nn.Module) -> int:
    return sum("forward" in vars(one) for one in linears(hf))


@torch.inference_mode()
@pytest.mark.parametrize("arch", FOREST_ARCHS)
def test_layers_give_the_same_bits(arch: str) -> None:
    hf = tiny_model(arch, **WIDER).bfloat16()
    for layer in linears(hf):
        for rows in (1, 5, 64, 300):
            x = torch.randn(rows, layer.in_features, dtype=torch.bfloat16)
            plain = layer(x)
            with packed(hf, steps=100):
                assert swapped(hf) == large(hf) > 0
                assert torch.equal(layer(x), plain)
    assert not swapped(hf)


class Counted(TorchDispatchMode):
    """Counts products."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += "linear" in str(func)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_layers_of_one_input_are_one_product_in_any_order_and_right_with_others() -> None:
    hf = tiny_model("qwen2", **WIDER).bfloat16()
    attention = hf.model.layers[0].self_attn
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    x, y = torch.randn(2, 1, 5, 128, dtype=torch.bfloat16)
    expected = {one: (one(x), one(y)) for one in (q, k, v)}
    for order in itertools.permutations((q, k, v)):
        with packed(hf, steps=100), Counted() as counted:
            found = [one(x) for one in order]
        assert counted.products == 1
        assert all(torch.equal(a, expected[one][0]) for a, one in zip(found, order, strict=True))
    with packed(hf, steps=100):  # inputs by turns, and one layer twice
        for one, given, at in ((q, x, 0), (k, y, 1), (q, y, 1), (v, x, 0), (v, x, 0), (k, x, 0)):
            assert torch.equal(one(given), expected[one][at])


@torch.inference_mode()
def test_threads_keep_apart_what_one_product_gave() -> None:
    hf = tiny_model("qwen2", **WIDER).bfloat16()
    attention = hf.model.layers[0].self_attn
    q, k = attention.q_proj, attention.k_proj
    x = torch.randn(1, 5, 128, dtype=torch.bfloat16)
    expected = k(x)
    with packed(hf, steps=100), ThreadPoolExecutor(1) as other:
        q(x)
        other.submit(torch.inference_mode()(lambda: (q(x), k(x)))).result()
        with Counted() as counted:
            assert torch.equal(k(x), expected)
        assert counted.products == 0


def test_a_batch_is_sampled_with_it_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(model_of(tiny_model("llama").bfloat16()))
    counts: list[int] = []
    inner = engine._draw
    monkeypatch.setattr(engine, "_draw", lambda *a: counts.append(swapped(engine.model.hf)) or inner(*a))
    with_it = engine.generate(prompts_of(5, 9), PARAMS)
    assert counts
    assert min(counts) > 0
    monkeypatch.setattr(module, "_STEPS", 1_000)
    counts.clear()
    assert engine.generate(prompts_of(5, 9), PARAMS) == with_it
    assert max(counts) == 0


def test_weights_that_changed_between_calls_are_seen() -> None:
    engine = LocalEngine(model_of(tiny_model("llama").bfloat16()))
    before = engine.generate(prompts_of(5), PARAMS)
    with torch.no_grad():
        for weight in engine.model.hf.parameters():
            weight.mul_(1.5)
    after = engine.generate(prompts_of(5), PARAMS)
    assert after != before
    assert after == LocalEngine(engine.model).generate(prompts_of(5), PARAMS)


def test_a_stream_is_written_with_it_and_leaves_nothing_behind() -> None:
    engine = LocalEngine(model_of(tiny_model("llama").bfloat16()))
    params = SamplingParams(max_new_tokens=40, seed=1)
    stream = engine.stream(prompts_of(5)[0], params)
    said = [next(stream)]
    assert swapped(engine.model.hf) > 0
    said += stream
    assert not swapped(engine.model.hf)
    assert tuple(said) == engine.generate(prompts_of(5), params)[0][0].token_ids
    broken_off = engine.stream(prompts_of(5)[0], params)
    next(broken_off)
    broken_off.close()
    assert not swapped(engine.model.hf)


@pytest.mark.parametrize("why", ["float32", "few tokens", "no memory"])
def test_not_where_it_would_not_pay(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny_model("llama")
    hf = hf if why == "float32" else hf.bfloat16()
    if why == "no memory":
        monkeypatch.setattr(module, "_SHARE", 0)
    with packed(hf, steps=4 if why == "few tokens" else 100):
        assert not swapped(hf)


def test_layers_are_put_back_after_an_error() -> None:
    hf = tiny_model("llama").bfloat16()
    with pytest.raises(KeyError), packed(hf, steps=100):
        raise KeyError
    assert not swapped(hf)
