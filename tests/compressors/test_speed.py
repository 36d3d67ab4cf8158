"""DynTok and DYTO take a few times as long as one mean over their input, and little memory."""

from pathlib import Path

import pytest
import torch

from tests.compressors.speed import CASES, draw, peak_of_own_process, seconds

MOST = {"dyntok, 44.4 %": 4, "dyntok, 20 %": 4, "dyto": 8, "dyto, 25 frames": 8, "dyto_released, 25 frames": 8}
DTYPES = [torch.float32, torch.bfloat16]
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_dyntok_takes_four_means_over_its_input_and_dyto_eight(dtype: torch.dtype) -> None:
    clip = draw(dtype, 4096)
    for name, most in MOST.items():
        took, mean = (min(seconds(CASES[case], clip, 2) for _ in range(3)) for case in (name, "mean over the tokens"))
        assert took <= most * mean, f"{name}: {took:.3f} s, {took / mean:.1f} times the mean"


@linux
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MOST)
def test_peak_memory_is_at_most_twice_the_input(name: str, dtype: torch.dtype) -> None:
    assert peak_of_own_process(name, dtype, 4096) <= 2
