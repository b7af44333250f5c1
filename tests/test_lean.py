"""Norms and gated MLPs keep less for backward, to the bit the same gradient, and make no product twice."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import FOREST_ARCHS, VOCAB, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.models.lean import keep_less

GATED = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "olmo2")


class Products(TorchDispatchMode):
    """Counts matrix products by their operator."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.seen[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def learn(model):
    """One backward: (loss, gradients by name, bytes kept for it, its products)."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    ids = torch.randint(0, VOCAB, (1, 96), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model(input_ids=ids, use_cache=False).logits.float().square().mean()
    size = sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in own)
    with Products() as products:
        loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss, found, size, products.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", FOREST_ARCHS)
def test_the_same_bits_from_less(arch, dtype):
    plain = tiny_model(arch).to(dtype).train()
    lean = copy.deepcopy(plain)
    keep_less(lean)
    lean = copy.deepcopy(lean)  # a copy computes with its own weights
    loss, expected, before, products = learn(plain)
    lean_loss, found, after, lean_products = learn(lean)
    assert torch.equal(loss, lean_loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert lean_products == products
    if arch in GATED:
        assert after < 0.85 * before
    else:
        assert after <= before


def test_adapters_draw_the_same_dropout():
    plain = tiny_model("qwen2").train()
    plain = get_peft_model(plain, LoraConfig(target_modules="all-linear", lora_dropout=0.5, r=4))
    lean = copy.deepcopy(plain)
    keep_less(lean)
    with torch.no_grad():
        for a, b in zip(plain.parameters(), lean.parameters(), strict=True):
            if a.requires_grad:
                a.normal_(std=0.1)
                b.copy_(a)
    loss, expected, before, _ = learn(plain)
    lean_loss, found, after, _ = learn(lean)
    assert torch.equal(loss, lean_loss)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert after < before


def test_an_mlp_of_the_same_names_and_another_formula_is_left_alone():
    model = tiny_model("llama")

    class LlamaMLP(type(model.model.layers[0].mlp)):
        def forward(self, x):
            return super().forward(x) * 2

    model.model.layers[0].mlp.__class__ = LlamaMLP
    keep_less(model)
    assert type(model.model.layers[0].mlp) is LlamaMLP
    assert type(model.model.layers[1].mlp).__name__ == "LlamaMLP"
    assert type(model.model.layers[1].mlp) is not type(tiny_model("llama").model.layers[1].mlp)


def test_a_norm_with_a_gate_of_its_own_gets_it():
    class GateRMSNorm(torch.nn.Module):
        def forward(self, hidden, gate, scale=1.0):
            return hidden * hidden.square().mean(-1, keepdim=True).rsqrt() * gate.sigmoid() * scale

    found = []
    for lean in (False, True):
        module = torch.nn.Sequential(GateRMSNorm())
        if lean:
            keep_less(module)
        hidden, gate = (torch.arange(1.0, 7).view(2, 3).requires_grad_() for _ in range(2))
        out = module[0](hidden, gate, scale=2.0)
        out.square().sum().backward()
        found.append((out, hidden.grad, gate.grad))
    for plain, lean in zip(*found, strict=True):
        assert torch.equal(plain, lean)
