"""Let the model answer prompts, and let a judge score the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from posttrain.common.config import DataRef
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.answered import answered, scoring, verdicts
from posttrain.evaluation.items import group_of
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.feedback.judge import Verdict
from posttrain.feedback.judge_use import JudgeField
from posttrain.records import Prompt, Response, prompt_key


class Judged(TaskConfig):
    """`score` is the judge's, in its own units; its parts stand beside it as `score/<part>`.

    An answer that was cut off is not judged: it is in the third state, as where the judge gives no answer or
    a prompt leaves the model no room. `finished` says how many answers ended by themselves, `tokens` how long
    those are. Between two models, the answers to each prompt are also counted as won, tied and lost by
    `score`.

    data: prompts, or rows that hold them. judge: any judge that scores, `{name: …, settings…}`. sampling: how
    answers are drawn; the suite's where not given. group_by: a tag of the prompt; results are also given for
    each of its values.
    """

    title: ClassVar[str] = "Judged answers"
    headline: ClassVar[str] = "score"
    wins: ClassVar[str | None] = "score"
    units: ClassVar[dict[str, str]] = {"tokens": "tokens"}

    data: DataRef
    judge: JudgeField
    sampling: SamplingParams | None = None
    group_by: str = ""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome an answer; those to one prompt share a cluster. A prompt given twice is asked once."""
        asked = answered(ctx, self.data, self.sampling)
        items = [(prompt, n, answer) for prompt, given in asked for n, answer in enumerate(given)]
        judge = scoring(self.judge, ctx.account, "this task")
        said = verdicts(judge, self.judge.name, [(prompt, answer) for prompt, _, answer in items])
        parts = list(dict.fromkeys(name for verdict in said for name in verdict.parts))
        return [
            self._outcome(prompt, n, answer, verdict, parts)
            for (prompt, n, answer), verdict in zip(items, said, strict=True)
        ]

    def _outcome(
        self, prompt: Prompt, n: int, answer: Response | None, verdict: Verdict, parts: Sequence[str]
    ) -> Outcome:
        finished = None if answer is None else float(answer.finish != "length")
        length = len(answer.token_ids) if answer and answer.token_ids and finished else None
        key = prompt_key(prompt)
        return Outcome(
            item=f"{key}/{n}",
            cluster=key,
            metrics={
                "score": verdict.score,
                **{f"score/{name}": verdict.parts.get(name) for name in parts},
                "finished": finished,
                "tokens": None if length is None else float(length),
            },
            group=group_of(prompt, self.group_by),
            prompt=prompt.text,
            response=answer.text if answer else "",
            note=verdict.reason,
        )
