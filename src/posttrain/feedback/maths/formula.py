"""Answers that are no plain number, put the way math-verify's LaTeX parser reads them."""

from __future__ import annotations

import re

_SYMBOLS = {
    **{"π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "≤": r"\le ", "≥": r"\ge "},
    **{"≠": r"\ne ", "−": "-", "–": "-", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "½": r"\frac{1}{2}"},
    **{"¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^{2}", "³": "^{3}", "°": "", "∅": r"\emptyset "},
    **{"<=": r"\le ", ">=": r"\ge ", "**": "^", "*": r"\cdot ", "%": r"\%"},
}
_SYMBOL = re.compile("|".join(map(re.escape, sorted(_SYMBOLS, key=len, reverse=True))))
_ROOT = re.compile(r"(?:√|(?<![\\a-zA-Z])sqrt)\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\w+))")
_NAME = re.compile(r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![a-zA-Z])")
_INFINITY = re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])")
_EXPONENT = re.compile(r"\^\s*\(([^()]*)\)")
_JOINED = re.compile(r"\s*,?\s+(?:and|or)\s+")
_TRAILING_UNIT = re.compile(
    r"(?<=[\d)}\]°])\s*(?!(?:and|or|mod)\b)[A-Za-z]{2,}(?:[ /][A-Za-z]+){0,2}(?:\^\{?\d\}?)?$"
)


def as_latex(answer: str) -> str:
    """An answer as LaTeX: typed functions, roots and symbols, "1 or 2" as a list, no unit at its end."""
    answer = _TRAILING_UNIT.sub("", answer.replace("$", ""))
    answer = _JOINED.sub(", ", answer)
    answer = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3]}}}", answer)
    answer = _SYMBOL.sub(lambda m: _SYMBOLS[m[0]], answer)
    answer = _EXPONENT.sub(r"^{\1}", answer)
    answer = _INFINITY.sub(r"\\infty ", answer)
    return _NAME.sub(r"\\\1 ", answer).strip()


def is_text(answer: str) -> bool:
    """Whether an answer is words alone ("even", "Evelyn's cat"), to be compared as such."""
    return bool(re.fullmatch(r"[^\W\d_][^\W\d_]+(?:[\s'’-]+[^\W\d_]+)*", answer))
