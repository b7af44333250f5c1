"""One step into a folder of the user's choice."""

from __future__ import annotations

from pathlib import Path

import flow_fakes
import pytest
from flow_fakes import GRIND, JOIN, MAKE, RAN, GrindConfig, JoinConfig, MakeConfig

from posttrain.common.errors import ConfigError, DataError, StoreError
from posttrain.common.manifest import ancestry, read_manifest
from posttrain.flow.oneoff import Result, run_into


@pytest.fixture(autouse=True)
def _ran() -> None:
    RAN.clear()


def make(out: Path, force: bool = False, said: list[str] | None = None, **fields: object) -> Result:
    say = (said if said is not None else []).append
    return run_into(MAKE, MakeConfig(**fields), out, force=force, say=say)


def test_out_becomes_the_artifact(tmp_path: Path) -> None:
    result = make(tmp_path / "new" / "out", text="x", n=2)
    assert result.out == tmp_path / "new" / "out"
    assert result.summary == {"n": 2}
    assert {p.name for p in result.out.iterdir()} == {"rows.txt", "manifest.json"}
    assert [p.name for p in result.out.parent.iterdir()] == ["out"]
    found = read_manifest(result.out)
    assert (found["step"], found["kind"], found["key"]) == ("out", "make", result.key)


def test_the_same_again_is_done_already(tmp_path: Path) -> None:
    first, said = make(tmp_path / "out", text="x"), []
    second = make(tmp_path / "out", text="x", threads=7, said=said)
    assert second == first
    assert RAN == ["out"]
    assert said == [f"{tmp_path / 'out'} holds this very run, finished; nothing to do"]
    make(tmp_path / "out", text="x", force=True)
    assert RAN == ["out", "out"]


def test_another_finished_run_is_not_overwritten_unless_forced(tmp_path: Path) -> None:
    make(tmp_path / "out", text="x")
    with pytest.raises(ConfigError, match=r"holds another finished run .'make' of .*--force to replace it"):
        make(tmp_path / "out", text="y")
    assert (tmp_path / "out" / "rows.txt").read_text() == "x"
    make(tmp_path / "out", text="y", force=True)
    assert (tmp_path / "out" / "rows.txt").read_text() == "y"
    (tmp_path / "out" / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"also holds files that no run wrote \(notes\.md\)"):
        make(tmp_path / "out", text="z", force=True)
    assert (tmp_path / "out" / "rows.txt").read_text() == "y"


def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(ConfigError, match="is not empty and not of our making"):
            make(tmp_path / "full", force=force)
        with pytest.raises(ConfigError, match="is a file; --out takes a folder"):
            make(tmp_path / "full" / "thesis.tex", force=force)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


def interrupt(out: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flow_fakes.time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            run_into(GRIND, GrindConfig(**fields), out)


def test_an_interrupted_run_goes_on_where_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", []
    interrupt(out, monkeypatch, links=3)
    assert (out / "state" / "link-0").exists()
    with pytest.raises(ConfigError, match="holds an unfinished run of other settings or inputs"):
        run_into(GRIND, GrindConfig(links=4), out)
    with pytest.raises(ConfigError, match="is the output of a step that has not finished"):
        run_into(JOIN, JoinConfig(inputs=str(out)), tmp_path / "other")
    run_into(GRIND, GrindConfig(links=3, pause=0.001), out, say=said.append)
    assert said == [f"resuming in {out}"]
    assert read_manifest(out)["resumed"] == 1
    interrupt(tmp_path / "two", monkeypatch, links=3)
    run_into(GRIND, GrindConfig(links=4), tmp_path / "two", force=True)
    assert read_manifest(tmp_path / "two")["resumed"] == 0


@pytest.mark.parametrize("note", ["", '{"key": "7a', "[]", '{"resumed": 0}', '{"resumed": 0, "key": 3}'])
def test_a_damaged_note_of_an_unfinished_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    out = tmp_path / "out"
    interrupt(out, monkeypatch, links=3)
    (out / "unfinished.json").write_text(note)
    with pytest.raises(ConfigError, match=r"out/unfinished\.json, .* is damaged, .*--force to discard it"):
        run_into(GRIND, GrindConfig(links=3), out)
    assert (out / "state" / "link-0").exists()
    run_into(GRIND, GrindConfig(links=3), out, force=True)
    assert read_manifest(out)["resumed"] == 0


def test_errors_of_the_step_rise_and_a_damaged_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data is bad; mend it"):
        make(tmp_path / "out", fail=True)
    make(tmp_path / "good")
    (tmp_path / "good" / "rows.txt").unlink()
    with pytest.raises(StoreError, match="is missing; delete the folder"):
        make(tmp_path / "good")


def test_inputs_made_before_are_remembered_as_ancestors(tmp_path: Path) -> None:
    make(tmp_path / "one")
    run_into(JOIN, JoinConfig(inputs=str(tmp_path / "one" / "rows.txt")), tmp_path / "two")
    last = run_into(JOIN, JoinConfig(inputs=[str(tmp_path / "two")]), tmp_path / "three")
    assert [folder.name for folder, _ in ancestry([last.out])] == ["one", "two", "three"]
    entry = read_manifest(tmp_path / "two")["inputs"][str(tmp_path / "one" / "rows.txt")]
    assert entry["key"] == read_manifest(tmp_path / "one")["key"]
