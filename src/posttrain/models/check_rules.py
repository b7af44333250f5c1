"""The rules by which a chat template is checked against rows, one function each, run by `check_template`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from posttrain.common.errors import DataError
from posttrain.models.load_tokenizer import tokenizer_hash
from posttrain.models.template import ChatTemplate, Turns
from posttrain.records import Comparison, Message, Prompt, Response

Severity = Literal["error", "warning"]

PREFIX = "the prompt is a prefix of the whole conversation"
WORDS = "the supervised tokens are what the assistant says"
STOP = "the token that ends a response is supervised and ends generation"
BOS = "the text begins with one BOS token, where the tokenizer has it so"
PAD = "the padding token ends nothing"
EARLIER = "earlier turns stay as they were written"
MERGE = "no token reaches across the start of the response"
UNKNOWN = "no unknown tokens"
CONTROL = "no control tokens in the data"
ACCEPTED = "the template takes every conversation"
EXACT = "token ids in the data are this tokenizer's"
DATE = "the template writes the same every day"
CHECKS = (ACCEPTED, PREFIX, WORDS, STOP, EARLIER, EXACT, BOS, PAD, MERGE, UNKNOWN, CONTROL, DATE)

MAX_UNKNOWN = 0.1  # share of tokens from which the tokenizer is plainly another language's


@dataclass(frozen=True)
class Problem:
    """check: one of CHECKS. message: what is wrong, how often, what to do. example: where it was seen."""

    check: str
    severity: Severity
    message: str
    example: str = ""


@dataclass
class Sample:
    """What the rows come to.

    spoken: every response after its prompt; exact: pairs whose prompts are token ids already; texts: all
    words; refused: prompts that the template does not take, with its reason.
    """

    prompts: list[Prompt] = field(default_factory=list)
    spoken: list[tuple[Prompt, Response]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    refused: list[tuple[Prompt, str]] = field(default_factory=list)
    exact: list[Comparison] = field(default_factory=list)

    @property
    def written(self) -> list[tuple[Prompt, Response]]:
        """Responses that are text, to be tokenised here."""
        return [(prompt, response) for prompt, response in self.spoken if response.token_ids is None]


def accepted(sample: Sample) -> Iterator[Problem]:
    if sample.refused:
        prompt, reason = sample.refused[0]
        every = not sample.prompts
        share = _of(sample.refused, [*sample.prompts, *sample.refused])
        message = f"{share} conversations cannot be rendered: {reason}"
        yield Problem(ACCEPTED, "error" if every else "warning", message, prompt.provenance.id)


def prefix(template: ChatTemplate, written: list[tuple[Prompt, Response]]) -> Iterator[Problem]:
    broken = []
    for prompt, response in written:
        if not _is_prefix(template, prompt, response):
            broken.append((prompt, response))
    if broken:
        before = template.render(broken[0][0].messages, generation=True)
        whole = template.render(_with(*broken[0]))
        at = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
        yield Problem(
            PREFIX,
            "error",
            f"in {_of(broken, written)} conversations what the model is asked with is not what stands before "
            "its "
            "answer afterwards; mend the template's generation prompt",
            f"asked with …{before[max(0, at - 20) :]!r}, afterwards …{whole[max(0, at - 20) : at + 40]!r}",
        )


def words(template: ChatTemplate, written: list[tuple[Prompt, Response]]) -> Iterator[Problem]:
    wrong = []
    unk = template.tokenizer.unk_token_id
    for prompt, response in written:
        ids = template.response(prompt.messages, response)
        found = template.decode(ids)
        if _plain(found) != _plain(response.text) and unk not in ids:  # unknown tokens are counted elsewhere
            wrong.append((response.text, found))
    if wrong:
        text, found = wrong[0]
        yield Problem(
            WORDS,
            "error",
            f"in {_of(wrong, written)} responses the template changes the words, or the tokenizer cannot "
            "spell "
            "them",
            f"{text[:80]!r} became {found[:80]!r}",
        )


def stop(template: ChatTemplate, spoken: list[tuple[Prompt, Response]]) -> Iterator[Problem]:
    ending = template.ending.strip()
    if not template.stop_ids:
        yield Problem(
            STOP,
            "error",
            "the tokenizer has no end-of-text token and the template writes none: nothing would end a "
            "response",
        )
    elif template.written_stop is None and ending:
        yield Problem(
            STOP,
            "error",
            f"the template ends an assistant turn with {ending!r}, which is no one token of this vocabulary",
            repr(template.tokenizer.tokenize(ending)),
        )
    elif template.written_stop is None:
        name = template.tokenizer.convert_ids_to_tokens(template.stop_ids[0])
        yield Problem(
            STOP,
            "warning",
            f"the template writes no stop token after an assistant turn; {name!r} is put after the response, "
            "but earlier turns of a conversation stand without it",
        )
    other = [
        (prompt, response)
        for prompt, response in spoken
        if response.finish == "stop"
        and response.token_ids
        and response.token_ids[-1] not in template.stop_ids
    ]
    if other:
        prompt, response = other[0]
        last = template.tokenizer.convert_ids_to_tokens((response.token_ids or ())[-1])
        yield Problem(
            STOP,
            "error",
            f"{_of(other, spoken)} sampled responses end with another token than this model stops at",
            f"{prompt.provenance.id}: {last!r}",
        )


def earlier(template: ChatTemplate, prompts: list[Prompt], turns: Turns) -> Iterator[Problem]:
    several = [p for p in prompts if any(m.role == "assistant" for m in p.messages)]
    lost, changed = [], []
    for prompt in several:
        try:
            template.conversation(prompt, Response(text="x"), "all")
        except DataError as e:
            lost.append((prompt, str(e)))
        whole = template.render(prompt.messages, generation=True)
        if any(m.text.strip() not in whole for m in prompt.messages if m.role == "assistant"):
            changed.append(prompt)
    if lost and turns == "all":
        yield Problem(
            EARLIER, "error", f"{_of(lost, several)} conversations: {lost[0][1]}", lost[0][0].provenance.id
        )
    elif changed:
        yield Problem(
            EARLIER,
            "warning",
            f"in {_of(changed, several)} conversations the template leaves out part of an earlier answer",
            changed[0].provenance.id,
        )


def exact(template: ChatTemplate, sample: Sample) -> Iterator[Problem]:
    claims = [row for row in sample.exact if row.tokenizer is not None]
    mine = tokenizer_hash(template.tokenizer) if claims else ""
    foreign = [row for row in claims if row.tokenizer != mine]
    if foreign:
        yield Problem(
            EXACT,
            "error",
            f"{_of(foreign, claims)} token-exact rows belong to another tokenizer ({foreign[0].tokenizer}, "
            "this "
            f"is {mine})",
            foreign[0].provenance.id,
        )
    size = len(template.tokenizer)
    spoken = [*sample.spoken, *((row.prompt, r) for row in sample.exact for r in (row.chosen, row.rejected))]
    beyond = [prompt for prompt, r in spoken if r.token_ids and max(r.token_ids) >= size]
    if beyond:
        message = f"{len(beyond)} responses hold token ids beyond the vocabulary of {size}"
        yield Problem(EXACT, "error", message, beyond[0].provenance.id)


def bos(template: ChatTemplate, prompts: list[Prompt]) -> Iterator[Problem]:
    bos = template.tokenizer.bos_token_id
    if bos is None or not prompts:
        return
    ids = template.prompt(prompts[0].messages)
    if ids[:2] == [bos, bos]:
        yield Problem(
            BOS, "error", "the text begins with the BOS token twice", repr(template.tokenizer.decode(ids[:8]))
        )
    elif template.adds_bos and ids[0] != bos:
        yield Problem(
            BOS,
            "warning",
            "the tokenizer puts a BOS token before every text, the chat template does not: the model may "
            "expect "
            "one",
            repr(template.tokenizer.decode(ids[:8])),
        )


def pad(template: ChatTemplate) -> Iterator[Problem]:
    pad = template.tokenizer.pad_token_id
    if pad is not None and template.stop_ids[:1] == (pad,):
        yield Problem(
            PAD,
            "warning",
            f"the padding token {template.tokenizer.pad_token!r} also ends responses; nothing is padded here "
            "and "
            "it stays supervised, and a model is saved with another padding token, or none",
        )


def merge(template: ChatTemplate, written: list[tuple[Prompt, Response]]) -> Iterator[Problem]:
    other = []
    sound = [(p, r) for p, r in written if _is_prefix(template, p, r)]
    for prompt, response in sound:
        apart = template.prompt(prompt.messages) + template.response(prompt.messages, response)
        together = template.encode_whole(_with(prompt, response))[: len(apart)]
        start = len(template.prompt(prompt.messages))
        if apart[: start + 1] != together[: start + 1]:
            other.append((prompt, template.tokenizer.decode(apart[max(0, start - 3) : start + 3])))
    if other:
        prompt, text = other[0]
        yield Problem(
            MERGE,
            "warning",
            f"in {_of(other, written)} conversations the text as a whole would be tokenised otherwise around "
            "the "
            "start of the response; posttrain trains and samples with the parts apart, other software may "
            "differ",
            f"{prompt.provenance.id}: {text!r}",
        )


def unknown(template: ChatTemplate, sample: Sample) -> Iterator[Problem]:
    unk = template.tokenizer.unk_token_id
    if unk is None or unk in template.stop_ids:
        return
    encoded = [
        (text, e.tokens) for text, e in zip(sample.texts, template.documents(sample.texts), strict=True)
    ]
    counts = [(tokens.count(unk), len(tokens), text) for text, tokens in encoded]
    missing, total = sum(c[0] for c in counts), sum(c[1] for c in counts)
    if missing:
        share = missing / total
        yield Problem(
            UNKNOWN,
            "error" if share > MAX_UNKNOWN else "warning",
            f"{share:.1%} of the tokens are unknown to this tokenizer: what they spelled is lost",
            repr(next(text for n, _, text in counts if n)[:80]),
        )


def control(template: ChatTemplate, sample: Sample) -> Iterator[Problem]:
    found = [(text, tokens) for text in sample.texts if (tokens := template.control_tokens(text))]
    if found:
        text, tokens = found[0]
        at = text.index(tokens[0])
        yield Problem(
            CONTROL,
            "warning",
            f"{_of(found, sample.texts)} texts hold control tokens such as {tokens[0]!r}; they are spelled "
            "out as "
            "plain text, so that data cannot end a turn: take them out if another template left them there",
            repr(text[max(0, at - 30) : at + 50]),
        )


def date(template: ChatTemplate) -> Iterator[Problem]:
    if "strftime_now" in template.text and "date_string" not in template.text:
        yield Problem(
            DATE,
            "warning",
            "the template writes today's date, so the same row has other tokens tomorrow: give a "
            "chat_template "
            "with a fixed one",
        )


def _is_prefix(template: ChatTemplate, prompt: Prompt, response: Response) -> bool:
    before = template.render(prompt.messages, generation=True)
    return template.render(_with(prompt, response)).startswith(before)


def _with(prompt: Prompt, response: Response) -> list[Message]:
    return [*prompt.messages, Message(role="assistant", content=response.text)]


def _plain(text: str) -> list[str]:
    """Words, whatever form of Unicode and spaces a tokenizer or template brings them into."""
    return unicodedata.normalize("NFKC", text).split()


def _of(some: Sequence[object], every: Sequence[object]) -> str:
    return f"{len(some)} of {len(every)}"
