"""Asks a process of its own whether two formulas are the same, and starts another where that one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from typing import final

from posttrain.common.errors import PosttrainError

CHILD = "posttrain.feedback.maths.child"


@final
class Comparer:
    """May be used from any thread, one question at a time, and after a fork.

    limit_s: seconds of processor time a question may take. started: how many processes it took so far.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.started = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = -1

    def same(self, reference: str, answer: str) -> bool | str:
        """Whether two formulas in LaTeX are the same, or why that cannot be told."""
        question = json.dumps([reference, answer, self.limit_s])
        with self._lock:
            process = self._running()
            told = _ask(process, question)
            if told:
                found: bool | str = json.loads(told)
                return found
            code = process.wait()
            self._process = None
        if code == -signal.SIGPROF:
            return f"comparing took longer than {self.limit_s:g} s"
        return f"comparing ended its process (exit {code})"

    def _running(self) -> subprocess.Popen[str]:
        """The process, a new one where there is none or it belongs to the parent of a fork."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is the parent's to answer
            )
            self.started += 1
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise PosttrainError(
                    f"the process that compares formulas does not start (exit {process.wait()}); try "
                    f"'{sys.executable} -m {CHILD}' to see why"
                )
            self._process, self._owner = process, os.getpid()
            weakref.finalize(self, _end, process, os.getpid())
        return self._process


def _ask(process: subprocess.Popen[str], question: str) -> str:
    """The answer's line; "" where the process ended instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.communicate()
