"""Reward models from comparisons and ratings: losses by hand, recovered rewards, members, units."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import posttrain
from posttrain.common.errors import DataError
from posttrain.formats.rejects import RowError
from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import Output
from posttrain.models.load import load_model
from posttrain.models.template import ChatTemplate
from posttrain.records import Comparison, Message, Prompt, Provenance, Rating, Response
from posttrain.training.methods import reward
from posttrain.training.methods.base import Batch
from posttrain.training.methods.reward import Reward
from posttrain.training.methods.scales import Scale, ordinal_loss, scale_of, threshold

NAN = math.nan


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def prompt(text: str) -> Prompt:
    return Prompt(provenance=Provenance(id=text), messages=(Message(role="user", content=text),))


def rating(id: str, said: str, label: bool | None = None, **scores: float | None) -> Rating:
    return Rating(
        provenance=Provenance(id=id),
        prompt=prompt("Say something."),
        response=Response(text=said),
        scores=scores,
        label=label,
    )


def pair(id: str, chosen: str, rejected: str, aspect: str = "overall") -> Comparison:
    return Comparison(
        provenance=Provenance(id=id),
        prompt=prompt("Say something."),
        chosen=Response(text=chosen),
        rejected=Response(text=rejected),
        aspect=aspect,
    )


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), "chatml")


def mixed_batch(**columns: list[float]) -> Batch:
    """A comparison (branches 0, 1), then two ratings (2 and 3)."""
    trees = [[3, 4], [5], [6]]
    rows = [tree_of([Branch([1, 2, token], [False, False, True]) for token in tree]) for tree in trees]
    return Batch(plant(rows), {name: torch.tensor(values) for name, values in columns.items()}, {})


PAIR = {"head": [0.0, NAN, NAN], "strength": [NAN] * 3, "probability": [NAN] * 3}
HELPFUL = Scale(mean=3.0, std=2.0)


def test_pairs_and_scores_together_by_hand():
    cfg = Reward(
        heads=("helpful", "safe"),
        centring=0.0,
        rating_weight=0.5,
        reliability=0.25,
        scales={"helpful": HELPFUL, "safe": Scale(mean=0.0, std=1.0)},
    )
    # the first rating has both aspects, the second "safe" alone: nothing is put in for what is missing
    batch = mixed_batch(**PAIR, **{"score/helpful": [NAN, 1.5, NAN], "score/safe": [NAN, -1.0, 0.5]})
    scores = torch.tensor([[1.0, 9.0], [0.25, 9.0], [2.0, 0.6], [9.0, -1.2]], requires_grad=True)
    result = reward.loss(cfg, Output(scores=scores), batch)
    unit = math.sqrt(math.pi**2 / 3 / 0.75)  # log-odds in a standard deviation of scores
    by_hand = [
        math.log(1 + math.exp(-0.75)),
        (2.0 / unit - 1.5) ** 2,
        (0.6 / unit + 1.0) ** 2,
        (-1.2 / unit - 0.5) ** 2,
    ]
    assert result.items.tolist() == pytest.approx(by_hand)
    assert result.weights.tolist() == [1.0, 0.5, 0.5, 0.5]
    assert result.metrics["accuracy"].tolist() == pytest.approx([1.0, NAN, NAN, NAN], nan_ok=True)
    assert result.metrics["score_loss"].tolist() == pytest.approx([NAN, *by_hand[1:]], nan_ok=True)
    result.items.sum().backward()
    assert scores.grad[3].tolist()[0] == 0.0  # no score for "helpful", no gradient to its head
    assert scores.grad[0].tolist()[1] == scores.grad[1].tolist()[1] == 0.0
    assert not any(values.requires_grad for values in result.metrics.values())


def test_ordinal_by_hand():
    """P(level <= k) = s(threshold_k - r), at the ends and between."""
    found = ordinal_loss(torch.tensor([[0.5], [0.5], [0.5]]), torch.tensor([0.0, 1.0, 2.0]), (-1.0, 2.0))
    by_hand = [s(-1.5), s(1.5) - s(-1.5), 1 - s(1.5)]
    assert found.flatten().tolist() == pytest.approx([-math.log(p) for p in by_hand])
    far = torch.tensor([[60.0]], requires_grad=True)
    ordinal_loss(far, torch.tensor([1.0]), (-1.0, 2.0)).sum().backward()
    assert far.grad.item() == pytest.approx(1.0)  # -d log P / dr far above is 1, and no digit is lost


def test_labels_are_the_ordinal_case_of_two_levels():
    cfg = Reward(centring=0.0, label_threshold=0.4)
    batch = mixed_batch(**PAIR, label=[NAN, 1.0, 0.0])
    result = reward.loss(cfg, Output(scores=torch.tensor([[0.0], [0.0], [1.0], [1.0]])), batch)
    assert result.items[1:].tolist() == pytest.approx([-math.log(s(0.6)), -math.log(s(-0.6))])
    levels = ordinal_loss(torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 0.0]), (0.4,))
    assert result.items[1:].tolist() == pytest.approx(levels.flatten().tolist())
    assert result.metrics["label_accuracy"].tolist() == pytest.approx([NAN, 1.0, 0.0], nan_ok=True)


def test_scales_come_from_the_training_rows():
    rows = [rating(f"r{i}", "x", overall=value) for i, value in enumerate((1, 1, 2, 4))]
    rows += [
        rating("good", "x", True),
        rating("bad", "x", False),
        rating("bad2", "y", False),
        pair("p", "a", "b"),
    ]
    made = reward.settle(Reward(ratings="ordinal", reliability=0.0), rows)
    assert made.scales["overall"].levels == (1.0, 2.0, 4.0)
    assert made.scales["overall"].thresholds == pytest.approx((0.0, math.log(3)))  # half and 3/4 lie below
    assert made.label_threshold == pytest.approx(math.log(2))  # two of three are bad
    wider = reward.settle(Reward(ratings="ordinal", reliability=0.75), rows)
    assert wider.scales["overall"].thresholds[1] == pytest.approx(2 * math.log(3))
    plain = reward.settle(Reward(), rows).scales["overall"]
    assert (plain.mean, plain.std) == pytest.approx((2.0, math.sqrt(1.5)))
    given = Reward(scales={"overall": HELPFUL}, label_threshold=0.0)
    assert reward.settle(given, rows) == given
    assert reward.settle(Reward(), [rows[-1]]) == Reward()
    with pytest.raises(DataError, match=r"all 2 scores of 'overall' are 1\.0"):
        reward.settle(Reward(), rows[:2])
    with pytest.raises(DataError, match="no levels"):
        scale_of("overall", [i / 100 for i in range(50)], True, 0.5)
    assert threshold(0.0, 0.5) == threshold(1.0, 0.5) == 0.0


def test_rows_are_encoded_by_what_they_say(template):
    rows = [
        rating("both", "x", helpful=1.0, safe=None),
        rating("none", "x", helpful=None),
        rating("between", "x", helpful=2.5),
        pair("unknown", "a", "b", aspect="wit"),
        pair("pair", "a", "b", aspect="safe"),
        rating("labelled", "x", True),
    ]
    cfg = Reward(heads=("helpful", "safe"), ratings="ordinal")
    scale = Scale(mean=2.0, std=1.0, levels=(1.0, 2.0, 3.0), thresholds=(-1.0, 1.0))
    made = reward.encode(cfg.model_copy(update={"scales": {"helpful": scale}}), rows, template)
    both, none, between, unknown, known, labelled = made
    assert both.columns["score/helpful"] == 0.0
    assert len(both.branches) == 1
    assert math.isnan(both.columns["head"])
    assert len(known.branches) == 2
    assert known.columns["head"] == 1.0
    assert math.isnan(known.columns["score/helpful"])
    reasons = [str(each) for each in (none, between, unknown, labelled)]
    assert all(isinstance(each, RowError) for each in (none, between, unknown, labelled))
    assert "neither a score nor a label" in reasons[0]
    assert "no level" in reasons[1]
    assert "has no head" in reasons[2]
    assert "neither" in reasons[3]  # two heads, none of them "overall"


def test_a_rating_with_score_and_label_counts_once(template):
    cfg = Reward(scales={"overall": HELPFUL}, label_threshold=0.0)
    scored, labelled = reward.encode(
        cfg, [rating("a", "x", True, overall=5.0), rating("b", "x", False)], template
    )
    assert scored.columns["score/overall"] == 1.0
    assert math.isnan(scored.columns["label"])
    assert labelled.columns["label"] == 0.0


def test_members_learn_from_bootstraps_of_the_rows(template):
    """Counts are Poisson(1) draws by row and member; a member's items are the pair's cost times its count."""
    cfg = Reward(members=3, centring=0.0)
    assert cfg.aspects() == ("overall.0", "overall.1", "overall.2")
    (example,) = reward.encode(cfg, [pair("p", "a", "b")], template)
    assert {name for name in example.columns if name.startswith("count")} == {"count/0", "count/1", "count/2"}
    draws = [reward._drawn(f"row {i}", m) for i in range(2000) for m in (0, 1)]
    for count in range(4):
        share = draws.count(count) / len(draws)
        assert share == pytest.approx(math.exp(-1) / math.factorial(count), abs=0.025)
    first, second = torch.tensor(draws[0::2]).float(), torch.tensor(draws[1::2]).float()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.07
    assert draws[:6] == [reward._drawn(f"row {i}", m) for i in range(3) for m in (0, 1)]

    batch = mixed_batch(**PAIR, **{f"count/{m}": [c, 0.0, 0.0] for m, c in enumerate((2.0, 0.0, 1.0))})
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [9.0] * 3, [9.0] * 3])
    result = reward.loss(cfg, Output(scores=scores), batch)
    cost = [math.log(1 + math.exp(-gap)) for gap in (1.0, 2.0, 0.0)]
    assert result.items.tolist() == pytest.approx([2 * cost[0], 0.0, cost[2]])
    assert result.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert result.metrics["accuracy"].tolist() == [1.0, 1.0, 0.0]
    assert result.metrics["disagreement"].tolist() == pytest.approx([math.sqrt(2 / 3)] * 3)
    plain = reward.loss(cfg.model_copy(update={"bootstrap": False}), Output(scores=scores), batch)
    assert plain.items.tolist() == pytest.approx(cost)


@pytest.mark.parametrize("ratings", ["ordinal", "regression"])
def test_comparisons_and_ratings_agree_on_one_scale(ratings):
    """Answers of known reward, judged with logistic noise: alone or together, comparisons and ratings find
    the differences of rewards in the same log-odds."""
    rng = random.Random(0)
    torch.manual_seed(0)
    true = [-2.0, -1.0, 0.0, 1.0, 2.0]  # variance 2, noise pi^2 / 3: reliability 0.38

    def noise() -> float:
        u = rng.random()
        return math.log(u / (1 - u))

    wins = [[0, 0] for _ in range(10)]
    couples = [(i, j) for i in range(5) for j in range(i)]
    for k, (i, j) in enumerate(couples):
        for _ in range(400):
            wins[k][0 if true[i] - true[j] + noise() > 0 else 1] += 1
    seen = [(i, true[i] + noise()) for i in range(5) for _ in range(1500)]
    if ratings == "ordinal":
        seen = [(i, float(min(max(round(y / 2), -2), 2))) for i, y in seen]
    reliability = 2 / (2 + math.pi**2 / 3)
    cfg = Reward(
        ratings=ratings,
        centring=0.0,
        reliability=reliability,
        scales={"overall": scale_of("overall", [y for _, y in seen], ratings == "ordinal", reliability)},
    )
    places = torch.tensor([cfg.scales["overall"].place(y) for _, y in seen])
    who = torch.tensor([i for i, _ in seen])

    def fitted(pairs: bool, rate: bool) -> torch.Tensor:
        r = torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.LBFGS([r], max_iter=100)

        def closure():
            optimizer.zero_grad()
            total = 0.01 * r.sum() ** 2
            for (i, j), (won, lost) in zip(couples, wins, strict=True):
                for (a, b), count in (((i, j), won), ((j, i), lost)):
                    cost, _ = reward._pair_terms(
                        cfg,
                        r[a].view(1, 1),
                        r[b].view(1, 1),
                        {"probability": torch.tensor([NAN])},
                        torch.tensor([0]),
                    )
                    total = total + pairs * count * cost.sum()
            costs, _ = reward._rating_terms(cfg, "score/overall", r[who][:, None], places)
            total = total + rate * costs.sum()
            total.backward()
            return total

        optimizer.step(closure)
        return (r - r.mean()).detach()

    for found in (fitted(True, False), fitted(False, True), fitted(True, True)):
        torch.testing.assert_close(found, torch.tensor(true), atol=0.25, rtol=0)


def write(path, rows):
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return str(path)


def test_one_run_on_files_of_both_kinds(tmp_path):
    """Trained on comparisons and ratings with two members; the folder is plain transformers' classifier with
    equal logits, and says what its units mean."""
    base = tiny_folder("llama", tmp_path / "base")
    good, bad = ("thank you very much", "the capital is large"), ("no", "whatever")
    pairs = [pair(f"p{i}", good[i % 2], bad[i % 2]) for i in range(6)]
    rated = [rating(f"r{i}", (good if i % 2 else bad)[i % 3 % 2], overall=float(i % 2)) for i in range(6)]
    rated += [rating("l0", "thank you", True), rating("l1", "no no", False)]
    files = [write(tmp_path / "pairs.jsonl", pairs), write(tmp_path / "ratings.jsonl", rated)]
    done = posttrain.train(
        method=Reward(members=2),
        model=str(base),
        data=files,
        heldout=write(tmp_path / "heldout.jsonl", [*pairs[:2], *rated[:2]]),  # one file of both kinds
        out=str(tmp_path / "rm"),
        steps=10,
        batch_size=7,
        micro_tokens=64,
        optimizer={"lr": 3e-3, "schedule": "constant"},
        precision="float32",
    )
    lines = [json.loads(line) for line in (done.out / "metrics.jsonl").read_text().splitlines()]
    after = [line for line in lines if line["split"] == "heldout"][-1]
    assert after["accuracy"] == 1.0
    assert after["score_loss"] < next(line for line in lines if line["split"] == "heldout")["score_loss"]
    settled = done.summary["settled"]
    assert settled["scales"]["overall"] == {"mean": 0.5, "std": 0.5, "levels": [], "thresholds": []}
    assert settled["label_threshold"] == 0.0

    folder = done.out / "model"
    model = load_model(folder, dtype=torch.float32)
    assert model.aspects == ("overall.0", "overall.1")
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert plain.config.id2label == {0: "overall.0", 1: "overall.1"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = [Response(text=row.chosen.text) for row in pairs] + [
        Response(text=row.rejected.text) for row in pairs
    ]
    ids = [model.template.conversation(prompt("Say something."), each).tokens for each in said]
    ids += [model.template.conversation(row.prompt, row.response).tokens for row in rated]
    assert tokenizer.decode(ids[0]) == model.tokenizer.decode(ids[0])
    with torch.no_grad():
        logits = torch.cat([plain(torch.tensor([row])).logits for row in ids]).double()
    spread, mean = torch.std_mean(logits, 0, correction=0)
    for k, aspect in enumerate(model.aspects):
        standard = model.standards[aspect]
        assert standard.n == len(ids)
        assert standard.mean == pytest.approx(mean[k].item(), abs=1e-4)
        assert standard.std == pytest.approx(spread[k].item(), rel=1e-3)
    assert logits[0].tolist() != logits[1].tolist()
    model.save(tmp_path / "again")
    assert load_model(tmp_path / "again", dtype=torch.float32).standards == model.standards


def test_rows_of_another_kind_are_refused(tmp_path):
    base = tiny_folder("llama", tmp_path / "base")
    rows = [{"prompt": "Hello?", "completion": "Hello."}]
    data = tmp_path / "demos.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"holds a demonstration .* expected comparison or rating rows"):
        posttrain.train(method="reward", model=str(base), data=str(data), out=str(tmp_path / "rm"), steps=1)
