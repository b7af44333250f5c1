"""The peak of memory belongs to the step that held it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from posttrain.common.memory import peak_memory_mb, reset_peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_a_peak_is_not_charged_to_what_comes_after():
    reset_peak_memory()
    before = peak_memory_mb()
    held = np.ones(60_000_000, dtype=np.int64)
    high = peak_memory_mb()
    assert high > before + 400
    del held
    assert peak_memory_mb() == high
    reset_peak_memory()
    assert peak_memory_mb() < before + 100
