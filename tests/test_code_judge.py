"""The judge `python_tests`: the program in a response, the tests of a prompt, and what becomes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_sandbox_attacks import SANDBOXES

from posttrain.common.errors import ConfigError
from posttrain.feedback.code import PythonTests
from posttrain.feedback.judge import Judge
from posttrain.feedback.judge_use import read_judge
from posttrain.feedback.programs import NoTests, carried_tests, program_of, stub_of
from posttrain.formats import read_records
from posttrain.records import Message, Prompt, Provenance, Response
from posttrain.sandbox import Limits

HUMAN_EVAL = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).parents[2] / "shared" / "data")) / (
    "human_eval.jsonl.gz"
)
STUB = '''from typing import List


def total(numbers: List[int]) -> int:
    """ Add them up.
    >>> total([1, 2])
    3
    """
'''
CHECK = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
RIGHT = "    return sum(numbers)\n"


def asked(text: str, **tags: str) -> Prompt:
    return Prompt(provenance=Provenance(id="p"), messages=(Message(role="user", content=text),), tags=tags)


HUMAN = asked(STUB, test=CHECK, entry_point="total")
DESCRIBED = asked("Write total(xs), which adds numbers up.", test_list='["assert total([1, 2]) == 3"]')


def judge(**fields: Any) -> Judge:
    opened = read_judge({"name": "python_tests", "sandbox": "rlimits", **fields}).open()
    assert isinstance(opened, Judge)
    return opened


@pytest.mark.parametrize(
    ("said", "program"),
    [
        # completions of the function's body
        (RIGHT, STUB + RIGHT),
        ("\n" + RIGHT + "\nprint(total([1]))\n", STUB + "\n" + RIGHT),
        (RIGHT + "\ndef helper(x):\n    return x\nThat is all.",
         STUB + RIGHT + "\ndef helper(x):\n    return x\n"),
        ("    return sum(\n        numbers\n    )\nif __name__ == '__main__':\n    pass",
         STUB + "    return sum(\n        numbers\n    )\nif __name__ == '__main__':\n    pass\n"),
        # whole programs, fenced or not; the stub's imports stand before them
        ("def total(numbers):\n    return 3\n", STUB + "def total(numbers):\n    return 3\n"),
        ("Here it is:\nimport math\nZERO = 0\ndef total(n):\n    return 3\n\nIt adds.\nx = 1",
         STUB + "import math\nZERO = 0\ndef total(n):\n    return 3\n"),
        ("```python\nfrom __future__ import annotations\ndef total(n):\n    return 3\n```",
         "from __future__ import annotations\n" + STUB + "def total(n):\n    return 3\n"),
        ("Sure:\n```python\ndef total(n):\n    return 3\n```\nand\n```\ntotal([1])\n```\n",
         STUB + "def total(n):\n    return 3\n"),
        ("```py\ndef total(n):\n    return 1\n```\nBetter:\n```python\ndef total(n):\n    return 2\n```",
         STUB + "def total(n):\n    return 2\n"),
        ("1. First\n   ```python\n   def total(n):\n       return 1\n   ```\n",
         STUB + "def total(n):\n    return 1\n"),
        ("```python\ntotal = sum\n```", STUB + "total = sum\n"),
        ("```python\n" + RIGHT + "```", STUB + RIGHT),
        ("```python\ndef total(n):\n    return 1\n", STUB + "def total(n):\n    return 1\n"),
        # wrong Python is a program all the same
        ("```python\ndef total(n:\n```", STUB + "def total(n:\n"),
        # none at all
        ("I would add the numbers.", None),
        ("```bash\ntotal 1 2\n```", None),
        ("```python\nother = 1\n```", None),
        ("```python\nclass Solution:\n    def total(self, n):\n        return 3\n```", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_program_in_a_response(said: str, program: str | None) -> None:
    assert stub_of(HUMAN, ("total",)) == STUB
    assert program_of(said, STUB, ("total",)) == program


def test_a_prompt_that_only_describes_has_no_stub_and_one_in_fences_has() -> None:
    assert stub_of(DESCRIBED, ("total",)) == ""
    assert program_of(RIGHT, "", ("total",)) is None
    assert (
        program_of("```\ndef total(n):\n    return 1\n```", "", ("total",)) == "def total(n):\n    return 1\n"
    )
    fenced = asked(f"Complete this:\n```python\n{STUB}```\nThink first.", test=CHECK, entry_point="total")
    assert stub_of(fenced, ("total",)) == STUB


def test_the_carried_tests_a_prompt() -> None:
    found = carried_tests(HUMAN)
    assert (found.setup, found.tests, found.names) == (f"{STUB}\n{CHECK}", "check(total)", ("total",))
    lines = ["assert set(first((1, 2))) == {1}", 'assert not second("third(1)") and math.sqrt(4) == 2']
    listed = asked("?", test_list=json.dumps(lines), test_imports='["import math"]', test_setup_code="x = 1")
    found = carried_tests(listed)
    assert found.setup == "import math\nx = 1"
    assert found.names == ("first", "second")
    assert carried_tests(asked("?", test_list='["assert f(g(1)) == 2"]', entry_point="f")).names == ("f",)
    for tags, why in (
        ({}, "has no tests"),
        ({"test": CHECK}, "has no tests"),
        ({"test_list": "assert f()"}, "'test_list' is no JSON list"),
        ({"test_list": "[]"}, "calls no function"),
        ({"test_list": '["assert ("]'}, "is no Python"),
    ):
        with pytest.raises(NoTests, match=why):
            carried_tests(asked("?", **tags))


@pytest.mark.parametrize("name", SANDBOXES)
def test_right_wrong_and_neither(name) -> None:
    answers = [
        (HUMAN, RIGHT, 1.0, ""),
        (HUMAN, "    return 3\n", 0.0, "AssertionError in `assert candidate([]) == 0`"),
        (HUMAN, "    import os\n    os._exit(0)\n", 0.0, "the program ended: exit status 0"),
        (HUMAN, "    raise SystemExit\n", 0.0, "RuntimeError: SystemExit"),
        (HUMAN, "I do not know.", None, "no program found in the response"),
        (DESCRIBED, "```python\ndef total(xs):\n    return sum(xs)\n```", 1.0, ""),
        (asked("Hello?"), RIGHT, None, "the prompt has no tests"),
        (HUMAN, RIGHT, 1.0, ""),
    ]
    said = judge(sandbox=name, workers=2).score([(p, Response(text=t or "-")) for p, t, _, _ in answers])
    for verdict, (_, _, score, why) in zip(said, answers, strict=True):
        assert verdict.score == score
        assert why in verdict.reason
    (cut,) = judge().score([(HUMAN, Response(text=RIGHT, token_ids=(1,), finish="length"))])
    assert (cut.score, cut.reason) == (None, "cut off")


def test_equal_programs_run_once_and_the_rest_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Any = judge(workers=2)
    seen: list[str] = []
    check = type(opened.sandbox).check
    monkeypatch.setattr(
        type(opened.sandbox), "check", lambda self, p, t: (seen.append(p), check(self, p, t))[1]
    )
    verdicts = opened.score([(HUMAN, Response(text=RIGHT))] * 5 + [(HUMAN, Response(text="    return 3\n"))])
    assert [v.score for v in verdicts] == [1.0] * 5 + [0.0]
    assert len(seen) == 2
    assert opened.score([]) == []


def test_a_sandbox_that_is_missing_is_an_error_when_the_judge_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install bubblewrap"):
        PythonTests().open()  # bubblewrap is what is meant where nothing is said
    with pytest.raises(ValueError, match="'sandbox'"):
        read_judge({"name": "python_tests", "sandbox": "none"})


def changed(solution: str, name: str) -> str:
    """The program with every answer made another one."""
    return f"""{solution}

_right = {name}
def {name}(*args):
    found = _right(*args)
    for kind, other in (
        (bool, lambda x: not x), ((int, float), lambda x: x * 2 + 1), (str, lambda x: x + "x"),
        (list, lambda x: [*x, None]), (tuple, lambda x: (*x, 0)), (dict, lambda x: x | {{"x": 1}}),
    ):
        if isinstance(found, kind):
            return other(found)
    return 0 if found is None else None
"""


def human_eval() -> list[Prompt]:
    if not HUMAN_EVAL.exists():
        pytest.skip(f"no {HUMAN_EVAL}; set POSTTRAIN_DATA to the folder that has HumanEval")
    return read_records(HUMAN_EVAL, Prompt)


def solved(prompts: list[Prompt], sandbox: str) -> None:
    """Right as written and as a whole program in fences; wrong where answers are changed or never made."""
    right = [p.text + p.tags["canonical_solution"] for p in prompts]
    said = {
        "completion": [p.tags["canonical_solution"] for p in prompts],
        "program": [f"Here it is.\n```python\n{code}\n```\nDone." for code in right],
        "changed": [changed(code, p.tags["entry_point"]) for p, code in zip(prompts, right, strict=True)],
        "exits": ["    import os\n    os._exit(0)\n"] * len(prompts),
    }
    verdicts = {
        name: judge(sandbox=sandbox, limits={"wall": 60}).score(
            [(p, Response(text=text)) for p, text in zip(prompts, texts, strict=True)]
        )
        for name, texts in said.items()
    }
    for name, expected in (("completion", 1.0), ("program", 1.0), ("changed", 0.0), ("exits", 0.0)):
        odd = {
            p.tags["task_id"]: v for p, v in zip(prompts, verdicts[name], strict=True) if v.score != expected
        }
        assert not odd, name


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_some_of_human_eval(sandbox) -> None:
    """Among them helpers in the prompt (32, 38), a constant before it (64) and floats (4)."""
    prompts = human_eval()
    solved([prompts[i] for i in (4, 32, 38, 64)], sandbox)


@pytest.mark.slow
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_all_of_human_eval(sandbox) -> None:
    prompts = human_eval()
    assert len(prompts) == 164
    solved(prompts, sandbox)


def test_limits_are_fields_that_are_part_of_the_result() -> None:
    slow = "    while True:\n        pass\n"
    (verdict,) = judge(limits=Limits(cpu=1).model_dump()).score([(HUMAN, Response(text=slow))])
    assert verdict.score == 0.0
    assert "time" in verdict.reason
