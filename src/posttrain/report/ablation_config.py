"""What a report asks of its ablation table."""

from __future__ import annotations

from pydantic import Field

from posttrain.common.config import Config


class AblationConfig(Config):
    """baseline: the column that the others are compared with, the first where not given.

    metrics: {task label: metrics} to stand in the table beside the task's headline. level: of the intervals
    of differences. fail_on_regression: true for every task, or a list of labels (`atlas`, or one facet of it,
    `atlas/known`): where a column is worse than the baseline there, and the interval leaves out zero, the
    step fails once the page is written; so it does where that cannot be told, for want of an interval, or
    because more than the share `max_missing` of the items has no value in one of the two. watch: the columns
    that can fail it, all where none is named.
    """

    baseline: str | None = None
    metrics: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    level: float = Field(0.95, gt=0, lt=1)
    fail_on_regression: bool | tuple[str, ...] = False
    max_missing: float = Field(0.1, ge=0, le=1)
    watch: tuple[str, ...] = ()
