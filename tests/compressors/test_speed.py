"""DynTok and DYTO take little memory; `tests/compressors/speed.py` measures their time."""

from pathlib import Path

import pytest
import torch

from tests.compressors.speed import peak_of_own_process

CASES = ["dyntok, 44.4 %", "dyntok, 20 %", "dyto", "dyto, 25 frames", "dyto_released, 25 frames"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_peak_memory_is_at_most_twice_the_input(name: str, dtype: torch.dtype) -> None:
    assert peak_of_own_process(name, dtype, 4096) <= 2
