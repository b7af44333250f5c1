"""Best of n: the estimate against every subset, the bound, the third state, and the rows to learn from."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError, PosttrainError
from posttrain.common.step import StepContext
from posttrain.evaluation.compare import Point, estimate
from posttrain.evaluation.summary import summarise
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks import read_task
from posttrain.evaluation.tasks.best_of_n import BestOfN
from posttrain.feedback.best_of_n import best_index, expected_best, kl_bound, won
from posttrain.feedback.judge import Verdict
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.formats.write import write_records
from posttrain.records import Demonstration, Message, Prompt, Provenance, Response, Samples, prompt_key


def best_over_subsets(picks, values, n) -> float:
    """By definition: over every set of n, the mean value of those of its samples that no other one beats."""
    found = []
    for chosen in itertools.combinations(range(len(picks)), n):
        top = max(picks[i] for i in chosen)
        found.append(fmean(values[i] for i in chosen if picks[i] == top))
    return fmean(found)


@given(
    samples=st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=7),
    n=st.integers(1, 7),
)
def test_the_estimate_is_the_mean_over_all_subsets(samples, n):
    picks, values = [float(p) for p, _ in samples], [float(v) for _, v in samples]
    if n > len(samples):
        with pytest.raises(ValueError, match=f"needs {n} samples"):
            expected_best(picks, values, n)
    else:
        assert expected_best(picks, values, n) == pytest.approx(best_over_subsets(picks, values, n))


def test_the_estimate_by_hand():
    # ranks of 10, 20, 30, 40: the best of 2 is the 2nd in 1, the 3rd in 2, the 4th in 3 of the 6 pairs
    assert expected_best([1, 2, 3, 4], [10, 20, 30, 40], 2) == pytest.approx((20 + 2 * 30 + 3 * 40) / 6)
    # picked against its worth
    assert expected_best([4, 3, 2, 1], [10, 20, 30, 40], 4) == 10
    # two equal picks: either, so their mean
    assert expected_best([1, 2, 2], [0, 6, 8], 3) == 7
    # and for pairs: {0,6}, {0,8} and the tie {6,8}
    assert expected_best([1, 2, 2], [0, 6, 8], 2) == pytest.approx((6 + 8 + 7) / 3)


def test_the_estimate_has_no_bias():
    """Over many draws of N = 6 from a known distribution, the mean is the true best-of-n."""
    rng = random.Random(0)
    draws = [[rng.random() for _ in range(6)] for _ in range(4000)]
    for n in (1, 2, 3, 6):
        found = [expected_best(scores, scores, n) for scores in draws]
        # the largest of n uniforms has mean n / (n + 1) and variance below 1 / 12
        assert fmean(found) == pytest.approx(n / (n + 1), abs=5 * math.sqrt(1 / 12 / 4000))


def test_the_best_of_n_of_equals_wins_n_times_of_n_plus_one():
    """Where all differ the best of n + 1 samples is among the n with chance n / (n + 1); equals all tie."""
    for n in (1, 3, 7):
        assert won([float(i) for i in range(8)], [float(i) for i in range(8)], n) == pytest.approx(
            n / (n + 1)
        )
    assert won([1.0, 2.0, 3.0], [5.0] * 3, 2) == 0.5
    assert won([1.0, 2.0], [7.0, 3.0], 1) == 0.5  # either may be the other's opponent
    with pytest.raises(ValueError, match="the best of 2 needs 2 samples, and there are 1"):
        won([1.0, 2.0], [1.0, 2.0], 2)


def test_it_is_exact_for_many_samples():
    scores = [float(i) for i in range(500)]
    # the expected maximum of n of 0..N-1 without replacement is n (N + 1) / (n + 1) - 1
    for n in (1, 7, 250, 500):
        assert expected_best(scores, scores, n) == pytest.approx(n * 501 / (n + 1) - 1)


def test_the_bound_is_the_divergence_where_no_two_responses_tie():
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    # k responses, equally likely, all of different score: P(best of n = i) = (i/k)^n - ((i-1)/k)^n
    k, n = 20_000, 4
    best = [(i / k) ** n - ((i - 1) / k) ** n for i in range(1, k + 1)]
    assert math.fsum(p * math.log(p * k) for p in best) == pytest.approx(kl_bound(n), abs=1e-3)
    # with few, hence tied, responses it is a bound and not the value
    few = [(i / 3) ** n - ((i - 1) / 3) ** n for i in range(1, 4)]
    assert math.fsum(p * math.log(p * 3) for p in few) < kl_bound(n)


def test_the_best_is_drawn_among_equals():
    verdicts = [Verdict(1.0), Verdict(3.0), Verdict(None), Verdict(3.0)]
    drawn = [best_index(verdicts, random.Random(seed)) for seed in range(200)]
    assert set(drawn) == {1, 3}
    assert 60 < drawn.count(1) < 140
    assert best_index([Verdict(None)], random.Random(0)) is None
    assert best_index([], random.Random(0)) is None


class ByText(Config):
    """Scores a response by a number in its text: `part` says which of `a/b`; a "?" gets no answer."""

    part: int = 0
    broken: bool = False

    def open(self) -> ByTextJudge:
        return ByTextJudge(self)


class ByTextJudge:
    def __init__(self, cfg: ByText) -> None:
        self.cfg = cfg

    def score(self, items):
        assert all(response.finish != "length" for _, response in items)
        if self.cfg.broken:
            return []
        parts = [response.text.split("/")[self.cfg.part] for _, response in items]
        return [Verdict(None, "puzzled") if part == "?" else Verdict(float(part)) for part in parts]


class Compares(Config):
    def open(self):
        return self

    def compare(self, items):
        return []


def ask(name: str) -> Prompt:
    messages = (Message(role="user", content=f"Say {name}"),)
    return Prompt(provenance=Provenance(id=name), messages=messages, tags={"kind": name[0]})


def samples(name: str, *texts: str, model: str = "tiny", cut_off: tuple[str, ...] = ()) -> Samples:
    responses = tuple(
        Response(text=t, token_ids=(i + 3, 2), finish="length" if t in cut_off else "stop")
        for i, t in enumerate(texts)
    )
    provenance = Provenance(id=f"s-{name}-{model}", makers={"response": model}, parents=(name,))
    return Samples(provenance=provenance, prompt=ask(name), responses=responses, model=model)


def measure(folder: Path, rows, limit: int | None = None, model: str = "runs/tiny", **fields):
    write_records(folder / "samples.jsonl", rows)
    given = {"data": str(folder / "samples.jsonl"), "pick": ByText()} | fields
    task = parse(BestOfN, given, "test")
    (folder / "runs" / "tiny").mkdir(parents=True, exist_ok=True)
    return task, task.evaluate(EvalContext(str(folder / model), limit=limit))


def test_the_task_gives_every_n_with_its_bound(tmp_path):
    rows = [samples("a", "1/10", "2/30", "3/20"), samples("b", "5/1", "5/3", "4/7")]
    task, (a, b) = measure(tmp_path, rows, gold=ByText(part=1))
    assert (a.item, a.cluster) == (prompt_key(ask("a")),) * 2
    assert a.metrics == pytest.approx(
        {
            "best": 20,
            "gain": 0,
            "gold@1": 20,
            "proxy@1": 2,
            "kl@1": 0,
            "gold@2": (30 + 20 + 20) / 3,
            "proxy@2": (2 + 3 + 3) / 3,
            "kl@2": math.log(2) - 1 / 2,
            "gold@3": 20,
            "proxy@3": 3,
            "kl@3": math.log(3) - 2 / 3,
            "unscored": 0,
        }
    )
    assert b.metrics["gold@3"] == 2  # the two that tie for the pick, half each
    assert b.metrics["gold@2"] == pytest.approx((2 + 1 + 3) / 3)
    # best of 2 against the third. a: 30 > 10, 20 < 30, 30 > 20. b: 3 > 1, 1 < 3, and 1 or 3 < 7
    _, (a, b) = measure(tmp_path, rows, gold=ByText(part=1), n=2)
    assert (a.metrics["won"], b.metrics["won"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    use = read_task(task)
    summary = summarise((use,), {"tiny": "p"}, {"tiny": "policy"}, {("tiny", use.label): [a, b]})
    found = {e["metric"]: e for e in summary["estimates"]}
    points = [Point(o.item, o.cluster, o.metrics["gold@2"]) for o in (a, b)]
    assert found["gold@2"]["low"] == estimate(points).low < found["gold@2"]["mean"]
    assert found["gold@2"]["clusters"] == 2
    assert found["kl@2"]["mean"] == pytest.approx(kl_bound(2))


def test_without_gold_the_proxy_is_what_counts(tmp_path):
    _, (a,) = measure(tmp_path, [samples("a", "1", "2", "6")])
    assert (a.metrics["best"], a.metrics["gain"]) == (6, 3)
    assert not [name for name in a.metrics if name.startswith("gold")]


def test_samples_without_a_score_are_a_third_state(tmp_path):
    rows = [
        samples("a", "1/1", "?/9", "3/?", "4/4", "9/9", cut_off=("9/9",)),
        samples("b", *(f"{i}/{i}" for i in range(5))),
        samples("c", "?/1"),
    ]
    _, (a, b, c) = measure(tmp_path, rows, gold=ByText(part=1))
    assert (a.metrics["unscored"], b.metrics["unscored"], c.metrics["unscored"]) == (3, 0, 1)
    assert [a.metrics[f"gold@{n}"] for n in range(1, 6)] == [2.5, 4, None, None, None]
    assert (a.metrics["best"], a.metrics["gain"]) == (None, None)
    assert b.metrics["best"] == 4
    _, (at_two, *_) = measure(tmp_path, rows, gold=ByText(part=1), n=2)
    assert (at_two.metrics["best"], at_two.metrics["gain"]) == (4, 1.5)
    with pytest.raises(ConfigError, match="n is 6, and no prompt has more than 5"):
        measure(tmp_path, rows, n=6)
    assert set(c.metrics) == set(b.metrics)
    assert c.metrics["gold@1"] is None
    assert a.note == "puzzled; cut off"


def test_each_model_is_measured_by_its_own_samples(tmp_path):
    rows = [samples("a", "1", "2"), samples("a", "7", "8", model="other"), samples("a", "4")]
    _, (mine,) = measure(tmp_path, rows)
    assert mine.metrics["best"] == 4  # both of its rows, none of the other's
    _, (other,) = measure(tmp_path, rows, writer="other")
    assert other.metrics["best"] == 8
    with pytest.raises(DataError, match="elsewhere' in the data, only by other, tiny; sample from"):
        measure(tmp_path, rows, model="runs/elsewhere")


def test_limit_and_groups(tmp_path):
    rows = [samples(name, "1", "2") for name in ("a1", "b1", "a2", "b2")]
    _, outcomes = measure(tmp_path, rows, group_by="kind")
    assert [outcome.group for outcome in outcomes] == ["a", "b", "a", "b"]
    _, outcomes = measure(tmp_path, rows, limit=2)
    assert len(outcomes) == 2


def test_a_judge_that_will_not_do_is_told(tmp_path):
    with pytest.raises(ConfigError, match="only compares"):
        measure(tmp_path, [samples("a", "1")], pick=Compares())
    with pytest.raises(PosttrainError, match="gave 0 answers to 1 questions"):
        measure(tmp_path, [samples("a", "1")], pick=ByText(broken=True))


def test_what_cannot_be_measured_is_refused_before_a_judge_is_asked(tmp_path):
    asked_in_vain = ByText(broken=True)  # would say that it gave no answers
    with pytest.raises(ConfigError, match="n is 3, and no prompt has more than 2 samples"):
        measure(tmp_path, [samples("a", "1", "2")], pick=asked_in_vain, n=3)
    with pytest.raises(ConfigError, match="only compares"):
        measure(tmp_path, [samples("a", "1", "2")], pick=asked_in_vain, gold=Compares())


def choose(folder: Path, rows, **fields):
    write_records(folder / "data.jsonl", rows)
    given = {"data": str(folder / "data.jsonl"), "judge": ByText(), "to": "demonstrations"} | fields
    summary = STEP.run(
        parse(JudgeConfig, given, "test"), StepContext(folder / "out", folder / "state", "judge")
    )
    lines = (folder / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [Demonstration.model_validate_json(line) for line in lines]


def test_the_best_become_demonstrations_and_the_rest_is_counted(tmp_path):
    rows = [
        samples("a", "1", "3", "2", "9", "3", cut_off=("9",)),
        samples("b", "?", "?", "?"),
        samples("c", "0.5", "0.25", "?"),
    ]
    summary, made = choose(tmp_path, rows, min_score=1.0)
    (row,) = made
    assert row.response == rows[0].responses[1]  # token ids as they were sampled
    assert row.prompt == rows[0].prompt
    label = f"{__name__}:ByText"
    assert row.provenance.makers == {"response": "tiny", "choice": f"best of 3 by {label}"}
    assert row.provenance.parents == ("s-a-tiny",)
    assert summary == {
        "judge": label,
        "prompts": 3,
        "responses": 11,
        "demonstrations": 1,
        "cut_off": 1,
        "no_answer": 2,
        "rejected": 0,
        "identical": 3,
        "unscored_prompts": 1,
        "below_min_score": 1,
        "no_answer_reasons": {"puzzled": 2},
    }


def test_a_tie_goes_by_the_seed_and_not_by_the_place(tmp_path):
    rows = [samples(f"p{i}", "2.0", "2", "1") for i in range(40)]
    found = {}
    for number, seed in enumerate((0, 0, 1)):
        _, made = choose(tmp_path / str(number), rows, seed=seed)
        found[number] = [row.response.text for row in made]
    assert found[0] == found[1] != found[2]
    assert 8 < found[0].count("2") < 32


def test_samples_of_two_models_to_one_prompt_meet(tmp_path):
    _, made = choose(tmp_path, [samples("a", "1", "2"), samples("a", "3", model="other")])
    assert [(row.response.text, row.provenance.makers["response"]) for row in made] == [("3", "other")]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pairs": "all"}, "'pairs' is set, but demonstrations"),
        ({"min_gap": 1}, "'min_gap' is set"),
        ({"to": "comparisons", "min_score": 1}, "'min_score' is set, but comparisons"),
        ({"to": "ratings", "min_score": 1}, "'min_score' is set, but ratings"),
    ],
)
def test_settings_without_a_use_are_refused(tmp_path, fields, says):
    with pytest.raises(ConfigError, match=says):
        parse(JudgeConfig, {"data": "d", "judge": ByText(), "to": "demonstrations"} | fields, "test")


def test_a_judge_that_only_compares_chooses_nothing(tmp_path):
    with pytest.raises(ConfigError, match="compares and does not score, so it gives no demonstrations"):
        choose(tmp_path, [samples("a", "1", "2")], judge=Compares())
    with pytest.raises(DataError, match="not one of the demonstrations"):
        choose(tmp_path, [samples("a", "?")])
