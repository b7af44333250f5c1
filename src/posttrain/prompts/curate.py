"""The verb `curate`: rows from files and other sources, checked, each once, and split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.common.config import DataRef
from posttrain.common.errors import DataError
from posttrain.common.progress import progress
from posttrain.common.step import Step, StepContext
from posttrain.formats import Rejects, RowError, convert, files_of
from posttrain.prompts.filters import Filters
from posttrain.prompts.pick import Picked, pick
from posttrain.prompts.sources import Files, Reading, SourceUse, read_source
from posttrain.prompts.spool import Spool
from posttrain.records import Row

SHOW_EVERY = 200  # rows between two movements of the progress bar


class CurateConfig(Reading):
    """Which rows are read, and which are kept. The fields of Reading hold for all sources that are files.

    source: a path, `@step`, a registered name, `{name: …, settings…}`, or a list of these, read in order.
    max_rejected: share of rows (0 to 1) that may be unusable before the step fails.
    dedupe: keep only the first of rows whose prompt and responses are the same to the letter.
    min_chars, max_chars: bounds on the characters of a row, prompt and longest response together.
    limit, take: at most so many rows, before the split: the first ones ("head") or a sample drawn with `seed`
        ("random").
    holdout: for heldout.jsonl, a share of the prompts (below 1), decided by each prompt alone, so that rows
        added later move no other; or a number of rows, whole prompts until there are so many.
    shuffle: write the rows in an order drawn with `seed`.
    """

    source: SourceUse | DataRef | list[SourceUse | DataRef]
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    dedupe: bool = True
    min_chars: int = Field(default=0, ge=0)
    max_chars: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    take: Literal["head", "random"] = "head"
    holdout: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)] | None = None
    shuffle: bool = False
    seed: int = 0

    @field_validator("source", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        return [read_source(one) for one in value] if isinstance(value, list | tuple) else read_source(value)

    @model_validator(mode="after")
    def _together(self) -> CurateConfig:
        if not self.sources:
            raise ValueError("'source' is an empty list")
        if self.take == "random" and self.limit is None:
            raise ValueError("'take: random' draws as many rows as 'limit' says, and it says none")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("'max_chars' is below 'min_chars'")
        return self

    @property
    def sources(self) -> list[SourceUse | str]:
        return self.source if isinstance(self.source, list) else [self.source]

    def opened(self) -> list[tuple[str, Any]]:
        """(name for people, source) of each; files take over the fields of Reading that they do not set."""
        shared = {name: getattr(self, name) for name in Reading.model_fields}
        found: list[tuple[str, Any]] = []
        for use in self.sources:
            if isinstance(use, str):
                found.append((use, Files(path=use, **shared)))
            elif isinstance(use.settings, Files):
                mine = {name: getattr(use.settings, name) for name in use.settings.model_fields_set}
                found.append((use.settings.path, Files(**{**shared, **mine})))
            else:
                found.append((use.name, use.settings))
        return found


def run(cfg: CurateConfig, ctx: StepContext) -> dict[str, Any]:
    """Write rows.jsonl, heldout.jsonl where it is asked for, and rejected.jsonl.

    Raises DataError where nothing is left, or more than `max_rejected` of the rows cannot be used.
    """
    with Rejects(ctx.out / "rejected.jsonl") as rejects, Spool(ctx.state / "rows.spool") as spool:
        _gather(cfg, ctx.label, rejects, spool)
        rejects.tell(ctx.label)
        rejects.check(cfg.max_rejected)
        if not spool.entries:
            raise DataError(f"{_names(cfg)}: no rows are left; see {rejects.path} for what was left out")
        picked = pick(
            spool.entries,
            limit=cfg.limit,
            take=cfg.take,
            holdout=cfg.holdout,
            shuffle=cfg.shuffle,
            seed=cfg.seed,
        )
        spool.write(ctx.out / "rows.jsonl", picked.kept)
        if cfg.holdout is not None:
            spool.write(ctx.out / "heldout.jsonl", picked.heldout)
        return _summary(cfg, rejects, picked, len(spool.entries))


STEP = Step("curate", CurateConfig, run, version=1)


def _gather(cfg: CurateConfig, label: str, rejects: Rejects, spool: Spool) -> None:
    """Read every source into the spool, up to a limit on the first rows."""
    opened = cfg.opened()
    stop = cfg.limit if cfg.take == "head" else None
    total = _megabytes(source for _, source in opened)
    filters = Filters(cfg.dedupe, cfg.min_chars, cfg.max_chars, rejects)
    with progress(label, total, "MB" if total else "row") as bar:
        for name, source in opened:
            shown = rejects.bytes_read
            for number, row in enumerate(_rows(name, source, cfg, rejects), 1):
                kept = filters(row)
                if kept is not None:
                    spool.add(kept, name)
                if number % SHOW_EVERY == 0:
                    moved = (rejects.bytes_read - shown) / 1e6 if total else SHOW_EVERY
                    bar.advance(moved, f"{len(spool.entries):,} rows")
                    shown = rejects.bytes_read
                if len(spool.entries) == stop:
                    return


def _rows(name: str, source: Any, cfg: CurateConfig, rejects: Rejects) -> Iterator[Row]:
    if isinstance(source, Files):
        yield from source.read(rejects)
        return
    for number, row in enumerate(source.rows(), 1):
        try:
            for made in convert(row, cfg.kind) if cfg.kind else (row,):
                rejects.kept += 1
                yield made
        except RowError as e:
            rejects.add(name, number, e, row.model_dump(mode="json"))


def _megabytes(sources: Iterable[Any]) -> float | None:
    """The size of all files to be read; None where a source is no file."""
    known = list(sources)
    if not all(isinstance(source, Files) for source in known):
        return None
    return sum(file.stat().st_size for source in known for file in files_of(source.path)) / 1e6


def _names(cfg: CurateConfig) -> str:
    return ", ".join(name for name, _ in cfg.opened())


def _summary(cfg: CurateConfig, rejects: Rejects, picked: Picked, gathered: int) -> dict[str, Any]:
    return {
        "rows": len(picked.kept),
        "heldout": len(picked.heldout) if cfg.holdout is not None else None,
        "beyond_limit": gathered - len(picked.kept) - len(picked.heldout),
        **picked.describe(),
        "formats": rejects.formats,
        "usable": rejects.kept,
        "rejected": {"rows": rejects.rejected, "reasons": dict(rejects.reasons.most_common())},
        "left_out": {"rows": rejects.left_out, "reasons": dict(rejects.choices.most_common())},
        "damaged_files": rejects.damaged,
    }
