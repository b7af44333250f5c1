"""What a model knows, gets wrong and does not claim to know: short facts in three classes."""

from __future__ import annotations

from typing import ClassVar

from posttrain.common.config import DataRef
from posttrain.common.errors import PosttrainError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.answered import answered
from posttrain.evaluation.items import group_of
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.feedback.fact_grades import Graded, RuleGrader
from posttrain.feedback.knowledge.graders import GraderField
from posttrain.records import Prompt, Response, prompt_key

CLASSES = ("correct", "incorrect", "not_attempted")
NO_ROOM = Graded(None, "no room for an answer", asked=False)


class ShortFacts(TaskConfig):
    """The shares `correct`, `incorrect` and `not_attempted`, which make up one; `ungraded`, the share of the
    answers put to the grader of which it gave no grade that could be read: a state of its own, left out of
    the three. `correct_given_attempted` is correct / (correct + incorrect), between two models over what both
    attempted. `f_score` is the harmonic mean of that and of `correct` (SimpleQA, Wei et al.,
    arXiv:2411.04368, section 2.4): 2 correct / (1 + correct + incorrect), a mean over answers that weigh 2
    where attempted.

    An answer that was cut off, or to which there is no reference, is in the third state everywhere.

    data: prompts with references, or rows that hold them. grader: `rule`, or `{name: rule | llm | check, …}`.
    sampling: how answers are drawn; the suite's where not given. group_by: a tag of the prompt; results are
    also given for each of its values. cluster_by: a tag of the prompt; answers to prompts that share its
    value (one question in several wordings) are no independent draws.
    """

    title: ClassVar[str] = "Short facts"
    headline: ClassVar[str] = "correct"
    wins: ClassVar[str | None] = "correct"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"incorrect", "ungraded"})
    undirected: ClassVar[frozenset[str]] = frozenset({"not_attempted"})

    data: DataRef
    grader: GraderField = RuleGrader()
    sampling: SamplingParams | None = None
    group_by: str = ""
    cluster_by: str = ""

    def measures(self) -> frozenset[str]:
        return frozenset({*metrics_of(Graded("correct")), "finished"})

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome an answer; those to one prompt share a cluster. A prompt given twice is asked once."""
        grader = self.grader.open(ctx.account)
        items = [
            (prompt, n, response)
            for prompt, given in answered(ctx, self.data, self.sampling)
            for n, response in enumerate(given)
        ]
        asked = [(prompt, response) for prompt, _, response in items if response is not None]
        said = grader.grade(asked)
        if len(said) != len(asked):
            raise PosttrainError(f"the grader gave {len(said)} grades to {len(asked)} answers")
        grades = iter(said)
        return [
            self._outcome(prompt, n, response, NO_ROOM if response is None else next(grades))
            for prompt, n, response in items
        ]

    def _outcome(self, prompt: Prompt, n: int, answer: Response | None, graded: Graded) -> Outcome:
        key = prompt_key(prompt)
        finished = None if answer is None else float(answer.finish != "length")
        return Outcome(
            item=f"{key}/{n}",
            cluster=prompt.tags.get(self.cluster_by, key),
            metrics=metrics_of(graded) | {"finished": finished},
            weights={"f_score": 1.0 if graded.grade == "not_attempted" else 2.0},
            group=group_of(prompt, self.group_by),
            prompt=prompt.text,
            response=answer.text if answer else "",
            note=graded.reason,
        )


def metrics_of(graded: Graded) -> dict[str, float | None]:
    """An answer's share in each number; `correct_given_attempted` has no item for what was not attempted."""
    grade = graded.grade
    found: dict[str, float | None] = {
        name: None if grade is None else float(grade == name) for name in CLASSES
    }
    found["ungraded"] = float(grade is None) if graded.asked else None
    if grade != "not_attempted":
        found["correct_given_attempted"] = found["correct"]
    found["f_score"] = found["correct"]
    return found
