"""The verb `decontaminate`: rows without those that hold an evaluation's questions, each with the evidence.

Phi-4 Technical Report (arXiv 2412.08905), appendix B.1, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.common.config import Config, DataRef
from posttrain.common.errors import DataError
from posttrain.common.step import Step, StepContext
from posttrain.formats import Rejects, read_rows
from posttrain.prompts.common_list import Common
from posttrain.prompts.sources import Files, SourceUse, read_source
from posttrain.records import Row

Compared = Literal["both", "prompt", "response"]


class DecontaminateConfig(Config):
    """Which rows go on, and what they must not hold.

    data: rows of any kind, in any format. against: evaluation sets in any format (their user turns count):
        a path, `@step`, a registered source, a list of these, or {name: one of these}.
    n: a run of so many words in common, not all of them `common`, is contamination.
    n_ratio: without one, n-grams of this length decide, by the share that both have of the row's or of the
        item's, whichever has fewer. contaminated: at this share the row is contaminated. partial: above this
        one it is told, and goes on.
    common: n-grams that are no evidence. compare: which texts of a row; a document is all text.
    action: "drop" contaminated rows (to rejected.jsonl), or "mark" them and let them go on.
    max_contaminated: share of the rows that may be contaminated before the step fails.
    max_rejected: share of rows, or of evaluation items, that may be unreadable before the step fails.
    """

    data: DataRef | list[DataRef]
    against: dict[str, SourceUse | DataRef]
    n: int = Field(13, ge=2)
    n_ratio: int = Field(7, ge=1)
    contaminated: float = Field(0.3, gt=0, le=1)
    partial: float = Field(0.15, ge=0, lt=1)
    common: Common = Common()
    compare: Compared = "both"
    action: Literal["drop", "mark"] = "drop"
    max_contaminated: float = Field(1.0, ge=0, le=1)
    max_rejected: float = Field(0.01, ge=0, le=1)

    @field_validator("against", mode="before")
    @classmethod
    def _sets(cls, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping) and not {"name", "path"} & value.keys():
            return {str(name): read_source(one) for name, one in value.items()}
        several = value if isinstance(value, list | tuple) else [value]
        found: dict[str, Any] = {}
        for one in map(read_source, several):
            name = _name(one)
            same = sum(known == name or known.startswith(f"{name}~") for known in found)
            found[f"{name}~{same + 1}" if same else name] = one
        return found

    @model_validator(mode="after")
    def _together(self) -> DecontaminateConfig:
        if not self.against or not self.paths:
            raise ValueError(f"'{'data' if self.against else 'against'}' is empty")
        if self.n_ratio >= self.n:
            raise ValueError(f"'n_ratio' ({self.n_ratio}) must be below 'n' ({self.n})")
        if self.partial >= self.contaminated:
            raise ValueError(f"'partial' ({self.partial}) must be below 'contaminated' ({self.contaminated})")
        return self

    @property
    def paths(self) -> list[str]:
        return [self.data] if isinstance(self.data, str) else self.data

    def sets(self, rejects: Rejects) -> Iterator[tuple[str, Iterable[Row]]]:
        """Each evaluation set's name and rows; items that cannot be read go to `rejects`."""
        for name, use in self.against.items():
            if isinstance(use, str):
                yield name, read_rows(use, rejects=rejects)
            elif isinstance(use.settings, Files):
                yield name, use.settings.read(rejects)
            else:
                yield name, _counted(use.settings.rows(), rejects)  # type: ignore[attr-defined]


def run(cfg: DecontaminateConfig, ctx: StepContext) -> dict[str, Any]:
    """Write rows.jsonl, overlaps.jsonl (every row that overlaps, with the span), rejected.jsonl and
    rejected_items.jsonl.

    Raises DataError where an evaluation set has nothing to compare, no row is left, or too many rows are
    contaminated or unreadable.
    """
    from posttrain.prompts.eval_items import gather
    from posttrain.prompts.screening import screen

    with Rejects(ctx.out / "rejected_items.jsonl") as unread:
        items = gather(cfg.sets(unread), cfg.n, cfg.n_ratio)
        unread.tell(f"{ctx.label} (evaluation items)")
        unread.check(cfg.max_rejected)
    for name, counts in items.described().items():
        if counts["items"] == counts["empty"]:
            raise DataError(f"against.{name}: {counts['items']} items, none of them with a word to compare")
    return screen(cfg, ctx, items) | {"unreadable_items": unread.rejected}


STEP = Step("decontaminate", DecontaminateConfig, run, version=1)


def _counted(rows: Iterable[Row], rejects: Rejects) -> Iterator[Row]:
    for row in rows:
        rejects.kept += 1
        yield row


def _name(source: SourceUse | str) -> str:
    """What a set is called where the recipe does not: its step, its file without the ending, its source."""
    if isinstance(source, SourceUse):
        return _name(source.settings.path) if isinstance(source.settings, Files) else source.name
    if source.startswith("@"):
        return source[1:]
    path = Path(source)
    return path.name.split(".")[0] if path.suffix else path.name
