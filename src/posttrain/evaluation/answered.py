"""What tasks that let the model answer share: its answers to prompts, and a judge's verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.items import read_items
from posttrain.evaluation.task import EvalContext
from posttrain.feedback.judge import Account, Judge, Verdict
from posttrain.feedback.judge_use import JudgeUse
from posttrain.feedback.verdicts import verdicts_of
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Response, prompt_key

NO_ROOM = Verdict(None, "no room for an answer")


def answered(
    ctx: EvalContext, path: str, sampling: SamplingParams | None
) -> list[tuple[Prompt, tuple[Response | None, ...]]]:
    """Each prompt of the file, once, with n answers; None stands for each where the prompt leaves the model
    no room. sampling: None is the suite's.
    """
    from posttrain.evaluation.open import with_room

    distinct = {prompt_key(prompt): prompt for prompt in read_items(path, Prompt)}
    prompts = ctx.take(list(distinct.values()))
    room = with_room(ctx.model(), prompts)
    given = iter(ctx.respond([p for p, fits in zip(prompts, room, strict=True) if fits], sampling))
    none = (None,) * (sampling or ctx.sampling).n
    return [(prompt, next(given) if fits else none) for prompt, fits in zip(prompts, room, strict=True)]


def scoring(use: JudgeUse, account: Account | None, task: str) -> Judge:
    """The judge, ready to score for a task. Raises ConfigError where it only compares."""
    judge = use.open(account)
    if not isinstance(judge, Judge):
        raise ConfigError(f"judge '{use.name}' only compares two answers; {task} needs one that scores")
    return judge


def verdicts(judge: Judge, name: str, items: Sequence[tuple[Prompt, Response | None]]) -> list[Verdict]:
    """One an item; an answer that was cut off, or that there was no room for, is not put to the judge."""
    whole = [(prompt, answer) for prompt, answer in items if answer and answer.finish != "length"]
    said = iter(verdicts_of(judge, whole, f"judge '{name}'"))
    return [
        NO_ROOM if answer is None else CUT_OFF if answer.finish == "length" else next(said)
        for _, answer in items
    ]
