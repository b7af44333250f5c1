"""The engine behind HTTP: any OpenAI-compatible chat server, one request a response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, final

from pydantic import ValidationError

from posttrain.common.config import Runtime
from posttrain.engines.chat_replies import NoReply, Reply
from posttrain.engines.openai_client import ChatClient
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.server import Request, Server, ServerError
from posttrain.engines.stopping import cut
from posttrain.engines.writer import Job, Writer, Written
from posttrain.records import ImagePart, Message, Prompt, Response, prompt_key, row_id

# What OpenAI's own interface has no word for, and many servers (vLLM, SGLang, llama.cpp) know under this one.
Extension = Literal["top_k", "min_p"]


class Http(Server):
    """An OpenAI-compatible chat server as an engine; the fields of `Server` and how requests are put.

    extensions: which sampling fields beyond OpenAI's interface the server understands. length_field: the name
    under which it takes `max_new_tokens`; one that it ignored is noticed. send_seed: give each request a seed
    made of the step's (a server may still draw otherwise). token_ids: ask for the ids and log-probs of what
    was sampled, as vLLM's server gives them, and say what its log-probs are of: "model" (its default), or
    "sampled", the distribution after temperature and filters (`--logprobs-mode processed_logprobs`). The ids
    are of the server's tokenizer and win over the text, so ask for them only where the model that will learn
    from them has the same one.
    """

    takes: ClassVar[frozenset[str]] = frozenset()

    extensions: Annotated[tuple[Extension, ...], Runtime()] = ()
    length_field: Annotated[Literal["max_completion_tokens", "max_tokens"], Runtime()] = (
        "max_completion_tokens"
    )
    send_seed: bool = True
    token_ids: Literal["model", "sampled"] | None = None

    def check(self, params: SamplingParams) -> None:
        """See `EngineConfig`."""
        for name in ("top_k", "min_p"):
            if getattr(params, name) is not None and name not in self.extensions:
                raise ValueError(
                    f"'{name}' is not part of OpenAI's interface and a server may ignore it; if this one "
                    f"knows it, set engine.extensions: [{name}]"
                )

    def open(self, job: Job) -> Writer:
        """See `EngineConfig`."""
        return HttpWriter(self, ChatClient(self, job.keep / "http.sqlite", job.payer))


@final
class HttpWriter:
    """A chat server as a `Writer`. Responses are texts; they have token ids only where the config asks."""

    keeps = True

    def __init__(self, cfg: Http, client: ChatClient) -> None:
        self.cfg, self.client, self.name = cfg, client, cfg.model

    def turned_away(self, prompts: Sequence[Prompt]) -> list[str]:
        """See `Writer`: an image that is a file, which a server cannot see."""
        return [
            "an image that is a file: only data: URLs can be sent" if _has_file(prompt) else ""
            for prompt in prompts
        ]

    def write(
        self, prompts: Sequence[Prompt], params: SamplingParams, label: str = "sample"
    ) -> list[Written]:
        """See `Writer`. The n-th answer to a prompt is the same one whatever else is asked, and how often."""
        seen: Counter[str] = Counter()
        requests = []
        for prompt in prompts:
            key = prompt_key(prompt)
            first = seen[key] * params.n
            # at temperature 0 every draw is the same one: paid once
            draws = range(first, first + params.n) if params.temperature else [0] * params.n
            requests += [self._request(prompt, params, draw) for draw in draws]
            seen[key] += 1
        replies = iter(self.client.ask_all(requests, label))
        return [self._written([next(replies) for _ in range(params.n)], params) for _ in prompts]

    def spent(self) -> dict[str, Any]:
        """See `Writer`."""
        return self.client.spent()

    def _request(self, prompt: Prompt, params: SamplingParams, draw: int) -> Request:
        body: dict[str, Any] = {
            "messages": [_as_openai(message) for message in prompt.messages],
            "temperature": params.temperature,
            self.cfg.length_field: params.max_new_tokens,
        }
        body |= {n: v for n in ("top_p", "top_k", "min_p") if (v := getattr(params, n)) is not None}
        if params.stop:
            body["stop"] = list(params.stop)
        if self.cfg.send_seed:
            body["seed"] = int(row_id(params.seed, draw), 16) % 2**31
        if self.cfg.token_ids is not None:
            body |= {"logprobs": True, "return_token_ids": True}
        return Request(body, params.max_new_tokens, f"{params.seed}/{draw}")

    def _written(self, replies: Sequence[Reply | NoReply], params: SamplingParams) -> Written:
        answers = [self._response(reply, params) for reply in replies]
        return Written(
            tuple(answer for answer in answers if isinstance(answer, Response)),
            tuple(answer for answer in answers if isinstance(answer, str)),
        )

    def _response(self, reply: Reply | NoReply, params: SamplingParams) -> Response | str:
        """The record of a reply, or why it cannot be one."""
        if isinstance(reply, NoReply):
            return reply.reason
        if self.cfg.token_ids is not None and reply.token_ids is None:
            raise ServerError(
                f"'{self.cfg.model}' answered without token ids or log-probs; leave out engine.token_ids"
            )
        try:
            return Response(
                text=cut(reply.text, params.stop), finish=reply.finish, **self._tokens(reply, params)
            )
        except ValidationError as e:
            return str(e.errors()[0].get("ctx", {}).get("error", e.errors()[0]["msg"]))

    def _tokens(self, reply: Reply, params: SamplingParams) -> dict[str, Any]:
        """Ids and log-probs as a record has them: at temperature 1, unfiltered, the two kinds are one."""
        if self.cfg.token_ids is None:
            return {}
        same = params.temperature == 1 and not (params.top_k or params.min_p or (params.top_p or 1) < 1)
        name = "logps" if same or self.cfg.token_ids == "sampled" else "model_logps"
        return {"token_ids": reply.token_ids, name: reply.logps}


def _has_file(prompt: Prompt) -> bool:
    parts = [
        p for message in prompt.messages if not isinstance(message.content, str) for p in message.content
    ]
    return any(isinstance(part, ImagePart) and not part.image.startswith("data:") for part in parts)


def _as_openai(message: Message) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = [
        {"type": "image_url", "image_url": {"url": part.image}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}
