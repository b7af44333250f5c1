"""The step `pivotal`: a real model and judge, token-exact pairs with their evidence, and kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import tiny_folder

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.engines.local import LocalEngine
from posttrain.feedback.judge import Verdict
from posttrain.feedback.pivotal.betting import interval
from posttrain.feedback.pivotal.grading import Grading, Question
from posttrain.feedback.pivotal.ledger import shared_tokens
from posttrain.feedback.pivotal.roller import EngineRoller
from posttrain.feedback.pivotal.rollouts import Ask
from posttrain.feedback.pivotal.step import STEP, PivotalConfig
from posttrain.feedback.verifiers import Pattern, PatternJudge
from posttrain.formats.write import write_records
from posttrain.models.load import load_model
from posttrain.models.load_tokenizer import tokenizer_hash
from posttrain.models.spec import ModelSpec
from posttrain.records import Comparison, ImagePart, Message, Prompt, Provenance

ENDS = list(range(2, 80))  # tokens that end an answer: a model of random weights is soon done
VOWELS = {"name": "pattern", "pattern": "[aeiou]"}
FILES = ("rows.jsonl", "trajectories.jsonl", "questions.jsonl", "rejected.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tiny_folder("qwen2", tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=96)
    generation = path / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"eos_token_id": ENDS}))
    return path


def ask(name: str, text: str) -> Prompt:
    return Prompt(
        provenance=Provenance(id=name, source="made by hand", licence="MIT"),
        messages=(Message(role="user", content=text),),
    )


PROMPTS = [ask(f"q{i}", f"What is {i} + {3 * i}?") for i in range(6)]


def configured(home: Path, folder: Path, **fields: Any) -> PivotalConfig:
    write_records(home / "prompts.jsonl", PROMPTS)
    given = {
        "model": str(folder),
        "prompts": str(home / "prompts.jsonl"),
        "judge": VOWELS,
        "precision": "float32",
        "sampling": {"max_new_tokens": 12},
        "rollouts": 8,
        "max_rollouts": 32,
        "confirm_rollouts": 128,
        "trajectories": 2,
    }
    return parse(PivotalConfig, given | fields, "test")


def run(home: Path, cfg: PivotalConfig, name: str = "out") -> dict[str, Any]:
    return STEP.run(cfg, StepContext(home / name, home / f"{name}-state", "pivotal"))


@pytest.fixture(scope="module")
def done(tmp_path_factory, folder) -> tuple[Path, PivotalConfig, dict[str, Any]]:
    home = tmp_path_factory.mktemp("pivotal")
    cfg = configured(home, folder)
    return home, cfg, run(home, cfg)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_pairs_are_token_exact_and_carry_their_evidence(done, folder):
    home, _, summary = done
    rows = [Comparison.model_validate(line) for line in lines(home / "out/rows.jsonl")]
    answers = lines(home / "out/trajectories.jsonl")
    assert len(rows) == summary["comparisons"] > 0
    model = load_model(ModelSpec(path=str(folder)), dtype=torch.float32)
    texts = {p.provenance.id: p for p in PROMPTS}
    for row in rows:
        ids = model.template.prompts([texts[row.prompt.provenance.id].messages])[0]
        said = row.prompt_token_ids[len(ids) :]
        assert list(row.prompt_token_ids[: len(ids)]) == list(ids)
        mine = [
            a
            for a in answers
            if tuple(a["token_ids"][: len(said)]) == said and a["id"] == row.prompt.provenance.id
        ]
        assert any(
            a["token_ids"][len(said)] in (*row.chosen.token_ids, *row.rejected.token_ids) for a in mine
        )
        assert len(row.chosen.token_ids) == len(row.rejected.token_ids) == 1
        assert row.tokenizer == tokenizer_hash(model.tokenizer)
        e = row.evidence
        assert e["p_rejected"] < e["p_before"] < e["p_chosen"]
        assert row.strength == pytest.approx(e["p_chosen"] - e["p_rejected"])
        for name in ("p_before", "p_chosen", "p_rejected", "change", "between"):
            assert e[f"{name}_low"] <= e[name] <= e[f"{name}_high"]
        # what is claimed: p changes by more than 0.2 at the pivot
        assert max(e["change_low"], -e["change_high"]) > 0.15
        assert row.provenance.parents == (row.prompt.provenance.id,)
        assert (row.provenance.source, row.provenance.licence) == ("made by hand", "MIT")
        assert e["between"] > 0  # in favour of what was chosen
        for name in ("p_before", "p_chosen", "p_rejected"):
            right = round(e[name] * e[f"{name}_n"])
            ends = interval({1: right, 0: int(e[f"{name}_n"]) - right}, 0, 1, 0.05)
            assert (e[f"{name}_low"], e[f"{name}_high"]) == pytest.approx(ends)


def test_a_pair_holds_on_a_thousand_more_rollouts(done, folder):
    # p(success) of the two tokens of a pair, by plain rollouts of their own
    home, _, _ = done
    row = Comparison.model_validate(lines(home / "out/rows.jsonl")[0])
    model = load_model(ModelSpec(path=str(folder)), dtype=torch.float32)
    grading = Grading(PatternJudge(Pattern(pattern="[aeiou]")), "pattern", 1.0, "exclude", "exclude")
    (ids,) = model.template.prompts([row.prompt.messages])
    said = row.prompt_token_ids[len(ids) :]
    roller = EngineRoller(
        [Question(row.prompt, tuple(ids))], LocalEngine(model), model.template, grading,
        configured(home, folder).sampling, home / "more", "more",
    )  # fmt: skip
    arms = {"p_before": (), "p_chosen": row.chosen.token_ids, "p_rejected": row.rejected.token_ids}
    going = {name: token for name, token in arms.items() if not {*token} & {*ENDS}}
    assert len(going) >= 2  # a token that ends the answer needs no rollouts
    asks = [Ask(0, (*said, *token), 1000, "confirm") for token in going.values()]
    for name, some in zip(going, roller(asks), strict=True):
        known = [r.success for r in some if r.success is not None]
        share = sum(known) / len(known)
        assert row.evidence[f"{name}_low"] - 0.05 <= share <= row.evidence[f"{name}_high"] + 0.05


def test_the_ledger_and_the_summary_add_up(done):
    home, _, summary = done
    ledger = json.loads((home / "out/ledger.json").read_text())
    assert ledger == summary["ledger"]
    assert sum(ledger["rollouts_by_phase"].values()) == ledger["rollouts"]
    assert 0 < ledger["oracle_calls"] < ledger["rollouts"]  # equal answers are judged once
    assert ledger["tokens_prefilled"] < ledger["tokens_prefilled_if_not_shared"]
    assert ledger["tokens_decoded"] >= ledger["rollouts"]
    assert ledger["outcomes_reused"] > 0
    assert ledger["confirmed_pivots"] == summary["confirmed"]
    each = ledger["a_confirmed_pivot"]
    assert each["rollouts"] == pytest.approx(ledger["rollouts"] / summary["confirmed"], abs=0.1)
    assert sum(summary["states"].values()) == summary["questions"] == 6
    assert summary["confirmed"] + summary["refuted"] + summary["not_clear"] == summary["candidates"]


def test_trajectories_spell_the_answer_and_know_p_along_it(done):
    home, _, _ = done
    answers = lines(home / "out/trajectories.jsonl")
    for answer in answers:
        points = answer["points"]
        assert len(answer["pieces"]) == len(answer["token_ids"]) > 0
        assert points[0]["after"] == 0
        assert points[-1]["after"] == len(answer["token_ids"])
        assert points[-1]["p"] == float(answer["success"])  # after the whole answer nothing is open
        for point in points:
            assert point["p_low"] <= point["p"] <= point["p_high"]


def test_a_candidate_stands_in_every_answer_that_goes_its_way(done):
    home, _, summary = done
    answers = lines(home / "out/trajectories.jsonl")
    found = {(a["id"], *a["token_ids"][: p["at"] + 1]): p for a in answers for p in a["pivots"]}
    assert len(found) == summary["candidates"]
    shared = 0
    for answer in answers:
        at = {p["at"]: p for p in answer["pivots"]}
        assert list(at) == sorted(at)
        for i in range(len(answer["token_ids"])):
            assert at.get(i) == found.get((answer["id"], *answer["token_ids"][: i + 1]))
        shared += len(at)
    assert shared >= len(found)


class Killed(BaseException):
    pass


def test_a_killed_step_pays_nothing_twice_and_gives_the_same(tmp_path, done, monkeypatch):
    home, cfg, summary = done
    made = []
    whole = LocalEngine.generate

    def until(limit: int):
        def generate(self, prompts, params, *more):
            if len(made) == limit:
                raise Killed
            made.append(params.seed)
            return whole(self, prompts, params, *more)

        return generate

    for limit in (1, 3, 6):
        monkeypatch.setattr(LocalEngine, "generate", until(limit))
        with pytest.raises(Killed):
            run(tmp_path, cfg)
    monkeypatch.setattr(LocalEngine, "generate", until(10**9))
    again = run(tmp_path, cfg)
    assert len(made) == len(set(made))  # each level was sampled once
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (home / "out" / name).read_bytes()
    assert {k: v for k, v in again.items() if k != "ledger"} == {
        k: v for k, v in summary.items() if k != "ledger"
    }
    assert again["ledger"]["rollouts"] == summary["ledger"]["rollouts"]
    assert again["ledger"]["oracle_calls"] == summary["ledger"]["oracle_calls"]


class Counting:
    """Right where the answer has an even number of tokens; cannot tell of one token."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def score(self, items):
        self.asked += [response.token_ids for _, response in items]
        return [
            Verdict(None, "too short") if len(r.token_ids) == 1 else Verdict(float(len(r.token_ids) % 2 == 0))
            for _, r in items
        ]


class OnlyCompares(Config):
    def open(self) -> OnlyCompares:
        return self

    def compare(self, items):
        raise AssertionError("asked")


@pytest.mark.parametrize(("no_answer", "truncated"), [("exclude", "exclude"), ("failure", "failure")])
def test_an_answer_is_a_prefix_and_its_continuation_and_has_one_length(
    tmp_path, folder, no_answer, truncated
):
    model = load_model(ModelSpec(path=str(folder)), dtype=torch.float32)
    (ids,) = model.template.prompts([PROMPTS[0].messages])
    judge = Counting()
    sampling = PivotalConfig.model_fields["sampling"].default.model_copy(update={"max_new_tokens": 4})
    roller = EngineRoller(
        [Question(PROMPTS[0], tuple(ids))], LocalEngine(model), model.template,
        Grading(judge, "counting", 1.0, no_answer, truncated), sampling, tmp_path, "test",
    )  # fmt: skip
    (short, long) = roller([Ask(0, (), 64, "filter"), Ask(0, (100, 101, 102), 64, "search")])
    for prefix, some in (((), short), ((100, 101, 102), long)):
        for r in some:
            length = len(prefix) + len(r.tokens)
            assert length <= 4
            assert r.whole == (r.tokens[-1] in ENDS)
            if not r.whole:
                assert (length, r.reason, r.success) == (
                    4,
                    "cut off",
                    None if truncated == "exclude" else False,
                )
            elif length == 1:
                assert (r.reason, r.success) == ("too short", None if no_answer == "exclude" else False)
            else:
                assert (r.reason, r.success) == ("", length % 2 == 0)
            assert len(r.logps) == (0 if prefix else len(r.tokens))
    assert len(judge.asked) == len(set(judge.asked)) == roller.ledger.counts["oracle_calls"]
    assert roller.ledger.counts["cut_off"] == sum(not r.whole for r in (*short, *long)) > 0
    assert roller.ledger.counts["no_answer"] == sum(r.reason == "too short" for r in short) > 0
    # a whole answer, and one with no room left, are not rolled out, and cost nothing
    end = next(r.tokens for r in short if r.whole and r.reason == "")
    before = roller.ledger.counts["rollouts"]
    over, full = roller([Ask(0, end, 8, "search"), Ask(0, (100,) * 4, 8, "search")])
    assert [(r.tokens, r.success) for r in over] == [((), len(end) % 2 == 0)] * 8
    assert {(r.tokens, r.reason, r.whole) for r in full} == {((), "cut off", False)}
    assert roller.ledger.counts["rollouts"] == before


def test_shared_tokens_by_hand():
    assert shared_tokens([(1, 2, 3), (1, 2), (1, 2, 3), (1, 4), (5,)]) == 5
    assert shared_tokens([]) == 0


def test_what_cannot_work_is_refused_before_it_runs(tmp_path, folder):
    for fields, told in [
        ({"sampling": {"n": 4}}, "'n' is set"),
        ({"sampling": {"stop": ["."]}}, "'stop' is set"),
        ({"sampling": {"temperature": 0}}, "one answer only"),
        ({"low": 0.9}, "above high"),
        ({"max_rollouts": 20}, "no multiple"),
        ({"confirm_rollouts": 4}, "less than rollouts"),
        ({"model": None}, "'model' is missing"),
        ({"engine": {"name": "http", "base_url": "http://x", "model": "m"}}, "http gives texts"),
        ({"engine": "vllm", "batch_tokens": 9}, "'batch_tokens' is set, and engine vllm takes none"),
    ]:
        with pytest.raises((ConfigError, ValidationError), match=told):
            configured(tmp_path, folder, **fields)
    pairs = f"{__name__}:OnlyCompares"
    with pytest.raises(ConfigError, match="only compares"):
        run(tmp_path, configured(tmp_path, folder, judge=pairs))
    short = configured(tmp_path, folder, max_rejected=1.0)
    write_records(tmp_path / "prompts.jsonl", [ask("long", "What is " + "12 + 30 + " * 60)])
    with pytest.raises(DataError, match="no prompt to search"):
        run(tmp_path, short, "long")


def test_a_prompt_that_cannot_be_asked_is_put_aside_with_its_reason(tmp_path, folder):
    image = ImagePart(image="data:image/png;base64,AAAA")
    seen = Prompt(provenance=Provenance(id="seen"), messages=(Message(role="user", content=(image,)),))
    cfg = configured(tmp_path, folder, max_rejected=0.5, rollouts=2, max_rollouts=2, confirm_rollouts=2)
    write_records(tmp_path / "prompts.jsonl", [*PROMPTS[:3], PROMPTS[0], seen])
    summary = run(tmp_path, cfg)
    assert (summary["questions"], summary["rejected"]) == (3, 1)
    (line,) = lines(tmp_path / "out/rejected.jsonl")
    assert (line["line"], line["reason"]) == (5, "an image, and this model reads text alone")


def test_a_prompt_that_stands_twice_is_searched_once_at_its_first_place(tmp_path, folder):
    cfg = configured(tmp_path, folder, limit=2, rollouts=2, max_rollouts=2, confirm_rollouts=2)
    rows = [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0].model_copy(), PROMPTS[1]]
    write_records(tmp_path / "prompts.jsonl", rows)
    summary = run(tmp_path, cfg)
    assert [line["id"] for line in lines(tmp_path / "out/questions.jsonl")] == ["q0", "q1"]
    assert summary["repeated_prompts"] == 2


def test_a_search_in_which_nothing_could_be_graded_fails_and_says_why(tmp_path, folder):
    cfg = configured(tmp_path, folder, judge={"name": "exact_match"})  # the prompts have no references
    with pytest.raises(
        DataError, match=r"'exact_match' graded too few .* 6 questions: they need .*references"
    ):
        run(tmp_path, cfg)
    assert {line["state"] for line in lines(tmp_path / "out/questions.jsonl")} == {"unknown"}
