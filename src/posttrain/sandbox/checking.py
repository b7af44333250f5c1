"""Does a program do what the tests ask? Two sandboxes: the program runs in one, its tests in the other."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from posttrain.common.errors import ConfigError
from posttrain.sandbox.backends import SandboxName, command
from posttrain.sandbox.inside.check import ENDED
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.process import Confined, listen
from posttrain.sandbox.syscalls import program as refused_calls

TROUBLE = "sandbox trouble"
_GRACE = 0.5  # seconds in which a process that hung up should have ended


@dataclass(frozen=True)
class Tests:
    """setup: source that stands before the tests. tests: source that calls the program's functions and
    asserts. names: those functions.
    """

    setup: str
    tests: str
    names: tuple[str, ...]

    __test__ = False  # no class of tests for pytest


@dataclass(frozen=True)
class Checked:
    """passed: None where it cannot be told, because of the tests or of the sandbox. reason: why not True."""

    passed: bool | None
    reason: str = ""


@dataclass(frozen=True)
class Sandbox:
    """Ready to run programs; safe to use from several threads at once."""

    name: SandboxName
    limits: Limits
    argv: tuple[str, ...]
    inside: str
    refused: str

    def check(self, program: str, tests: Tests) -> Checked:
        """Run the tests against the program.

        Where the tests were ready and what followed did not end in "passed", the program failed, whatever the
        cause: time, memory, an answer that is no plain data. Only what is not the program's doing is None.
        """
        nonce = secrets.token_hex(16)
        try:
            with ExitStack() as stack:
                ends = stack.enter_context(_pipes())
                solver, checker = (
                    stack.enter_context(self._confined(label, request, pipes))
                    for label, request, pipes in (_solving(program, ends), _testing(tests, ends, nonce))
                )
                ends.close_given()
                until = time.monotonic() + self.limits.wall
                said, trouble = listen(ends.verdict_in, (solver, checker), until)
                return _judged(_states(said, nonce), trouble, solver, checker)
        except OSError as e:
            return Checked(None, f"{TROUBLE}: {e}")

    def _confined(self, label: str, request: dict[str, Any], pipes: tuple[int, ...]) -> Confined:
        shared = {"inside": self.inside, "refused": self.refused, "limits": self.limits.model_dump()}
        return Confined(self.argv, request | shared, pipes, self.limits.output << 10, label)


def open_sandbox(name: SandboxName, limits: Limits) -> Sandbox:
    """A sandbox that has been seen to work. Raises ConfigError where it does not on this machine."""
    argv, inside = command(name, limits)
    sandbox = Sandbox(name, limits, tuple(argv), inside, refused_calls().hex())
    tried = sandbox.check("def two():\n    return 2", Tests("", "assert two() == 2", ("two",)))
    if not tried.passed:
        raise ConfigError(
            f"sandbox '{name}' does not work on this machine: {tried.reason}; docs/sandbox.md says what it "
            "needs (name spaces for users, in containers often switched off) and what else there is"
        )
    return sandbox


@dataclass
class _Ends:
    """Both ends of three pipes: calls to the program, its replies, the verdict."""

    calls_in: int
    calls_out: int
    replies_in: int
    replies_out: int
    verdict_in: int
    verdict_out: int
    given: bool = False

    def close_given(self) -> None:
        """Close what now only the processes hold, so that the end of one is seen by the other."""
        self.given = True
        for end in (self.calls_in, self.calls_out, self.replies_in, self.replies_out, self.verdict_out):
            os.close(end)


@contextmanager
def _pipes() -> Iterator[_Ends]:
    ends = _Ends(*os.pipe(), *os.pipe(), *os.pipe())
    try:
        yield ends
    finally:
        if not ends.given:
            ends.close_given()
        os.close(ends.verdict_in)


_Part = tuple[str, dict[str, Any], tuple[int, ...]]  # label, request, descriptors


def _solving(program: str, ends: _Ends) -> _Part:
    request = {"role": "solve", "program": program, "calls": ends.calls_in, "replies": ends.replies_out}
    return "the program", request, (ends.calls_in, ends.replies_out)


def _testing(tests: Tests, ends: _Ends, nonce: str) -> _Part:
    request = {
        "role": "check", "nonce": nonce,
        "setup": tests.setup, "tests": tests.tests, "names": list(tests.names),
        "calls": ends.calls_out, "replies": ends.replies_in, "verdict": ends.verdict_out,
    }  # fmt: skip
    return "the tests", request, (ends.calls_out, ends.replies_in, ends.verdict_out)


def _states(said: bytes, nonce: str) -> list[dict[str, Any]]:
    """What the checker said; lines without the secret that only it was told are somebody else's."""
    states = []
    for line in said.splitlines():
        try:
            state = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(state, dict) and state.get("nonce") == nonce:
            states.append(state)
    return states


def _judged(states: list[dict[str, Any]], trouble: str, solver: Confined, checker: Confined) -> Checked:
    if not states:
        return Checked(None, f"{TROUBLE}: {trouble or checker.last_words(_GRACE)}")
    state, why = states[-1]["state"], str(states[-1]["reason"])
    if state == "passed":
        return Checked(True)
    if state == "ready":
        return Checked(False, trouble or f"the tests ended early: {checker.ended_by(_GRACE)}")
    if state == "failed":
        how = solver.ended_by(_GRACE) if why == ENDED else ""
        return Checked(False, f"{why}: {how}" if how else why)
    return Checked(None, f"{TROUBLE}: {why}" if state == "trouble" else why)
