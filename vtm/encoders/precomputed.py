"""The placeholder for an encoder if the data are precomputed features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor, nn

from vtm.merging import FeatureGrid


class Precomputed(nn.Module):
    """A placeholder that describes precomputed features and encodes no frames.

    Args:
        name: name of the features in the key, which checkpoints store.
        grid: (H, W), layout of the tokens of a step.
        channels: C, number of channels of a token.
    """

    frames = None  # this encoder takes no frames

    def __init__(self, name: str, *, grid: Sequence[int], channels: int) -> None:
        super().__init__()
        height, width = grid
        self.grid = FeatureGrid(height, width)
        self.channels = channels
        self.key = f"{name}-{height}x{width}x{channels}"

    def forward(self, frames: Tensor) -> NoReturn:
        """Raise an error, because there is nothing to encode.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"encoder=precomputed expects precomputed features, got frames {tuple(frames.shape)}; choose an encoder, "
            "such as encoder=vit_l16"
        )
