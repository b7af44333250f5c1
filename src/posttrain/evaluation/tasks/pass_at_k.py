"""How often one of k answers is right, for every k, from one set of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from posttrain.common.config import DataRef
from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.items import group_of, read_items
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.feedback.judge import Judge, Verdict
from posttrain.feedback.judge_use import JudgeField
from posttrain.feedback.verdicts import verdicts_of
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Response, prompt_key

NO_ROOM = Verdict(None, "no room for an answer")


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): of all sets of k out of n answers, c of them right, the share that holds a
    right one; unbiased for the chance that one of k new answers is right.

    Chen et al. 2021, arXiv:2107.03374, equation 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} answers, {c} of them right, is not defined")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


class PassAtK(TaskConfig):
    """`pass@k` for every k up to the number of answers, each without bias from the same answers to a prompt.

    An answer that was cut off, or of which the judge cannot tell, is in the third state: it is left out of
    its prompt's n, and `unscored` counts such answers. Where more answers were drawn than scored, the prompt
    has no value for the largest k.

    data: prompts, or rows that hold them. judge: says right (1) or wrong (0), such as `python_tests`.
    sampling: how answers are drawn, n of them a prompt; the suite's where not given. group_by: a tag of the
    prompt; results are also given for each of its values.
    """

    title: ClassVar[str] = "pass@k"
    headline: ClassVar[str] = "pass@1"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"unscored"})

    data: DataRef
    judge: JudgeField
    sampling: SamplingParams | None = None
    group_by: str = ""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a prompt; a prompt given twice is asked once. Raises ConfigError where the judge cannot
        be opened, before a model is loaded.
        """
        judge = self.judge.open()
        if not isinstance(judge, Judge):
            raise ConfigError(
                f"judge '{self.judge.name}' only compares two answers; pass_at_k needs one that "
                "says right or wrong"
            )
        distinct = {prompt_key(prompt): prompt for prompt in read_items(self.data, Prompt)}
        keys = ctx.take(list(distinct))
        prompts = [distinct[key] for key in keys]
        answers = self._answers(ctx, prompts)
        verdicts = iter(self._verdicts(judge, prompts, answers))
        return [
            self._outcome(key, prompt, given, [next(verdicts) for _ in given])
            for key, prompt, given in zip(keys, prompts, answers, strict=True)
        ]

    def _answers(self, ctx: EvalContext, prompts: Sequence[Prompt]) -> list[tuple[Response | None, ...]]:
        """n a prompt; None stands for each answer to a prompt that leaves the model no room."""
        from posttrain.evaluation.open import with_room

        room = with_room(ctx.model(), prompts)
        given = iter(ctx.respond([p for p, fits in zip(prompts, room, strict=True) if fits], self.sampling))
        return [next(given) if fits else (None,) * (self.sampling or ctx.sampling).n for fits in room]

    def _verdicts(
        self, judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response | None]]
    ) -> list[Verdict]:
        items = [(p, answer) for p, given in zip(prompts, answers, strict=True) for answer in given]
        whole = [(p, answer) for p, answer in items if answer and answer.finish != "length"]
        said = iter(verdicts_of(judge, whole, f"judge '{self.judge.name}'"))
        verdicts = [
            NO_ROOM if answer is None else CUT_OFF if answer.finish == "length" else next(said)
            for _, answer in items
        ]
        odd = next((v.score for v in verdicts if v.score not in (None, 0.0, 1.0)), None)
        if odd is not None:
            raise ConfigError(
                f"judge '{self.judge.name}' gave a score of {odd:g}; pass_at_k needs one that says "
                "1 for right and 0 for wrong"
            )
        return verdicts

    def _outcome(
        self, key: str, prompt: Prompt, answers: Sequence[Response | None], verdicts: Sequence[Verdict]
    ) -> Outcome:
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        n, right = len(scores), sum(score == 1.0 for score in scores)
        metrics: dict[str, float | None] = {
            f"pass@{k}": pass_at_k(n, right, k) if k <= n else None for k in range(1, len(verdicts) + 1)
        }
        metrics["unscored"] = float(len(verdicts) - n)
        reasons = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.reason)
        return Outcome(
            item=key,
            cluster=key,
            metrics=metrics,
            group=group_of(prompt, self.group_by),
            prompt=prompt.text,
            response=next((answer.text for answer in answers if answer), ""),
            note="; ".join(reasons),
        )
