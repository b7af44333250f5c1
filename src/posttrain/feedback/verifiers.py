"""Judges that follow a rule: right or wrong, 1 or 0, and None where the rule cannot tell."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from pydantic import field_validator

from posttrain.common.config import Config
from posttrain.feedback.judge import Verdict
from posttrain.records import Prompt, Response

CUT_OFF = Verdict(None, "cut off")
NO_REFERENCE = Verdict(None, "the prompt has no reference")
NO_ANSWER = Verdict(None, "no answer found in the response")
_TOLD = 200  # characters of an answer that a verdict repeats
_ANSWERED = "answered '"
_SPACE = re.compile(r"\s+")
_WRAPPING = "\"'`“”‘’«»*_ "
_CLOSING = ".!?,;:… "


class ExactMatch(Config):
    """1 where the response is the prompt's reference, else 0. Without a reference there is no answer.

    Both are compared in Unicode form NFKC with blanks run together, quotes and emphasis around them and marks
    at their end taken away, and, unless case_sensitive, without case.
    answer: a regular expression that finds the answer in a longer text, its first group where it has one; the
    last match counts, in the response and, where it matches there, in the reference. A response without a
    match cannot be graded and gets no answer.
    """

    answer: str | None = None
    case_sensitive: bool = False

    @field_validator("answer")
    @classmethod
    def _compiles(cls, answer: str | None) -> str | None:
        return answer if answer is None else compiled(answer).pattern

    def open(self) -> ExactMatchJudge:
        return ExactMatchJudge(self)


@final
@dataclass(frozen=True)
class ExactMatchJudge:
    cfg: ExactMatch

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        if why := ungradable(prompt, response):
            return why
        said = found_last(self.cfg.answer, response.text)
        if said is None:
            return NO_ANSWER
        reference = prompt.references[0]
        wanted = found_last(self.cfg.answer, reference)
        wanted = self._normalised(reference if wanted is None else wanted)
        return Verdict(float(self._normalised(said) == wanted), answered(said))

    def _normalised(self, text: str) -> str:
        text = _SPACE.sub(" ", unicodedata.normalize("NFKC", text))
        bare = text.strip(_WRAPPING).rstrip(_CLOSING + _WRAPPING) or text.strip()
        return bare if self.cfg.case_sensitive else bare.casefold()


class Pattern(Config):
    """1 where the response matches a regular expression, else 0.

    whole: from its first character to its last, blanks around it aside; else anywhere. wanted: False turns it
    round, 1 where it does not match. A dot also stands for a line's end.
    """

    pattern: str
    whole: bool = False
    wanted: bool = True

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return compiled(pattern).pattern

    def open(self) -> PatternJudge:
        return PatternJudge(self)


@final
@dataclass(frozen=True)
class PatternJudge:
    cfg: Pattern

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        expression = re.compile(self.cfg.pattern, re.DOTALL)
        match = expression.fullmatch if self.cfg.whole else expression.search
        return [
            CUT_OFF
            if response.finish == "length"
            else Verdict(float((match(response.text.strip()) is not None) == self.cfg.wanted))
            for _, response in items
        ]


def ungradable(prompt: Prompt, response: Response) -> Verdict | None:
    """Why there is nothing to compare; None where there is."""
    if response.finish == "length":
        return CUT_OFF
    return None if prompt.references else NO_REFERENCE


def answered(said: str) -> str:
    """What a verdict says of an answer; a response as long as a book is not repeated in full, and half a
    character, which no file can hold, is escaped.
    """
    text = said.strip()
    shown = text if len(text) <= _TOLD else text[:_TOLD] + "…"
    return f"{_ANSWERED}{shown.encode('utf-8', 'backslashreplace').decode()}'"


def without_answer(reason: str) -> str:
    """A verdict's reason without the answer that it quotes (`answered`): what reasons are counted by."""
    return reason.partition(f": {_ANSWERED}")[0]


def found_last(pattern: str | None, text: str) -> str | None:
    """The last match, its first group where the expression has one; the text itself without an expression,
    None without a match.
    """
    if pattern is None:
        return text
    found = list(re.finditer(pattern, text))
    return found[-1][1 if found[-1].re.groups else 0] if found else None


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ValueError that shows where the expression is wrong."""
    try:
        return re.compile(pattern)
    except re.error as e:
        raise ValueError(f"no regular expression: {e.msg} at position {e.pos} of {pattern!r}") from None
