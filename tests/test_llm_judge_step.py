"""The judge `llm` in the step `judge`: what the summary tells, what is paid once, where the key goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_server import Answer, serving
from http_engine import SECRET, impatient  # noqa: F401
from llm_questions import ONE, ask, by_text, grades, places, says

from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.engines.server import OutOfBudget, ServerError
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.feedback.label_cost import cost_of
from posttrain.flow.oneoff import run_into
from posttrain.formats.write import write_records
from posttrain.records import ROW, Provenance, Response, Samples


def run(folder: Path, url: str, responses, cache=None, ask_for="compare", judge=(), **fields):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Why?"), responses=tuple(responses), model="m")]
    cfg = config(folder, url, rows, ask_for, dict(judge), **fields)
    out = folder / f"judge-{folder.name}"
    summary = STEP.run(cfg, StepContext(out, folder / "state", "judge", cache))
    lines = (out / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [ROW.validate_json(line) for line in lines]


def config(folder, url, rows, ask_for="compare", judge=None, **fields) -> JudgeConfig:
    write_records(folder / "rows.jsonl", rows)
    named = {"name": "llm", "base_url": url, "model": "judge-1", "ask": ask_for} | (judge or {})
    made = {"data": str(folder / "rows.jsonl"), "judge": named}
    made |= {"pairs": "all"} if ask_for == "compare" else {}
    return parse(JudgeConfig, made | fields, "test")


def test_the_mean_and_accuracy_may_disagree(tmp_path):
    """Higher in accuracy, lower in the mean: pairs from either are asked for by `aspect`, and paid once."""

    def say(body):
        right, nice = grades(5, 1, 1), grades(3, 5, 5)
        first, _ = places(body, "first", "second")
        sides = (right, nice) if "right" in first else (nice, right)
        return says(dict(zip(("first", "second"), sides, strict=True)))

    samples = [Response(text="right and rude"), Response(text="charming")]
    with serving(say) as (url, seen):
        summary, by_mean = run(tmp_path / "mean", url, samples, cache=tmp_path)
        assert (summary["cost"]["answers_paid"], summary["cost"]["tokens_per_label"]) == (2, 26.0)
        other, by_accuracy = run(tmp_path / "accuracy", url, samples, cache=tmp_path, aspect="accuracy")
        assert (other["cost"]["answers_paid"], other["cost"]["cache_hits"]) == (0, 2)
    assert [row.chosen.text for row in by_mean] == ["charming"]
    assert [(row.chosen.text, row.aspect) for row in by_accuracy] == [("right and rude", "accuracy")]
    assert len(seen.bodies) == 2


def test_the_step_tells_flips_position_and_price(tmp_path):
    """Of three pairs one is read the same way in both orders; in two, what stands first wins."""

    def say(body):
        first, second = places(body, "first", "second")
        if {first, second} == {"good", "bad"}:
            return by_text(body)
        return says({"first": grades(5), "second": grades(4)}, tokens=5, prompt=20)

    budget = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
    responses = [Response(text=text) for text in ("good", "bad", "ugly")]
    with serving(say) as (url, _):
        summary, rows = run(tmp_path, url, responses, judge={"budget": budget})
    assert [(row.chosen.text, row.rejected.text, row.judge) for row in rows] == [
        ("good", "bad", "llm judge-1")
    ]
    # of the six judgements four favour the first by its place, and one the good one where it is first
    assert summary["position"] == {
        "pairs": 3,
        "flip_rate": pytest.approx(2 / 3),
        "agreed": pytest.approx(1 / 3),
        "first_wins": pytest.approx(5 / 6),
    }
    assert summary["no_answer_reasons"] == {"the two orders disagree": 2}
    cost = summary["cost"]
    assert (cost["prompt_tokens"], cost["completion_tokens"]) == (2 * 10 + 4 * 20, 2 * 3 + 4 * 5)
    assert cost["tokens_per_label"] == 126
    assert cost["usd_per_label"] == pytest.approx((100 + 260) / 1e6)


class Charged:
    """A judge that was paid for 300 and 100 tokens, half a dollar."""

    def score(self, items):
        raise AssertionError("asked")

    def spent(self):
        return {"prompt_tokens": 300, "completion_tokens": 100, "usd": 0.5}


def test_the_price_is_told_by_the_label():
    cost = cost_of(Charged(), 8)["cost"]
    assert (cost["tokens_per_label"], cost["usd_per_label"]) == (50, 0.0625)
    nothing = cost_of(Charged(), 0)["cost"]
    assert (nothing["usd"], nothing["tokens_per_label"], nothing["usd_per_label"]) == (0.5, None, None)


def test_ratings_keep_the_third_state(tmp_path):
    def say(body):
        (text,) = places(body, "response")
        return says("No.") if text == "odd" else says(grades(2))

    with serving(say) as (url, _):
        summary, rows = run(
            tmp_path,
            url,
            [Response(text="odd"), Response(text="plain")],
            ask_for="score",
            to="ratings",
        )
    assert [row.scores for row in rows] == [
        {"overall": None},
        {"overall": 3.0, "accuracy": 2, "style": 4, "detail": 3},
    ]
    assert summary["no_answer_reasons"] == {"unreadable: no JSON": 1}


def test_a_step_that_ran_out_of_budget_pays_for_nothing_twice(tmp_path):
    many = [Response(text=f"answer {i}") for i in range(8)]
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Why?"), responses=tuple(many), model="m")]

    def make(tokens):
        judge = {"budget": {"tokens": tokens}, "concurrency": 1}
        return config(tmp_path, url, rows, "score", judge, to="ratings")

    with serving(lambda body: says(grades(), tokens=40, prompt=500)) as (url, seen):
        with pytest.raises(OutOfBudget, match="run again to go on"):
            run_into(STEP, make(5000), tmp_path / "made")
        before = len(seen.bodies)
        assert 0 < before < 8
        done = run_into(STEP, make(100_000), tmp_path / "made")
    assert len(seen.bodies) == 8
    assert (done.summary["ratings"], done.summary["cost"]["answers_paid"]) == (8, 8)
    assert done.summary["cost"]["cache_hits"] == before


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Why?"), responses=(ONE[0][1],), model="m")]

    def make():
        return config(tmp_path, url, rows, "score", {"api_key_env": "JUDGE_KEY"}, to="ratings")

    with serving(lambda body: says(grades())) as (url, seen):
        run_into(STEP, make(), tmp_path / "made")
        assert seen.headers[0]["authorization"] == f"Bearer {SECRET}"
    refused = Answer({"error": {"message": f"bad key {SECRET}"}}, 401)
    with serving(lambda body: refused) as (url, _):
        with pytest.raises(ServerError) as e:
            run_into(STEP, make(), tmp_path / "refused")
        assert SECRET not in str(e.value)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())
