"""A small real HTTP server that answers, or fails to, as a test tells it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. drop: close the connection instead. wait_s: before anything is said."""

    body: bytes | dict[str, Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    wait_s: float = 0.0


@dataclass
class Seen:
    """What was asked of the server: bodies and headers, and how many requests it held at once at most."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(
    text: str | None, finish: str = "stop", tokens: int = 3, prompt: int = 10, **choice: Any
) -> Answer:
    """A chat completion as OpenAI's interface has it."""
    said = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **choice}
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    return Answer({"id": "x", "object": "chat.completion", "choices": [said], "usage": usage})


def echo(body: dict[str, Any]) -> Answer:
    """Says the last message and the seed again."""
    return completion(f"{body['messages'][-1]['content']} #{body.get('seed')}")


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer] = echo) -> Iterator[tuple[str, Seen]]:
    """A server on a free port of this machine: (base_url, what it has seen)."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with seen.lock:
                seen.bodies.append(body)
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                seen.at_once += 1
                seen.most_at_once = max(seen.most_at_once, seen.at_once)
            try:
                said = answer(body)
                time.sleep(said.wait_s)
                self._say(said)
            finally:
                with seen.lock:
                    seen.at_once -= 1

        def _say(self, said: Answer) -> None:
            if said.drop:
                self.close_connection = True
                self.connection.close()
                return
            payload = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def in_turn(*answers: Answer | Callable[[dict[str, Any]], Answer]) -> Callable[[dict[str, Any]], Answer]:
    """One answer after another, the last one for ever."""
    left = list(answers)
    lock = threading.Lock()

    def say(body: dict[str, Any]) -> Answer:
        with lock:
            found = left.pop(0) if len(left) > 1 else left[0]
        return found if isinstance(found, Answer) else found(body)

    return say
