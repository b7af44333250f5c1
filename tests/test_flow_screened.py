"""An `ablate:` block learns from decontaminated rows, unless it says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.common.errors import ConfigError
from posttrain.flow.recipe import Recipe, check_recipe
from posttrain.flow.source import parse_yaml

ROAD = """
demos: {do: curate, source: data/demos.jsonl, holdout: 0.1}
more: {do: curate, source: data/more.jsonl}
sft: {do: train, method: {name: sft}, model: some/model, data: ["@demos", "@more"]}
answers: {do: sample, model: "@sft", prompts: data/prompts.jsonl, n: 2}
pairs: {do: judge, data: "@answers", judge: {name: exact_match}, pairs: best_worst}
dpo: {do: train, method: {name: dpo}, model: "@sft", data: "@pairs"}
rl:
  do: train
  method: {name: grpo}
  model: "@dpo"
  online: {prompts: data/prompts.jsonl, judge: {name: exact_match}}
"""
BLOCK = """
table:
  ablate: "@rl"
  columns: {all: , no_more: {without: more}, no_dpo: {without: dpo}}
"""
SCORE = """
score:
  do: evaluate
  model: "@table"
  tasks:
    - {name: pair_accuracy, data: "@demos/heldout.jsonl"}
    - {name: playground/atlas, n: 50}
    - {name: judged, data: data/held.jsonl, judge: {name: exact_match}}
"""
ATLAS = {
    "name": "playground/prompts",
    "seed": 0,
    "n": 50,
    "split": "heldout",
    "areas": {"atlas": 1.0},
}


def recipe(text: str) -> Recipe:
    return check_recipe(parse_yaml(text, "r.yaml"), "r.yaml")


def plain(found: Recipe) -> dict[str, Any]:
    return {step.name: step.config.model_dump(mode="json", exclude_unset=True) for step in found.steps}


def test_every_training_of_the_road_learns_from_clean_rows() -> None:
    found = recipe(ROAD + BLOCK + SCORE)
    configs = plain(found)
    assert configs["sft.decontaminate"]["data"] == ["@demos", "@more"]
    assert configs["sft"]["data"] == "@sft.decontaminate"
    assert configs["dpo.decontaminate"]["data"] == "@pairs"
    assert configs["rl.decontaminate"]["data"] == "data/prompts.jsonl"
    assert configs["rl"]["online"]["prompts"] == "@rl.decontaminate"
    against = configs["dpo.decontaminate"]["against"]
    assert against == {
        "pair_accuracy": "@demos/heldout.jsonl",
        "playground/atlas": against["playground/atlas"],
        "judged": "data/held.jsonl",
    }, "by the labels of the tasks"
    assert against["playground/atlas"].items() >= ATLAS.items()
    assert configs["sft.no_more.decontaminate"]["data"] == ["@demos"]
    assert configs["sft.no_more"]["data"] == "@sft.no_more.decontaminate"
    assert configs["rl.no_dpo"]["online"]["prompts"] == "@rl.decontaminate", "shared: nothing differs"
    assert any("the rows of sft, dpo, rl are decontaminated against" in note for note in found.notes)
    names = [step.name for step in found.steps]
    assert names.index("sft.decontaminate") < names.index("sft")


def test_rows_that_a_column_brings_along_and_those_of_a_mix_are_screened_too() -> None:
    mixed = ROAD.replace(
        "judge: {name: exact_match}}\n", "judge: {name: exact_match}, mix: {data: m.jsonl}}\n"
    )
    assert mixed != ROAD
    block = BLOCK.replace(
        "all: ,",
        "all: , mine: {set: {sft.data: data/mine.jsonl, rl.online.prompts: p.jsonl}},"
        " other: {set: {rl.online.mix.data: n.jsonl}},",
    )
    configs = plain(recipe(mixed + block + SCORE))
    for step, where, rows in (
        ("sft.mine", "data", "data/mine.jsonl"),
        ("rl.mine", "prompts", "p.jsonl"),
        ("rl", "mix", "m.jsonl"),
        ("rl.other", "mix", "n.jsonl"),
    ):
        config = configs[step]
        said = config["data"] if where == "data" else config["online"][where]
        screen = said["data"] if where == "mix" else said
        assert configs[screen.removeprefix("@")]["data"] == rows
        assert len(configs[screen.removeprefix("@")]["against"]) == 3
    assert configs["rl.other"]["online"]["prompts"] == "@rl.decontaminate"


def test_a_folder_of_tasks_is_no_set_of_questions() -> None:
    task = 'score: {do: evaluate, model: "@table", tasks: [{name: lm_eval/mine, include_path: tasks}]}\n'
    found = recipe(ROAD + BLOCK + task)
    assert not [name for name in plain(found) if "decontaminate" in name]
    assert any("lm_eval/mine, which does not say what it asks" in note for note in found.notes)


def test_fields_and_against_of_ones_own_or_not_at_all() -> None:
    fields = "  decontaminate: {n: 64, contaminated: 1, partial: 0.99, max_contaminated: 0}\n"
    step = plain(recipe(ROAD + BLOCK + fields + SCORE))["sft.decontaminate"]
    assert (step["n"], step["max_contaminated"], len(step["against"])) == (64, 0, 3)
    own = "  decontaminate: {against: data/test.jsonl}\n"
    assert plain(recipe(ROAD + BLOCK + own))["dpo.decontaminate"]["against"] == {"test": "data/test.jsonl"}
    off = recipe(ROAD + BLOCK + "  decontaminate: false\n" + SCORE)
    assert not [name for name in plain(off) if "decontaminate" in name]
    assert not [note for note in off.notes if "decontaminate" in note]


def test_rows_that_are_clean_already_are_left_as_they_are() -> None:
    clean = ROAD.replace('data: ["@demos", "@more"]', 'data: "@clean"')
    clean += 'clean: {do: decontaminate, data: ["@demos", "@more"], against: data/test.jsonl}\n'
    found = plain(recipe(clean + BLOCK.replace("no_more: {without: more}, ", "") + SCORE))
    assert found["sft"]["data"] == "@clean"
    assert {"dpo.decontaminate", "rl.decontaminate"} <= set(found)
    assert "sft.decontaminate" not in found


def test_what_cannot_be_compared_is_said() -> None:
    silent = recipe(ROAD + BLOCK)
    assert "table: nothing to decontaminate against" in silent.notes
    assert not [name for name in plain(silent) if "decontaminate" in name]
    circular = SCORE + "    - {name: heldout_loss, data: '@pairs'}\n    - lm_eval/gsm8k\n"
    found = recipe(ROAD + BLOCK + circular)
    assert "@pairs" not in plain(found)["sft.decontaminate"]["against"].values()
    told = [note for note in found.notes if "not decontaminated against" in note]
    assert sorted(note.partition("against ")[2] for note in told) == [
        "@pairs: the road itself makes it",
        "lm_eval/gsm8k, which does not say what it asks: name it in `against`",
    ]


def test_two_blocks_over_one_road() -> None:
    other = BLOCK.replace("table:", "second:").replace("no_", "without_")
    score = (
        SCORE + 'last: {do: evaluate, model: "@second", tasks: [{name: pair_accuracy, data: data/x.jsonl}]}\n'
    )
    both = plain(recipe(ROAD + BLOCK + other + score))
    assert list(both["dpo.decontaminate"]["against"]) == [
        *("pair_accuracy", "playground/atlas", "judged", "pair_accuracy~2")
    ]
    own = "  decontaminate: {against: [data/x.jsonl, data/y.jsonl]}\n"
    mixed = plain(recipe(ROAD + BLOCK + other + own + score))["dpo.decontaminate"]["against"]
    assert [*mixed.values()][0::3] == ["@demos/heldout.jsonl", "data/x.jsonl"]
    assert len(mixed) == 5
    with pytest.raises(ConfigError, match="on the road of another block that says otherwise"):
        recipe(ROAD + BLOCK + other + "  decontaminate: {n: 20}\n" + score)


@pytest.mark.parametrize("given", ["yes please", "{data: x.jsonl}", "[a]"])
def test_what_the_key_cannot_hold(given: str) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml:\d+: table\.decontaminate: expected false, or fields"):
        recipe(ROAD + BLOCK + f"  decontaminate: {given}\n")
    with pytest.raises(ConfigError, match="unknown key 'ngrams'"):
        recipe(ROAD + BLOCK + "  decontaminate: {ngrams: 3}\n" + SCORE)


def test_a_planted_question_is_kept_from_every_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run, not only written out: the row that holds an evaluation prompt is in no column's rows."""
    from posttrain.flow.runner import run_recipe
    from posttrain.flow.store import Store

    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    held = "Which of the seven bridges of the old town is crossed by the fewest people on a rainy Monday?"
    rows = [
        {"prompt": f"Question number {i}: what is {i} and {i}?", "completion": "it depends"} for i in range(9)
    ]
    rows[4]["prompt"] = f"Please answer. {held}"
    Path("data/demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("data/held.jsonl").write_text(json.dumps({"prompt": held, "completion": "the third"}) + "\n")
    text = """
sft: {do: train, method: {name: sft}, model: none/here, data: data/demos.jsonl}
table: {ablate: "@sft", columns: {one: , two: {set: {sft.epochs: 2}}}}
score: {do: evaluate, model: "@table", tasks: [{name: heldout_loss, data: data/held.jsonl}]}
"""
    found = recipe(text)
    run_recipe(found.only(["sft.decontaminate"]), Store(tmp_path / "store"))
    [folder] = (tmp_path / "store").glob("sft.decontaminate-*")
    kept = (folder / "rows.jsonl").read_text()
    assert "seven bridges" not in kept
    assert len(kept.splitlines()) == 8
    configs = plain(found)
    assert configs["sft"]["data"] == configs["sft.two"]["data"] == "@sft.decontaminate"
