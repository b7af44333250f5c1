"""What rows come to under a model's tokenizer and template, before any training: `posttrain inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.common.errors import ConfigError, DataError, TrainingError
from posttrain.formats import Rejects, RowError, read_rows
from posttrain.models.checks import Problem, check_template
from posttrain.models.load_tokenizer import load_template
from posttrain.models.template import ChatTemplate
from posttrain.records import Comparison, Demonstration, Document, Prompt, Rating, Row, Samples
from posttrain.training.methods import method_config, method_named
from posttrain.training.methods.base import Method, MethodConfig

if TYPE_CHECKING:
    from rich.console import Console

CHECKED_ROWS = 256
_DEFAULTS: dict[type[Row], str] = {Document: "pretrain", Demonstration: "sft", Comparison: "dpo"}


@dataclass(frozen=True)
class Trained:
    """One sequence as it would be trained on; name: which of its row's (chosen, rejected, …), or ""."""

    name: str
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


@dataclass(frozen=True)
class Seen:
    """A row and its sequences."""

    row: Row
    sequences: tuple[Trained, ...]


@dataclass
class Report:
    """seen: the rows that can be used. unusable: reason → rows. problems: of the template with these rows."""

    template: ChatTemplate
    seen: list[Seen] = field(default_factory=list)
    unusable: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    more: bool = False

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(s.tokens) for seen in self.seen for s in seen.sequences]

    @property
    def supervised(self) -> list[int]:
        """Supervised tokens of each sequence."""
        return [sum(s.mask) for seen in self.seen for s in seen.sequences]

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]


def inspect_data(
    model: str,
    data: str | Path,
    n: int = 3,
    method: Mapping[str, Any] | str | None = None,
    *,
    chat_template: str | None = None,
    limit: int = 2000,
    console: Console | None = None,
) -> Report:
    """Print `n` rows as they would be trained on, their lengths, and the template checks.

    model: a folder or hub id with a tokenizer; weights are not loaded. method: the objective's name or
    config; None goes by each row's kind. limit: rows that are read for lengths and checks. Raises
    TrainingError, once all is printed, where training would refuse; DataError where no row can be used.
    """
    from posttrain.training.inspection_view import show

    report = make_report(load_template(model, chat_template), data, method, limit)
    show(report, n, console)
    if report.errors:
        failed = "; ".join(problem.message for problem in report.errors)
        raise TrainingError(f"training {model} on {data} would train the wrong tokens: {failed}")
    if not report.seen:
        raise DataError(f"{data}: no row can be trained on: {', '.join(report.unusable) or 'there is none'}")
    return report


def make_report(
    template: ChatTemplate,
    data: str | Path,
    method: Mapping[str, Any] | str | None = None,
    limit: int = 2000,
) -> Report:
    """Read up to `limit` rows and encode them as training would."""
    chosen = None if method is None else method_config(method)
    kinds = () if chosen is None else method_named(chosen.name).kinds
    kind = kinds[0] if len(kinds) == 1 else None
    rejects = Rejects()
    rows = read_rows(data, kind, rejects=rejects)
    report = Report(template)
    read = list(islice(rows, limit))
    report.more = next(iter(rows), None) is not None
    report.unusable.update(rejects.reasons)
    turns = "last"
    if chosen is not None and (settle := method_named(chosen.name).settle):
        try:
            chosen = settle(chosen, [row for row in read if isinstance(row, kinds)])
        except DataError:
            if not report.more:  # rows that are not looked at may hold what these do not
                raise
    for row in read:
        cfg = chosen or _default(row)
        turns = getattr(cfg, "turns", turns)
        try:
            sequences = _sequences(cfg, row, template)
        except RowError as e:
            report.unusable[e.kind] += 1
            continue
        except DataError as e:
            report.unusable[str(e).removeprefix(f"row {row.provenance.id}: ")] += 1
            continue
        report.seen.append(Seen(row, sequences))
    report.problems = check_template(template, read[:CHECKED_ROWS], turns)  # type: ignore[arg-type]
    return report


def _default(row: Row) -> MethodConfig | None:
    name = _DEFAULTS.get(type(row))
    return None if name is None else method_config(name)


def _sequences(cfg: MethodConfig | None, row: Row, template: ChatTemplate) -> tuple[Trained, ...]:
    if cfg is not None:
        method: Method = method_named(cfg.name)
        if method.encode is None:
            raise ConfigError(
                f"{cfg.name} learns from answers it samples, not from rows: there is nothing to show"
            )
        if not isinstance(row, method.kinds):
            raise RowError("kind", f"{cfg.name} does not learn from a {type(row).__name__.lower()}")
        (made,) = method.encode(cfg, [row], template)
        if isinstance(made, RowError):
            raise made
        names = ("chosen", "rejected") if isinstance(row, Comparison) else ("",) * len(made.branches)
        pairs = zip(names, made.branches, strict=True)
        return tuple(Trained(name, tuple(b.tokens), tuple(b.mask)) for name, b in pairs)
    if isinstance(row, Prompt):
        tokens = template.prompt(row.messages)
        return (Trained("", tuple(tokens), (False,) * len(tokens)),)
    if isinstance(row, Rating):
        return _spoken(template, row.prompt, [row.response])
    if isinstance(row, Samples):
        return _spoken(template, row.prompt, list(row.responses))
    raise ConfigError(f"inspect does not know rows of kind {type(row).__name__}")


def _spoken(template: ChatTemplate, prompt: Prompt, responses: Sequence[Any]) -> tuple[Trained, ...]:
    encoded = template.conversations([(prompt, response) for response in responses])
    names = [""] if len(encoded) == 1 else [f"response {i}" for i in range(1, len(encoded) + 1)]
    return tuple(
        Trained(name, tuple(e.tokens), tuple(e.mask)) for name, e in zip(names, encoded, strict=True)
    )
