"""docs/recipes.md means what it says: every recipe in it is expanded and checked with the real verbs."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import posttrain
from posttrain.cli import app, verbs
from posttrain.common.errors import ConfigError
from posttrain.common.step import Step
from posttrain.flow import api
from posttrain.flow.oneoff import Result
from posttrain.flow.recipe import check_recipe, load_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.verbs import VERBS, find_verb

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "recipes.md").read_text("utf-8")
BLOCK = re.compile(
    r"```(yaml|yaml mistakes|sh|python)\n(.*?)```\n(?:```(text|text steps)\n(.*?)```)?", re.DOTALL
)
BLOCKS = [match.groups() for match in BLOCK.finditer(DOC)]


def blocks(kind: str) -> list[tuple[str, str]]:
    return [(text, after or "") for found, text, _, after in BLOCKS if found == kind]


@pytest.mark.parametrize(("text", "steps"), blocks("yaml"))
def test_a_recipe_of_the_docs_expands_to_the_steps_it_says(text: str, steps: str) -> None:
    recipe = check_recipe(parse_yaml(text, "recipe.yaml"), "recipe.yaml")
    if steps:
        assert [step.name for step in recipe.steps] == steps.split()


@pytest.mark.parametrize(("text", "says"), blocks("yaml mistakes"))
def test_a_mistake_of_the_docs_is_told_as_it_says(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as e:
        check_recipe(parse_yaml(text, "recipe.yaml"), "recipe.yaml")
    assert str(e.value).splitlines() == says.splitlines()


def test_the_overrides_of_the_docs_hold() -> None:
    (text, _), *_ = [found for found in blocks("yaml") if "repeat:" in found[0]]
    varied = next(found for found, _ in blocks("yaml") if "base:" in found)
    parameters = next(found for found, _ in blocks("yaml") if "data_dir" in found)
    told = re.findall(r"--set ([\w.]+=\S+?)[`\s]", DOC)
    for override in told:
        if override.startswith("rounds."):
            fits = text
        elif override.startswith(("data_dir", "rows")):
            fits = parameters
        elif override.startswith(("dpo.", "score.")):
            fits = varied.replace("score:", "other: {do: curate, source: x}\nscore:")
        else:
            continue
        check_recipe(parse_yaml(fits, "r.yaml"), "r.yaml", [override])
    assert {"rounds.2.policy.epochs=2", "rounds.repeat=5", "dpo.low.method.beta=0.02"} <= set(told)
    assert {"score.tasks.0.data=@other", "data_dir=/mnt/data", "rows=50"} <= set(told)


def test_every_verb_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE)) == set(VERBS)
    for room in re.findall(r"`(\w+/\w+\.py)` \|", DOC):
        assert (ROOT / "src" / "posttrain" / room).is_file()


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What a command or call would run, its config parsed, and nothing run."""
    seen: list[tuple[str, object]] = []

    def note(step: Step, config: object, out: Path | str, **options: object) -> Result:
        seen.append((step.name, config))
        return Result(Path(out), {}, "0" * 64)

    monkeypatch.setattr(api, "run_into", note)
    return seen


def test_the_commands_of_the_docs_and_of_the_help_build_real_configs(
    ordered: list[tuple[str, object]],
) -> None:
    (script, _), *_ = blocks("sh")
    lines = script.splitlines() + list(verbs.EXAMPLES.values())
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert {name for name, _ in ordered} == set(VERBS)
    assert len(ordered) == len(lines)


def test_the_python_of_the_docs_builds_real_configs(
    ordered: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (script, _), *_ = blocks("python")
    verbs_part, _, recipe_part = script.partition("done = ")
    exec(verbs_part, {})
    assert [name for name, _ in ordered] == ["curate", "train", "train", "evaluate", "report"]
    call = ast.parse("done = " + recipe_part).body[0].value  # type: ignore[attr-defined]
    wanted = {keyword.arg for keyword in call.keywords}
    assert wanted <= set(inspect.signature(posttrain.run_recipe).parameters)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_that_is_shipped_holds(path: Path) -> None:
    assert load_recipe(path).steps


def test_an_unknown_verb_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        find_verb("trian", VERBS)
    with pytest.raises(ConfigError, match="no verb '3'"):
        find_verb(3, VERBS)
