"""Short facts: one of several right answers, word for word after the usual normalisation."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from pydantic import field_validator

from posttrain.common.config import Config
from posttrain.feedback.judge import Verdict
from posttrain.feedback.verifiers import NO_ANSWER, answered, compiled, found_last, ungradable
from posttrain.records import Prompt, Response

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_MARKS = set(string.punctuation)


class AliasMatch(Config):
    """1 where the response is one of the prompt's references, else 0. Without a reference there is no answer.

    Compared as SQuAD and NQ-open are (Rajpurkar et al., arXiv:1606.05250): without case, punctuation, the
    articles a, an, the, and with blanks run together; Unicode form NFKC and Unicode's own punctuation too.
    within: also where an alias stands in the response as whole words; a response that lists many guesses is
    right then, so use it only where the answer is known to be one sentence.
    answer: a regular expression that finds the answer in a longer response, its first group where it has one;
    the last match counts. A response without a match cannot be graded and gets no answer.
    """

    within: bool = False
    answer: str | None = None

    @field_validator("answer")
    @classmethod
    def _compiles(cls, answer: str | None) -> str | None:
        return answer if answer is None else compiled(answer).pattern

    def open(self) -> AliasJudge:
        return AliasJudge(self)


@final
@dataclass(frozen=True)
class AliasJudge:
    cfg: AliasMatch

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        if why := ungradable(prompt, response):
            return why
        said = found_last(self.cfg.answer, response.text)
        if said is None:
            return NO_ANSWER
        found = matching(said, prompt.references, self.cfg.within)
        return Verdict(float(found is not None), f"is '{found}'" if found else answered(said))


def matching(said: str, aliases: Iterable[str], within: bool = False) -> str | None:
    """The first of the aliases that `said` is, or with `within` holds as whole words; None where none."""
    whole = normalised(said)
    for alias in aliases:
        wanted = normalised(alias)
        if wanted == whole or (within and f" {wanted} " in f" {whole} "):
            return alias
    return None


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks. Text that is nothing else keeps what it has."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(c for c in folded if c not in _ASCII_MARKS and not unicodedata.category(c).startswith("P"))
    words = _ARTICLES.sub(" ", bare).split() or bare.split() or folded.split()
    return " ".join(words)
