"""A server that takes the connection and never gives a whole answer: who waits for it is told so, in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from http_engine import PROMPTS, impatient, run  # noqa: F401
from llm_questions import ONE, PAIR, opened

from posttrain.common.config import parse
from posttrain.engines.server import ServerError
from posttrain.feedback.fact_llm import LlmGrader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
HASTE = {"timeout_s": 0.3, "retries": 1}
TOLD = r"http://127\.0\.0\.1:\d+/v1, model '.*': gave no whole answer within timeout_s, 0\.3 s \(2 attempts\)"


def mute(connection: socket.socket) -> None:
    """Reads, and says nothing."""
    while connection.recv(65536):
        pass


def halting(connection: socket.socket) -> None:
    """Begins an answer and says no more."""
    connection.sendall(HEAD + b'{"id": ')
    mute(connection)


def dripping(connection: socket.socket) -> None:
    """Begins an answer that grows for ever, a blank at a time."""
    connection.sendall(HEAD)
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


@contextmanager
def hanging(how: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[float]]]:
    """A server on a free port of this machine: (base_url, when it was asked)."""
    asked: list[float] = []

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                how(connection)
            except OSError:
                pass  # the client has gone

    def take(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            asked.append(time.monotonic())
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=take, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", asked
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("how", [mute, halting, dripping])
def test_a_judge_that_hangs_is_given_up_and_told(tmp_path, how):
    began = time.monotonic()
    with hanging(how) as (url, asked), pytest.raises(ServerError, match=TOLD):
        opened(tmp_path, url, **HASTE).score(ONE)
    assert len(asked) == 2
    assert 0.6 <= time.monotonic() - began < 10


def test_so_are_a_judge_of_pairs_a_grader_and_an_engine(tmp_path):
    with hanging(dripping) as (url, _):
        with pytest.raises(ServerError, match=TOLD):
            opened(tmp_path, url, ask="compare", **HASTE).compare(PAIR)
        grader = parse(LlmGrader, {"name": "llm", "base_url": url, "model": "m", **HASTE}, "test").open()
        prompt, response = ONE[0]
        with pytest.raises(ServerError, match=TOLD):
            grader.grade([(prompt.model_copy(update={"reference": "x"}), response)])
        with pytest.raises(ServerError, match=TOLD):
            run(tmp_path, url, PROMPTS[:1], HASTE)
