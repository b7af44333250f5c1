"""Tasks with a known truth: what a model does with held-out questions, graded exactly."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.playground.oracle import grade
from posttrain.playground.question import Grade, spec_of
from posttrain.playground.setting import Setting
from posttrain.playground.sources import Prompts
from posttrain.playground.world import Split
from posttrain.records import Prompt, Response


class PlaygroundTask(Setting, TaskConfig):
    """Asks `n` distinct questions and grades each answer.

    answers: the model ended its turn, and what it wrote has the form of an answer, right or wrong. What was
    cut off has not; nothing else can be told of it, so its other metrics are in the third state.
    score: the oracle's, in [0, 1].

    sampling: how answers are drawn; the suite's where not given. split, draw, only, seed, fame: as in
    `playground/prompts`.
    """

    version: ClassVar[int] = 1  # part of a step's key: raise it when questions or grades change
    headline: ClassVar[str] = "score"
    wins: ClassVar[str | None] = "score"
    areas: ClassVar[tuple[str, ...]] = ()
    group_by: ClassVar[str] = ""

    n: int = Field(100, ge=1)
    split: Split = "heldout"
    draw: int = 0
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    sampling: SamplingParams | None = None

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome an answer; questions that ask the same in other words share a cluster."""
        prompts = ctx.take(list(Prompts.model_validate(self._fields()).rows()))
        answers = ctx.respond(prompts, self.sampling)
        return [
            self._outcome(prompt, i, response)
            for prompt, some in zip(prompts, answers, strict=True)
            for i, response in enumerate(some)
        ]

    def asks(self) -> list[Any]:
        return [{"name": "playground/prompts", **self._fields()}]

    def _fields(self) -> dict[str, Any]:
        """Of the source that the questions come from."""
        fields = self.model_dump(include={"seed", "fame", "n", "split", "draw", "only"})
        return fields | ({"areas": dict.fromkeys(self.areas, 1.0)} if self.areas else {})

    def _outcome(self, prompt: Prompt, i: int, response: Response) -> Outcome:
        found = grade(prompt, response)
        cut = response.finish == "length"
        told = {"score": found.score, **self.measure(found)}
        metrics = {name: None if cut else value for name, value in told.items()}
        _, area, key = spec_of(prompt)
        return Outcome(
            item=f"{prompt.provenance.id}/{i}",
            cluster=f"{area}/{key}",
            metrics={"answers": float(found.answered and not cut), **metrics},
            group=prompt.tags[self.group_by],
            prompt=prompt.text,
            response=response.text,
            note="cut off" if cut else found.outcome,
        )

    def measure(self, found: Grade) -> dict[str, float]:
        """What a task tells of an answer besides its score."""
        raise NotImplementedError


class Everything(PlaygroundTask):
    """`playground/oracle`: questions from all areas in equal parts, by area."""

    title: ClassVar[str] = "Oracle's score"
    group_by: ClassVar[str] = "area"

    def measure(self, found: Grade) -> dict[str, float]:
        return {"correct": float(found.outcome == "correct")}


class Atlas(PlaygroundTask):
    """`playground/atlas`: correct, declined or incorrect, by how often the corpus told the fact."""

    title: ClassVar[str] = "Atlas"
    headline: ClassVar[str] = "correct"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"incorrect"})
    areas: ClassVar[tuple[str, ...]] = ("atlas",)
    group_by: ClassVar[str] = "group"

    def measure(self, found: Grade) -> dict[str, float]:
        return {name: float(found.outcome == name) for name in ("correct", "declined", "incorrect")}


class Arithmetic(PlaygroundTask):
    """`playground/arithmetic`: is the number right, by level; `worked`, the share of steps that hold."""

    title: ClassVar[str] = "Arithmetic"
    headline: ClassVar[str] = "correct"
    areas: ClassVar[tuple[str, ...]] = ("arithmetic",)
    group_by: ClassVar[str] = "level"

    def measure(self, found: Grade) -> dict[str, float]:
        return {"correct": float(found.outcome == "correct"), "worked": found.manner["complete"]}


class Format(PlaygroundTask):
    """`playground/format`: `obeyed`, all rules hold and the things are right; `rules`, the share held."""

    title: ClassVar[str] = "Format"
    headline: ClassVar[str] = "obeyed"
    areas: ClassVar[tuple[str, ...]] = ("format",)
    group_by: ClassVar[str] = "rule"

    def measure(self, found: Grade) -> dict[str, float]:
        return {"obeyed": float(found.score == 1), "rules": found.manner["format"]}


class Letters(PlaygroundTask):
    """`playground/letters`: does a note do what was asked, how complete and how polite is it, by purpose."""

    title: ClassVar[str] = "Letters"
    areas: ClassVar[tuple[str, ...]] = ("letters",)
    group_by: ClassVar[str] = "purpose"

    def measure(self, found: Grade) -> dict[str, float]:
        return {"correct": float(found.outcome == "correct"), **found.manner}
