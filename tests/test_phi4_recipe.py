"""Phi-4's road as it is shipped: which steps each column of its ablation shares, and what it learns from."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.flow.recipe import load_recipe
from posttrain.records import Prompt

RECIPE = Path(__file__).parent.parent / "recipes/phi4.yaml"


def test_the_columns_share_all_that_they_can() -> None:
    recipe = load_recipe(RECIPE)
    steps = {step.name: step for step in recipe.steps}
    assert steps["score"].config.model == {
        "sft": "@sft",
        "refusals": "@refuse",
        "stage1": "@dpo1",
        "both": "@dpo2",
        "stage2": "@dpo2.stage2",
        "no_refusals": "@dpo2.no_refusals",
    }
    # six columns: two policies besides the road's own four, one stage before one of them, and its rows
    assert {name for name in steps if name.count(".") and not name.endswith(".decontaminate")} == {
        "dpo2.stage2",
        "dpo2.no_refusals",
        "dpo1.no_refusals",
    }
    assert {name for name in steps if name.count(".") > 1} == {"dpo1.no_refusals.decontaminate"}
    assert steps["dpo1.no_refusals"].config.model.path == "@sft"
    assert steps["dpo1.no_refusals.decontaminate"].config.data == ["@pivots"]
    assert steps["dpo2.stage2"].config.model.path == "@refuse"
    judged = [steps[name].config.data for name in ("by_accuracy", "by_mean")]
    assert judged == [["@answers_sft", "@answers_refuse", "@answers_dpo1"]] * 2


def test_every_training_of_the_road_learns_from_rows_without_the_questions_asked() -> None:
    recipe = load_recipe(RECIPE)
    trained = [step for step in recipe.steps if step.step.name == "train"]
    assert len(trained) == 8
    assert all("decontaminate" in " ".join(step.needs) for step in trained)


@pytest.mark.parametrize("name", ["phi4", "hallucination"])
def test_no_refusal_is_taught_about_a_country_that_is_asked_about_at_the_end(name: str) -> None:
    steps = {step.name: step for step in load_recipe(RECIPE.with_stem(name)).steps}

    def told(step: str) -> tuple[set[str | None], set[str]]:
        """Regions of the step's real questions, and their keys."""
        source = steps[step].config.source
        uses = source if isinstance(source, list | tuple) else [source]
        rows = [row for use in uses for row in use.settings.rows()]
        prompts = [row if isinstance(row, Prompt) else row.prompt for row in rows]
        real = [p for p in prompts if p.tags["area"] == "atlas" and p.tags["group"] != "bogus"]
        return {p.tags.get("region") for p in real}, {p.tags["key"] for p in real}

    assert told("facts")[0] == {"south"}
    assert all(told(step)[0] == {"north"} for step in {"questions", "prompts"} & steps.keys())
    assert told("demos")[0] == {"north", "south"}  # a country that was never asked about is never named
    assert not told("demos")[1] & told("facts")[1]
    if "others" in steps:  # SFT's own rows again
        assert told("others")[1] <= told("demos")[1]
