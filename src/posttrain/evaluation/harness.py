"""What the lm-evaluation-harness tells of each document, as outcomes of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.common.errors import ConfigError
from posttrain.evaluation.task import Outcome

PREFIX = "lm_eval/"
PLAIN = "none"  # the harness's name for a task's answers as they are, no filter


@dataclass(frozen=True)
class Metrics:
    """The metrics of one task, as the task orders them: those that are a number for each document, of which
    more is better, and the others.
    """

    usable: tuple[str, ...]
    left_out: tuple[str, ...]


def metrics_of(name: str, samples: list[dict[str, Any]], found: Mapping[str, Any]) -> Metrics:
    """found: all that the harness gave."""
    config = found["configs"].get(name, {})
    named = [one["metric"] for one in config.get("metric_list") or () if isinstance(one["metric"], str)]
    there = dict.fromkeys(metric for sample in samples for metric in sample["metrics"])
    ordered = dict.fromkeys([*(metric for metric in named if metric in there), *there])
    higher = found["higher_is_better"].get(name, {})
    usable = tuple(
        metric
        for metric in ordered
        if higher.get(metric, True)  # the page could not know that less of another is better
        and not all(_of_whole(sample[metric]) for sample in samples if metric in sample)
    )
    return Metrics(usable, tuple(metric for metric in ordered if metric not in usable))


def _of_whole(value: Any) -> bool:
    """Whether it is what a document adds to a number of the whole task, and no number itself."""
    return isinstance(value, Sequence | Mapping) or getattr(value, "size", 1) != 1


def outcomes_of(
    name: str, samples: list[dict[str, Any]], known: Metrics, metric: str | None, several: bool
) -> Iterator[Outcome]:
    """The samples of one task, a document's filters together, in the harness's order.

    metric: that is the score; the first where None. several: the task is one of a group. Raises ConfigError
    for a metric that cannot be the score.
    """
    documents: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        documents.setdefault(sample["doc_id"], []).append(sample)
    for number, filtered in documents.items():
        metrics = {
            _named(one, sample["filter"]): _number(sample.get(one))
            for sample in filtered
            for one in known.usable
            if one in sample["metrics"]
        }
        first = filtered[0]
        score = metric or next(iter(metrics), "")
        if score not in metrics:
            asked = f" '{metric}'" if metric else ""
            left_out = ", ".join(known.left_out) or "none"
            raise ConfigError(
                f"{PREFIX}{name}: no metric{asked} that is a number for each document, of which more is "
                f"better; there are: {', '.join(metrics) or 'none'}; others: {left_out}"
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
    """None for what is no finite number."""
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
