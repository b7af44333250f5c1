"""What a config says of a chat server, what it may be asked, and how it fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from posttrain.common.config import Config, Runtime
from posttrain.common.errors import ConfigError, PosttrainError
from posttrain.engines.budget import Budget

# Tokens of a prompt at most: one a byte of text, what a server's template puts around it, so many an image.
_AROUND, _IMAGE = 256, 4096


class ServerError(PosttrainError):
    """A server that cannot be reached, will not work, or does not do what it was asked. Answers are kept."""


class OutOfBudget(PosttrainError):
    """The budget is spent. What was answered is kept, and is not paid for again."""


class Server(Config):
    """An OpenAI-compatible chat server.

    base_url: up to and with its `/v1`. model: what the server calls it; the only field that is part of a
    step's key. api_key_env: name of the environment variable with the key; None sends none.
    concurrency: requests under way at once. timeout_s: seconds one may take. retries: of what may pass by
    itself (429, 5xx, lost connections, timeouts), with growing waits. budget: what a step may cost.
    """

    base_url: Annotated[str, Runtime()]
    model: str = Field(min_length=1)
    api_key_env: Annotated[str | None, Runtime()] = None
    concurrency: Annotated[int, Runtime(), Field(ge=1)] = 8
    timeout_s: Annotated[float, Runtime(), Field(gt=0)] = 120.0
    retries: Annotated[int, Runtime(), Field(ge=0)] = 6
    budget: Annotated[Budget | None, Runtime()] = None

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a server's address begins with http:// or https://")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "an address must hold no user, password or query, for it is written down; a key goes into an "
                "environment variable, and api_key_env names it"
            )
        return url

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("not the name of an environment variable (A-Z, 0-9, _); never write a key here")
        return name

    def key(self) -> str | None:
        """The key to send. Raises ConfigError where the variable that should hold it does not."""
        if self.api_key_env is None:
            return None
        found = os.environ.get(self.api_key_env, "").strip()
        if not found:
            raise ConfigError(f"the environment variable {self.api_key_env} (api_key_env) is not set")
        return found


@dataclass(frozen=True)
class Request:
    """One thing to ask.

    body: fields of a chat completion beside the model, as JSON. max_tokens: how long the answer may be, in
    tokens, under whatever name the body says so. draw: tells apart requests with one body that are to be
    answered each for itself; equal requests share an answer.
    """

    body: Mapping[str, Any]
    max_tokens: int
    draw: str = ""

    def key(self, model: str) -> str:
        """Names the answer in the cache: by what is asked, and of whom, wherever that model is served."""
        asked = json.dumps([model, self.body, self.draw], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def worst_input(self) -> int:
        """A bound on the tokens of the prompt."""
        contents = [message["content"] for message in self.body["messages"]]
        texts = [content for content in contents if isinstance(content, str)]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        texts += [part["text"] for part in parts if part["type"] == "text"]
        images = sum(part["type"] != "text" for part in parts)
        return _AROUND + images * _IMAGE + sum(len(text.encode()) for text in texts)
