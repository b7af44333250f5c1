"""Candidates for bogus questions: made of real ones by a model, or read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import field_validator

from posttrain.common.config import Input
from posttrain.common.step import StepContext
from posttrain.feedback.fact_grades import ANSWERABLE
from posttrain.feedback.knowledge.asking import Asked, ask
from posttrain.feedback.knowledge.probed import TAG
from posttrain.feedback.llm_rubric import text_of, with_places
from posttrain.formats.read import read_records
from posttrain.records import Message, Prompt, Provenance, Response, prompt_key, row_id

REAL = "real"  # the tag of a bogus question that has the text of the real one
PLACE = "{question}"
TEMPLATE = """Here is a question of fact:

{question}

Write another one that looks just like it and that nobody can answer, because what it asks about does not
exist: put an invented name, title, event or thing in the place of the one it is about, so that it sounds
plausible. Do not make it absurd, and do not say that it is invented.

Answer with the new question alone, on one line."""
LONGEST = 400  # characters of a question
_QUOTES = "\"'“”‘’`* "


@dataclass(frozen=True)
class Candidate:
    """number: its line, or that of the real question it was made of. words: what was decided about it."""

    number: int
    prompt: Prompt
    words: tuple[str, ...] = field(default=())

    @property
    def text(self) -> str:
        return self.prompt.text

    def noted(self, words: str) -> Candidate:
        return replace(self, words=(*self.words, words))

    def chosen(self, words: str) -> Prompt:
        """The prompt, whose provenance says why it was kept."""
        makers = self.prompt.provenance.makers | {"choice": ", ".join((*self.words, words))}
        provenance = self.prompt.provenance.model_copy(update={"makers": makers})
        return self.prompt.model_copy(update={"provenance": provenance})


Drop = Callable[[Candidate, str, str], None]


class Writer(Asked):
    """Who writes bogus questions, as of `sample`; n of them a question. template: what is asked, as text or a
    file, with the place {question}; the reply must be the new question alone, on one line.
    """

    template: Annotated[str, Input("text")] = TEMPLATE

    @field_validator("template")
    @classmethod
    def _has_place(cls, template: str) -> str:
        if not template.startswith("@"):
            with_places(template, ("question",))
        return template


def request(template: str, question: str) -> Message:
    """What a writer is asked to do with a real question."""
    return Message(role="user", content=text_of(template).replace(PLACE, question))


def written(
    writer: Writer, questions: str, ctx: StepContext, drop: Drop
) -> tuple[list[Candidate], dict[str, Any]]:
    """What the writer made of real questions, and what `sample` tells of it."""
    real: dict[str, tuple[int, Prompt]] = {}
    for number, prompt in enumerate(read_records(questions, Prompt), 1):
        real.setdefault(prompt_key(prompt), (number, prompt))
    requests = [_request(writer, prompt) for _, prompt in real.values()]
    rows, summary = ask(writer, requests, ctx, "writing")
    answers = {prompt_key(row.prompt): row for row in rows}
    found: list[Candidate] = []
    for (number, prompt), asked in zip(real.values(), requests, strict=True):
        row = answers.get(prompt_key(asked))
        if row is None:
            drop(Candidate(number, prompt), "no_reply", "the writer gave none")
            continue
        for response in row.responses:
            maker = row.provenance.makers.get("response", row.model)
            text = read_question(response)
            if text is None:
                drop(Candidate(number, prompt), "unreadable", f"the writer said {response.text[:200]!r}")
            else:
                found.append(Candidate(number, _bogus(prompt, text, maker, row.provenance.id)))
    return list(_new(found, set(real), drop)), summary


def given(path: str, drop: Drop) -> list[Candidate]:
    """Bogus questions that were made elsewhere."""
    prompts = read_records(path, Prompt)
    found = [
        Candidate(number, prompt.model_copy(update={"tags": prompt.tags | {ANSWERABLE: "no"}}))
        for number, prompt in enumerate(prompts, 1)
    ]
    return list(_new(found, set(), drop))


def read_question(response: Response) -> str | None:
    """The one line that a reply is; None for any other."""
    text = response.text.strip().strip(_QUOTES)
    if response.finish == "length" or not text or "\n" in text or len(text) > LONGEST:
        return None
    return text


def _request(writer: Writer, prompt: Prompt) -> Prompt:
    provenance = Provenance(
        id=row_id("bogus", prompt.provenance.id, writer.template), parents=(prompt.provenance.id,)
    )
    return Prompt(messages=(request(writer.template, prompt.text),), provenance=provenance)


def _bogus(real: Prompt, text: str, maker: str, parent: str) -> Prompt:
    kept = {name: value for name, value in real.tags.items() if name not in ("references", TAG)}
    return Prompt(
        messages=(*real.messages[:-1], Message(role="user", content=text)),
        tags=kept | {ANSWERABLE: "no", REAL: real.text},
        provenance=Provenance(
            id=row_id("bogus", parent, text),
            source=real.provenance.source,
            licence=real.provenance.licence,
            makers={"prompt": maker},
            parents=(real.provenance.id, parent),
        ),
    )


def _new(candidates: Iterable[Candidate], seen: set[str], drop: Drop) -> Iterator[Candidate]:
    """Those that are no question seen before."""
    for candidate in candidates:
        key = prompt_key(candidate.prompt)
        if key in seen:
            drop(candidate, "repeated", "a real question, or a candidate before it, is the same")
        else:
            seen.add(key)
            yield candidate
