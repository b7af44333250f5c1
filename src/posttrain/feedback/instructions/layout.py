"""What form: bullets, titles, sections, highlights, placeholders, postscripts, JSON, fixed answers."""

from __future__ import annotations

import json
import re

from pydantic import Field

from posttrain.feedback.instructions.checker import Checker, Words

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCED = re.compile(r"\A```(?:json)?[ \t]*\n?(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)


class BulletLists(Checker):
    """Exactly so many lines that begin with * or -."""

    num_bullets: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        stars = re.findall(r"^[^\S\n]*\*[^*\n].*$", text, re.MULTILINE)
        dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
        return len(stars) + len(dashes) == self.num_bullets


class ConstrainedResponse(Checker):
    """One of IFEval's three answers stands in the response."""

    def followed(self, text: str) -> bool:
        return any(answer in text for answer in _ANSWERS)


class HighlightedSections(Checker):
    """At least so many *highlighted* or **highlighted** pieces that are not empty."""

    num_highlights: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        double = re.findall(r"\*\*([^\n*]+)\*\*", text)
        single = re.findall(r"\*([^\n*]+)\*", re.sub(r"\*\*[^\n*]+\*\*", "", text))
        return sum(bool(piece.strip()) for piece in double + single) >= self.num_highlights


class MultipleSections(Checker):
    """At least so many pieces that begin with a word and a number ("Section 1")."""

    section_spliter: Words  # the name as IFEval spells it
    num_sections: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        heads = re.findall(rf"{re.escape(self.section_spliter.strip())}\s?\d+", text)
        return len(heads) >= self.num_sections


class JsonFormat(Checker):
    """The whole response is JSON, bare or in one fence; NaN and Infinity are none."""

    def followed(self, text: str) -> bool:
        bare = text.strip()
        fenced = _FENCED.match(bare)
        try:
            json.loads(fenced[1] if fenced else bare, parse_constant=_no_constant, parse_int=str)
        except (ValueError, RecursionError):
            return False
        return True


class Title(Checker):
    """A title in double angular brackets that is not empty."""

    def followed(self, text: str) -> bool:
        found = ((line, line.find("<<"), line.rfind(">>")) for line in text.split("\n"))
        return any(0 <= start < end and line[start:end].strip("<> \t") for line, start, end in found)


class Placeholders(Checker):
    """At least so many [placeholders]."""

    num_placeholders: int = Field(ge=0)

    def followed(self, text: str) -> bool:
        closed = (piece for line in text.split("\n") for piece in line.split("]")[:-1])
        return sum("[" in piece for piece in closed) >= self.num_placeholders


class Postscript(Checker):
    """A line holds the marker, P.S. and P.P.S with blanks between their letters or without."""

    postscript_marker: Words

    def followed(self, text: str) -> bool:
        marker = self.postscript_marker.strip().lower()
        known = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s", "p.p.s.": r"p\.\s?p\.\s?s"}
        return re.search(known.get(marker, re.escape(marker)), text.lower()) is not None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
