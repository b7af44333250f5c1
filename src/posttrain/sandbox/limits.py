"""How much a confined program may use."""

from __future__ import annotations

from pydantic import Field

from posttrain.common.config import Config

# Beyond these the kernel's own numbers end, and what it says of that sounds as if there were no sandbox.
_DAY = 86_400  # seconds
_MOST = 1 << 20  # a TiB of memory and files, a GiB of output


class Limits(Config):
    """cpu: seconds of processor time. wall: seconds by the clock, start included; what waits for nothing ends
    by this. memory: MiB of address space. output: KiB that it may print in all, and that one call may return.
    file: MiB of one file. scratch: MiB of all its files (where the sandbox can bound them: see the docs).

    Processes and threads need no number: there is one of each.
    """

    cpu: int = Field(5, ge=1, le=_DAY)
    wall: float = Field(20.0, gt=0, le=_DAY)
    memory: int = Field(512, ge=64, le=_MOST)
    output: int = Field(1024, ge=1, le=_MOST)
    file: int = Field(8, ge=0, le=_MOST)
    scratch: int = Field(32, ge=1, le=_MOST)
