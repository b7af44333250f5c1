"""Which prompts are worth a label: each strategy against numbers derived by hand."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from transformers import AutoModelForCausalLM

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.feedback.choose import STEP, ChooseConfig, rank
from posttrain.feedback.choose_coverage import farthest_first, spread
from posttrain.feedback.choose_criteria import Found
from posttrain.feedback.judge import Verdict
from posttrain.feedback.judging import STEP as JUDGE
from posttrain.feedback.judging import JudgeConfig
from posttrain.formats import read_records, write_records
from posttrain.models.load import load_model
from posttrain.records import Comparison, Message, Prompt, Provenance, Response, Samples, prompt_key

TEXTS = [f"Question number {i}?" for i in range(6)]


class Scores(Config):
    """The score that the answer's text spells, before a bar; after it the members'. "?" is no answer."""

    calls: ClassVar[list[int]] = []

    def open(self):
        return self

    def score(self, items):
        self.calls.append(len(items))
        return [self.verdict(response.text) for _, response in items]

    def verdict(self, text):
        score, _, members = text.partition("|")
        parts = {f"m{i}": float(m) for i, m in enumerate(members.split())}
        if members:
            parts |= {"disagreement": 0.0}
        return Verdict(None, "too hard") if score == "?" else Verdict(float(score), parts=parts)


def sample(i: int, answers: list[str], name: str = "") -> Samples:
    prompt = Prompt(
        messages=(Message(role="user", content=TEXTS[i]),),
        provenance=Provenance(id=f"p{i}", makers={"text": "someone"}),
    )
    responses = tuple(
        Response(text=a.removesuffix("…"), token_ids=(1,), finish="length" if a.endswith("…") else "stop")
        for a in answers
    )
    return Samples(prompt=prompt, responses=responses, model="m", provenance=Provenance(id=name or f"s{i}"))


def choose(tmp_path, rows: list[Samples], out: str = "out", **fields: Any):
    """What was chosen (texts), the summary, and the lines about each prompt."""
    write_records(tmp_path / "samples.jsonl", rows)
    cfg = parse(ChooseConfig, {"data": str(tmp_path / "samples.jsonl"), **fields}, "test")
    folder = tmp_path / out
    folder.mkdir(exist_ok=True)
    summary = STEP.run(cfg, StepContext(folder, folder / "state", "test"))
    kept = read_records(folder / "rows.jsonl", Samples)
    lines = [json.loads(line) for line in (folder / "choice.jsonl").read_text().splitlines()]
    return kept, summary, lines


def ids(kept: list[Samples]) -> list[str]:
    return [row.provenance.id for row in kept]


JUDGE_BY = {"strategy": "near_ties", "judge": "test_choose:Scores"}


def test_near_ties_go_by_the_margin_of_best_and_worst(tmp_path):
    rows = [
        sample(0, ["5", "1", "4"]),  # 4
        sample(1, ["0.5", "0.25"]),  # 0.25
        sample(2, ["-3", "-1"]),  # 2
        sample(3, ["7", "7.125"]),  # 0.125
    ]
    kept, summary, lines = choose(tmp_path, rows, n=2, **JUDGE_BY)
    assert ids(kept) == ["s1", "s3"], "in the order of the rows"
    assert [line["value"] for line in lines] == [4, 0.25, 2, 0.125]
    assert [line["place"] for line in lines] == [None, 2, None, 1]
    assert (summary["prompts"], summary["chosen"], summary["wanted"]) == (4, 2, 2)
    assert summary["values"] == {"first": 0.125, "last": 0.25}
    assert kept[1].provenance.makers["choice"] == "near_ties 0.125 by test_choose:Scores, 1 of 2 from 4"
    assert kept[0].responses == rows[1].responses


def test_disagreement_is_the_spread_of_the_members_probabilities(tmp_path):
    """By the scores before the bar the first answer is best; the members' margins are given."""
    rows = [
        sample(0, ["1|0 0", "0|-2 2"]),  # margins 2, -2: sigmoids 0.8808, 0.1192
        sample(1, ["1|9 3", "0|0 0"]),  # 9, 3: both nearly sure, though their margins are farthest apart
        sample(2, ["1|1 1", "0|0 0"]),  # of one mind
    ]
    ask = {"strategy": "disagreement", "judge": "test_choose:Scores"}
    kept, _, lines = choose(tmp_path, rows, n=1, **ask)
    assert ids(kept) == ["s0"]
    sigmoid = [1 / (1 + math.exp(-m)) for m in (2, 9, 3)]
    assert lines[0]["value"] == pytest.approx((sigmoid[0] - (1 - sigmoid[0])) / 2)
    assert lines[1]["value"] == pytest.approx((sigmoid[1] - sigmoid[2]) / 2)
    assert lines[2]["value"] == pytest.approx(0)
    with pytest.raises(ConfigError, match=r"asks the members of an ensemble.*reward_ensemble"):
        choose(tmp_path, [sample(0, ["1", "2"])], out="plain", n=1, **ask)


def test_what_cannot_be_compared_is_counted_and_never_chosen(tmp_path):
    rows = [
        sample(0, ["1", "2…"]),  # one is cut off
        sample(1, ["3", "3"]),  # one answer, twice
        sample(2, ["1", "?"]),  # one score
        sample(3, ["1", "9", "?"]),  # two scores
    ]
    kept, summary, lines = choose(tmp_path, rows, n=4, **JUDGE_BY)
    assert ids(kept) == ["s3"]
    assert (summary["chosen"], summary["few_answers"], summary["unscored_prompts"]) == (1, 2, 1)
    assert (summary["cut_off"], summary["identical"], summary["no_answer"]) == (1, 1, 2)
    assert summary["unscored_reasons"] == {"too hard": 1}
    few = "too few answers that are whole and distinct"
    assert [line["why_not"] for line in lines] == [few, few, "too hard", ""]
    assert [line["value"] for line in lines] == [None, None, None, 8]
    with pytest.raises(DataError, match="not one prompt to choose"):
        choose(tmp_path, rows[:3], out="none", n=1, **JUDGE_BY)


def test_all_answers_to_a_prompt_count_together_whoever_gave_them(tmp_path):
    rows = [sample(0, ["1"], "a"), sample(1, ["1", "9"]), sample(0, ["2"], "b")]
    kept, summary, lines = choose(tmp_path, rows, n=1, **JUDGE_BY)
    assert ids(kept) == ["a", "b"]
    assert (summary["prompts"], summary["chosen"], summary["rows"]) == (2, 1, 2)
    assert lines[0]["rows"] == ["a", "b"]


@pytest.mark.parametrize("strategy", ["random", "near_ties", "coverage"])
def test_no_strategy_looks_at_the_order_of_rows(tmp_path, strategy, policy):
    """Equal margins, so that near ties are settled by lot, too."""
    rows = [sample(i, ["1", "2"]) for i in range(6)]
    more = {"near_ties": JUDGE_BY, "coverage": {"model": str(policy)}}.get(strategy, {})
    found = []
    for number, order in enumerate([rows, rows[::-1], rows[3:] + rows[:3]]):
        kept, _, _ = choose(tmp_path, order, str(number), n=3, **{"strategy": strategy} | more)
        assert len(kept) == 3
        found.append(set(ids(kept)))
    assert found[0] == found[1] == found[2]
    seeds = [
        set(ids(choose(tmp_path, rows, f"seed{s}", n=3, seed=s, **{"strategy": strategy} | more)[0]))
        for s in range(1, 6)
    ]
    assert any(some != found[0] for some in seeds)


def test_random_takes_every_prompt_as_often():
    keys = [prompt_key(sample(i, ["1", "2"]).prompt) for i in range(6)]
    taken = dict.fromkeys(keys, 0)
    for seed in range(600):
        cfg = parse(ChooseConfig, {"data": "x", "n": 2, "seed": seed}, "test")
        for one in rank(cfg, [Found(key) for key in keys])[:2]:
            taken[one.key] += 1
    assert max(abs(count - 200) for count in taken.values()) < 52  # 4.5 standard deviations


def test_an_interrupted_choice_does_not_ask_again(tmp_path, monkeypatch):
    from posttrain.feedback import choose as module

    monkeypatch.setattr(module, "_CHUNK", 2)
    rows = [sample(i, [str(i), str(2.5 * i + 1)]) for i in range(6)]
    calm, _, _ = choose(tmp_path, rows, "calm", n=3, **JUDGE_BY)
    ask, count = Scores.score, 0

    def stumble(self, items):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return ask(self, items)

    monkeypatch.setattr(Scores, "score", stumble)
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path, rows, "hit", n=3, **JUDGE_BY)
    hit, _, _ = choose(tmp_path, rows, "hit", n=3, **JUDGE_BY)
    assert count == 4, "two chunks, the third in vain, the third again"
    assert hit == calm


def placed(*points: tuple[float, float], near: list[float | None] | None = None) -> list[Found]:
    values = near or [None] * len(points)
    return [
        Found(str(i), value, "", np.array(point))
        for i, (point, value) in enumerate(zip(points, values, strict=True))
    ]


def test_farthest_first_by_hand():
    """On a line: 0, 1, 4, 10. From 0 the farthest is 10; then 4 is 4 from 0 and 6 from 10; then 1."""
    line = placed((0, 0), (1, 0), (4, 0), (10, 0))
    order = farthest_first(line, 3)
    assert [(one.key, one.value) for one in order] == [("0", None), ("3", 10), ("2", 4), ("1", 1)]
    # a centre is labelled at 10: then 0 is the farthest from it
    order = farthest_first(placed((0, 0), (1, 0), (4, 0), (10, 0), near=[10, 9, 6, 0]), 2)
    assert [(one.key, one.value) for one in order][:2] == [("0", 10), ("2", 4)]


def test_farthest_first_is_within_twice_the_best_radius():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(9, 2))
        found = placed(*map(tuple, points))
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        best = min(apart[:, list(some)].min(1).max() for some in itertools.combinations(range(9), 3))
        picked = [int(one.key) for one in farthest_first(found, 3)[:3]]
        assert apart[:, picked].min(1).max() <= 2 * best + 1e-12


def test_spread_takes_off_what_all_have_in_common():
    flat = spread(np.array([[100.0, 1.0], [100.0, -3.0], [100.0, 2.0]]))
    np.testing.assert_allclose(flat, [[0, 1], [0, -1], [0, 1]])
    np.testing.assert_allclose(spread(np.ones((2, 3))), np.zeros((2, 3)))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_folder("qwen2", tmp_path_factory.mktemp("policy") / "base")


def test_coverage_goes_by_the_mean_state_of_plain_transformers(tmp_path, policy):
    rows = [sample(i, ["1", "2"]) for i in range(6)]
    labelled = [sample(5, ["x"]).prompt]
    write_records(tmp_path / "labelled.jsonl", labelled)
    ask = {"strategy": "coverage", "model": str(policy), "labelled": str(tmp_path / "labelled.jsonl")}
    kept, _, lines = choose(tmp_path, rows, n=2, precision="float32", **ask)
    template = load_model(policy, dtype=torch.float32).template
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    states = []
    for row in rows:
        ids_ = torch.tensor([template.prompt(row.prompt.messages)])
        with torch.inference_mode():
            states.append(
                model(ids_, output_hidden_states=True).hidden_states[-1][0].double().mean(0).numpy()
            )
    points = np.array(states) - np.mean(states, 0)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    first = int(apart[5].argmax())
    second = int(np.minimum(apart[5], apart[first]).argmax())
    places = {line["rows"][0]: (line["place"], line["value"]) for line in lines}
    assert places[f"s{first}"] == (1, pytest.approx(apart[5, first], rel=1e-4))
    assert places[f"s{second}"] == (2, pytest.approx(min(apart[5, second], apart[first, second]), rel=1e-4))
    assert sorted(ids(kept)) == sorted([f"s{first}", f"s{second}"])
    assert places["s5"][1] == pytest.approx(0, abs=1e-6)


def test_a_prompt_the_model_does_not_take_is_not_placed(tmp_path):
    short = tiny_folder("qwen2", tmp_path / "short", tokenizer=tiny_tokenizer(), max_position_embeddings=24)
    rows = [sample(i, ["1", "2"]) for i in range(3)]
    long = Message(role="user", content="river " * 40)
    rows[1] = rows[1].model_copy(update={"prompt": rows[1].prompt.model_copy(update={"messages": (long,)})})
    kept, summary, lines = choose(tmp_path, rows, n=3, strategy="coverage", model=str(short))
    assert ids(kept) == ["s0", "s2"]
    assert summary["unscored_reasons"] == {"longer than the model takes": 1}
    assert lines[1]["why_not"] == "longer than the model takes"


def test_settings_that_do_not_go_together_are_refused():
    for match, fields in (
        ("'judge' is missing: near_ties goes by a judge", {"strategy": "near_ties"}),
        ("'model' is missing", {"strategy": "coverage"}),
        ("'judge' is set, but random makes no use of it", {"judge": "test_choose:Scores"}),
        ("'model' is set, but near_ties", {**JUDGE_BY, "model": "x"}),
        ("'labelled' is set, but random", {"labelled": "x"}),
        ("'precision' is set, but random", {"precision": "float32"}),
        ("needs 2 or more", {**JUDGE_BY, "min_answers": 1}),
    ):
        with pytest.raises(ConfigError, match=match):
            parse(ChooseConfig, {"data": "x", "n": 1, **fields}, "test")


def test_what_is_chosen_can_be_judged_and_says_where_it_comes_from(tmp_path):
    rows = [sample(0, ["5", "1"]), sample(1, ["0.5", "0.25"])]
    choose(tmp_path, rows, n=1, **JUDGE_BY)
    cfg = parse(JudgeConfig, {"data": str(tmp_path / "out"), "judge": "test_choose:Scores"}, "test")
    (tmp_path / "pairs").mkdir()
    JUDGE.run(cfg, StepContext(tmp_path / "pairs", tmp_path / "pairs/state", "test"))
    (pair,) = read_records(tmp_path / "pairs", Comparison)
    assert prompt_key(pair.prompt) == prompt_key(rows[1].prompt)
    assert pair.provenance.parents == ("s1",)
