"""The step `decontaminate`: what it finds, with what evidence, and what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.formats import read_records, write_records
from posttrain.prompts.decontaminate import STEP, DecontaminateConfig
from posttrain.prompts.ngrams import placed, words_of
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Provenance,
    Rating,
    Response,
    Row,
    Samples,
)

DATA = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data here: set POSTTRAIN_DATA")

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
CLEAN = "A baker makes seven loaves before noon; how many does she make in a week of six working days?"


def words(first: int, last: int) -> str:
    """ "w1 w2 …": words by number, so that overlaps can be counted by hand."""
    return " ".join(f"w{i}" for i in range(first, last + 1))


def ask(text: str, id: str = "p", **tags: str) -> Prompt:
    return Prompt(provenance=Provenance(id=id), messages=(Message(role="user", content=text),), tags=tags)


def demo(text: str, answer: str = "yes", id: str = "d") -> Demonstration:
    return Demonstration(provenance=Provenance(id=id), prompt=ask(text, id), response=Response(text=answer))


def put(path: Path, rows: Sequence[Row]) -> str:
    write_records(path, rows)
    return str(path)


def screen(
    out: Path, data: Any, against: Any, cache: Path | None = None, **spec: Any
) -> tuple[dict[str, Any], list[Row], list[dict[str, Any]]]:
    """Summary, rows that go on, and the lines of overlaps.jsonl."""
    cfg = parse(DecontaminateConfig, {"data": data, "against": against, **spec}, "decontaminate")
    summary = STEP.run(cfg, StepContext(out, out / "state", "test", cache))
    json.dumps(summary, allow_nan=False)
    lines = (out / "overlaps.jsonl").read_text("utf-8").splitlines()
    return summary, read_records(out), [json.loads(line) for line in lines]


def verdict(tmp_path: Path, row: Row | str, item: Row | str, **spec: Any) -> dict[str, Any] | None:
    """What one row has in common with one item; a text is a prompt."""
    rows = [ask(one) if isinstance(one, str) else one for one in (row, item)]
    data, against = (put(tmp_path / f"{n}.jsonl", [one]) for n, one in zip("ab", rows, strict=True))
    _, _, found = screen(tmp_path / "out", data, against, action="mark", **spec)
    return found[0]["overlaps"][0] if found else None


def test_a_run_of_thirteen_words_and_its_evidence(tmp_path: Path) -> None:
    row = demo("Solve this! " + QUESTION.upper().replace(",", " ,") + " Think first.", id="bad")
    data = put(tmp_path / "rows.jsonl", [row, demo(CLEAN, id="good")])
    against = put(tmp_path / "test.jsonl", [ask("Something else altogether.", "no"), ask(QUESTION, "yes")])
    summary, rows, found = screen(tmp_path / "out", data, against)
    assert [row.provenance.id for row in rows] == ["good"]
    assert (summary["rows"], summary["dropped"], summary["contaminated"]) == (1, 1, 1)
    assert summary["sets"]["test"]["rows"] == {"contaminated": 1, "partial": 0}
    assert summary["sets"]["test"]["items_in_rows_share"] == 0.5
    [told] = found[0]["overlaps"]
    assert (told["by"], told["item"], told["set"], told["where"]) == (
        "13-gram",
        "yes",
        "test",
        "prompt, turn 1 (user)",
    )
    assert told["span"] == QUESTION.upper().replace(",", " ,").rstrip("?")
    assert (told["before"], told["after"]) == ("Solve this! ", "? Think first.")
    assert told["item_text"] == QUESTION.rstrip("?")
    assert told["words"] == len(QUESTION.split())
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert rejected["id"] == "bad"
    assert rejected["overlaps"] == found[0]["overlaps"]
    assert rejected["reason"].startswith("contaminated by test: 13-gram")
    assert rejected["file"].endswith("rows.jsonl")
    assert rejected["line"] == 1


@pytest.mark.parametrize(
    ("shared", "length", "found"),
    [
        (13, 40, "13-gram"),  # w1 … w13 in common
        (12, 40, None),  # 6 of 34 7-grams: 0.176 is above partial, below contaminated
        (11, 40, None),  # 5 of 34 = 0.147: nothing to tell
    ],
)
def test_the_thirteenth_word_decides(tmp_path: Path, shared: int, length: int, found: str | None) -> None:
    told = verdict(tmp_path, f"{words(1, shared)} {words(500, 600)}", words(1, length))
    if found:
        assert told is not None
        assert (told["by"], told["verdict"], told["words"]) == (found, "contaminated", shared)
    elif shared == 12:
        assert told is not None
        assert told["verdict"] == "partial"
        assert told["ratio"] == pytest.approx(6 / 34, abs=1e-4)
    else:
        assert told is None


def test_the_thresholds_of_the_ratio_are_met_exactly(tmp_path: Path) -> None:
    """8 shared words are 2 7-grams; the item has 11 words, so 5; the row has more: 2 / min(.., 5) = 0.4."""
    row, item = f"{words(1, 8)} {words(500, 600)}", words(1, 11)
    at = verdict(tmp_path, row, item, contaminated=0.4, partial=0.1)
    assert at is not None
    assert (at["verdict"], at["by"], at["ratio"]) == ("contaminated", "7-gram ratio", 0.4)
    below = verdict(tmp_path, row, item, contaminated=0.41, partial=0.39)
    assert below is not None
    assert below["verdict"] == "partial"
    assert verdict(tmp_path, row, item, contaminated=0.41, partial=0.4) is None, "above partial, not at it"


def test_the_smaller_side_divides(tmp_path: Path) -> None:
    """A short row inside a long item: the row has 2 7-grams, both in the item."""
    told = verdict(tmp_path, words(3, 10), words(1, 200))
    assert told is not None
    assert told["ratio"] == 1.0
    repeated = verdict(tmp_path, " ".join([words(1, 8)] * 20) + " " + words(900, 990), words(1, 40))
    assert repeated is None or repeated["ratio"] < 0.15, "a 7-gram said twenty times counts once"


def test_texts_are_not_read_across_their_ends(tmp_path: Path) -> None:
    """A 13-gram, or a 7-gram, half in the prompt and half in the response, is none."""
    assert verdict(tmp_path, demo(words(1, 6), words(7, 12)), words(1, 12)) is None


def test_common_ngrams_are_no_evidence(tmp_path: Path) -> None:
    choices = "a i only b ii only c iii only d ii and iii"
    row, item = f"{choices} {words(1, 60)}", f"{choices} {words(100, 160)}"
    told = verdict(tmp_path, row, item)
    assert told is not None
    assert told["span"] == choices
    phrases = tmp_path / "common.txt"
    phrases.write_text(f"\n{choices}.\n")
    assert verdict(tmp_path, row, item, common={"phrases": str(phrases)}) is None
    for more, is_common in ((3, True), (2, False)):
        corpus = put(tmp_path / "corpus.jsonl", [demo(CLEAN, f"{choices} {i}") for i in range(more)])
        common = {"corpus": corpus, "documents": 2}
        assert (verdict(tmp_path, row, item, common=common) is None) == is_common
    phrases.write_text("too short\n")
    with pytest.raises(DataError, match=r"common\.txt:1: a common phrase of 2 words"):
        verdict(tmp_path, row, item, common={"phrases": str(phrases)})


def test_a_common_run_inside_a_longer_one_does_not_hide_it(tmp_path: Path) -> None:
    choices = "a i only b ii only c iii only d ii and iii"
    phrases = tmp_path / "common.txt"
    phrases.write_text(choices)
    told = verdict(
        tmp_path,
        f"which holds {choices} {words(1, 60)}",
        f"which holds {choices} {words(100, 160)}",
        common={"phrases": str(phrases)},
    )
    assert told is not None
    assert told["span"] == f"which holds {choices}"


def test_the_form_of_a_benchmark_is_common_to_its_items(tmp_path: Path) -> None:
    form = "Answer the question below with one of the four letters and nothing else at all."
    items = put(tmp_path / "test.jsonl", [ask(f"{form} {words(i, i + 60)}", str(i)) for i in (100, 200, 300)])
    data = put(tmp_path / "rows.jsonl", [ask(f"{form} {words(900, 990)}"), ask(words(205, 225)), ask(CLEAN)])
    summary, rows, _ = screen(tmp_path / "out", data, items)
    assert summary["contaminated"] == 2
    assert summary["sets"]["test"]["items_in_rows"] == 3
    summary, rows, found = screen(tmp_path / "out", data, items, common={"items": 2})
    assert len(rows) == 2
    assert found[0]["overlaps"][0]["item"] == "200"


@pytest.mark.parametrize(
    ("row", "item"),
    [
        ("CAFÉ au lait", "cafe\u0301 au lait"),
        ("die Straße ist lang", "DIE STRASSE IST LANG"),
        ("don't do that now", "don’t, do that … now"),
        ("so\u00adft hy\u200bphens here", "soft hyphens here"),
        ("ﬁne ｆｕｌｌ width", "fine full width"),
        ("हिन्दी में लिखो", "हिन्दी में  लिखो।"),
    ],
)
def test_unicode_is_compared_by_what_it_says(tmp_path: Path, row: str, item: str) -> None:
    told = verdict(tmp_path, row, item)
    assert told is not None
    assert told["by"] == "whole turn"


def test_scripts_without_spaces(tmp_path: Path) -> None:
    told = verdict(
        tmp_path,
        "質問:東京から大阪まで新幹線で何時間かかりますか。教えて。",
        "東京から大阪まで新幹線で何時間かかりますか",
    )
    assert told is not None
    assert (told["by"], told["span"]) == ("13-gram", "東京から大阪まで新幹線で何時間かかりますか")


@pytest.mark.parametrize(
    ("row", "item", "same"),
    [
        ("What is 2 + 3?", "what is 2+3", True),
        ("What is 2 + 3?", "What is 2 - 3?", False),
        ("What is 25?", "What is 2.5?", False),
        ("What is 2 + 3? Think.", "What is 2 + 3?", False),
    ],
)
def test_short_items_are_looked_for_as_whole_turns(tmp_path: Path, row: str, item: str, same: bool) -> None:
    assert (verdict(tmp_path, row, item) is not None) == same


def test_every_text_of_every_kind_of_row(tmp_path: Path) -> None:
    at, clean = Provenance(id="r"), Response(text="no idea at all")
    bad, asked = Response(text=QUESTION), ask(CLEAN)
    turns = tuple(
        Message(role=role, content=text)
        for role, text in (
            ("system", "Be kind."),
            ("user", CLEAN),
            ("assistant", QUESTION),
            ("user", "Go on"),
        )
    )
    rows: dict[str, Row] = {
        "text": Document(provenance=at, text=f"Once upon a time. {QUESTION} The end."),
        "prompt, turn 3 (assistant)": Prompt(provenance=at, messages=turns),
        "response": Demonstration(provenance=at, prompt=asked, response=bad),
        "rejected": Comparison(provenance=at, prompt=asked, chosen=clean, rejected=bad),
        "response 2": Samples(provenance=at, prompt=asked, responses=(clean, bad)),
        "prompt, turn 1 (user)": Rating(provenance=at, prompt=ask(QUESTION), response=clean, label=True),
    }
    for where, row in rows.items():
        told = verdict(tmp_path, row, QUESTION)
        assert told is not None
        assert told["where"] == where
        for compare in ("prompt", "response"):
            found = verdict(tmp_path, row, QUESTION, compare=compare)
            assert (found is not None) == (
                where == "text" or where.startswith("prompt") == (compare == "prompt")
            )


def test_what_of_an_item_is_its_question(tmp_path: Path) -> None:
    """User turns, MT-Bench's next ones too; not what all items share (a system prompt, earlier answers)."""
    runs = [words(i, i + 30) for i in (1, 100, 200, 300)]
    turns = tuple(
        Message(role=role, content=text)
        for role, text in zip(("system", "user", "assistant", "user"), runs, strict=True)
    )
    later = json.dumps([words(400, 430)])
    item = Prompt(provenance=Provenance(id="i"), messages=turns, tags={"next_turns": later})
    for first, found in ((1, False), (100, True), (200, False), (300, True), (400, True)):
        assert (verdict(tmp_path, words(first, first + 20), item) is not None) == found


def test_several_sets_and_their_names(tmp_path: Path) -> None:
    data = put(tmp_path / "rows.jsonl", [ask(f"{words(1, 20)} {words(101, 120)}", "both"), ask(CLEAN, "no")])
    paths = [
        put(tmp_path / "one.jsonl", [ask(words(1, 30))]),
        put(tmp_path / "two.jsonl", [ask(words(101, 130))]),
    ]
    summary, _, found = screen(tmp_path / "out", data, paths)
    assert [told["set"] for told in found[0]["overlaps"]] == ["one", "two"]
    assert {name: told["contaminated_share"] for name, told in summary["sets"].items()} == {
        "one": 0.5,
        "two": 0.5,
    }
    named = {"first": paths[0], "second": {"name": "files", "path": paths[1]}}
    assert list(screen(tmp_path / "out", data, named)[0]["sets"]) == ["first", "second"]
    twice = parse(DecontaminateConfig, {"data": data, "against": ["@a/rows.jsonl", paths[0], paths[0]]}, "x")
    assert list(twice.against) == ["a/rows.jsonl", "one", "one~2"]


def test_marked_rows_go_on_and_say_so(tmp_path: Path) -> None:
    data = put(tmp_path / "rows.jsonl", [ask(QUESTION, "bad"), ask(CLEAN, "good")])
    against = put(tmp_path / "test.jsonl", [ask(QUESTION, "item")])
    summary, rows, found = screen(tmp_path / "out", data, against, action="mark")
    assert [row.provenance.id for row in rows] == ["bad", "good"]
    assert (
        rows[0].provenance.makers["decontaminate"].startswith("contaminated: 13-gram, 31 words of test item")
    )
    assert rows[1].provenance.makers == {}
    assert (summary["dropped"], summary["contaminated"], found[0]["dropped"]) == (0, 1, False)


def test_too_much_contamination_stops_the_step(tmp_path: Path) -> None:
    data = put(tmp_path / "rows.jsonl", [ask(QUESTION, "bad"), ask(CLEAN, "good")])
    against = put(tmp_path / "test.jsonl", [ask(QUESTION, "item")])
    with pytest.raises(
        DataError, match=r"1 of 2 rows \(50.0%\) are contaminated.*First: .*rows\.jsonl:1: 13-gram"
    ):
        screen(tmp_path / "out", data, against, max_contaminated=0.4)
    with pytest.raises(DataError, match="all 1 rows are contaminated"):
        screen(tmp_path / "out", put(tmp_path / "all.jsonl", [ask(QUESTION)]), against)


def test_nothing_to_compare_is_told(tmp_path: Path) -> None:
    data = put(tmp_path / "rows.jsonl", [ask("…!", "empty"), ask(CLEAN)])
    with pytest.raises(DataError, match=r"against\.test: 1 items, none of them with a word"):
        screen(tmp_path / "out", data, put(tmp_path / "test.jsonl", [ask("?!")]))
    against = put(tmp_path / "test.jsonl", [ask("?!"), ask(QUESTION)])
    summary, rows, _ = screen(tmp_path / "out", data, against)
    assert len(rows) == 2
    assert (summary["sets"]["test"]["empty"], summary["sets"]["test"]["items"]) == (1, 2)
    assert summary["wordless"] == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"n_ratio": 13}, "'n_ratio' .13. must be below 'n'"),
        ({"partial": 0.5}, "'partial' .0.5. must be below 'contaminated'"),
        ({"common": {"documents": 3}}, "'documents' counts rows of a 'corpus'"),
        ({"against": []}, "'against' is empty"),
        ({"against": {"a": {"name": "nowhere"}}}, "nowhere"),
        ({"threshold": 1}, "unknown key 'threshold'"),
    ],
)
def test_settings_that_make_no_sense(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(DecontaminateConfig, {"data": "a", "against": "b", **spec}, "decontaminate")


def test_unreadable_rows_and_items_are_accounted_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "What now, then?", "answer": "x"}\n{"question": "", "answer": "x"}\n')
    data = put(tmp_path / "rows.jsonl", [ask(CLEAN)])
    with pytest.raises(DataError, match="1 of 2 rows"):
        screen(tmp_path / "out", data, str(bad))
    summary, _, _ = screen(tmp_path / "out", data, str(bad), max_rejected=0.5)
    assert summary["unreadable_items"] == 1
    assert len((tmp_path / "out" / "rejected_items.jsonl").read_text().splitlines()) == 1
    summary, rows, _ = screen(tmp_path / "out", str(bad), data, max_rejected=0.5)
    assert (summary["rejected"]["rows"], len(rows)) == (1, 1)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(Path(data).read_text() + '{"kind": "prompt"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: "):
        screen(tmp_path / "out", str(broken), data)


@given(
    st.text(st.sampled_from("aB1 '’“–-_.é東ﬁ½²\u200b\u0301\u0e44Σσςİ"), max_size=30) | st.text(max_size=30)
)
def test_words_of_any_text_are_found_where_they_stand(text: str) -> None:
    """What is quick for ASCII and typographic signs gives the same words as the expression for any text."""
    shown = placed(text)
    spoken = [words_of(shown.text[start:end]) for start, end in shown.spans]
    assert words_of(text) == tuple(word for some in spoken for word in some)
    assert all(len(some) == 1 for some in spoken)


def test_turns_that_are_no_list_are_told(tmp_path: Path) -> None:
    data, odd = put(tmp_path / "rows.jsonl", [ask(CLEAN)]), ask(QUESTION, next_turns="{not json")
    with pytest.raises(DataError, match="'next_turns': expected a JSON list of texts"):
        screen(tmp_path / "out", data, put(tmp_path / "test.jsonl", [odd]))
