"""Which words: wanted, forbidden, counted. Case never matters."""

from __future__ import annotations

import re

from pydantic import Field

from posttrain.feedback.instructions.checker import Checker, Relation, Words, holds


class KeywordsExist(Checker):
    """Each stands in the response, as in IFEval also inside a longer word ("correlate" in "correlated")."""

    keywords: tuple[Words, ...] = Field(min_length=1)

    def followed(self, text: str) -> bool:
        return all(keyword.casefold() in text.casefold() for keyword in self.keywords)


class KeywordFrequency(Checker):
    """How often a keyword stands in the response, inside longer words too."""

    keyword: Words
    frequency: int = Field(ge=0)
    relation: Relation

    def followed(self, text: str) -> bool:
        count = text.casefold().count(self.keyword.casefold())
        return holds(count, self.relation, self.frequency)


class ForbiddenWords(Checker):
    """None of the words stands in the response as a word of its own."""

    forbidden_words: tuple[Words, ...] = Field(min_length=1)

    def followed(self, text: str) -> bool:
        return not any(_stands_in(word, text) for word in self.forbidden_words)


class LetterFrequency(Checker):
    """How often one character stands in the response, in either case."""

    letter: str = Field(min_length=1, max_length=1)
    let_frequency: int = Field(ge=0)
    let_relation: Relation

    def followed(self, text: str) -> bool:
        return holds(text.lower().count(self.letter.lower()), self.let_relation, self.let_frequency)


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
