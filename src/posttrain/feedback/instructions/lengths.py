"""How much: words, sentences, paragraphs."""

from __future__ import annotations

import re

from pydantic import Field

from posttrain.feedback.instructions.checker import Checker, Relation, Words, holds

_WORD = re.compile(r"\w+")
_END = re.compile(r"(?P<mark>[.!?…]+|[。！？]+)[\"'”’)\]*_]*(?=\s|$)|(?<=[。！？])(?=\S)|\n\s*\n")
# Words whose full stop ends no sentence, those of them that may, and words that then begin the next.
_SHORT = re.compile(
    "mrs?|ms|dr|prof|st|jr|sr|vs|etc|e\\.g|i\\.e|cf|vol|al|inc|ltd|co|approx|dept|est|gen|gov|sen|capt|col|maj|lt|"
    "jan|feb|apr|jun|jul|aug|sept?|oct|nov|dec|[ap]\\.m|u\\.[sk]|ph\\.d"
)
_ENDS_TOO = re.compile("etc|[ap]\\.m|u\\.[sk]|ph\\.d|inc|ltd|[js]r")
_STARTS = re.compile("an?|the|th(is|at|ese|ose)|it|s?he|they|we|you|i|in|on|at|but|and|so|however")


_AROUND = 200  # characters on either side of a mark that say whether it closes a sentence


class NumberOfWords(Checker):
    """Words are runs of letters, digits and underscores: "don't" counts two."""

    relation: Relation
    num_words: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        return holds(len(_WORD.findall(text)), self.relation, self.num_words)


class NumberOfSentences(Checker):
    relation: Relation
    num_sentences: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        return holds(len(sentences(text)), self.relation, self.num_sentences)


class NumberOfParagraphs(Checker):
    """Exactly so many, parted by ***; an empty one between two others breaks the rule."""

    num_paragraphs: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
        inner = parts[1 if not parts[0] else 0 : -1 if len(parts) > 1 and not parts[-1] else None]
        return all(inner) and len(inner) == self.num_paragraphs


class ParagraphFirstWord(Checker):
    """Exactly so many paragraphs, parted by blank lines, and the n-th begins with a word (case aside)."""

    num_paragraphs: int = Field(ge=1)
    nth_paragraph: int = Field(ge=1)
    first_word: Words

    def followed(self, text: str) -> bool:
        parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        if len(parts) != self.num_paragraphs or self.nth_paragraph > len(parts):
            return False
        first = re.split(r"[.,?!'\"]", parts[self.nth_paragraph - 1].split()[0].lstrip("'\""))[0]
        return first.casefold() == self.first_word.casefold()


def sentences(text: str) -> list[str]:
    """A text's sentences, by their closing marks and blank lines; text without a mark is a sentence too.

    A full stop after an initial, a list's number or an abbreviation closes none, unless the abbreviation is
    one that may end a sentence and the next word one that likes to begin it; nor do dots before a small
    letter.
    """
    found, start = [], 0
    for match in _END.finditer(text):
        mark = match.groupdict().get("mark") or ""
        after = text[match.end() : match.end() + _AROUND].lstrip(" \t\"'“(*_")
        dots = set(mark) <= set(".…") and mark != "."
        if dots and after[:1].islower():
            continue
        if (
            mark == "."
            and after.strip()
            and not _closes(text[max(start, match.start() - _AROUND) : match.start()], after)
        ):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    found.append(text[start:])
    return [part.strip() for part in found if re.search(r"\w", part)]


def _closes(before: str, after: str) -> bool:
    """Whether a single full stop between the two ends a sentence."""
    line = before.rpartition("\n")[2].split()
    last = line[-1].casefold().lstrip("(\"'“*_") if line else ""
    if last.isdecimal() and len(line) == 1:  # "1. First"
        return False
    if last == "no" and after[0].isdecimal():
        return False
    if len(last) == 1 and last.isalpha() and last != "i":
        return False
    first = after.split()[0].casefold().strip(".,")
    begins = not after[0].islower() and _STARTS.fullmatch(first)
    return not _SHORT.fullmatch(last) or bool(_ENDS_TOO.fullmatch(last) and begins)
