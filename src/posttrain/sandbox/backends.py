"""How a confined Python is started: by bubblewrap, or, where asked for by name, with less around it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from posttrain.common.errors import ConfigError
from posttrain.sandbox.limits import Limits

SandboxName = Literal["bwrap", "rlimits"]

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in every run, and so is the verdict
    "OMP_NUM_THREADS": "1",
}
_HERE = Path(__file__).resolve().parent
_INSIDE, _SCRATCH = "/posttrain", "/scratch"  # in bubblewrap's file system
_START = "import sys; sys.path.insert(0, {0!r}); from inside.main import main; main()"
INSTALL = (
    "install bubblewrap (Debian, Ubuntu: `apt-get install bubblewrap`; Fedora: `dnf install bubblewrap`), or "
    "ask for the weaker `sandbox: rlimits` by name (docs/sandbox.md says what it does not stop)"
)


def command(name: SandboxName, limits: Limits) -> tuple[list[str], str]:
    """The command that starts a confined interpreter, and where our code lies for it.

    Raises ConfigError where what it needs is not on this machine.
    """
    if sys.platform != "linux":
        raise ConfigError(f"sandbox '{name}': Linux only, and this is {sys.platform}")
    from posttrain.sandbox.inside import main  # noqa: F401  # compiled once, here: the sandbox cannot write

    return _BACKENDS[name](limits)


def _bwrap(limits: Limits) -> tuple[list[str], str]:
    """Name spaces of its own for everything; of the host's files only Python and the system's libraries, to
    read; no /proc, no /sys, no shell.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise ConfigError(f"sandbox 'bwrap': there is no `bwrap` on the PATH; {INSTALL}")
    python = _python()
    libraries = [str(Path(sys.base_prefix) / "lib"), "/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    read = [*dict.fromkeys(libraries), "/etc/ld.so.cache", python]
    binds = [part for path in read for part in ("--ro-bind-try", path, path)]
    argv = [
        *(found, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *(
            "--unshare-cgroup-try",
            "--die-with-parent",
            "--cap-drop",
            "ALL",
            "--uid",
            "65534",
            "--gid",
            "65534",
        ),
        *("--hostname", "sandbox", *binds, "--ro-bind", str(_HERE / "inside"), f"{_INSIDE}/inside"),
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(limits.scratch << 20), "--tmpfs", _SCRATCH, "--chdir", _SCRATCH, "--remount-ro", "/"),
        *("--setenv", "HOME", _SCRATCH, "--setenv", "TMPDIR", _SCRATCH),
    ]
    return [*argv, "--", *_interpreter(python, _INSIDE)], _INSIDE


def _rlimits(limits: Limits) -> tuple[list[str], str]:
    """A plain process in a folder of its own: only the limits and the filter of system calls hold it."""
    return _interpreter(_python(), str(_HERE)), str(_HERE)


_BACKENDS: dict[SandboxName, Callable[[Limits], tuple[list[str], str]]] = {
    "bwrap": _bwrap,
    "rlimits": _rlimits,
}


def _python() -> str:
    """The interpreter itself, not the link to it in a virtual environment."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.realpath(base if base.exists() else sys.executable)


def _interpreter(python: str, inside: str) -> list[str]:
    """No site packages, nothing of the current folder, nothing written beside the code."""
    return [python, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _START.format(inside)]
