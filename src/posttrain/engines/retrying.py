"""One request until it is answered: what passes by itself is waited out, what does not is told apart."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from posttrain.engines.chat_replies import NoReply, Reply, Unreadable, read_reply

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_FIRST_S, _LONGEST_S = 0.5, 30.0  # waits double from the first to the longest
_WORTH_WAITING_S = 600.0  # a server that says to come back later than this is not waited for
_PASSING = {408, 409, 425, 429}
_ONE_REQUEST = {400, 413, 415, 422}  # the server works, and will not have this request
_UNREADABLE = 2  # times that a body which is no completion is asked for again


class GivenUp(Exception):
    """The server will not answer this request nor, most likely, the next."""


class Refused(Exception):
    """The server will not answer this request; it may well answer others."""


@final
class Attempts:
    """Sends requests, again where that may help. timeout_s: seconds each may take, its answer included.
    over: to be set when nothing is to be sent again.
    """

    def __init__(self, openai: AsyncOpenAI, model: str, retries: int, timeout_s: float) -> None:
        self.openai, self.model, self.retries, self.timeout_s = openai, model, retries, timeout_s
        self.retried = 0
        self.over = asyncio.Event()

    async def ask(self, body: Mapping[str, Any]) -> Reply | NoReply:
        """The server's reply. Raises Refused or GivenUp, which say what the server said last."""
        import openai

        unreadable = 0
        for attempt in range(self.retries + 1):
            wait = 0.0
            try:
                return read_reply(await self._send(body))
            except openai.APIStatusError as e:
                wait, what = _passing(e), _said(e)
            except (TimeoutError, openai.APITimeoutError):
                what = f"gave no whole answer within timeout_s, {self.timeout_s:g} s"
            except openai.APIConnectionError as e:
                what = f"cannot be reached: {type(e.__cause__ or e).__name__}"
            except Unreadable as e:
                unreadable += 1
                if unreadable > _UNREADABLE:
                    raise Refused(f"the answer is {e}") from None
                what = f"answered with {e}"
            if attempt == self.retries or await self._over_within(max(wait, _backoff(attempt))):
                raise GivenUp(f"{what} ({attempt + 1} attempts)")
            self.retried += 1
        raise AssertionError("the last attempt returns or raises")

    async def _over_within(self, seconds: float) -> bool:
        """Wait so long, unless nothing is to be sent again any more."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _send(self, body: Mapping[str, Any]) -> bytes:
        extra = {name: value for name, value in body.items() if name != "messages"}
        # the client's own limit starts anew with every byte that comes
        async with asyncio.timeout(self.timeout_s):
            raw = await self.openai.chat.completions.with_raw_response.create(
                model=self.model, messages=body["messages"], extra_body=extra
            )
        return raw.http_response.content


def _passing(error: APIStatusError) -> float:
    """Seconds the server asks to wait, 0 where it does not say. Raises where waiting is no use."""
    status = error.status_code
    if error.code == "insufficient_quota":
        raise GivenUp(f"the account is used up: {_said(error)}") from None
    if status in _ONE_REQUEST:
        raise Refused(_said(error)) from None
    if status not in _PASSING and status < 500:
        raise GivenUp(_said(error)) from None
    wait = _retry_after(error.response.headers)
    if wait > _WORTH_WAITING_S:
        raise GivenUp(f"{_said(error)}; it says to come back in {wait:.0f} s") from None
    return wait


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds by `retry-after-ms` or `Retry-After`, the latter in seconds or as a date (RFC 9110, 10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(float(headers[name]) * unit, 0.0)
        except (KeyError, ValueError):
            continue
    when = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(email.utils.mktime_tz(when) - time.time(), 0.0) if when else 0.0


def _backoff(attempt: int) -> float:
    """Seconds: exponential, the upper half left to chance, so that clients do not come back all at once."""
    return min(_FIRST_S * 2**attempt, _LONGEST_S) * random.uniform(0.5, 1.0)


def _said(error: APIStatusError) -> str:
    """Status and message, cut to what is worth reading."""
    body = error.body
    message = body.get("message") or body.get("detail") if isinstance(body, Mapping) else None
    return f"HTTP {error.status_code}: {str(message or error.message)[:300]}"
