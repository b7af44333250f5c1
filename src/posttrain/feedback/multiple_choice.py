"""Multiple choice: which letter a response picks, never a letter inside a word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from pydantic import Field

from posttrain.common.config import Config
from posttrain.feedback.judge import Verdict
from posttrain.feedback.verifiers import ungradable
from posttrain.records import Prompt, Response


class MultipleChoice(Config):
    """1 where the response picks the letter of the prompt's reference, else 0.

    Read as a choice: a response that is a letter alone ("B", "(b)", "**B.**"); one that begins with a letter
    and its mark ("B) Paris", "(B) Paris", "B. Paris"); a letter after "answer is", "Answer:", "option" or in
    \\boxed{}. What is said to be the answer goes before what a response begins with. Two different letters,
    or none, are no answer.

    letters: of the choices, in upper case.
    """

    version: ClassVar[int] = 2  # part of a step's key: raise it when grades change

    letters: str = Field("ABCDE", pattern=r"^[A-Z]{2,26}$")

    def open(self) -> MultipleChoiceJudge:
        return MultipleChoiceJudge(self.letters)


@final
@dataclass(frozen=True)
class MultipleChoiceJudge:
    letters: str

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        if why := ungradable(prompt, response):
            return why
        reference = prompt.references[0]
        wanted = choices(reference, self.letters)
        if len(wanted) != 1:
            return Verdict(None, f"the reference '{reference}' is not one of the letters {self.letters}")
        picked = choices(response.text, self.letters)
        if len(picked) != 1:
            return Verdict(None, f"picks {' and '.join(sorted(picked))}" if picked else "no letter found")
        return Verdict(float(picked == wanted), f"picks {min(picked)}")


def choices(text: str, letters: str) -> set[str]:
    """The letters that a text picks: none, one, or, where it contradicts itself, several."""
    some = f"[{letters}{letters.lower()}]"
    alone = re.fullmatch(rf"[\W_]*(?:(?:option|choice)\s[\W_]*)?({some})[\W_]*", text, re.IGNORECASE)
    if alone:
        return {alone[1].upper()}
    for words in (_ANSWER, _OPTION):
        declared = _declared(text, letters, some, words)
        if declared:
            return declared
    return _begun(text, letters, some)


_ANSWER = r"\banswers?\b(?:[^.\n?!]{0,60}?(?:\bis\b|\bare\b|\bbe\b|:|=))?"
_OPTION = r"\b(?:option|choice)s?\b"


def _declared(text: str, letters: str, some: str, words: str) -> set[str]:
    """Letters after such words, all of a list; and, with the answer, those in a box."""
    # lower case only in parentheses: "the answer is a river" picks nothing
    letter = rf"(?:\({some}\)|\b[{letters}](?![\w'’-]))"
    others = rf"(?:(?:\s*(?:,|/|&|\bor\b|\band\b|\bnot\b))+\s*{letter})*"
    # bounded, for a response may say "option" thousands of times
    wrapped = r"(?:[\s*_\"'$:]|(?i:the|option|choice|letter)\s){0,40}"
    found: set[str] = set()
    for match in re.finditer(rf"(?i:{words}){wrapped}(?P<list>{letter}{others})", text):
        found |= set(re.findall(rf"(?<!\w){some}(?!\w)", match["list"]))
    if words is _ANSWER:
        found |= set(re.findall(rf"\\(?:boxed|fbox)\{{\s*(?:\\text\{{)?\s*\(?({some})\)?\s*\}}", text))
    return {letter.upper() for letter in found}


def _begun(text: str, letters: str, some: str) -> set[str]:
    """The letter that a response begins with, and any other that it sets off in the same way."""
    if not re.match(rf"[\s*_\"'“]*(?:\({some}\)|[{letters}][*_]*[.):])[*_]*\s", text):
        return set()
    found = re.findall(rf"(?<!\w)\(({some})\)(?!\w)|(?:^|\n)[ \t*_\"'“]*([{letters}])[*_]*[.):]", text)
    # within a line: "A) is wrong. B) is right", and with a full stop where a sentence or clause may begin
    within = (
        rf"(?<![\w(])([{letters}])[*_]*[):](?=[\s*_]|$)|[.;,!?](?=[ \t])[ \t*_\"'“]*([{letters}])\.(?=\s|$)"
    )
    found += re.findall(within, text)
    return {(a or b).upper() for a, b in found}
