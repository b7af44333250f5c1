"""Online training as it is seen in a terminal: where each number went, and an answer with its reward."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from posttrain.common.visible import seen

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

    from posttrain.training.rollout import Group, Scored

NAMES = {
    "reward": "reward",
    "gold": "gold",
    "kl": "KL",
    "entropy": "entropy",
    "response_tokens": "length",
    "truncated": "truncated",
}
SHARES = ("truncated",)
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24  # characters of a sparkline
LONGEST = 4_000  # characters of a prompt or an answer that are looked at to fill a few lines


@dataclass(frozen=True)
class Said:
    """A prompt, an answer to it, and what it earned."""

    prompt: str
    answer: Scored


@final
class RolloutView:
    """Remembers what each rollout gave; draws itself when rich asks, from whatever thread."""

    def __init__(self) -> None:
        self.rollout = 0.0
        self.alarm = False
        self.history: dict[str, list[float]] = {}
        self.said: Said | None = None

    def add(self, values: Mapping[str, float]) -> None:
        """Take note of a step's metrics; the several steps of one rollout count once."""
        number = values.get("rollout", 0.0)
        if number == self.rollout:
            return
        self.rollout = number
        self.alarm = bool(values.get("alarm", self.alarm))
        for name in NAMES:
            if name in values:
                self.history.setdefault(name, []).append(values[name])

    def show(self, groups: Sequence[Group]) -> None:
        """The first answer is the one to look at, good or bad."""
        self.said = next((Said(g.asked.prompt.text, g.answers[0]) for g in groups if g.answers), self.said)

    def note(self) -> str:
        """The last of each number, in a line."""
        latest = {name: values[-1] for name, values in self.history.items()}
        return ", ".join(f"{NAMES[name]} {written(name, latest[name])}" for name in NAMES if name in latest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if not self.history:
            return
        lines = len(self.history) + 1
        yield Text(f"rollout {self.rollout:.0f}", style="bold")
        yield self._numbers()
        room = min(4, (console.size.height - lines - 8) // 2)
        if self.said is not None and room > 0:
            yield from _sample(self.said, console, options.max_width, room)

    def _numbers(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=9)
        table.add_column(justify="right", min_width=7)
        for name in NAMES:
            values = self.history.get(name)
            if values:
                ends = f"{written(name, min(values))} to {written(name, max(values))}"
                last = Text("alarm: gold falls, the reward does not", style="bold red")
                table.add_row(
                    Text(NAMES[name], style="dim"),
                    written(name, values[-1]),
                    Text(sparkline(values), style="cyan"),
                    last if name == "gold" and self.alarm else Text(ends, style="dim"),
                )
        return table


def _sample(said: Said, console: Console, width: int, room: int) -> list[Text]:
    """Prompt and answer in at most `room` lines each; markup and escape sequences in them are text."""
    from rich.text import Text

    answer = said.answer
    tokens = len(answer.response.token_ids or ())
    cut = "" if answer.response.finish == "stop" else ", cut off"
    head = f"the last answer: reward {answer.reward:.3g}, {tokens} tokens{cut}"
    found = [Text(head, style="dim")]
    for text, style in ((said.prompt, "dim"), (answer.response.text, "")):
        lines = Text(seen(text[:LONGEST]).strip() or "(nothing)").wrap(console, max(width - 2, 8))
        for line in lines[:room]:
            line.pad_left(2)
            line.stylize(style)
            found.append(line)
        if len(lines) > room:
            found[-1].append(" …")
    return found


def written(name: str, value: float) -> str:
    """A number as it stands in the view."""
    return f"{value:.0%}" if name in SHARES else f"{value:.3g}"


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The whole course in at most `width` signs, each the mean of its part, from the least to the most."""
    parts = min(width, len(values))
    cuts = [len(values) * i // parts for i in range(parts + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, span = min(means), max(means) - min(means)
    if not span > 0:
        return BARS[0] * parts
    return "".join(BARS[min(int((mean - low) / span * len(BARS)), len(BARS) - 1)] for mean in means)
