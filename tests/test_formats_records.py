"""Our own records, out and in again: equal rows, whole files, and a reader that is strict with them."""

from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.common.errors import DataError, StoreError
from posttrain.formats import Rejects, read_records, read_rows, write_records
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    ImagePart,
    Message,
    Prompt,
    Provenance,
    Rating,
    Response,
    Row,
    Samples,
    TextPart,
)

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufffd"), max_size=40)
WORDS = ANY.filter(str.strip)
LABELS = st.dictionaries(ANY, ANY, max_size=3)
REAL = st.floats(allow_nan=False, allow_infinity=False)
IDS = st.integers(0, 2**31 - 1)

provenances = st.builds(
    Provenance, id=ANY, source=ANY, licence=ANY, makers=LABELS, parents=st.lists(ANY, max_size=2).map(tuple)
)
parts = st.lists(
    st.builds(TextPart, text=ANY) | st.builds(ImagePart, image=WORDS.map("data:".__add__)), max_size=2
)
contents = WORDS | parts.map(
    lambda p: (TextPart(text="see"), *p, ImagePart(image="data:image/png;base64,AA=="))
)


@st.composite
def prompts(draw: Any) -> Prompt:
    turns = draw(st.integers(0, 2))
    system = [Message(role="system", content=draw(WORDS))] if draw(st.booleans()) else []
    body = [
        Message(role="assistant" if i % 2 else "user", content=draw(contents)) for i in range(2 * turns + 1)
    ]
    return Prompt(
        provenance=draw(provenances),
        messages=(*system, *body),
        reference=draw(st.none() | ANY),
        tags=draw(LABELS),
    )


@st.composite
def responses(draw: Any) -> Response:
    if draw(st.booleans()):
        return Response(text=draw(WORDS), finish=draw(st.sampled_from([None, "stop", "length"])))
    ids = draw(st.lists(IDS, min_size=1, max_size=4))
    logps = draw(st.none() | st.lists(REAL, min_size=len(ids), max_size=len(ids)).map(tuple))
    model_logps = draw(st.none() | st.lists(REAL, min_size=len(ids), max_size=len(ids)).map(tuple))
    return Response(text=draw(ANY), token_ids=tuple(ids), logps=logps, model_logps=model_logps)


def differ(row: dict[str, Any]) -> bool:
    a, b = row["chosen"], row["rejected"]
    return a.text != b.text or (None not in (a.token_ids, b.token_ids) and a.token_ids != b.token_ids)


rows: st.SearchStrategy[Row] = st.one_of(
    prompts(),
    st.builds(Demonstration, provenance=provenances, prompt=prompts(), response=responses()),
    st.fixed_dictionaries(
        {
            "provenance": provenances,
            "prompt": prompts(),
            "chosen": responses(),
            "rejected": responses(),
            "strength": st.none() | st.floats(0, 1e300),
            "probability": st.none() | st.floats(0, 1),
            "aspect": ANY,
            "judge": ANY,
            "prompt_token_ids": st.none() | st.lists(IDS, max_size=3).map(tuple),
            "tokenizer": st.none() | ANY,
        }
    )
    .filter(differ)
    .map(lambda fields: Comparison(**fields)),
    st.builds(
        Rating,
        provenance=provenances,
        prompt=prompts(),
        response=responses(),
        scores=st.dictionaries(ANY, st.none() | REAL, max_size=3),
        label=st.none() | st.booleans(),
        judge=ANY,
    ),
    st.builds(
        Samples,
        provenance=provenances,
        prompt=prompts(),
        responses=st.lists(responses(), min_size=1, max_size=3).map(tuple),
        model=ANY,
    ),
    st.builds(Document, provenance=provenances, text=WORDS),
)


@pytest.fixture(scope="module")
def no_sync() -> Iterator[None]:
    """Hundreds of small files need not reach the platter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.lists(rows, max_size=5))
def test_what_is_written_is_read_back(name: str, data: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert write_records(path, data) == len(data)
        assert read_records(path) == data
        assert list(read_rows(path)) == data


def prompt(words: str = "What is two plus two?", **fields: Any) -> Prompt:
    return Prompt(provenance=Provenance(id="p"), messages=(Message(role="user", content=words),), **fields)


def demonstration(words: str = "Four.", id: str = "d") -> Demonstration:
    return Demonstration(provenance=Provenance(id=id), prompt=prompt(), response=Response(text=words))


def test_lines_hold_one_row_each_even_with_odd_separators(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\r\nd\x0be"
    write_records(tmp_path / "rows.jsonl", [demonstration(odd), demonstration("z")])
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 2
    assert [row.response.text for row in read_records(tmp_path, Demonstration)] == [odd, "z"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_records(tmp_path / name, [demonstration()])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, [demonstration()])

    def failing() -> Any:
        yield demonstration("new")
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError):
        write_records(path, failing())
    assert [row.response.text for row in read_records(path, Demonstration)] == ["Four."]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space left"):
        write_records(tmp_path / "rows.jsonl", [demonstration()])
    assert list(tmp_path.iterdir()) == []


def test_text_that_utf8_cannot_hold_is_refused_not_mangled(tmp_path: Path) -> None:
    sampled = Response(text="half \ud83d", token_ids=(7,))
    row = Demonstration(provenance=Provenance(id="odd"), prompt=prompt(), response=sampled)
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(DataError, match="row odd"):
            write_records(tmp_path / name, [row])
    assert list(tmp_path.iterdir()) == []


def test_only_known_endings_are_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.parquet"):
        write_records(tmp_path / "rows.csv", [demonstration()])


def test_a_folder_means_its_rows(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.jsonl", [demonstration()])
    write_records(tmp_path / "heldout.jsonl", [demonstration("held out")])
    assert [row.response.text for row in read_records(tmp_path, Demonstration)] == ["Four."]
    assert [r.response.text for r in read_records(tmp_path / "heldout.jsonl", Demonstration)] == ["held out"]


def test_prompts_are_taken_from_rows_that_have_them_and_nothing_else_is_converted(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.jsonl", [demonstration()])
    assert read_records(tmp_path, Prompt) == [prompt()]
    with pytest.raises(DataError, match=r"holds demonstrations .*expected comparisons.*as: comparisons"):
        read_records(tmp_path, Comparison)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda line: line[: len(line) // 2], r"rows\.jsonl:2: invalid JSON"),
        (lambda line: line.replace(b'"Four."', b'"Fo\xffur."'), r"rows\.jsonl:2: invalid JSON"),
        (
            lambda line: line.replace(b'"Four."', b'" "'),
            r"rows\.jsonl:2: field 'response': an empty response",
        ),
        (lambda line: line.replace(b'"text"', b'"txt"'), r"rows\.jsonl:2: field 'response.text': is missing"),
        (lambda line: line.replace(b'"Four."', b"4"), r"rows\.jsonl:2: field 'response.text': .*string"),
        (
            lambda line: line.replace(b"Four", b"Fo\\u0000ur"),
            r"field 'response': a NUL character at position 2",
        ),
    ],
)
def test_a_damaged_artifact_is_an_error_with_file_line_and_field(
    tmp_path: Path, damage: Any, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, [demonstration(id="a"), demonstration(id="b")])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage(second))
    with pytest.raises(DataError, match=said):
        read_records(path, Demonstration)


def test_a_cut_gzip_artifact_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    write_records(path, [demonstration(str(i), id=str(i)) for i in range(2000)])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="cut off"):
        read_records(path, Demonstration)


def test_other_peoples_files_are_read_strictly_unless_somebody_takes_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "Say hi", "chosen": "hi", "rejected": "go away"}
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "chosen": ""}) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: field 'chosen': an empty response; .*curate"):
        read_records(path, Comparison)
    with Rejects() as rejects:
        assert [row.chosen.text for row in read_records(path, Comparison, rejects=rejects)] == ["hi"]
    assert rejects.rejected == 1


def test_a_byte_order_mark_does_not_hide_that_the_rows_are_ours(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.jsonl", [demonstration()])
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "rows.jsonl").read_bytes())
    assert read_records(marked, Demonstration) == [demonstration()]
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(marked.read_bytes()))
    assert read_records(packed, Demonstration) == [demonstration()]


def test_images_keep_their_place_when_rows_move(tmp_path: Path) -> None:
    turn = Message(role="user", content=(TextPart(text="What is this?"), ImagePart(image="img/cat.png")))
    asked = Prompt(provenance=Provenance(id="p"), messages=(turn,))
    write_records(tmp_path / "rows.jsonl", [asked])
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert isinstance(row, Prompt)
    assert row.messages[0].content[1] == ImagePart(image=str(tmp_path / "img" / "cat.png"))


def test_missing_files_are_named_with_the_nearest(tmp_path: Path) -> None:
    write_records(tmp_path / "pairs.jsonl", [demonstration()])
    with pytest.raises(DataError, match=r"no such file; did you mean .*pairs\.jsonl"):
        read_records(tmp_path / "pair.jsonl")
    with pytest.raises(DataError, match="does not exist either"):
        read_records(tmp_path / "nowhere" / "pair.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither rows\.jsonl nor data files"):
        read_records(tmp_path / "empty")
