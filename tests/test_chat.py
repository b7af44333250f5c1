"""Chat: turns, commands, streaming, and what happens when somebody presses Ctrl-C."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_folder, tiny_tokenizer

from posttrain.common.errors import ConfigError
from posttrain.engines.chat import chat, talk
from posttrain.engines.conversation import Conversation, pieces
from posttrain.engines.protocol import SamplingParams
from posttrain.models.template import ChatTemplate


class Echo:
    """Answers with the number of user turns in its prompt. asked: the prompts, as text."""

    def __init__(self, template: ChatTemplate, interrupt_after: int | None = None) -> None:
        self.template = template
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.interrupt_after = interrupt_after

    def stream(self, prompt, params) -> Iterator[int]:
        text = self.template.tokenizer.decode(prompt)
        self.asked.append(text)
        self.seeds.append(params.seed)
        if "silence" in text:
            yield self.template.stop_ids[0]
            return
        if "too long" in text:
            raise ConfigError("the model takes 10")
        answer = f"answer {text.count('<|im_start|>user')}"
        ids = self.template.tokenizer(answer, add_special_tokens=False)["input_ids"]
        for i, token in enumerate(ids):
            if i == self.interrupt_after:
                raise KeyboardInterrupt
            yield token
        if "cut" not in text:
            yield self.template.stop_ids[0]


def converse(*lines: str, system: str | None = None, interrupt_after: int | None = None):
    template = ChatTemplate(tiny_tokenizer(), "chatml")
    conversation = Conversation(Echo(template, interrupt_after), template, SamplingParams(), system)
    out, hints = io.StringIO(), io.StringIO()
    talk(conversation, [line + "\n" for line in lines], out, hints)
    return conversation, out.getvalue(), hints.getvalue()


def test_turns_add_up():
    conversation, out, hints = converse("hello", "", "and again")
    assert out == "answer 1\nanswer 2\n"
    assert hints == ""
    assert [(turn.role, turn.text) for turn in conversation.turns] == [
        ("user", "hello"),
        ("assistant", "answer 1"),
        ("user", "and again"),
        ("assistant", "answer 2"),
    ]
    expected = conversation.template.render(conversation.turns[:3], generation=True)
    assert conversation.engine.asked[1] == expected


def test_reset_forgets_all_but_the_system_turn():
    conversation, out, _ = converse("one", "/reset", "two", system="Be brief.")
    assert out == "answer 1\nanswer 1\n"
    assert "one" not in conversation.engine.asked[1]
    assert "Be brief." in conversation.engine.asked[1]


def test_system_begins_anew_and_can_be_taken_away():
    conversation, _, _ = converse("one", "/system You are a poet.", "two", "/system", "three")
    assert "You are a poet." in conversation.engine.asked[1]
    assert "one" not in conversation.engine.asked[1]
    assert "system" not in conversation.engine.asked[2]


def test_regen_answers_the_same_question_with_another_seed():
    conversation, out, _ = converse("one", "two", "/regen")
    assert out == "answer 1\nanswer 2\nanswer 2\n"
    assert conversation.engine.asked[1] == conversation.engine.asked[2]
    assert conversation.engine.seeds == [0, 1, 2]
    assert len(conversation.turns) == 4


def test_quit_leaves():
    _, out, _ = converse("one", "/quit", "two")
    assert out == "answer 1\n"


def test_ctrl_c_stops_the_answer_and_not_the_program():
    conversation, out, hints = converse("one", "two", interrupt_after=2)
    assert hints == "(stopped)\n(stopped)\n"
    first, second = out.splitlines()
    assert "answer 1".startswith(first)
    assert 0 < len(first) < len("answer 1")
    assert [turn.text for turn in conversation.turns] == ["one", first, "two", second]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/rest", "no command '/rest'"),
        ("/regen", "nothing has been asked yet"),
        ("this is too long", "the model takes 10"),
        ("half \ufffd character", "U+FFFD"),
    ],
)
def test_a_mistake_is_said_and_the_talk_goes_on(line, hint):
    conversation, out, hints = converse(line, "hello")
    assert hint in hints
    assert "Value error" not in hints
    assert out.strip() == "answer 1"
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]


def test_a_question_without_an_answer_is_forgotten():
    conversation, out, _ = converse("silence", "hello")
    assert out == "\nanswer 1\n"
    assert len(conversation.turns) == 2


def test_an_answer_that_ran_out_of_tokens_says_so():
    assert "cut off" in converse("cut")[2]
    assert "cut off" not in converse("whole")[2]


@given(st.text(alphabet="aé漢🙂 \n", max_size=20))
def test_pieces_are_whole_characters_and_add_up(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = list(pieces(ids, tokenizer.decode))
    assert "".join(said) == text
    assert not any("\ufffd" in piece for piece in said)


def test_what_never_becomes_a_character_is_shown_at_the_end():
    tokenizer = tiny_tokenizer()
    half = tokenizer("漢", add_special_tokens=False)["input_ids"][:1]
    assert list(pieces(half, tokenizer.decode)) == ["\ufffd"]


def test_settings_are_checked_before_the_model_is_loaded():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        chat("no/such-model", temprature=1)
    with pytest.raises(ConfigError, match="temperature"):
        chat("no/such-model", temperature=-1)


def test_a_pipe_gets_one_answer_a_line(tmp_path):
    """A program of its own: what a shell pipes in comes out answered, and stdout holds the answers alone."""
    folder = tiny_folder("llama", tmp_path / "m")
    code = (
        "from posttrain.engines.chat import chat; "
        f"chat({str(folder)!r}, temperature=0, max_new_tokens=5, precision='float32')"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"hi\n/reset\nhi\nb\xe4d\n",
        capture_output=True,
        env=env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode()
    assert len(out) > 2
    assert out[: len(out) // 2] == out[len(out) // 2 :]  # greedy, and /reset leaves nothing behind
    assert "U+FFFD" in done.stderr.decode()
