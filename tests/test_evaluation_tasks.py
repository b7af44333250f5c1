"""The tasks that compute, against plain transformers, and what every task is given to work with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_world import GOOD, QUESTIONS, comparisons, context, prompt, small_world  # noqa: F401
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM

from posttrain.common.errors import DataError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.suite import STEP
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks import TASKS
from posttrain.evaluation.tasks.heldout_loss import HeldoutLoss
from posttrain.evaluation.tasks.pair_accuracy import PairAccuracy
from posttrain.formats import write_records
from posttrain.models.load import load_model
from posttrain.records import (
    Document,
    Provenance,
)


def dense_logps(folder: Path, question: str, answer: str) -> torch.Tensor:
    """Log-probs of the answer's tokens and the stop token, by plain transformers."""
    tokenizer, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(folder)
    head = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
    tail = tokenizer(f"{answer}<|im_end|>").input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
    at = torch.arange(len(head) - 1, len(head) + len(tail) - 1)
    return logits[at, torch.tensor(tail)]


def test_heldout_loss_is_that_of_plain_transformers(world: Path):
    task = HeldoutLoss(data=str(world / "demos.jsonl"), group_by="level")
    outcomes = task.evaluate(context(world / "base"))
    assert [o.item for o in outcomes] == ["d0", "d1", "d2", "d3"]
    assert [o.group for o in outcomes] == ["hard", "easy", "hard", "easy"]
    for i, outcome in enumerate(outcomes):
        logps = dense_logps(world / "base", QUESTIONS[i], GOOD[i])
        assert outcome.metrics["loss"] == pytest.approx(-logps.mean().item(), abs=1e-4)
        assert outcome.metrics["loss_per_byte"] == pytest.approx(
            -logps.sum().item() / len(GOOD[i].encode()), abs=1e-4
        )
        assert outcome.weights == {"loss": len(logps), "loss_per_byte": len(GOOD[i].encode())}


def test_heldout_loss_of_documents_and_of_what_does_not_fit(world: Path, tmp_path: Path):
    texts = ["The capital of the country.", "river " * 600]
    documents = [Document(provenance=Provenance(id=f"t{i}"), text=text) for i, text in enumerate(texts)]
    write_records(tmp_path / "docs.jsonl", documents)
    short, long = HeldoutLoss(data=str(tmp_path / "docs.jsonl")).evaluate(context(world / "base"))
    assert short.metrics["loss"] is not None
    assert math.isclose(
        short.metrics["loss"] * short.weights["loss"],
        short.metrics["loss_per_byte"] * len(texts[0]),  # type: ignore[operator]
        rel_tol=1e-9,
    )
    assert long.metrics == {"loss": None, "loss_per_byte": None}
    assert long.note == "longer than the 512 tokens the model takes"


def test_heldout_loss_refuses_rows_it_cannot_measure(world: Path):
    with pytest.raises(
        DataError, match=r"row c0 is a comparison; held-out loss is measured on demonstrations"
    ):
        HeldoutLoss(data=str(world / "pairs.jsonl")).evaluate(context(world / "base"))


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_pairs_are_ranked_by_the_log_ratio_to_the_reference(world: Path, over: str):
    task = PairAccuracy(data=str(world / "pairs.jsonl"), reference=str(world / "base"), over=over)
    outcomes = task.evaluate(context(world / "sft"))
    for row, outcome in zip(comparisons(), outcomes, strict=True):
        rewards = []
        for response in (row.chosen, row.rejected):
            new = dense_logps(world / "sft", row.prompt.text, response.text)
            old = dense_logps(world / "base", row.prompt.text, response.text)
            rewards.append(getattr(new - old, over)().item())
        assert outcome.metrics["margin"] == pytest.approx(rewards[0] - rewards[1], abs=1e-4)
        assert outcome.metrics["accuracy"] == float(rewards[0] > rewards[1])


def test_a_reward_model_ranks_by_its_head(world: Path):
    ctx = context(world / "reward")
    assert ctx.kind() == "reward"
    outcomes = PairAccuracy(data=str(world / "pairs.jsonl")).evaluate(ctx)
    model, tokenizer = ctx.model(), tiny_tokenizer()
    assert model.reward_head is not None
    for row, outcome in zip(comparisons(), outcomes, strict=True):
        scores = []
        for response in (row.chosen, row.rejected):
            asked = f"<|im_start|>user\n{row.prompt.text}<|im_end|>\n"
            text = f"{asked}<|im_start|>assistant\n{response.text}<|im_end|>"
            with torch.inference_mode():
                hidden = model.base.base_model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state
                scores.append(model.reward_head(hidden[0, -1]).item())
        assert outcome.metrics["margin"] == pytest.approx(scores[0] - scores[1], abs=1e-4)


def test_several_heads_rank_comparisons_of_their_own_aspect(world: Path, tmp_path: Path):
    model = load_model(world / "sft", dtype=torch.float32, reward_heads=("overall", "helpful"), seed=3)
    model.save(tmp_path / "two")
    aspects = ("overall", "helpful", "harmless")
    rows = [r.model_copy(update={"aspect": a}) for r, a in zip(comparisons(), aspects, strict=False)]
    write_records(tmp_path / "pairs.jsonl", rows)
    found = PairAccuracy(data=str(tmp_path / "pairs.jsonl")).evaluate(context(tmp_path / "two"))
    for head in (0, 1):
        row, outcome = rows[head], found[head]
        sole = load_model(tmp_path / "two", dtype=torch.float32)
        asked = f"<|im_start|>user\n{row.prompt.text}<|im_end|>\n<|im_start|>assistant\n"
        scores = []
        for response in (row.chosen, row.rejected):
            ids = torch.tensor([sole.tokenizer(f"{asked}{response.text}<|im_end|>").input_ids])
            with torch.inference_mode():
                scores.append(
                    sole.reward_head(sole.base.base_model(ids).last_hidden_state[0, -1])[head].item()
                )
        assert outcome.metrics["margin"] == pytest.approx(scores[0] - scores[1], abs=1e-4)
    assert found[2].metrics["accuracy"] is None
    assert "'harmless' has no head" in found[2].note


def test_a_reference_equal_to_the_model_is_a_tie(world: Path):
    task = PairAccuracy(data=str(world / "pairs.jsonl"), reference=str(world / "sft"))
    outcomes = task.evaluate(context(world / "sft"))
    assert {o.metrics["accuracy"] for o in outcomes} == {0.5}
    assert {o.note for o in outcomes} == {"equal scores"}


def test_answers_are_drawn_once_and_do_not_depend_on_what_was_asked_before(world: Path):
    params = SamplingParams(n=2, max_new_tokens=6)
    prompts = [prompt(i) for i in range(4)]
    ctx = context(world / "sft", seed=5)
    first = ctx.respond(prompts, params)
    assert ctx.respond(prompts, params) is first
    ctx.respond(prompts[1:2], params)
    other = context(world / "sft", seed=5)
    other.respond(prompts[:2], params)
    assert other.respond(prompts, params) == first
    assert context(world / "sft", seed=6).respond(prompts, params) != first


def test_a_limit_takes_the_same_items_for_every_model():
    items = list(range(100))
    chosen = EvalContext("a", seed=1, limit=10).take(items)
    assert chosen == EvalContext("b", seed=1, limit=10).take(items) == sorted(chosen)
    assert len(chosen) == 10
    assert chosen != EvalContext("a", seed=2, limit=10).take(items)
    assert EvalContext("a", limit=200).take(items) == items


def test_every_task_says_how_to_read_it():
    for name, task in TASKS.items():
        assert task.headline, name
        assert task.title, name
        assert task.kinds, name
        assert task.__doc__, name
    assert STEP.name == "evaluate"


def test_the_task_of_the_documentation_runs(world: Path):
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text("utf-8")
    code = page.split("## Writing a task")[1].split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(compile(code, "docs/evaluation.md", "exec", dont_inherit=True), found)
    prompts = [prompt(i).model_copy(update={"reference": "river"}) for i in range(4)]
    write_records(world / "capitals.jsonl", prompts)
    task = found["Capitals"](data=str(world / "capitals.jsonl"))
    outcomes = task.evaluate(context(world / "sft", limit=3, sampling=SamplingParams(max_new_tokens=8)))
    assert len(outcomes) == 3
    assert all(set(o.metrics) == {"named"} for o in outcomes)
