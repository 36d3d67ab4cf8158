"""The contract of a frozen encoder: it owns its normalisation, its weights never train, and it has a key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Encode the frames of a clip into tokens (VTM paper, section 4.1: the backbone stays frozen).

    Args:
        backbone: the network; its parameters are frozen and it stays in evaluation mode.
        key: identifies backbone, weights (or seed) and preprocessing; equal keys mean equal features.
        image_size: S, side of the square frames in pixels.
        frames_per_step: f, consecutive frames that give one step of features.
        grid: (H, W) of the tokens of one step.
        channels: C, width of a token.
        mean: per colour channel, of frames in [0, 1].
        std: per colour channel, of frames in [0, 1].
        chunk: frames that go through the backbone at a time, which bounds the memory.
    """

    backbone: Any  # what its features look like differs from model to model
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        key: str,
        image_size: int,
        frames_per_step: int,
        grid: tuple[int, int],
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        chunk: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.key = key
        self.image_size = image_size
        self.frames_per_step = frames_per_step
        self.grid = grid
        self.channels = channels
        self.chunk = max(1, chunk // frames_per_step) * frames_per_step
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames, uint8 (B, T·f, 3, S, S), to tokens (B, T, H, W, C).

        Raises:
            TypeError: if the frames are not uint8.
            ValueError: if their shape is another one.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"expected uint8 frames, which the encoder normalises itself, got {frames.dtype}")
        expected = (3, self.image_size, self.image_size)
        if frames.ndim != 5 or tuple(frames.shape[2:]) != expected or frames.shape[1] % self.frames_per_step:
            raise ValueError(
                f"expected frames (B, T·{self.frames_per_step}, {', '.join(map(str, expected))}), "
                f"got {tuple(frames.shape)}"
            )
        batch, steps = frames.shape[0], frames.shape[1] // self.frames_per_step
        chunks = frames.flatten(0, 1).split(self.chunk)
        tokens = torch.cat([self.encode((part.to(self.mean.dtype) / 255 - self.mean) / self.std) for part in chunks])
        return tokens.reshape(batch, steps, *self.grid, self.channels)

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Map normalised frames (n·f, 3, S, S) to tokens (n, H, W, C)."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a frozen encoder has no dropout and keeps its statistics."""
        return super().train(False)
