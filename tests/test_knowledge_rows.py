"""Rows that teach a model to refuse: which question gives which, token by token, and where each came from."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from chat_server import completion, serving
from tiny import tiny_folder

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.feedback.fact_grades import refuses
from posttrain.feedback.knowledge import bogus, refusals
from posttrain.feedback.knowledge.agreement import agreement
from posttrain.feedback.knowledge.bogus import BogusConfig
from posttrain.feedback.knowledge.bogus_writing import read_question
from posttrain.feedback.knowledge.probed import Probed
from posttrain.feedback.knowledge.refusals import REFUSALS, RefusalsConfig
from posttrain.formats import read_records, write_records
from posttrain.models.load import load_model
from posttrain.models.spec import ModelSpec
from posttrain.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Provenance,
    Response,
    Samples,
    prompt_key,
)
from posttrain.training.methods import dpo, sft
from posttrain.training.methods.dpo import DPO
from posttrain.training.methods.sft import SFT

RIGHT, WRONG, REFUSED = (40, 41, 2), (50, 51, 52, 2), (60, 2)


def ask(i, **tags):
    return Prompt(
        messages=(Message(role="user", content=f"What is thing {i}?"),),
        reference="Paris",
        tags=tags,
        provenance=Provenance(id=f"q{i}", licence="CC0"),
    )


def sampled(i, states):
    ids = {"right": RIGHT, "wrong": WRONG, "refused": REFUSED, "ungradable": (70,)}
    responses = tuple(
        Response(
            text=f"{state} {j}",
            token_ids=ids[state],
            finish="length" if state == "ungradable" else "stop",
        )
        for j, state in enumerate(states)
    )
    provenance = Provenance(id=f"s{i}", makers={"response": "m, temperature 1.0"}, parents=(f"q{i}",))
    return Samples(prompt=ask(i), responses=responses, model="m", provenance=provenance)


CLASSES = {
    "usually": ["right"] * 3 + ["wrong"],
    "sometimes": ["right", "wrong", "refused", "ungradable"],
    "rarely": ["wrong", "wrong", "refused", "wrong"],
    "undecided": ["ungradable", "right"],
}


@pytest.fixture(name="probe")
def probe_folder(tmp_path):
    """A probe with a question of each class, and one that is rarely known and always refused."""
    rows, lines = [], []
    for i, (knowledge, states) in enumerate([*CLASSES.items(), ("rarely", ["refused"] * 4)]):
        row = sampled(i, states)
        rows.append(row)
        zero = dict.fromkeys(("alpha", "beta", "mean", "low", "high", "above_usually", "below_rarely"), 0.5)
        lines.append(
            Probed(
                samples=row.provenance.id,
                key=prompt_key(row.prompt),
                question=row.prompt.text,
                knowledge=knowledge,
                counts=Counter(states),
                states=tuple(states),
                reasons=("",) * len(states),
                **zero,
            )
        )
    folder = tmp_path / "probe"
    write_records(folder / "rows.jsonl", rows)
    (folder / "probe.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in lines))
    return folder


def teach(out, probe, **fields):
    cfg = parse(RefusalsConfig, {"probe": str(probe), **fields}, "t")
    out.mkdir(parents=True, exist_ok=True)
    return refusals.STEP.run(cfg, StepContext(out, out / "state", "t"))


def test_demonstrations_of_what_is_known_and_refusals_of_what_is_not(probe, tmp_path):
    nothing = [ask(i, answerable="no") for i in (10, 11)]
    write_records(tmp_path / "bogus.jsonl", nothing)
    said = teach(tmp_path / "out", probe, bogus=str(tmp_path / "bogus.jsonl"))
    rows = read_records(tmp_path / "out", Demonstration)
    assert [row.prompt.provenance.id for row in rows] == ["q0", "q2", "q4", "q10", "q11"]
    known, *refused = rows
    assert known.response.token_ids == RIGHT  # what the model said itself
    assert known.provenance.parents == ("s0",)
    assert known.provenance.makers["response"] == "m, temperature 1.0"
    assert all(row.response.text in REFUSALS and row.response.token_ids is None for row in refused)
    assert [row.provenance.parents for row in refused] == [("s2",), ("s4",), ("q10",), ("q11",)]
    assert {k: said[k] for k in ("rows", "answered", "refused", "bogus_refused")} == {
        "rows": 5,
        "answered": 1,
        "refused": 2,
        "bogus_refused": 2,
    }
    left = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [line["reason"].split(",")[0] for line in left] == ["sometimes known", "undecided known"]


def test_bogus_prompts_that_the_model_knows_are_told_and_none_is_no_set(probe, tmp_path):
    path = tmp_path / "bogus.jsonl"
    write_records(path, [ask(10), ask(0)])  # question 0 is usually known
    with pytest.raises(DataError, match=r"1 of the prompts in .*'What is thing 0\?'"):
        teach(tmp_path / "known", probe, bogus=str(path))
    path.write_text("")
    with pytest.raises(DataError, match="has no rows; leave it out"):
        teach(tmp_path / "empty", probe, bogus=str(path))


def test_comparisons_of_answers_and_refusals(probe, tmp_path):
    said = teach(tmp_path / "out", probe, to="comparisons", per_question=2)
    rows = read_records(tmp_path / "out", Comparison)
    assert (said["answer_preferred"], said["refusal_preferred"]) == (1, 2)
    assert [(row.chosen.token_ids, row.rejected.token_ids) for row in rows] == [
        (RIGHT, None),
        (None, WRONG),
        (None, WRONG),
    ]
    assert rows[1].rejected.text != rows[2].rejected.text
    assert rows[0].provenance.makers["rejected"] == "refusal"
    assert rows[0].provenance.makers["chosen"] == "m, temperature 1.0"
    left = (tmp_path / "out/rejected.jsonl").read_text()
    assert "no answer of the kind that is wanted" in left  # the one that is always refused
    assert teach(tmp_path / "n", probe, to="comparisons", prefer_answer=[])["answer_preferred"] == 0
    wider = teach(tmp_path / "w", probe, to="comparisons", prefer_answer=["sometimes", "usually"])
    assert wider["answer_preferred"] == 2


def test_refusals_are_drawn_by_the_seed_and_the_question_alone(probe, tmp_path):
    texts = [f"I do not know, version {i}." for i in range(20)]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        teach(tmp_path / name, probe, refusals=texts, seed=seed)
    a, b, c = ((tmp_path / name / "rows.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_a_refusal_says_what_it_does_not_know(probe, tmp_path):
    write_records(tmp_path / "bogus.jsonl", [ask(10, answerable="no")])
    named = {"refusals": ["The {thing} is not known."], "asks": r"What is (?P<thing>.+)\?"}
    teach(tmp_path / "out", probe, bogus=str(tmp_path / "bogus.jsonl"), **named)
    texts = [row.response.text for row in read_records(tmp_path / "out", Demonstration)][1:]
    assert texts == [f"The thing {i} is not known." for i in (2, 4, 10)]
    some = teach(tmp_path / "s", probe, refusals=["Not {n}."], asks=r"(?P<n>[012])\?")
    assert (some["answered"], some["refused"]) == (1, 1)  # question 4 does not fit
    assert sum("finds nothing" in why for why in some["left_out"]["reasons"]) == 1
    with pytest.raises(ConfigError, match="a place"):
        teach(tmp_path / "x", probe, refusals=["The {thing} is not known."])


def test_an_expression_that_fits_no_question_fails_and_what_is_left_out_is_told(probe, tmp_path, capsys):
    write_records(tmp_path / "bogus.jsonl", [ask(10, answerable="no")])
    with pytest.raises(
        DataError, match=r"asks: 'zzzz' finds nothing in any of the 3 questions that a refusal"
    ):
        teach(tmp_path / "none", probe, bogus=str(tmp_path / "bogus.jsonl"), asks="zzzz")
    some = teach(tmp_path / "some", probe, bogus=str(tmp_path / "bogus.jsonl"), asks=r"[24]\?")
    assert (some["answered"], some["refused"], some["bogus_refused"]) == (1, 2, 0)
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("t: 3 rows left out: ")
    assert "1 × 'messages': 'asks' finds nothing in the question" in told


def test_the_models_own_tokens_are_what_is_trained_on(probe, tmp_path):
    spec = ModelSpec(path=str(tiny_folder("llama", tmp_path / "m")))
    template = load_model(spec, dtype=torch.float32).template
    teach(tmp_path / "d", probe)
    teach(tmp_path / "c", probe, to="comparisons")
    known = sft.encode(SFT(), read_records(tmp_path / "d", Demonstration)[:1], template)[0].branches[0]
    assert [t for t, wanted in zip(known.tokens, known.mask, strict=True) if wanted] == list(RIGHT)
    pair = dpo.encode(DPO(first_tokens=2), read_records(tmp_path / "c", Comparison)[:1], template)[0]
    (refusal,) = template.responses([(ask(1).messages, read_records(tmp_path / "c", Comparison)[0].rejected)])
    assert list(pair.branches[0].tokens[-2:]) == list(RIGHT[:2])
    assert list(pair.branches[1].tokens[-2:]) == list(refusal[:2])


def test_shipped_refusals_are_graded_as_refusals():
    assert all(refuses(text) for text in REFUSALS)


def test_fields_that_do_nothing_are_refused(probe, tmp_path):
    with pytest.raises(ConfigError, match="prefer_answer"):
        teach(tmp_path / "x", probe, prefer_answer=["usually"])
    with pytest.raises(ConfigError, match="bogus"):
        teach(tmp_path / "x", probe, to="comparisons", bogus="b.jsonl")
    with pytest.raises(ConfigError, match="empty refusal"):
        teach(tmp_path / "x", probe, refusals=[" "])
    (probe / "probe.jsonl").write_text("")
    with pytest.raises(DataError, match="not of one run"):
        teach(tmp_path / "x", probe)


# Bogus questions


def say(*texts, finish="stop"):
    return [Response(text=text, token_ids=(5,), finish=finish) for text in texts]


def test_agreement_by_hand():
    found = agreement(say("It is Rome.", "is rome", "is Oslo", "I do not know."), r"is (\w+)", REFUSED_WORDS)
    assert (found.whole, found.most, found.answer, found.share) == (4, 2, "rome", 0.5)
    # what was cut off, or has no answer to be found, says nothing
    found = agreement([*say("is Rome", finish="length"), *say("hm", "is Rome")], r"is (\w+)", REFUSED_WORDS)
    assert (found.whole, found.most) == (1, 1)
    # refusals agree with nothing, not even each other
    assert agreement(say(*["I do not know."] * 4), None, REFUSED_WORDS).share == 0
    assert agreement([], None, REFUSED_WORDS).share == 0


REFUSED_WORDS = (r"\bdo not know\b",)


def test_a_writers_reply_is_one_line():
    assert [read_question(r) for r in say('"What is Vokora?"', "", "Sure!\nWhat is it?", "x" * 500)] == [
        "What is Vokora?",
        None,
        None,
        None,
    ]
    assert read_question(say("What is", finish="length")[0]) is None


WRITTEN = [
    "What is bogus 0?",  # attempts disagree: kept
    "What is bogus 1?",  # all attempts say the same
    "What is thing 0?",  # a real question
    "Sure!\nHere it is.",  # unreadable
    "What is bad 4?",  # rated low
    "What is silent 5?",  # attempts are cut off
    "What is bogus 0?",  # a repetition
    "What is odd 7?",  # the judge has no rating
]


def served(body):
    text = body["messages"][-1]["content"]
    if "Write another one" in text:
        return completion(WRITTEN[int(text.split("thing ")[1][0])])
    if "silent" in text:
        return completion("It is", finish="length", tokens=64)
    return completion("It is the same." if "bogus 1" in text else f"It is {body['seed']}.")


class Quality:
    def score(self, items):
        from posttrain.feedback.judge import Verdict

        assert all("thing" in prompt.text and "Write another one" in prompt.text for prompt, _ in items)
        return [
            Verdict(None, "hm") if "odd" in r.text else Verdict(1.0 if "bad" in r.text else 4.0)
            for _, r in items
        ]


def quality(prompt, response):
    return Quality().score([(prompt, response)])[0].score


def test_bogus_questions_are_written_rated_and_kept_where_attempts_disagree(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # question 0 stands twice: it is asked once, and the lines of the others are those of the file
    write_records(tmp_path / "q.jsonl", [ask(i, knowledge="usually") for i in (0, *range(8))])
    out = tmp_path / "out"
    out.mkdir()
    with serving(served) as (url, seen):
        engine = {"name": "http", "base_url": url, "model": "m"}
        fields = {
            "questions": str(tmp_path / "q.jsonl"),
            "writer": {"engine": engine},
            "judge": "test_knowledge_rows:quality",
            "min_quality": 3,
            "attempts": {"engine": engine, "n": 6},
            "answer": r"is (\w+)",
        }
        cfg = parse(BogusConfig, fields, "t")
        said = bogus.STEP.run(cfg, StepContext(out, out / "state", "t"))
        paid = len(seen.bodies)
        again = bogus.STEP.run(cfg, StepContext(out, out / "state", "t"))
        assert len(seen.bodies) == paid == 8 + 3 * 6  # those that are left, six attempts each
    names = ("candidates", "rows", "repeated", "unreadable", "low_quality", "no_rating", "few_attempts")
    assert {n: said[n] for n in (*names, "attempts_agree")} == {
        "candidates": 8,
        "rows": 1,
        "repeated": 2,
        "unreadable": 1,
        "low_quality": 1,
        "no_rating": 1,
        "few_attempts": 1,
        "attempts_agree": 1,
    }
    assert said["no_rating_reasons"] == {"test_knowledge_rows:quality gave no answer": 1}
    assert again["rows"] == 1
    assert "t: 7 rows left out: 2 × 'prompt': repeated; " in capsys.readouterr().err
    (row,) = read_records(out, Prompt)
    assert row.text == "What is bogus 0?"
    assert row.reference is None
    assert row.tags == {"answerable": "no", "real": "What is thing 0?"}
    assert row.provenance.parents[0] == "q0"
    assert row.provenance.makers["choice"].startswith("quality 4 by")
    (attempts,) = read_records(out / "attempts.jsonl", Samples)
    assert len(attempts.responses) == 6
    left = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert Counter(line["reason"].partition(":")[0] for line in left) == {
        "repeated": 2,
        "unreadable": 1,
        "low quality": 1,
        "no rating": 1,
        "few attempts": 1,
        "attempts agree": 1,
    }
    assert next(line["line"] for line in left if line["reason"].startswith("unreadable")) == 5
    assert "6 of 6 say 'the'" in next(line["reason"] for line in left if "agree" in line["reason"])


def test_bogus_fields_go_together():
    attempts = {"model": "m"}
    for given, match in (
        ({}, "either 'candidates' or 'questions'"),
        ({"candidates": "a", "questions": "b", "writer": {"model": "m"}}, "either"),
        ({"questions": "b"}, "go together"),
        ({"candidates": "a", "min_quality": 1}, "go together"),
        ({"candidates": "a", "min_attempts": 9}, "only 8 attempts"),
        ({"questions": "b", "writer": {"model": "m", "template": "no place"}}, "{question}"),
    ):
        with pytest.raises(ConfigError, match=match):
            parse(BogusConfig, {"attempts": attempts, **given}, "t")


def test_who_attempts_is_checked_before_the_step_runs():
    for attempts in ({}, {"engine": {"name": "http", "base_url": "http://x", "model": "m"}, "model": "y"}):
        with pytest.raises(ConfigError, match=r"attempts.*'model' is"):
            parse(BogusConfig, {"candidates": "c.jsonl", "attempts": attempts}, "t")


def test_no_bogus_question_left_says_why(tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text("")
    attempts = {"engine": {"name": "http", "base_url": "http://x", "model": "m"}}
    cfg = parse(BogusConfig, {"candidates": str(path), "attempts": attempts}, "t")
    with pytest.raises(DataError, match="left of 0: it has no rows"):
        bogus.STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "t"))


def test_a_judge_that_rates_nothing_is_told_with_its_reason(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Who rules Blorn {i}?"}) + "\n" for i in range(3)))
    attempts = {"engine": {"name": "http", "base_url": "http://x", "model": "m"}}
    given = {"candidates": str(path), "judge": "maths", "min_quality": 1, "attempts": attempts}
    cfg = parse(BogusConfig, given, "t")
    with pytest.raises(DataError, match=r"left of 3: 3 × no rating \(the prompt has no reference\); all"):
        bogus.STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "t"))
