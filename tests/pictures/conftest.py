"""A clip of four frames of 3 × 3 tokens after two blocks, which see two and four frames at a time."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from vtm.merging import FeatureGrid, TokenMerger, saliency_partition, uniform_partition
from vtm.models import VTM, HeadOutput
from vtm.pictures import ClipView

SCORES = [("walking", 0.75), ("<b>running</b>", 0.2), ("$x_1$", 0.05)]


class Clip(NamedTuple):
    """The arguments of a `ClipView`."""

    frames: Tensor
    times: list[float]
    output: HeadOutput
    grid: FeatureGrid

    def view(self, **changes: object) -> ClipView:
        arguments = {"frames": self.frames, "times": self.times, "output": self.output, "grid": self.grid}
        return ClipView.of(**{**arguments, "scores": SCORES, **changes})


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Clip]:
    def make(*, height: int = 3, width: int = 3, estimates: bool = True, steps: int = 4, size: int = 24) -> Clip:
        generator = torch.Generator().manual_seed(0)
        merger = partial(
            TokenMerger,
            partition=saliency_partition if estimates else uniform_partition,
            partition_factor=4,
            merge_count=0.6,
            saliency_weight=1.0 if estimates else None,
        )
        model = VTM(8, 3, window_frames=(2, 4), channels=(8, 8), num_heads=2, dropout=0.0, merge_layer=merger).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        features = torch.randn(1, 4, height, width, 8, generator=generator)
        frames = torch.randint(0, 256, (steps, 3, size, size), generator=generator, dtype=torch.uint8)
        mask = None if steps == 4 else (torch.arange(4) < steps)[None]
        with torch.no_grad():
            output = model(features, mask=mask)
        return Clip(frames, [0.5 + time for time in range(steps)], output, FeatureGrid(height, width))

    return make


@pytest.fixture
def clip(make_clip: Callable[..., Clip]) -> Clip:
    return make_clip()


@pytest.fixture
def view(clip: Clip) -> ClipView:
    return clip.view()


@pytest.fixture
def scores() -> list[tuple[str, float]]:
    return SCORES
