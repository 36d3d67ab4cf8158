"""Measure the compressors beside one mean over their input: `python -m tests.compressors.speed [encoder width]`.

On 100 frames of 24 × 24 tokens of width 4096, in float32 and bfloat16. Peak memory is that of the process, input
included, relative to the input, each in a process of its own.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vtm.compressors import Clip, dyntok, dyto, pool, random_tokens, tome, uniform_frames

SHAPE = (100, 24, 24, 4096)
RELEASED = {"few_pick": "first", "descriptor": "cls", "partition": "halves", "metric": "head_mean", "reduce": "max"}
CASES: dict[str, Callable[[Clip], object]] = {
    "mean over the tokens": lambda clip: clip.tokens.mean(),
    "dyntok, 44.4 %": partial(dyntok, target_ratio=0.444),
    "dyntok, 20 %": partial(dyntok, target_ratio=0.2),
    "dyto": partial(dyto, budget=6.39),
    "dyto, 25 frames": partial(dyto, budget=6.39, few_clusters=0, level="largest"),
    "dyto_released": partial(dyto, budget=6.39, order="score", **RELEASED),
    "dyto_released, 25 frames": partial(dyto, budget=6.39, order="score", few_clusters=0, level="largest", **RELEASED),
    "tome, 25 %": partial(tome, budget=25.0),
    "pool, 25 %": partial(pool, budget=25.0),
    "uniform_frames, 25 %": partial(uniform_frames, budget=25.0),
    "random_tokens, 25 %": partial(random_tokens, budget=25.0),
}


def draw(dtype: torch.dtype, width: int) -> Clip:
    """Draw a clip of 12 scenes, with the tokens themselves as encoder features if their widths agree."""
    generator = torch.Generator().manual_seed(0)
    frames, height, rows, channels = SHAPE
    tokens = torch.empty(SHAPE, dtype=dtype)
    scenes = torch.randn(12, height, rows, channels, generator=generator)
    noise = 0.5 * torch.randn(2, *SHAPE[1:], generator=generator)
    for t in range(frames):
        tokens[t] = scenes[t * 12 // frames] + noise[t % 2].roll(t, dims=-1)
    encoder = tokens if width == channels else tokens[..., :width].contiguous()
    return Clip(tokens, encoder=encoder, frames=tokens[:, 0, 0, :1024].float())


def size_in_bytes(clip: Clip) -> int:
    parts = {part.data_ptr(): part.nbytes for part in (clip.tokens, clip.encoder)}
    return sum(parts.values())


def peak(name: str, dtype: torch.dtype, width: int) -> float:
    """Return the peak memory of one call beyond what the process had before it, plus the input, over the input."""
    clip = draw(dtype, width)
    status = Path("/proc/self/status")
    before = int(status.read_text().split("VmRSS:")[1].split()[0])
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    CASES[name](clip)
    after = int(status.read_text().split("VmHWM:")[1].split()[0])
    return 1 + (after - before) * 1024 / size_in_bytes(clip)


def peak_of_own_process(name: str, dtype: torch.dtype, width: int) -> float:
    """Return `peak`, measured in a process of its own."""
    command = [sys.executable, "-m", "tests.compressors.speed", "peak", name, str(dtype).removeprefix("torch.")]
    return float(subprocess.run([*command, str(width)], capture_output=True, text=True, check=True).stdout)


def seconds(run: Callable[[Clip], object], clip: Clip, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run(clip)
        best = min(best, time.process_time() - start)
    return best


def main(width: int) -> None:
    print(f"| {SHAPE}, encoder {width}, torch {torch.__version__}, threads {torch.get_num_threads()} | | | | | | |")
    rows: dict[str, list[str]] = {name: [] for name in CASES}
    for dtype in (torch.float32, torch.bfloat16):
        clip = draw(dtype, width)
        with torch.no_grad():
            mean = seconds(CASES["mean over the tokens"], clip, 5)
            for name, run in CASES.items():
                took = seconds(run, clip, 3)
                rows[name] += [f"{took:.3f} s", f"{took / mean:.1f}"]
        del clip
        for name in CASES:
            rows[name].append(f"{peak_of_own_process(name, dtype, width):.2f}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(f"{peak(sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4])):.2f}")
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else SHAPE[3])
