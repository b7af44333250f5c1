"""The search with the judges it is made for, maths, facts and code, on answers whose p(success) is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_code_judge import HUMAN
from tiny import tiny_folder

from posttrain.common.config import parse
from posttrain.engines.protocol import Completion, SamplingParams, limits_of
from posttrain.feedback.judge_use import read_judge
from posttrain.feedback.pivotal.grading import Grading, Question
from posttrain.feedback.pivotal.outcome import find
from posttrain.feedback.pivotal.roller import EngineRoller
from posttrain.feedback.pivotal.step import PivotalConfig
from posttrain.models.load_tokenizer import load_template
from posttrain.models.template import ChatTemplate
from posttrain.records import Message, Prompt, Provenance


class Menu:
    """Draws each answer from a list with probabilities; after a prefix from those that begin with it."""

    def __init__(self, prompt: Sequence[int], answers: dict[tuple[int, ...], float]) -> None:
        self.prompt, self.answers = tuple(prompt), answers

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        label: str = "sample",
        limits: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        rng = np.random.default_rng(params.seed)
        rooms = limits_of(prompts, params, limits)
        return [
            [self._one(tuple(ids)[len(self.prompt) :], room, rng) for _ in range(params.n)]
            for ids, room in zip(prompts, rooms, strict=True)
        ]

    def _one(self, prefix: tuple[int, ...], room: int, rng: np.random.Generator) -> Completion:
        open_ = [answer for answer in self.answers if answer[: len(prefix)] == prefix]
        whole = sum(self.answers[answer] for answer in open_)
        drawn = rng.choice(len(open_), p=[self.answers[answer] / whole for answer in open_])
        rest = open_[drawn][len(prefix) :]
        logps = tuple(self._logp(open_[drawn], at) for at in range(len(prefix), len(open_[drawn])))
        return Completion(rest[:room], logps[:room], "stop" if len(rest) <= room else "length")

    def _logp(self, answer: tuple[int, ...], at: int) -> float:
        before, after = (
            sum(p for other, p in self.answers.items() if other[:n] == answer[:n]) for n in (at, at + 1)
        )
        return math.log(after / before)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder = tiny_folder("qwen2", tmp_path_factory.mktemp("model") / "tiny")
    return load_template(str(folder))


def question(text: str, *references: str) -> Prompt:
    return Prompt(
        provenance=Provenance(id="q"),
        messages=(Message(role="user", content=text),),
        reference=references[0],
        tags={"references": json.dumps(references)},
    )


CASES = {
    "maths": (
        question("What is 3 + 4?", "#### 7"),
        {"3 + 4 is 7.\n#### 7.0": 0.5, "3 + 4 is 8.\n#### 8": 0.4, "3 + 4 is ": 0.1},
    ),
    "alias_match": (
        question("Which city is the capital of France?", "Paris", "City of Paris"),
        {"the city of Paris": 0.5, "the city of Rome": 0.5},
    ),
    "python_tests": (HUMAN, {"    return sum(numbers)\n": 0.45, "    return max(numbers)\n": 0.55}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_token_on_which_success_turns_is_found(template: ChatTemplate, tmp_path: Path, name: str):
    prompt, texts = CASES[name]
    settings: dict[str, Any] = {"name": name}
    if name == "python_tests":
        settings["sandbox"] = "rlimits"
    cfg = parse(
        PivotalConfig,
        {"model": "unused", "prompts": "unused", "judge": settings, "confirm_rollouts": 128},
        "test",
    )
    end = template.stop_ids[0]
    answers = {(*template.tokenizer.encode(text), end): p for text, p in texts.items()}
    (ids,) = template.prompts([prompt.messages])
    grading = Grading(read_judge(settings).open(), name, cfg.success, cfg.no_answer, cfg.truncated)
    roller = EngineRoller(
        [Question(prompt, tuple(ids))], Menu(ids, answers), template, grading, cfg.sampling, tmp_path, name
    )
    (found,), trials = find(cfg, roller)
    right, wrong = list(answers)[:2]
    shared = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
    assert found.state == "kept"
    assert [len(t.candidate.prefix) for t in trials if t.state == "confirmed"] == [shared]
    (pivot,) = [t for t in trials if t.state == "confirmed"]
    assert pivot.pair == "confirmed"
    assert {pivot.candidate.token, pivot.candidate.other} == {right[shared], wrong[shared]}
    assert pivot.candidate.rises == (pivot.candidate.token == right[shared])
    arms = (pivot.token, pivot.other) if pivot.candidate.rises else (pivot.other, pivot.token)
    assert [all(arm.outcomes) for arm in arms] == [True, False]
    # the answer without an answer is in the third state: p is over the others
    known = [p for text, p in texts.items() if not text.endswith("is ")]
    before = pivot.before.outcomes
    p = known[0] / sum(known)
    assert sum(before) / len(before) == pytest.approx(p, abs=4 * (0.25 / len(before)) ** 0.5)
    assert (pivot.before.unknown > 0) == (len(known) < len(texts))
