"""Bad input: what can be used goes on, what cannot is named with file, line, field and reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.common.errors import ConfigError, DataError
from posttrain.formats import ReadOptions, Rejects, read_rows
from posttrain.records import Comparison, Demonstration, Document, Prompt

GOOD = {"prompt": "Say hi", "completion": "hi"}


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def read(path: Path, **options: Any) -> tuple[list[Any], Rejects, list[dict[str, Any]]]:
    """The rows, the account, and what stands in rejected.jsonl."""
    out = path.parent / "out" / "rejected.jsonl"
    with Rejects(out) as rejects:
        rows = list(read_rows(path, rejects=rejects, **options))
    return rows, rejects, [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        (b'{"prompt": "Say\n', "", "invalid JSON: "),
        (b"not json at all\n", "", "invalid JSON: Expecting value at column 1"),
        (b'["a", "list"]\n', "", "not an object: expected {…}, got a list"),
        (b'{"prompt": "caf\xe9", "completion": "x"}\n', "", "not UTF-8: 0xe9 at byte 16 of the line"),
        (b'{"prompt": "ok", "completion": "a\\ud83d"}\n', "completion", "a lone surrogate"),
        (b'{"prompt": "a\\u0000b", "completion": "x"}\n', "prompt", "a NUL character at position 1"),
        ({**GOOD, "prompt": "caf\ufffd"}, "prompt", "a U+FFFD replacement character at position 3"),
        ({**GOOD, "completion": ""}, "completion", "an empty response"),
        ({**GOOD, "completion": " \n"}, "completion", "an empty response"),
        ({**GOOD, "prompt": "  "}, "prompt", "empty: expected text"),
        ({**GOOD, "prompt": 7}, "prompt", "expected text: got a number (7)"),
        ({**GOOD, "completion": 3.5}, "completion", "expected text: got a number (3.5)"),
        ({**GOOD, "completion": {"a": 1}}, "completion", "expected text: got an object"),
        ({"prompt": "alone"}, "completion", "missing: expected text"),
        ({**GOOD, "prompt": [*TURNS]}, "prompt", "no user turn at the end: the last turn is 'assistant'"),
        ({**GOOD, "prompt": [TURNS[0], TURNS[0]]}, "prompt", "roles out of order: turn 2 is 'user'"),
        (
            {**GOOD, "prompt": [TURNS[1]]},
            "prompt",
            "roles out of order: turn 1 is 'assistant', expected 'user'",
        ),
        (
            {**GOOD, "prompt": [{"role": "user", "content": " "}]},
            "prompt[0].content",
            "an empty turn",
        ),
        (
            {**GOOD, "prompt": [{"role": "critic", "content": "x"}]},
            "prompt[0].role",
            "unknown role: got text ('critic')",
        ),
        (
            {**GOOD, "prompt": [{"role": "user", "content": None}]},
            "prompt[0].content",
            "expected text: got nothing",
        ),
        ({**GOOD, "completion": [TURNS[0]]}, "completion", "expected one assistant turn of text"),
        (
            {**GOOD, "completion": [TURNS[1], TURNS[1]]},
            "completion",
            "expected one assistant turn: got a list",
        ),
        (
            {**GOOD, "prompt": [{**TURNS[0], "tool_calls": [{"name": "f"}]}]},
            "prompt[0].tool_calls",
            "more than words in a turn: it would be lost",
        ),
    ],
)
def test_one_bad_row_among_good_ones(tmp_path: Path, bad: Any, field: str, reason: str) -> None:
    path = write(tmp_path / "demos.jsonl", lines(GOOD, bad, {**GOOD, "completion": "hello"}))
    rows, rejects, put_aside = read(path)
    assert [row.response.text for row in rows] == ["hi", "hello"]
    assert (rejects.kept, rejects.rejected) == (2, 1)
    (entry,) = put_aside
    assert (entry["file"], entry["line"], entry["field"]) == (str(path), 2, field)
    assert entry["reason"].startswith(reason), entry["reason"]
    assert entry["row"]
    assert set(entry) == {"file", "line", "field", "reason", "row"}


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen", "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "rejected", "an empty response"),
        (
            {"prompt": "p", "chosen": "a", "rejected": [TURNS[1]]},
            "rejected",
            "chosen and rejected are not of one",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "margin", "below zero"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "lots"},
            "margin",
            "expected a finite number",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": True},
            "margin",
            "expected a finite number",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            "score_chosen",
            "below score_rejected",
        ),
    ],
)
def test_one_bad_pair(tmp_path: Path, bad: Any, field: str, reason: str) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows, _, (entry,) = read(write(tmp_path / "pairs.jsonl", lines(good, bad)))
    assert [row.chosen.text for row in rows] == ["a"]
    assert entry["field"] == field
    assert entry["reason"].startswith(reason), entry["reason"]


def test_a_gzip_file_that_is_cut_off_gives_its_rows_and_says_so(tmp_path: Path) -> None:
    words = [f"{i} " + "".join(chr(97 + (i * k) % 26) for k in range(60)) for i in range(5000)]
    whole = lines(*({**GOOD, "completion": word} for word in words))
    path = write(tmp_path / "demos.jsonl.gz", gzip.compress(whole)[:-5000])
    rows, rejects, put_aside = read(path)
    assert 1000 < len(rows) < 5000
    assert [row.response.text for row in rows] == words[: len(rows)]
    assert put_aside[-1]["reason"].startswith("a gzip file that is cut off")
    assert put_aside[-1]["line"] == len(rows) + 1
    assert list(rejects.damaged) == [str(path)]
    with pytest.raises(DataError, match=rf"demos\.jsonl\.gz:{len(rows) + 1}: a gzip file that is cut off"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["d.json.gz", "d.csv.gz", "d.txt.gz"])
def test_other_layouts_that_are_cut_off(tmp_path: Path, name: str) -> None:
    words = [f"{i} " + "".join(chr(97 + (i * k) % 26) for k in range(60)) for i in range(5000)]
    whole = {
        "d.json.gz": json.dumps([{"text": word} for word in words], indent=1),
        "d.csv.gz": "text\n" + "\n".join(words) + "\n",
        "d.txt.gz": "\n".join(words),
    }[name]
    path = write(tmp_path / name, gzip.compress(whole.encode())[:-5000])
    rows, rejects, put_aside = read(path, options=ReadOptions(separator="\n"))
    assert len(rows) > 1000
    assert [row.text for row in rows[:1000]] == words[:1000]
    assert any(entry["reason"].startswith("a gzip file that is cut off") for entry in put_aside)
    assert list(rejects.damaged) == [str(path)]


def test_a_gzip_file_whose_checksum_fails(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(lines(GOOD, GOOD)))
    packed[-6] ^= 0xFF
    rows, rejects, (entry,) = read(write(tmp_path / "demos.jsonl.gz", bytes(packed)))
    assert len(rows) == 2
    assert entry["reason"].startswith("a damaged gzip file: CRC check failed")
    assert rejects.rejected == 1


def test_a_gzip_file_broken_from_the_start(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.jsonl.gz", b"\x1f\x8b\x08\x00" + b"garbage" * 20)
    rows, rejects, put_aside = read(path)
    assert rows == []
    assert rejects.rejected == len(put_aside) == 1


def test_a_last_line_without_an_end(tmp_path: Path) -> None:
    whole = lines(GOOD, GOOD)
    rows, _, (entry,) = read(write(tmp_path / "demos.jsonl", whole[:-8]))
    assert len(rows) == 1
    assert entry["line"] == 2
    assert entry["reason"].endswith("the line has no end, the file seems cut off")


def test_an_array_without_an_end(tmp_path: Path) -> None:
    text = json.dumps([GOOD, GOOD, GOOD], indent=2)
    rows, rejects, (entry,) = read(write(tmp_path / "demos.json", text[: text.rindex("{") + 9].encode()))
    assert len(rows) == 2
    assert entry["line"] == 10
    assert "the rest of the file cannot be read" in entry["reason"]
    assert rejects.damaged
    rows, _, (entry,) = read(write(tmp_path / "other.json", text[:-2].encode()))
    assert len(rows) == 3
    assert entry["reason"].startswith("a JSON array without an end")


def test_things_in_an_array_that_are_no_objects(tmp_path: Path) -> None:
    data = json.dumps([GOOD, 5, "x", GOOD]).encode().replace(b'"hi"', b'"h\xff"', 1)
    rows, _, put_aside = read(write(tmp_path / "demos.json", data))
    assert len(rows) == 1
    assert {(entry["field"], entry["reason"]) for entry in put_aside} == {
        ("", "not an object: expected {…}, got a number (5)"),
        ("", "not an object: expected {…}, got text ('x')"),
        ("completion", "not UTF-8: byte 0xff"),
    }


def test_csv_rows_of_the_wrong_width(tmp_path: Path) -> None:
    text = 'prompt,completion\nSay hi,hi\nonly one cell\n"two\nlines",ok\na,b,c\n'
    rows, _, put_aside = read(write(tmp_path / "demos.csv", text.encode()))
    assert [(row.prompt.text, row.response.text) for row in rows] == [("Say hi", "hi"), ("two\nlines", "ok")]
    assert [(entry["line"], entry["reason"]) for entry in put_aside] == [
        (3, "a row of the wrong width: 1 cells under 2 columns"),
        (6, "a row of the wrong width: 3 cells under 2 columns"),
    ]


def test_a_csv_header_must_name_every_column_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must name every column once"):
        list(read_rows(write(tmp_path / "d.csv", b"prompt,prompt\na,b\n")))


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "demos.parquet"
    table = pa.table(
        {"prompt": [f"p{i}" for i in range(300)], "completion": [f"c{i} " * 50 for i in range(300)]}
    )
    pq.write_table(table, path, row_group_size=100, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data[start : start + 60] = b"\xee" * 60
    rows, rejects, put_aside = read(write(tmp_path / "broken.parquet", bytes(data)))
    assert [row.prompt.text for row in rows] == [f"p{i}" for i in (*range(100), *range(200, 300))]
    assert rejects.rejected == 100
    assert put_aside[0]["line"] == 101
    assert put_aside[0]["reason"].startswith("damaged Parquet: rows 101 to 200 are lost")


def test_parquet_without_its_footer(tmp_path: Path) -> None:
    path = tmp_path / "demos.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "completion": ["c"]}), path)
    with pytest.raises(DataError, match=r"cut\.parquet: not a whole Parquet file"):
        list(read_rows(write(tmp_path / "cut.parquet", path.read_bytes()[:-20])))


def test_a_folder_that_datasets_saved_whole_and_cut_off(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list([{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(2500)])
    saved.save_to_disk(str(tmp_path / "saved"))
    assert [row.prompt.text for row in read_rows(tmp_path / "saved")] == [f"p{i}" for i in range(2500)]  # type: ignore[attr-defined]
    (file,) = (tmp_path / "saved").glob("*.arrow")
    cut = write(tmp_path / "cut.arrow", file.read_bytes()[:-3000])
    rows, rejects, (entry,) = read(cut)
    assert [row.prompt.text for row in rows] == [f"p{i}" for i in range(2000)]
    assert (entry["line"], list(rejects.damaged)) == (2001, [str(cut)])
    assert entry["reason"].startswith("an Arrow file that is damaged or cut off")
    with pytest.raises(DataError, match="not a whole Arrow file"):
        list(read_rows(write(tmp_path / "stub.arrow", file.read_bytes()[:20])))


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xffx"))
    table = pa.table({"prompt": ["p", "q"], "completion": bad})
    pq.write_table(table, tmp_path / "demos.parquet")
    rows, _, (entry,) = read(tmp_path / "demos.parquet")
    assert [row.response.text for row in rows] == ["ok"]
    assert (entry["line"], entry["field"]) == (2, "completion")
    assert entry["reason"].startswith("not UTF-8: 0xff")


def test_text_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="UTF-16"):
        list(read_rows(write(tmp_path / "d.jsonl", '{"text": "x"}\n'.encode("utf-16"))))
    latin = "one\n\ntwo caf\xe9\n\nthree".encode("latin-1")
    rows, _, (entry,) = read(write(tmp_path / "d.txt", latin), options=ReadOptions(separator="\n\n"))
    assert [row.text for row in rows] == ["one", "three"]
    assert (entry["line"], entry["field"]) == (3, "text")


def test_a_file_that_nobody_recognises_is_told_from_what_is_known(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", lines({"instructoin": "Say hi", "output": "hi", "input": ""}))
    with pytest.raises(DataError) as e:
        list(read_rows(path))
    said = str(e.value)
    assert "d.jsonl: no reader recognises its rows. Columns found: instructoin, output, input." in said
    assert "Nearest: alpaca (instruction, input, output)." in said
    assert "trl-preference (prompt, chosen, rejected)" in said


def test_the_nearest_format_goes_by_the_columns_that_are_there_too(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", lines({"prompt": "Say hi", "chosen": "hi"}))
    with pytest.raises(DataError, match=r"Nearest: trl-preference \(prompt, chosen, rejected\)"):
        list(read_rows(path))


def test_a_format_is_decided_by_the_first_rows_not_by_the_first(tmp_path: Path) -> None:
    broken = {"prompt": "p"}
    rows, _, (entry,) = read(write(tmp_path / "d.jsonl", lines(broken, GOOD, GOOD)))
    assert len(rows) == 2
    assert (entry["line"], entry["field"]) == (1, "completion")


def test_an_unknown_format_and_an_impossible_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", lines(GOOD))
    with pytest.raises(ConfigError, match="no format named 'alpacca': did you mean 'alpaca'"):
        list(read_rows(path, format="alpacca"))
    with pytest.raises(
        DataError, match="cannot be read as comparisons, only as demonstrations, prompts, docu"
    ):
        list(read_rows(path, Comparison))


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a kind of file that is read here; known are \.jsonl"):
        list(read_rows(write(tmp_path / "d.docx", b"PK\x03\x04")))
    bare = write(tmp_path / "d", lines(GOOD))
    assert len(list(read_rows(bare))) == 1


def test_a_folder_of_shards_is_read_in_order_and_a_mixed_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in (2, 0, 1):
        write(folder / f"part-{i}.jsonl", lines({**GOOD, "completion": str(i)}))
    assert [row.response.text for row in read_rows(folder, Demonstration)] == ["0", "1", "2"]  # type: ignore[attr-defined]
    write(folder / "notes.txt", b"notes")
    with pytest.raises(DataError, match=r"several kinds of files; name one of notes\.txt, part-0\.jsonl"):
        list(read_rows(folder))


def test_a_row_is_repeated_short_and_in_utf8(tmp_path: Path) -> None:
    long = {**GOOD, "completion": "", "note": "x" * 5000}
    path = write(tmp_path / "d.jsonl", lines(GOOD, long, b'{"prompt": "\xff", "completion": "x"}\n'))
    _, _, put_aside = read(path)
    first, second = sorted(put_aside, key=lambda entry: entry["line"])
    assert len(first["row"]) < 1100
    assert first["row"].endswith("… (cut)")
    assert second["row"] == '{"prompt": "\\xff", "completion": "x"}'


def test_too_many_bad_rows_are_an_error_that_tells_them(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", lines(*[GOOD] * 97, *[{**GOOD, "completion": ""}] * 2, b"{\n"))
    _, rejects, _ = read(path)
    rejects.check(0.03)
    with pytest.raises(DataError) as e:
        rejects.check(0.029)
    said = str(e.value)
    assert "3 of 100 rows (3.0%) cannot be used" in said
    assert "2 × 'completion': an empty response; 1 × invalid JSON" in said
    assert "d.jsonl:98: field 'completion': an empty response" in said
    assert "rejected.jsonl" in said


def test_limit_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", lines(GOOD, GOOD, GOOD))
    assert len(list(read_rows(path, limit=2))) == 2


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(GOOD), Prompt),
        ("blank.jsonl", b"\n" + lines(GOOD) + b"\n\n", Prompt),
        ("crlf.jsonl", lines(GOOD).replace(b"\n", b"\r\n"), Prompt),
        ("array.json", b"\xef\xbb\xbf  [\n" + json.dumps(GOOD).encode() + b"\n]\n", Prompt),
        ("lines.json", lines(GOOD), Prompt),
        ("pretty.json", json.dumps(GOOD, indent=2).encode(), Prompt),
        ("one.csv", b"\xef\xbb\xbfprompt,completion\r\nSay hi,hi\r\n", Prompt),
        ("one.tsv", b"prompt\tcompletion\nSay hi\thi\n", Prompt),
        ("one.txt", b"\xef\xbb\xbfSay hi", Document),
    ],
)
def test_harmless_oddities_are_seen_through(tmp_path: Path, name: str, data: bytes, kind: Any) -> None:
    for path in (write(tmp_path / name, data), write(tmp_path / f"{name}.gz", gzip.compress(data))):
        (row,) = read_rows(path, kind)
        assert row.text == "Say hi"  # type: ignore[attr-defined]


def test_an_empty_file_gives_no_rows(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path / "d.jsonl", b""))) == []
