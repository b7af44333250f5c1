"""Peak memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def reset_peak_memory() -> None:
    """Count the peak anew from here, where the system can (CUDA, Linux): a step in a process that has run
    others before is then charged with what it holds itself, and with what those left behind.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):  # another libc, or no such right
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")


def peak_memory_mb() -> float:
    """Largest memory held since the last reset, else so far, in MB: of the CUDA device where one is in use,
    else resident on the host.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # not a POSIX system
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
