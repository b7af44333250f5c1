"""The oracle as an LLM judge with errors of known size: what they do to labels, and what two orders undo."""

from __future__ import annotations

import gc
import math
import socket
import statistics

import pytest

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve
from posttrain.common.step import StepContext
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks.judge_report import JudgeReport
from posttrain.feedback.judge import Account, Preference, Verdict
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.feedback.position import first_wins
from posttrain.feedback.weighted_sum import WeightedSum
from posttrain.formats.write import write_records
from posttrain.playground.judge_server import Errors, JudgeServer
from posttrain.playground.llm_judge import LlmOracle
from posttrain.playground.oracle import verdict
from posttrain.playground.sources import Comparisons, Demonstrations
from posttrain.records import Message, Prompt, Provenance, Response

# One answer in two forms of equal worth, of which a judge without errors says nothing.
ROWS = [row.prompt for row in Demonstrations(n=120, areas={"arithmetic": 1}).rows()]
SAME = [(p, Response(text=f"{p.reference}."), Response(text=f"{p.reference}")) for p in ROWS]
THREE_SIGMA = 3 * 0.5 / math.sqrt(len(ROWS))
BIASED = {"noise": 1.0, "position_bias": 1.0}


def opened(folder, **fields):
    return parse(LlmOracle, {"ask": "compare"} | fields, "test").open_with(Account(folder, "test"))


def test_one_order_is_biased_by_the_place_and_two_are_not(tmp_path):
    """Of two answers of equal worth the first wins most of the time; shown both ways round, half of it."""
    one = opened(tmp_path, errors=BIASED, orders=1)
    said = [each.probability for each in one.compare(SAME)]
    assert statistics.mean(said) > 0.5 + 2 * THREE_SIGMA
    both = opened(tmp_path, errors=BIASED, both_agree=False).compare(SAME)
    assert statistics.mean(each.probability for each in both) == pytest.approx(0.5, abs=THREE_SIGMA)
    assert statistics.mean(first_wins(each.orders) for each in both) > 0.5 + 2 * THREE_SIGMA
    # where both orders must agree, those favoured for their place alone are left out
    strict = opened(tmp_path, errors=BIASED).compare(SAME)
    kept = [each.probability for each in strict if each.probability is not None]
    assert len(kept) < len(SAME) * 0.7
    assert abs(statistics.mean(kept) - 0.5) < 3 * 0.5 / math.sqrt(len(kept))


def test_without_bias_the_place_means_nothing(tmp_path):
    both = opened(tmp_path, errors={"noise": 1.0}, both_agree=False).compare(SAME)
    assert statistics.mean(first_wins(each.orders) for each in both) == pytest.approx(0.5, abs=THREE_SIGMA)


def test_two_orders_agree_with_the_truth_more_often_than_one(tmp_path):
    """Right answers against wrong ones of equal manner, under a bias as strong as the difference."""
    pairs = [(p, Response(text=f"{int(p.reference) + 1}."), Response(text=f"{p.reference}.")) for p in ROWS]
    errors = {"noise": 1.5, "position_bias": 4.0}
    one = opened(tmp_path, by="accuracy", errors=errors, orders=1).compare(pairs)
    two = opened(tmp_path, by="accuracy", errors=errors).compare(pairs)
    wrong = sum(each.probability == 1.0 for each in one) / len(one)
    kept = [each.probability for each in two if each.probability is not None]
    assert wrong > 0.15
    assert len(kept) > 30
    assert sum(p == 1.0 for p in kept) / len(kept) < 0.05


def test_without_errors_the_grades_are_the_oracles(tmp_path):
    judge = opened(tmp_path, ask="score")
    rows = [
        (row.prompt, side)
        for row in Comparisons(n=40, areas={"arithmetic": 1, "atlas": 1}).rows()
        for side in (row.chosen, row.rejected)
    ]
    for said, (prompt, response) in zip(judge.score(rows), rows, strict=True):
        assert said.parts["accuracy"] == round(1 + 4 * verdict(prompt, response).parts["correct"])


def test_answers_depend_on_the_question_alone(tmp_path):
    errors = {"noise": 1.0, "unreadable": 0.3, "refused": 0.1}
    a = opened(tmp_path / "a", errors=errors).compare(SAME[:40])
    b = opened(tmp_path / "b", errors=errors, concurrency=1).compare(SAME[:40][::-1])
    assert a == b[::-1]
    assert "refusal" in {each.reason for each in a}


def test_other_errors_are_another_model_in_the_cache(tmp_path):
    first = opened(tmp_path, ask="score")
    first.score([SAME[0][:2]])
    again, noisy = opened(tmp_path, ask="score"), opened(tmp_path, ask="score", errors={"noise": 1})
    again.score([SAME[0][:2]])
    noisy.score([SAME[0][:2]])
    assert (again.spent()["cache_hits"], noisy.spent()["cache_hits"]) == (1, 0)


def test_what_is_not_the_playgrounds_is_not_graded(tmp_path):
    with_tags = ROWS[0]
    stranger = with_tags.model_copy(update={"messages": (Message(role="user", content="Who are you?"),)})
    server = JudgeServer((), Errors())
    server.know([with_tags])
    status, said = server.answer({"messages": [{"role": "user", "content": stranger.text}]})
    server.close()
    assert (status, "knows no such prompt" in said["error"]["message"]) == (400, True)


def test_the_server_goes_with_the_judge(tmp_path):
    judge = opened(tmp_path, ask="score")
    port = int(judge.server.base_url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port)):
        pass
    del judge
    gc.collect()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


def test_it_is_one_part_of_a_weighted_sum(tmp_path):
    """As a reward: opened through the sum, it keeps its answers where the step says, and tells its price."""
    parts = [
        {"judge": LlmOracle(by="accuracy"), "weight": 2.0, "name": "llm"},
        {"judge": "exact_match", "weight": 1.0},
    ]
    judge = parse(WeightedSum, {"parts": parts}, "test").open_with(Account(tmp_path, "rl"))
    (said,) = judge.score([(ROWS[0], Response(text=ROWS[0].reference))])
    assert (said.score, said.parts) == (11.0, {"llm": 5.0, "exact_match": 1.0})
    assert judge.spent()["llm"]["answers_paid"] == 1
    assert (tmp_path / "http.sqlite").exists()


def test_the_report_tells_agreement_flips_and_place(tmp_path):
    """By hand: a judge that is right in one data set whatever the order, and likes the first in the other."""
    rows = list(Comparisons(n=60, areas={"arithmetic": 1}, manners={"complete": 1, "wrong": 1}).rows())
    named = [
        row.model_copy(
            update={"provenance": row.provenance.model_copy(update={"source": "ab"[i % 2]})},
        )
        for i, row in enumerate(rows)
    ]
    write_records(tmp_path / "labelled.jsonl", named)
    easy = {row.prompt.text for row in named if row.provenance.source == "a"}
    task = parse(JudgeReport, {"data": str(tmp_path / "labelled.jsonl"), "judge": Half(easy=easy)}, "test")
    outcomes = task.evaluate(EvalContext("no model"))
    of_a = [o.metrics for o in outcomes if "agreement/source a" in o.metrics]
    of_b = [o.metrics for o in outcomes if "agreement/source b" in o.metrics]
    assert {(m["agreement"], m["flips"], m["first_wins"], m["confidence"]) for m in of_a} == {
        (1.0, 0.0, 0.5, 1.0)
    }
    assert {(m["agreement"], m["flips"], m["first_wins"], m["confidence"]) for m in of_b} == {
        (0.5, 1.0, 1.0, 0.5)
    }
    assert {m["flips/source b"] for m in of_b} == {1.0}
    assert statistics.mean(o.metrics["calibration_error"] for o in outcomes) == 0


class Half(Config):
    """Right about the easy ones; of the others it favours the first."""

    easy: frozenset[str] = frozenset()

    def open(self):
        return self

    def compare(self, items):
        return [
            Preference(score := float(better(*item)), orders=(score, score))
            if item[0].text in self.easy
            else Preference(0.5, orders=(1.0, 0.0))
            for item in items
        ]


def better(prompt, first, second):
    return verdict(prompt, first).score > verdict(prompt, second).score


class Scores(Config):
    """The oracle's scores, and no answer about what begins with a 1."""

    def open(self):
        return self

    def score(self, items):
        return [
            Verdict(None, "a one") if r.text.startswith("1") else Verdict(verdict(p, r).score)
            for p, r in items
        ]


def test_the_report_asks_a_judge_that_scores_about_each_of_the_two(tmp_path):
    rows = list(Comparisons(n=40, areas={"arithmetic": 1}).rows())
    write_records(tmp_path / "labelled.jsonl", rows)
    task = parse(JudgeReport, {"data": str(tmp_path / "labelled.jsonl"), "judge": Scores()}, "test")
    outcomes = task.evaluate(EvalContext("no model"))
    silent = [row.chosen.text.startswith("1") or row.rejected.text.startswith("1") for row in rows]
    assert 0 < sum(silent) < len(rows)
    assert [o.metrics["agreement"] for o in outcomes] == [None if said else 1.0 for said in silent]
    assert [o.metrics["answered"] for o in outcomes] == [float(not said) for said in silent]
    assert {o.note for o in outcomes} == {"", "a one"}
    assert task.figures(outcomes) == []


def test_calibration_of_soft_labels_by_the_oracle(tmp_path):
    """Soft labels of a noisy judge lie between; the curve has them, and what cannot be read is counted."""
    write_records(
        tmp_path / "labelled.jsonl", list(Comparisons(n=60, areas={"arithmetic": 1, "atlas": 1}).rows())
    )
    judge = {
        "name": f"{LlmOracle.__module__}:LlmOracle",
        "ask": "compare",
        "repeats": 3,
        "temperature": 1.0,
        "both_agree": False,
        "errors": {"noise": 1.5, "position_bias": 1.0, "unreadable": 0.2},
        "attempts": 1,
    }
    task = parse(JudgeReport, {"data": str(tmp_path / "labelled.jsonl"), "judge": judge}, "test")
    outcomes = task.evaluate(EvalContext("no model", account=Account(tmp_path, "report")))
    answered = [o for o in outcomes if o.metrics["agreement"] is not None]
    assert 40 < len(answered) <= 60
    assert statistics.mean(o.metrics["agreement"] for o in answered) > 0.7
    assert len({o.metrics["confidence"] for o in answered}) > 3
    (figure,) = task.figures(outcomes)
    assert sum(each["n"] for each in figure["bins"]) == len(answered)


def test_the_step_labels_samples_with_it(tmp_path):
    rows = list(Comparisons(n=20, areas={"arithmetic": 1}, manners={"complete": 1, "wrong": 1}).rows())
    write_records(tmp_path / "rows.jsonl", rows)
    judge = {"name": "posttrain.playground.llm_judge:LlmOracle", "ask": "compare"}
    cfg = parse(JudgeConfig, {"data": str(tmp_path / "rows.jsonl"), "judge": judge, "pairs": "all"}, "test")
    summary = STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "judge"))
    assert (summary["comparisons"], summary["position"]["flip_rate"]) == (20, 0.0)
    assert summary["cost"]["answers_paid"] == 2 * len(
        {(r.prompt.text, r.chosen.text, r.rejected.text) for r in rows}
    )


def test_it_is_found_by_name():
    assert resolve("judges", "playground/llm_judge", {}) is LlmOracle
    with pytest.raises(ConfigError, match=r"unknown key 'errors.nois' \(did you mean 'noise'\?\)"):
        parse(LlmOracle, {"errors": {"nois": 1}}, "test")


def test_a_long_conversation_is_found_again(tmp_path):
    """The prompt's tags say what is asked; its turns are shown under their roles."""
    spec = ROWS[0]
    turns = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hello!"),
        *spec.messages,
    )
    longer = Prompt(messages=turns, tags=spec.tags, provenance=Provenance(id="long"))
    (said,) = opened(tmp_path, ask="score").score([(longer, Response(text=f"{spec.reference}."))])
    assert said.parts["accuracy"] == 5
