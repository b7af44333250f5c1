"""Worked arithmetic in five levels. Truth: the number, and each line of working that leads to it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from posttrain.playground.question import Area, Grade, Manner, Outcome, Question, sentences, share
from posttrain.playground.world import Split, World, split_of

QUESTIONS = ("What is {e}?", "Work out {e}.", "Calculate {e}.")
LEVELS = ("1", "2", "3", "4", "5")
PROBLEMS = 4  # in a document
STEP = re.compile(r"^(?P<step>\d+ [-+*] \d+ = (?P<answer>\d+))\.?$")
ANSWER = re.compile(r"^(?P<stated>the answer is )?(?P<answer>-?\d+)\.?$", re.I)


def ask(world: World, rng: random.Random) -> Question:
    level = rng.choice(LEVELS)
    expression = draw(level, rng)
    text = rng.choice(QUESTIONS).format(e=expression)
    return Question("arithmetic", expression, text, str(working(expression)[-1][-1]), {"level": level})


def draw(level: str, rng: random.Random) -> str:
    """An expression worked from left to right, every result in 0..99.

    Levels 1, 2 and 3 take so many steps on digits; level 4, two steps on numbers of two digits; level 5, a
    product of digits and then two such steps.
    """
    while True:
        steps = {"1": 1, "2": 2, "3": 3, "4": 2, "5": 3}[level]
        wide = level in ("4", "5")
        low, high = (10, 60) if wide else (1, 9)
        terms = [str(rng.randint(low, high))]
        if level == "5":
            terms = [str(rng.randint(2, 9)), "*", str(rng.randint(2, 9))]
        for _ in range(steps - (level == "5")):
            terms += [rng.choice("+-"), str(rng.randint(low, high))]
        expression = " ".join(terms)
        if all(0 <= result <= 99 for *_, result in working(expression)):
            return expression


def working(expression: str, slip: int | None = None, error: int = 0) -> list[tuple[int, str, int, int]]:
    """The steps (left, operator, right, result) of an expression, from left to right.

    slip: the step, if any, whose result is off by `error`; those after it go on from there.
    """
    terms = expression.split()
    total, steps = int(terms[0]), []
    for i, (operator, term) in enumerate(zip(terms[1::2], terms[2::2], strict=True)):
        left, right = total, int(term)
        total = {"+": left + right, "-": left - right, "*": left * right}[operator] + (
            error if i == slip else 0
        )
        steps.append((left, operator, right, total))
    return steps


def write(world: World, key: str, manner: Manner, rng: random.Random) -> str:
    """Complete: all the working and the answer. Curt: the number. Wrong: one step slips, the rest follows."""
    steps = working(key)
    if manner == "curt":
        return f"{steps[-1][-1]}."
    if manner == "complete":
        return _lines(steps)
    slip = rng.randrange(len(steps))
    slipped = [working(key, slip, error) for error in (-10, -2, -1, 1, 2, 10)]
    return _lines(rng.choice([steps for steps in slipped if all(result >= 0 for *_, result in steps)]))


def grade(world: World, key: str, text: str) -> Grade:
    """Parts: `complete`, the share of the steps there, true and in order; the sentence of the answer is one.

    The answer is what "The answer is" states, else a number that stands alone, else the last step's result.
    """
    steps = working(key)
    lines = sentences(text)
    shown = [match for line in lines if (match := STEP.match(line))]
    claims = [match for line in lines if (match := ANSWER.match(line))]
    claimed = {match["answer"] for match in (claims or shown[-1:])}
    outcome: Outcome = "correct" if claimed == {str(steps[-1][-1])} else "incorrect"
    wanted = [f"{left} {operator} {right} = {result}" for left, operator, right, result in steps]
    followed = sum(match["step"] == want for match, want in zip(shown, wanted, strict=False))
    stated = any(match["stated"] for match in claims)
    clean = share([match[0] for match in (*shown[: len(steps)], *claims[:1])], text)
    manner = {"complete": (followed + stated) / (len(steps) + 1)}
    answered = len(claimed) == 1 and len(shown) + len(claims) == len(lines)
    return Grade(float(outcome == "correct"), manner, clean, answered, outcome)


def tell(world: World, n: int, split: Split, rng: random.Random) -> Iterator[str]:
    """`n` documents of worked problems of one split; a step may well be a problem of the other."""
    for _ in range(n):
        yield "\n\n".join(_told(world, split, rng) for _ in range(PROBLEMS))


def _told(world: World, split: Split, rng: random.Random) -> str:
    while True:
        expression = draw(rng.choice(LEVELS), rng)
        if split_of(world.seed, "arithmetic", expression) == split:
            question = rng.choice(QUESTIONS).format(e=expression)
            return f"{question}\n{_lines(working(expression))}"


def _lines(steps: list[tuple[int, str, int, int]]) -> str:
    lines = [f"{a} {operator} {b} = {c}" for a, operator, b, c in steps]
    return "\n".join([*lines, f"The answer is {steps[-1][-1]}."])


AREA = Area(ask, write, grade, tell)
