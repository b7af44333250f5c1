"""The Python program in a response, and the tests that its prompt carries.

By patterns alone: what a model wrote is parsed nowhere outside the sandbox, since Python's own parser can be
brought down by it.
"""

from __future__ import annotations

import builtins
import io
import json
import keyword
import re
import tokenize

from posttrain.records import Prompt
from posttrain.sandbox import Tests

_FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = {"", "py", "python", "python3"}
_SOURCE = re.compile(
    r"\s*(?:from\s+[\w.]+\s+import\b|import\s+\w|def\s+\w|async\s+def|class\s+\w|@\w|\w+\s*=|#|[\"']{3})"
)
# What may stand at a line's start after a completed body and still belong to the program.
_GOES_ON = re.compile(
    r"(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[:(]|@\w|from\s+[\w.]+\s+import\s|import\s+\w|[)\]}#]"
)


class NoTests(ValueError):
    """The prompt carries no tests that can be run."""


def carried_tests(prompt: Prompt) -> Tests:
    """The tests in the prompt's tags, of which there are two forms.

    HumanEval's (Chen et al. 2021): `test` defines `check(candidate)`, `entry_point` names the function.
    MBPP's (Austin et al. 2021): `test_list`, a JSON list of assertions, with `test_setup_code` or
    `test_imports` before them; the functions are those they call, unless `entry_point` names one. Raises
    NoTests.
    """
    tags = prompt.tags
    entry = tags.get("entry_point", "")
    if tags.get("test") and entry:
        return Tests(f"{stub_of(prompt, (entry,))}\n{tags['test']}", f"check({entry})", (entry,))
    if "test_list" not in tags:
        raise NoTests("the prompt has no tests: no tags 'test' and 'entry_point', and no 'test_list'")
    setup = "\n".join([*_lines(tags, "test_imports"), tags.get("test_setup_code", "")])
    tests = "\n".join(_lines(tags, "test_list"))
    names = (entry,) if entry else _called(tests, setup)
    if not names:
        raise NoTests("the prompt's test_list calls no function")
    return Tests(setup, tests, names)


def stub_of(prompt: Prompt, names: tuple[str, ...]) -> str:
    """The code that the prompt begins and a response may go on with; "" where it only describes the task."""
    text = prompt.text
    if _SOURCE.match(text) and _defines(text, names):
        return text.rstrip() + "\n"
    for language, code in reversed(_FENCED.findall(text)):
        if language.lower() in _PYTHON and _defines(code, names):
            return str(code).rstrip() + "\n"
    return ""


def program_of(text: str, stub: str, names: tuple[str, ...]) -> str | None:
    """The program of a response, with the prompt's stub before it; None where there is none.

    In this order: the last fenced block of Python that defines every name; the last one that goes on with the
    stub; without fences, the whole text if it defines every name, or else as much of it as goes on with the
    stub. To go on, it must begin indented; lines of prose after it are left away. Whether it is correct
    Python is for the sandbox to see.
    """
    blocks = [code for language, code in _FENCED.findall(text) if language.lower() in _PYTHON]
    written = list(reversed(blocks)) if _FENCED.search(text) else [text]
    for code in written:
        if _defines(code, names):
            return stub + _flush(code)
    for code in written if stub else ():
        body = _body(code)
        if body:
            return stub + body
    return None


def _defines(code: str, names: tuple[str, ...]) -> bool:
    def one(name: str) -> bool:
        return bool(
            re.search(rf"^[ \t]*(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=[^=]", code, re.MULTILINE)
        )

    return all(one(re.escape(name)) for name in names)


def _flush(code: str) -> str:
    """A block that stands indented in a list, moved to the line's start."""
    lines = code.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines) + "\n"


def _body(code: str) -> str:
    """The lines that go on with an unfinished function, and what they define after it; "" where none do."""
    lines = code.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not first[:1].isspace():
        return ""
    end = next(
        (
            i
            for i, line in enumerate(lines)
            if line.strip() and not line[0].isspace() and not _GOES_ON.match(line)
        ),
        len(lines),
    )
    return "\n".join(lines[:end]).rstrip() + "\n"


def _lines(tags: dict[str, str], name: str) -> list[str]:
    """A tag that holds a JSON list of source lines. Raises NoTests."""
    try:
        found = json.loads(tags.get(name) or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise NoTests(f"the prompt's tag '{name}' is no JSON list of Python source")
    return found


def _called(tests: str, setup: str) -> tuple[str, ...]:
    """The functions that the tests call and nobody but the program defines, in order of appearance."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(tests).readline))
    except (tokenize.TokenError, SyntaxError) as e:
        raise NoTests(f"the prompt's test_list is no Python: {e}") from None
    known = {*dir(builtins), *re.findall(r"\w+", setup)}
    found = [
        name.string
        for before, name, after in zip([None, *tokens], tokens, tokens[1:], strict=False)
        if name.type == tokenize.NAME
        and after.string == "("
        and not (before and before.string in (".", "def"))
    ]
    return tuple(dict.fromkeys(n for n in found if n not in known and not keyword.iskeyword(n)))
