"""Judges that do not keep to their protocol: told once, by name, whoever asks them."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError, PosttrainError
from posttrain.common.step import StepContext
from posttrain.engines.protocol import Completion, SamplingParams
from posttrain.feedback.choose import ChooseConfig
from posttrain.feedback.choose import run as choose
from posttrain.feedback.judge import Preference, Verdict
from posttrain.feedback.judging import STEP, JudgeConfig
from posttrain.feedback.verdicts import preferences_of, score_by, verdicts_of
from posttrain.feedback.weighted_sum import WeightedSum
from posttrain.formats.write import write_records
from posttrain.records import Message, Prompt, Provenance, Response, Samples
from posttrain.training.rollout import Asked, answer, means


class Says(Config):
    """Says what ODD holds under `what`."""

    what: str = "text"

    def open(self):
        return self

    def score(self, items):
        said = ODD[self.what]
        return said(items) if callable(said) else [said for _ in items]


class Compares(Says):
    def open(self):
        return Comparing(self.what)


class Comparing:
    def __init__(self, what):
        self.what = what

    def compare(self, items):
        return [ODD[self.what] for _ in items]


def broken(items):
    return [len(each) / 0 for each in items]


ODD: dict[str, Any] = {
    "text": Verdict("0.5"),
    "none": lambda items: None,
    "words": lambda items: "words",
    "floats": 0.5,
    "few": lambda items: [Verdict(1.0)] * (len(items) - 1),
    "many": lambda items: [Verdict(1.0)] * (len(items) + 1),
    "huge": Verdict(1e300),
    "huge whole": Verdict(10**400),
    "huge part": Verdict(1.0, "", {"a": -1e300}),
    "odd part": Verdict(1.0, "", {"a": "much"}),
    "odd parts": Verdict(1.0, "", [1.0]),
    "no reason": Verdict(1.0, None),
    "raises": broken,
    "good": Verdict(1, "", {"a": 2}),
    "silent": Verdict(None, "cut off"),
    "sure": Preference(1.5),
    "worded": Preference("first"),
    "half": Preference(0.5, "", {"a": 0.5}),
    "orders": Preference(0.5, "", {}, (0.5,)),
    "verdict": Verdict(1.0),
}
WRONG = {
    "text": r"answer 1 of 2: score is '0\.5' \(str\), neither a number nor None",
    "none": r"gave 'None' \(NoneType\) instead of a list with a Verdict for each question",
    "words": r"gave 'words' \(str\) instead of a list",
    "floats": r"gave '0\.5' \(float\) in its list instead of a list with a Verdict",
    "few": r"gave \d+ answers to \d+ questions",
    "many": r"gave \d+ answers to \d+ questions",
    "huge": r"score lies beyond ±1e\+15, .*scale the judge's scores",
    "huge whole": "score lies beyond",
    "huge part": "part 'a' lies beyond",
    "odd part": r"part 'a' is 'much' \(str\)",
    "odd parts": r"parts is '\[1\.0\]' \(list\), no mapping",
    "no reason": r"reason is 'None' \(NoneType\), no text",
    "raises": r"failed on \d+ questions: ZeroDivisionError: .*test_odd_judges\.py, line \d+\)",
}


@pytest.mark.parametrize("what", WRONG)
def test_each_mistake_is_told_with_the_judges_name(what):
    with pytest.raises(PosttrainError, match=f"^judge 'x'.*{WRONG[what]}"):
        verdicts_of(Says(what=what), ["a", "b"], "judge 'x'")


def test_the_cause_of_a_judges_own_failure_is_kept():
    with pytest.raises(PosttrainError) as e:
        verdicts_of(Says(what="raises"), ["a"], "it")
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_what_a_user_can_mend_stays_what_it_is():
    class Paid:
        def score(self, items):
            raise DataError("out of budget")

    with pytest.raises(DataError, match=r"^out of budget$"):
        verdicts_of(Paid(), ["a"], "it")


def test_whole_numbers_are_numbers():
    (found,) = verdicts_of(Says(what="good"), ["a"], "it")
    assert found == Verdict(1.0, "", {"a": 2.0})
    assert isinstance(found.score, float)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("sure", r"probability 1\.5 does not lie in \[0, 1\]"),
        ("worded", "probability is 'first'"),
        ("half", "part 'a' is '0.5' .float. instead of a Preference"),
        ("orders", "not two probabilities"),
        ("verdict", "instead of a list with a Preference"),
    ],
)
def test_a_judge_that_compares_is_held_to_its_protocol_too(what, says):
    with pytest.raises(PosttrainError, match=f"^judge 'x'.*{says}"):
        preferences_of(Comparing(what), ["a", "b"], "judge 'x'")


def ask(text: str) -> Prompt:
    return Prompt(provenance=Provenance(id=text), messages=(Message(role="user", content=text),))


@pytest.fixture
def samples(tmp_path):
    responses = tuple(Response(text=text, finish="stop") for text in ("yes", "no"))
    rows = [Samples(provenance=Provenance(id="s"), prompt=ask("Well?"), responses=responses)]
    write_records(tmp_path / "samples.jsonl", rows)
    return tmp_path / "samples.jsonl"


def judged(tmp_path, samples, judge, **fields):
    cfg = parse(JudgeConfig, {"data": str(samples), "judge": judge, **fields}, "test")
    return STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "test"))


NAMED = r"judge 'test_odd_judges:Says', answer 1 of 2: score is '0\.5'"


def test_the_judge_step_names_the_judge(tmp_path, samples):
    with pytest.raises(PosttrainError, match=NAMED):
        judged(tmp_path, samples, "test_odd_judges:Says")
    with pytest.raises(PosttrainError, match=r"'test_odd_judges:Compares', answer 1 of 1: probability 1\.5"):
        judged(tmp_path, samples, {"name": "test_odd_judges:Compares", "what": "sure"}, pairs="all")


def test_choosing_names_the_judge(tmp_path, samples):
    fields = {"data": str(samples), "n": 1, "strategy": "near_ties", "judge": "test_odd_judges:Says"}
    with pytest.raises(PosttrainError, match=NAMED):
        choose(parse(ChooseConfig, fields, "test"), StepContext(tmp_path / "o", tmp_path / "s", "test"))


def summed(what, **part):
    judge = {"name": "test_odd_judges:Says", "what": what}
    return parse(WeightedSum, {"parts": [{"judge": judge, **part}]}, "test").open()


def test_a_sum_names_the_part():
    with pytest.raises(PosttrainError, match=r"^weighted_sum: part 'wit', answer 1 of 2: score"):
        summed("text", name="wit").score(["a", "b"])


def test_a_part_that_a_judge_does_not_have_is_said_to_be_missing():
    (found,) = summed("good", aspect="safty", name="safe").score(["a"])
    assert found == Verdict(None, "safe: no part 'safty' (parts: a)", {"safe": None})
    (silent,) = summed("silent", aspect="safty", name="safe").score(["a"])
    assert silent.reason == "safe: cut off"
    (there,) = summed("good", aspect="a", weight=3.0).score(["a"])
    assert there.score == 6.0


def test_a_part_cannot_have_the_name_of_a_metric():
    with pytest.raises(ConfigError, match="a part cannot be called 'std': reward_std is a metric"):
        summed("good", name="std")


def test_an_aspect_of_a_verdict():
    said = Verdict(1.0, "", {"a": 2.0, "b": None})
    assert score_by(said, "overall") is said
    assert score_by(said, "a").score == 2.0
    assert (score_by(said, "b").score, score_by(said, "b").reason) == (None, "not a finite number")


class Engine:
    def generate(self, prompts, params, label):
        return [[Completion((7, 8), (-0.5, -0.5), "stop")] * params.n for _ in prompts]


class Template:
    def decode(self, ids):
        return "text"


@pytest.mark.parametrize("what", ["text", "none", "floats", "few", "huge", "raises"])
def test_a_rollout_is_not_learned_from_what_is_no_verdict(what):
    asked = [Asked(ask("Well?"), (1, 2))]
    with pytest.raises(PosttrainError, match=rf"^the judge of the rollouts \(Says\).*{WRONG[what]}"):
        answer(Engine(), Template(), Says(what=what), asked, SamplingParams(n=2), None, 0.0, "test")


def test_a_part_never_stands_in_the_place_of_the_spread():
    class Parts:
        def score(self, items):
            return [Verdict(float(i), "", {"std": 7.0, "wit": 2.0}) for i, _ in enumerate(items)]

    asked = [Asked(ask("Well?"), (1, 2))]
    found = means(answer(Engine(), Template(), Parts(), asked, SamplingParams(n=2), None, 0.0, "test"))
    assert (found["reward_std"], found["reward_part_std"], found["reward_wit"]) == (0.5, 7.0, 2.0)


def test_the_largest_scores_there_may_be_have_a_spread():
    class Large:
        def score(self, items):
            return [Verdict(1e15 * (-1) ** i) for i, _ in enumerate(items)]

    asked = [Asked(ask("Well?"), (1, 2))]
    found = answer(Engine(), Template(), Large(), asked, SamplingParams(n=2), None, 0.0, "test")
    assert means(found)["reward_std"] == 1e15
