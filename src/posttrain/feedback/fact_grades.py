"""Short answers in three classes, correct, incorrect, not attempted, by a rule; and what is none of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, final

from pydantic import Field, field_validator

from posttrain.common.config import Config
from posttrain.feedback.alias_match import matching
from posttrain.feedback.judge import Account
from posttrain.feedback.verifiers import CUT_OFF, NO_ANSWER, answered, compiled, found_last
from posttrain.records import Prompt, Response

Grade = Literal["correct", "incorrect", "not_attempted"]

# What counts as saying that one does not know; looked for anywhere in the response, without case.
REFUSALS = (
    r"\bI (?:\w+ )?(?:do not|don't|did not|didn't) (?:\w+ )?(?:know|recall|remember)\b",
    r"\bI (?:\w+ )?(?:do not|don't) have (?:\w+ ){0,3}(?:information|knowledge|data|answer|details)\b",
    r"\bI have no (?:\w+ )?(?:information|knowledge|data|answer|idea|record)\b",
    r"\bI(?:'m| am) (?:\w+ )?(?:not (?:\w+ )?(?:sure|certain|aware|familiar|able)|unable|unsure|uncertain)\b",
    r"\b(?:cannot|can't|can not|could not|couldn't) (?:\w+ )?"
    r"(?:answer|say|tell|determine|find|verify|confirm|provide|recall)\b",
    r"\bno idea\b",
    r"\A\W*(?:unknown|n/?a|no answer|not sure|unsure)\W*\Z",
)
NO_REFERENCE = "the prompt has no reference"
ANSWERABLE = "answerable"  # the tag of a prompt; "no" where nothing that answers it could be right


@dataclass(frozen=True)
class Graded:
    """grade: None where there is none, and `reason` says why. asked: a grader was asked and gave none; False
    where the answer could not be graded at all. uncertain: the grader read the answer and cannot tell.
    """

    grade: Grade | None
    reason: str = ""
    asked: bool = True
    uncertain: bool = False


class Grader(Protocol):
    def grade(self, items: Sequence[tuple[Prompt, Response]]) -> list[Graded]:
        """One an item, in order."""
        ...


def gradable(prompt: Prompt, response: Response) -> Graded | None:
    """Why an answer has no grade before any grader is asked; None where one can be asked."""
    if response.finish == "length":
        return Graded(None, CUT_OFF.reason, asked=False)
    if not prompt.references and answerable(prompt):
        return Graded(None, NO_REFERENCE, asked=False)
    return None


def answerable(prompt: Prompt) -> bool:
    """False for a prompt whose tags say that no answer to it is right: it asks about what does not exist."""
    return prompt.tags.get(ANSWERABLE) != "no"


class RuleGrader(Config):
    """Correct where the response is one of the references (`alias_match`), not attempted where it says that
    it does not know, or says nothing; else incorrect. One that does both, with `within`, has no grade. To a
    prompt with the tag `answerable: no` every answer but a refusal is incorrect.

    within, answer: as in `alias_match`; a response that gives neither an answer by that pattern nor a refusal
    has no grade. refusals: regular expressions, without case, a typographic apostrophe read as a plain one.
    """

    name: Literal["rule"] = "rule"
    within: bool = False
    answer: str | None = None
    refusals: tuple[str, ...] = Field(REFUSALS)

    @field_validator("refusals")
    @classmethod
    def _compile(cls, refusals: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(compiled(pattern).pattern for pattern in refusals)

    @field_validator("answer")
    @classmethod
    def _compiles(cls, answer: str | None) -> str | None:
        return answer if answer is None else compiled(answer).pattern

    def open(self, account: Account | None = None) -> RuleOpened:
        return RuleOpened(self)


@final
@dataclass(frozen=True)
class RuleOpened:
    cfg: RuleGrader

    def grade(self, items: Sequence[tuple[Prompt, Response]]) -> list[Graded]:
        """See `Grader`."""
        return [gradable(*item) or self._graded(*item) for item in items]

    def _graded(self, prompt: Prompt, response: Response) -> Graded:
        refusal = refuses(response.text, self.cfg.refusals)
        said = found_last(self.cfg.answer if answerable(prompt) else None, response.text)
        right = prompt.references if answerable(prompt) else ()
        if said is not None:
            whole = matching(said, right)
            found = whole or matching(said, right, self.cfg.within)
            if found is not None and (whole is not None or refusal is None):
                return Graded("correct", f"is '{found}'")
            if found is not None:
                return Graded(None, f"both '{found}' and '{refusal}'", uncertain=True)
        if refusal is not None:
            return Graded("not_attempted", f"says '{refusal}'" if refusal else "says nothing")
        if said is None:
            return Graded(None, NO_ANSWER.reason)
        return Graded("incorrect", answered(said))


def refuses(text: str, patterns: Sequence[str] = REFUSALS) -> str | None:
    """The words by which a response says that it does not know, "" for one that says nothing; else None."""
    plain = text.replace("’", "'")
    if not plain.strip():
        return ""
    found = (re.search(pattern, plain, re.IGNORECASE) for pattern in patterns)
    return next((match[0].strip() for match in found if match), None)
