"""The step `decontaminate` against the published algorithm, over again, and on real data."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decontaminate import CLEAN, DATA, QUESTION, ask, demo, needs_data, put, screen, words

from posttrain.formats import read_records
from posttrain.records import (
    Prompt,
    Row,
)


def random_rows(rng: random.Random, n: int) -> list[Row]:
    def text() -> str:
        return " ".join(f"v{rng.randint(0, 12)}" for _ in range(rng.randint(1, 40)))

    return [demo(text(), text(), str(i)) for i in range(n)]


def outputs(out: Path) -> dict[str, bytes]:
    names = ("rows.jsonl", "overlaps.jsonl", "rejected.jsonl")
    return {name: (out / name).read_bytes() for name in names}


def test_incremental_equals_from_scratch(tmp_path: Path) -> None:
    """New rows, then a new evaluation set, then fewer rows: the same files as without anything kept."""
    rng, cache = random.Random(0), tmp_path / "cache"
    rows = random_rows(rng, 300)
    sets = [put(tmp_path / f"set{i}.jsonl", random_rows(rng, 5)) for i in range(2)]
    spec: dict[str, Any] = {"n": 6, "n_ratio": 3, "contaminated": 0.5, "partial": 0.1}
    stages = [
        (rows[:200], sets[:1], 0),
        (rows, sets[:1], 200),
        (rows, sets, 300),
        (rows[100:], sets[1:], 200),
    ]
    for number, (some, against, known) in enumerate(stages):
        data = put(tmp_path / "rows.jsonl", some)
        summary, _, found = screen(tmp_path / f"kept{number}", data, against, cache, **spec)
        fresh, _, _ = screen(tmp_path / f"fresh{number}", data, against, **spec)
        assert found, "a test of rows that are found"
        assert outputs(tmp_path / f"kept{number}") == outputs(tmp_path / f"fresh{number}")
        assert summary.pop("known") == known
        assert fresh.pop("known") == 0
        assert summary == fresh
    other, _, _ = screen(tmp_path / "other", data, against, cache, **{**spec, "n_ratio": 4})
    assert other["known"] == 0, "another length of n-grams is another index"


def test_known_rows_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither new rows nor a new evaluation set cost the words of a row that is known."""
    from posttrain.prompts import screening

    cache = tmp_path / "cache"
    rows: list[Row] = [ask(f"{CLEAN} {words(i * 50, i * 50 + 30)}", str(i)) for i in range(20)]
    first, second = (put(tmp_path / f"{n}.jsonl", [ask(words(n, n + 20))]) for n in (10_000, 105))
    screen(tmp_path / "a", put(tmp_path / "rows.jsonl", rows), first, cache)
    read: list[str] = []
    plain = screening.parts_of

    def noted(row: Row, compare: Any) -> Any:
        read.append(row.provenance.id)
        return plain(row, compare)

    monkeypatch.setattr(screening, "parts_of", noted)
    data = put(tmp_path / "rows.jsonl", [*rows, ask(CLEAN, "new")])
    screen(tmp_path / "b", data, first, cache)
    assert read == ["new"]
    read.clear()
    _, _, found = screen(tmp_path / "c", data, [first, second], cache)
    assert read == [line["id"] for line in found] == ["2"]


def test_a_damaged_index_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    data = put(tmp_path / "rows.jsonl", [ask(QUESTION, "bad"), ask(CLEAN)])
    against = put(tmp_path / "test.jsonl", [ask(QUESTION)])
    screen(tmp_path / "a", data, against, cache)
    [segment] = cache.glob("decontaminate/*/segment-*")
    whole = (segment / "hashes.npy").read_bytes()
    (segment / "hashes.npy").write_bytes(whole[:-8] + b"\0" * 8)
    summary, _, found = screen(tmp_path / "b", data, against, cache)
    assert "is damaged" in capsys.readouterr().err
    assert (len(found), summary["known"]) == (1, 0)
    assert screen(tmp_path / "c", data, against, cache)[0]["known"] == 2
    assert (next(cache.glob("decontaminate/*/segment-*")) / "hashes.npy").read_bytes() == whole


# ---- real data


@needs_data
def test_real_contamination_is_found_and_clean_rows_are_not(tmp_path: Path) -> None:
    """GSM8K rows hold nothing of MT-Bench and HumanEval; 40 of their questions, put into 40 rows, are all
    found, each row with the question it was given.
    """
    lines = gzip.decompress((DATA / "gsm8k_train.jsonl.gz").read_bytes()).splitlines()
    clean = [json.loads(line) for line in lines[:1500]]
    sets = [str(DATA / "mt_bench_questions.jsonl"), str(DATA / "human_eval.jsonl.gz")]
    questions = [prompt for path in sets for prompt in read_records(path, Prompt)[:80:4]]
    assert len(questions) == 40
    rng = random.Random(0)
    where = dict(zip(rng.sample(range(len(clean)), 40), questions, strict=True))
    for i, prompt in where.items():
        field = rng.choice(["question", "answer"])
        clean[i] = clean[i] | {field: f"{prompt.text.lower()}\n\n{clean[i][field]}"}
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in clean))
    summary, _, found = screen(tmp_path / "out", str(data), sets)
    assert {line["line"] - 1 for line in found if line["overlaps"][0]["verdict"] == "contaminated"} == set(
        where
    )
    assert summary["partial"] == 0
    for line in found:
        assert line["overlaps"][0]["item"] == where[line["line"] - 1].provenance.id


# ---- against the algorithm as it is published, in plain Python

texts = st.lists(st.sampled_from("abcd"), max_size=12)


def as_published(row: list[str], items: list[list[str]], n: int, m: int, low: float, high: float) -> str:
    """Algorithm 1 of the report, with sets of tuples; no list of common n-grams."""

    def grams(of: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(of[i : i + size]) for i in range(len(of) - size + 1)}

    if any(grams(row, n) & grams(item, n) for item in items):
        return "contaminated"
    smaller = [
        (len(grams(row, m) & grams(item, m)), min(len(grams(row, m)), len(grams(item, m)))) for item in items
    ]
    ratio = max((overlap / size for overlap, size in smaller if overlap), default=0.0)
    return "contaminated" if ratio >= high else "partial" if ratio > low else "clean"


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=6))
def test_equal_to_the_published_algorithm(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[str]], rows: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    items = [item for item in items if len(item) >= 2] or [["a", "b", "c"]]
    rows = [row for row in rows if row] or [["a"]]
    data = put(folder / "rows.jsonl", [ask(" ".join(row), str(i)) for i, row in enumerate(rows)])
    against = put(folder / "test.jsonl", [ask(" ".join(item)) for item in items])
    _, kept, found = screen(
        folder / "out", data, against, action="mark", n=5, n_ratio=2, contaminated=0.6, partial=0.3
    )
    told = {line["id"]: line["overlaps"][0]["verdict"] for line in found}
    assert len(kept) == len(rows)
    assert [told.get(str(i), "clean") for i in range(len(rows))] == [
        as_published(row, items, 5, 2, 0.3, 0.6) for row in rows
    ]
