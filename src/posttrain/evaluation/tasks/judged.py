"""Let the model answer prompts, and let a judge score the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from posttrain.common.config import DataRef
from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.items import group_of, read_items
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.feedback.judge import Account, Judge, Verdict
from posttrain.feedback.judge_use import JudgeField
from posttrain.feedback.verdicts import verdicts_of
from posttrain.records import Prompt, Response, prompt_key

CUT_OFF = Verdict(None, "cut off")


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
        from posttrain.evaluation.open import with_room

        distinct = {prompt_key(prompt): prompt for prompt in read_items(self.data, Prompt)}
        prompts = ctx.take(list(distinct.values()))
        room = with_room(ctx.model(), prompts)
        answers = iter(ctx.respond([p for p, fits in zip(prompts, room, strict=True) if fits], self.sampling))
        asked = (self.sampling or ctx.sampling).n
        items = [
            (prompt, n, response)
            for prompt, fits in zip(prompts, room, strict=True)
            for n, response in enumerate(next(answers) if fits else [None] * asked)
        ]
        verdicts = self._verdicts([(prompt, response) for prompt, _, response in items], ctx.account)
        parts = list(dict.fromkeys(name for verdict in verdicts for name in verdict.parts))
        return [
            self._outcome(prompt, n, response, verdict, parts)
            for (prompt, n, response), verdict in zip(items, verdicts, strict=True)
        ]

    def _verdicts(
        self, items: Sequence[tuple[Prompt, Response | None]], account: Account | None
    ) -> list[Verdict]:
        judge = self.judge.open(account)
        if not isinstance(judge, Judge):
            raise ConfigError(
                f"judge '{self.judge.name}' only compares two answers; this task needs one that scores"
            )
        whole = [(prompt, answer) for prompt, answer in items if answer and answer.finish != "length"]
        said = iter(verdicts_of(judge, whole, f"judge '{self.judge.name}'"))
        return [
            Verdict(None, "no room for an answer")
            if answer is None
            else CUT_OFF
            if answer.finish == "length"
            else next(said)
            for _, answer in items
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
