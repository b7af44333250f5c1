"""The oracle behind an OpenAI-compatible chat server on this machine: an LLM judge whose errors have a chosen
size.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final

from pydantic import Field

from posttrain.common.config import Config
from posttrain.feedback.llm_rubric import FAULTS, SIDES, Aspect, conversation
from posttrain.playground.oracle import grade
from posttrain.playground.world import rng_for
from posttrain.records import Prompt, Response

_PLACE = re.compile(r"<(prompt|response|first|second)-([0-9a-f]{8})>\n(.*?)\n</\1-\2>", re.DOTALL)
_CHARS = 4  # of a token, where one must be counted


class Errors(Config):
    """How a judge errs. All but unreadable and refused are in points of a grade.

    noise: standard deviation of what is added to each grade before it is rounded to the scale.
    position_bias: what the first of two gains over the second. unreadable: share of answers that are no JSON.
    refused: share of questions that the judge declines to answer.
    """

    noise: float = Field(0.0, ge=0)
    position_bias: float = 0.0
    unreadable: float = Field(0.0, ge=0, le=1)
    refused: float = Field(0.0, ge=0, le=1)


@final
class JudgeServer:
    """Serves from its making until `close`. It grades answers to the prompts it was told of (`know`).

    What it says depends on the seed and the question (its text and its seed) alone.
    """

    def __init__(self, rubric: Sequence[Aspect], errors: Errors, seed: int = 0) -> None:
        self.rubric, self.errors, self.seed = rubric, errors, seed
        self.prompts: dict[str, Prompt] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def know(self, prompts: Iterable[Prompt]) -> None:
        """Learn which question of the world each text is, as the oracle must."""
        self.prompts |= {conversation(prompt): prompt for prompt in prompts}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the reply to a chat completion's request."""
        text = body["messages"][0]["content"]
        found = {name: inner for name, _, inner in _PLACE.findall(text)}
        prompt = self.prompts.get(found.get("prompt", ""))
        sides = [found[side] for side in ("response", *SIDES) if side in found]
        if prompt is None or not sides:
            return 400, {"error": {"message": "the oracle knows no such prompt, or finds no answer to it"}}
        rng = rng_for(self.seed, "llm judge", body.get("seed"), len(body["messages"]), text)
        said = self._said(prompt, sides, rng)
        usage = {"prompt_tokens": len(text) // _CHARS, "completion_tokens": len(said or "") // _CHARS}
        message = {"role": "assistant", "content": said, "refusal": None if said else "I would rather not."}
        return 200, {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }

    def _said(self, prompt: Prompt, sides: Sequence[str], rng: random.Random) -> str | None:
        luck = rng.random()
        if luck < self.errors.refused:
            return None
        if luck < self.errors.refused + self.errors.unreadable:
            return "Both have their merits."
        bias = self.errors.position_bias / 2 if len(sides) == 2 else 0.0
        graded = [
            self._graded(prompt, side, shift, rng) for side, shift in zip(sides, (bias, -bias), strict=False)
        ]
        return json.dumps(graded[0] if len(graded) == 1 else dict(zip(SIDES, graded, strict=True)))

    def _graded(self, prompt: Prompt, text: str, shift: float, rng: random.Random) -> dict[str, Any]:
        """The true grades with noise and shift, rounded and held within the scale."""
        true = true_shares(prompt, text)
        grades: dict[str, Any] = {FAULTS: "none" if min(true.values()) == 1 else "not the best there is"}
        for aspect in self.rubric:
            share = true.get(aspect.name, true["overall"])
            latent = aspect.low + (aspect.high - aspect.low) * share + shift + rng.gauss(0, self.errors.noise)
            grades[aspect.name] = min(max(round(latent), aspect.low), aspect.high)
        return grades


def true_shares(prompt: Prompt, text: str) -> dict[str, float]:
    """What the oracle knows of an answer, in [0, 1], under the names of the default rubric's aspects;
    "overall" is for any other.
    """
    found = grade(prompt, Response(text=text or " ", token_ids=(0,)))
    manner = sum(found.manner.values()) / len(found.manner)
    return {"accuracy": found.correct, "style": found.clean, "detail": manner, "overall": found.score}


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # headers and body in one packet: in two, the second waits for the first to be acknowledged
        wbufsize = -1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, said = server.answer(body)
            payload = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
