"""The judge of verifiable instructions: which of a prompt's instructions a response follows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from posttrain.common.config import Config, nearest, parse
from posttrain.common.errors import ConfigError
from posttrain.feedback.instructions.checker import Checker
from posttrain.feedback.instructions.kinds import KINDS
from posttrain.feedback.judge import Verdict
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Response

IDS, PARAMETERS = "instruction_id_list", "kwargs"


class Instructions(Config):
    """How many of the instructions that a program can verify a response follows (IFEval, Zhou et al.,
    arXiv:2311.07911).

    The prompt's tags name them as IFEval's files do: `instruction_id_list`, a JSON list of kinds, and
    `kwargs`, a JSON list of their parameters. Parts: `share` followed, `all` (1 where each is), and
    `share_loose`, `all_loose`, where one is also followed if the response without its first line, its last
    line, both, or without asterisks follows it (section 2.2 of the paper). An instruction of which it cannot
    be told (a language of too few words) leaves open what depends on it.

    score: which of the parts the score is.
    """

    score: Literal["all", "share", "all_loose", "share_loose"] = "all"

    def open(self) -> InstructionsJudge:
        return InstructionsJudge(self.score)


@final
@dataclass(frozen=True)
class InstructionsJudge:
    by: str

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        if response.finish == "length":
            return CUT_OFF
        try:
            asked = instructions_of(prompt)
        except ConfigError as e:
            return Verdict(None, str(e))
        strict = {name: checker.followed(response.text) for name, checker in asked}
        loose = {name: _loosely(checker, response.text) for name, checker in asked}
        parts = _parts(strict, "") | _parts(loose, "_loose")
        return Verdict(parts[self.by], _told(strict), parts)


def instructions_of(prompt: Prompt) -> list[tuple[str, Checker]]:
    """A prompt's instructions, each under a name of its own. Raises ConfigError for what is none."""
    ids = _listed(prompt, IDS)
    given = _listed(prompt, PARAMETERS) if PARAMETERS in prompt.tags else [{} for _ in ids]
    if not ids:
        raise ConfigError("the prompt has no instructions")
    if len(ids) != len(given):
        raise ConfigError(f"{len(ids)} instructions with {len(given)} sets of parameters")
    asked: list[tuple[str, Checker]] = []
    for kind, parameters in zip(ids, given, strict=True):
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(f"no instruction '{kind}': {nearest(str(kind), list(KINDS))}")
        # IFEval's files name every parameter of any kind, null where it is not of this one
        own = {name: value for name, value in (parameters or {}).items() if value is not None}
        number = sum(name.split("#")[0] == kind for name, _ in asked) + 1
        name = kind if number == 1 else f"{kind}#{number}"
        asked.append((name, parse(KINDS[kind], own, f"instruction {kind}")))
    return asked


def _listed(prompt: Prompt, tag: str) -> list[Any]:
    try:
        found = json.loads(prompt.tags.get(tag, "[]"))
    except ValueError:
        found = None
    if not isinstance(found, list) or (
        tag == PARAMETERS and not all(isinstance(v, dict | None) for v in found)
    ):
        raise ConfigError(f"the prompt's tag {tag} is no JSON list" + " of mappings" * (tag == PARAMETERS))
    return found


def _loosely(checker: Checker, text: str) -> bool | None:
    """Whether any of the looser readings of a response follows the instruction."""
    said = [checker.followed(reading) for reading in _readings(text) if reading.strip()]
    return True if any(said) else None if None in said else False


def _readings(text: str) -> Iterator[str]:
    lines = text.split("\n")
    for cut in (lines, lines[1:], lines[:-1], lines[1:-1]):
        reading = "\n".join(cut).strip()
        yield from (reading, reading.replace("*", ""))


def _parts(followed: dict[str, bool | None], ending: str) -> dict[str, float | None]:
    """A share with an open instruction is open; `all` is 0 as soon as one is not followed."""
    said = list(followed.values())
    share = None if None in said else sum(map(bool, said)) / len(said)
    every = 0.0 if False in said else None if None in said else 1.0
    return {f"share{ending}": share, f"all{ending}": every}


def _told(followed: dict[str, bool | None]) -> str:
    missed = [name for name, said in followed.items() if said is False]
    open_ones = [name for name, said in followed.items() if said is None]
    told = ["not followed: " + ", ".join(missed)] if missed else []
    told += ["cannot be told: " + ", ".join(open_ones)] if open_ones else []
    return "; ".join(told) or "all followed"
