"""What the search works with: questions the model can take, an engine over token ids, a judge that scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.engines.token_writer import TokenWriter
from posttrain.engines.writer import Job
from posttrain.feedback.judge import Judge
from posttrain.feedback.judge_use import account_of
from posttrain.feedback.pivotal.grading import Grading, Question
from posttrain.feedback.pivotal.roller import EngineRoller
from posttrain.feedback.pivotal.step import gives_texts
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.records import Prompt, prompt_key

if TYPE_CHECKING:
    from posttrain.feedback.pivotal.step import PivotalConfig


@dataclass(frozen=True)
class World:
    """writer: the model's. repeated: rows with a prompt that another has. rejected: prompts that could not
    be used, and rows that could not be read.
    """

    questions: Sequence[Question]
    roller: EngineRoller
    writer: TokenWriter
    repeated: int
    rejected: int


def open_world(cfg: PivotalConfig, ctx: StepContext) -> World:
    """Raises ConfigError for an engine that gives texts and a judge that only compares, DataError where no
    prompt can be asked.
    """
    judge = cfg.judge.open(account_of(ctx))
    if not isinstance(judge, Judge):
        raise ConfigError(
            f"judge '{cfg.judge.name}' only compares two answers; pivotal needs one that scores"
        )
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        rows = read_records(cfg.prompts, Prompt, rejects=rejects)
        first: dict[str, int] = {}
        for number, row in enumerate(rows, 1):
            first.setdefault(prompt_key(row), number)
        places = list(first.values())[: cfg.limit]
        distinct = [rows[number - 1] for number in places]
        repeated = len(rows) - len(first)
        rejects.kept = len(distinct)
        rejects.check(cfg.max_rejected)
        job = Job(cfg.model, ctx.state / "replies", ctx.out.name, cfg.precision, cfg.device, cfg.batch_tokens)
        writer = cfg.engine.engine.open(job)
        if not isinstance(writer, TokenWriter):
            raise ConfigError(gives_texts(cfg.engine.name))
        prompts = []
        for number, prompt, why in zip(places, distinct, writer.turned_away(distinct), strict=True):
            if why:
                rejects.add(cfg.prompts, number, RowError("messages", why), prompt.model_dump(mode="json"))
            else:
                prompts.append(prompt)
        rejects.kept = len(prompts)
        rejects.check(cfg.max_rejected)
        rejected = rejects.rejected
    if not prompts:
        raise DataError(f"{cfg.prompts}: no prompt to search: {rejects.most() or 'it has no rows'}")
    ids = writer.template.prompts([prompt.messages for prompt in prompts])
    questions = [Question(prompt, tuple(own)) for prompt, own in zip(prompts, ids, strict=True)]
    grading = Grading(judge, cfg.judge.name, cfg.success, cfg.no_answer, cfg.truncated)
    sampling = cfg.sampling.model_copy(update={"seed": cfg.seed})
    roller = EngineRoller(questions, writer.engine, writer.template, grading, sampling, ctx.state, ctx.label)
    return World(questions, roller, writer, repeated, rejected)
