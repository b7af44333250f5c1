"""`posttrain run` and `posttrain plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.output import command, show_plan, tell

RECIPE = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set a field or parameter: step.path.to.field=value, data_dir=…", metavar="A.B=C"
    ),
]
STORE = Annotated[Path, typer.Option("--store", help="Where artifacts live.", envvar="POSTTRAIN_STORE")]
ONLY = Annotated[list[str] | None, typer.Option("--only", help="This step and what it needs, nothing else.")]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: posttrain run recipes/quickstart.yaml --set dpo.method.beta=0.2")(run)
    app.command(epilog="Example: posttrain plan recipes/quickstart.yaml --set sft.epochs=2")(plan)


@command
def run(
    recipe: RECIPE,
    sets: SET = None,
    store: STORE = Path("store"),
    only: ONLY = None,
    force: Annotated[list[str] | None, typer.Option("--force", help="Make this step again.")] = None,
) -> None:
    """Run a recipe: what the store has is taken from it, what was cut short goes on where it was."""
    from posttrain.cli.results import show_results
    from posttrain.flow.recipe import load_recipe
    from posttrain.flow.runner import run_recipe
    from posttrain.flow.store import Store

    checked = load_recipe(recipe, sets or [])
    checked = checked.only(only) if only else checked
    for note in checked.notes:
        tell(f"note: {note}")
    done = run_recipe(checked, Store(store), force=force or [], say=tell)
    for step in done:
        typer.echo(f"{step.outcome:<8} {step.seconds:>10,.1f} s  {step.name}  {step.folder}")
    for step in done:
        if step.outcome != "hit":
            show_results(step.folder, step.name)


@command
def plan(recipe: RECIPE, sets: SET = None, store: STORE = Path("store"), only: ONLY = None) -> None:
    """Show for each step of a recipe whether it is a hit, will resume or will run, and what changed."""
    from posttrain.flow.plan import make_plan
    from posttrain.flow.recipe import load_recipe
    from posttrain.flow.store import Store

    checked = load_recipe(recipe, sets or [])
    checked = checked.only(only) if only else checked
    show_plan(make_plan(checked, Store(store)), checked.notes)
