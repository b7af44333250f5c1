"""The task `kl`: against plain transformers, and against a distance that is known in closed form."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from transformers import AutoModelForCausalLM

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.common.step import StepContext
from posttrain.evaluation.compare import Point, estimate
from posttrain.evaluation.suite import STEP, EvaluateConfig
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks.kl import KL, estimates
from posttrain.formats import write_records
from posttrain.records import Message, Prompt, Provenance


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("base", "policy")):
        tiny_folder("qwen2", folder / name, seed=seed)
    tiny_folder("qwen2", folder / "short", max_position_embeddings=20)
    tiny_folder("qwen2", folder / "other", tokenizer=tiny_tokenizer(vocab_size=300), vocab_size=300)
    rows = [
        Prompt(messages=(Message(role="user", content=f"Say {i}."),), provenance=Provenance(id=f"p{i}"))
        for i in range(3)
    ]
    write_records(folder / "prompts.jsonl", rows)
    return folder


def measure(world, model="policy", reference="base", **fields):
    ctx = EvalContext(str(world / model), precision="float32", device="cpu")
    settings = {"data": str(world / "prompts.jsonl"), "reference": str(world / reference), **fields}
    return ctx, KL(**settings).evaluate(ctx)


def test_it_is_what_plain_transformers_make_of_the_same_answers(world):
    ctx, outcomes = measure(world, n=2, max_new_tokens=8)
    plain = [AutoModelForCausalLM.from_pretrained(world / name).eval() for name in ("policy", "base")]
    (answers,) = [value for key, value in ctx._opened.items() if key[0] == "answers"]
    (asked,) = [key[1] for key in ctx._opened if key[0] == "answers"]
    texts = [f"Say {i}." for i in range(3)]
    prompts = ctx.model().template.prompts([(Message(role="user", content=text),) for text in texts])
    said = [
        (ids, list(response.token_ids)) for ids, row in zip(prompts, answers, strict=True) for response in row
    ]
    assert len(asked) == 3
    assert len(outcomes) == len(said) == 6
    for (ids, tokens), outcome in zip(said, outcomes, strict=True):
        logps = []
        for model in plain:
            with torch.inference_mode():
                rows = model(torch.tensor([[*ids, *tokens]])).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
            logps.append(rows.gather(1, torch.tensor(tokens)[:, None])[:, 0])
        u = logps[0] - logps[1]
        assert outcome.metrics["kl"] == pytest.approx(u.sum().item(), abs=1e-4)
        assert outcome.metrics["kl_k3"] == pytest.approx(((-u).exp() - 1 + u).sum().item(), abs=1e-4)
        assert outcome.metrics["kl_k3"] >= 0
        assert outcome.metrics["tokens"] == len(tokens)


def test_its_mean_is_the_kl(world):
    """Answers of one token, of which the whole distribution is known."""
    _, outcomes = measure(world, n=400, max_new_tokens=1)
    expected = []
    for text in (f"Say {i}." for i in range(3)):
        logps = []
        for name in ("policy", "base"):
            ctx = EvalContext(str(world / name), precision="float32", device="cpu")
            (ids,) = ctx.model().template.prompts([(Message(role="user", content=text),)])
            with torch.inference_mode():
                logps.append(ctx.model().hf(torch.tensor([ids])).logits[0, -1].log_softmax(-1))
        expected.append((logps[0].exp() * (logps[0] - logps[1])).sum().item())
    truth = sum(expected) / 3
    assert truth > 0.2
    for metric in ("kl", "kl_k3"):
        points = [Point(o.item, o.item, o.metrics[metric]) for o in outcomes]
        found = estimate(points)
        assert found.low < truth < found.high, metric
        assert found.high - found.low < 0.5 * truth


def test_a_model_is_at_no_distance_from_itself(world):
    _, outcomes = measure(world, "base", "base", n=2, max_new_tokens=4)
    assert {o.metrics["kl"] for o in outcomes} == {0.0}


def test_the_estimators_by_hand():
    """ratio π/π_ref of 2 and of 1/2: k1 = ln 2 - ln 2, k3 = (1/2 - 1 + ln 2) + (2 - 1 - ln 2) = 1/2."""
    half = torch.tensor([0.5, 0.25]).log()
    assert estimates(half, torch.tensor([0.25, 0.5]).log()) == pytest.approx((0.0, 0.5), abs=1e-6)


def test_what_the_reference_cannot_take_is_in_the_third_state(world):
    _, outcomes = measure(world, reference="short", n=2, max_new_tokens=30)
    assert any(o.metrics["kl"] is None for o in outcomes)
    for o in outcomes:
        assert (o.metrics["kl"] is None) == (o.note == "longer than the 20 tokens the model takes")
        assert o.metrics["tokens"] > 0


def test_another_vocabulary_is_refused(world):
    with pytest.raises(ConfigError, match="a token of one is none of the other's"):
        measure(world, reference="other")


def test_neither_more_nor_less_is_better(world, tmp_path):
    task = {"name": "kl", "data": str(world / "prompts.jsonl"), "reference": str(world / "base"), "n": 8}
    cfg = parse(
        EvaluateConfig,
        {
            "model": {"base": str(world / "base"), "policy": str(world / "policy")},
            "tasks": [task | {"max_new_tokens": 8}],
            "precision": "float32",
        },
        "test",
    )
    STEP.run(cfg, StepContext(tmp_path, tmp_path / "state", "test"))
    import json

    (row,) = [
        d for d in json.loads((tmp_path / "summary.json").read_text())["differences"] if d["metric"] == "kl"
    ]
    assert row["low"] > 0
    assert row["verdict"] is None
