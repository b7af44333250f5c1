"""How much a confined program may use."""

from __future__ import annotations

from pydantic import Field

from posttrain.common.config import Config


class Limits(Config):
    """cpu: seconds of processor time. wall: seconds by the clock, start included; what waits for nothing ends
    by this. memory: MiB of address space. output: KiB that it may print in all, and that one call may return.
    file: MiB of one file. scratch: MiB of all its files (where the sandbox can bound them: see the docs).

    Processes and threads need no number: there is one of each.
    """

    cpu: int = Field(5, ge=1)
    wall: float = Field(20.0, gt=0)
    memory: int = Field(512, ge=64)
    output: int = Field(1024, ge=1)
    file: int = Field(8, ge=0)
    scratch: int = Field(32, ge=1)
