"""Asking an OpenAI-compatible chat server many things: bounded, retried, kept, and never over budget."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Coroutine, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from posttrain.common.errors import ConfigError, PosttrainError, StoreError
from posttrain.common.progress import Bar, progress
from posttrain.engines.budget import Meter
from posttrain.engines.chat_replies import NoReply, Reply, Unreadable, from_json, to_json
from posttrain.engines.reply_cache import OpenCache, ReplyCache, Spent
from posttrain.engines.retrying import Attempts, GivenUp, Refused
from posttrain.engines.server import OutOfBudget, Request, Server, ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
# So many requests refused, and not one answered: the rest would fare no better.
_HOPELESS = 16


@final
class ChatClient:
    """Asks one server on behalf of one payer.

    cache: the file that keeps answers. payer: whose budget counts, over all runs; by convention the name of
    the step's folder. retried, hits: requests sent again, and answers found in the cache, so far.
    """

    def __init__(self, server: Server, cache: Path, payer: str) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ConfigError("asking a server needs the openai package: pip install openai")
        self.server, self.payer = server, payer
        self.cache = ReplyCache(cache)
        self.retried = self.hits = 0
        self._key = server.key()

    def ask_all(self, requests: Sequence[Request], label: str) -> list[Reply | NoReply]:
        """One reply a request, in order. Answers are on the disk before the next is asked for.

        Raises OutOfBudget, or ServerError for a server that is down or refuses; running again asks only what
        is not answered yet.
        """
        return _run(self._ask_all(requests, label))

    def spent(self) -> dict[str, Any]:
        """What this payer has paid over all runs; requests sent again, and cache hits, of this one."""
        with self.cache.opened() as cache:
            paid = cache.spent(self.payer)
        budget = self.server.budget
        return {
            "answers_paid": paid.answers,
            "prompt_tokens": paid.input,
            "completion_tokens": paid.output,
            "answers_without_token_count": paid.uncounted,
            "usd": budget.money(paid.input, paid.output) if budget else None,
            "retries": self.retried,
            "cache_hits": self.hits,
        }

    async def _ask_all(self, requests: Sequence[Request], label: str) -> list[Reply | NoReply]:
        from openai import AsyncOpenAI

        keys = [request.key(self.server.model) for request in requests]
        with self.cache.opened() as cache, progress(label, len(requests), "response") as bar:
            found = self._kept(cache, set(keys))
            self.hits += sum(key in found for key in keys)
            bar.advance(sum(key in found for key in keys))
            left = {key: r for key, r in zip(keys, requests, strict=True) if key not in found}
            if left:
                async with AsyncOpenAI(
                    base_url=self.server.base_url,
                    api_key=self._key or "none",
                    timeout=self.server.timeout_s,
                    max_retries=0,
                ) as openai:
                    found |= await _Round(self, openai, cache, bar).ask(left)
        return [found[key] for key in keys]

    def _kept(self, cache: OpenCache, keys: Set[str]) -> dict[str, Reply | NoReply]:
        found = {}
        for key in keys:
            text = cache.get(key)
            try:
                if text is not None:
                    found[key] = from_json(text)
            except Unreadable as e:
                raise StoreError(
                    f"{self.cache.path}, which keeps the answers of servers, is damaged at the key {key} "
                    f"({e}); delete that row (DELETE FROM replies WHERE key = '{key}') to have that answer "
                    "asked and paid for again, or the file to have all of them"
                ) from None
        return found

    def redacted(self, text: str) -> str:
        """`text` without the key, whatever a server repeats of it."""
        return text.replace(self._key, "[key]") if self._key else text


@final
class _Round:
    """One call of `ask_all`: some workers, which all stop at the first sign that going on is no use."""

    def __init__(self, client: ChatClient, openai: AsyncOpenAI, cache: OpenCache, bar: Bar) -> None:
        self.client, self.server, self.cache, self.bar = client, client.server, cache, bar
        server = self.server
        self.attempts = Attempts(openai, server.model, server.retries, server.timeout_s)
        self.meter = Meter(self.server.budget, cache.spent(client.payer))
        self.found: dict[str, Reply | NoReply] = {}
        self.answered = self.refused = 0
        self.stop: PosttrainError | None = None

    async def ask(self, requests: Mapping[str, Request]) -> dict[str, Reply | NoReply]:
        left = iter(requests.items())
        workers = [self._work(left) for _ in range(min(self.server.concurrency, len(requests)))]
        await asyncio.gather(*workers)
        self.client.retried += self.attempts.retried
        if self.stop is not None:
            raise self.stop
        return self.found

    async def _work(self, left: Iterator[tuple[str, Request]]) -> None:
        """Take requests until none is left. What is under way when another stops is still waited for."""
        for key, request in left:
            reserved = (request.worst_input, request.max_tokens)
            fits = await self.meter.reserve(*reserved)
            if self.stop is None and not fits:
                self.stop = OutOfBudget(self._out_of_budget())
            if not fits:
                return
            paid = Spent()
            try:
                if self.stop is None:
                    paid = await self._one(key, request)
            except GivenUp as e:
                self._give_up(ServerError(self._told(str(e))))
            finally:
                await self.meter.settle(reserved, paid)
            if self.stop is not None:
                return

    async def _one(self, key: str, request: Request) -> Spent:
        """Ask, keep the answer, and return what it cost."""
        try:
            reply = await self.attempts.ask(request.body)
        except Refused as e:
            self.refused += 1
            self.found[key] = NoReply(f"refused: {self.client.redacted(str(e))}")
            self.bar.advance()
            if not self.answered and self.refused >= _HOPELESS:
                self._give_up(ServerError(self._told(f"refused all of {self.refused} requests: {e}")))
            return Spent()
        self.answered += 1
        self.found[key] = reply
        self.cache.put(key, to_json(reply), self.client.payer, reply.input, reply.output)
        uncounted = reply.input is None or reply.output is None
        self._check(reply, request, uncounted)
        self.bar.advance(note=self._note())
        return Spent(1, reply.input or 0, reply.output or 0, int(uncounted))

    def _check(self, reply: Reply | NoReply, request: Request, uncounted: bool) -> None:
        """Stop where a server does not do what it was asked to, or cannot be held to a budget."""
        wants_ids = bool(request.body.get("return_token_ids"))
        if wants_ids and isinstance(reply, Reply) and reply.token_ids is None:
            self._give_up(ServerError(self._told("gives no token ids with log-probs; do not ask for them")))
        if reply.output is not None and reply.output > request.max_tokens:
            self._give_up(
                ServerError(
                    self._told(
                        f"wrote {reply.output} tokens where {request.max_tokens} were allowed: it does not "
                        "know the field that says so (set length_field to the other one)"
                    )
                )
            )
        if uncounted and self.server.budget is not None and self.server.budget.limits:
            self._give_up(
                ServerError(self._told("does not count tokens, so no budget can be kept; leave it out"))
            )

    def _give_up(self, error: PosttrainError) -> None:
        self.stop = self.stop or error
        self.attempts.over.set()

    def _told(self, what: str) -> str:
        return self.client.redacted(
            f"server {self.server.base_url}, model '{self.server.model}': {what}. Answers so far are kept; "
            "run again to go on"
        )

    def _out_of_budget(self) -> str:
        budget, spent = self.server.budget, self.meter.spent
        assert budget is not None
        return (
            f"out of budget: {budget.told(spent)} spent on {spent.answers:,} answers of "
            f"'{self.server.model}', and the next request could go beyond. Answers so far are kept; raise "
            "the budget and run again to go on without paying for them twice"
        )

    def _note(self) -> str:
        spent, budget = self.meter.spent, self.server.budget
        money = budget.money(spent.input, spent.output) if budget else None
        return f"{spent.input + spent.output:,} tokens" + (f", ${money:.2f}" if money is not None else "")


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where the caller is itself inside an event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
