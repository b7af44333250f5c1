"""`posttrain inspect` and `posttrain chat`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from posttrain.cli.output import command

SET = Annotated[
    list[str] | None, typer.Option("--set", help="Set any other setting, e.g. top_p=0.9.", metavar="A=C")
]


def register(app: typer.Typer) -> None:
    app.command(
        "inspect", epilog="Example: posttrain inspect --model Qwen/Qwen3-0.6B --data demos.jsonl --n 3"
    )(inspect)
    app.command(epilog="Example: posttrain chat --model runs/dpo --set temperature=0.7")(chat)


def _settings(sets: list[str] | None) -> dict[str, Any]:
    from posttrain.flow.overrides import parse_overrides, set_at

    settings: dict[str, Any] = {}
    for override in parse_overrides(sets or []):
        set_at(settings, override.path, override.value, override.place)
    return settings


@command
def inspect(
    model: Annotated[str, typer.Option("--model", "-m", help="A folder or hub id.", show_default=False)],
    data: Annotated[str, typer.Option("--data", "-d", help="A file or folder of rows.", show_default=False)],
    n: Annotated[int, typer.Option("--n", help="How many rows to show.", min=0)] = 3,
    method: Annotated[
        str | None, typer.Option("--method", help="The objective; where not given, each row's kind decides.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="A name, file or text in place of the tokenizer's.")
    ] = None,
) -> None:
    """Show what would be trained on: rows with the supervised tokens in colour, and the template checks."""
    from posttrain.flow.source import parse_value
    from posttrain.training.inspection import inspect_data

    chosen = parse_value(method, "--method") if method else None
    inspect_data(model, data, n, chosen, chat_template=chat_template)


@command
def chat(
    model: Annotated[str, typer.Option("--model", "-m", help="A folder or hub id.", show_default=False)],
    system: Annotated[str | None, typer.Option("--system", help="The system turn.")] = None,
    sets: SET = None,
) -> None:
    """Talk to a model."""
    from posttrain.engines.chat import chat as talk

    given = {"model": model} | ({} if system is None else {"system": system})
    talk(**given | _settings(sets))
