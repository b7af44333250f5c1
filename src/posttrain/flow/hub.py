"""Models of the Hugging Face hub: which revision a name stands for, so that a key names exact weights."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from posttrain.common.errors import ConfigError

_ID = re.compile(r"([\w.-]+/)?[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(text: str) -> bool:
    """Whether `text` could be `name`, `owner/name` or `owner/name@revision`."""
    return _ID.fullmatch(text) is not None


@functools.cache
def revision(name: str, wanted: str = "main") -> str:
    """The commit, 40 hex digits, that a branch, tag or commit of the model `name` stands for.

    A revision that is in the local cache stays what it is there, so that a recipe does not change under its
    user; otherwise the hub is asked. Raises ConfigError where neither knows it.
    """
    if _COMMIT.fullmatch(wanted):
        return wanted
    return _cached(name, wanted) or _asked(name, wanted)


def _cached(name: str, wanted: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "refs", wanted)
    try:
        found = ref.read_text("utf-8").strip()
    except OSError:
        return None
    return found if _COMMIT.fullmatch(found) else None


def _asked(name: str, wanted: str) -> str:
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(name, revision=wanted, timeout=20).sha
    except Exception as e:  # offline, unknown, gated, not a valid id: the hub's own words say which
        raise ConfigError(
            f"model '{name}' ({wanted}): no such folder, not in the local cache, and the hub gives none: {e}"
        ) from None
    if found is None:
        raise ConfigError(f"model '{name}': the hub names no commit for '{wanted}'")
    return found
