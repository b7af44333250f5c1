"""Best of n answers of the reference: a policy that no training made, beside those that were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.report.collect import Artifact, number
from posttrain.report.families import input_of, made_by
from posttrain.report.learned_from import judge_in_words, models_held
from posttrain.report.text import amount, duration

BEST_OF_N = "best_of_n"


@dataclass(frozen=True)
class BestOfN:
    """A `best_of_n` task's results about `model`, in the evaluation `summary`."""

    summary: dict[str, Any]
    task: dict[str, Any]
    model: str

    def estimate(self, metric: str) -> dict[str, Any] | None:
        """Over all items; None where it has no value."""
        wanted = {"task": self.task["label"], "metric": metric, "model": self.model, "group": ""}
        for e in self.summary["estimates"]:
            if all(e[key] == value for key, value in wanted.items()) and e["mean"] is not None:
                return dict(e)
        return None

    @property
    def sizes(self) -> list[int]:
        """Every n that was measured."""
        return sorted(int(m.removeprefix("kl@")) for m in self.task["metrics"] if m.startswith("kl@"))

    @property
    def n(self) -> int:
        """The one that `best` is for."""
        return int(self.task["settings"].get("n") or max(self.sizes, default=1))


def best_of_n(
    summaries: Sequence[dict[str, Any]], reference: str | None, task: dict[str, Any]
) -> BestOfN | None:
    """The results about the model at `reference` whose gold judge gives `task` its headline."""
    for summary in summaries:
        names = [
            model["name"] for model in summary["models"] if reference and _same(model["path"], reference)
        ]
        for other in summary["tasks"]:
            if other["name"] == BEST_OF_N and names and _judge(other, "gold") == _judge(task, "judge"):
                return BestOfN(summary, other, names[0])
    return None


def _same(path: str, other: str) -> bool:
    return Path(path).resolve() == Path(other).resolve()


def _judge(task: dict[str, Any], field: str) -> Any:
    """The judge behind a task's numbers; a task that judges by itself is known by its own name."""
    judge = task["settings"].get(field) if field in task["settings"] else {"name": task["name"]}
    return {key: value for key, value in judge.items() if value is not None} if judge else None


def picked_from(found: BestOfN, evaluation: Artifact, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """learned_from, models, seconds and each (time of answers) of the methods' table, as far as the steps
    behind it tell.
    """
    settings = found.task["settings"]
    asked: Any = next((t for t in evaluation.config.get("tasks") or () if _name(t) == BEST_OF_N), {})
    pick = asked.get("pick") if isinstance(asked, dict) else None
    judge = judge_in_words(pick or settings.get("pick"), evaluation, artifacts)
    made_of = [made_by(path, artifacts) for path in _several(settings.get("data"))]
    samples = [artifact for artifact in made_of if artifact is not None and artifact.kind == "sample"]
    answers = sum(number(artifact.summary.get("responses")) or 0 for artifact in samples)
    spent = sum(artifact.seconds or 0 for artifact in samples)
    each = f"{duration(1000 * found.n * spent / answers)} a 1,000 questions" if answers and spent else ""
    return {
        "learned_from": f"nothing; {found.n} answers to each question, picked by {judge}",
        "models": _models(found, evaluation, pick, artifacts),
        "seconds": "no training",
        "each": each,
    }


def _models(
    found: BestOfN, evaluation: Artifact, pick: Any, artifacts: Sequence[Artifact]
) -> dict[str, Any] | None:
    """Policy and judge; their parameters where the steps that trained both are on the page."""
    path = next(model["path"] for model in found.summary["models"] if model["name"] == found.model)
    judge = input_of(evaluation, pick.get("model") if isinstance(pick, dict) else None, artifacts)
    both = [artifact for artifact in (made_by(path, artifacts), judge) if artifact and models_held(artifact)]
    if len(both) < 2:
        return {"names": "policy, judge", "parameters": ""}
    total = sum(artifact.summary["models"].get("policy", 0) for artifact in both)
    return {"names": "policy, judge", "parameters": f"{amount(total)} parameters"}


def _name(task: Any) -> Any:
    return task.get("name") if isinstance(task, dict) else task


def _several(data: Any) -> list[str]:
    return [data] if isinstance(data, str) else list(data or ())
