"""Row after row looked up among evaluation items, and what becomes of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from posttrain.common.errors import DataError
from posttrain.common.files import atomic
from posttrain.common.progress import progress
from posttrain.common.step import StepContext
from posttrain.formats import Rejects, RowError
from posttrain.formats.write import line_of
from posttrain.prompts.common_grams import common_of
from posttrain.prompts.eval_items import EvalItems, row_keys
from posttrain.prompts.ngrams import VERSION, words_of
from posttrain.prompts.overlap import Marks, Overlap, Part, Rules, evidence, overlaps
from posttrain.prompts.row_index import RowIndex, row_key
from posttrain.prompts.row_lines import Line, read_lines, texts_of
from posttrain.records import Document, Row

if TYPE_CHECKING:
    from posttrain.prompts.decontaminate import Compared, DecontaminateConfig

_ROWS = 1024  # looked up together


@dataclass
class _Account:
    """What was found so far. touched: [items], whether a contaminated row holds the item."""

    touched: Any
    rows: Counter[str] = field(default_factory=Counter)
    sets: Counter[tuple[int, str]] = field(default_factory=Counter)
    first: str = ""

    def add(self, found: Sequence[Overlap]) -> None:
        for overlap in found:
            self.sets[overlap.group, overlap.verdict] += 1
            if overlap.verdict == "contaminated":
                self.sets[overlap.group, overlap.by] += 1
                self.touched[overlap.items] = True


@dataclass(frozen=True)
class _Files:
    rows: IO[bytes]
    overlaps: IO[str]
    rejects: Rejects


def screen(cfg: DecontaminateConfig, ctx: StepContext, items: EvalItems) -> dict[str, Any]:
    """Read the rows, write those that go on, and the evidence against the others; the step's summary."""
    account = _Account(np.zeros(len(items.items), bool))
    with Rejects(ctx.out / "rejected.jsonl") as rejects, _index(cfg, ctx) as index:
        rules = Rules(items, cfg.contaminated, cfg.partial, _common(cfg, items))
        with (
            atomic(ctx.out / "rows.jsonl", "wb") as out,
            atomic(ctx.out / "overlaps.jsonl") as told,
            progress(ctx.label, None, "row") as bar,
        ):
            files = _Files(out, told, rejects)
            suspects = index.sharing(items.keys.hashes)
            lines = (line for path in cfg.paths for line in read_lines(path, rejects))
            while batch := list(islice(lines, _ROWS)):
                found = _suspicious(batch, items, index, suspects, cfg.compare, account)
                for line, parts in zip(batch, found, strict=True):
                    _settle(cfg, rules, line, parts, files, account)
                bar.advance(len(batch), f"{account.rows['contaminated']:,} contaminated")
        rejects.tell(ctx.label)
        rejects.check(cfg.max_rejected)
        _check(cfg, account)
    return _summary(cfg, rules, rejects, account)


def parts_of(row: Row, compare: Compared) -> list[Part]:
    """The texts of a row that are compared."""
    prompt_only, all_text = compare == "prompt", compare == "both" or isinstance(row, Document)
    return [
        Part(where, text, words_of(text))
        for where, text in texts_of(row)
        if all_text or where.startswith("prompt") == prompt_only
    ]


def _index(cfg: DecontaminateConfig, ctx: StepContext) -> RowIndex:
    kept = f"rows-v{VERSION}-{cfg.n_ratio}-{cfg.compare}"
    return RowIndex(ctx.cache / "decontaminate" / kept if ctx.cache else None, ctx.label)


def _common(cfg: DecontaminateConfig, items: EvalItems) -> Marks:
    unread = Rejects()
    common = common_of(cfg.common, items.long, unread)
    unread.tell("common.corpus")
    unread.check(cfg.max_rejected)
    return common


def _suspicious(
    batch: Sequence[Line],
    items: EvalItems,
    index: RowIndex,
    suspects: set[bytes],
    compare: Compared,
    account: _Account,
) -> list[list[Part] | None]:
    """The parts of each row that has an n-gram of an item; None for a row that cannot overlap with any."""
    keys = [row_key(line.text) for line in batch]
    parts: list[list[Part] | None] = [None] * len(batch)
    new = [i for i, key in enumerate(keys) if key not in index.known]
    account.rows["known"] += len(batch) - len(new)
    read = [parts_of(batch[i].row, compare) for i in new]
    spoken = [i for i, some in enumerate(read) if any(part.words for part in some)]
    account.rows["wordless"] += len(new) - len(spoken)  # never known, so that every run counts them
    new, read = [new[i] for i in spoken], [read[i] for i in spoken]
    grams = row_keys([part.words for some in read for part in some], items.n_ratio)
    owner = np.repeat(np.arange(len(new)), [len(some) for some in read])[grams.text]
    index.add([keys[i] for i in new], grams.hashes, owner)
    for hit in np.unique(owner[items.keys.find(grams.hashes) >= 0]):
        parts[new[hit]] = read[hit]
    for i, key in enumerate(keys):
        if key in suspects:
            parts[i] = parts_of(batch[i].row, compare)
    return parts


def _settle(
    cfg: DecontaminateConfig,
    rules: Rules,
    line: Line,
    parts: list[Part] | None,
    files: _Files,
    account: _Account,
) -> None:
    """Write one row where it belongs."""
    found = overlaps(rules, parts) if parts else []
    account.add(found)
    account.rows["all"] += 1
    if not found:
        files.rows.write(line.text)
        return
    assert parts is not None
    row = line.row
    told = [evidence(rules, parts, overlap) for overlap in found]
    worst = min(told, key=lambda one: one["verdict"] == "partial")
    file, number = _where(line, row)
    drop = worst["verdict"] == "contaminated" and cfg.action == "drop"
    account.rows[worst["verdict"]] += 1
    account.rows["dropped"] += drop
    beside = {"id": row.provenance.id, "overlaps": told}
    said = {"file": file, "line": number, "dropped": drop, **beside}
    files.overlaps.write(json.dumps(said, ensure_ascii=False) + "\n")
    if not account.first and worst["verdict"] == "contaminated":
        account.first = f"{file}:{number}: {_words(worst)}: “{worst['span']}”"
    if drop:
        error = RowError("", f"contaminated by {worst['set']}: {_words(worst)}", by_choice=True)
        files.rejects.add(file, number, error, row.model_dump(mode="json"), evidence=beside)
    else:
        files.rows.write(line_of(_marked(row, f"{worst['verdict']}: {_words(worst)}")))


def _where(line: Line, row: Row) -> tuple[str, int]:
    """The file and line a row came from in the first place, else those it was read from."""
    for place in (row.provenance.source, line.where):
        file, _, number = place.rpartition(":")
        if number.isdigit():
            return file, int(number)
    return line.where, 0


def _words(told: dict[str, Any]) -> str:
    """One overlap in a few words."""
    ratio = "" if told["ratio"] is None else f" {told['ratio']:.2f}"
    return (
        f"{told['by']}{ratio}, {told['words']} words of {told['set']} {told['item']} in the {told['where']}"
    )


def _marked(row: Row, words: str) -> Row:
    makers = row.provenance.makers | {"decontaminate": words}
    return row.model_copy(update={"provenance": row.provenance.model_copy(update={"makers": makers})})


def _check(cfg: DecontaminateConfig, account: _Account) -> None:
    rows, bad = account.rows["all"], account.rows["contaminated"]
    if not rows:
        raise DataError(f"{', '.join(cfg.paths)}: no rows")
    if bad > cfg.max_contaminated * rows:
        raise DataError(
            f"{bad} of {rows} rows ({bad / rows:.1%}) are contaminated, more than max_contaminated: "
            f"{cfg.max_contaminated} allows. First: {account.first}"
        )
    if account.rows["dropped"] == rows:
        raise DataError(f"all {rows} rows are contaminated, so none is left. First: {account.first}")


def _summary(cfg: DecontaminateConfig, rules: Rules, rejects: Rejects, account: _Account) -> dict[str, Any]:
    rows, items = account.rows["all"], rules.items
    sets = {}
    for group, (name, counts) in enumerate(items.described().items()):
        said = {key: account.sets[group, key] for key in ("contaminated", "partial")}
        by = {key: account.sets[group, key] for key in ("n-gram", "ratio", "whole")}
        touched = len(np.unique(items.number[account.touched & (items.group == group)]))
        sets[name] = {
            **counts,
            "rows": said,
            "contaminated_share": said["contaminated"] / rows,
            "by": by,
            "items_in_rows": touched,
            "items_in_rows_share": touched / max(1, counts["items"]),
        }
    return {
        "rows": rows - account.rows["dropped"],
        "read": rows,
        "known": account.rows["known"],
        "wordless": account.rows["wordless"],
        "contaminated": account.rows["contaminated"],
        "contaminated_share": account.rows["contaminated"] / rows,
        "partial": account.rows["partial"],
        "dropped": account.rows["dropped"],
        "sets": sets,
        "common_ngrams": int(np.count_nonzero(rules.common)),
        "rejected": {"rows": rejects.rejected, "reasons": dict(rejects.reasons.most_common())},
    }
