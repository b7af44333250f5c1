"""What an online run needs before its first rollout: prompts, judge, reference, rows to learn beside."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.feedback.judge import Judge
from posttrain.feedback.judge_use import JudgeUse, account_of
from posttrain.formats import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.models.load import load_model
from posttrain.models.precision import pick_dtype
from posttrain.models.vocabulary import same_vocabulary
from posttrain.records import Prompt
from posttrain.training.critic import frozen_copy
from posttrain.training.methods import method_named
from posttrain.training.methods.base import REFERENCE, Method
from posttrain.training.monitor import Monitor
from posttrain.training.offline import Encoded, Plan, encode_rows, grow
from posttrain.training.online import Online
from posttrain.training.rollout import Asked
from posttrain.training.rollout_data import reference_stream
from posttrain.training.rows import longest_row, put_aside
from posttrain.training.source import Data, Offline, Part

if TYPE_CHECKING:
    import torch

    from posttrain.models.load import Model
    from posttrain.training.train import TrainConfig


@dataclass(frozen=True)
class Found:
    """prompts: each once. repeated: how many stood among the others. beside: rows to learn beside."""

    prompts: list[Asked]
    repeated: int
    beside: tuple[Part, Offline] | None


def read_online(cfg: TrainConfig, model: Model, rejects: Rejects, label: str) -> Found:
    """What an online run learns from. Prompts without room for an answer are rejected: one token of the
    model's context, or, where `max_length` is set, a whole answer.

    Raises DataError where none is left.
    """
    online = cfg.online
    assert online is not None
    before = rejects.kept
    paths = online.prompts if isinstance(online.prompts, list) else [online.prompts]
    rows = [row for path in paths for row in read_records(path, Prompt, rejects=rejects)]
    distinct: dict[str, Prompt] = {}
    for row in rows:  # wherever they stand: `source` has the line of a file
        distinct.setdefault(row.model_dump_json(exclude={"provenance": {"source"}}), row)
    longest = longest_row(cfg, model)
    room = 1 if cfg.max_length is None else online.max_new_tokens
    asked = []
    texts = model.template.prompts([row.messages for row in distinct.values()])
    for prompt, ids in zip(distinct.values(), texts, strict=True):
        if longest is not None and len(ids) + room > longest:
            reason = f"no room for an answer: {len(ids)} tokens of {longest}, and it wants {room}"
            put_aside(rejects, prompt, RowError("messages", reason))
        else:
            asked.append(Asked(prompt, tuple(ids)))
    beside, learned = _beside(cfg, model, rejects, longest, label)
    rejects.kept = before + len(asked) + learned
    rejects.tell(label)
    rejects.check(cfg.max_rejected)
    if not asked:
        raise DataError(f"{', '.join(paths)}: no prompt to answer")
    return Found(asked, len(rows) - len(distinct), beside)


def _beside(
    cfg: TrainConfig, model: Model, rejects: Rejects, longest: int | None, label: str
) -> tuple[tuple[Part, Offline] | None, int]:
    """Rows to learn beside the answers, and how many can be."""
    assert cfg.online is not None
    mix = cfg.online.mix
    if mix is None:
        return None, 0
    method = method_named(mix.method.name)
    paths = mix.data if isinstance(mix.data, list) else [mix.data]
    rows = [row for path in paths for row in read_records(path, method.kinds[0], rejects=rejects)]
    done = encode_rows(method, mix.method, rows, model.template, longest, f"{label}: mix")
    for row, error in done.rejected:
        put_aside(rejects, row, error)
    if not done.examples:
        raise DataError(f"online.mix: no row of {', '.join(paths)} can be learned from")
    sizes = tuple(tree.size for tree in grow(done.examples))
    data = Data(done.examples)
    part = Part(method, mix.method, data, mix.weight)
    return (part, Offline(Plan(sizes, cfg.seed, mix.rows), data)), done.rows


def open_online(
    cfg: TrainConfig,
    method: Method,
    model: Model,
    heldout: Encoded,
    found: Found,
    device: str,
    ctx: StepContext,
) -> tuple[Online, dict[str, list[torch.Tensor]]]:
    """The source of rollouts, and the reference stream of held-out rows where there are any.

    Raises ConfigError for a judge that cannot score.
    """
    assert cfg.online is not None
    judge = _scores(cfg.online.judge, "online.judge", ctx)
    monitor = None
    if cfg.online.monitor is not None:
        gold = _scores(cfg.online.monitor.judge, "online.monitor.judge", ctx)
        monitor = Monitor(cfg.online.monitor, gold, ctx.label)
    reference = _reference(cfg, method, model, device)
    source = Online(
        cfg, method, model, reference, judge, found.prompts, longest_row(cfg, model), found.repeated,
        ctx.out, ctx.label, found.beside, monitor,
    )  # fmt: skip
    if monitor is not None and source.per_rollout < 2:
        raise ConfigError("online.monitor: a rollout of one prompt has no interval; answer two or more")
    streams = {}
    if heldout.examples and reference is not None:
        streams[REFERENCE] = reference_stream(reference, heldout, cfg.micro_tokens, cfg.online.temperature)
    gc.collect()
    return source, streams


def _scores(use: JudgeUse, where: str, ctx: StepContext) -> Judge:
    judge = use.open(account_of(ctx))
    if not isinstance(judge, Judge):
        raise ConfigError(f"{where}: '{use.name}' compares and does not score")
    return judge


def _reference(cfg: TrainConfig, method: Method, model: Model, device: str) -> Model | None:
    if not method.wants_reference(cfg.method):
        return None
    if cfg.reference is None:
        return frozen_copy(model)
    reference = load_model(cfg.reference, dtype=pick_dtype(cfg.precision, device), device=device)
    same_vocabulary(model, reference, "reference")
    return reference
