"""DPO on pivotal pairs: those of one answer share a tree, which changes what is computed and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kills import metrics
from tiny import tiny_folder
from training_home import train
from transformers import AutoModelForCausalLM

from posttrain.formats import write_records
from posttrain.models.forest import plant, tree_of
from posttrain.models.load import load_model
from posttrain.models.load_tokenizer import load_tokenizer, tokenizer_hash
from posttrain.records import Comparison, Message, Prompt, Provenance, Response
from posttrain.training.families import onto_shared, together, tree_of_all
from posttrain.training.methods.pairs import encode_pairs
from posttrain.training.offline import Plan
from posttrain.training.reference import reference_logps

QUESTIONS, PIVOTS, ANSWER = 6, 4, 40


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    tiny_folder("qwen2", folder / "base")
    write_records(folder / "pairs.jsonl", pairs(tokenizer_hash(load_tokenizer(str(folder / "base")))))
    return folder


def pairs(tokenizer: str) -> list[Comparison]:
    """Several pivots along one answer to each question; one of them is what the next pair's prompt holds."""
    rng = np.random.default_rng(0)
    rows = []
    for q in range(QUESTIONS):
        prompt = Prompt(
            messages=(Message(role="user", content=f"Question {q}?"),), provenance=Provenance(id=f"q{q}")
        )
        start, answer = rng.integers(100, 300, 12).tolist(), rng.integers(100, 300, ANSWER).tolist()
        for k in range(PIVOTS):
            at = 6 + 9 * k
            own, other = Response(text="a", token_ids=(answer[at],)), Response(text="b", token_ids=(99 - k,))
            chosen, rejected = (own, other) if k % 2 else (other, own)
            rows.append(
                Comparison(
                    prompt=prompt, chosen=chosen, rejected=rejected, strength=0.5,
                    prompt_token_ids=(*start, *answer[:at]), tokenizer=tokenizer,
                    provenance=Provenance(id=f"q{q}-{k}"),
                )
            )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def examples(home):
    model = load_model(str(home / "base"), dtype=torch.float32)
    rows = [Comparison.model_validate_json(line) for line in (home / "pairs.jsonl").read_text().splitlines()]
    return model, rows, encode_pairs(rows, model.template)


def test_pairs_of_one_answer_stand_in_one_tree(examples):
    _, _, made = examples
    assert together(made, 10_000) == [list(range(q * PIVOTS, (q + 1) * PIVOTS)) for q in range(QUESTIONS)]
    tree = tree_of_all(made[:PIVOTS])
    # 12 + 33 tokens up to the last pivot, four to choose and four to reject; three of these (the answer's own
    # before the last pivot) are wanted on one branch and passed through on another
    assert tree.size == 12 + 33 + 8
    assert sum(tree_of(e.branches).size for e in made[:PIVOTS]) == sum(12 + 6 + 9 * k + 2 for k in range(4))
    # under a budget that one pair alone fills, each stands alone; without a family too
    assert together(made, 40) != together(made, 10_000)
    assert [len(unit) for unit in together(made, 1)] == [1] * len(made)
    assert together([*made[:2], made[5]], 10_000) == [[0, 1], [2]]


def test_reference_logps_are_the_same_shared_and_alone_and_dense(examples, home, tmp_path):
    model, _, made = examples
    shared, computed = reference_logps(model, made, tmp_path / "a", budget=10_000, label="test")
    alone, _ = reference_logps(model, made, tmp_path / "b", budget=1, label="test")
    assert computed == len(made)
    plain = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    for example, one, other in zip(made, shared, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for branch, value in zip(example.branches, one, strict=True):
            ids = torch.tensor([branch.tokens])
            dense = plain(input_ids=ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]
            assert value.item() == pytest.approx(dense.item(), abs=1e-4)
    assert reference_logps(model, made, tmp_path / "a", budget=10_000, label="test")[1] == 0  # all known now


def test_streams_go_onto_the_shared_tree(examples):
    # numbers that say whose they are: pair i, wanted token j of its own tree
    _, _, made = examples
    units = together(made[:6], 10_000)
    trees = [tree_of_all([made[i] for i in unit]) for unit in units]
    parts = [torch.tensor([10.0 * i, 10.0 * i + 1]) for i in range(6)]
    streams = torch.cat(onto_shared(made[:6], trees, parts))
    forest = plant(trees)
    assert forest.branch_sum(streams).tolist() == [x for i in range(6) for x in (10.0 * i, 10.0 * i + 1)]


def test_training_is_the_same_and_computes_fewer_tokens(home, tmp_path):
    for tokens in (60, 100_000):
        train(
            home, tmp_path / str(tokens), {"name": "dpo"}, "pairs.jsonl", steps=4, batch_size=12,
            optimizer={"lr": 1e-3}, micro_tokens=tokens if tokens > 60 else 1,
        )  # fmt: skip
    alone, shared = metrics(tmp_path / "60"), metrics(tmp_path / "100000")
    for a, b in zip(alone, shared, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=2e-3)
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-2, abs=1e-6)
    assert shared[-1]["tokens"] / alone[-1]["tokens"] == pytest.approx(53 / 134)


def test_a_plan_keeps_families_together_and_says_the_same_without_them():
    sizes = (1,) * 9
    plain = Plan(sizes, 3, 3)
    assert Plan(sizes, 3, 3, families=("",) * 9).epoch(0) == plain.epoch(0)
    mixed = Plan(sizes, 3, 3, families=("a", "", "b", "a", "", "b", "", "a", "b"))
    order = [i for batch in mixed.epoch(0) for i in batch]
    assert sorted(order) == list(range(9))
    assert order[order.index(0) :][:3] == [0, 3, 7]
    assert order[order.index(2) :][:3] == [2, 5, 8]
    assert mixed.epoch(0) != mixed.epoch(1)


def test_only_token_exact_pairs_share(examples):
    model, rows, _ = examples
    text = [
        Comparison(
            prompt=rows[0].prompt, chosen=Response(text="yes"), rejected=Response(text="no"),
            provenance=Provenance(id="t"),
        )
    ]  # fmt: skip
    (made,) = encode_pairs(text, model.template)
    assert made.family == ""
