"""`posttrain store`: what is in a store, whether it is whole, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.output import FAILED, command

store = typer.Typer(
    no_args_is_help=True,
    help="List, verify or tidy a store.",
    epilog="Example: posttrain store list",
    context_settings={"help_option_names": ["-h", "--help"]},
)
STORE = Annotated[Path, typer.Option("--store", help="Where artifacts live.", envvar="POSTTRAIN_STORE")]


def register(app: typer.Typer) -> None:
    store.command("list", epilog="Example: posttrain store list --store store")(list_)
    store.command(epilog="Example: posttrain store verify")(verify)
    store.command(epilog="Example: posttrain store gc --days 14 --yes")(gc)
    app.add_typer(store, name="store")


@command
def list_(store: STORE = Path("store")) -> None:
    """Every artifact, newest last: step, size, when, and whether it is finished."""
    from rich.console import Console
    from rich.table import Table

    from posttrain.flow.housekeeping import survey
    from posttrain.flow.store import Store

    table = Table("artifact", "do", "size", "finished", "seconds", box=None, pad_edge=False)
    for found in survey(Store(store)):
        unfinished = "running" if found.running else "cut short" if found.key else "damaged"
        finished = found.finished or unfinished
        seconds = "" if found.seconds is None else f"{found.seconds:,.1f}"
        table.add_row(found.folder.name, found.kind, _size(found.bytes), finished, seconds)
    Console(width=None if Console().is_terminal else 200).print(table)


@command
def verify(store: STORE = Path("store")) -> None:
    """Read every file of every artifact and compare it with its manifest."""
    from posttrain.flow.housekeeping import verify_all
    from posttrain.flow.store import Store

    whole, problems = verify_all(Store(store))
    for problem in problems:
        typer.secho(problem, err=True, fg="red")
    typer.echo(f"{whole} artifacts whole, {len(problems)} damaged")
    if problems:
        raise typer.Exit(FAILED)


@command
def gc(
    store: STORE = Path("store"),
    days: Annotated[
        float, typer.Option("--days", help="Spare what a run used within so many days.", min=0)
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only show.")] = False,
) -> None:
    """Delete what no recipe's latest run used and none used lately, and what killed runs left."""
    from posttrain.flow.housekeeping import garbage, remove
    from posttrain.flow.store import Store

    opened = Store(store)
    found = garbage(opened, days)
    for entry in found:
        typer.echo(f"{_size(entry.bytes):>10}  {entry.folder}")
    total = _size(sum(entry.bytes for entry in found))
    if not yes:
        typer.echo(f"{len(found)} folders, {total}; give --yes to delete them")
        return
    gone = [entry for entry in found if remove(opened, entry)]
    typer.echo(f"deleted {len(gone)} folders, {_size(sum(entry.bytes for entry in gone))}")


def _size(amount: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
