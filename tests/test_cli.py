"""The command line: what it prints, its exit codes, and what it leaves alone until it is needed."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flow_fakes
import pytest
import typer
from flow_fakes import RAN, VERBS, cheap_collections  # noqa: F401
from typer.testing import CliRunner, Result

from posttrain.cli import app
from posttrain.common.errors import DataError
from posttrain.flow import api, recipe
from posttrain.flow.verbs import VERBS as REAL

HEAVY = {"torch", "transformers", "datasets", "pyarrow", "scipy", "matplotlib", "peft", "numpy", "pydantic"}
DOCS = Path(__file__).parents[1] / "docs"
RECIPE = """
params: {word: x}
a: {do: make, text: "${word}", n: 3}
b: {do: join, inputs: "@a"}
"""

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in an empty folder, with the fake verbs in place of the real ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(recipe.check_recipe, "__defaults__", ((), VERBS))
    monkeypatch.setattr(recipe.load_recipe, "__defaults__", ((), VERBS))
    fakes = {"train": "join", "report": "join", "curate": "make", "sample": "grind"}
    monkeypatch.setattr(api, "VERBS", {verb: VERBS[fakes[verb]] for verb in fakes})
    (tmp_path / "r.yaml").write_text(RECIPE)
    RAN.clear()
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


def test_run_and_plan(invoke: Invoke, tmp_path: Path) -> None:
    planned = invoke("plan", "r.yaml")
    assert planned.exit_code == 0
    assert re.search(r"a +make +run +[0-9a-f]{12} +new", planned.stdout)
    assert planned.stdout.endswith("2 to run\n")
    first = invoke("run", "r.yaml")
    assert first.exit_code == 0
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["run", "run"]
    assert "[1/2] a: running (make)" in first.stderr
    second = invoke("run", "r.yaml", "--set", "word=y", "--set", "b.weight=2", "--only", "a", "--force", "a")
    assert second.exit_code == 0
    assert RAN == ["a", "b", "a"]
    third = invoke("plan", "r.yaml", "--set", "a.n=4")
    assert re.search(r"a +make +run +[0-9a-f]{12} +n: 3 → 4", third.stdout)
    assert re.search(r"b +join +run +[0-9a-f]{12} +inputs: @a changed", third.stdout)
    assert (tmp_path / "store" / "runs.jsonl").exists()


def test_the_store_may_be_named_by_option_or_environment(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("run", "r.yaml", "--store", tmp_path / "one")
    monkeypatch.setenv("POSTTRAIN_STORE", str(tmp_path / "two"))
    invoke("run", "r.yaml")
    assert RAN == ["a", "b", "a", "b"]
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "none.yaml"], 2, "error: none.yaml: no such file"),
        (["run", "r.yaml", "--set", "a.txt=1"], 2, "error: --set a.txt=1: a: unknown key 'txt'"),
        (["run", "r.yaml", "--set", "b.inputs=none"], 2, "error: r.yaml: b.inputs: 'none': no such file"),
        (["run", "r.yaml", "--only", "c"], 2, "error: r.yaml: no step 'c'"),
        (["run", "r.yaml", "--force", "c"], 2, "error: r.yaml: no step 'c'"),
        (["plan", "r.yaml", "--set", "b.inputs=@c"], 2, "'@c': no step 'c'"),
        (["run", "r.yaml", "--set", "a.fail=true"], 1, "error: step 'a' failed: the data is bad; mend it"),
        (["run"], 2, "Missing argument"),
        (["run", "r.yaml", "--frobnicate"], 2, "No such option"),
        (["frobnicate"], 2, "No such command"),
        (
            ["train", "dpo", "--out", "o", "--set", "weigt=1"],
            2,
            "unknown key 'weigt' (did you mean 'weight'?)",
        ),
        (["curate", "--out", "o", "--set", "fail=true"], 1, "error: the data is bad; mend it"),
        (["curate", "--out", "o", "--config", "none.yaml"], 2, "error: none.yaml: no such file"),
        (["curate", "--out", "r.yaml"], 2, "is a file; --out takes a folder"),
        (["store", "verify", "--store", "nowhere"], 0, ""),
    ],
)
def test_exit_codes_and_messages(invoke: Invoke, words: list[str], code: int, says: str) -> None:
    result = invoke(*words)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_mistakes_are_told_one_a_line(invoke: Invoke) -> None:
    Path("bad.yaml").write_text("a: {do: make, txt: 1}\nb: {do: jion}\n")
    assert invoke("run", "bad.yaml").stderr.splitlines() == [
        "error: bad.yaml:1: a: unknown key 'txt' (did you mean 'text'?)",
        "       bad.yaml:2: b: no verb 'jion' (did you mean 'join'?)",
    ]


def test_an_error_that_no_user_can_mend_shows_its_traceback(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(cfg: object, ctx: object) -> dict[str, object]:
        return {"x": 1 / 0}

    monkeypatch.setattr(flow_fakes, "MAKE", flow_fakes.Step("make", flow_fakes.MakeConfig, broken))
    result = invoke("run", "r.yaml")
    assert result.exit_code == 1
    assert "in broken" in result.stderr
    assert "error: step 'a' failed: ZeroDivisionError: division by zero" in result.stderr


def test_an_error_that_explains_another_shows_no_traceback(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(cfg: object, ctx: object) -> dict[str, object]:
        try:
            return {"x": int("x")}
        except ValueError as e:
            raise DataError("no number; write one") from e

    monkeypatch.setattr(flow_fakes, "MAKE", flow_fakes.Step("make", flow_fakes.MakeConfig, unreadable))
    for words in (["curate", "--out", "o"], ["run", "r.yaml"]):
        result = invoke(*words)
        assert result.exit_code == 1
        assert "no number; write one" in result.stderr
        assert "Traceback" not in result.output


def test_a_verb_alone_builds_the_same_config_and_artifact(invoke: Invoke, tmp_path: Path) -> None:
    Path("one.txt").write_text("1")
    Path("two.txt").write_text("2")
    Path("c.yaml").write_text("weight: 7\nlabel: from the file\n")
    result = invoke("report", "one.txt", "two.txt", "--out", "o", "--config", "c.yaml", "--set", "label=mine")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("o/manifest.json").read_text())
    assert manifest["config"]["inputs"] == ["one.txt", "two.txt"]
    assert (manifest["config"]["weight"], manifest["config"]["label"]) == (7, "mine")
    assert result.stdout.splitlines()[-1] == str(tmp_path / "o")
    assert result.stdout.splitlines()[0].split() == ["inputs", "2"]
    again = invoke("report", "one.txt", "--out", "o")
    assert again.exit_code == 2
    assert "holds another finished run" in again.stderr
    assert invoke("report", "one.txt", "--out", "o", "--force").exit_code == 0


def test_store_commands(invoke: Invoke, tmp_path: Path) -> None:
    invoke("run", "r.yaml")
    listed = invoke("store", "list")
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["do", "make", "join"]
    assert invoke("store", "verify").stdout == "2 artifacts whole, 0 damaged\n"
    folder = next((tmp_path / "store").glob("a-*"))
    (folder / "rows.txt").write_text("yyy")
    damaged = invoke("store", "verify")
    assert (damaged.exit_code, damaged.stdout) == (1, "1 artifacts whole, 1 damaged\n")
    assert f"{folder / 'rows.txt'} is not what was written" in damaged.stderr
    invoke("run", "r.yaml", "--set", "b.weight=3")
    shown = invoke("store", "gc", "--days", "0")
    assert (
        shown.stdout.endswith("1 folders, 1.4 KB; give --yes to delete them\n") or "1 folders" in shown.stdout
    )
    assert len(list((tmp_path / "store").glob("b-*"))) == 2
    assert "deleted 1 folders" in invoke("store", "gc", "--days", "0", "--yes").stdout
    assert len(list((tmp_path / "store").glob("b-*"))) == 1


def commands(group: typer.Typer = app) -> dict[str, typer.core.TyperCommand]:
    """Every command by its full name."""

    def walk(command: object, path: tuple[str, ...]) -> dict[str, object]:
        inner = getattr(command, "commands", None)
        if not inner:
            return {" ".join(path): command}
        found: dict[str, object] = {}
        for name, child in inner.items():
            found |= walk(child, (*path, name))
        return found

    return walk(typer.main.get_command(group), ())


def test_every_command_is_there() -> None:
    names = {name.split()[0] for name in commands()}
    assert names == {"run", "plan", *REAL, "inspect", "chat", "store"}


@pytest.mark.parametrize("name", commands())
def test_every_command_has_an_example_and_is_documented(name: str) -> None:
    command = commands()[name]
    assert command.epilog is not None
    assert command.epilog.startswith(f"Example: posttrain {name} ") or command.epilog.endswith(f" {name}")
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    assert " ".join(command.epilog.split()) in shown, "the example is shown as it is written"
    documents = "\n".join(path.read_text("utf-8") for path in DOCS.glob("*.md"))
    assert f"posttrain {name}" in documents, f"docs/ does not mention `posttrain {name}`"


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from posttrain.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'train' in result.output; print(*sys.modules)"
    )
    best = 1e9  # seconds of processor, which other work on the machine does not lengthen much
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert not {module.partition(".")[0] for module in output.split()} & HEAVY
    assert best < 0.5, f"the best of five took {best:.2f} s"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import posttrain, sys; dir(posttrain); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {module.partition(".")[0] for module in output.split()} & HEAVY


@pytest.mark.parametrize("verb", REAL)
def test_step_configs_are_defined_without_torch(verb: str) -> None:
    code = (
        "import sys; from posttrain.flow.verbs import VERBS, find_verb\n"
        f"step = find_verb({verb!r}, VERBS); assert step.name == {verb!r}; print(*sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {module.partition(".")[0] for module in output.split()} & (HEAVY - {"pydantic"})


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: {do: make}\ng: {do: grind, links: 100000, pause: 0.01}\n")
    code = (  # a shell's background job begins with Ctrl-C ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import posttrain.flow.recipe as r, flow_fakes\n"
        "r.check_recipe.__defaults__ = r.load_recipe.__defaults__ = ((), flow_fakes.VERBS)\n"
        "from posttrain.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "r.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("store/g-*/state/link-2")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "[2/2] g: interrupted" in errors
    assert "stopped; what is finished is kept: give the same command to go on" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("store/a-*/manifest.json"))
    assert not list(tmp_path.glob("store/g-*/manifest.json"))
