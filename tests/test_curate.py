"""The step `curate`: what it keeps, what it splits off, and its account of the rest."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.common.config import Config, DataRef, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.flow.inputs import inputs_of
from posttrain.formats import read_records, write_records
from posttrain.prompts.curate import STEP, CurateConfig
from posttrain.prompts.sources import Files, Source
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Provenance,
    Response,
    Row,
    prompt_key,
)

DATA = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data here: set POSTTRAIN_DATA")


def curate(out: Path, **spec: Any) -> tuple[dict[str, Any], list[Row], list[dict[str, Any]]]:
    """Summary, rows, and the lines of rejected.jsonl."""
    cfg = parse(CurateConfig, {"as" if key == "as_" else key: value for key, value in spec.items()}, "curate")
    summary = STEP.run(cfg, StepContext(out, out / "state", "test"))
    json.dumps(summary, allow_nan=False)
    lines = (out / "rejected.jsonl").read_text("utf-8").splitlines()
    return summary, list(read_records(out)), [json.loads(line) for line in lines]


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demo(i: int, answer: str = "yes") -> dict[str, Any]:
    return {"prompt": f"question {i}", "completion": answer}


def test_rows_heldout_and_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "demos.jsonl", *[demo(i % 60, f"answer {i}") for i in range(199)], demo(1, ""))
    summary, rows, rejected = curate(tmp_path / "out", source=path, holdout=0.2, licence="MIT")
    heldout = read_records(tmp_path / "out" / "heldout.jsonl", Demonstration)
    sides = [{prompt_key(row.prompt) for row in side} for side in (rows, heldout)]  # type: ignore[attr-defined]
    assert not sides[0] & sides[1]
    assert len(rows) + len(heldout) == 199
    assert summary["rows"] == len(rows)
    assert summary["heldout"] == len(heldout) > 0
    assert summary["prompts"] == 60
    assert summary["kinds"] == {"demonstration": 199}
    assert summary["licences"] == {"MIT": 199}
    assert summary["sources"] == {path: 199}
    assert summary["formats"] == {path: "trl-completion"}
    assert summary["rejected"] == {"rows": 1, "reasons": {"'completion': an empty response": 1}}
    assert summary["prompt_chars"] == {"min": 10, "median": 11, "mean": 10.8, "max": 11}
    assert [(entry["file"], entry["line"]) for entry in rejected] == [(path, 200)]
    assert "1 rows cannot be used: 1 × 'completion': an empty response" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "heldout.jsonl",
        "rejected.jsonl",
        "rows.jsonl",
        "state",
    ]
    assert list((tmp_path / "out" / "state").iterdir()) == []


def test_the_same_config_gives_the_same_bytes(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "demos.jsonl", *[demo(i) for i in range(100)])
    for name in ("a", "b"):
        curate(tmp_path / name, source=path, holdout=10, shuffle=True, limit=50, take="random", seed=3)
    for file in ("rows.jsonl", "heldout.jsonl", "rejected.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not (tmp_path / "c").exists()
    _, other, _ = curate(
        tmp_path / "c", source=path, holdout=10, shuffle=True, limit=50, take="random", seed=4
    )
    assert other != read_records(tmp_path / "a")


def test_each_row_once_and_the_others_name_the_one_that_was_kept(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", demo(1), demo(2), {**demo(1), "note": "a tag makes no other row"})
    second = jsonl(tmp_path / "b.jsonl", demo(2), demo(2, "no"))
    summary, rows, rejected = curate(tmp_path / "out", source=[first, second])
    assert [row.response.text for row in rows] == ["yes", "yes", "no"]  # type: ignore[attr-defined]
    assert summary["left_out"] == {"rows": 2, "reasons": {"a duplicate": 2}}
    assert [(entry["file"], entry["line"]) for entry in rejected] == [("a.jsonl", 3), ("b.jsonl", 1)]
    assert rejected[0]["reason"] == f"a duplicate: the same as row {rows[0].provenance.id} (a.jsonl:1)"
    assert rejected[1]["reason"] == f"a duplicate: the same as row {rows[1].provenance.id} (a.jsonl:2)"


def test_ids_stay_unique_where_duplicates_are_kept(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", demo(1), demo(1), demo(1))
    _, rows, _ = curate(tmp_path / "out", source=path, dedupe=False)
    id = rows[0].provenance.id
    assert [row.provenance.id for row in rows] == [id, f"{id}~2", f"{id}~3"]
    _, again, _ = curate(tmp_path / "more", source=[str(tmp_path / "out"), path], dedupe=False)
    assert len({row.provenance.id for row in again}) == 6


def test_votes_of_two_judges_on_one_pair_are_not_duplicates(tmp_path: Path) -> None:
    prompt = Prompt(provenance=Provenance(id="p"), messages=(Message(role="user", content="Hi"),))

    def vote(id: str, judge: str) -> Comparison:
        return Comparison(
            provenance=Provenance(id=id),
            prompt=prompt,
            chosen=Response(text="a"),
            rejected=Response(text="b"),
            judge=judge,
        )

    write_records(tmp_path / "votes.jsonl", [vote("1", "ann"), vote("2", "bob"), vote("3", "ann")])
    _, rows, _ = curate(tmp_path / "out", source=str(tmp_path / "votes.jsonl"))
    assert [row.provenance.id for row in rows] == ["1", "2"]


def test_length_bounds(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[{"prompt": "p" * 5, "completion": "c" * n} for n in (1, 5, 20)])
    summary, rows, rejected = curate(tmp_path / "out", source=path, min_chars=10, max_chars=24)
    assert [len(row.response.text) for row in rows] == [5]  # type: ignore[attr-defined]
    assert [entry["reason"] for entry in rejected] == [
        "too short: 6 characters, min_chars is 10",
        "too long: 25 characters, max_chars is 24",
    ]
    assert summary["left_out"]["rows"] == 2


def test_a_limit_on_the_first_rows_reads_no_further(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[demo(i) for i in range(80)], *[demo(i, "") for i in range(80)])
    summary, rows, _ = curate(tmp_path / "out", source=path, limit=10)
    assert [row.provenance.source for row in rows] == [f"a.jsonl:{i + 1}" for i in range(10)]
    assert summary["rejected"]["rows"] == 0
    with pytest.raises(DataError, match="max_rejected"):
        curate(tmp_path / "two", source=path, limit=10, take="random")


def test_too_many_unusable_rows_fail_the_step_and_leave_their_list(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[demo(i) for i in range(97)], *[demo(i, "") for i in range(3)])
    with pytest.raises(DataError, match=r"3 of 100 rows \(3.0%\) cannot be used"):
        curate(tmp_path / "out", source=path)
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    curate(tmp_path / "out", source=path, max_rejected=0.03)


def test_what_is_left_out_by_choice_is_not_held_against_the_data(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[demo(1)] * 50)
    summary, rows, _ = curate(tmp_path / "out", source=path, max_rejected=0)
    assert (len(rows), summary["left_out"]["rows"]) == (1, 49)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    for name, rows in (("empty", []), ("short", [demo(1)])):
        path = jsonl(tmp_path / f"{name}.jsonl", *rows)
        with pytest.raises(DataError, match=r"no rows are left; see .*rejected\.jsonl"):
            curate(tmp_path / name, source=path, min_chars=1000)


def test_a_damaged_file_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    whole = "".join(json.dumps(demo(i, f"{i * i % 997} {i}")) + "\n" for i in range(5000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(whole.encode())[:-500])
    summary, rows, _ = curate(tmp_path / "out", source=str(path))
    assert len(rows) > 1000
    assert list(summary["damaged_files"]) == [str(path)]
    assert "is damaged: a gzip file that is cut off" in capsys.readouterr().err


def test_as_converts_rows_of_every_source(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"})
    _, pairs, _ = curate(tmp_path / "pairs", source=path)
    _, demos, _ = curate(tmp_path / "demos", source=str(tmp_path / "pairs"), as_="demonstrations")
    assert isinstance(demos[0], Demonstration)
    assert demos[0].provenance.parents == (pairs[0].provenance.id,)
    _, prompts, _ = curate(tmp_path / "prompts", source=str(tmp_path / "pairs"), as_="prompts")
    assert prompts == [pairs[0].prompt]  # type: ignore[attr-defined]


def test_documents_are_split_by_their_words(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(f"Document {i % 40}." for i in range(60)))
    summary, rows, _ = curate(tmp_path / "out", source=str(path), separator="\n\n", holdout=5, dedupe=False)
    heldout = read_records(tmp_path / "out" / "heldout.jsonl", Document)
    assert len(rows) + len(heldout) == 60
    assert not {row.text for row in rows} & {row.text for row in heldout}  # type: ignore[attr-defined]
    assert summary["prompt_chars"]["max"] == 0


class Counting(Config):
    """A source as another package would bring it."""

    n: int
    path: DataRef = ""
    broken: bool = False

    def rows(self) -> Iterator[Row]:
        for i in range(self.n):
            provenance = Provenance(id=f"c{i}", source=f"counting:{i + 1}", licence="CC0-1.0")
            yield Prompt(provenance=provenance, messages=(Message(role="user", content=f"Count to {i}."),))
            if self.broken:
                yield Document(provenance=Provenance(id=f"d{i}", source=f"counting:{i + 1}"), text="words")


@pytest.fixture
def other_package(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("other_package")
    module.Counting = Counting  # type: ignore[attr-defined]
    module.NoSource = CurateConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_package", module)
    return "other_package:Counting"


def test_a_source_of_another_package(tmp_path: Path, other_package: str) -> None:
    assert isinstance(Counting(n=1), Source)
    demos = jsonl(tmp_path / "a.jsonl", demo(1))
    both = [{"name": other_package, "n": 3}, {"path": demos, "as": "prompts", "licence": "MIT"}]
    summary, rows, _ = curate(tmp_path / "out", source=both)
    assert [row.text for row in rows] == ["Count to 0.", "Count to 1.", "Count to 2.", "question 1"]  # type: ignore[attr-defined]
    assert summary["sources"] == {other_package: 3, demos: 1}
    assert summary["licences"] == {"CC0-1.0": 3, "MIT": 1}


def test_rows_of_a_source_that_cannot_be_converted_are_put_aside(tmp_path: Path, other_package: str) -> None:
    spec = {"name": other_package, "n": 2, "broken": True}
    summary, rows, rejected = curate(tmp_path / "out", source=spec, as_="prompts", max_rejected=0.5)
    assert len(rows) == 2
    assert summary["rejected"]["rows"] == 2
    assert (rejected[0]["file"], rejected[0]["line"]) == (other_package, 2)
    assert rejected[0]["reason"].startswith("not to be read as prompts: this is one of the documents")


def test_files_take_over_what_the_step_says_and_they_do_not(tmp_path: Path) -> None:
    a, b = (jsonl(tmp_path / f"{n}.jsonl", demo(i)) for i, n in enumerate("ab"))
    _, rows, _ = curate(
        tmp_path / "out", source=[a, {"name": "files", "path": b, "licence": "own"}], licence="MIT"
    )
    assert [row.provenance.licence for row in rows] == ["MIT", "own"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"source": {"name": "fils", "path": "x"}}, "no source named 'fils': did you mean 'files'"),
        ({"source": {"name": "files", "pth": "x"}}, "unknown key 'pth'.*did you mean 'path'"),
        ({"source": {"seed": 3}}, "a mapping with a 'name'"),
        ({"source": []}, "'source' is an empty list"),
        ({"source": 3}, "a source is a path, a name or a mapping"),
        ({"source": "other_package:NoSource"}, "is no source: a source is a Config class with rows"),
        ({"source": "x", "format": "alpacca"}, "no format named 'alpacca': did you mean 'alpaca'"),
        ({"source": "x", "as": "demos"}, "'as': input should be 'prompts'"),
        ({"source": "x", "take": "random"}, "it says none"),
        ({"source": "x", "holdout": 0}, "holdout"),
        ({"source": "x", "holdout": 1.5}, "holdout"),
        ({"source": "x", "min_chars": 5, "max_chars": 2}, "'max_chars' is below 'min_chars'"),
        ({"source": "x", "max_rejectd": 0.5}, "did you mean 'max_rejected'"),
    ],
)
def test_mistakes_in_the_config(spec: dict[str, Any], said: str, other_package: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(CurateConfig, spec, "curate")


def test_files_are_inputs_that_a_fingerprint_can_see(other_package: str) -> None:
    spec = [
        "data/a.jsonl",
        "@step/heldout.jsonl",
        {"path": "b.jsonl"},
        {"name": other_package, "n": 1, "path": "c"},
    ]
    cfg = parse(CurateConfig, {"source": spec, "as": "prompts"}, "curate")
    files = [leaf.value for leaf in inputs_of(cfg) if leaf.kind == "data"]
    assert files == ["data/a.jsonl", "@step/heldout.jsonl", "b.jsonl", "c"]
    assert parse(CurateConfig, cfg.model_dump(mode="json", by_alias=True), "again") == cfg


def test_the_source_files_alone_is_strict(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", demo(1), demo(2, ""))
    with pytest.raises(DataError, match=r"a\.jsonl:2: field 'completion': an empty response"):
        list(Files(path=path).rows())


REAL = [
    ("hh_rlhf_harmless.jsonl.gz", None, "hh", "comparison", 1789, 11, 0),
    ("gsm8k_train.jsonl.gz", None, "gsm8k", "demonstration", 7473, 0, 0),
    ("human_eval.jsonl.gz", None, "trl-prompt", "prompt", 164, 0, 0),
    ("self_instruct_seed_tasks.jsonl", None, "self-instruct", "demonstration", 175, 0, 0),
    ("self_instruct_user_oriented.jsonl", None, "self-instruct", "demonstration", 252, 0, 0),
    ("oasst_en_100_trees.jsonl", None, "oasst", "demonstration", 546, 0, 0),
    ("oasst_en_100_trees.jsonl", "comparisons", "oasst", "comparison", 429, 0, 6),
    ("nq_open_dev.jsonl", None, "facts", "prompt", 3610, 0, 0),
    ("xstest_prompts.csv", None, "trl-prompt", "prompt", 450, 0, 0),
    ("mt_bench_questions.jsonl", None, "mt-bench", "prompt", 80, 0, 0),
]


@needs_data
@pytest.mark.parametrize(("file", "as_", "format", "kind", "rows", "rejected", "left_out"), REAL)
def test_real_files(
    tmp_path: Path,
    file: str,
    as_: str | None,
    format: str,
    kind: str,
    rows: int,
    rejected: int,
    left_out: int,
) -> None:
    summary, read, _ = curate(tmp_path / "out", source=str(DATA / file), as_=as_)
    assert list(summary["formats"].values()) == [format]
    assert summary["kinds"] == {kind: rows}
    assert (summary["rejected"]["rows"], summary["left_out"]["rows"]) == (rejected, left_out)
    assert len({row.provenance.id for row in read}) == len(read) == rows
