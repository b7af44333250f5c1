"""Standard benchmarks by EleutherAI's lm-evaluation-harness, their items as outcomes of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field

from posttrain.common.config import DataRef
from posttrain.common.errors import ConfigError, DataError
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig

PREFIX = "lm_eval/"
PLAIN = "none"  # the harness's name for a task's answers as they are, no filter


class LmEval(TaskConfig):
    """`lm_eval/<task>`: the harness asks, with its own prompts, few-shot examples and scores; the document is
    the item and the cluster.

    `score` is the metric that the task names first (after its first filter), or `metric`; all others stand
    beside it as `exact_match` or `exact_match/strict-match`. A document for which the harness has no number
    is in the third state. What it scores 0 because no answer was found in the text, or the text was cut off,
    stays 0, as in published numbers.

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
        return [
            outcome
            for name, samples in sorted(found["samples"].items())
            for outcome in _outcomes(self, name, samples, found["higher_is_better"].get(name, {}), several)
        ]


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
            f"{PREFIX}{cfg.task} needs the lm-evaluation-harness: pip install 'posttrain[lm-eval]' ({e})"
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


def _outcomes(
    cfg: LmEval, name: str, samples: list[dict[str, Any]], higher: Mapping[str, Any], several: bool
) -> Iterator[Outcome]:
    """The samples of one task, a document's filters together, in the harness's order."""
    documents: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        documents.setdefault(sample["doc_id"], []).append(sample)
    for number, filtered in documents.items():
        metrics: dict[str, float | None] = {}
        for sample in filtered:
            for metric in sample["metrics"]:
                if higher.get(metric, True):  # the page could not know that less of another is better
                    metrics[_named(metric, sample["filter"])] = _number(sample.get(metric))
        first = filtered[0]
        score = cfg.metric or next(iter(metrics), "")
        if score not in metrics:
            raise ConfigError(
                f"{PREFIX}{cfg.task}: no metric '{score}' a document, of which more is better; there are: "
                f"{', '.join(metrics) or 'none'}"
            )
        yield Outcome(
            item=f"{name}/{number}",
            cluster=first["doc_hash"],
            metrics={"score": metrics[score], **metrics},
            group=name if several else "",
            prompt=str(first["arguments"][0][0]),
            response=_answer(first),
        )


def _named(metric: str, through: str) -> str:
    return metric if through == PLAIN else f"{metric}/{through}"


def _number(value: Any) -> float | None:
    """None for what is no finite number: a metric over the whole task has none for a document."""
    if isinstance(value, bool | int | float) or hasattr(value, "item"):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def _answer(sample: Mapping[str, Any]) -> str:
    """The text the model wrote; of a choice, the one it found likeliest."""
    given = [reply[0] if isinstance(reply, list) else reply for reply in sample["resps"]]
    if given and isinstance(given[0], str):
        return given[0]
    likely = [reply[0] for reply in given if isinstance(reply, list | tuple)]
    if len(likely) != len(sample["arguments"]) or not likely:
        return ""
    return str(sample["arguments"][likely.index(max(likely))][-1])
