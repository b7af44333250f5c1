"""`ablate:` blocks: which steps each column gets, and that what two columns share runs once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flow_fakes import RAN
from flow_fakes import VERBS as FAKES

from posttrain.common.config import Config, DataRef, ModelRef
from posttrain.common.errors import ConfigError
from posttrain.common.step import Step, StepContext
from posttrain.flow.plan import make_plan
from posttrain.flow.recipe import Recipe, check_recipe
from posttrain.flow.runner import run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store


class TrainConfig(Config):
    """A model that says what it was made from."""

    model: ModelRef | dict[str, str]
    data: DataRef | tuple[DataRef, ...] = ()
    rate: float = 1.0


class ScoreConfig(Config):
    """The texts of models, by name."""

    model: ModelRef | tuple[ModelRef, ...] | dict[str, ModelRef]


def train(cfg: TrainConfig, ctx: StepContext) -> dict[str, Any]:
    RAN.append(ctx.label)
    paths = [cfg.data] if isinstance(cfg.data, str) else list(cfg.data)
    learned = "+".join(Path(path, "rows.txt").read_text() for path in paths)
    start = Path(str(cfg.model), "rows.txt").read_text() if isinstance(cfg.model, str) else "new"
    (ctx.out / "rows.txt").write_text(f"{start}>{learned}@{cfg.rate:g}")
    return {}


def score(cfg: ScoreConfig, ctx: StepContext) -> dict[str, Any]:
    RAN.append(ctx.label)
    models = cfg.model if isinstance(cfg.model, dict) else {}
    return {name: Path(path, "rows.txt").read_text() for name, path in models.items()}


TRAIN = Step("train", TrainConfig, train)
SCORE = Step("score", ScoreConfig, score)
VERBS = {**FAKES, "train": "test_flow_ablate:TRAIN", "score": "test_flow_ablate:SCORE"}

ROAD = """
demos: {do: make, text: D}
refusals: {do: make, text: R}
base: {do: train, model: {config: tiny}}
sft: {do: train, model: "@base", data: ["@demos", "@refusals"]}
pairs1: {do: join, inputs: "@sft"}
dpo1: {do: train, model: "@sft", data: "@pairs1"}
pairs2: {do: join, inputs: ["@sft", "@dpo1"]}
dpo2: {do: train, model: "@dpo1", data: "@pairs2"}
"""
TABLE = """
table:
  ablate: "@dpo2"
  keep: [pairs1, pairs2]
  columns:
    sft: {without: [dpo1, dpo2]}
    stage1: {without: dpo2}
    stage2: {without: ["@dpo1"]}
    both:
    bare: {without: [refusals, dpo1]}
    slow: {set: {dpo2.rate: 0.5}}
    bare_slow: {without: [refusals, dpo1], set: {dpo2.rate: 0.5}}
score: {do: score, model: "@table"}
"""


def recipe(text: str, *sets: str) -> Recipe:
    return check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", sets, VERBS)


def refused(text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as e:
        recipe(text, *sets)
    return str(e.value)


def test_columns_leave_steps_out_and_share_the_rest() -> None:
    found = recipe(ROAD + TABLE)
    assert [step.name for step in found.steps] == [
        *("demos", "refusals", "base", "sft", "sft.bare", "pairs1", "dpo1", "pairs2", "dpo2"),
        *("dpo2.stage2", "dpo2.bare", "dpo2.slow", "dpo2.bare_slow", "score"),
    ]
    configs = {step.name: step.config.model_dump(exclude_unset=True) for step in found.steps}
    assert configs["sft.bare"] == {"model": "@base", "data": ("@demos",)}
    assert configs["dpo2.stage2"] == {"model": "@sft", "data": "@pairs2"}
    assert configs["dpo2.bare"] == {"model": "@sft.bare", "data": "@pairs2"}
    assert configs["dpo2.bare_slow"] == {"model": "@sft.bare", "data": "@pairs2", "rate": 0.5}
    assert configs["score"]["model"] == {
        "sft": "@sft",
        "stage1": "@dpo1",
        "stage2": "@dpo2.stage2",
        "both": "@dpo2",
        "bare": "@dpo2.bare",
        "slow": "@dpo2.slow",
        "bare_slow": "@dpo2.bare_slow",
    }
    assert "table.bare: dpo2.bare (without refusals, dpo1)" in found.notes
    assert "table.slow: dpo2.slow (dpo2.rate: 0.5)" in found.notes
    assert "table.both: dpo2" in found.notes


def test_every_stage_runs_once_and_a_second_run_runs_nothing(tmp_path: Path) -> None:
    RAN.clear()
    store = Store(tmp_path / "store")
    done = {d.name: d for d in run_recipe(recipe(ROAD + TABLE), store)}
    assert len(RAN) == len(done) == 14
    base, pairs1 = "new>@1", "1(new>@1>D+R@1)"
    sft, bare = f"{base}>D+R@1", f"{base}>D@1"
    dpo1 = f"{sft}>{pairs1}@1"
    pairs2 = f"1({sft}+{dpo1})"
    assert dict(done["score"].summary) == {
        "sft": sft,
        "stage1": dpo1,
        "stage2": f"{sft}>{pairs2}@1",
        "both": f"{dpo1}>{pairs2}@1",
        "bare": f"{bare}>{pairs2}@1",
        "slow": f"{dpo1}>{pairs2}@0.5",
        "bare_slow": f"{bare}>{pairs2}@0.5",
    }
    RAN.clear()
    again = run_recipe(recipe(ROAD + TABLE), store)
    assert {d.outcome for d in again} == {"hit"}
    assert not RAN
    more = recipe(ROAD + TABLE.replace("    both:\n", "    both:\n    fast: {set: {dpo2.rate: 2}}\n"))
    assert [p.name for p in make_plan(more, store) if p.status == "run"] == ["dpo2.fast", "score"]


def test_without_keep_rows_are_made_anew_and_only_where_somebody_needs_them() -> None:
    names = [step.name for step in recipe(ROAD + TABLE.replace("keep: [pairs1, pairs2]", "keep: []")).steps]
    assert "pairs2.stage2" in names
    assert "pairs2.bare" in names
    assert "pairs1.bare" not in names  # dpo1, which learned from it, is left out of that column
    found = {step.name: step.config for step in recipe(ROAD + TABLE.replace("keep:", "#")).steps}
    assert found["pairs2.stage2"].inputs == ("@sft",)  # dpo1 is sft there, and stands once


def test_a_column_can_be_named_alone_in_lists_and_with_a_file() -> None:
    text = ROAD + TABLE + 'one: {do: join, inputs: ["@demos", "@table.stage2/rows.txt", "@table"]}\n'
    found = {step.name: step.config for step in recipe(text).steps}
    assert found["one"].inputs == (
        *("@demos", "@dpo2.stage2/rows.txt", "@sft", "@dpo1", "@dpo2.stage2", "@dpo2", "@dpo2.bare"),
        *("@dpo2.slow", "@dpo2.bare_slow"),
    )


def test_steps_that_a_value_names_are_those_of_the_column() -> None:
    columns = '  columns: {all: , less: {without: demos, set: {dpo2.data: ["@sft", "@pairs2"]}}}\n'
    found = {s.name: s.config for s in recipe(ROAD + 'table:\n  ablate: "@dpo2"\n' + columns).steps}
    assert found["dpo2.less"].data == ("@sft.less", "@pairs2.less")
    swapped = columns.replace("dpo2.data", "sft.data").replace("without: demos, ", "").replace('"@sft", ', "")
    with_end = 'table:\n  ablate: "@dpo2"\n  keep: pairs2\n' + swapped
    found = {s.name: s.config for s in recipe(ROAD + with_end).steps}
    assert found["sft.less"].data == ("@pairs2",)
    said = refused(ROAD + 'table:\n  ablate: "@dpo2"\n' + swapped)
    assert "r.yaml:12: table.less.set: these steps need each other: " in said
    assert "sft -> pairs2 -> sft (-> means needs)" in said


def test_a_road_may_end_in_the_last_round_of_a_block() -> None:
    road = """
base: {do: train, model: {config: tiny}}
rounds:
  repeat: 2
  start: {policy: "@base"}
  steps:
    rows: {do: join, inputs: "@previous.policy"}
    policy: {do: train, model: "@previous.policy", data: "@rows"}
"""
    columns = "{all: , once: {without: rounds.2.policy}, fast: {set: {rounds.policy.rate: 2}}}"
    table = f"t: {{ablate: END, columns: {columns}}}\n"
    for end in ("@rounds.policy", "@rounds.2.policy"):
        text = road + table.replace("END", f'"{end}"') + 'score: {do: score, model: "@t"}\n'
        found = {step.name: step.config for step in recipe(text).steps}
        assert found["score"].model == {
            "all": "@rounds.2.policy",
            "once": "@rounds.1.policy",
            "fast": "@rounds.2.policy.fast",
        }
        assert found["rounds.2.policy.fast"].model == "@rounds.1.policy.fast"
    assert "is no single step" in refused(road + table.replace("END", '"@rounds.*.policy"'))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("{without: pairs1}", "table.x: dpo1.data would be left with nothing"),
        ("{without: [dpo1, pairs1]}", None),
        ("{without: [dpo1], set: {pairs1.mark: 3}}", "nothing in this column is made from 'pairs1'"),
        ("{set: {dpo2.rate: 2}}", None),
        ("", "table.x: the same model as column 'all' (dpo2)"),
    ],
)
def test_a_switch_that_changes_nothing_is_refused(column: str, said: str | None) -> None:
    text = ROAD + f'table:\n  ablate: "@dpo2"\n  columns: {{all: , x: {column}}}\n'
    if said is None:
        recipe(text)
    else:
        assert said in refused(text)


def test_what_is_left_out_is_not_kept_by_a_back_door() -> None:
    road = ROAD.replace(
        "demos: {do: make, text: D}", "raw: {do: make, text: D}\ndemos: {do: join, inputs: '@raw'}"
    )
    text = road + 'table:\n  ablate: "@dpo2"\n  keep: demos\n  columns: {all: , x: {without: raw}}\n'
    assert "table.x.without: 'raw' would still be made use of, for demos (`keep`)" in refused(text)


def test_a_road_that_ends_in_rows_is_refused_where_a_model_is_wanted() -> None:
    road = "demos: {do: curate, source: d.jsonl}\n"
    block = 'table: {ablate: "@demos", columns: {all: , x: {set: {demos.seed: 1}}}}\n'
    score = 'score: {do: evaluate, model: "@table", tasks: [{name: heldout_loss, data: h.jsonl}]}\n'
    with pytest.raises(ConfigError) as e:
        check_recipe(parse_yaml(road + block + score, "r.yaml"), "r.yaml")
    assert "r.yaml:3: score.model.x: '@demos.x': a model is wanted here, and `curate` makes none" in str(
        e.value
    )


def test_each_verb_makes_a_model_or_none() -> None:
    from posttrain.flow.verbs import NO_MODEL
    from posttrain.flow.verbs import VERBS as REAL

    assert REAL.keys() - NO_MODEL == {"train", "gate", "tokenizer"}
    assert REAL.keys() >= NO_MODEL


def test_overrides_and_parameters_reach_the_block() -> None:
    found = recipe(
        "params: {off: refusals}" + ROAD + TABLE.replace("[refusals, dpo1]}", '["${off}", dpo1]}'),
        "table.columns.slow.set={dpo2.rate: 0.25}",
        "dpo2.rate=3",
    )
    rates = {s.name: s.config.rate for s in found.steps if s.origin == "dpo2"}
    assert rates["dpo2.slow"] == 0.25
    assert rates["dpo2"] == rates["dpo2.stage2"] == 3.0


def test_seeds_of_the_road_s_end_are_ablated_one_by_one() -> None:
    varied = ROAD.replace('"@pairs2"}', '"@pairs2", variants: {s0: {rate: 1}, s1: {rate: 2}}}')
    table = 't: {ablate: "@dpo2.s1", keep: pairs2, columns: {whole: , less: {without: dpo1}}}\n'
    found = recipe(varied + table + 'score: {do: score, model: "@t"}')
    assert found.steps[-1].config.model == {"whole": "@dpo2.s1", "less": "@dpo2.s1.less"}
    assert "is no single step" in refused(varied + table.replace(".s1", "") + "s: {do: make}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("without: dpo2", "without: dpo3", "'dpo3' is no step that @dpo2 is made from (did you mean 'dpo"),
        ("keep: [pairs1", "keep: [paris1", "r.yaml:13: table.keep: 'paris1' is no step"),
        (
            "without: dpo2",
            "witout: dpo2",
            "r.yaml:16: table.stage1: unknown key 'witout' (did you mean 'without'?)",
        ),
        ('ablate: "@dpo2"', 'ablate: "@dpo9"', "table.ablate: '@dpo9' is no single step (did you mean 'dpo"),
        ("keep:", "kep:", "table: unknown key 'kep' (did you mean 'keep'?)"),
        (
            "dpo2.rate: 0.5}}\n    bare_",
            "dpo2.rte: 0.5}}\n    bare_",
            "r.yaml:20: dpo2: unknown key 'rte' (did you mean 'rate'?)",
        ),
        ("without: dpo2", "without: demos", None),
        (
            "without: dpo2",
            "without: [demos, refusals]",
            "sft.data would be left with nothing; leave the step out",
        ),
        ("without: dpo2", "without: pairs2", "dpo2.data would be left with nothing; leave the step out too"),
        ("without: dpo2", "without: base", "base starts from no model, so nothing stands in for it"),
        ("without: dpo2", "without: [dpo2], set: {dpo2.rate: 1}", "'dpo2' is left out or kept"),
        ("@table", "@table.stage3", "r.yaml:22: score.model: '@table.stage3': no column 'stage3' in 'table'"),
        ("@table", "@tabel", "score.model: '@tabel': no step 'tabel' (did you mean 'table'?)"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_near(old: str, new: str, said: str | None) -> None:
    text = (ROAD + TABLE).replace(old, new, 1)
    if said is None:
        recipe(text)
    else:
        assert said in refused(text)
