"""How often one of k answers is right, for every k, from one set of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from posttrain.common.config import DataRef
from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.answered import answered, scoring, verdicts
from posttrain.evaluation.items import group_of
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.feedback.judge import Judge, Verdict
from posttrain.feedback.judge_use import JudgeField
from posttrain.records import Prompt, Response, prompt_key


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
        judge = scoring(self.judge, ctx.account, "pass_at_k")
        asked = answered(ctx, self.data, self.sampling)
        said = iter(self._verdicts(judge, [(prompt, answer) for prompt, given in asked for answer in given]))
        return [self._outcome(prompt, given, [next(said) for _ in given]) for prompt, given in asked]

    def _verdicts(self, judge: Judge, items: Sequence[tuple[Prompt, Response | None]]) -> list[Verdict]:
        said = verdicts(judge, self.judge.name, items)
        odd = next((v.score for v in said if v.score not in (None, 0.0, 1.0)), None)
        if odd is not None:
            raise ConfigError(
                f"judge '{self.judge.name}' gave a score of {odd:g}; pass_at_k needs one that says "
                "1 for right and 0 for wrong"
            )
        return said

    def _outcome(
        self, prompt: Prompt, answers: Sequence[Response | None], said: Sequence[Verdict]
    ) -> Outcome:
        key = prompt_key(prompt)
        scores = [verdict.score for verdict in said if verdict.score is not None]
        n, right = len(scores), sum(score == 1.0 for score in scores)
        metrics: dict[str, float | None] = {
            f"pass@{k}": pass_at_k(n, right, k) if k <= n else None for k in range(1, len(said) + 1)
        }
        metrics["unscored"] = float(len(said) - n)
        reasons = dict.fromkeys(verdict.reason for verdict in said if verdict.reason)
        return Outcome(
            item=key,
            cluster=key,
            metrics=metrics,
            group=group_of(prompt, self.group_by),
            prompt=prompt.text,
            response=next((answer.text for answer in answers if answer), ""),
            note="; ".join(reasons),
        )
