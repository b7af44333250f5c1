"""`repeat:` blocks and variants."""

from __future__ import annotations

import pytest
from flow_fakes import VERBS

from posttrain.common.errors import ConfigError
from posttrain.flow.recipe import Recipe, check_recipe
from posttrain.flow.source import parse_yaml

LOOP = """
sft: {do: make}
pairs: {do: make, text: p}
rounds:
  repeat: 3
  start: {policy: "@sft", feedback: "@pairs/rows.txt"}
  steps:
    samples: {do: join, inputs: "@previous.policy", weight: "${round}"}
    feedback: {do: join, inputs: "@samples"}
    reward: {do: join, inputs: ["@all.feedback"]}
    policy: {do: join, inputs: ["@previous.policy", "@reward", "@sft"]}
last: {do: join, inputs: "@rounds.policy"}
first: {do: join, inputs: "@rounds.1.policy/rows.txt"}
all: {do: join, inputs: ["@sft", "@rounds.*.policy"]}
"""


def recipe(text: str, *sets: str) -> Recipe:
    return check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", sets, VERBS)


def inputs(text: str, *sets: str) -> dict[str, object]:
    return {step.name: getattr(step.config, "inputs", None) for step in recipe(text, *sets).steps}


def mistake(text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as e:
        recipe(text, *sets)
    return str(e.value)


def test_a_loop_is_written_out_round_by_round() -> None:
    text = LOOP.replace("all: {", "every: {")
    found = inputs(text)
    assert found["rounds.1.samples"] == "@sft"
    assert found["rounds.2.samples"] == "@rounds.1.policy"
    assert found["rounds.3.feedback"] == "@rounds.3.samples"
    assert found["rounds.1.reward"] == ("@pairs/rows.txt", "@rounds.1.feedback")
    assert found["rounds.3.reward"] == (
        "@pairs/rows.txt",
        "@rounds.1.feedback",
        "@rounds.2.feedback",
        "@rounds.3.feedback",
    )
    assert found["rounds.1.policy"] == ("@sft", "@rounds.1.reward", "@sft")
    assert found["rounds.3.policy"] == ("@rounds.2.policy", "@rounds.3.reward", "@sft")
    assert found["last"] == "@rounds.3.policy"
    assert found["first"] == "@rounds.1.policy/rows.txt"
    assert found["every"] == ("@sft", "@rounds.1.policy", "@rounds.2.policy", "@rounds.3.policy")
    weights = {s.name: s.config.weight for s in recipe(text).steps if s.name.endswith("samples")}
    assert weights == {"rounds.1.samples": 1, "rounds.2.samples": 2, "rounds.3.samples": 3}
    assert len(found) == 2 + 3 * 4 + 3


def test_words_of_the_language_cannot_be_names() -> None:
    assert mistake(LOOP) == "r.yaml:14: 'all' is a word of the recipe language; choose another name"


def test_overrides_of_all_rounds_and_of_one() -> None:
    text = LOOP.replace("all: {", "every: {")
    sets = ("rounds.repeat=2", "rounds.policy.weight=7", "rounds.2.policy.weight=9")
    found = {s.name: s.config for s in recipe(text, *sets, "rounds.start.policy=@pairs").steps}
    assert found["rounds.1.policy"].weight == 7
    assert found["rounds.2.policy"].weight == 9
    assert found["rounds.1.samples"].inputs == "@pairs"
    assert found["last"].inputs == "@rounds.2.policy"
    assert "rounds.3.policy" not in found
    assert recipe(text, "rounds.steps.policy.weight=7").steps[5].config.weight == 7


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("rounds.polcy.weight=1",), "is a repeat block with no 'polcy' to set (did you mean 'policy'?)"),
        (("rounds.4.policy.weight=1",), "'rounds' has rounds 1 to 3"),
        (("rounds.2.polcy.weight=1",), "no step 'polcy' in 'rounds' (did you mean 'policy'?)"),
        (("rounds.2.policy=1",), "'rounds.2.policy' is a step; name a field of it"),
        (("rounds.policy=1",), "is a repeat block with no 'policy' to set (name a field of it)"),
        (("rounds=1",), "is a repeat block with no '' to set"),
        (("rounds.2.policy.weigt=1",), "rounds.policy: unknown key 'weigt' (did you mean 'weight'?)"),
        (("rounds.repeat=0",), "rounds.repeat: expected a number of rounds ≥ 1, got 0"),
        (("rounds.repeat=true",), "rounds.repeat: expected a number of rounds ≥ 1, got True"),
    ],
)
def test_overrides_of_a_block_are_checked(sets: tuple[str, ...], message: str) -> None:
    found = mistake(LOOP.replace("all: {", "every: {"), *sets)
    assert found.startswith(f"--set {sets[0]}: ")
    assert message in found


BLOCK = """x: {do: make}
r:
  repeat: 2
  start: {a: '@x'}
  steps:
    a: {do: join, inputs: '@previous.a'}
"""
BODY = "{do: join, inputs: '@previous.a'}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BLOCK.replace("start: {a: '@x'}", "start: {}"), "r.yaml:6: @previous.a: there is no round before"),
        (BLOCK.replace("start: {a", "start: {b"), "r.yaml:4: r.start: no step 'b' in the block"),
        (BLOCK.replace("@previous.a", "@previous.b"), "r.yaml:6: @previous.b: no step 'b' in 'r'"),
        (BLOCK.replace("@previous.a", "@previous"), "r.yaml:6: @previous: no step '' in 'r'"),
        (BLOCK.replace("start:", "begin:"), "r.yaml:4: r: unknown key 'begin' in a repeat block"),
        (BLOCK + "a: {do: make}", "r.yaml:6: 'a' is also the name of a step outside 'r'"),
        (BLOCK.replace(BODY, "{repeat: 2, steps: {}}"), "cannot stand inside another"),
        (BLOCK + "y: {do: join, inputs: '@r'}", "y.inputs: '@r': 'r' is a repeat block; name one of its"),
        (BLOCK + "y: {do: join, inputs: '@r.3.a'}", "r.yaml:7: y.inputs: '@r.3.a': 'r' has rounds 1 to 2"),
        (BLOCK + "y: {do: join, inputs: '@r.b'}", "r.yaml:7: y.inputs: '@r.b': no step 'b' in 'r'"),
        (BLOCK + "y: {do: join, inputs: '@all.a'}", "@all has a meaning only inside a repeat block"),
        (BLOCK.replace("repeat: 2", "repeat: many"), "r.yaml:3: r.repeat: expected a number of rounds ≥ 1"),
        (BLOCK.replace("@previous.a", "@all.a"), "these steps need each other: r.1.a -> r.1.a"),
    ],
)
def test_mistakes_in_a_block(text: str, message: str) -> None:
    assert message in mistake(text)


def test_a_start_that_is_no_step_stands_as_it_is() -> None:
    text = BLOCK.replace("{a: '@x'}", "{a: owner/model}")
    assert inputs(text)["r.1.a"] == "owner/model"
    assert "which is no step to look into" in mistake(text.replace("@previous.a", "@previous.a/rows.txt"))
    listed = BLOCK.replace("{a: '@x'}", "{a: ['@x', y]}").replace(
        "'@previous.a'", "[z, '@previous.a/rows.txt']"
    )
    assert "no step to look into" in mistake(listed)
    assert inputs(listed.replace(", y]", "]"))["r.1.a"] == ("z", "@x/rows.txt")


VARIED = """
a: {do: make}
dpo:
  do: join
  inputs: "@a"
  method: {name: beta, beta: 0.1}
  variants:
    low: {method.beta: 0.05, weight: 2}
    high: {method: {name: gamma, beta: 0.5}}
    base:
score: {do: join, inputs: "@dpo/rows.txt"}
both: {do: join, inputs: ["@a", "@dpo", "@score"]}
page: {do: join, inputs: ["@a", "@dpo.*"]}
one: {do: join, inputs: "@dpo.high"}
"""


def test_variants_set_fields_and_vary_what_depends_on_them() -> None:
    found = {step.name: step.config for step in recipe(VARIED).steps}
    assert list(found) == [
        *["a", "dpo.low", "dpo.high", "dpo.base", "score.low", "score.high", "score.base"],
        *["both.low", "both.high", "both.base", "page", "one"],
    ]
    assert (found["dpo.low"].method.beta, found["dpo.low"].weight) == (0.05, 2)
    assert (found["dpo.high"].method.name, found["dpo.high"].method.beta) == ("gamma", 0.5)
    assert found["dpo.base"].method.beta == 0.1
    assert found["score.high"].inputs == "@dpo.high/rows.txt"
    assert found["both.low"].inputs == ("@a", "@dpo.low", "@score.low")
    assert found["page"].inputs == ("@a", "@dpo.low", "@dpo.high", "@dpo.base")
    assert found["one"].inputs == "@dpo.high"


def test_variants_of_two_steps_make_all_pairs_where_both_are_needed() -> None:
    found = inputs(
        """
sft: {do: make, variants: {s: {n: 1}, l: {n: 2}}}
dpo: {do: join, inputs: "@sft", variants: {low: {weight: 1}, high: {weight: 2}}}
page: {do: join, inputs: ["@dpo", "@sft"]}
part: {do: join, inputs: "@dpo.low"}
row: {do: join, inputs: ["@dpo.low.*"]}
grid: {do: join, inputs: ["@dpo.*"]}
cell: {do: join, inputs: "@dpo.l.high"}
"""
    )
    assert found["dpo.s.high"] == "@sft.s"
    assert found["page.l.low"] == ("@dpo.l.low", "@sft.l")
    assert found["part.s"] == "@dpo.s.low"
    assert found["row"] == ("@dpo.s.low", "@dpo.l.low")
    assert found["grid"] == ("@dpo.s.low", "@dpo.s.high", "@dpo.l.low", "@dpo.l.high")
    assert found["cell"] == "@dpo.l.high"
    assert {"part.low", "page.low", "dpo.low"}.isdisjoint(found)


def test_a_variant_may_differ_in_its_references() -> None:
    found = inputs(
        """
a: {do: make}
b: {do: make, text: b}
c: {do: join, variants: {from_a: {inputs: "@a"}, from_b: {inputs: ["@b", "@a"]}}}
"""
    )
    assert found == {"a": None, "b": None, "c.from_a": "@a", "c.from_b": ("@b", "@a")}


def test_variants_live_through_rounds() -> None:
    found = inputs(
        """
sft: {do: make, variants: {s: {n: 1}, l: {n: 2}}}
r:
  repeat: 2
  start: {policy: "@sft"}
  steps:
    samples: {do: join, inputs: "@previous.policy"}
    policy: {do: join, inputs: "@samples", variants: {low: {weight: 1}, high: {weight: 2}}}
page: {do: join, inputs: ["@r.*.policy.*"]}
each: {do: join, inputs: "@r.policy"}
"""
    )
    assert found["r.1.samples.s"] == "@sft.s"
    assert found["r.1.policy.s.low"] == "@r.1.samples.s"
    assert found["r.2.samples.s.low"] == "@r.1.policy.s.low"
    assert found["r.2.policy.l.high"] == "@r.2.samples.l.high"
    assert len(found["page"]) == 8
    assert found["each.l.high"] == "@r.2.policy.l.high"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("@dpo.lwo", "no variant 'lwo' of 'dpo' (did you mean 'low'?)"),
        ("@dpo.low.high", "no variant 'low.high' of 'dpo'"),
        ("@dpo.*.low", "write * once, at the end"),
        ("@a.low", "no variant 'low' of 'a' (it has no variants)"),
    ],
)
def test_a_variant_that_is_not_there(reference: str, why: str) -> None:
    assert why in mistake(VARIED + f'x: {{do: join, inputs: "{reference}"}}')


def test_a_variant_name_that_could_mean_two_steps_is_refused() -> None:
    text = """
sft: {do: make, variants: {low: {n: 1}, high: {n: 2}}}
dpo: {do: join, inputs: "@sft", variants: {low: {weight: 1}, high: {weight: 2}}}
x: {do: join, inputs: "@dpo.low"}
"""
    assert "'low' could name a variant of sft or of dpo; write all of the variants" in mistake(text)
    assert inputs(text.replace("@dpo.low", "@dpo.low.high"))["x"] == "@dpo.low.high"


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{}", "r.yaml:1: a.variants: expected {name: {field: value}}"),
        ("[low]", "r.yaml:1: a.variants: expected {name: {field: value}}"),
        ("{low: 3}", "r.yaml:1: a.low: expected {field: value}, got 3"),
        ("{text: {n: 2}}", "r.yaml:1: a.variants: 'text' is a field of the step"),
        ("{'1': {n: 2}}", "r.yaml:1: a.variants: '1' is no name for a variant"),
        ("{a.b: {n: 2}}", "r.yaml:1: a.variants: 'a.b' is no name for a variant"),
        ("{low: {nn: 2}}", "r.yaml:1: a: unknown key 'nn'"),
        ("{low: {text.deep: 2}}", "'text' is 't', which has no 'deep' in it"),
    ],
)
def test_mistakes_in_variants(variants: str, message: str) -> None:
    assert message in mistake(f"a: {{do: make, text: t, variants: {variants}}}")


def test_overrides_of_variants() -> None:
    found = {s.name: s.config for s in recipe(VARIED, "dpo.low.method.beta=0.01", "dpo.weight=5").steps}
    assert found["dpo.low"].method.beta == 0.01
    assert (found["dpo.low"].weight, found["dpo.high"].weight) == (2, 5)
    hidden = "a: {do: make, variants: {low: {n: 1}, high: {n: 2}}}"
    assert mistake(hidden, "a.n=3") == (
        "--set a.n=3: every variant gives its own value; set one, e.g. a.low.n"
    )
    assert mistake(VARIED, "dpo.low=3") == "--set dpo.low=3: 'low' is a variant; name a field of it"
    assert mistake(VARIED, "dpo.high.metod.beta=1").startswith(
        "--set dpo.high.metod.beta=1: dpo: unknown key 'metod' (did you mean 'method'?)"
    )
