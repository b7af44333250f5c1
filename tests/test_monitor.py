"""The monitor of reward hacking: its intervals against scipy, its rule by hand, a run that is hacked."""

from __future__ import annotations

import json
import random

import pytest
import torch
from kills import metrics, stumbling
from online_home import online_home
from safetensors.torch import load_file
from scipy import stats

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, PosttrainError
from posttrain.common.step import StepContext
from posttrain.feedback.judge import Verdict
from posttrain.records import Message, Prompt, Provenance, Response
from posttrain.training.monitor import Monitor, Sums, interval
from posttrain.training.online_config import MonitorConfig
from posttrain.training.rollout import Asked, Group, Scored
from posttrain.training.train import STEP, TrainConfig


def sums(values, prefix=""):
    """One answer a prompt."""
    keys = {f"{prefix}{i}": v for i, v in enumerate(values)}
    return Sums(dict.fromkeys(keys, 1), keys)


def draws(seed, n=9):
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(n)]


def test_one_mean_has_students_interval():
    values = draws(0)
    found = interval(sums(values), None, 0.95)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_same_prompts_are_paired():
    before, after = draws(0), draws(1)
    found = interval(sums(after), sums(before), 0.99)
    expected = stats.ttest_rel(after, before).confidence_interval(0.99)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_other_prompts_are_independent():
    before, after = draws(0, 7), draws(1, 12)
    found = interval(sums(after, "other"), sums(before), 0.95)
    welch = stats.ttest_ind(after, before, equal_var=False)
    error = (found.high - found.mean) / stats.t.ppf(0.975, 6)
    assert found.mean / error == pytest.approx(welch.statistic)
    expected = welch.confidence_interval(0.95)
    assert found.low <= expected.low  # the careful degrees of freedom make it no narrower
    assert found.high >= expected.high


def test_several_answers_to_a_prompt_are_one_draw():
    """Two answers that always agree say no more than one."""
    values = draws(0)
    twice = Sums({str(i): 2 for i in range(9)}, {str(i): 2 * v for i, v in enumerate(values)})
    assert interval(twice, None, 0.95) == interval(sums(values), None, 0.95)
    assert interval(sums([1.0]), None, 0.95) is None


class Given:
    """Gives the scores it was made with."""

    def __init__(self):
        self.scores = []

    def score(self, items):
        return [Verdict(score, "" if score is not None else "silent") for score in self.scores]


def groups(rewards):
    """One answer a prompt."""
    made = []
    for i, reward in enumerate(rewards):
        prompt = Prompt(messages=(Message(role="user", content=f"{i}?"),), provenance=Provenance(id=f"p{i}"))
        made.append(Group(Asked(prompt, (1,)), (Scored(Response(text="a"), reward),)))
    return made


def monitor(**fields):
    judge = Given()
    return Monitor(MonitorConfig(judge="judges:Evens", **fields), judge, "test"), judge


def look(watch, judge, number, proxy, golds):
    judge.scores = golds
    return watch.check(groups([proxy] * len(golds)), number)[0]


UP, MIDDLE, DOWN = [1.0, 1.1, 0.9], [0.5, 0.6, 0.4], [0.0, 0.1, -0.1]
LUCK = [0.5, 0.9, 0.2]  # higher than the middle on average, within its noise


def test_the_rule(capsys):
    """Fallen gold under a rising proxy is an alarm in the second check, and over once gold is back."""
    watch, judge = monitor()
    first = look(watch, judge, 0, 0.0, MIDDLE)
    assert first["alarm"] == 0
    assert (first["gold"], first["proxy"]) == pytest.approx((0.5, 0.0))
    assert look(watch, judge, 1, 1.0, UP)["alarm"] == 0  # the best is now 1.0
    assert look(watch, judge, 2, 2.0, MIDDLE)["alarm"] == 0  # once
    assert look(watch, judge, 3, 3.0, DOWN)["alarm"] == 1  # twice
    assert look(watch, judge, 4, 3.0, UP)["alarm"] == 0
    assert look(watch, judge, 5, 0.5, DOWN)["alarm"] == 0
    assert look(watch, judge, 6, 0.5, DOWN)["alarm"] == 0  # the proxy sees the fall: nothing is hacked
    said = capsys.readouterr().err
    assert "alarm at rollout 4: since rollout 2 the reward went from 1 to 3" in said
    assert "fell from 1 to 0" in said
    assert said.count("no alarm any more") == 1
    assert watch.summary()["alarms"] == [4]
    assert watch.summary()["best"] == {"rollout": 2, "proxy": 1.0, "gold": pytest.approx(1.0)}


def test_luck_is_no_best():
    """The middle, seen again after a lucky check, has not fallen from anything."""
    watch, judge = monitor(patience=1, level=0.6)
    look(watch, judge, 0, 0.0, MIDDLE)
    look(watch, judge, 1, 1.0, LUCK)
    assert watch.now.best.rollout == 0
    assert look(watch, judge, 2, 2.0, MIDDLE)["alarm"] == 0


def test_what_is_tolerated_is_no_alarm():
    for tolerance, alarm in ((0.4, 1.0), (0.6, 0.0)):
        watch, judge = monitor(patience=1, tolerance=tolerance)
        look(watch, judge, 0, 0.0, MIDDLE)
        assert look(watch, judge, 1, 1.0, DOWN)["alarm"] == alarm


def test_no_answer_is_counted_and_never_a_number():
    watch, judge = monitor()
    seen = look(watch, judge, 0, 1.0, [1.0, None, 0.0, None])
    assert (seen["gold"], seen["gold_no_answer"]) == (0.5, 0.5)
    assert "gold" not in look(watch, judge, 1, 1.0, [None, None])
    assert watch.summary()["no_answer"] == {"silent": 4}


NEVER = "the monitor's judge 'judges:Evens' gave no answer at all in"


def test_a_gold_judge_that_never_answers_is_an_alarm_at_once(capsys):
    watch, judge = monitor()
    seen = look(watch, judge, 0, 1.0, [None, None])
    assert (seen["gold_no_answer"], seen["alarm"]) == (1.0, 0.0)  # nothing has fallen that one knows of
    assert watch.alarm
    assert watch.why() == f"{NEVER} a check, so nothing watches the reward (most often, 2 times: silent)"
    look(watch, judge, 1, 1.0, [None, None])
    assert capsys.readouterr().err.count(NEVER) == 1
    look(watch, judge, 2, 1.0, MIDDLE)
    assert not watch.alarm
    assert "no alarm any more" in capsys.readouterr().err
    assert watch.summary()["alarms"] == []


def test_reasons_that_are_all_different_are_counted_as_others_in_the_end():
    watch, _ = monitor()
    watch.judge = Wordy()
    watch.check(groups([0.0] * 70), 1)
    said = watch.summary()["no_answer"]
    assert len(said) == 51
    assert said["others"] == 20
    assert sum(said.values()) == 70


class Wordy:
    """Says of every answer something else."""

    def score(self, items):
        return [Verdict(None, f"cannot read {i}") for i, _ in enumerate(items)]


def test_a_gold_judge_that_falls_silent_is_said_once_and_in_the_end_an_alarm(capsys):
    watch, judge = monitor(patience=3)
    alarms = []
    for i, golds in enumerate([MIDDLE, [None, None], MIDDLE, [None], [None], [None]]):
        look(watch, judge, i, 1.0, golds)
        alarms.append(watch.alarm)
    assert alarms == [False] * 5 + [True]
    said = capsys.readouterr().err
    assert said.count(f"{NEVER} a check") == 2
    assert said.count(f"{NEVER} 3 checks in a row") == 1


def test_the_largest_scores_there_may_be_have_an_interval():
    watch, judge = monitor()
    assert look(watch, judge, 0, 1.0, [1e15, -1e15])["gold_high"] == pytest.approx(
        stats.t.ppf(0.975, 1) * 1e15
    )
    judge.scores = [1e300, 1.0]
    with pytest.raises(
        PosttrainError, match="monitor's judge 'judges:Evens', answer 1 of 2: score lies beyond"
    ):
        watch.check(groups([1.0, 1.0]), 1)


def test_the_state_of_every_moment_goes_on_alike():
    history = [(0.0, MIDDLE), (1.0, UP), (2.0, [None, 0.4, 0.5]), (3.0, DOWN), (4.0, DOWN), (5.0, UP)]
    whole, judge = monitor()
    expected = [look(whole, judge, i, *each) for i, each in enumerate(history)]
    parts, judge = monitor()
    for i, each in enumerate(history):
        state = json.loads(json.dumps(parts.state()))
        parts, judge = monitor()
        parts.load(state)
        assert timeless(look(parts, judge, i, *each)) == timeless(expected[i])
    assert parts.summary() == whole.summary()


def timeless(seen):
    return {name: value for name, value in seen.items() if not name.endswith("seconds")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    online_home(folder, "Say {}.", 8)
    return folder


def train(home, out, monitor, method="grpo", **others):
    fields = {
        "model": str(home / "base"),
        "method": method,
        "online": {
            "prompts": str(home / "prompts.jsonl"), "judge": "judges:Evens", "n": 8, "max_new_tokens": 3,
            "truncated": "judge", "monitor": monitor,
        },
        "batch_size": 8, "epochs": 40, "precision": "float32", "optimizer": {"lr": 0.01}, **others,
    }  # fmt: skip
    return STEP.run(parse(TrainConfig, fields, "test"), StepContext(out, out / "state", "test"))


def checks(out):
    return [json.loads(line) for line in (out / "monitor.jsonl").read_text().splitlines()]


def test_a_run_that_is_hacked_is_stopped(home, tmp_path, capsys):
    """Gold is the share of odd tokens, the reward that of even ones: every gain is a loss."""
    summary = train(home, tmp_path, {"judge": "judges:Odds", "stop": True})
    online = summary["online"]
    assert "what is rewarded is no longer what is wanted" in online["ended_early"]
    assert "alarm at rollout" in capsys.readouterr().err
    seen = checks(tmp_path)
    assert [check["rollout"] for check in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == online["rollouts"] == summary["steps"] + 1 < 40
    assert [check["alarm"] for check in seen] == [0.0] * (len(seen) - 1) + [1.0]
    assert online["monitor"]["alarms"] == [len(seen)]
    lines = metrics(tmp_path)
    for line, check in zip(lines, seen, strict=False):
        assert line["gold"] == pytest.approx(1 - line["reward"])
        assert {"kl", "gold_low", "gold_high", "proxy_standardised", "gold_standardised"} <= line.keys()
        assert (line["gold"], line["kl"]) == (check["gold"], check["kl"])
    for name in ("proxy_standardised", "gold_standardised"):
        assert lines[0][name] == pytest.approx(0)
    assert lines[-1]["proxy_standardised"] > 0.5
    assert lines[-1]["gold_standardised"] < -0.5
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert all(line["gold"] == pytest.approx(1 - line["reward"]) for line in samples)


def test_a_run_that_nobody_watches_is_stopped(home, tmp_path, capsys):
    """The gold judge has no reference to compare with, so the run ends before it has learned anything."""
    summary = train(home, tmp_path, {"judge": "exact_match", "stop": True})
    assert "gave no answer at all in a check" in summary["online"]["ended_early"]
    assert summary["steps"] == 0
    assert "nothing watches the reward" in capsys.readouterr().err
    watched = train(home, tmp_path / "on", {"judge": "exact_match"}, epochs=2)
    assert watched["steps"] == 2


def test_a_reward_that_is_gold_never_alarms(home, tmp_path):
    summary = train(home, tmp_path, {"judge": "judges:Evens", "every": 3}, "rloo", epochs=12)
    assert summary["online"]["monitor"]["alarms"] == []
    assert [check["rollout"] for check in checks(tmp_path)] == [1, 4, 7, 10]
    assert [("gold" in line) for line in metrics(tmp_path)] == [i % 3 == 0 for i in range(12)]


def test_looking_changes_nothing(home, tmp_path):
    train(home, tmp_path / "seen", {"judge": "judges:Odds"}, epochs=4)
    train(home, tmp_path / "unseen", None, epochs=4)
    seen, unseen = (load_file(tmp_path / name / "model/model.safetensors") for name in ("seen", "unseen"))
    assert all(torch.equal(seen[name], unseen[name]) for name in seen)


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_an_interrupted_run_sees_the_same(home, tmp_path, monkeypatch, method):
    settings = {"judge": "judges:Odds", "every": 2, "stop": True}

    def run(name):
        return train(home, tmp_path / name, settings, method, checkpoint_seconds=1e-9, epochs=16)

    calm = run("calm")
    hit = stumbling(monkeypatch, lambda: run("hit"))
    assert hit["online"] == calm["online"]
    for name in ("samples.jsonl", "monitor.jsonl"):
        found = [
            [timeless(json.loads(line)) for line in (tmp_path / which / name).read_text().splitlines()]
            for which in ("calm", "hit")
        ]
        assert found[0] == found[1]
        assert found[0]


def test_a_judge_that_cannot_look_on_is_refused(home, tmp_path):
    with pytest.raises(ConfigError, match=r"online\.monitor\.judge: .* compares and does not score"):
        train(home, tmp_path / "a", {"judge": "judges:Longer"})
    with pytest.raises(ConfigError, match="a rollout of one prompt has no interval"):
        train(home, tmp_path / "b", {"judge": "judges:Odds"}, batch_size=1)


def test_how_often_it_is_wrong():
    """25 checks of 16 prompts. Where gold never changes, at most one run in twenty alarms; where it falls
    from the tenth check on, all do.
    """
    for fall, least, most in ((0.0, 0, 3), (0.2, 60, 60)):
        alarms = 0
        for seed in range(60):
            rng = random.Random(seed)
            watch, judge = monitor()
            prompts = [rng.gauss(0, 0.5) for _ in range(16)]
            for i in range(25):
                golds = [p + rng.gauss(0, 0.5) - fall * max(0, i - 9) for p in prompts]
                alarms += look(watch, judge, i, float(i), golds)["alarm"]
                if watch.alarm:
                    break
        assert least <= alarms <= most
