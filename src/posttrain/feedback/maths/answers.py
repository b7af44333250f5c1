"""Where in a text its final answer stands, and that answer without its wrapping."""

from __future__ import annotations

import re
from collections.abc import Callable

from posttrain.feedback.maths.plain import read_number

_GSM8K = re.compile(r"^[ \t>*]*####[ \t]*(\S.*)$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
# What may stand between two boxes that hold one answer together, and how far they may be apart.
_JOINT = re.compile(r"[\s$,;]*(?:\b(?:and|or)\b|\\(?:text|mathrm)\{\s*(?:and|or)\s*\})?[\s$,;]*")
_FAR = 40
_SAYS = re.compile(
    r"\banswers?\b(?:\s+(?:to|for|of)\b[^.\n:]{0,80}?)?[\s*_]*(?:\b(?:is|are|equals)\b\s*:?|:|=)[\s*_:]*",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[ \t]*(?:#+[ \t]*)?[*_]*final answer[*_:]*[ \t]*\n+[*_ \t]*", re.IGNORECASE | re.MULTILINE
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_CLOSING = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_LOOKED_AT = 4000  # characters after "the answer is" that an answer may be in
_LONGEST_ALONE = 80  # characters of a response that is an answer and nothing else
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
# Of such runs of letters, those that formulas are typed with: functions, constants, products of variables.
_FORMULA = re.compile(
    r"(?i:(?:a(?:rc)?)?(?:sin|cos|tan|cot|sec|csc)h?|sqrt|log|ln|exp|pi|inf(?:inity)?|mod|or|and|oo)|"
    r"(?!am|an|as|at|be|by|do|go|he|hi|if|in|is|it|me|my|no|of|oh|ok|on|so|to|up|us|we)[a-z]{2}|[xyz]{3}|[abc]{3}"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}|\\(?:operatorname|mathbb|mathcal)\s*\{\w+\}")
_LAST_NUMBER = re.compile(r"(?<![\w.,/])[-−]?[$€£]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?(?!\w)")
_WRAP = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mbox|rm|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"(?<!\\)\\[,!;: ]|\\q?quad\b|\\(?:left|right|displaystyle)(?![A-Za-z])|~")


def final_answer(text: str, last_number: bool = False) -> str | None:
    """The answer a text declares last (after ####, in a box, after "the answer is"); else the whole text,
    where that is nothing but an answer; else, if asked for, its last number. None where there is none.
    """
    text = text.rpartition("</think>")[2]
    found = declared(text)
    if found is not None:
        return found
    alone = unwrapped(text)
    if alone and "\n" not in text.strip() and len(alone) <= _LONGEST_ALONE and _whole(alone):
        return alone
    if last_number:
        numbers = _LAST_NUMBER.findall(text)
        return unwrapped(numbers[-1]) if numbers else None
    return None


def declared(text: str) -> str | None:
    """The last answer that a text marks as such; None where it marks none."""
    found = [
        *_last(_GSM8K, text, _of_gsm8k),
        *_last(_SAYS, text, _of_words),
        *_last(_HEADING, text, _of_words),
    ]
    found += [(start, answer) for start, answer in _boxed(text) if answer]
    return max(found)[1] if found else None


def _last(
    pattern: re.Pattern[str], text: str, answer_of: Callable[[re.Match[str]], str]
) -> list[tuple[int, str]]:
    """Where the last match with an answer begins, and the answer; [] where there is none.

    From the end, and no further than it must: a policy that says "the answer is" thousands of times in one
    response is to cost no more than one that says it once.
    """
    for match in reversed(list(pattern.finditer(text))):
        if answer := answer_of(match):
            return [(match.start(), answer)]
    return []


def _of_gsm8k(match: re.Match[str]) -> str:
    answer = unwrapped(match[1])
    return "" if is_prose(answer) else answer  # a heading of the fourth level looks the same


def _of_words(match: re.Match[str]) -> str:
    return unwrapped(_told(match.string[match.end() : match.end() + _LOOKED_AT]))


def unwrapped(answer: str) -> str:
    """An answer without the marks of LaTeX and Markdown around it, and without blanks that mean nothing."""
    answer = answer.replace("\\$", "＄").replace("\\%", "%").replace("{,}", ",")
    answer = _SPACING.sub(" ", answer)
    for _ in range(3):  # \text within \text
        answer = _WRAP.sub(r" \1 ", answer)
    answer = re.sub(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degree\b", "°", answer)
    answer = re.sub(r"\\[()\[\]]", " ", answer).replace("**", " ").replace("`", " ")
    if answer.count("$") % 2 == 0 or not re.match(r"\s*-?\$\s*[\d.]", answer):
        answer = answer.replace("$", " ")
    answer = re.sub(r"\s+", " ", answer.replace("＄", "$"))
    bare = answer.strip(" \"'“”*_").rstrip(".,;: ")
    return bare.strip(" \"'“”*_")


def is_prose(answer: str) -> bool:
    """Whether there are words in it that are none of a formula, nor a number's unit."""
    text = _ENVIRONMENT.sub(" ", answer)
    words = [word for word in _WORD.findall(text) if not _FORMULA.fullmatch(word)]
    return bool(words) and read_number(answer) is None


def _whole(answer: str) -> bool:
    """Whether it can be an answer with nothing about it: no prose, and no box that never closes."""
    return not is_prose(answer) and not _BOX.search(answer)


def _told(rest: str) -> str:
    """What follows "the answer is", to the end of the sentence or line; a formula is not cut in two."""
    start = len(rest) - len(rest.lstrip())
    opening = next((mark for mark in _CLOSING if rest.startswith(mark, start)), None)
    after = start
    if opening is not None:
        closing = rest.find(_CLOSING[opening], start + len(opening))
        currency = opening == "$" and (closing < 0 or "\n" in rest[start:closing])
        after = start if closing < 0 or currency else closing + len(_CLOSING[opening])
    end = _SENTENCE_END.search(rest, after)
    return rest[: end.start() if end else len(rest)]


def _boxed(text: str) -> list[tuple[int, str]]:
    """Where each box, or run of boxes, begins, and what it holds."""
    runs: list[tuple[int, list[str]]] = []
    before = 0
    for start, inside, end in _outermost(text):
        if runs and start - before <= _FAR and _JOINT.fullmatch(text[before:start]):
            runs[-1][1].append(text[inside : end - 1])
        else:
            runs.append((start, [text[inside : end - 1]]))
        before = end
    return [(start, ", ".join(map(unwrapped, answers))) for start, answers in runs]


def _outermost(text: str) -> list[tuple[int, int, int]]:
    """The boxes that close, and stand in no other that does: (start, start of what it holds, end)."""
    open_: list[re.Match[str]] = []
    found: list[tuple[int, int, int]] = []
    for match in _BRACE.finditer(text):
        if match["close"] and open_:
            opening = open_.pop()
            if opening["box"]:
                while found and found[-1][0] > opening.start():
                    found.pop()
                found.append((opening.start(), opening.end(), match.end()))
        elif match["box"] or match["open"]:
            open_.append(match)
    return found
