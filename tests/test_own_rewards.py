"""Rewards of the user's own: a function or a class in a file of the current folder, by all three ways in."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import posttrain
from posttrain.cli import app
from posttrain.common.errors import ConfigError, DataError
from posttrain.feedback.judge import Verdict
from posttrain.feedback.judge_use import read_judge
from posttrain.flow import api
from posttrain.flow.oneoff import Result
from posttrain.flow.plan import make_plan
from posttrain.flow.recipe import load_recipe
from posttrain.flow.store import Store
from posttrain.records import Message, Prompt, Provenance, Response

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text("utf-8") for name in ("judges", "rlhf")}
PROMPT = Prompt(
    messages=(Message(role="user", content="What is 2 + 2?"),), reference="4", provenance=Provenance(id="p7")
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no trace of it in the interpreter afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def rewards(text: str, name: str = "my_rewards") -> None:
    """Write a file as a new process would find it."""
    Path(f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop(name, None)


def answer(text: str, finish: str = "stop") -> tuple[Prompt, Response]:
    return PROMPT, Response(text=text, finish=finish)


def test_a_function_is_a_judge() -> None:
    rewards(
        "from posttrain.feedback.judge import Verdict\n"
        "def length(prompt, response, unit=1): return len(response.text) / unit\n"
        "def right(prompt, response): return prompt.reference in response.text\n"
        "def silent(prompt, response): return None\n"
        "def whole(prompt, response): return Verdict(0.5, 'why', {'a': 1.0})\n"
    )
    items = [answer("four"), answer("4"), answer("4 4 4", "length")]
    judge = read_judge("my_rewards:length")
    assert (judge.name, judge.label) == ("function", "my_rewards:length")
    cut_off = Verdict(None, "cut off")
    assert judge.open().score(items) == [Verdict(4.0), Verdict(1.0), cut_off]
    halved = read_judge({"name": "my_rewards:length", "arguments": {"unit": 2}})
    assert [verdict.score for verdict in halved.open().score(items)] == [2.0, 0.5, None]
    assert [v.score for v in read_judge("my_rewards:right").open().score(items)] == [0.0, 1.0, None]
    assert read_judge("my_rewards:silent").open().score(items[:1])[0].score is None
    assert read_judge("my_rewards:whole").open().score(items[:1]) == [Verdict(0.5, "why", {"a": 1.0})]
    function = importlib.import_module("my_rewards").length
    assert read_judge(function) == judge
    assert read_judge(judge.model_dump()) == judge, "a manifest's config is read back"


@pytest.mark.parametrize(
    ("body", "value", "says"),
    [
        ("", "my_rewards:x", "has no 'x'"),
        ("def shorter(p, r): pass", "my_rewards:short", "did you mean 'shorter'?"),
        ("def x(p): pass", "my_rewards:x", "is no judge of (prompt, response): too many positional"),
        (
            "def x(p, r): pass",
            {"name": "my_rewards:x", "arguments": {"k": 1}},
            "unexpected keyword argument 'k'",
        ),
        ("x = 3", "my_rewards:x", "'my_rewards:x' is no judge"),
        ("import no_such_package", "my_rewards:x", "cannot be imported: 'no_such_package' is not installed"),
        ("y = 1\nx = 1 / 0", "my_rewards:x", "my_rewards.py, line 2"),
        ("def x(:", "my_rewards:x", "SyntaxError"),
        ("", "my_rewards.py:x", "write 'my_rewards:…'"),
        ("", "elsewhere:x", "no module 'elsewhere' in the current folder ("),
    ],
)
def test_what_is_wrong_with_a_file_is_told(body: str, value: object, says: str) -> None:
    rewards(body)
    with pytest.raises(ValueError, match=re.escape(says)):
        read_judge(value)


def test_what_a_function_may_not_give() -> None:
    rewards("def words(p, r): return 'many'\ndef broken(p, r): return 1 / 0\n")
    with pytest.raises(DataError, match=r"gave 'many' \(str\) for the prompt 'p7'"):
        read_judge("my_rewards:words").open().score([answer("4")])
    with pytest.raises(ZeroDivisionError) as e:
        read_judge("my_rewards:broken").open().score([answer("4")])
    assert e.value.__notes__ == ["in the judge 'my_rewards:broken', asked about the prompt 'p7'"]


RECIPE = "labels: {{do: judge, data: rows.jsonl, judge: {}, to: ratings}}\n"
CLASS = """from posttrain.common.config import Config
from helpers import f
class X(Config):
    def open(self): {}
"""


def key(judge: str) -> str:
    """Of a step that uses the judge."""
    Path("r.yaml").write_text(RECIPE.format(judge))
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (planned,) = make_plan(load_recipe("r.yaml"), Store("store"))
    return planned.key


def test_an_edited_reward_is_another_step() -> None:
    rewards("def f(p, r): return 1\n")
    first = key("my_rewards:f")
    assert key("my_rewards:f") == first
    done = posttrain.run_recipe("r.yaml")
    manifest = json.loads((done["labels"].folder / "manifest.json").read_text())
    assert manifest["inputs"]["my_rewards:f"]["kind"] == "code"
    rewards("def f(p, r): return 2\n")
    assert key("my_rewards:f") != first
    (planned,) = make_plan(load_recipe("r.yaml"), Store("store"))
    assert planned.why == ("judge.settings.call: the content of my_rewards:f changed",)
    rewards("def f(p, r): return 1\n")
    assert key("my_rewards:f") == first


def test_a_class_counts_by_its_source_and_that_of_what_it_uses_or_by_its_version() -> None:
    rewards("def f(): return 1\n", "helpers")
    rewards(CLASS.format("return f"))
    first = key("my_rewards:X")
    rewards("def f(): return 2\n", "helpers")
    rewards(CLASS.format("return f"))
    second = key("my_rewards:X")
    assert second != first
    versioned = "from typing import ClassVar\n" + CLASS + "    version: ClassVar[int] = {}\n"
    rewards(versioned.format("return f", 1))
    third = key("my_rewards:X")
    rewards(versioned.format("return f()", 1))
    assert key("my_rewards:X") == third
    rewards(versioned.format("return f()", 2))
    assert key("my_rewards:X") != third


def test_what_a_reward_imports_counts_be_it_a_number_or_late_or_in_a_package() -> None:
    Path("mine").mkdir()
    rewards("LIMIT = 3\n", "limits")
    for name in ("__init__", "late"):
        Path(f"mine/{name}.py").write_text("")
    Path("mine/deep.py").write_text("FACTOR = 1\n")
    body = "from limits import LIMIT\n\ndef f(p, r):\n    from mine import late\n    return LIMIT\n"
    rewards(body)
    keys = [key("my_rewards:f")]
    rewards("LIMIT = 4\n", "limits")
    rewards(body)
    keys.append(key("my_rewards:f"))
    Path("mine/late.py").write_text("from .deep import FACTOR\n")
    keys.append(key("my_rewards:f"))
    Path("mine/deep.py").write_text("FACTOR = 2\n")
    keys.append(key("my_rewards:f"))
    Path("mine/__init__.py").write_text("# a comment\n")
    keys.append(key("my_rewards:f"))
    assert len(set(keys)) == 5
    Path("mine/unused.py").write_text("FACTOR = 2\n")
    assert key("my_rewards:f") == keys[-1]
    assert "mine" not in sys.modules, "nothing is imported for the sake of a key"


def test_code_that_is_loaded_counts_as_it_was_loaded() -> None:
    rewards("def f(p, r): return 1\n")
    first = key("my_rewards:f")
    Path("my_rewards.py").write_text("def f(p, r): return 2\n")
    assert key("my_rewards:f") == first, "the old function is what would run"
    importlib.reload(sys.modules["my_rewards"])
    assert key("my_rewards:f") != first


def test_so_does_what_it_imports() -> None:
    rewards("def g(): return 1\n", "helpers")
    rewards("from helpers import g\ndef f(p, r): return g()\n")
    first = key("my_rewards:f")
    for name in ("my_rewards", "helpers"):
        del sys.modules[name]
    read_judge("my_rewards:f")
    Path("helpers.py").write_text("def g(): return 2\n")
    assert key("my_rewards:f") == first, "the old helper is what would run"


def fenced(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def set_up(page: str) -> None:
    """The files that the page shows, a model, and more prompts."""
    from tiny import tiny_folder

    tiny_folder("qwen2", "my-model")
    for name in ("my_rewards.py", "my_judges.py", "prompts.jsonl"):
        for text in fenced(
            page, f"{name.rpartition('.')[2].replace('py', 'python').replace('jsonl', 'json')} {name}"
        ):
            Path(name).write_text(text)
    sums = [{"prompt": f"What is {i} + 1?", "reference": str(i + 1)} for i in range(60)]
    with open("prompts.jsonl", "a") as f:
        f.writelines(json.dumps(row) + "\n" for row in sums)
    importlib.invalidate_caches()


@pytest.mark.parametrize("page", PAGES)
def test_the_recipe_of_the_page_runs(page: str) -> None:
    set_up(page)
    (recipe,) = fenced(page, "yaml own")
    Path("own.yaml").write_text(re.sub(r"max_new_tokens: \d+", "max_new_tokens: 6", recipe))
    short = {"grpo.steps": 1, "grpo.online.n": 2, "grpo.online.truncated": "judge"}
    done = posttrain.run_recipe("own.yaml", overrides=short)
    assert done["grpo"].summary["online"]["rollouts"] == 1
    line = json.loads((done["grpo"].folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["reward"] is not None
    if page == "judges":
        assert {"reward_right", "reward_short"} <= line.keys()


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_the_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(page)
    real = api.run_verb
    given = {}

    def shorter(verb: str, out: object, fields: dict[str, object], **options: object) -> Result:
        given.update(fields)
        online = fields["online"] | {"n": 2, "max_new_tokens": 6, "truncated": 0.0}
        return real(verb, out, fields | {"online": online, "steps": 1, "epochs": 1}, **options)

    monkeypatch.setattr(api, "run_verb", shorter)
    monkeypatch.syspath_prepend(".")  # as for `python script.py`
    (script,) = fenced(page, "python own")
    exec(script, {})
    assert given["online"]["n"] in (4, 8)


def test_the_commands_of_the_pages_build_real_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        api, "run_into", lambda step, cfg, out, **_: seen.append(cfg) or Result(Path(out), {}, "0" * 64)
    )
    set_up("judges")
    for page in PAGES:
        for line in "".join(fenced(page, "sh")).splitlines():
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, result.output
    assert [cfg.online.judge.name for cfg in seen] == ["function", "function", "exact_match"]


def test_the_class_of_the_page_scores() -> None:
    set_up("judges")
    Path("words.txt").write_text("river\nhill\n")
    use = read_judge({"name": "my_judges:Keywords", "words": "words.txt"})
    said = use.open().score([answer("River and hill"), answer("the the"), answer("x", "length")])
    assert said == [
        Verdict(2.0, "2 of the words", {"used": 2.0, "repeated": 0.0}),
        Verdict(-0.5, "0 of the words", {"used": 0.0, "repeated": 0.5}),
        Verdict(None, "cut off"),
    ]
    module = importlib.import_module("my_judges")
    assert read_judge(module.Keywords(words="words.txt")) == use


def test_a_nested_function_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="has no '"):
        read_judge(lambda prompt, response: 1.0)
