"""The live view of online training: what it draws, and that it does so in a real terminal and only there."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest
from kills import SCRIPT
from online_home import online_home
from rich.console import Console

from posttrain.records import Message, Prompt, Provenance, Response
from posttrain.training.rollout import Asked, Group, Scored
from posttrain.training.rollout_view import RolloutView, sparkline


def test_a_sparkline_by_hand():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 1, 3], width=2) == "▁█"  # means 0 and 2
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([1, 0]) == "█▁"


def drawn(view, width=80, height=30):
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=False).print(view)
    return out.getvalue()


def filled(text="It is 15."):
    view = RolloutView()
    for rollout, reward in ((1.0, 0.25), (1.0, 9.0), (2.0, 0.5)):  # the second step of a rollout says nothing
        view.add({"rollout": rollout, "reward": reward, "kl": 2 * rollout, "truncated": 0.25, "loss": 1.0})
    prompt = Prompt(messages=(Message(role="user", content="12 + 3?"),), provenance=Provenance(id="p"))
    answer = Scored(Response(text=text, token_ids=(1, 2), finish="stop"), 0.75)
    view.show([Group(Asked(prompt, (1,)), ()), Group(Asked(prompt, (1,)), (answer,))])
    return view


def test_it_shows_where_the_numbers_went_and_the_last_answer():
    lines = [line.split() for line in drawn(filled()).splitlines()]
    assert ["rollout", "2"] in lines
    assert ["reward", "0.5", "▁█", "0.25", "to", "0.5"] in lines
    assert ["KL", "4", "▁█", "2", "to", "4"] in lines
    assert ["truncated", "25%", "▁▁", "25%", "to", "25%"] in lines
    assert "the last answer: reward 0.75, 2 tokens\n  12 + 3?\n  It is 15.\n" in drawn(filled())
    assert filled().note() == "reward 0.5, KL 4, truncated 25%"


def test_an_alarm_is_seen():
    view = filled()
    view.add({"rollout": 3.0, "reward": 1.0, "gold": 0.1, "alarm": 1.0})
    assert "alarm: gold falls" in drawn(view)
    view.add({"rollout": 4.0, "reward": 1.0})  # not a rollout that is looked at
    assert "alarm: gold falls" in drawn(view)
    view.add({"rollout": 5.0, "reward": 1.0, "gold": 0.9, "alarm": 0.0})
    assert "alarm" not in drawn(view)


def test_nothing_in_an_answer_can_act():
    shown = drawn(filled("\x1b[2J[bold red]x[/] \x9b1m " + "long " * 500))
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "␛[2J[bold red]x[/] ⟦U+009B⟧1m" in shown
    assert len(shown.splitlines()) < 16
    assert shown.rstrip().endswith("…")


@pytest.mark.parametrize("height", [4, 12, 16, 24])
def test_it_leaves_room_for_the_bars(height):
    assert len(drawn(filled("word " * 200), width=40, height=height).splitlines()) <= max(height - 4, 4)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    online_home(home, "Say {}.", 4)
    return {
        "model": str(home / "base"), "method": "grpo", "batch_size": 4, "epochs": 6, "precision": "float32",
        "online": {
            "prompts": str(home / "prompts.jsonl"), "judge": "judges:Evens", "n": 4, "max_new_tokens": 4,
            "truncated": "judge", "monitor": {"judge": "judges:Odds"},
        },
    }  # fmt: skip


def environment(**more):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TERM": "xterm-256color", **more}


def test_in_a_real_terminal(cfg, tmp_path):
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [sys.executable, "-c", SCRIPT, json.dumps(cfg), str(tmp_path)]
    process = subprocess.Popen(command, env=environment(), stdin=child, stdout=child, stderr=child)
    os.close(child)
    said = bytearray()
    while True:
        try:
            part = os.read(parent, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(parent)
    text = said.decode()
    assert process.wait() == 0, text
    assert "\x1b[1A" in text  # drawn over, not again and again below
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    final = plain[plain.rindex("rollout 6") :]
    for name in ("reward", "gold", "KL", "entropy", "length", "truncated"):
        assert re.search(rf"{name} +\S+ +[▁▂▃▄▅▆▇█]{{6}} ", final), name
    assert re.search(r"the last answer: reward \S+, \d tokens", final)
    assert re.search(r"kill .*6/6 .*steps/s .*0:00:00", final)


def test_elsewhere_there_are_plain_lines(cfg, tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import posttrain.common.progress as p; p.EVERY = 0.0\n" + SCRIPT]
    found = subprocess.run(
        [*command, json.dumps(cfg), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in found.stderr
    assert "▁" not in found.stderr
    assert re.search(r"kill: 6/6, \S+ steps/s, 0 s left reward \S+, gold \S+, KL", found.stderr)
