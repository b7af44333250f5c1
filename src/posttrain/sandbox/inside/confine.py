"""A process gives up, before anything foreign runs in it, what it will not need."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Any

_PDEATHSIG, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38  # prctl
_FILTER = 2  # SECCOMP_MODE_FILTER
_OPEN_FILES = 64


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def confine(limits: dict[str, Any], refused: bytes) -> None:
    """Limits that cannot be raised again, and a filter of system calls that cannot be taken off.

    limits: as `Limits` has them. refused: the seccomp program. Raises OSError where the kernel will not.
    """
    sys.set_int_max_str_digits(0)  # long numbers are answers; what they cost is counted as time
    os.umask(0o077)
    mebi = 1 << 20
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for what, soft, hard in (
        (resource.RLIMIT_CPU, limits["cpu"], limits["cpu"] + 1),
        (resource.RLIMIT_AS, limits["memory"] * mebi, limits["memory"] * mebi),
        (resource.RLIMIT_FSIZE, limits["file"] * mebi, limits["file"] * mebi),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        resource.setrlimit(what, _within(what, soft, hard))
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PDEATHSIG, signal.SIGKILL)
    _prctl(libc, _DUMPABLE, 0)  # no process of the same user may look into this one through /proc
    _prctl(libc, _NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(refused, len(refused))
    program = _Program(len(refused) // 8, ctypes.addressof(code))
    _prctl(libc, _SECCOMP, _FILTER, ctypes.addressof(program))


def _within(what: int, soft: int, hard: int) -> tuple[int, int]:
    """No more than what is already allowed."""
    _, most = resource.getrlimit(what)
    hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
    return min(soft, hard), hard


def _prctl(libc: ctypes.CDLL, *args: int) -> None:
    words = [ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:5]]
    if libc.prctl(ctypes.c_int(args[0]), *words[1:]) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {args[0]}: {os.strerror(code)}")
