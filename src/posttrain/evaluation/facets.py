"""What comparisons say of themselves, as parts for which a metric is given again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from posttrain.records import Comparison

MOST_PARTS = 8  # sources, aspects or judges that get a line of their own; the others share one


def by_facet(rows: Sequence[Comparison]) -> list[Callable[[Comparison], str]]:
    """For each thing that differs among the rows: which part of them a row belongs to ("source a.jsonl")."""
    facets: dict[str, Callable[[Comparison], str]] = {
        "source": lambda row: _source(row.provenance.source),
        "aspect": lambda row: row.aspect,
        "judge": lambda row: row.judge,
    }
    made = []
    for facet, of in facets.items():
        counts = Counter(of(row) for row in rows)
        if len(counts) > 1:
            own = {value for value, _ in counts.most_common(MOST_PARTS)}
            made.append(_namer(facet, of, own))
    return made


def _namer(facet: str, of: Callable[[Comparison], str], own: set[str]) -> Callable[[Comparison], str]:
    return lambda row: f"{facet} {(of(row) or 'not named') if of(row) in own else 'others'}"


def _source(source: str) -> str:
    """Without the line number."""
    file, _, line = source.rpartition(":")
    return file if line.isdigit() else source
