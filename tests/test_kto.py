"""KTO: its loss against numbers derived by hand and TRL's formula, its mismatched pairs, and a run."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer

import posttrain
from posttrain.common.config import parse
from posttrain.flow.inputs import plain
from posttrain.formats.rejects import RowError
from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import Output
from posttrain.models.template import ChatTemplate
from posttrain.records import Comparison, Message, Prompt, Provenance, Rating, Response
from posttrain.training.fit import Totals
from posttrain.training.methods import kto, method_config
from posttrain.training.methods.base import Batch
from posttrain.training.methods.kto import BOTH, KTO
from posttrain.training.offline import encode_rows
from posttrain.training.train import TrainConfig

NAN = math.nan


def prompt(text: str) -> Prompt:
    return Prompt(provenance=Provenance(id=text), messages=(Message(role="user", content=text),))


def rating(id: str, asked: str, said: str, label: bool | None = True, **fields) -> Rating:
    return Rating(
        provenance=Provenance(id=id),
        prompt=prompt(asked),
        response=Response(text=said),
        label=label,
        **fields,
    )


def pair(id: str, asked: str, chosen: str, rejected: str) -> Comparison:
    return Comparison(
        provenance=Provenance(id=id),
        prompt=prompt(asked),
        chosen=Response(text=chosen),
        rejected=Response(text=rejected),
    )


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), "chatml")


def batch_of(trees: list[list[int]], labels: list[float], reference: list[float]) -> Batch:
    """Trees over the prompt [1, 2], whose answers are one token each; the tokens are told apart."""
    rows = [tree_of([Branch([1, 2, token], [False, False, True]) for token in tree]) for tree in trees]
    return Batch(plant(rows), {"label": torch.tensor(labels)}, {"reference": torch.tensor(reference)})


# a good answer (3), a bad one (5), a comparison (7 over 8); 4, 6 and 9 are mismatched
TREES, LABELS = [[3, 4], [5, 6], [7, 8, 9]], [1.0, 0.0, BOTH]
POLICY = [-1.0, -2.0, -3.0, -1.5, -0.5, -2.5, -1.0]
BASE = [-1.5, -2.3, -2.0, -1.6, -1.5, -2.0, -1.5]
# log-ratios: 0.5 | 0.3, -1 | 0.1, 1, -0.5 | 0.5; z = (0.3 + 0.1 + 0.5) / 3 = 0.3


def value(policy=POLICY, trees=TREES, labels=LABELS, base=BASE, **fields):
    logps = torch.tensor(policy, requires_grad=True)
    result = kto.loss(KTO(**fields), Output(logps=logps), batch_of(trees, labels, base))
    return result, logps


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_loss_by_hand():
    result, _ = value(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    gains = [0.5 - 0.3, -1.0 - 0.3, 1.0 - 0.3, -0.5 - 0.3]
    weights = [(2.0, 1), (3.0, -1), (2.0, 1), (3.0, -1)]
    by_hand = [w * (1 - s(0.5 * side * g)) for (w, side), g in zip(weights, gains, strict=True)]
    assert result.items.tolist() == pytest.approx(by_hand)
    assert result.weights.tolist() == [1.0] * 4
    metrics = {name: values.tolist() for name, values in result.metrics.items()}
    assert metrics["kl"] == pytest.approx([0.3] * 4)
    assert metrics["accuracy"] == [1.0, 1.0, 1.0, 1.0]
    assert metrics["reward_desirable"] == pytest.approx([0.25, NAN, 0.5, NAN], nan_ok=True)
    assert metrics["reward_undesirable"] == pytest.approx([NAN, -0.5, NAN, -0.25], nan_ok=True)
    assert metrics["unmatched"] == [0.0] * 4


def test_agrees_with_trls_formula():
    """TRL's KTOTrainer: 1 - s(β (u - kl)) or 1 - s(β (kl - u)), kl the clamped mean over mismatched pairs."""
    torch.manual_seed(0)
    policy, base = -5 * torch.rand(8), -5 * torch.rand(8)
    trees, labels = [[3, 4], [5, 6], [7, 8], [9, 10]], [1.0, 0.0, 0.0, 1.0]
    for shift in (0.0, 9.0):  # the second makes the estimate negative: clamped
        result, _ = value((policy - shift).tolist(), trees, labels, base.tolist(), desirable_weight=1.3)
        ratio = (policy - shift) - base
        u, kl = ratio[0::2], ratio[1::2].mean().clamp(min=0)
        chosen = 1 - torch.sigmoid(0.1 * (u[[0, 3]] - kl))
        rejected = 1 - torch.sigmoid(0.1 * (kl - u[[1, 2]]))
        trl = torch.cat([1.3 * chosen, 1.0 * rejected]).mean()
        torch.testing.assert_close(result.items.mean(), trl)
    assert result.metrics["kl"].tolist() == [0.0] * 4


def test_no_gradient_through_the_reference_point():
    """d item / d log π(y|x) is -+ λ β s (1 - s); for mismatched answers it is zero."""
    result, logps = value(beta=0.5)
    result.items.sum().backward()
    gains = {0: 0.2, 2: -1.3, 4: 0.7, 5: -0.8}
    slope = [0.0] * 7
    for at, gain in gains.items():
        sign = 1 if at in (0, 4) else -1
        v = s(0.5 * sign * gain)
        slope[at] = -sign * 0.5 * v * (1 - v)
    assert logps.grad.tolist() == pytest.approx(slope)
    assert not any(metric.requires_grad for metric in result.metrics.values())


def test_zero_reference_point_is_apo_zero():
    result, _ = value([-1.0, -3.0], [[3], [5]], [1.0, 0.0], [-1.5, -2.0], reference_point="zero", beta=0.5)
    assert result.items.tolist() == pytest.approx([1 - s(0.25), s(-0.5)])
    assert "kl" not in result.metrics


def test_zero_reference_point_is_zero_beside_mismatched_pairs():
    """Their mean of u, 0.3, is not subtracted. u of the answers: 0.5, -1 and, a comparison, 1, -0.5."""
    result, logps = value(reference_point="zero", beta=0.5)
    assert result.items.tolist() == pytest.approx([1 - s(0.25), s(-0.5), 1 - s(0.5), s(-0.25)])
    assert result.metrics["accuracy"].tolist() == [1.0, 1.0, 1.0, 1.0]
    result.items.sum().backward()
    slopes = [-0.5 * s(0.25) * s(-0.25), 0.0, 0.5 * s(-0.5) * s(0.5), 0.0]
    slopes += [-0.5 * s(0.5) * s(-0.5), 0.5 * s(-0.25) * s(0.25), 0.0]
    assert logps.grad.tolist() == pytest.approx(slopes)


def test_without_mismatched_pairs_it_is_said():
    result, _ = value([-1.0, -3.0], [[3], [5]], [1.0, 0.0], [-1.5, -2.0])
    assert result.metrics["unmatched"].tolist() == [1.0, 1.0]
    assert result.metrics["kl"].isnan().all()
    assert result.items.isfinite().all()


def test_micro_batches_change_nothing_but_the_reference_point():
    """With one reference point, split and whole give the same sums; metrics go by the rows that have them."""
    whole, _ = value(reference_point="zero", trees=[[3], [5], [7, 8]], policy=POLICY[:4], base=BASE[:4])
    totals, once = Totals(), Totals()
    once.add(whole.items, whole.weights, whole.metrics)
    for trees, labels, at in (
        ([[3], [5]], LABELS[:2], slice(0, 2)),
        ([[7, 8]], LABELS[2:], slice(2, 4)),
    ):
        part, _ = value(POLICY[at], trees, labels, BASE[at], reference_point="zero")
        totals.add(part.items, part.weights, part.metrics)
    assert totals.means() == pytest.approx(once.means())
    assert once.means()["reward_desirable"] == pytest.approx(0.1 * (0.5 - 1.0) / 2)


def test_metrics_that_no_item_has_are_left_out():
    totals = Totals()
    nothing = torch.tensor([NAN, NAN])
    totals.add(torch.ones(2), torch.ones(2), {"there": torch.tensor([NAN, 3.0]), "nowhere": nothing})
    assert totals.means() == {"loss": 1.0, "there": 3.0}


def test_more_mass_on_what_most_call_good():
    """Two of three annotators call A good, one calls B good: KTO must put A above B (section 4.2)."""
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    labels = [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    for _ in range(200):
        policy = logits.log_softmax(0)
        forest = batch_of([[3]] * 3 + [[4]] * 3, labels, [math.log(0.5)] * 6)
        out = Output(logps=policy[[0, 0, 0, 1, 1, 1]])
        optimizer.zero_grad()
        kto.loss(KTO(beta=1.0, reference_point="zero"), out, forest).items.mean().backward()
        optimizer.step()
    assert logits.softmax(0)[0] > 0.9


def encoded(rows, template, **fields):
    return kto.encode(KTO(**fields), rows, template)


def test_mismatched_pairs_are_never_a_prompts_own_answer(template):
    """Same prompt in another row, or the same words under another prompt: neither will do."""
    rows = [
        rating("a", "Name a city.", "Paris"),
        rating("b", "Name a city.", "London", False),
        rating("c", "Name a capital.", "Paris"),
        pair("d", "Name a river.", "Rhine", "London"),
    ]
    made = encoded(rows, template)
    given = {
        "Name a city.": ("Paris", "London"),
        "Name a capital.": ("Paris",),
        "Name a river.": ("Rhine", "London"),
    }
    own = {
        asked: [template.response(prompt(asked).messages, Response(text=text)) for text in texts]
        for asked, texts in given.items()
    }
    for row, example in zip(rows, made, strict=True):
        start = template.prompt(row.prompt.messages)
        count = 2 if isinstance(row, Comparison) else 1
        assert len(example.branches) == count + example.borrowed
        for branch in example.branches:
            assert list(branch.tokens[: len(start)]) == start
            assert list(branch.mask) == [False] * len(start) + [True] * (len(branch.tokens) - len(start))
        for branch in example.branches[count:]:
            assert list(branch.tokens[len(start) :]) not in own[row.prompt.text]
    assert [example.borrowed for example in made] == [1, 1, 1, 1]
    # to the city's two rows only "Rhine" is new, and to itself no row lends
    alone = encoded([rows[0], rows[1], rows[2]], template)
    assert [example.borrowed for example in alone] == [0, 0, 1]
    again = encoded(rows, template)
    assert [e.branches for e in again] == [e.branches for e in made]


def test_a_side_is_encoded_at_once_so_that_no_row_borrows_its_own_answer(template):
    """Row 512 gives "yes" to the question of row 0, to which all others would lend just that."""
    rows = [rating("r0", "Is it P?", "no", False)]
    rows += [rating(f"r{i}", f"Is it {i}?", "yes") for i in range(1, 512)]
    rows += [rating("r512", "Is it P?", "yes")]
    made = encode_rows(kto.METHOD, KTO(), rows, template, None, "test", quiet=True)
    assert made.rows == 513
    assert [made.examples[i].borrowed for i in (0, 512)] == [0, 0]  # nobody has another answer than these two


def test_micro_tokens_are_in_the_key_where_they_change_the_result():
    given = {"model": "m", "data": "d", "optimizer": {"lr": 1e-6}}

    def form(method, tokens):
        cfg = parse(TrainConfig, {**given, "method": method, "micro_tokens": tokens}, "test")
        return plain(cfg, lambda leaf: leaf.value)

    assert form({"name": "kto"}, 64) != form({"name": "kto"}, 128)
    assert form({"name": "kto", "reference_point": "zero"}, 64) == form(
        {"name": "kto", "reference_point": "zero"}, 128
    )
    assert form({"name": "dpo"}, 64) == form({"name": "dpo"}, 128)


def test_labels_come_from_rows_or_an_explicit_threshold(template):
    scored = rating("s", "A?", "x", None, scores={"overall": 0.5, "safety": None})
    plain = rating("p", "B?", "y", False, scores={"overall": 0.9})
    (missing, kept) = encoded([scored, plain], template)
    assert isinstance(missing, RowError)
    assert "good_above" in str(missing)
    assert kept.columns == {"label": 0.0}
    assert [e.columns["label"] for e in encoded([scored, plain], template, good_above=0.5)] == [1.0, 0.0]
    assert [e.columns["label"] for e in encoded([scored, plain], template, good_above=0.6)] == [0.0, 0.0]
    (no_answer, _) = encoded([scored, plain], template, good_above=0.5, aspect="safety")
    assert isinstance(no_answer, RowError)


def test_a_row_is_not_lost_because_of_a_borrowed_answer(template):
    rows = [rating("short", "A?", "x"), rating("long", "B?", "word " * 60)]
    cfg = KTO()
    longest = len(template.prompt(rows[0].prompt.messages)) + 10
    done = encode_rows(kto.METHOD, cfg, rows, template, longest, "test", quiet=True)
    assert [example.row for example in done.examples] == ["short"]
    assert done.examples[0].borrowed == 0
    assert [row.provenance.id for row, _ in done.rejected] == ["long"]


def test_trains_from_python(tmp_path):
    """Ratings and comparisons in one run; good answers gain on bad ones; the whole is a registered method."""
    base = tiny_folder("llama", tmp_path / "base")
    rows = [rating(f"r{i}", f"Question {i}?", "yes" if i % 2 else "no", bool(i % 2)) for i in range(8)]
    rows += [pair(f"p{i}", f"Ask {i}?", "yes", "no") for i in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    assert method_config({"name": "kto", "beta": 0.3}) == posttrain.KTO(beta=0.3)
    done = posttrain.train(
        method=posttrain.KTO(beta=0.3),
        model=str(base),
        data=str(data),
        out=str(tmp_path / "kto"),
        steps=12,
        batch_size=6,
        optimizer={"lr": 1e-3, "schedule": "constant"},
        precision="float32",
    )
    lines = [json.loads(line) for line in (done.out / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)  # policy and reference are one: 1 - s(0)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert last["reward_desirable"] > last["reward_undesirable"] + 0.05
    assert last["accuracy"] > 0.7
    assert last["loss"] < 0.5
