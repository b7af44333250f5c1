"""The playground's Python problems: every solution passes its tests, wrong ones do not, sides stay apart."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.common.errors import ConfigError
from posttrain.feedback.judge_use import read_judge
from posttrain.playground.programs import ProgramDemonstrations, ProgramDocuments, ProgramPrompts, problems
from posttrain.records import Response


def test_every_solution_passes_its_tests_and_says_what_is_asked() -> None:
    for problem in problems():
        space: dict[str, Any] = {}
        exec(problem.program, space)
        exec(problem.tests(), space)
        space["check"](space["f"])
        with pytest.raises(AssertionError):
            space["check"](lambda *args: None)
    assert len({problem.what for problem in problems()}) == len(problems()) > 300


def test_no_two_problems_have_the_same_tests() -> None:
    """Otherwise a held-out problem would be a training one in other words."""
    tests = [(problem.kind, problem.tests()) for problem in problems()]
    assert len(set(tests)) == len(tests)


def test_the_sandbox_tells_right_from_wrong() -> None:
    prompts = list(ProgramPrompts(n=6).rows())
    judge = read_judge({"name": "python_tests", "sandbox": "rlimits"}).open(None)
    right = [(prompt, Response(text=prompt.reference or "")) for prompt in prompts]
    wrong = [(prompt, Response(text="def f(x, y=0):\n    return 'no'")) for prompt in prompts]
    assert [verdict.score for verdict in judge.score(right)] == [1.0] * 6
    assert [verdict.score for verdict in judge.score(wrong)] == [0.0] * 6


def test_no_problem_is_on_both_sides() -> None:
    train = {row.reference for row in ProgramPrompts(n=400).rows()}
    held = {row.reference for row in ProgramPrompts(n=200, split="heldout").rows()}
    assert not train & held
    told = "\n".join(row.text for row in ProgramDocuments(n=300).rows())
    assert not {program for program in held if f"{program}\n" in told + "\n"}


def test_demonstrations_are_the_prompts_with_their_solutions() -> None:
    prompts, demos = list(ProgramPrompts(n=20).rows()), list(ProgramDemonstrations(n=20).rows())
    assert [d.prompt.text for d in demos] == [p.text for p in prompts]
    assert [d.response.text for d in demos] == [p.reference for p in prompts]
    with pytest.raises(ConfigError, match="lower n"):
        list(ProgramPrompts(n=100_000).rows())
