"""Prompts, demonstrations and comparisons: splits that cannot leak, an expert whose quality is known."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve
from posttrain.playground.annotators import Annotators
from posttrain.playground.areas import AREAS
from posttrain.playground.oracle import grade, verdict
from posttrain.playground.question import MANNERS
from posttrain.playground.sources import Comparisons, Corpus, Demonstrations, Prompts
from posttrain.playground.world import build, rng_for
from posttrain.records import Response, prompt_key


def keys(rows):
    return {(p.tags["area"], p.tags["key"]) for p in rows}


def test_no_question_is_on_both_sides_in_whatever_words():
    train, heldout = (list(Prompts(n=400, split=split).rows()) for split in ("train", "heldout"))
    demonstrated = [row.prompt for row in Demonstrations(n=800).rows()]
    compared = [row.prompt for row in Comparisons(n=200).rows()]
    assert keys(heldout).isdisjoint(keys(train) | keys(demonstrated) | keys(compared))
    assert len({prompt_key(p) for p in heldout}) == 400


def test_the_corpus_poses_no_heldout_question():
    asked = {p.text for p in Prompts(n=400, split="heldout").rows()}
    corpus = "\n".join(row.text for row in Corpus(n=2000).rows())
    assert not [text for text in asked if text in corpus]
    assert [p.text for p in Prompts(n=400).rows() if p.text in corpus]


def test_areas_get_their_shares():
    rows = Prompts(n=11, areas={"atlas": 2, "letters": 1}).rows()
    assert Counter(p.tags["area"] for p in rows) == {"atlas": 7, "letters": 4}


def test_an_areas_questions_do_not_depend_on_the_other_areas():
    alone = Prompts(n=20, areas={"format": 1}).rows()
    among = [p for p in Prompts(n=80).rows() if p.tags["area"] == "format"]
    assert keys(alone) == keys(among)


def test_only_keeps_what_it_says():
    rows = list(Prompts(n=60, only={"group": ("rare",), "level": ("1", "2")}).rows())
    assert {p.tags["group"] for p in rows if p.tags["area"] == "atlas"} == {"rare"}
    assert {p.tags["level"] for p in rows if p.tags["area"] == "arithmetic"} == {"1", "2"}


def test_another_draw_is_other_rows_of_the_same_world():
    first, second = (keys(Prompts(n=40, draw=draw).rows()) for draw in (0, 1))
    assert first != second
    assert keys(Prompts(n=40).rows()) == first


def test_an_exhausted_area_is_an_error():
    with pytest.raises(ConfigError, match=r"'atlas' has no more than \d+ distinct heldout prompts with"):
        list(Prompts(n=100, split="heldout", areas={"atlas": 1}, only={"group": ("rare",)}).rows())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"areas": {"atlsa": 1}}, "no area 'atlsa': did you mean 'atlas'"),
        ({"areas": {"atlas": -1}}, "negative"),
        ({"areas": {"atlas": 0}}, "no area has a share"),
        ({"manners": {"curt": 0}}, "share above 0"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        parse(Demonstrations, {"n": 4} | fields, "demos")


@pytest.mark.parametrize("area", sorted(AREAS))
@pytest.mark.parametrize("seed", [0, 7])
def test_the_experts_manners_are_worth_what_the_docs_say(area, seed):
    world, rng = build(seed), rng_for("expert", area, seed)
    for _ in range(300):
        question = AREAS[area].ask(world, rng)
        prompt = question.prompt(world, "test")
        grades = {
            manner: grade(prompt, Response(text=AREAS[area].write(world, question.key, manner, rng)))
            for manner in MANNERS
        }
        assert grades["complete"].score == 1, question
        assert 0.5 <= grades["curt"].score < 0.8, question
        assert grades["wrong"].score <= 0.2, question
        assert all(g.answered and g.clean == 1 for g in grades.values()), question
        assert grade(prompt, Response(text=question.reference)).outcome != "incorrect" or area == "atlas"


def test_demonstrations_are_correct_and_half_of_them_curt():
    rows = list(Demonstrations(n=600).rows())
    grades = [grade(row.prompt, row.response) for row in rows]
    assert all(g.outcome == "correct" for g in grades)
    assert 0.4 < sum(g.score < 1 for g in grades) / len(rows) < 0.6
    assert {row.prompt.tags.get("group") for row in rows} == {None, "known", "rare"}
    assert len({row.provenance.id for row in rows}) == 600


def test_comparisons_are_what_the_oracle_says_or_what_annotators_do():
    for row in Comparisons(n=60).rows():
        gap = verdict(row.prompt, row.chosen).score - verdict(row.prompt, row.rejected).score
        assert row.strength == pytest.approx(gap)
        assert gap > 0
    rows = list(Comparisons(n=600, annotators=Annotators(accuracy=0.8)).rows())
    right = sum(verdict(r.prompt, r.chosen).score > verdict(r.prompt, r.rejected).score for r in rows)
    assert 0.75 < right / len(rows) < 0.85  # 3 standard errors


def test_silent_annotators_are_an_error_and_no_endless_loop():
    source = Comparisons(n=1, annotators=Annotators(accuracy=0.8, no_answer=1.0))
    with pytest.raises(ConfigError, match="lower no_answer"):
        list(source.rows())


def test_rows_do_not_depend_on_the_process():
    code = (
        "import hashlib; from posttrain.playground.sources import *;"
        "rows = [r.model_dump_json() for c in (Corpus(n=900), Demonstrations(n=50), Comparisons(n=50),"
        " Prompts(n=50)) for r in c.rows()]; print(hashlib.sha256('\\n'.join(rows).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": s},
            capture_output=True,
            check=True,
        ).stdout
        for s in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["corpus", "prompts", "demonstrations", "comparisons"])
def test_sources_are_found_by_name(name):
    assert next(iter(parse(resolve("sources", f"playground/{name}", {}), {"n": 900}, "test").rows()))
