"""The machine in words: what a number depends on, nothing that names it.

Imported by the process of `run.py`.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import psutil

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe(threads: int) -> dict[str, Any]:
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    return {
        "processor": info.get("model name", platform.processor()),
        "instructions": [flag for flag in FLAGS if flag in flags],
        "cores": psutil.cpu_count(),
        "threads_used": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def busy_share(seconds: float = 1.0) -> float:
    """Share of the processors in use just now, by whatever else runs: 0 on a quiet machine."""
    return round(psutil.cpu_percent(seconds) / 100, 2)


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
