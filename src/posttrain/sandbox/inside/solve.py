"""The process of the model's program: it does what the checker's process asks, and knows no test."""

from __future__ import annotations

import builtins
import os
import sys
import types
from typing import Any

from .wire import decode, encode, receive, send


def solve(request: dict[str, Any]) -> None:
    """Run the program, then its functions as often as they are called. Says how that went, never what of it
    is right.
    """
    calls, replies = os.fdopen(request["calls"], "rb"), os.fdopen(request["replies"], "wb")
    send(replies, {"started": True})
    if receive(calls) is None:
        return
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(request["program"], "<program>", "exec"), module.__dict__)
    except BaseException as e:
        send(replies, {"raised": _told(e)})
        return
    send(replies, {"loaded": True})
    while (call := receive(calls)) is not None:
        send(replies, _answer(module, call))


def _answer(module: types.ModuleType, call: dict[str, Any]) -> dict[str, Any]:
    try:
        function = module.__dict__.get(call["name"])
        if function is None:
            raise NameError(f"the program defines no '{call['name']}'")
        result = function(*decode(call["args"]), **decode(call["kwargs"]))
        return {"value": encode(result, opaque=True)}
    except BaseException as e:
        return {"raised": _told(e)}


def _told(e: BaseException) -> list[str]:
    """Which built-in exception it is, or is made from, and what it says."""
    kind = next(c for c in type(e).__mro__ if getattr(builtins, c.__name__, None) is c)
    name = type(e).__name__
    try:
        plain = kind is type(e) and len(e.args) == 1 and isinstance(e.args[0], str)
        text = str(e.args[0] if plain else e)[:300]
    except BaseException:
        text = ""
    return [kind.__name__, text if kind is type(e) else f"{name}: {text}"]
