"""DPO on the first tokens of both responses alone: by hand, and beside plain transformers."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_folder
from training_home import comparisons, tiny_home, train  # noqa: F401

from posttrain.formats import write_records
from posttrain.formats.rejects import RowError
from posttrain.models.forest import plant, tree_of
from posttrain.models.forward import forward
from posttrain.models.load import load_model
from posttrain.models.spec import ModelSpec
from posttrain.records import Comparison, Message, Prompt, Provenance, Response
from posttrain.training.methods import dpo
from posttrain.training.methods.base import REFERENCE, Batch
from posttrain.training.methods.dpo import DPO
from posttrain.training.reference import reference_logps

CHOSEN, REJECTED, PROMPT = (11, 12, 13, 14), (11, 21, 22), (5, 6, 7)


def pair(chosen=CHOSEN, rejected=REJECTED):
    prompt = Prompt(messages=(Message(role="user", content="?"),), provenance=Provenance(id="p"))
    return Comparison(
        prompt=prompt,
        chosen=Response(text="a", token_ids=chosen),
        rejected=Response(text="b", token_ids=rejected),
        prompt_token_ids=PROMPT,
        tokenizer="t",
        provenance=Provenance(id="c"),
    )


def no_text():
    """A template that has nothing to tokenise: the pairs are token-exact."""
    return SimpleNamespace(prompts=lambda _: [], responses=lambda _: [])


def encoded(first, rows):
    return dpo.encode(DPO(first_tokens=first), rows, no_text())


def test_what_is_counted_are_the_first_tokens_of_both():
    (made,) = encoded(2, [pair()])
    chosen, rejected = made.branches
    assert list(chosen.tokens) == [5, 6, 7, 11, 12]
    assert list(rejected.tokens) == [5, 6, 7, 11, 21]
    assert list(chosen.mask) == list(rejected.mask) == [False] * 3 + [True] * 2
    (whole,) = encoded(None, [pair()])
    (more,) = encoded(9, [pair()])  # responses that are shorter count whole
    assert [list(b.tokens) for b in more.branches] == [list(b.tokens) for b in whole.branches]


def test_the_loss_by_hand():
    (made,) = encoded(2, [pair()])
    forest = plant([tree_of(made.branches)])
    assert forest.targets.tolist() == [11, 12, 21]  # the shared first token once
    logps, reference = torch.tensor([-1.0, -2.0, -2.5]), torch.tensor([-0.5, -2.0, -1.5])
    batch = Batch(forest, {"probability": torch.tensor([math.nan])}, {REFERENCE: reference})
    # log-ratios: chosen -3 + 2.5 = -0.5, rejected -3.5 + 2 = -1.5; their difference 1
    found = dpo.loss(DPO(beta=0.2, first_tokens=2), SimpleNamespace(logps=logps), batch)
    assert found.items.item() == pytest.approx(math.log(1 + math.exp(-0.2)))
    averaged = dpo.loss(DPO(beta=0.2, length_normalised=True), SimpleNamespace(logps=logps), batch)
    assert averaged.items.item() == pytest.approx(math.log(1 + math.exp(-0.1)))


def test_a_pair_that_begins_alike_says_so():
    same, other = encoded(1, [pair(), pair(rejected=(21, 12))])
    assert isinstance(same, RowError)
    assert "first 1 tokens" in same.reason
    assert not isinstance(other, RowError)


def plain_logps(model, response, first):
    """[first] log-probs under plain transformers, of the whole sequence; only the first ones are used."""
    ids = torch.tensor([[*PROMPT, *response]])
    told = model(input_ids=ids).logits[0].log_softmax(-1)
    at = torch.arange(len(PROMPT) - 1, ids.shape[1] - 1)
    return told[at, ids[0, len(PROMPT) :]][:first]


def test_gradients_are_those_of_the_first_tokens_and_nothing_beyond(tmp_path):
    policy = load_model(ModelSpec(path=str(tiny_folder("llama", tmp_path / "p"))), dtype=torch.float32)
    other = load_model(ModelSpec(path=str(tiny_folder("llama", tmp_path / "r", seed=1))), dtype=torch.float32)
    policy.hf.requires_grad_(True)
    cfg = DPO(beta=0.5, first_tokens=2)
    (made,) = dpo.encode(cfg, [pair()], policy.template)
    forest = plant([tree_of(made.branches)])
    (reference,), computed = reference_logps(other, [made], tmp_path / "store", budget=512, label="t")
    assert computed == 1
    assert len(reference) == 3  # of the tokens that count, and no others
    out = forward(policy, forest, frozenset({"logps"}))
    batch = Batch(forest, {"probability": torch.tensor([math.nan])}, {REFERENCE: reference})
    ours = dpo.loss(cfg, out, batch).items.sum()
    ours.backward()
    found = {name: p.grad.clone() for name, p in policy.hf.named_parameters() if p.grad is not None}
    policy.hf.zero_grad()

    sums = [plain_logps(policy.hf, r, 2).sum() for r in (CHOSEN, REJECTED)]
    with torch.no_grad():
        before = [plain_logps(other.hf, r, 2).sum() for r in (CHOSEN, REJECTED)]
    gap = (sums[0] - before[0]) - (sums[1] - before[1])
    theirs = -torch.nn.functional.logsigmoid(0.5 * gap)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for name, parameter in policy.hf.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)

    # not so for the whole responses, of which some tokens come later
    whole = [plain_logps(policy.hf, r, None).sum() for r in (CHOSEN, REJECTED)]
    assert abs(whole[0].item() - sums[0].item()) > 0.1


def test_training_puts_pairs_that_begin_alike_aside(home, tmp_path):
    rows = comparisons(8)
    alike = rows[0].model_copy(
        update={
            "rejected": Response(text=rows[0].chosen.text + " and more"),
            "provenance": Provenance(id="x"),
        }
    )
    write_records(tmp_path / "pairs.jsonl", [*rows, alike])
    fields = {"steps": 2, "batch_size": 4, "max_rejected": 0.5}
    data = str(tmp_path / "pairs.jsonl")
    said = train(home, tmp_path / "a", {"name": "dpo", "first_tokens": 2}, data, **fields)
    assert said["rows"]["kept"] == 8
    (aside,) = (tmp_path / "a/rejected.jsonl").read_text().splitlines()
    assert "first 2 tokens" in json.loads(aside)["reason"]
