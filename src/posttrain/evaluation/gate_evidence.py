"""What an evaluation says of two of its models: the same items, paired."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.manifest import NAME, read_manifest
from posttrain.evaluation.compare import Estimate, Point, difference, estimate
from posttrain.models.locate import find_model

if TYPE_CHECKING:
    from posttrain.evaluation.gate import GateConfig

_AGAIN = "run the evaluation again"


@dataclass(frozen=True)
class Evidence:
    """difference: candidate less incumbent, over the items both have a value for; its `missing` are items
    that both were asked and one has no value for. unpaired: items that only one of the two was asked.
    candidate, incumbent: each over all its own items. names: theirs in the evaluation.
    """

    task: str
    metric: str
    lower_is_better: bool
    names: tuple[str, str]
    candidate: Estimate
    incumbent: Estimate
    difference: Estimate
    unpaired: int
    level: float

    @property
    def title(self) -> str:
        return f"{self.metric} of {self.task}"

    @property
    def missing_share(self) -> float:
        lost = self.difference.missing + self.unpaired
        return lost / (self.difference.n + lost) if lost else 0.0

    @property
    def in_words(self) -> str:
        """The difference with its interval, and what it rests on."""
        found = self.difference
        assert found.mean is not None
        ends = f" [{found.low:+.4f}, {found.high:+.4f}]" if found.low is not None else ""
        lost = found.missing + self.unpaired
        return (
            f"{self.names[0]} less {self.names[1]} {found.mean:+.4f}{ends} ({self.level:.3g} interval, "
            f"{found.n} items in {found.clusters} clusters"
            + (f", {lost} without two values)" if lost else ")")
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "metric": self.metric,
            "lower_is_better": self.lower_is_better,
            "candidate": {"name": self.names[0], **self.candidate.as_dict()},
            "incumbent": {"name": self.names[1], **self.incumbent.as_dict()},
            "difference": self.difference.as_dict(),
            "unpaired": self.unpaired,
        }


def gather(cfg: GateConfig) -> Evidence:
    """Read the evaluation. Raises ConfigError where it holds no such model, task or metric, DataError where
    its files are damaged.
    """
    folder = Path(cfg.evaluation)
    summary = read_object(folder / "summary.json")
    _check_summary(summary, folder / "summary.json")
    names = _names(cfg, folder, summary)
    task = _task(cfg, summary)
    metric = cfg.metric or str(task["headline"])
    if metric not in task["metrics"]:
        raise ConfigError(
            f"metric: task '{task['label']}' has no '{metric}' ({nearest(metric, list(task['metrics']))})"
        )
    if metric in task.get("undirected", ()):
        raise ConfigError(
            f"metric: neither more nor less '{metric}' is better, so it can neither rise nor fall"
        )
    candidate, incumbent = _points(folder / "results.jsonl", summary, str(task["label"]), metric, names)
    amount = metric in task.get("amounts", ())
    asked = [{point.item for point in some} for some in (candidate, incumbent)]
    return Evidence(
        task=str(task["label"]),
        metric=metric,
        lower_is_better=metric in task["lower_is_better"],
        names=names,
        candidate=estimate(candidate, amount),
        incumbent=estimate(incumbent, amount),
        difference=difference(incumbent, candidate, cfg.level, amount),
        unpaired=len(asked[0] ^ asked[1]),
        level=cfg.level,
    )


def _points(
    path: Path, summary: Mapping[str, Any], task: str, metric: str, names: tuple[str, str]
) -> tuple[list[Point], list[Point]]:
    """What was measured of each of the two. Raises DataError where it is not what the summary counts."""
    points: dict[str, list[Point]] = {name: [] for name in names}
    for number, line in enumerate(_lines(path), 1):
        try:
            if line["model"] in points and line["task"] == task and metric in line["metrics"]:
                points[line["model"]].append(_point(line, metric))
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise DataError(
                f"{path}, line {number}: no result of an item ({type(e).__name__}: {e}); {_AGAIN}"
            ) from e
    for row in summary["estimates"]:
        if row["model"] in points and (row["task"], row["metric"], row["group"]) == (task, metric, ""):
            found = points[row["model"]]
            known = sum(point.value is not None and point.weight > 0 for point in found)
            missing = sum(point.value is None for point in found)
            if (known, missing) != (row["n"], row["missing"]):
                raise DataError(
                    f"{path}: {known} items of '{row['model']}' with a value for {metric} and {missing} "
                    f"without, and summary.json counts {row['n']} and {row['missing']}; {_AGAIN}"
                )
    return points[names[0]], points[names[1]]


def _point(line: Mapping[str, Any], metric: str) -> Point:
    value, weight = line["metrics"][metric], line["weights"].get(metric, 1.0)
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{metric} is {value}")
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"the weight of {metric} is {weight}")
    return Point(str(line["item"]), str(line["cluster"]), value, weight)


# What a gate reads of summary.json, by list.
_READ = {
    "models": ("name", "path"),
    "tasks": ("label", "headline", "metrics", "lower_is_better"),
    "estimates": ("model", "task", "metric", "group", "n", "missing"),
}


def _check_summary(summary: Mapping[str, Any], path: Path) -> None:
    for name, fields in _READ.items():
        rows = summary.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            rows = None
        if rows is None or (not rows and name != "estimates"):  # no task may apply to the two models
            raise DataError(
                f"{path}: no list of '{name}'; give the folder of an `evaluate` step, or {_AGAIN}"
            )
        lacking = next((field for row in rows for field in fields if field not in row), None)
        if lacking is not None:
            raise DataError(f"{path}: one of its '{name}' has no '{lacking}'; {_AGAIN}")


def _names(cfg: GateConfig, folder: Path, summary: Mapping[str, Any]) -> tuple[str, str]:
    """What the evaluation calls the candidate and the incumbent."""
    places = _places(folder, summary)
    found = []
    for role in ("candidate", "incumbent"):
        ref = getattr(cfg, role)
        names = [name for name, there in places.items() if _place(ref) in there]
        if not names:
            raise ConfigError(
                f"{role}: {ref} is not among the models that {folder} measured ({', '.join(places)}); "
                "evaluate both in one step"
            )
        found.append(names[0])
    if found[0] == found[1]:
        raise ConfigError(f"candidate and incumbent are the same model ({found[0]})")
    return found[0], found[1]


def _places(folder: Path, summary: Mapping[str, Any]) -> dict[str, set[str]]:
    """Where each measured model lay, and, should the store have been moved since, where it lies by now."""
    places = {model["name"]: {_place(model["path"])} for model in summary["models"]}
    if not (folder / NAME).is_file():
        return places
    manifest = read_manifest(folder)
    model = manifest["config"]["model"]
    refs = list(model.values()) if isinstance(model, dict) else [model] if isinstance(model, str) else model
    for name, ref in zip(places, refs, strict=True):
        entry = manifest["inputs"].get(ref, {})
        if "path" in entry:
            places[name].add(_place(str((folder / entry["path"]).resolve())))
    return places


def _place(ref: str) -> str:
    """The resolved folder of a local model, as text; a hub model's own name."""
    path = Path(ref).expanduser()
    if not path.is_dir():
        return ref
    return str(find_model(str(path)).resolve())


def _task(cfg: GateConfig, summary: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {task["label"]: task for task in summary["tasks"]}
    if cfg.task is None and len(tasks) > 1:
        raise ConfigError(f"task: the evaluation has {len(tasks)}, name one of them: {', '.join(tasks)}")
    label = next(iter(tasks)) if cfg.task is None else cfg.task
    if label not in tasks:
        raise ConfigError(f"task: the evaluation has no '{label}' ({nearest(label, list(tasks))})")
    found: dict[str, Any] = tasks[label]
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); give the folder of an `evaluate` step") from e
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as f:
            yield from map(json.loads, f)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); {_AGAIN}") from e
