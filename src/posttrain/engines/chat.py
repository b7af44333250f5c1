"""Talk to a model in the terminal, or through a pipe: a line in, an answer out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterable, Iterator
from io import TextIOWrapper
from typing import IO, Any

from pydantic import ValidationError

from posttrain.common.config import Config, parse
from posttrain.common.errors import PosttrainError
from posttrain.engines.conversation import Conversation
from posttrain.engines.protocol import SamplingParams
from posttrain.formats.rejects import row_error
from posttrain.models.precision import Precision, pick_device, pick_dtype
from posttrain.models.spec import SpecField

HELP = """\
/reset          forget the conversation
/regen          another answer to the last question
/system TEXT    begin anew with this system turn (without TEXT: with none)
/help           this list
/quit           leave (as does Ctrl-D); Ctrl-C stops an answer
"""


class ChatConfig(Config):
    """Who is talked to, and how answers are drawn (see SamplingParams).

    model: a folder, hub id or `@step`, or a mapping (ModelSpec). system: the system turn.
    """

    model: SpecField
    system: str | None = None
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    max_new_tokens: int = 512
    seed: int = 0
    precision: Precision = "auto"
    device: str = "auto"

    @property
    def params(self) -> SamplingParams:
        names = SamplingParams.model_fields.keys() & type(self).model_fields
        return parse(SamplingParams, {name: getattr(self, name) for name in names}, "chat")


def chat(model: Any, **settings: Any) -> None:
    """Load a model and talk to it until the input ends. settings: the fields of ChatConfig.

    Lines are read from stdin and answers written to stdout; greetings, hints and errors go to stderr.
    Raises ConfigError for settings that do not hold or a model that cannot be found.
    """
    cfg = parse(ChatConfig, {"model": model, **settings}, "chat")
    params = cfg.params  # wrong numbers are refused before the model is loaded
    from posttrain.engines.local import LocalEngine
    from posttrain.models.load import load_model

    device = pick_device(cfg.device)
    loaded = load_model(cfg.model, dtype=pick_dtype(cfg.precision, device), device=device)
    conversation = Conversation(LocalEngine(loaded), loaded.template, params, cfg.system)
    talk(conversation, _lines(sys.stdin, sys.stderr), sys.stdout, sys.stderr)


def talk(conversation: Conversation, lines: Iterable[str], out: IO[str], hints: IO[str]) -> None:
    """Answer every line until they end or one is /quit. A mistake is said, and the talk goes on."""
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if text == "/quit":
            return
        if text == "/help":
            hints.write(HELP)
            continue
        try:
            answer = _command(conversation, text) if text.startswith("/") else conversation.ask(text)
            if answer is not None:
                _say(conversation, answer, out, hints)
        except ValidationError as e:
            hints.write(f"{row_error(e).reason}\n")
        except (PosttrainError, ValueError) as e:
            hints.write(f"{e}\n")
        hints.flush()


def _command(conversation: Conversation, text: str) -> Generator[str] | None:
    """Do what a line that begins with / says; the answer it asks for, if it asks for one."""
    name, _, rest = text.partition(" ")
    if name == "/reset":
        conversation.reset()
    elif name == "/system":
        conversation.set_system(rest)
    elif name == "/regen":
        return conversation.again()
    else:
        raise ValueError(f"no command '{name}'; a line that begins with / is a command:\n{HELP}")
    return None


def _say(conversation: Conversation, answer: Generator[str], out: IO[str], hints: IO[str]) -> None:
    """Write an answer as it comes; Ctrl-C ends the answer, and what was said so far is kept."""
    stopped = False
    with contextlib.closing(answer):
        try:
            for piece in answer:
                out.write(piece)
                out.flush()
        except KeyboardInterrupt:
            stopped = True
    out.write("\n")
    out.flush()
    if stopped:
        hints.write("(stopped)\n")
    elif conversation.cut_off:
        hints.write("(cut off: raise max_new_tokens, or /reset where the context is full)\n")


def _lines(source: IO[str], hints: IO[str]) -> Iterator[str]:
    """Lines to answer: typed ones with a prompt and a history, or those of a pipe."""
    if not source.isatty():
        if isinstance(source, TextIOWrapper):
            source.reconfigure(errors="replace")  # damage is then found, and named, where turns are checked
        yield from source
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its editing)
    hints.write(HELP)
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            hints.write("\n(/quit or Ctrl-D to leave)\n")
        except EOFError:
            hints.write("\n")
            return
