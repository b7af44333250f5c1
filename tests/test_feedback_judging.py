"""The `judge` step: who beats whom, and what becomes of ties, cut-off samples and judges that say nothing."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError, PosttrainError
from posttrain.common.step import StepContext
from posttrain.feedback import judging
from posttrain.feedback.judge import Preference, Verdict
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.feedback.maths.judge import Maths
from posttrain.feedback.pairing import Candidate, by_preference, by_score
from posttrain.formats.write import write_records
from posttrain.records import (
    ROW,
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Provenance,
    Response,
    Samples,
)


class Length(Config):
    """Longer is better; says nothing of texts with a '?'. short: a part that likes the opposite."""

    asked: int = 10**9

    def open(self) -> LengthJudge:
        return LengthJudge(self.asked)


class LengthJudge:
    def __init__(self, asked: int) -> None:
        self.left = asked

    def score(self, items):
        self.left -= len(items)
        if self.left < 0:
            raise KeyboardInterrupt
        return [
            Verdict(None, "puzzled") if "?" in r.text else Verdict(len(r.text), "", {"short": -len(r.text)})
            for _, r in items
        ]


class First(Config):
    """Compares, and likes what stands first with probability p."""

    p: float | None = 0.75

    def open(self):
        return FirstJudge(self.p)


class FirstJudge:
    def __init__(self, p) -> None:
        self.p = p

    def compare(self, items):
        return [Preference(self.p, "" if self.p is not None else "asleep") for _ in items]


class Broken(Config):
    kind: str

    def open(self):
        return BrokenJudge(self.kind)


class BrokenJudge:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def score(self, items):
        return [] if self.kind == "short" else [Verdict(math.nan) for _ in items]


def ask(name: str) -> Prompt:
    messages = (Message(role="user", content=f"Say {name}"),)
    return Prompt(provenance=Provenance(id=name, licence="MIT", makers={"prompt": "anna"}), messages=messages)


def samples(name: str, *texts: str, row: str = "", cut_off: tuple[str, ...] = ()) -> Samples:
    responses = tuple(
        Response(
            text=text,
            token_ids=(5, len(text) + 1, 2),
            logps=(-1.0, -2.0, -0.5),
            finish="length" if text in cut_off else "stop",
        )
        for text in texts
    )
    makers = {"response": "sft-1, temperature 1.0"}
    provenance = Provenance(id=row or f"s-{name}", makers=makers, parents=(name,))
    return Samples(provenance=provenance, prompt=ask(name), responses=responses, model="sft-1")


def run(folder: Path, rows, judge: Config | str | dict, **fields):
    write_records(folder / "data.jsonl", rows)
    cfg = parse(JudgeConfig, {"data": str(folder / "data.jsonl"), "judge": judge} | fields, "test")
    summary = STEP.run(cfg, StepContext(folder / "out", folder / "state", "judge"))
    lines = (folder / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [ROW.validate_json(line) for line in lines]


def sides(rows):
    return [(row.chosen.text, row.rejected.text) for row in rows]


def test_the_best_is_chosen_over_the_worst(tmp_path):
    row = samples("a", "xx", "xxxx", "x", "xxx")
    _, made = run(tmp_path, [row], Length())
    assert sides(made) == [("xxxx", "x")]
    assert made[0].strength == 3.0
    assert made[0].probability is None
    assert made[0].chosen == row.responses[1]  # tokens and log-probs as they were sampled
    assert made[0].judge == f"{__name__}:Length"
    provenance = made[0].provenance
    assert provenance.parents == ("s-a",)
    assert provenance.licence == "MIT"
    assert provenance.makers == {
        "prompt": "anna",
        "chosen": "sft-1, temperature 1.0",
        "rejected": "sft-1, temperature 1.0",
        "preference": f"{__name__}:Length",
    }


def test_nothing_that_is_no_preference_becomes_one(tmp_path):
    rows = [
        samples("tie", "ab", "cd"),
        samples("same", "ab", "ab"),
        samples("puzzle", "what?", "ab"),
        samples("cut", "abcdef", "ab", cut_off=("abcdef",)),
        samples("close", "abc", "ab"),
        samples("good", "abcd", "ab", "ab", "why?", "abcdefgh", cut_off=("abcdefgh",)),
    ]
    summary, made = run(tmp_path, rows, Length(), min_gap=2)
    assert sides(made) == [("abcd", "ab")]
    assert summary == {
        "judge": f"{__name__}:Length",
        "prompts": 6,
        "responses": 15,
        "comparisons": 1,
        "cut_off": 2,
        "no_answer": 2,
        "rejected": 0,
        "ties": 1,
        "too_close": 1,
        "identical": 2,
        "unpaired": 5,
        "no_answer_reasons": {"puzzled": 2},
    }


def test_reasons_are_counted_without_the_answers_they_quote(tmp_path):
    rows = []
    for i in range(8):
        row = samples(f"q{i}", f"The answer is not {i}, is it.", f"The answer is {i} m.", f"{i} km")
        prompt = row.prompt.model_copy(update={"reference": f"{i} km"})
        rows.append(row.model_copy(update={"prompt": prompt}))
    summary, _ = run(tmp_path, rows, Maths(), to="ratings")
    assert summary["no_answer_reasons"] == {
        "the answer cannot be read as mathematics": 8,
        "units differ, 'km' and 'meter'": 8,
    }


def test_all_pairs(tmp_path):
    summary, made = run(tmp_path, [samples("a", "x", "xxx", "xx", "yy")], Length(), pairs="all")
    assert sorted(sides(made)) == [("xx", "x"), ("xxx", "x"), ("xxx", "xx"), ("xxx", "yy"), ("yy", "x")]
    assert summary["ties"] == 1
    assert len({row.provenance.id for row in made}) == 5


def test_random_pairs_follow_the_seed(tmp_path):
    rows = [samples(f"p{i}", "x", "xx", "xxx") for i in range(12)]
    found = {}
    for n, seed in enumerate((1, 1, 2)):
        summary, made = run(tmp_path / str(n), rows, Length(), pairs="random", seed=seed)
        assert summary["comparisons"] == 12
        assert all(len(better) > len(worse) for better, worse in sides(made))
        found[n] = sides(made)
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 3
    _, alone = run(tmp_path / "alone", rows[5:6], Length(), pairs="random", seed=1)
    assert sides(alone) == found[0][5:6]


def test_one_aspect(tmp_path):
    _, made = run(tmp_path / "a", [samples("a", "x", "xxx")], Length(), aspect="short")
    assert sides(made) == [("x", "xxx")]
    assert made[0].aspect == "short"
    with pytest.raises(DataError, match=r"no part 'shrt' \(parts: short\)"):
        run(tmp_path / "b", [samples("a", "x", "xxx")], Length(), aspect="shrt")


def test_samples_of_several_models_to_one_prompt_meet(tmp_path):
    rows = [samples("a", "x", "xx", row="one"), samples("b", "x"), samples("a", "xxxx", row="two")]
    summary, made = run(tmp_path, rows, Length())
    assert sides(made) == [("xxxx", "x")]
    assert made[0].provenance.parents == ("two", "one")
    assert summary["unpaired"] == 1


def test_comparisons_are_judged_anew_one_by_one(tmp_path):
    pairs = [
        Comparison(
            provenance=Provenance(id=f"c{i}", makers={"chosen": "bob"}),
            prompt=ask("a"),
            chosen=Response(text=chosen),
            rejected=Response(text=rejected),
        )
        for i, (chosen, rejected) in enumerate([("x", "xx"), ("xxx", "x")])
    ]
    _, made = run(tmp_path, pairs, Length())
    assert sides(made) == [("xx", "x"), ("xxx", "x")]
    assert [row.provenance.parents for row in made] == [("c0",), ("c1",)]
    assert made[0].provenance.makers.get("chosen") is None
    assert made[0].provenance.makers["rejected"] == "bob"


def test_a_real_probability_travels_and_a_mere_winner_does_not(tmp_path):
    rows = [samples(f"p{i}", "x", "xx") for i in range(40)]
    _, made = run(tmp_path / "soft", rows, First(p=0.75), pairs="all")
    assert {row.probability for row in made} == {0.75}
    assert all(row.strength is None for row in made)
    # The judge always prefers what stands first; who that is was left to chance.
    first = Counter(sides(made))
    assert set(first) == {("x", "xx"), ("xx", "x")}
    assert min(first.values()) >= 10
    _, made = run(tmp_path / "hard", rows, First(p=0.0), pairs="random")
    assert {row.probability for row in made} == {None}
    assert len(made) == 40


def test_comparing_judges_tie_and_fall_silent_too(tmp_path):
    rows = [samples("a", "x", "xx", "xxx")]
    for p, counted in ((0.5, "ties"), (None, "no_answer"), (0.6, "too_close")):
        with pytest.raises(DataError, match=f"'{counted}': 3"):
            run(tmp_path / counted, rows, First(p=p), pairs="all", min_gap=0.5)


def test_a_judge_that_only_compares_is_not_asked_for_more():
    use = {"data": "d", "judge": First()}
    for fields in ({"to": "ratings"}, {"pairs": "best_worst"}):
        with pytest.raises(ConfigError, match="compares and does not score"):
            judging._opened(parse(JudgeConfig, use | fields, "test"), None)


def test_a_judge_that_compares_is_asked_for_an_aspect_it_may_not_have(tmp_path):
    rows = [samples("a", "x", "xx")]
    with pytest.raises(DataError, match=r"\"no part 'short' \(parts: none\)\": 1"):
        run(tmp_path, rows, First(), pairs="all", aspect="short")


def test_ratings_keep_the_third_state(tmp_path):
    rows = [samples("a", "xx", "what?", "xxx", cut_off=("xxx",))]
    summary, made = run(tmp_path, rows, Length(), to="ratings")
    assert [row.scores for row in made] == [
        {"overall": 2.0, "short": -2.0},
        {"overall": None},
        {"overall": None},
    ]
    assert [row.response for row in made] == list(rows[0].responses)
    assert made[0].provenance.makers["rating"] == made[0].judge == f"{__name__}:Length"
    assert len({row.provenance.id for row in made}) == 3
    assert (summary["ratings"], summary["cut_off"], summary["no_answer"]) == (3, 1, 1)


def test_ratings_of_demonstrations(tmp_path):
    row = Demonstration(provenance=Provenance(id="d"), prompt=ask("a"), response=Response(text="xx"))
    _, made = run(tmp_path, [row], Length(), to="ratings")
    assert made[0].scores["overall"] == 2.0
    with pytest.raises(DataError, match="not one of the comparisons"):
        run(tmp_path / "b", [row], Length())


def test_rows_without_responses_are_refused(tmp_path):
    with pytest.raises(DataError, match="prompts hold no responses"):
        run(tmp_path, [ask("a")], Length())


def test_settings_that_ratings_would_ignore_are_refused():
    with pytest.raises(ConfigError, match="'min_gap' is set"):
        parse(JudgeConfig, {"data": "d", "judge": "exact_match", "to": "ratings", "min_gap": 1}, "test")


def test_a_broken_judge_is_not_believed(tmp_path):
    rows = [samples("a", "x", "xx")]
    with pytest.raises(PosttrainError, match="gave 0 answers to 2 questions"):
        run(tmp_path / "a", rows, Broken(kind="short"))
    with pytest.raises(DataError, match="not a finite number"):
        run(tmp_path / "b", rows, Broken(kind="nan"))


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "_CHUNK", 2)
    rows = [samples(f"p{i}", "x", "x" * (i + 2), "why?") for i in range(5)]
    whole = run(tmp_path / "whole", rows, Length())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", rows, Length(asked=12))
    assert not (tmp_path / "killed" / "out" / "rows.jsonl").exists()
    # Only the last prompt is left: three questions.
    again = run(tmp_path / "killed", rows, Length(asked=3))
    assert again[0] == whole[0]
    assert sides(again[1]) == sides(whole[1])


SCORES = st.lists(st.none() | st.integers(-3, 3).map(float), min_size=0, max_size=6)


@given(
    scores=SCORES, pairs=st.sampled_from(["best_worst", "all", "random"]), min_gap=st.sampled_from([0.0, 2.0])
)
def test_every_pair_is_ordered_and_every_loss_counted(scores, pairs, min_gap):
    candidates = [Candidate(Response(text=f"r{i}"), "row") for i in range(len(scores))]
    counts: Counter[str] = Counter()
    verdicts = [Verdict(score) for score in scores]
    found = by_score(candidates, verdicts, pairs, min_gap, random.Random(0), counts)
    score_of = {c.response.text: s for c, s in zip(candidates, scores, strict=True)}
    for pair in found:
        better, worse = score_of[pair.chosen.response.text], score_of[pair.rejected.response.text]
        assert better - worse == pair.strength > 0
        assert pair.strength >= min_gap
    answered = sum(score is not None for score in scores)
    proposed = math.comb(answered, 2) if pairs == "all" else int(answered >= 2)
    assert counts["no_answer"] == len(scores) - answered
    assert len(found) + counts["ties"] + counts["too_close"] == proposed


@given(p=st.none() | st.floats(0, 1), min_gap=st.sampled_from([0.0, 0.3]))
def test_a_preference_is_the_same_from_both_sides(p, min_gap):
    one, two = Candidate(Response(text="a"), "r"), Candidate(Response(text="b"), "r")
    counts: Counter[str] = Counter()
    pair = by_preference(one, two, Preference(p), min_gap, counts)
    turned = by_preference(two, one, Preference(None if p is None else 1 - p), min_gap, counts)
    if pair is None or turned is None:
        # 1 - p may round onto the tie or the gap's edge
        assert pair is turned or (p is not None and abs(abs(2 * p - 1) - min_gap) < 1e-9)
    else:
        assert pair.chosen == turned.chosen
        assert pair.probability == pytest.approx(turned.probability)
        assert pair.probability is None or 0.5 < pair.probability < 1


def test_rows_are_json_lines_other_steps_can_read(tmp_path):
    run(tmp_path, [samples("a", "x", "xx")], Length())
    row = json.loads((tmp_path / "out" / "rows.jsonl").read_text("utf-8"))
    assert row["kind"] == "comparison"
    assert row["chosen"]["token_ids"] == [5, 3, 2]
