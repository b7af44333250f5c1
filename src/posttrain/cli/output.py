"""What the commands print, and what becomes of errors: words for the user, exit codes for scripts."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec

import typer

P = ParamSpec("P")

FAILED, WRONG, INTERRUPTED = 1, 2, 130
_WIDE = 90  # characters of a mapping that is still read on one line
_TABLED = {"headline"}  # of a summary, what `show_results` has a table for
_STYLES = {"hit": "green", "resume": "yellow", "run": "bold", "running": "cyan"}


def tell(line: str) -> None:
    """Progress, on stderr."""
    typer.echo(line, err=True)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into a message and an exit code.

    1: a step failed (with its traceback only where the error is not one that a user can mend);
    2: wrong usage or config; 130: Ctrl-C.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        from posttrain.common.errors import ConfigError, PosttrainError

        try:
            function(*args, **kwargs)
        except ConfigError as e:
            raise _exit(str(e), WRONG) from None
        except PosttrainError as e:
            cause = e.__cause__ if hasattr(e, "step") else None  # StepFailed, whatever the error was
            if cause is not None and not isinstance(cause, PosttrainError | OSError):
                traceback.print_exception(cause)
            raise _exit(str(e), FAILED) from None
        except BrokenPipeError:
            # The reader of our output has gone; nothing is left to say, and Python would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except OSError as e:
            if e.filename is None:
                raise
            raise _exit(f"{e.filename}: {e.strerror}", FAILED) from None
        except KeyboardInterrupt:
            raise _exit(
                "stopped; what is finished is kept: give the same command to go on", INTERRUPTED
            ) from None

    return guarded


def _exit(message: str, code: int) -> typer.Exit:
    for i, line in enumerate(message.splitlines() or [""]):
        typer.secho(f"{'error: ' if i == 0 else '       '}{line}", err=True, fg="red" if i == 0 else None)
    return typer.Exit(code)


def show_plan(plan: list[Any], notes: tuple[str, ...]) -> None:
    """The table of `posttrain plan`: what is there, what will run, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("step", "do", "status", "key", "what is new", box=None, pad_edge=False)
    for planned in plan:
        status = Text(planned.status, style=_STYLES[planned.status])
        why = Text("\n".join(planned.why))
        table.add_row(Text(planned.name), planned.step.step.name, status, planned.key[:12], why)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    for note in notes:
        console.print(Text(f"note: {note}"))
    counts = {status: sum(p.status == status for p in plan) for status in ("hit", "running", "resume", "run")}
    console.print(
        Text(
            ", ".join(
                f"{count} to {status}" if status in ("resume", "run") else f"{count} {status}"
                for status, count in counts.items()
                if count
            )
        )
    )


def show_result(out: Any, summary: Mapping[str, Any]) -> None:
    """What a verb made: its numbers, its results and its folder."""
    from posttrain.cli.results import show_results

    for line in summary_lines({name: value for name, value in summary.items() if name not in _TABLED}):
        typer.echo(line)
    show_results(out)
    typer.echo(str(out))


def summary_lines(summary: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A name and its value a line. A short mapping of plain values goes on one line, a longer one below its
    name; of a list of mappings the manifest has the rest.
    """
    for name, value in summary.items():
        whole = _shown(value)
        head = f"{indent}{name}"
        if whole is None or (isinstance(value, Mapping) and len(whole) > _WIDE):
            yield head
            yield from summary_lines(value, indent + "  ")
        else:
            yield f"{head:<24} {whole}"


def _shown(value: Any) -> str | None:
    """A value on one line; None for a mapping that holds more than plain values and lists."""
    if isinstance(value, Mapping):
        if any(isinstance(each, Mapping) and each for each in value.values()):
            return None
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        if any(isinstance(each, Mapping | list | tuple) for each in value):
            return f"{len(value)}, listed in manifest.json"
        return ", ".join(str(_shown(each)) for each in value) or "none"
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
