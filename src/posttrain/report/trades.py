"""What the columns of an ablation table gained and lost, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.report.ablation_config import AblationConfig


def lacks(what: str, name: str, valid: Sequence[str], where: str) -> str | None:
    """What is wrong with a name that is not among `valid`, with the nearest; None for one that is."""
    return None if name in valid else f"no {what} '{name}' in {where} ({nearest(name, list(valid))})"


def check_name(what: str, name: str, valid: Sequence[str], where: str) -> None:
    """Raises ConfigError with the nearest for a name that is not among `valid`."""
    if wrong := lacks(what, name, valid, where):
        raise ConfigError(f"ablation: {wrong}")


def gains_and_losses(column: str, rows: Sequence[dict[str, Any]], baseline: str) -> dict[str, Any]:
    """What a column gained and lost against the baseline; both is a trade. A facet is told where it says
    other than its task.
    """
    found: dict[str, list[dict[str, str]]] = {"better": [], "worse": []}
    whole: dict[str, str | None] = {}
    for row in rows:
        cell = next(cell for cell in row["cells"] if cell["column"] == column)
        if not row["group"]:
            whole.setdefault(row["task"], cell["verdict"])
        if cell["verdict"] in found and not (row["group"] and whole.get(row["task"]) == cell["verdict"]):
            change = cell["text"]["change"]
            told = {"on": row["name"], "mean": change["mean"], "interval": change["interval"]}
            found[cell["verdict"]].append(told)
    kinds = {(True, True): "trade", (True, False): "gain", (False, True): "loss", (False, False): "none"}
    kind = kinds[bool(found["better"]), bool(found["worse"])]
    return {"column": column, "baseline": baseline, "kind": kind, **found}


def regressions(
    cfg: AblationConfig, rows: Sequence[dict[str, Any]], baseline: str, where: str
) -> Iterator[str]:
    """A sentence for each watched column that is worse than the baseline where that fails the step."""
    asked = cfg.fail_on_regression
    whole = [_label(row) for row in rows if not row["group"]]
    labels = set(asked) if isinstance(asked, tuple) else set(whole if asked else ())
    for label in sorted(labels):
        check_name("task", label, list(dict.fromkeys(_label(row) for row in rows)), where)
    for row in rows:
        if _label(row) not in labels:
            continue
        for cell in row["cells"]:
            watched = not cfg.watch or cell["column"] in cfg.watch
            why = _fails(cfg, row, cell, baseline) if watched and cell["column"] != baseline else None
            if why:
                yield f"{cell['column']} {why}"


def _fails(cfg: AblationConfig, row: dict[str, Any], cell: dict[str, Any], baseline: str) -> str | None:
    """Why a column fails the step in one row: it is worse there, or nobody can tell whether it is."""
    found, on = cell.get("against"), f"on {row['name']} ({row['task']}, {row['metric']})"
    if found is None or not row["directed"]:  # one of the two cannot be asked, or no change of it is worse
        return None
    items = found["n"] + found["missing"]
    if found["missing"] > cfg.max_missing * items:
        return (
            f"cannot be compared with {baseline} {on}: {found['missing']} of {items} items have no value in "
            f"one of the two, more than max_missing ({cfg.max_missing:g}) allows"
        )
    if cell["verdict"] is None:
        return f"cannot be compared with {baseline} {on}: {found['method']}"
    if cell["verdict"] == "worse":
        change = cell["text"]["change"]
        said = f"{change['mean']} {change['interval']}".rstrip()
        return f"is worse than {baseline} {on}: {said}, {change['basis']}"
    return None


def _label(row: dict[str, Any]) -> str:
    """A task, or one facet of it."""
    return f"{row['task']}/{row['group']}" if row["group"] else str(row["task"])
