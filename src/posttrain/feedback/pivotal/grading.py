"""What counts as success: a judge, a threshold, and what becomes of answers that nobody can judge."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from posttrain.feedback.judge import Judge
from posttrain.feedback.verdicts import verdicts_of
from posttrain.records import Prompt, Response

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

Policy = Literal["exclude", "failure"]
Answer = tuple[int, tuple[int, ...]]  # question, all tokens of a whole answer
Outcome = tuple[bool | None, str]  # success, and why the judge gave no answer


@dataclass(frozen=True)
class Question:
    """A prompt and its token ids, up to where the answer begins."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Grading:
    """success, no_answer, truncated: as in `PivotalConfig`. name: of the judge."""

    judge: Judge
    name: str
    success: float
    no_answer: Policy
    truncated: Policy

    @property
    def cut_off(self) -> Outcome:
        """The outcome of an answer that did not come to its end."""
        return _by(self.truncated), "cut off"


@final
class Grader:
    """Grades whole answers, equal ones to a question once. Of each it keeps a hash and the outcome alone."""

    def __init__(self, grading: Grading, questions: Sequence[Question], template: ChatTemplate) -> None:
        self.grading, self.questions, self.template = grading, questions, template
        self._known: dict[bytes, Outcome] = {}

    def known(self, answer: Answer) -> Outcome | None:
        """The outcome of an answer that was graded before."""
        return self._known.get(_key(answer))

    def remember(self, answer: Answer, outcome: Outcome) -> None:
        """Note an outcome, also one that an interrupted run was told."""
        self._known[_key(answer)] = outcome

    def grade(self, answers: Sequence[Answer]) -> int:
        """Have all answers known afterwards; returns how many the judge was asked about."""
        new = [answer for answer in dict.fromkeys(answers) if _key(answer) not in self._known]
        items = [
            (
                self.questions[question].prompt,
                Response(text=self.template.decode(tokens), token_ids=tokens, finish="stop"),
            )
            for question, tokens in new
        ]
        grading = self.grading
        verdicts = verdicts_of(grading.judge, items, f"judge '{grading.name}'") if items else []
        for answer, verdict in zip(new, verdicts, strict=True):
            if verdict.score is None:
                self.remember(answer, (_by(grading.no_answer), verdict.reason or "no answer"))
            else:
                self.remember(answer, (verdict.score >= grading.success, ""))
        return len(new)


def _key(answer: Answer) -> bytes:
    question, tokens = answer
    return hashlib.blake2b(array("q", (question, *tokens)).tobytes(), digest_size=16).digest()


def _by(policy: Policy) -> bool | None:
    return False if policy == "failure" else None
