"""Every attack against every sandbox, with the outcome that docs/sandbox.md promises."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox_attacks import ATTACKS, QUICK, alive, marked, opened, run

from posttrain.common.errors import ConfigError
from posttrain.sandbox import Tests
from posttrain.sandbox.backends import ENVIRONMENT
from posttrain.sandbox.syscalls import _ALLOW, _RETURN, _op

DOC = (Path(__file__).parents[1] / "docs" / "sandbox.md").read_text("utf-8")
PROMISED = {
    (attack, name): cell
    for attack, *cells in re.findall(
        r"^\| (.+?) \| (\*?\*?[a-z ]+?\*?\*?) \| (\*?\*?[a-z ]+?\*?\*?) \|$", DOC, re.M
    )
    for name, cell in zip(("bwrap", "rlimits"), cells, strict=True)
    if cell in ("stopped", "**not stopped**")
}


def bubblewrap() -> str:
    """Why it cannot be tried here; "" where it can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    try:
        opened("bwrap", QUICK)
    except ConfigError as e:
        return str(e)
    return ""


WHY_NOT = bubblewrap()
SANDBOXES = [
    pytest.param("bwrap", marks=pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)),
    "rlimits",
]


@pytest.mark.parametrize("name", SANDBOXES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_as_the_table_says(attack: str, name, tmp_path: Path) -> None:
    worked = run(name, ATTACKS[attack], tmp_path)
    assert ("**not stopped**" if worked else "stopped") == PROMISED[attack, name]


def test_the_table_has_every_attack_and_no_other() -> None:
    assert {attack for attack, _ in PROMISED} == set(ATTACKS)


@pytest.mark.parametrize("name", SANDBOXES)
def test_nothing_of_ours_is_handed_on(name, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh environment, no descriptors but the two it needs and its output, nothing to read."""
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    program = """
import os, sys
def environment():
    return sorted(os.environ)
def descriptors():
    found = []
    for fd in range(1024):
        try:
            os.fstat(fd)
            found.append(fd)
        except OSError:
            pass
    return len(found)
def read():
    return sys.stdin.read()
def packages():
    return any("site-packages" in path or path in ("", ".") for path in sys.path)
"""
    tests = f"""
assert set(environment()) <= {{*{sorted(ENVIRONMENT)!r}, "HOME", "TMPDIR", "PWD", "LC_CTYPE"}}, environment()
assert descriptors() == 5, descriptors()
assert read() == ""
assert packages() is False
"""
    with open("/dev/null"), open(__file__):  # descriptors that must stay here
        checked = opened(name, QUICK).check(
            program, Tests("", tests, ("environment", "descriptors", "read", "packages"))
        )
    assert checked.passed, checked.reason


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_in_bubblewrap_only_the_scratch_folder_can_be_written_and_little_be_seen() -> None:
    program = """
import os
def writable():
    found = set()
    for folder, folders, _ in os.walk("/"):
        if folder.count("/") > 2:
            folders.clear()
        try:
            os.close(os.open(os.path.join(folder, "mine"), os.O_CREAT | os.O_WRONLY))
            found.add(folder)
        except OSError:
            pass
    return found
def seen():
    return set(os.listdir("/"))
def who():
    return os.getuid(), os.getpid() < 10, os.uname().nodename
"""
    tests = """
assert writable() == {"/scratch"}, writable()
assert seen() <= {"usr", "lib", "lib64", "etc", "dev", "posttrain", "scratch", "root", "home", "opt"}, seen()
assert who() == (65534, True, "sandbox"), who()
"""
    sandbox = opened("bwrap", QUICK)
    checked = sandbox.check(program, Tests("", tests, ("writable", "seen", "who")))
    assert checked.passed, checked.reason


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_bubblewrap_kills_what_was_left_behind_even_without_the_filter() -> None:
    """Two walls, not one: were processes allowed, the name space would take them along."""
    allow = _op(_RETURN, _ALLOW).hex()
    sandbox = marked(replace(opened("bwrap", QUICK), refused=allow))
    checked = sandbox.check(
        ATTACKS["daemon left behind"].program, Tests("", "assert attack() is True", ("attack",))
    )
    assert checked.passed, checked.reason
    assert not alive(sandbox)
