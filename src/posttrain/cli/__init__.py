"""The command line: the verbs, and what looks at models, data and the store.

Nothing heavy is imported until a command runs: `posttrain --help` is to take under half a second.
"""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.cli import look, recipes, stores, verbs
from posttrain.common.version import VERSION

app = typer.Typer(
    name="posttrain",
    help="Post-training of language models, from data to an aligned model, as one cached, resumable recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes.register(app)
verbs.register(app)
look.register(app)
stores.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"posttrain {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `posttrain` command."""
    app()
