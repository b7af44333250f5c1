"""What a recipe means: steps, references, parameters, overrides, and every mistake with its place."""

from __future__ import annotations

import pytest
from flow_fakes import VERBS

from posttrain.common.errors import ConfigError
from posttrain.flow.recipe import Recipe, check_recipe
from posttrain.flow.source import parse_yaml


def recipe(text: str, *sets: str) -> Recipe:
    return check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", sets, VERBS)


def configs(text: str, *sets: str) -> dict[str, dict]:
    return {step.name: step.config.model_dump(exclude_unset=True) for step in recipe(text, *sets).steps}


def mistakes(text: str, *sets: str) -> list[str]:
    with pytest.raises(ConfigError) as e:
        recipe(text, *sets)
    return str(e.value).splitlines()


def test_steps_run_after_what_they_need_and_else_as_written() -> None:
    found = recipe(
        """
page: {do: join, inputs: ["@b", "@a"]}
c: {do: make}
b: {do: join, inputs: "@a/rows.txt"}
a: {do: make}
"""
    )
    assert [step.name for step in found.steps] == ["c", "a", "b", "page"]
    assert [step.needs for step in found.steps] == [(), (), ("a",), ("b", "a")]
    assert found.notes == (
        "'b' needs 'a', written below it: it runs after it",
        "'page' needs 'b', written below it: it runs after it",
        "'page' needs 'a', written below it: it runs after it",
    )


NESTED = """
a: {do: make}
one: {do: join, inputs: "@a"}
many: {do: join, inputs: ["@a", "@one/rows.txt"]}
named: {do: join, inputs: {first: "@a", second: data.txt}, method: {name: beta, teacher: "@one"}}
loose: {do: join, inputs: "@a", extra: {deep: ["@one"], note: "not a @reference", mail: "me@here"}}
"""


def test_references_stand_in_strings_lists_mappings_and_nested_configs() -> None:
    assert configs(NESTED)["named"]["inputs"] == {"first": "@a", "second": "data.txt"}
    assert {step.name: step.needs for step in recipe(NESTED).steps} == {
        "a": (),
        "one": ("a",),
        "many": ("a", "one"),
        "named": ("a", "one"),
        "loose": ("a", "one"),
    }


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: {do: mkae}", ["r.yaml:1: a: no verb 'mkae' (did you mean 'make'?)"]),
        ("a: {do: make,\n  txet: b}", ["r.yaml:2: a: unknown key 'txet' (did you mean 'text'?)"]),
        ("a: {do: make, n: -1}", ["r.yaml:1: a: 'n': input should be greater than or equal to 0, got -1"]),
        (
            'a: {do: make}\nb:\n  do: join\n  inputs: ["@a",\n    "@aa"]',
            ["r.yaml:5: b.inputs.1: '@aa': no step 'aa' (did you mean 'a'?)"],
        ),
        (
            'a: {do: make}\nb:\n  do: join\n  inputs: "@a"\n  method: {name: beta, bta: 3}',
            ["r.yaml:5: b: 'method': method beta: unknown key 'bta' (did you mean 'beta'?)"],
        ),
        (
            'a: {do: make}\nb: {do: join, inputs: "@a", label: "@a"}',
            ["r.yaml:2: b.label: '@a': this field takes no step; write the value itself"],
        ),
        (
            'b: {do: join, inputs: "@a b"}',
            ["r.yaml:1: b.inputs: '@a b': no reference: write @step or @step/file"],
        ),
        (
            'a: {do: make}\nb: {do: join, inputs: "@a/../x"}',
            ["r.yaml:2: b.inputs: '@a/../x': no reference: write @step or @step/file"],
        ),
        (
            'b: {do: join, inputs: "@previous.b"}',
            ["r.yaml:1: b.inputs: '@previous.b': @previous has a meaning only inside a repeat block"],
        ),
        (
            'a: {do: join, inputs: "@c"}\nb: {do: join, inputs: "@a"}\nc: {do: join, inputs: "@b"}',
            ["r.yaml:1: these steps need each other: a -> c -> b -> a (-> means needs)"],
        ),
        ('a: {do: join, inputs: "@a"}', ["r.yaml:1: these steps need each other: a -> a (-> means needs)"]),
        (
            "a: 3",
            [
                "r.yaml:1: 'a' is no step: expected {do: <verb>, …}, {repeat: <rounds>, steps: …}"
                " or {ablate: @step, columns: …}"
            ],
        ),
        ("a.b: {do: make}", ["r.yaml:1: 'a.b' is no name: letters, digits, _ and -, a letter or _ first"]),
        (
            "previous: {do: make}",
            ["r.yaml:1: 'previous' is a word of the recipe language; choose another name"],
        ),
        ("params: {x: 1}", ["r.yaml: no steps"]),
        ("params: 3\na: {do: make}", ["r.yaml:1: params: expected a mapping, got 3"]),
        ("params: {a: 1}\na: {do: make}", ["r.yaml:2: 'a' is a step and a parameter; choose another name"]),
    ],
)
def test_a_mistake_names_its_line_and_what_is_near(text: str, lines: list[str]) -> None:
    assert mistakes(text) == lines


def test_all_mistakes_are_told_at_once_and_each_once() -> None:
    assert mistakes(
        """
a: {do: make, txt: b, n: x}
b: {do: join, inputs: "@aa", variants: {low: {weight: 1}, high: {weight: 2}}}
"""
    ) == [
        "r.yaml:2: a: 'n': input should be a valid integer, unable to parse string as an integer, got 'x'",
        "r.yaml:2: a: unknown key 'txt' (did you mean 'text'?)",
        "r.yaml:3: b.inputs: '@aa': no step 'aa' (did you mean 'a'?)",
    ]


def test_a_cycle_is_named_in_full_through_variants_and_rounds() -> None:
    text = """
r:
  repeat: 2
  start: {b: x}
  steps: {a: {do: join, inputs: "@b"}, b: {do: join, inputs: "@a"}}
"""
    assert mistakes(text) == [
        "r.yaml:5: these steps need each other: r.1.a -> r.1.b -> r.1.a (-> means needs)"
    ]


PARAMS = """
params: {folder: data, name: x, n: 3, path: "${folder}/${name}.txt", needed: }
a: {do: make, text: "${path} $${kept}", n: "${n}"}
"""


def test_parameters_fill_strings_and_keep_their_type_where_they_stand_alone() -> None:
    assert configs(PARAMS)["a"] == {"text": "data/x.txt ${kept}", "n": 3}
    assert configs(PARAMS, "folder=/d", "n=5")["a"] == {"text": "/d/x.txt ${kept}", "n": 5}
    assert configs(PARAMS, "params.name=y")["a"]["text"] == "data/y.txt ${kept}"


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            PARAMS + "b: {do: make, text: '${nmae}'}",
            (),
            "r.yaml:4: no parameter 'nmae' (did you mean 'name'?); write $${ for a plain ${",
        ),
        (
            PARAMS + "b: {do: make, text: '${needed}'}",
            (),
            "r.yaml:4: parameter 'needed' has no value: give --set needed=…",
        ),
        (PARAMS, ("foldr=x",), "--set foldr=x: no step or parameter 'foldr' (did you mean 'folder'?)"),
        (PARAMS, ("params.foldr=x",), "--set params.foldr=x: no step or parameter 'foldr'"),
        (PARAMS, ("a=x",), "--set a=x: 'a' is a step; name a field of it"),
        (PARAMS, ("a.txt=x",), "--set a.txt=x: a: unknown key 'txt' (did you mean 'text'?)"),
        (PARAMS, ("a.text.b=x",), "--set a.text.b=x: 'text' is '${path} $${kept}', which has no 'b' in it"),
        (PARAMS, ("a.text",), "--set a.text: write it as path.to.field=value"),
        (PARAMS, ("=x",), "--set =x: write it as path.to.field=value"),
        (PARAMS, ("a.n=[",), "--set a.n=["),
        ("a: {do: make}\nb: {do: join, inputs: @a}", (), 'r.yaml:2: put references in quotes: "@step"'),
        (
            'a: {do: make}\nb: {do: join, inputs: "\\d"}',
            (),
            "r.yaml:2: found unknown escape character 'd': between",
        ),
        (PARAMS, ("b.n=1",), "--set b.n=1: no step or parameter 'b'"),
        ("a: {do: make, text: '${x}'}", (), "r.yaml:1: no parameter 'x' (the recipe has no params: block"),
    ],
)
def test_what_cannot_be_set_or_filled_is_refused(text: str, sets: tuple[str, ...], message: str) -> None:
    assert mistakes(text, *sets)[0].startswith(message)


def test_overrides_reach_nested_fields_and_lists_with_yaml_types() -> None:
    text = 'a: {do: make}\nb: {do: join, inputs: ["@a", x], method: {name: beta}}'
    found = configs(text, "b.method.beta=1e-3", "b.inputs.1=y", "a.text=true story", "a.n=2")
    assert found["b"]["method"]["beta"] == 1e-3
    assert found["b"]["inputs"] == ("@a", "y")
    assert found["a"] == {"text": "true story", "n": 2}
    assert configs(text, "b.extra.deep.er=[1, 2]")["b"]["extra"] == {"deep": {"er": [1, 2]}}
    assert mistakes(text, "b.inputs.2=y") == [
        "--set b.inputs.2=y: '2' is no position in a list of 2 (0 is the first)"
    ]


def test_an_override_can_change_the_verb_and_add_a_reference() -> None:
    found = recipe("a: {do: make}\nb: {do: make}", "b.do=join", "b.inputs=@a")
    assert found.steps[1].step.name == "join"
    assert found.steps[1].needs == ("a",)


def test_only_keeps_a_step_and_all_it_needs() -> None:
    found = recipe(
        """
a: {do: make}
b: {do: join, inputs: "@a", variants: {low: {weight: 1}, high: {weight: 2}}}
c: {do: join, inputs: "@b"}
d: {do: make}
"""
    )
    assert [step.name for step in found.only(["b"]).steps] == ["a", "b.low", "b.high"]
    assert [step.name for step in found.only(["c.low"]).steps] == ["a", "b.low", "c.low"]
    with pytest.raises(ConfigError, match=r"no step 'c\.lo' \(did you mean 'c\.low'\?\)"):
        found.only(["c.lo"])
