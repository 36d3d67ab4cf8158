"""Speed and memory of merging in models of real size with random weights, next to the same models without merging."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtm.benchmark.counting import LiveMemory
from vtm.benchmark.merging.clips import moving_squares
from vtm.benchmark.merging.report import Cell
from vtm.patching import constant, decreasing, patch, unpatch
from vtm.patching.block import Merging
from vtm.patching.schedules import multiply_adds, token_counts
from vtm.system.measure import PeakMemory, clock_seconds
from vtm.system.progress import Progress

LEGEND = (
    "Weights are random, inputs are drawn clips of moving squares or frames of them, in float32. Each round runs a "
    "model once per row, one row after the other; a first round is not counted. Seconds: median of a call, CPU time of "
    "the process on a CPU, wall time on a GPU. Speed-up: median over the rounds, relative to no merging in the same "
    "round. Speed-up allowed: by the multiply-adds of the blocks. Reached: share of the one in the other. Peak MB: of "
    "a call, beyond weights and inputs; on a CPU of the tensors alive at the same time, without what kernels use "
    "inside. Matching and merging: their share of the time of the blocks, in calls of their own."
)


@dataclass(frozen=True)
class Host:
    """A model to merge in.

    Attributes:
        name: name in the tables.
        make: function that returns the model with random weights.
        frames: frames of a clip; None for a model of images.
        size: side of the frames in pixels.
        num_tokens: number of tokens before the first block.
        width: D.
        protected: number of tokens that stay.
        proportional: whether the attention weighs tokens by their size, as in the papers.
        schedules: schedules to measure, by name.
    """

    name: str
    make: Callable[[], nn.Module]
    frames: int | None
    size: int
    num_tokens: int
    width: int
    protected: int
    proportional: bool
    schedules: dict[str, list[int]]

    @property
    def title(self) -> str:
        """Title of the table."""
        frames = "" if self.frames is None else f"{self.frames} × "
        return f"{self.name}, {frames}{self.size} × {self.size} pixels, {self.num_tokens} tokens"

    def inputs(self, batch: int) -> Tensor:
        """Draw images (B, 3, S, S) or clips (B, T, 3, S, S)."""
        generator = torch.Generator().manual_seed(0)
        clips, _ = moving_squares(batch, generator=generator, frames=self.frames or 1, size=self.size)
        return clips[:, 0] if self.frames is None else clips

    def multiply_adds(self, schedule: list[int]) -> int:
        """Count the multiply-adds of the blocks for one input."""
        return multiply_adds(schedule, self.num_tokens, self.width, protected=self.protected)


def hosts(*, quick: bool, videomae: bool) -> list[Host]:
    """Return the models to measure.

    Args:
        quick: whether to take tiny models.
        videomae: whether to include VideoMAE, which needs transformers.
    """
    if quick:
        found = [_vit("vit_tiny_patch16_224", 64, 2, 192, {"r = 2": constant(2, 2)})]
        video = _videomae("tiny VideoMAE", 32, 8, 8, 2, 24, {"r = 16": constant(2, 16)})
    else:
        found = [
            _vit("vit_base_patch16_224", 224, 12, 768, {f"r = {r}": constant(12, r) for r in (8, 13, 16)}),
            _vit("vit_large_patch16_224", 224, 24, 1024, {f"r = {r}": constant(24, r) for r in (4, 8)}),
        ]
        schedules = {"r = 150": constant(12, 150), "r = 150, decreasing": decreasing(12, 150)}
        video = _videomae("VideoMAE-B", 224, 16, 16, 12, 768, schedules)
    return [*found, video] if videomae else found


def measure(
    host: Host, *, batch: int, repeats: int, device: torch.device | str, progress: Progress
) -> Iterator[list[dict[str, Cell]]]:
    """Measure a model with each schedule and without; yield all its rows after each round.

    Args:
        host: model.
        batch: number of images or clips per call.
        repeats: number of rounds after the first, which is not counted.
        device: torch device.
        progress: progress whose total includes `work(host, batch, repeats)`.
    """
    none = [0] * len(next(iter(host.schedules.values())))
    variants = {"none": none} | host.schedules
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = host.make().eval().to(device)
    x = host.inputs(batch).to(device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    shares: dict[str, list[float]] = {name: [] for name in host.schedules}
    peaks: dict[str, int | None] = {}
    for turn in range(repeats + 1):
        for name, schedule in variants.items():
            with torch.inference_mode():
                if schedule is not none:
                    patch(model, schedule, proportional=host.proportional)
                if turn == 0:
                    peaks[name] = _peak_bytes(model, x, device)
                else:
                    start = clock_seconds(device)
                    model(x)
                    seconds[name].append(clock_seconds(device) - start)
                if turn and schedule is not none:
                    shares[name].append(_merging_share(model, x, device))
                unpatch(model)
            progress.advance(f"{host.name}, {name}", to=progress.done + _call_work(host, batch, schedule, turn))
        if turn:
            yield [_cells(host, name, batch, seconds, shares, peaks) for name in variants]


def work(host: Host, batch: int, repeats: int) -> int:
    """Return the work of `measure`, in 10⁹ multiply-adds."""
    none = [0] * len(next(iter(host.schedules.values())))
    schedules = [none, *host.schedules.values()]
    return sum(_call_work(host, batch, schedule, turn) for turn in range(repeats + 1) for schedule in schedules)


def _call_work(host: Host, batch: int, schedule: list[int], turn: int) -> int:
    calls = 2 if turn and any(schedule) else 1  # one more for the share of merging
    return max(1, round(calls * batch * host.multiply_adds(schedule) / 1e9))


def _cells(
    host: Host,
    name: str,
    batch: int,
    seconds: dict[str, list[float]],
    shares: dict[str, list[float]],
    peaks: dict[str, int | None],
) -> dict[str, Cell]:
    depth = len(next(iter(host.schedules.values())))
    schedule = host.schedules.get(name, [0] * depth)
    speed_up = statistics.median(a / b for a, b in zip(seconds["none"], seconds[name], strict=True))
    allowed = host.multiply_adds([0] * depth) / host.multiply_adds(schedule)
    peak = peaks[name]
    return {
        "merging": name,
        "batch": batch,
        "tokens at the end": token_counts(schedule, host.num_tokens, protected=host.protected)[-1],
        "seconds": statistics.median(seconds[name]),
        "slowest round": max(seconds[name]),
        "speed-up": speed_up,
        "speed-up allowed": allowed,
        "% reached": 100 * speed_up / allowed,
        "peak MB": None if peak is None else peak / 1e6,
        "% matching and merging": statistics.median(shares[name]) if name in shares else None,
        "rounds": len(seconds[name]),
    }


def _peak_bytes(model: nn.Module, x: Tensor, device: torch.device | str) -> int | None:
    """Return the memory of a call beyond that of model and input."""
    if torch.device(device).type == "cuda":
        model(x)  # libraries allocate their workspaces in the first call
        with PeakMemory(device) as peak:
            model(x)
        return peak.bytes
    with LiveMemory() as memory:
        model(x)
    peak_bytes: int = memory.peak
    return peak_bytes


def _merging_share(model: nn.Module, x: Tensor, device: torch.device | str) -> float:
    """Measure which percentage of the time of the patched blocks matching and merging take."""
    spent = {"blocks": 0.0, "merging": 0.0}
    with _timed_blocks(model, spent, device):
        model(x)
    return 100 * spent["merging"] / spent["blocks"]


@contextmanager
def _timed_blocks(model: nn.Module, spent: dict[str, float], device: torch.device | str) -> Iterator[None]:
    """Add the seconds of the patched blocks, and of their merging, to `spent`."""

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = clock_seconds(device)
            result = call(*args, **kwargs)
            spent[part] += clock_seconds(device) - start
            return result

        return wrapper

    blocks: list[Any] = [module for module in model.modules() if isinstance(getattr(module, "merging", None), Merging)]
    for block in blocks:
        block.forward = timed("blocks", block.forward)
        block.merging.apply = timed("merging", block.merging.apply)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward, block.merging.apply


def _vit(name: str, size: int, depth: int, width: int, schedules: dict[str, list[int]]) -> Host:
    def make() -> nn.Module:
        from vtm.encoders import ImageEncoder  # slow to import

        encoder = ImageEncoder(
            name, cls_in_grid=False, model_args={"depth": depth}, image_size=size, squash=False, normalize=True,
            pretrained=False, checkpoint=None, seed=0, precision="float32", storage="float32",
        )  # fmt: skip
        backbone: nn.Module = encoder.build(load=False)
        return backbone

    return Host(name, make, None, size, (size // 16) ** 2 + 1, width, 1, True, schedules)


def _videomae(
    name: str, size: int, patch_size: int, frames: int, depth: int, width: int, schedules: dict[str, list[int]]
) -> Host:
    def make() -> nn.Module:
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification  # optional

        config = VideoMAEConfig(
            image_size=size, patch_size=patch_size, num_frames=frames, hidden_size=width, num_hidden_layers=depth,
            num_attention_heads=12, intermediate_size=4 * width, num_labels=400, use_mean_pooling=True,
        )  # fmt: skip
        model: nn.Module = VideoMAEForVideoClassification(config)
        return model

    num_tokens = frames // 2 * (size // patch_size) ** 2
    return Host(name, make, frames, size, num_tokens, width, 0, False, schedules)
