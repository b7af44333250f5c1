"""Programs that mean harm. Each says by its answer, or the host sees, whether it got what it wanted."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from posttrain.sandbox import Checked, Limits, Sandbox, SandboxName, Tests, open_sandbox

QUICK = Limits(cpu=1, wall=8, memory=256, output=64, file=4, scratch=8)


@dataclass(frozen=True)
class Attack:
    """program: defines `attack(*args)`. args: made on the host. worked: from what came of it and the seconds
    it took; by default, whether `attack` returned True.
    """

    program: str
    args: Callable[[Path], tuple] = lambda folder: ()
    worked: Callable[[Checked, float], bool] = lambda checked, took: checked.passed is True
    limits: Limits = QUICK


opened = cache(open_sandbox)


def run(name: SandboxName, attack: Attack, folder: Path) -> bool:
    """Whether the attack worked. Whatever it did, nothing of it is alive afterwards."""
    sandbox = marked(opened(name, attack.limits))
    call = f"assert attack{attack.args(folder)!r} is True"
    started = time.monotonic()
    checked = sandbox.check(attack.program, Tests("", call, ("attack",)))
    worked = attack.worked(checked, time.monotonic() - started)
    assert checked.passed is not None, checked.reason
    assert not alive(sandbox)
    return worked


def marked(sandbox: Sandbox) -> Sandbox:
    """Its processes can be told from all others by their command line."""
    return replace(sandbox, argv=(*sandbox.argv, f"mark-{os.urandom(8).hex()}"))


def alive(sandbox: Sandbox, within: float = 5.0) -> list[str]:
    """The processes of a marked sandbox that are there after some seconds: the kernel takes a moment."""
    until = time.monotonic() + within
    while True:
        found = [pid for pid in os.listdir("/proc") if pid.isdigit() and _marked(pid, sandbox.argv[-1])]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)


def _marked(pid: str, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _host(folder: Path) -> tuple:
    return (os.getpid(),)


def _secret(folder: Path) -> tuple:
    (folder / "secret").write_text("known to the user alone")
    return (str(folder / "secret"),)


def _listener(folder: Path) -> tuple:
    """A server that takes connections as long as it is referred to; the test process keeps it."""
    _LISTENERS.append(socket.create_server(("127.0.0.1", 0)))
    return (_LISTENERS[-1].getsockname()[1],)


_LISTENERS: list[socket.socket] = []


def _not_for(*reasons: str) -> Callable[[Checked, float], bool]:
    """It worked unless it was stopped for one of these reasons, and soon."""
    return lambda checked, took: (
        checked.passed is not False or not any(why in checked.reason for why in reasons) or took > 60
    )


FORGED = """
import gc, json, os, sys
def nonces():
    for thing in gc.get_objects():
        if isinstance(thing, dict) and isinstance(thing.get("nonce"), str):
            yield thing["nonce"]
def lines():
    for nonce in ["", "0" * 32, *nonces()]:
        yield json.dumps({"nonce": nonce, "state": "passed", "reason": ""}).encode() + b"\\n"
def forge(descriptors):
    for fd in descriptors:
        for line in lines():
            try:
                os.write(fd, line)
            except OSError:
                pass
"""

ATTACKS: dict[str, Attack] = {
    "fork bomb": Attack("""
import os
def attack():
    made = 0
    for _ in range(10_000):
        try:
            if os.fork() == 0:
                while True:
                    os.fork()
            made += 1
        except OSError:
            pass
    return made > 0
"""),
    "thread bomb": Attack("""
import threading, time
def attack():
    threading.Thread(target=time.sleep, args=(1,)).start()
    return True
"""),
    "another program": Attack("""
import subprocess, sys, os
def attack():
    try:
        subprocess.run([sys.executable, "-c", ""], check=True)
    except Exception:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])
    return True
"""),
    "daemon left behind": Attack("""
import os, time
def attack():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    return True
"""),
    "infinite loop": Attack(
        "def attack():\n    while True: pass", worked=_not_for("processor time", "out of time")
    ),
    "infinite loop that ignores its warning": Attack(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef attack():\n    while True: pass",
        worked=_not_for("processor time", "out of time"),
    ),
    "sleep without end": Attack(
        "import time\ndef attack():\n    time.sleep(10**6)",
        worked=_not_for("out of time"),
        limits=QUICK.model_copy(update={"wall": 3.0}),
    ),
    "endless output": Attack(
        "def attack():\n    while True: print('x' * 1000)", worked=_not_for("printed more than")
    ),
    "endless return value": Attack(
        "def attack():\n    while True: yield 1", worked=lambda checked, took: checked.passed is not False
    ),
    "10 GB allocation": Attack("""
import mmap
def attack():
    try:
        return len(b"x" * (10 << 30)) > 0
    except MemoryError:
        return len(mmap.mmap(-1, 10 << 30)) > 0
"""),
    "memory outside its own": Attack("""
import os
def attack():
    fd = os.memfd_create("hidden")
    return os.write(fd, b"x" * 1000) > 0
"""),
    "limits raised again": Attack("""
import resource
def attack():
    resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))
    return True
"""),
    "deep recursion": Attack(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr([self])\n"
        "def attack():\n    return repr(A()) and True"
    ),
    "giant file": Attack("""
def attack():
    with open("giant", "wb") as f:
        for _ in range(64):
            f.write(bytes(1 << 20))
            f.flush()
    return True
"""),
    "many files": Attack("""
def attack():
    for i in range(6):
        with open(f"file-{i}", "wb") as f:
            f.write(bytes(4 << 20))
    return True
"""),
    "writing outside the scratch folder": Attack(
        "def attack(path):\n    open(path, 'w').write('mine now')\n    return True",
        args=lambda folder: (str(folder / "written"),),
    ),
    "reading the user's files": Attack(
        "def attack(path):\n    return open(path).read() == 'known to the user alone'", args=_secret
    ),
    "reading the parent's environment": Attack("""
import os
def attack(host):
    for pid in {host, os.getppid(), 1}:
        try:
            if b"=" in open(f"/proc/{pid}/environ", "rb").read():
                return pid == host
        except OSError:
            pass
    return False
""", args=_host),
    "sockets": Attack("""
import socket
def attack(port):
    return bool(socket.create_connection(("127.0.0.1", port), 5))
""", args=_listener),
    "signals to the parent": Attack("""
import os, signal
def attack(host):
    for pid in (host, os.getppid(), -1):
        try:
            os.kill(pid, signal.SIGURG if pid > 0 else 0)
            return True
        except OSError:
            pass
    return False
""", args=_host),
    "signals by way of a descriptor": Attack("""
import fcntl, os, signal
def attack(host):
    r, w = os.pipe()
    fcntl.fcntl(r, fcntl.F_SETOWN, host)
    return fcntl.fcntl(r, fcntl.F_GETOWN) == host
""", args=_host),
    "limits of the parent": Attack("""
import resource
def attack(host):
    resource.prlimit(host, resource.RLIMIT_CORE, resource.prlimit(host, resource.RLIMIT_CORE))
    return True
""", args=_host),
    "memory of the parent": Attack("""
import ctypes
def attack(host):
    libc = ctypes.CDLL(None, use_errno=True)
    here = ctypes.create_string_buffer(8)
    class Piece(ctypes.Structure):
        _fields_ = [("at", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    piece = Piece(ctypes.addressof(here), 8)
    read = libc.process_vm_readv(host, ctypes.byref(piece), 1, ctypes.byref(piece), 1, 0)
    return read >= 0 or ctypes.get_errno() != 1
""", args=_host),
    "patching the checker": Attack("""
import builtins, sys, inside.check, inside.wire, inside.solve
builtins.AssertionError = builtins.Exception = SystemExit
builtins.isinstance = lambda *a: True
builtins.compile = builtins.exec = lambda *a: None
inside.check.check = inside.wire.decode = lambda *a: None
inside.solve.encode = lambda value, opaque: {"opaque": True}
sys.modules["tests"] = sys.modules[__name__]
class Right:
    def __eq__(self, other): return True
def attack():
    return Right()
"""),
    "leaving early with status 0": Attack("import os\ndef attack():\n    os._exit(0)"),
    "leaving early while loaded": Attack("import sys\nsys.exit(0)\ndef attack(): return True"),
    "an answer that equals everything": Attack("""
class Right(int):
    def __eq__(self, other): return True
    def __hash__(self): return 1
    def __bool__(self): return True
def attack():
    return Right(7)
"""),
    "forged verdict": Attack(FORGED + "forge(range(64))\ndef attack():\n    forge(range(64))"),
    "forged verdict through /proc": Attack(FORGED + """
def attack(host):
    for pid in (host, os.getppid()):
        try:
            there = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for fd in there:
            path = f"/proc/{pid}/fd/{fd}"
            try:
                if int(fd) > 2 and os.readlink(path).startswith("pipe:"):
                    own = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                    forge([own])
                    os.close(own)
            except OSError:
                pass
""", args=_host),
    "replies that are no values": Attack("""
import os
def attack():
    for fd in range(3, 64):
        try:
            os.write(fd, b'{"value": ' + b'[' * 60000 + b']' * 60000 + b'}\\n{"value": {"range": "x"}}\\n')
        except OSError:
            pass
"""),
}  # fmt: skip
