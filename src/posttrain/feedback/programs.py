"""The Python program in a response, and the tests that its prompt carries.

By patterns alone: what a model wrote is parsed nowhere outside the sandbox, since Python's own parser can be
brought down by it.
"""

from __future__ import annotations

import builtins
import io
import itertools
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
# A line at the margin that a program may go on with; anything else there is prose.
_GOES_ON = re.compile(
    r"(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[:(]|@\w|from\s+[\w.]+\s+import\s|import\s+\w|[)\]}#]"
    r"|\w+\s*(?::[^=]+)?=[^=]|(?:if|elif|else|for|while|with|try|except|finally)\b.*:\s*(?:#.*)?$"
)
_START = re.compile(
    r"^(?:(?:async\s+)?def\s|class\s+\w+\s*[:(]|@\w|from\s+[\w.]+\s+import\s|import\s+\w)", re.MULTILINE
)
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)


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
        if language.lower() in _PYTHON and _defines(_flush(code), names):
            return _flush(code).rstrip() + "\n"
    return ""


def program_of(text: str, stub: str, names: tuple[str, ...]) -> str | None:
    """The program of a response, with the prompt's stub before it; None where there is none.

    In this order: the last fenced block of Python that defines every name; the last one that goes on with the
    stub; without fences, the lines of code if they define every name, or else those that go on with the stub.
    To go on, they must begin indented. Outside of fences, prose before and after the code is left away.
    Whether it is correct Python is for the sandbox to see.
    """
    if _FENCED.search(text):
        blocks = [code for language, code in _FENCED.findall(text) if language.lower() in _PYTHON]
        written = [_flush(code) for code in reversed(blocks)]
        begun = [_until_prose(code) for code in reversed(blocks) if _indented(code)]
    else:
        written = [_until_prose(text[start.start() :]) for start in [_START.search(text)] if start]
        begun = [_until_prose(text)] if _indented(text) else []
    whole = [code for code in written if _defines(code, names)]
    found = (whole or (begun if stub else []))[:1]
    return _joined(stub, found[0]) if found else None


def _joined(stub: str, code: str) -> str:
    """Imports from the future stand first, or nowhere."""
    return "".join(_FUTURE.findall(code)) + stub + _FUTURE.sub("", code)


def _defines(code: str, names: tuple[str, ...]) -> bool:
    def one(name: str) -> bool:
        return bool(re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=[^=]", code, re.MULTILINE))

    return all(one(re.escape(name)) for name in names)


def _flush(code: str) -> str:
    """A block that stands indented in a list, moved to the margin."""
    lines = code.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)


def _indented(code: str) -> bool:
    first = next((line for line in code.split("\n") if line.strip()), "")
    return first[:1].isspace()


def _until_prose(code: str) -> str:
    """As many lines from the first on as are a program's."""
    kept = itertools.takewhile(
        lambda line: not line.strip() or line[0].isspace() or _GOES_ON.match(line), code.split("\n")
    )
    return "\n".join(kept).rstrip() + "\n"


def _lines(tags: dict[str, str], name: str) -> list[str]:
    """A tag that holds a JSON list of source lines. Raises NoTests."""
    try:
        found = json.loads(tags.get(name) or "[]")
    except (ValueError, RecursionError):
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
