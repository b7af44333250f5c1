"""Small Python problems with tests, made by code: for what a model writes to be run in the sandbox."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from pydantic import Field

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.playground.world import Split, rng_for, split_of
from posttrain.records import Demonstration, Document, Message, Prompt, Provenance, Response, row_id

LICENCE = "Apache-2.0"
ASKS = (
    "Write a Python function f({a}) that returns {what}.",
    "Define f({a}) in Python. It returns {what}.",
    "Python: f({a}) should return {what}.",
)
NUMBERS = [*range(22), 40]
WORDS = ["river", "Salt", "a", "Vokia", "mountainside"]
LISTS = [[3, 1, 2], [7], [4, 4, 9, 0], [10, 2, 8, 6, 5]]


@dataclass(frozen=True)
class Problem:
    """kind: "number", "pair", "text" or "list". what: in words. code: of the result, given the arguments.

    solve: the same, in this process: what the tests expect.
    """

    kind: str
    what: str
    code: str
    solve: Callable[..., Any]

    @property
    def arguments(self) -> str:
        return {"number": "x", "pair": "x, y", "text": "s", "list": "a"}[self.kind]

    @property
    def program(self) -> str:
        return f"def f({self.arguments}):\n    return {self.code}"

    def tests(self) -> str:
        """HumanEval's form: `check(candidate)` with an assertion for each of a few arguments."""
        given: dict[str, list[tuple[Any, ...]]] = {
            "number": [(x,) for x in NUMBERS],
            "pair": [(x, y) for x, y in zip(NUMBERS, NUMBERS[::-1], strict=True)],
            "text": [(word,) for word in WORDS],
            "list": [(items,) for items in LISTS],
        }
        lines = [
            f"    assert candidate({', '.join(map(repr, args))}) == {self.solve(*args)!r}"
            for args in given[self.kind]
        ]
        return "\n".join(["def check(candidate):", *lines])


def _numbers() -> Iterator[Problem]:
    for n in range(2, 21):
        yield Problem("number", f"x plus {n}", f"x + {n}", lambda x, n=n: x + n)
        yield Problem("number", f"x minus {n}", f"x - {n}", lambda x, n=n: x - n)
        yield Problem("number", f"x times {n}", f"x * {n}", lambda x, n=n: x * n)
        yield Problem("number", f"whether x is above {n}", f"x > {n}", lambda x, n=n: x > n)
        yield Problem("number", f"whether x is below {n}", f"x < {n}", lambda x, n=n: x < n)
        for m in range(2, 10):
            yield Problem("number", f"x times {m} plus {n}", f"x * {m} + {n}", lambda x, m=m, n=n: x * m + n)


def _others() -> Iterator[Problem]:
    yield Problem("pair", "the sum of x and y", "x + y", lambda x, y: x + y)
    yield Problem("pair", "the product of x and y", "x * y", lambda x, y: x * y)
    yield Problem("pair", "the larger of x and y", "max(x, y)", max)
    yield Problem("pair", "the smaller of x and y", "min(x, y)", min)
    for n in range(2, 21):
        yield Problem("pair", f"the sum of x and y, plus {n}", f"x + y + {n}", lambda x, y, n=n: x + y + n)
    yield Problem("text", "s in capitals", "s.upper()", str.upper)
    yield Problem("text", "s in small letters", "s.lower()", str.lower)
    yield Problem("text", "s backwards", "s[::-1]", lambda s: s[::-1])
    yield Problem("text", "the length of s", "len(s)", len)
    yield Problem("text", "the first letter of s", "s[0]", lambda s: s[0])
    yield Problem("text", "the last letter of s", "s[-1]", lambda s: s[-1])
    for n in range(2, 10):
        yield Problem("text", f"s written {n} times", f"s * {n}", lambda s, n=n: s * n)
        yield Problem("text", f"the first {n} letters of s", f"s[:{n}]", lambda s, n=n: s[:n])
    for word, code, solve in (
        ("sum", "sum(a)", sum),
        ("largest", "max(a)", max),
        ("smallest", "min(a)", min),
    ):
        of = "of the numbers in a" if word == "sum" else "number in a"
        yield Problem("list", f"the {word} {of}", code, solve)
        for n in range(2, 21):
            more = f"the {word} {of}, plus {n}"
            yield Problem("list", more, f"{code} + {n}", lambda a, n=n, solve=solve: solve(a) + n)
    yield Problem("list", "how many numbers are in a", "len(a)", len)
    yield Problem("list", "a in order", "sorted(a)", sorted)
    yield Problem("list", "a backwards", "a[::-1]", lambda a: a[::-1])


@cache
def problems() -> tuple[Problem, ...]:
    """Every problem there is, each once."""
    return (*_numbers(), *_others())


class Programs(Config):
    """What the sources have in common. seed: of the split. n: rows, each another wording or problem. split:
    of the problems; no problem is on both sides, in whatever words. draw: another number draws other rows.
    """

    version: ClassVar[int] = 1  # part of a step's key: raise it when problems or tests change

    seed: int = 0
    n: int = Field(ge=1)
    split: Split = "train"
    draw: int = 0

    def asked(self) -> list[tuple[Problem, str]]:
        """`n` problems in words. Raises ConfigError where there are not so many."""
        every = [
            (problem, ask.format(a=problem.arguments, what=problem.what))
            for problem in problems()
            if split_of(self.seed, "programs", problem.code) == self.split
            for ask in ASKS
        ]
        if self.n > len(every):
            raise ConfigError(f"there are {len(every)} {self.split} problems in words, not {self.n}: lower n")
        return rng_for(self.seed, self.split, self.draw, "programs").sample(every, self.n)

    def provenance(self, i: int, *parts: str) -> Provenance:
        return Provenance(
            id=row_id("programs", *parts),
            source=f"playground/programs:{i + 1}",
            licence=LICENCE,
            makers={"prompt": "posttrain.playground"},
        )

    def prompt(self, i: int, problem: Problem, text: str) -> Prompt:
        tags = {"area": "programs", "kind": problem.kind, "split": self.split}
        tags |= {"test": problem.tests(), "entry_point": "f"}
        return Prompt(
            messages=(Message(role="user", content=text),),
            reference=problem.program,
            tags=tags,
            provenance=self.provenance(i, text),
        )


class ProgramPrompts(Programs):
    """`playground/programs`: problems with their tests in HumanEval's form, and a solution as reference."""

    def rows(self) -> Iterator[Prompt]:
        for i, (problem, text) in enumerate(self.asked()):
            yield self.prompt(i, problem, text)


class ProgramDemonstrations(Programs):
    """`playground/program_demonstrations`: the same with the solution as response."""

    def rows(self) -> Iterator[Demonstration]:
        for i, (problem, text) in enumerate(self.asked()):
            prompt = self.prompt(i, problem, text)
            provenance = self.provenance(i, text, problem.program)
            yield Demonstration(prompt=prompt, response=Response(text=problem.program), provenance=provenance)


class ProgramDocuments(Programs):
    """`playground/program_corpus`: documents of three such problems of one split with their solutions."""

    def rows(self) -> Iterator[Document]:
        rng = rng_for(self.seed, self.split, self.draw, "program documents")
        pool = [p for p in problems() if split_of(self.seed, "programs", p.code) == self.split]
        for i in range(self.n):
            text = "\n\n".join(_told(rng.choice(pool), rng) for _ in range(3))
            yield Document(text=text, provenance=self.provenance(i, str(i), text))


def _told(problem: Problem, rng: random.Random) -> str:
    return f"{rng.choice(ASKS).format(a=problem.arguments, what=problem.what)}\n{problem.program}"
