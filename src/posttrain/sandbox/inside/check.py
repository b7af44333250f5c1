"""The process in which the tests run. The functions they call are stand-ins for those of the program, which
runs elsewhere: nothing it does to its own interpreter reaches an assertion here.
"""

from __future__ import annotations

import builtins
import os
from typing import Any

from .wire import Unsendable, decode, encode, receive, send

ENDED = "the program ended"


class Gone(BaseException):
    """The program's process ended, or said what cannot be read. No test may catch this by accident."""


class Program:
    """The program as the tests see it."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.calls, self.replies = os.fdopen(request["calls"], "wb"), os.fdopen(request["replies"], "rb")
        self.most = request["limits"]["output"] << 10
        self.gone = ""
        self.unsendable = ""
        self.answered = 0

    def start(self) -> None:
        """Wait for the process that will run it. Raises Gone where it does not come up."""
        if self._receive().get("started") is not True:
            self._end("it said something else")

    def load(self) -> None:
        """Have the program run, so that its functions are there. Raises Gone where it fails."""
        send(self.calls, {"go": True})
        reply = self._receive()
        if "raised" in reply:
            name, text = map(str, reply["raised"])
            self._end(f"{name} while the program was loaded: {text}")

    def function(self, name: str) -> Any:
        """A stand-in for one of the program's functions."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        call.__name__ = call.__qualname__ = name
        return call

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            message = {
                "name": name,
                "args": encode(list(args), opaque=False),
                "kwargs": encode(kwargs, opaque=False),
            }
        except Unsendable as e:
            self.unsendable = str(e)
            raise
        try:
            send(self.calls, message)
        except OSError:
            self._end(ENDED)
        reply = self._receive()
        self.answered += 1
        if "raised" in reply:
            raise _error(reply["raised"])
        try:
            return decode(reply["value"])
        except Exception as e:
            self._end(f"no value came back: {e}")

    def _receive(self) -> dict[str, Any]:
        if self.gone:
            raise Gone(self.gone)
        reply = None
        try:
            reply = receive(self.replies, self.most)
        except Exception as e:  # whatever the other side wrote
            self._end(str(e))
        return reply or self._end(ENDED)

    def _end(self, why: str) -> Any:
        self.gone = why
        raise Gone(why)


def _error(raised: Any) -> BaseException:
    """The built-in exception of that name, so that tests can expect it; else a RuntimeError that names it."""
    name, text = map(str, raised)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            pass
    return RuntimeError(f"{name}: {text}")


def check(request: dict[str, Any]) -> None:
    """Run the tests and write one line of verdict: passed, failed, or that the tests cannot tell."""
    verdict = os.fdopen(request["verdict"], "wb")

    def say(state: str, why: str = "") -> None:
        send(verdict, {"nonce": request["nonce"], "state": state, "reason": why[:500]})

    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(request["setup"], "<setup>", "exec"), space)
        tests = compile(request["tests"], "<tests>", "exec")
    except BaseException as e:
        return say("unusable", f"the tests cannot be run: {type(e).__name__}: {e}")
    program = Program(request)
    try:
        program.start()
    except Gone:
        return say("trouble", "the program's process did not start")
    say("ready")
    try:
        program.load()
        space.update({name: program.function(name) for name in request["names"]})
        exec(tests, space)
    except BaseException as e:
        why = _where(e, request)
    else:
        why = ""
    if program.unsendable:
        say("unusable", f"the tests hand over what the program cannot be given: {program.unsendable}")
    elif program.gone or why:
        say("failed", program.gone or why)
    elif not program.answered:
        say("unusable", "the tests never called the program")
    else:
        say("passed")


def _where(e: BaseException, request: dict[str, Any]) -> str:
    """What failed, with the line of the tests that it failed in."""
    import traceback  # costs more to import than most checks take

    sources = {"<setup>": request["setup"].splitlines(), "<tests>": request["tests"].splitlines()}
    line = ""
    for frame in traceback.extract_tb(e.__traceback__):
        if frame.filename in sources and frame.lineno:
            line = sources[frame.filename][frame.lineno - 1].strip()
    said = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
    return f"{said[:200]} in `{line[:200]}`" if line else said[:200]
