"""The forest forward equals the dense forward: log-probs, entropies, scores and every gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ARCHS, FALLBACK_ARCHS, FOREST_ARCHS, tiny_model
from torch.nn.attention.flex_attention import flex_attention

from posttrain.models import attention as attention_module
from posttrain.models import layout as layout_module
from posttrain.models import logprobs
from posttrain.models.attention import PathAttention, install
from posttrain.models.forest import Branch, pack, paths_of, plant, tree_of
from posttrain.models.forward import ENTROPY, LOGPS, SCORES, VALUES, forward, score_trees
from posttrain.models.layout import visible
from posttrain.models.logprobs import HeadLogps, from_logits
from posttrain.models.selfcheck import check_forest

ALL = frozenset({LOGPS, ENTROPY, SCORES, VALUES})


def branch(tokens, prompt):
    return Branch(tokens, [i >= prompt for i in range(len(tokens))])


def random_rows(seed=0, vocab=384):
    """Rows with several branch points on one path, rows that end inside another's path, and an equal pair."""
    g = torch.Generator().manual_seed(seed)

    def run(n):
        return torch.randint(0, vocab, (n,), generator=g).tolist()

    stem, a, b = run(11), run(6), run(4)
    nested = [stem + a + b + run(3), stem + a + b + run(1), stem + a + b, stem + a + run(5), stem + run(2)]
    nested.append(list(nested[0]))
    return [[branch(row, 11) for row in nested], [branch(run(9), 1)], [branch(run(20), 5), branch(run(3), 2)]]


def model_of(hf):
    torch.manual_seed(1)
    width = hf.config.hidden_size
    install(hf)
    return SimpleNamespace(
        hf=hf,
        forest=True,
        lm_head=True,
        critic=None,
        adapters=None,
        reward_head=torch.nn.Linear(width, 3, bias=False),
        value_head=torch.nn.Linear(width, 1, bias=False),
    )


def grads(model, out):
    model.hf.zero_grad()
    parts = [out.logps, out.entropy, out.values, out.scores.flatten()]
    sum((part * torch.linspace(-1, 1, len(part))).sum() for part in parts).backward()
    found = {n: p.grad.clone() for n, p in model.hf.named_parameters() if p.grad is not None}
    for name in ("reward_head", "value_head"):
        found[name] = getattr(model, name).weight.grad.clone()
        getattr(model, name).weight.grad = None
    return found


def dense(hf, model, rows):
    """By hand: every branch a padded-free row through plain transformers."""
    logps, entropy, values, scores = [], [], [], []
    for row in rows:
        ids = torch.tensor([row.tokens])
        result = hf(input_ids=ids, use_cache=False, output_hidden_states=True)
        logq = result.logits[0].log_softmax(-1)
        at = torch.tensor([i for i, wanted in enumerate(row.mask) if wanted])
        logps.append(logq[at - 1, ids[0, at]])
        entropy.append(-(logq.exp() * logq).sum(-1)[at - 1])
        hidden = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        values.append(model.value_head(hidden[at - 1]).squeeze(-1))
        scores.append(model.reward_head(hidden[-1]))
    return logps, entropy, values, torch.stack(scores)


@pytest.mark.parametrize("arch", FOREST_ARCHS)
def test_forest_equals_dense(arch):
    model = model_of(tiny_model(arch))
    assert check_forest(model), arch
    groups = random_rows()
    rows = [row for group in groups for row in group]
    forest = plant([tree_of(group) for group in groups])
    assert forest.size < sum(len(row.tokens) for row in rows)
    out = forward(model, forest, ALL)
    found = grads(model, out)

    plain = tiny_model(arch)  # the same seed, plain SDPA
    logps, entropy, values, scores = dense(plain, model, rows)
    for mine, theirs in ((out.logps, logps), (out.entropy, entropy), (out.values, values)):
        torch.testing.assert_close(mine[forest.token_of], torch.cat(theirs), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out.scores, scores, atol=2e-5, rtol=1e-4)

    model.forest = False
    expected = grads(model, forward(model, forest, ALL))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=5e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("arch", FALLBACK_ARCHS)
def test_other_architectures_fall_back_with_one_warning_and_the_same_numbers(arch, caplog):
    model = model_of(tiny_model(arch))
    assert not check_forest(model)
    assert caplog.text.count("each branch becomes a row") == 1
    groups = random_rows()
    forest = plant([tree_of(group) for group in groups])
    out = forward(model, forest, ALL)
    logps, _, values, scores = dense(tiny_model(arch), model, [row for group in groups for row in group])
    torch.testing.assert_close(out.logps[forest.token_of], torch.cat(logps), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out.values[forest.token_of], torch.cat(values), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out.scores, scores, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", ["qwen2", "gpt2"])
def test_lora_through_the_forest(arch):
    from peft import LoraConfig, get_peft_model

    from posttrain.models.forward import causal_lm

    hf = tiny_model(arch)
    torch.manual_seed(3)
    peft = get_peft_model(hf, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model = model_of(causal_lm(peft))
    model.hf = peft
    assert check_forest(model)
    forest = plant([tree_of(group) for group in random_rows()])
    found = grads(model, forward(model, forest, ALL))
    assert any("lora_A" in name for name in found)
    assert not any("base_layer" in name for name in found)
    model.forest = False
    expected = grads(model, forward(model, forest, ALL))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("arch", ["qwen2", "mistral", "gemma3"])
def test_no_square_mask_is_made_for_a_forest(arch, monkeypatch):
    """Plain use still gets the mask that it needs."""
    made = []
    real = attention_module.sdpa_mask
    monkeypatch.setattr(attention_module, "sdpa_mask", lambda *a, **k: made.append(1) or real(*a, **k))
    model = model_of(tiny_model(arch))
    made.clear()
    forward(model, plant([tree_of([Branch([1, 2, 3], [False, True, True])])]))
    assert not made
    model.hf(input_ids=torch.tensor([[1, 2, 3]]))
    assert made


def test_self_check_notices_a_model_that_ignores_the_forest(caplog):
    """An architecture that runs, but attends across branches, must not pass for one that can."""
    model = model_of(tiny_model("qwen2"))
    model.hf.set_attn_implementation("sdpa")
    assert not check_forest(model)
    assert "log-probs differ" in caplog.text


def test_bf16_stays_close_to_float32():
    model = model_of(tiny_model("qwen3"))
    forest = plant([tree_of(group) for group in random_rows()])
    expected = forward(model, forest).logps
    model.hf.to(torch.bfloat16)
    found = forward(model, forest).logps
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=7), st.integers(1, 6)),
        min_size=1,
        max_size=6,
    )
)
def test_a_trie_keeps_every_branch(rows):
    """Whatever is shared, each branch reads back token for token, and a token's ancestors are its path."""
    branches = [branch(tokens, min(prompt, len(tokens))) for tokens, prompt in rows]
    forest = plant([tree_of(branches)])
    paths = paths_of(forest)
    index = torch.arange(forest.size)
    for b, (row, path) in enumerate(zip(branches, paths, strict=True)):
        assert forest.tokens[path].tolist() == list(row.tokens)
        assert forest.positions[path].tolist() == list(range(len(row.tokens)))
        seen = visible(
            torch.tensor([path[-1].item()])[:, None], index[None], forest.end, forest.positions, None
        )
        assert index[seen[0]].tolist() == path.tolist()
        wanted = forest.token_of[forest.branch_of == b]
        assert forest.targets[wanted].tolist() == [t for t, m in zip(row.tokens, row.mask, strict=True) if m]
        sources = forest.sources[wanted].tolist()
        assert sources == [path[i - 1].item() for i, m in enumerate(row.mask) if m]
    shared = len(
        {(tuple(r.tokens[: i + 1]), tuple(r.mask[: i + 1])) for r in branches for i in range(len(r.tokens))}
    )
    assert forest.size == shared


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 3, 64]),
    st.sampled_from([0, 50, 10**9]),
    st.sampled_from([None, 1, 4]),
)
def test_every_cut_of_attention_gives_the_same(seed, rows, job_cost, window):
    """Blocks of rows, whole subtrees or single segments, sliding windows, grouped heads: one answer, one
    gradient.
    """
    layout_rows, layout_job = layout_module.ROWS, layout_module.JOB
    layout_module.ROWS, layout_module.JOB = rows, job_cost
    try:
        forest = plant([tree_of(group) for group in random_rows(seed, vocab=5)])
        total, real = len(forest.tokens), forest.size  # behind them lie tokens that only round the shape up
        torch.manual_seed(seed)
        q = torch.randn(4, total, 8, dtype=torch.float64, requires_grad=True)
        k, v = (torch.randn(2, total, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
        out = PathAttention.apply(q, k, v, forest.layout, 0.3, window)
        at = torch.arange(total)
        seen = visible(at[:, None], at[None], forest.end, forest.positions, window)
        scores = (q @ k.repeat_interleave(2, 0).transpose(1, 2) * 0.3).masked_fill(~seen, float("-inf"))
        expected = (scores.softmax(-1) @ v.repeat_interleave(2, 0)).transpose(0, 1)
        torch.testing.assert_close(out[:real], expected[:real], atol=1e-5, rtol=1e-5)
        weights = torch.randn_like(out)
        weights[real:] = 0
        mine = torch.autograd.grad((out * weights).sum(), (q, k, v))
        theirs = torch.autograd.grad((expected * weights).sum(), (q, k, v))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    finally:
        layout_module.ROWS, layout_module.JOB = layout_rows, layout_job


@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_sees_the_same_paths(window):
    """The CUDA path's block mask, run by FlexAttention's own eager reference."""
    forest = plant([tree_of(group) for group in random_rows()])
    torch.manual_seed(0)
    total, real = len(forest.tokens), forest.size
    q, k, v = torch.randn(1, 4, total, 16), *(torch.randn(1, 2, total, 16) for _ in range(2))
    mask = forest.layout.block_mask(window)
    found = flex_attention(q, k, v, block_mask=mask, scale=0.25, enable_gqa=True)
    expected = PathAttention.apply(q[0], k[0], v[0], forest.layout, 0.25, window)
    torch.testing.assert_close(found[0].transpose(0, 1)[:real], expected[:real], atol=1e-5, rtol=1e-5)


def test_scoring_in_any_packing_gives_the_same():
    model = model_of(tiny_model("llama"))
    trees = [tree_of(group) for group in random_rows()]
    whole = {i: out for i, _, out in score_trees(model, trees, ALL, budget=10_000)}
    single = {i: out for i, _, out in score_trees(model, trees, ALL, budget=1)}
    assert whole.keys() == single.keys() == set(range(len(trees)))
    for i, out in whole.items():
        for name in ("logps", "entropy", "values", "scores"):
            torch.testing.assert_close(getattr(out, name), getattr(single[i], name), atol=1e-5, rtol=1e-4)


def test_packing_keeps_order_and_budget():
    assert pack([5, 5, 5, 20, 1], 10) == [[0, 1], [2], [3], [4]]
    assert pack([], 10) == []


def test_the_first_token_cannot_be_wanted():
    with pytest.raises(ValueError, match="nothing before it"):
        Branch([1, 2], [True, True])


def test_every_tiny_architecture_is_either_forest_or_fallback():
    assert set(ARCHS) == {*FOREST_ARCHS, *FALLBACK_ARCHS}


@pytest.mark.parametrize("narrowest", [1000, 16, 7])
@pytest.mark.parametrize("entropies", [False, True])
def test_log_probs_block_by_block(entropies, narrowest, monkeypatch):
    """Value and gradients at a temperature against plain autograd in float64; the vocabulary in blocks."""
    monkeypatch.setattr(logprobs, "CHUNK", 1)
    monkeypatch.setattr(logprobs, "TILE", 60)
    monkeypatch.setattr(logprobs, "NARROWEST", narrowest)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 40)
    head.bias.data[14:] += torch.linspace(0, 30, 26)  # some blocks hold nearly nothing, one nearly all
    hidden, targets = torch.randn(9, 16), torch.randint(0, 40, (9,))
    upstream, other = torch.randn(9), torch.randn(9)
    found = []
    for dtype in (torch.float32, torch.float64):
        h = hidden.to(dtype, copy=True).requires_grad_()
        w, b = (x.detach().to(dtype, copy=True).requires_grad_() for x in (head.weight, head.bias))
        if dtype == torch.float32:
            logps, entropy = HeadLogps.apply(h, w, b, targets, entropies, 0.7)
        else:
            logps, entropy = from_logits((h @ w.t() + b) / 0.7, targets)
        total = (logps * upstream).sum() + ((entropy * other).sum() if entropies else 0)
        total.backward()
        found.append([logps.detach(), h.grad, w.grad, b.grad])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-5)
