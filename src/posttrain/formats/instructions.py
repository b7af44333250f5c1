"""Instructions with what was written to them: Alpaca, self-instruct, ShareGPT."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from posttrain.formats.build import Origin, attempt, demonstration, prompt, response, user
from posttrain.formats.fields import Plain, listed, named, optional, tags, text, whole
from posttrain.formats.messages import is_turns, messages
from posttrain.formats.rejects import RowError
from posttrain.records import Demonstration, Message, Prompt, Row


def is_alpaca(row: Plain) -> bool:
    return isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str)


def read_alpaca(row: Plain, origin: Origin) -> Iterator[Demonstration]:
    """{"instruction", "input", "output"}, with `system` and `history` (pairs of earlier turns) where given.

    Taori et al. 2023, "Stanford Alpaca". The user turn is the instruction, and after a blank line its input.
    """
    turns: list[Message] = []
    if optional(row, "system").strip():
        turns.append(Message(role="system", content=row["system"]))
    for i, pair in enumerate(listed(row, "history") if row.get("history") else []):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError(f"history[{i}]", f"expected a question and its answer: got {named(pair)}")
        turns += messages(
            [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}],
            f"history[{i}]",
            origin,
        )
    turns.append(user(with_input(text(row, "instruction"), optional(row, "input"))))
    # `text` in the original files is the three others in a template of their own
    left = tags(row, ("instruction", "input", "output", "system", "history", "text"))
    asked = prompt(turns, origin, tags=left, field="instruction")
    yield demonstration(asked, response(row.get("output"), "output"), origin)


def is_self_instruct(row: Plain) -> bool:
    return isinstance(row.get("instruction"), str) and isinstance(row.get("instances"), list)


def read_self_instruct(row: Plain, origin: Origin) -> Iterator[Row | RowError]:
    """{"instruction", "instances": [{"input", "output"}, …]}: one each. Wang et al. 2023."""
    left = tags(row, ("instruction", "instances"))

    def one(instance: Any, at: str) -> Demonstration:
        if not isinstance(instance, dict):
            raise RowError(at, f"expected an input and an output: got {named(instance)}")
        words = with_input(text(row, "instruction"), optional(instance, "input"))
        asked = prompt([user(words)], origin, tags=left, field="instruction")
        return demonstration(asked, response(instance.get("output"), f"{at}.output"), origin)

    for i, instance in enumerate(listed(row, "instances")):
        yield attempt(partial(one, instance, f"instances[{i}]"))


def with_input(instruction: str, given: str) -> str:
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def is_sharegpt(row: Plain) -> bool:
    return is_turns(row.get("conversations"))


def read_sharegpt(row: Plain, origin: Origin) -> Iterator[Demonstration]:
    """{"conversations": [{"from", "value"}, …]}: the last assistant turn is the response."""
    *asked, last = _conversation(row, origin, ends=True)
    said = prompt(asked, origin, tags=tags(row, ("conversations", "system")), field="conversations")
    yield demonstration(said, response(last.text, "conversations"), origin)


def read_sharegpt_prompt(row: Plain, origin: Origin) -> Iterator[Prompt]:
    """The turns up to the last user turn."""
    turns = _conversation(row, origin, ends=False)
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    yield prompt(asked, origin, tags=tags(row, ("conversations", "system")), field="conversations")


def _conversation(row: Plain, origin: Origin, ends: bool) -> tuple[Message, ...]:
    turns = messages(row.get("conversations"), "conversations", origin, ends="assistant" if ends else None)
    system = optional(row, "system")
    if whole(system, "system").strip() and turns[0].role != "system":
        return (Message(role="system", content=system), *turns)
    return turns
