"""How an LLM judge is asked, and asked again, until it has given grades or used up its attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

from pydantic import Field, model_validator

from posttrain.common.config import Config, Input, Runtime
from posttrain.engines.chat_replies import NoReply, Reply
from posttrain.engines.openai_client import ChatClient
from posttrain.engines.server import Request
from posttrain.feedback.llm_replies import Grades, Unreadable, read_grades
from posttrain.feedback.llm_rubric import RUBRIC, Ask, Aspect, schema, template_for
from posttrain.records import row_id

_SHOWN = 4000  # characters of an unreadable answer that the judge is shown again


class Asking(Config):
    """What a judge is asked, and what becomes of its grades (see docs/llm-judge.md).

    rubric: the aspects to grade. template: the question in your own words, as text or a file; it has the
    places {prompt}, {response} (or {first} and {second}) and {format}, and may have {rubric} and {reference}.
    ask: "score" shows the judge each response alone, "compare" two of them, of which it grades both.
    by: what counts: "mean" of the aspects, one of them, or weights `{aspect: number}` of their sum.
    orders: 2 shows each pair both ways round, 1 only as it comes. both_agree: a preference only where both
    orders favour the same response; else the mean of what they say.
    repeats: how often each question is asked; scores and probabilities are means over the answers.
    attempts: how often a question is asked whose answer cannot be read; then it has none.
    structured: how the form of the answer is asked of the server; None leaves it to the text alone.
    max_new_tokens, temperature: of the judge; temperature None sends none. length_field: as of the engine
    `http`. seed: of the judge's draws; sent as well where send_seed.
    """

    rubric: tuple[Aspect, ...] = Field(RUBRIC, min_length=1)
    template: Annotated[str, Input("text")] | None = None
    ask: Ask = "score"
    by: str | dict[str, float] = "mean"
    orders: Literal[1, 2] = 2
    both_agree: bool = True
    repeats: int = Field(1, ge=1)
    attempts: int = Field(3, ge=1)
    structured: Literal["json_schema", "json_object"] | None = "json_schema"
    max_new_tokens: int = Field(1024, ge=1)
    temperature: float | None = Field(0.0, ge=0)
    length_field: Annotated[Literal["max_completion_tokens", "max_tokens"], Runtime()] = (
        "max_completion_tokens"
    )
    seed: int = 0
    send_seed: bool = True

    @model_validator(mode="after")
    def _whole(self) -> Asking:
        names = [aspect.name for aspect in self.rubric]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the rubric has '{twice[0]}' twice")
        named = [self.by] if isinstance(self.by, str) else list(self.by)
        unknown = [name for name in named if name not in names and self.by != "mean"]
        if unknown or not named:
            raise ValueError(f"by: '{(unknown or [''])[0]}' is no aspect of the rubric: {', '.join(names)}")
        if self.by == "mean" and len({(aspect.low, aspect.high) for aspect in self.rubric}) > 1:
            raise ValueError("a mean of grades on different scales means nothing; give `by` weights")
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError("repeats at temperature 0 all say the same; set temperature")
        idle = {"orders", "both_agree"} & self.model_fields_set
        if self.ask == "score" and idle:
            raise ValueError(f"'{min(idle)}' is set, but nothing is compared; leave it out, or ask: compare")
        if self.orders == 1 and "both_agree" in self.model_fields_set:
            raise ValueError("'both_agree' is set, but there is one order; leave it out")
        if not (self.template or "").startswith("@"):  # what a step has yet to make is looked at later
            template_for(self.ask, self.template)
        return self

    def value(self, grades: Mapping[str, float]) -> float:
        """The one number that grades by aspect come to."""
        if self.by == "mean":
            return round(sum(grades.values()) / len(grades), 9)
        if isinstance(self.by, str):
            return float(grades[self.by])
        return round(sum(weight * grades[name] for name, weight in self.by.items()), 9)


@dataclass(frozen=True)
class Question:
    """text: what the judge reads. draw: which of several answers to it is wanted."""

    text: str
    draw: int


@final
class Asker:
    """Asks questions of one server. asked_again: answers that could not be read and were asked for again, so
    far.
    """

    def __init__(self, cfg: Asking, client: ChatClient) -> None:
        self.cfg, self.client = cfg, client
        self.asked_again = 0

    def grades(self, questions: Sequence[Question]) -> list[tuple[Grades, ...] | str]:
        """For each question the grades, of one response or of two, or why there are none.

        Raises OutOfBudget or ServerError; what was answered is kept.
        """
        found: dict[int, tuple[Grades, ...] | str] = {}
        open_: dict[int, list[dict[str, str]]] = {
            i: [{"role": "user", "content": question.text}] for i, question in enumerate(questions)
        }
        for attempt in range(self.cfg.attempts):
            if not open_:
                break
            self.asked_again += len(open_) if attempt else 0
            requests = [self._request(messages, questions[i].draw) for i, messages in open_.items()]
            replies = self.client.ask_all(requests, "judge" if not attempt else "judge again")
            again = {}
            for (i, messages), reply in zip(open_.items(), replies, strict=True):
                read = self._read(reply)
                if isinstance(reply, Reply) and isinstance(read, str):
                    again[i] = [*messages, *_told(reply, read)]
                found[i] = read
            open_ = again
        return [found[i] for i in range(len(questions))]

    def _read(self, reply: Reply | NoReply) -> tuple[Grades, ...] | str:
        if isinstance(reply, NoReply):
            return reply.reason
        try:
            return read_grades(reply.text, self.cfg.rubric, self.cfg.ask)
        except Unreadable as e:
            return "unreadable: cut off" if reply.finish == "length" else f"unreadable: {e}"

    def _request(self, messages: Sequence[dict[str, str]], draw: int) -> Request:
        cfg = self.cfg
        body: dict[str, Any] = {"messages": list(messages), cfg.length_field: cfg.max_new_tokens}
        if cfg.temperature is not None:
            body["temperature"] = cfg.temperature
        if cfg.send_seed:
            body["seed"] = int(row_id(cfg.seed, draw), 16) % 2**31
        if cfg.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        if cfg.structured == "json_schema":
            grades = {"name": "grades", "strict": True, "schema": schema(cfg.rubric, cfg.ask)}
            body["response_format"] = {"type": "json_schema", "json_schema": grades}
        return Request(body, cfg.max_new_tokens, f"{cfg.seed}/{draw}")


def _told(reply: Reply, why: str) -> list[dict[str, str]]:
    """The answer that could not be read, and what was wrong with it: at temperature 0 the bare question would
    only be answered as before.
    """
    said = reply.text[:_SHOWN].encode("utf-8", "replace").decode()
    wrong = f"This could not be used ({why}). Answer again: the JSON object as asked for, and nothing else."
    return [{"role": "assistant", "content": said}, {"role": "user", "content": wrong}]
