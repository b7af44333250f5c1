"""Phi-4's road as it is shipped: which steps each column of its ablation shares, and what it learns from."""

from __future__ import annotations

from pathlib import Path

from posttrain.flow.recipe import load_recipe

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
    assert {name for name in steps if "." in name and not name.endswith("decontaminate")} == {
        "dpo2.stage2",
        "dpo2.no_refusals",
        "dpo1.no_refusals",
        "dpo1.decontaminate.no_refusals",
    }
    assert steps["dpo1.no_refusals"].config.model.path == "@sft"
    assert steps["dpo1.decontaminate.no_refusals"].config.data == ["@pivots"]
    assert steps["dpo2.stage2"].config.model.path == "@refuse"
    judged = [steps[name].config.data for name in ("by_accuracy", "by_mean")]
    assert judged == [["@answers_sft", "@answers_refuse", "@answers_dpo1"]] * 2


def test_every_training_of_the_road_learns_from_rows_without_the_questions_asked() -> None:
    recipe = load_recipe(RECIPE)
    trained = [step for step in recipe.steps if step.step.name == "train"]
    assert len(trained) == 8
    assert all("decontaminate" in " ".join(step.needs) for step in trained)
