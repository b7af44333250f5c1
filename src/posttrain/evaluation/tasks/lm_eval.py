"""Standard benchmarks by EleutherAI's lm-evaluation-harness, their items as outcomes of ours."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from posttrain.common.config import DataRef
from posttrain.common.errors import ConfigError, DataError
from posttrain.evaluation.harness import PREFIX, metrics_of, outcomes_of
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig


class LmEval(TaskConfig):
    """`lm_eval/<task>`: the harness asks, with its own prompts, few-shot examples and scores; the document is
    the item and the cluster.

    `score` is the metric that the task names first (after its first filter), or `metric`; all others stand
    beside it as `exact_match` or `exact_match/strict-match`, but those of which less is better and those that
    only the whole task has (a correlation, a perplexity), which are told. A document for which the harness
    has no number is in the third state. What it scores 0 because no answer was found in the text, or the text
    was cut off, stays 0, as in published numbers.

    task: of the harness, or one of its groups, whose tasks become groups of items. num_fewshot: examples, the
    task's own number where None. chat: whether prompts go through the chat template, where None whenever the
    tokenizer has one. include_path: a folder with tasks of one's own, as YAML. batch_size: requests at a
    time. `limit` of the suite takes the first documents.
    """

    headline: ClassVar[str] = "score"

    task: str = Field(min_length=1)
    num_fewshot: int | None = Field(None, ge=0)
    chat: bool | None = None
    metric: str | None = None
    include_path: DataRef | None = None
    batch_size: int = Field(8, ge=1)

    @property
    def title(self) -> str:  # type: ignore[override]
        """The harness's name of the task."""
        return self.task

    def asks(self) -> None:
        """The harness reads its questions when it runs."""
        return

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a document. Raises ConfigError where the harness is not installed, does not know the
        task or metric, or would run programs; DataError where it cannot get the task's data.
        """
        found = _run(self, ctx)
        several = len(found["samples"]) > 1
        outcomes: list[Outcome] = []
        for name, samples in sorted(found["samples"].items()):
            metrics = metrics_of(name, samples, found)
            if metrics.left_out:
                said = ", ".join(metrics.left_out)
                print(
                    f"{ctx.label}: {PREFIX}{name}: no number a document of which more is better: {said}",
                    file=sys.stderr,
                )
            outcomes += outcomes_of(name, samples, metrics, self.metric, several)
        return outcomes


def read_name(value: Any) -> Any:
    """`lm_eval/gsm8k`, alone or as a `name`, as the mapping that this task is written as."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return value
    given = dict(value) if isinstance(value, Mapping) else {}
    return {"label": name, **given, "name": "lm_eval", "task": name.removeprefix(PREFIX)}


def _run(cfg: LmEval, ctx: EvalContext) -> dict[str, Any]:
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise ConfigError(
            f"{PREFIX}{cfg.task} needs the lm-evaluation-harness: pip install lm-eval ({e})"
        ) from e
    from posttrain.models.locate import find_model

    tasks = TaskManager(include_path=cfg.include_path)
    _check_known(cfg, tasks)
    model = ctx.model()
    asked = HFLM(
        pretrained=str(find_model(ctx.model_path)),
        device=str(model.hf.device),
        dtype=str(model.hf.dtype).removeprefix("torch."),
        batch_size=cfg.batch_size,
    )
    chat = getattr(asked.tokenizer, "chat_template", None) is not None if cfg.chat is None else cfg.chat
    try:
        found = simple_evaluate(
            asked,
            tasks=[cfg.task],
            task_manager=tasks,
            num_fewshot=cfg.num_fewshot,
            limit=ctx.limit,
            apply_chat_template=chat,
            bootstrap_iters=0,
            random_seed=ctx.seed,
            numpy_random_seed=ctx.seed % 2**32,
            torch_random_seed=ctx.seed,
        )
    except ValueError as e:
        if "unsafe" not in str(e).lower():
            raise
        raise ConfigError(
            f"{PREFIX}{cfg.task} runs programs that a model wrote, outside of any sandbox; the task "
            "pass_at_k with the judge python_tests runs them in one"
        ) from e
    except (OSError, ConnectionError) as e:
        raise DataError(f"{PREFIX}{cfg.task}: the harness cannot get its data ({e})") from e
    result: dict[str, Any] = found
    return result


def _check_known(cfg: LmEval, tasks: Any) -> None:
    from posttrain.common.config import nearest

    if cfg.task not in tasks.all_tasks:
        raise ConfigError(
            f"the harness has no task '{cfg.task}' ({_short(nearest(cfg.task, tasks.all_tasks))})"
        )


def _short(hint: str) -> str:
    return hint if len(hint) < 200 else "lm_eval ls tasks lists them"
