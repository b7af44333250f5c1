"""What a training run reads: rows and held-out rows, checked, tokenised, the unusable ones put aside."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.common.errors import DataError, TrainingError
from posttrain.formats import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.models.checks import check_template
from posttrain.records import Row, prompt_key
from posttrain.training.methods.base import Method
from posttrain.training.offline import Encoded, encode_rows

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.training.train import TrainConfig


def read_sides(cfg: TrainConfig, method: Method, rejects: Rejects) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows; unusable ones are put aside."""
    paths = cfg.data if isinstance(cfg.data, list) else [cfg.data] if cfg.data else []
    rows: list[Row] = [row for path in paths for row in read_kinds(path, method.kinds, rejects)]
    if paths and not rows:
        raise DataError(f"{', '.join(paths)}: no {_named(method.kinds)} rows to train on")
    if isinstance(cfg.heldout, str):
        return rows, read_kinds(cfg.heldout, method.kinds, rejects)
    if cfg.heldout is None:
        return rows, []
    kept: list[Row] = []
    out: list[Row] = []
    for row in rows:
        side = out if _share(_split_key(row)) < cfg.heldout else kept
        side.append(row)
    if not kept or not out:
        raise DataError(f"heldout: {cfg.heldout} leaves {len(kept)} rows to train on and {len(out)} held out")
    return kept, out


def read_kinds(path: str, kinds: Sequence[type[Row]], rejects: Rejects) -> list[Row]:
    """Rows of any of these kinds; a file in another's format is read as the first of them that it can give.

    Raises DataError for rows of another kind.
    """
    if len(kinds) == 1:
        return list(read_records(path, kinds[0], rejects=rejects))
    for kind in kinds:
        with contextlib.suppress(DataError):
            return list(read_records(path, kind, rejects=rejects))
    rows = read_records(path, rejects=rejects)
    for row in rows:
        if not isinstance(row, tuple(kinds)):
            raise DataError(
                f"{path}: holds a {type(row).__name__.lower()} (row {row.provenance.id}), expected "
                f"{_named(kinds)} rows; a step {{do: curate, source: …, as: …}} says how they are to be made"
            )
    return rows


def _named(kinds: Sequence[type[Row]]) -> str:
    return " or ".join(kind.__name__.lower() for kind in kinds)


def settled(cfg: TrainConfig, method: Method, rows: Sequence[Row]) -> TrainConfig:
    """The config with what its objective takes from the training rows filled in."""
    if method.settle is None:
        return cfg
    return cfg.model_copy(update={"method": method.settle(cfg.method, rows)})


def _split_key(row: Row) -> str:
    """Rows with the same prompt stay on the same side."""
    prompt = getattr(row, "prompt", None)
    return prompt_key(prompt) if prompt is not None else row.provenance.id


def _share(key: str) -> float:
    """A number in [0, 1) from a key, the same in every run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]) / 2**56


def refuse_bad_template(cfg: TrainConfig, model: Model, rows: Sequence[Row]) -> None:
    """Training on the wrong tokens is worse than not training."""
    problems = check_template(model.template, rows[:32], turns=getattr(cfg.method, "turns", "last"))
    errors = [problem.message for problem in problems if problem.severity == "error"]
    if errors:
        raise TrainingError(
            f"the chat template of {model.source} would train the wrong tokens: {'; '.join(errors)}. "
            "`posttrain inspect` shows it; a working one can be set with model.chat_template"
        )


def encode_sides(
    cfg: TrainConfig,
    method: Method,
    model: Model,
    rows: list[Row],
    heldout_rows: list[Row],
    rejects: Rejects,
    label: str,
) -> tuple[Encoded, Encoded]:
    """Examples to train on and to hold out; what cannot be used is put aside and counted."""
    longest = longest_row(cfg, model)
    sides = []
    rejects.kept = 0
    for side in (rows, heldout_rows):
        done = encode_rows(method, cfg.method, side, model.template, longest, label)
        rejects.kept += done.rows
        for row, error in done.rejected:
            put_aside(rejects, row, error)
        sides.append(done)
    rejects.tell(label)
    rejects.check(cfg.max_rejected)
    if cfg.data is not None and not sides[0].examples:
        raise DataError(f"no row of {len(rows)} can be trained on: {dict(rejects.reasons)}")
    if cfg.heldout is not None and not sides[1].examples:
        raise DataError(f"heldout: {cfg.heldout} has no row that could be measured")
    return sides[0], sides[1]


def put_aside(rejects: Rejects, row: Row, error: RowError) -> None:
    """Reject a row that has been read, at the place it came from where it knows."""
    file, _, line = row.provenance.source.rpartition(":")
    at = (file, int(line)) if line.isdigit() else (f"row {row.provenance.id}", 0)
    rejects.add(*at, error, row.model_dump(mode="json"))


def longest_row(cfg: TrainConfig, model: Model) -> int | None:
    """Tokens a row may have: as configured, else the model's context; None where it knows no end."""
    return cfg.max_length or getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
