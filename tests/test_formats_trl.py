"""Records to TRL's dataset types: `datasets` loads them, and reading them back gives the same content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.common.errors import DataError
from posttrain.formats import Rejects, read_rows, to_trl, write_trl
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
    TextPart,
)


def prompt(*turns: str, system: str = "", **fields: Any) -> Prompt:
    said = [Message(role="assistant" if i % 2 else "user", content=turn) for i, turn in enumerate(turns)]
    opening = [Message(role="system", content=system)] if system else []
    return Prompt(provenance=Provenance(id="p"), messages=(*opening, *said), **fields)


P = Provenance(id="row")
SHORT = prompt("What is 2+2?", reference="4", tags={"level": "easy", "references": '["4", "four"]'})
PLAIN = prompt("Näme a colour\u2028please")
LONG = prompt("Hi", "Hello", "Bye", system="Be kind.", tags={"topic": "greeting"})
SETS: dict[str, list[Row]] = {
    "documents": [Document(provenance=P, text="One.\n\nTwo "), Document(provenance=P, text="Three")],
    "prompts": [SHORT, PLAIN],
    "demonstrations": [
        Demonstration(provenance=P, prompt=SHORT, response=Response(text=" 4.")),
        Demonstration(provenance=P, prompt=PLAIN, response=Response(text="Blue\n")),
    ],
    "comparisons": [
        Comparison(
            provenance=P, prompt=SHORT, chosen=Response(text="4"), rejected=Response(text="5"), strength=1.5
        ),
        Comparison(provenance=P, prompt=PLAIN, chosen=Response(text="Blue"), rejected=Response(text="Table")),
    ],
    "ratings": [
        Rating(provenance=P, prompt=SHORT, response=Response(text="4"), label=True),
        Rating(provenance=P, prompt=PLAIN, response=Response(text="Table"), label=False),
    ],
}
COLUMNS = {
    "documents": {"text"},
    "prompts": {"prompt"},
    "demonstrations": {"prompt", "completion"},
    "comparisons": {"prompt", "chosen", "rejected"},
    "ratings": {"prompt", "completion", "label"},
}


def content(row: Any) -> dict[str, Any]:
    """Everything but provenance, which TRL's types have no place for."""
    plain = row.model_dump(exclude={"provenance": True, "prompt": {"provenance"}, "id": True})
    return plain


@pytest.mark.parametrize("style", ["standard", "conversational"])
@pytest.mark.parametrize("kind", list(SETS))
def test_datasets_loads_what_is_written_and_reading_gives_it_back(
    tmp_path: Path, kind: str, style: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = SETS[kind]
    path = tmp_path / "trl.jsonl"
    assert write_trl(path, rows, style) == 2
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert COLUMNS[kind] <= set(loaded.column_names)
    value = loaded[0]["prompt" if kind != "documents" else "text"]
    assert isinstance(value, list) == (style == "conversational" and kind != "documents")
    loaded.to_parquet(str(tmp_path / "trl.parquet"))
    for file in (path, tmp_path / "trl.parquet"):
        assert [content(row) for row in read_rows(file)] == [content(row) for row in rows]


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    demonstration = Demonstration(provenance=P, prompt=LONG, response=Response(text="Bye."))
    pair = Comparison(provenance=P, prompt=LONG, chosen=Response(text="Bye."), rejected=Response(text="No."))
    for row, type in (
        (demonstration, None),
        (demonstration, "language-modeling"),
        (pair, None),
        (LONG, None),
    ):
        write_trl(tmp_path / "trl.jsonl", [row], "conversational", type)  # type: ignore[arg-type]
        (back,) = read_rows(tmp_path / "trl.jsonl")
        assert content(back) == content(row)


def test_messages_of_a_demonstration() -> None:
    row = to_trl(
        Demonstration(provenance=P, prompt=PLAIN, response=Response(text="Blue")), type="language-modeling"
    )
    assert row == {
        "messages": [
            {"role": "user", "content": "Näme a colour\u2028please"},
            {"role": "assistant", "content": "Blue"},
        ]
    }


def test_images_are_parts_of_a_turn(tmp_path: Path) -> None:
    parts = (TextPart(text="What?"), ImagePart(image="data:image/png;base64,AA=="))
    row = Prompt(provenance=P, messages=(Message(role="user", content=parts),))
    write_trl(tmp_path / "trl.jsonl", [row])
    (back,) = read_rows(tmp_path / "trl.jsonl")
    assert content(back) == content(row)


@pytest.mark.parametrize(
    ("row", "style", "type", "said"),
    [
        (LONG, "standard", None, "standard style holds one user turn of text, this prompt has 4 turns"),
        (SETS["demonstrations"][0], "standard", "language-modeling", "no standard language-modeling form"),
        (
            SETS["comparisons"][0],
            "standard",
            "prompt-only",
            "comparisons are not written as 'prompt-only', prompts are",
        ),
        (
            Rating(provenance=P, prompt=PLAIN, response=Response(text="x")),
            "standard",
            None,
            "without a label",
        ),
        (prompt("p", tags={"prompt": "x"}), "standard", None, "a tag is called 'prompt'"),
        (
            Comparison(
                provenance=P,
                prompt=PLAIN,
                chosen=Response(text="a", token_ids=(1,)),
                rejected=Response(text="b", token_ids=(2,)),
                prompt_token_ids=(3,),
            ),
            "standard",
            None,
            "token-exact",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, row: Row, style: Any, type: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        write_trl(tmp_path / "trl.jsonl", [row], style, type)
    assert list(tmp_path.iterdir()) == []


def test_what_trl_rejects_too_is_not_read_as_something_else(tmp_path: Path) -> None:
    """A row that mixes styles is no conversation and no text."""
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        json.dumps({"prompt": "p", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"})
    )
    with Rejects() as rejects:
        assert list(read_rows(path, rejects=rejects)) == []
    assert rejects.rejected == 1
