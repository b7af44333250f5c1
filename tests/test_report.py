"""The page: what it says, that it stands alone, and that nothing in it can act."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_artifacts import MODELS, NASTY, write_artifact, write_evaluation, write_lines, write_run

from posttrain.common.errors import DataError
from posttrain.common.files import write_json
from posttrain.common.step import StepContext
from posttrain.report.page import STEP, ReportConfig, build


class Page(HTMLParser):
    """Every tag with its attributes, and the text a reader sees."""

    VOID = frozenset({"meta", "br", "wbr", "img", "input", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    path = build([write_run(folder / "store")], folder / "out", "A <b>bold</b> title")
    text = path.read_text("utf-8")
    return text, Page(text), json.loads((folder / "out" / "tables.json").read_text("utf-8"))


def test_every_tag_is_closed(built: tuple[str, Page, dict[str, Any]]):
    assert built[1].open == []


def test_it_loads_nothing_and_runs_nothing(built: tuple[str, Page, dict[str, Any]]):
    text, page, _ = built
    assert {"script", "link", "iframe", "object", "embed", "img", "form"}.isdisjoint(t for t, _ in page.tags)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_it_says_what_was_measured(built: tuple[str, Page, dict[str, Any]]):
    _, page, tables = built
    assert "A <b>bold</b> title" in page.text
    for model in MODELS:
        assert model in page.text
    assert (
        "Measured base, sft, reward and dpo on 4 tasks; 9 steps, 4 min 22 s of work in all." in tables["lead"]
    )
    assert "not applicable" in page.text
    assert "30 of 120 not scored" in page.text
    assert "better than base" in page.text


def test_tables_for_machines_hold_the_same_numbers(built: tuple[str, Page, dict[str, Any]]):
    _, page, tables = built
    (evaluation,) = tables["evaluations"]
    cells = {row["model"]: row["cells"] for row in evaluation["stages"]["rows"]}
    sft = cells["sft"][0]
    assert sft["n"] == 120
    assert sft["low"] < sft["mean"] < sft["high"]
    assert sft["change"]["verdict"] == "better"
    assert f"[{100 * sft['low']:.1f}, {100 * sft['high']:.1f}]" in page.text
    assert cells["reward"][0] == {"state": "not applicable"}
    assert cells["base"][0]["missing"] == 30
    assert tables["costs"]["total"]["seconds"] == pytest.approx(262.4)
    demos = next(row for row in tables["data"] if row["step"] == "demos")
    assert (demos["rows"], demos["rejected"]) == (1200, 7)
    assert demos["reasons"] == {"field 'response': an empty response": 7}
    assert demos["licences"] == {"Apache-2.0": 1200}
    sft_step = next(step for step in tables["provenance"]["steps"] if step["name"] == "sft")
    assert sft_step["inputs"] == ["base", "demos"]


def test_curves_follow_the_page_and_not_their_own_colours(built: tuple[str, Page, dict[str, Any]]):
    text, page, tables = built
    assert [run["name"] for run in tables["curves"]] == ["base", "sft", "reward", "dpo"]
    dpo = tables["curves"][3]
    assert [figure["metric"] for figure in dpo["figures"]][:2] == ["loss", "accuracy"]
    assert set(dpo["figures"][0]["ends"]) == {"train", "heldout"}
    assert "var(--series-1)" in text
    assert "#070809" not in text
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def nasty_run(store: Path) -> Path:
    """An evaluation in which names, groups, notes and answers all try to break out of the page."""
    folder = write_artifact(store / "score-0123456789ab", "evaluate", {}, 1.0, {}, {})
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"config": {"note": NASTY}, "step": NASTY}))
    write_evaluation(folder)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line |= {"prompt": NASTY, "response": NASTY + "x" * 50_000, "note": NASTY, "group": NASTY}
    write_lines(folder / "results.jsonl", lines)
    summary = (folder / "summary.json").read_text("utf-8")
    rude = json.dumps("sft" + NASTY)[1:-1]
    (folder / "summary.json").write_text(summary.replace('"sft"', f'"{rude}"'), "utf-8")
    write_lines(folder / "rows.jsonl", [{"kind": NASTY, "provenance": {"licence": NASTY}}])
    write_lines(folder / "rejected.jsonl", [{"reason": NASTY}])
    return folder


def test_untrusted_text_is_shown_and_cannot_act(tmp_path: Path):
    folder = nasty_run(tmp_path / "store")
    text = build([folder], tmp_path / "out").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "{{ 7*7 }} ${x}" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert "⟦RLO⟧evil⟦PDF⟧" in page.text
    assert "␀␛[31mred␇" in page.text
    assert "⟦U+D83D⟧" in page.text
    assert "more characters" in page.text
    assert text.count("x" * 3000) == 0
    assert (tmp_path / "out" / "tables.json").stat().st_size > 0


def test_a_long_word_has_room_to_break():
    css = (Path(build.__code__.co_filename).parent / "page.css").read_text("utf-8")
    for selector in (".said", ".prompt", "th, td", "pre"):
        rule = css[css.index(f"\n{selector} {{") :].split("}")[0]
        assert "overflow-wrap: anywhere" in rule or "overflow-wrap: break-word" in rule, selector


def test_folders_without_manifests_still_make_a_page(tmp_path: Path):
    write_evaluation(tmp_path / "bare")
    write_lines(tmp_path / "run" / "metrics.jsonl", [{"step": i, "loss": 1 / i} for i in range(1, 5)])
    text = build([tmp_path / "bare", tmp_path / "run"], tmp_path / "out").read_text("utf-8")
    assert "Stage by stage" in text
    assert "Training curves" in text


def test_an_input_may_be_a_file_inside_an_artifact(tmp_path: Path):
    folder = write_run(tmp_path / "store")
    build([folder / "summary.json"], tmp_path / "out")
    tables = json.loads((tmp_path / "out" / "tables.json").read_text("utf-8"))
    assert [step["name"] for step in tables["provenance"]["steps"]][-1] == "score"


def test_steps_come_before_what_is_made_of_them(tmp_path: Path):
    build([write_run(tmp_path / "store")], tmp_path / "out")
    steps = json.loads((tmp_path / "out" / "tables.json").read_text("utf-8"))["provenance"]["steps"]
    order = [step["name"] for step in steps]
    for step in steps:
        assert all(order.index(made) < order.index(step["name"]) for made in step["inputs"])
    assert len(order) == len(set(order)) == 9


@pytest.mark.parametrize("missing", ["", "summary.json"])
def test_what_is_missing_is_named(tmp_path: Path, missing: str):
    folder = tmp_path / "score"
    if missing:
        write_artifact(folder, "evaluate", {}, 1.0, {}, {})
    with pytest.raises(DataError, match=missing or "no such file or folder"):
        build([folder], tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_broken_line_is_named(tmp_path: Path):
    write_evaluation(tmp_path / "score")
    results = tmp_path / "score" / "results.jsonl"
    results.write_text(results.read_text("utf-8") + '{"cut', "utf-8")
    with pytest.raises(DataError, match=r"results\.jsonl:\d+: not JSON"):
        build([tmp_path / "score"], tmp_path / "out")


def test_values_that_are_not_finite_are_counted(tmp_path: Path):
    lines = "".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(("2.0", "NaN", "null", "1.5"), 1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines, "utf-8")
    text = build([tmp_path / "run"], tmp_path / "out").read_text("utf-8")
    assert "2 steps not finite" in text
    (run,) = json.loads((tmp_path / "out" / "tables.json").read_text("utf-8"))["curves"]
    assert run["figures"][0]["ends"] == {"train": [2.0, 1.5]}


def test_the_step_writes_its_files_and_tells_the_manifest(tmp_path: Path):
    folder = write_run(tmp_path / "store")
    cfg = ReportConfig(inputs=(str(folder),))
    summary = STEP.run(cfg, StepContext(tmp_path / "a", tmp_path / "state", "page"))
    STEP.run(cfg, StepContext(tmp_path / "b", tmp_path / "state", "page"))
    assert summary["steps"] == 9
    assert summary["verdicts"][0]["after"] == "sft"
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"report.html", "tables.json"}
    for name in ("report.html", "tables.json"):  # no clock, no chance
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    json.dumps(summary, allow_nan=False)


def test_a_resumed_step_says_its_time_is_not_all(tmp_path: Path):
    folder = write_artifact(tmp_path / "sft-0123456789ab", "train", {}, 3.0, {}, {})
    manifest = json.loads((folder / "manifest.json").read_text("utf-8")) | {"resumed": 2}
    write_json(folder / "manifest.json", manifest)
    assert "resumed 2 times" in build([folder], tmp_path / "out").read_text("utf-8")
