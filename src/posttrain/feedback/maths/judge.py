"""The judge of mathematics: the answer a response ends on, compared with the reference for what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, final

from pydantic import Field

from posttrain.common.config import Config
from posttrain.feedback.judge import Verdict
from posttrain.feedback.maths.answers import declared, final_answer, is_prose, unwrapped
from posttrain.feedback.maths.comparer import Comparer
from posttrain.feedback.maths.formula import as_latex, is_text
from posttrain.feedback.maths.plain import LONGEST, read_number, same_number
from posttrain.feedback.verifiers import NO_ANSWER, answered, ungradable
from posttrain.records import Prompt, Response


class Maths(Config):
    """1 where the final answer of the response is equal to a reference of the prompt, else 0.

    The final answer is what the response marks last: a line after ####, \\boxed{}, "the answer is"; or the
    whole response, where that is an answer alone. Without one there is no answer. Of the reference the same
    part counts, or all of it. Plain numbers are compared exactly (fractions, decimals, percent, thousands,
    currencies and units); everything else by math-verify, in a process with limits.

    unmarked: "last_number" takes the last number of a response that marks none. digits: a decimal of at least
    so many significant digits equals what rounds to it. limit_s: seconds of processor time that
    comparing two formulas may take; beyond that there is no answer.
    """

    unmarked: Literal["no_answer", "last_number"] = "no_answer"
    digits: int = Field(6, ge=1)
    limit_s: float = Field(5.0, gt=0)

    def open(self) -> MathsJudge:
        return MathsJudge(self, Comparer(self.limit_s))


@final
@dataclass(frozen=True)
class MathsJudge:
    cfg: Maths
    comparer: Comparer

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        if why := ungradable(prompt, response):
            return why
        said = final_answer(response.text, self.cfg.unmarked == "last_number")
        if said is None:
            return NO_ANSWER
        found = [self.same(reference, said) for reference in prompt.references]
        unknown = [why for why in found if isinstance(why, str)]
        if unknown and True not in found:
            return Verdict(None, f"{unknown[0]}: {answered(said)}")
        return Verdict(float(True in found), answered(said))

    def same(self, reference: str, said: str) -> bool | str:
        """Whether an answer is the reference, or why that cannot be told."""
        wanted = _wanted(reference)
        if not wanted:
            return "the reference is empty"
        if "".join(wanted.split()) == "".join(said.split()):
            return True
        a, b = read_number(wanted), read_number(said)
        if a is not None and b is not None:
            same = same_number(a, b, self.cfg.digits)
            return f"units differ, '{a.unit}' and '{b.unit}'" if same is None else same
        if is_text(wanted) and is_prose(wanted):
            return wanted.casefold() == said.casefold()
        gold, answer = as_latex(wanted), as_latex(said)
        for which, text in (("reference", gold), ("answer", answer)):
            if is_prose(text):
                return f"the {which} cannot be read as mathematics"
            if len(text) > LONGEST:
                return f"the {which} is longer than {LONGEST} characters"
        return self.comparer.same(gold, answer)


@lru_cache(4096)
def _wanted(reference: str) -> str:
    return declared(reference) or unwrapped(reference)
