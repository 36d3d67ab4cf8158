"""The stand-in for an encoder where the data are features already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor, nn

from vtm.merging import FeatureGrid


class Precomputed(nn.Module):
    """Say what features are that somebody else has made; there are no frames, and nothing to encode.

    Args:
        name: of the features, for the key that checkpoints hold.
        grid: (H, W), tokens of a step.
        channels: C, of a token.
    """

    frames = None  # it takes none

    def __init__(self, name: str, *, grid: Sequence[int], channels: int) -> None:
        super().__init__()
        height, width = grid
        self.grid = FeatureGrid(height, width)
        self.channels = channels
        self.key = f"{name}-{height}x{width}x{channels}"

    def forward(self, frames: Tensor) -> NoReturn:
        """Refuse frames.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"encoder=precomputed stands for features, but got frames {tuple(frames.shape)}; choose an encoder, "
            "such as encoder=vit_l16"
        )
