"""A confined process from outside: started with nothing of ours, listened to, killed with all its kind."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from posttrain.sandbox.backends import ENVIRONMENT

_PIECE = 1 << 16
_LATE = 3  # looks after the deadline, at what was there before: this process may itself have been held up


class Confined:
    """One process with its scratch folder. A context: when it is left, nothing of the process is alive.

    argv: what starts it. request: what it reads, as JSON, from a standard input that ends there.
    pipes: descriptors it is given, besides its output, and all it is given. most: bytes of output that it may
    print; `spilled` says when it did more.
    """

    def __init__(
        self, argv: Sequence[str], request: dict[str, Any], pipes: Sequence[int], most: int, label: str
    ) -> None:
        self.label, self.most = label, most
        self.printed, self.spilled = b"", False
        self.scratch = tempfile.TemporaryDirectory(prefix="posttrain-sandbox-", ignore_cleanup_errors=True)
        self.output, written = os.pipe()
        with tempfile.TemporaryFile() as given:
            given.write(json.dumps(request).encode())
            given.seek(0)
            folder = {"HOME": self.scratch.name, "TMPDIR": self.scratch.name}
            try:
                self.process = subprocess.Popen(
                    argv, stdin=given, stdout=written, stderr=written, cwd=self.scratch.name,
                    env=ENVIRONMENT | folder, pass_fds=tuple(pipes), start_new_session=True,
                )  # fmt: skip
            except BaseException:
                os.close(self.output)
                self.scratch.cleanup()
                raise
            finally:
                os.close(written)

    def __enter__(self) -> Confined:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.output)
        self.scratch.cleanup()

    def read(self) -> bool:
        """Take what it printed; whether there may be more."""
        piece = os.read(self.output, _PIECE)
        printed = self.printed + piece
        self.spilled = self.spilled or len(printed) > self.most
        self.printed = printed[: self.most]
        return bool(piece) and not self.spilled

    def ended_by(self, within: float) -> str:
        """What ended it, if it ended in `within` seconds and not by itself; else ""."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            return ""
        number = -code if code < 0 else code - 128  # bubblewrap passes on what a shell would
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return "out of processor time or killed"
        with suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"exit status {code}"

    def last_words(self, within: float) -> str:
        """The end of what it printed, or else what ended it, for a process that should have ended."""
        how = self.ended_by(within)
        os.set_blocking(self.output, False)
        with suppress(BlockingIOError):
            while self.read():
                pass
        return self.printed.decode(errors="replace").strip()[-300:] or how


def listen(pipe: int, processes: Sequence[Confined], deadline: float) -> tuple[bytes, str]:
    """What comes through `pipe` to its end, and why no more came: "" or the trouble there was.

    Meanwhile the processes' output is drained, never kept past its bound. deadline: of `time.monotonic()`.
    """
    said = b""
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        for process in processes:
            ready.register(process.output, selectors.EVENT_READ, process)
        late = 0
        while late < _LATE:
            left = deadline - time.monotonic()
            late += left <= 0
            for key, _ in ready.select(max(left, 0.0)):
                if isinstance(key.data, Confined):
                    if not key.data.read():
                        ready.unregister(key.fd)
                    if key.data.spilled:
                        return said, f"{key.data.label} printed more than {key.data.most:,} bytes"
                    continue
                piece = os.read(pipe, _PIECE)
                said += piece
                if not piece or len(said) > _PIECE:
                    return said, ""
    return said, "out of time"
