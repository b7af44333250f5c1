"""A limit on the size of files, as `ulimit -f` sets it, is told like a full disk."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from posttrain.common.errors import StoreError
from posttrain.common.files import atomic, no_room
from posttrain.engines.reply_cache import ReplyCache
from posttrain.flow.artifact import Order, make
from posttrain.flow.store import Store
from posttrain.models.folder import whole_folder

LIMIT = 200_000  # bytes


@pytest.fixture
def limited():
    """No file of this process grows beyond LIMIT."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


SAYS = r"grows larger than a file may be here \(`ulimit -f`.*finished work is kept"


def test_a_file(tmp_path, limited):
    with pytest.raises(StoreError, match=f"rows {SAYS}"), atomic(tmp_path / "rows", "wb") as f:
        f.write(b"x" * 2 * LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder(tmp_path, limited):
    with pytest.raises(StoreError, match=f"model {SAYS}"), whole_folder(tmp_path / "model") as draft:
        (draft / "weights").write_bytes(b"x" * 2 * LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_a_step(tmp_path, limited):
    def run(ctx):
        with open(ctx.out / "log", "wb") as f:
            f.write(b"x" * 2 * LIMIT)

    order = Order("s", "make", 1, "0" * 32, {}, {}, {}, run, lambda: None)
    with pytest.raises(StoreError, match=SAYS):
        make(tmp_path / "s", order)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_the_log_of_a_store(tmp_path, limited):
    with pytest.raises(StoreError, match=rf"runs\.jsonl {SAYS}"):
        Store(tmp_path).log({"event": "x" * 2 * LIMIT})


def test_the_answers_of_servers(tmp_path, limited):
    """SQLite calls it an error of the disk; nobody is told to delete what was paid for."""
    with ReplyCache(tmp_path / "http.sqlite").opened() as cache:
        cache.put("first", "x", "payer", 1, 1)
    with (
        pytest.raises(StoreError, match=r"http\.sqlite.*`ulimit -f`.*answers so far are kept") as e,
        ReplyCache(tmp_path / "http.sqlite").opened() as cache,
    ):
        cache.put("key", "x" * 2 * LIMIT, "payer", 1, 1)
    assert "delete" not in str(e.value)
    with ReplyCache(tmp_path / "http.sqlite").opened() as cache:
        assert (cache.get("first"), cache.get("key")) == ("x", None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_library_says_it_in_words_or_as_a_cause(number):
    assert no_room(OSError(number, "x")) == number
    assert (
        no_room(RuntimeError(f"Error while serializing: I/O error: whatever (os error {number})")) == number
    )
    assert no_room(RuntimeError(f"could not write: {os.strerror(number)}")) == number
    caused = ValueError("cannot save")
    caused.__cause__ = OSError(number, "x")
    assert no_room(caused) == number
    assert no_room(OSError(errno.EACCES, "x")) is None
    assert no_room(KeyboardInterrupt()) is None


def test_whose_limit_it_is(tmp_path: Path):
    with pytest.raises(StoreError, match="no space left on the disk"), atomic(tmp_path / "a"):
        raise OSError(errno.EDQUOT, "x")
