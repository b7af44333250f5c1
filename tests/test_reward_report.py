"""The report on a reward model: numbers by hand and against scipy, coverage of their intervals, the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_folder, tiny_tokenizer

from posttrain import evaluate, report
from posttrain.evaluation.calibration import error_shares
from posttrain.evaluation.compare import Point, estimate
from posttrain.evaluation.correlation import pearson_values, spearman_values
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks.reward_report import Ranked, RewardReport, _whole
from posttrain.formats import write_records
from posttrain.models.load import load_model
from posttrain.records import Comparison, Message, Prompt, Provenance, Response

COEFFICIENTS = {
    "pearson": (pearson_values, lambda x, y: stats.pearsonr(x, y).statistic),
    "spearman": (spearman_values, lambda x, y: stats.spearmanr(x, y).statistic),
}


def clustered(rng: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of numbers, correlated, with ties in the second, four of each cluster alike."""
    shared = rng.normal(size=(clusters, 1)) + rng.normal(size=(clusters, 4))
    x = (shared + rng.normal(size=(clusters, 4))).ravel()
    y = np.round(2 * (shared + rng.normal(size=(clusters, 4)))).ravel()
    return x, y, np.repeat(np.arange(clusters), 4)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_correlation_is_the_mean_of_its_values(name: str):
    values, known = COEFFICIENTS[name]
    for seed in range(5):
        x, y, _ = clustered(np.random.default_rng(seed), 12)
        assert values(x, y).mean() == pytest.approx(known(x, y), abs=1e-12)
    assert values(x, np.ones(len(x))) is None


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_intervals_of_correlations_cover(name: str):
    """Of 300 samples of 60 clusters, 95 % intervals hold the value of a sample of 50,000 clusters."""
    values, known = COEFFICIENTS[name]
    x, y, _ = clustered(np.random.default_rng(9), 50_000)
    true, held = known(x, y), 0
    for seed in range(300):
        x, y, names = clustered(np.random.default_rng(seed), 60)
        points = [Point(str(i), str(c), v) for i, (c, v) in enumerate(zip(names, values(x, y), strict=True))]
        found = estimate(points)
        held += found.low <= true <= found.high
    assert 0.90 <= held / 300 <= 0.985


def test_calibration_error_by_hand():
    """Two bins of two: |(1 + 0)/2 - 0.55| and |(1 + 1)/2 - 0.9|, each half of the items."""
    shares = error_shares([0.52, 0.58, 0.88, 0.92], [1.0, 0.0, 1.0, 1.0], 2)
    assert shares.mean() == pytest.approx((0.05 + 0.1) / 2)


def test_numbers_of_ranked_pairs_by_hand():
    ranked = [Ranked((2.0, 0.0), (9, 3)), Ranked((1.0, 3.0), (2, 8)), Ranked((1.0, 1.0), (4, 4))]
    assert [each.right for each in ranked] == [1.0, 0.0, 0.5]
    found = _whole(ranked, 10)
    rewards, lengths = [2.0, 0.0, 1.0, 3.0, 1.0, 1.0], [9, 3, 2, 8, 4, 4]
    means = {name: np.mean([each[name] for each in found]) for name in found[0]}
    assert means["length_pearson"] == pytest.approx(stats.pearsonr(rewards, lengths).statistic)
    assert means["length_spearman"] == pytest.approx(stats.spearmanr(rewards, lengths).statistic)
    sure = 1 / (
        1 + math.exp(-2)
    )  # of the first two, one of which is right; the third is right as often as said
    assert means["calibration_error"] == pytest.approx(2 / 3 * (sure - 0.5))
    task = RewardReport(data="x", lengths=(4, 8))
    by_length = [task._by_length(each) for each in ranked]
    assert by_length[0] == {
        "accuracy/over 8 tokens": 1.0,
        "accuracy/longer chosen": 1.0,
        "longer_chosen": 1.0,
        "prefers_longer": 1.0,
    }
    assert by_length[1] == {
        "accuracy/5 to 8 tokens": 0.0,
        "accuracy/shorter chosen": 0.0,
        "longer_chosen": 0.0,
        "prefers_longer": 1.0,
    }
    assert by_length[2] == {"accuracy/1 to 4 tokens": 0.5}


WORDS = ["yes", "the river", "a large city beside the river", "thank you very much for the invitation", "no"]


def comparison(i: int) -> Comparison:
    return Comparison(
        provenance=Provenance(id=f"c{i}", source=f"{'web' if i % 3 else 'book'}.jsonl:{i}"),
        prompt=Prompt(
            provenance=Provenance(id=f"p{i // 2}"),
            messages=(Message(role="user", content=f"What {i // 2}?"),),
        ),
        chosen=Response(text=WORDS[i % 5]),
        rejected=Response(text=WORDS[(i + 1 + i // 5 % 4) % 5]),
        judge="anna" if i % 2 else "ben",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_folder("llama", folder / "base", tokenizer=tiny_tokenizer(), max_position_embeddings=128)
    for name, heads in (("one", ("overall",)), ("many", ("overall.0", "overall.1", "overall.2"))):
        load_model(folder / "base", dtype=torch.float32, reward_heads=heads, seed=3).save(folder / name)
    rows = [comparison(i) for i in range(40)]
    long = rows[0].model_copy(
        update={"provenance": Provenance(id="long"), "chosen": Response(text="word " * 99)}
    )
    write_records(folder / "pairs.jsonl", [*rows, long])
    return folder


def outcomes_of(world: Path, name: str, **fields: Any) -> Any:
    task = RewardReport(data=str(world / "pairs.jsonl"), **fields)
    return task, task.evaluate(EvalContext(str(world / name), precision="float32", device="cpu"))


def test_members_count_as_their_mean_and_say_how_far_apart_they_are(world: Path):
    _, outcomes = outcomes_of(world, "many")
    model = load_model(world / "many", dtype=torch.float32)
    row = comparison(3)
    scores = []
    for response in (row.chosen, row.rejected):
        ids = torch.tensor([model.template.conversation(row.prompt, response).tokens])
        with torch.no_grad():
            hidden = model.hf(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            scores.append(model.reward_head.weight @ hidden)
    gaps = (scores[0] - scores[1]).double()
    assert outcomes[3].metrics["margin"] == pytest.approx(gaps.mean().item(), abs=1e-4)
    assert outcomes[3].metrics["disagreement"] == pytest.approx(gaps.std(correction=0).item(), abs=1e-4)
    assert outcomes[3].metrics["log_loss"] == pytest.approx(math.log1p(math.exp(-gaps.mean())), abs=1e-4)


def test_what_cannot_be_scored_is_the_third_state(world: Path):
    _, outcomes = outcomes_of(world, "one")
    assert outcomes[-1].item == "long"
    assert outcomes[-1].metrics["accuracy"] is outcomes[-1].metrics["accuracy/judge ben"] is None
    assert "longer than the 128 tokens" in outcomes[-1].note
    assert "disagreement" not in outcomes[0].metrics


def test_the_page_shows_it(world: Path, tmp_path: Path):
    """Strata add up to the whole, the figure's bins too, and both reach the page."""
    evaluate(
        model={"one": str(world / "one"), "many": str(world / "many"), "base": str(world / "base")},
        tasks=[{"name": "reward_report", "data": str(world / "pairs.jsonl"), "bins": 4}],
        precision="float32",
        out=str(tmp_path / "score"),
    )
    summary = json.loads((tmp_path / "score" / "summary.json").read_text())
    assert summary["not_applicable"] == [{"model": "base", "task": "reward_report"}]
    held = {(e["model"], e["metric"]): e for e in summary["estimates"]}
    whole = held["one", "accuracy"]
    assert (whole["n"], whole["missing"], whole["clusters"]) == (40, 1, 20)
    for parts in (("source book.jsonl", "source web.jsonl"), ("judge anna", "judge ben")):
        found = [held["one", f"accuracy/{part}"] for part in parts]
        assert sum(e["n"] for e in found) == 40
        assert sum(e["n"] * e["mean"] for e in found) == pytest.approx(40 * whole["mean"])
    assert 0 <= held["one", "calibration_error"]["mean"] <= 0.5
    assert held["one", "length_pearson"]["low"] < held["one", "length_pearson"]["mean"]
    assert not any(metric.startswith("accuracy/aspect") for _, metric in held)  # there is but one
    verdicts = {d["metric"]: d["verdict"] for d in summary["differences"]}
    assert verdicts["length_pearson"] is None  # neither direction is better
    figures = {figure["model"]: figure["bins"] for figure in summary["figures"]}
    assert set(figures) == {"one", "many"}
    assert sum(each["n"] for each in figures["one"]) == 40
    assert sum(each["n"] * each["observed"] for each in figures["one"]) == pytest.approx(40 * whole["mean"])
    weighted = sum(each["n"] * abs(each["observed"] - each["predicted"]) for each in figures["one"]) / 40
    assert held["one", "calibration_error"]["mean"] == pytest.approx(weighted)
    report(inputs=[str(tmp_path / "score")], out=str(tmp_path / "page"))
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Reward model: many" in page
    assert page.count("<figure>") == 2
