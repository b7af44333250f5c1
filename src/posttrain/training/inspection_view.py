"""The page that `posttrain inspect` prints."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from posttrain.models.checks import CHECKS
from posttrain.training.inspection import Report, Seen, Trained

# Where there is no colour, these stand around what is supervised.
OPEN, CLOSE = "⟦", "⟧"
PROMPT, SUPERVISED, CONTROL = "dim", "bold green", "magenta"
_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 24


def show(report: Report, n: int, console: Console | None = None) -> None:
    """Print the first `n` rows, the lengths of all, and every check."""
    console = console or Console()
    coloured = console.is_terminal and not console.no_color
    for number, seen in enumerate(report.seen[:n], 1):
        console.print(_row(report, seen, number, coloured))
    if report.seen:
        legend = Text("supervised tokens are ")
        legend.append(*(("green", SUPERVISED) if coloured else (f"in {OPEN}{CLOSE}", "")))
        console.print(legend)
        console.print(_numbers(report))
    console.print(_tokens(report))
    console.print(_checks(report))
    if report.unusable:
        console.print(_unusable(report))


def _row(report: Report, seen: Seen, number: int, coloured: bool) -> RenderableType:
    first, *others = seen.sequences
    shared = _shared(seen.sequences)
    total, learned = sum(len(s.tokens) for s in seen.sequences), sum(sum(s.mask) for s in seen.sequences)
    parts: list[RenderableType] = []
    if others:
        parts.append(_text(report, first.tokens[:shared], first.mask[:shared], coloured))
    for s in seen.sequences:
        if s.name:
            parts.append(Text(f"{s.name}:", style="bold"))
        start = shared if others else 0
        parts.append(_text(report, s.tokens[start:], s.mask[start:], coloured))
    kind = type(seen.row).__name__.lower()
    title = Text(f"{number} · {kind} {seen.row.provenance.id} · {total} tokens, {learned} supervised")
    return Panel(Group(*parts), title=title, title_align="left") if coloured else Group(title, *parts, Text())


def _shared(sequences: Sequence[Trained]) -> int:
    """How many unsupervised tokens all sequences of a row begin with."""
    shared = 0
    for step in zip(*(zip(s.tokens, s.mask, strict=True) for s in sequences), strict=False):
        if len(set(step)) > 1 or step[0][1]:
            break
        shared += 1
    return shared


def _text(report: Report, tokens: Sequence[int], mask: Sequence[bool], coloured: bool) -> Text:
    out = Text()
    for (learned, control), run in _runs(report, tokens, mask):
        words = report.template.tokenizer.decode(run, clean_up_tokenization_spaces=False)
        style = (SUPERVISED if learned else PROMPT) + (f" {CONTROL}" if control else "")
        out.append(words, style=style)
    return out if coloured else Text(_bracketed(report, tokens, mask))


def _runs(
    report: Report, tokens: Sequence[int], mask: Sequence[bool]
) -> Iterator[tuple[tuple[bool, bool], list[int]]]:
    """Tokens side by side that are shown alike: (supervised, a control token), ids."""
    special = set(report.template.tokenizer.all_special_ids) | set(report.template.stop_ids)
    looks = [(learned, token in special) for token, learned in zip(tokens, mask, strict=True)]
    at = 0
    for look, group in itertools.groupby(looks):
        size = len(list(group))
        yield look, list(tokens[at : at + size])
        at += size


def _bracketed(report: Report, tokens: Sequence[int], mask: Sequence[bool]) -> str:
    out, at = "", 0
    for learned, group in itertools.groupby(mask):
        size = len(list(group))
        words = report.template.tokenizer.decode(
            list(tokens[at : at + size]), clean_up_tokenization_spaces=False
        )
        out += f"{OPEN}{words}{CLOSE}" if learned else words
        at += size
    return out


def _numbers(report: Report) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for name in ("lengths", "min", "median", "mean", "95 %", "max", "sum"):
        table.add_column(name, justify="left" if name == "lengths" else "right")
    bars = Table(box=None, pad_edge=False, show_header=False)
    for name, values in (("tokens a sequence", report.lengths), ("supervised", report.supervised)):
        ordered = sorted(values)
        table.add_row(
            name,
            *(f"{x:,}" for x in (ordered[0], _quantile(ordered, 0.5))),
            f"{sum(ordered) / len(ordered):,.1f}",
            *(f"{x:,}" for x in (_quantile(ordered, 0.95), ordered[-1], sum(ordered))),
        )
        bars.add_row(name, Text(_histogram(ordered)))
    share = sum(report.supervised) / max(sum(report.lengths), 1)
    kinds = Counter(type(seen.row).__name__.lower() for seen in report.seen)
    rows = ", ".join(f"{count:,} {kind}{'s' * (count > 1)}" for kind, count in kinds.items())
    more = " (there are more)" if report.more else ""
    return Group(table, bars, Text(f"{rows}{more}; {share:.1%} of the tokens are supervised\n"))


def _quantile(ordered: Sequence[int], q: float) -> int:
    """The smallest value that at least the share `q` of all does not exceed."""
    return ordered[max(0, -(-int(q * 1000) * len(ordered) // 1000) - 1)]


def _histogram(ordered: Sequence[int]) -> str:
    """Counts in equal bins from the smallest to the largest, as bars."""
    low, high = ordered[0], ordered[-1]
    width = (high - low + 1) / _BINS
    counts = Counter(min(int((x - low) / width), _BINS - 1) for x in ordered)
    top = max(counts.values())
    bars = "".join(_BARS[-(-counts[i] * (len(_BARS) - 1) // top)] for i in range(_BINS))
    return f"{low:,} {bars} {high:,}"


def _tokens(report: Report) -> Text:
    tokenizer = report.template.tokenizer
    stops = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in report.template.stop_ids)
    return Text(
        f"{len(tokenizer):,} tokens in the vocabulary; a response ends with {stops or 'nothing'}; "
        f"BOS {tokenizer.bos_token!r}, padding {tokenizer.pad_token!r}\n"
    )


def _checks(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    marks = {"error": ("✗", "bold red"), "warning": ("!", "yellow")}
    for check in CHECKS:
        found = [problem for problem in report.problems if problem.check == check]
        if not found:
            table.add_row(Text("✓", style="green"), Text(check))
        for problem in found:
            mark, style = marks[problem.severity]
            where = f"\n  {problem.example}" if problem.example else ""
            table.add_row(Text(mark, style=style), Text(f"{check}: {problem.message}{where}", style=style))
    return table


def _unusable(report: Report) -> Text:
    lines = [f"  {count:,} × {reason}" for reason, count in report.unusable.most_common(5)]
    return Text(
        f"\n{sum(report.unusable.values()):,} rows cannot be used:\n" + "\n".join(lines), style="yellow"
    )
