"""Drawn clips of moving textured squares, whose class is the motion: no single frame says anything about it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_DIRECTIONS = torch.tensor([(0, 1), (0, -1), (1, 0), (-1, 0)])
_SPEEDS = torch.tensor([1, 3])  # pixels per frame at 32 pixels
NUM_CLASSES = len(_DIRECTIONS) * len(_SPEEDS)


def moving_squares(
    count: int, *, generator: torch.Generator, frames: int = 8, size: int = 32, still: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw clips of a square that moves in one of four directions at one of two speeds, in front of a background.

    The square has a quarter of the side of the frame, starts anywhere and leaves the frame on one side to enter on the
    other, so its position in any frame is uniform in every class. Square and background have random smooth textures.

    Args:
        count: N, number of clips; the classes are balanced.
        generator: generator on the CPU, which determines the clips.
        frames: T.
        size: S, side of the frames in pixels; a multiple of 32.
        still: whether to repeat the first frame.

    Returns:
        clips (N, T, 3, S, S) of mean 0 and a standard deviation of about 1, and labels (N,).
    """
    labels = torch.arange(count)[torch.randperm(count, generator=generator)] % NUM_CLASSES
    starts = torch.randint(size, (count, 2), generator=generator)
    background = _textures(count, size, size // 8, generator)
    square = _textures(count, size // 4, size // 16, generator)
    clips = draw(labels, starts, background, square, frames=1 if still else frames)
    return 4 * (clips - 0.5).expand(-1, frames, -1, -1, -1), labels


def velocities(labels: Tensor, size: int) -> Tensor:
    """Return the motion (N, 2) of each class in y and x, in pixels per frame of side `size`."""
    return _DIRECTIONS[labels % 4] * _SPEEDS[labels // 4, None] * (size // 32)


def draw(labels: Tensor, starts: Tensor, background: Tensor, square: Tensor, *, frames: int) -> Tensor:
    """Draw squares that move over their backgrounds.

    Args:
        labels: (N,), classes.
        starts: (N, 2), y and x of the upper left corner of the square in the first frame.
        background: (N, 3, S, S).
        square: (N, 3, s, s).
        frames: T.

    Returns:
        clips (N, T, 3, S, S).
    """
    count, _, size, _ = background.shape
    steps = torch.arange(frames)[:, None] * velocities(labels, size)[:, None]  # (N, T, 2)
    side = torch.arange(square.shape[-1])
    y, x = ((starts[:, None] + steps)[..., None] + side).remainder(size).unbind(2)  # (N, T, s)
    clips = background[:, None].repeat(1, frames, 1, 1, 1)
    clip, frame = torch.arange(count)[:, None, None, None], torch.arange(frames)[:, None, None]
    clips[clip, frame, :, y[..., :, None], x[..., None, :]] = square.permute(0, 2, 3, 1)[:, None]
    return clips


def _textures(count: int, size: int, cell: int, generator: torch.Generator) -> Tensor:
    """Draw smooth textures (N, 3, S, S) in [0, 1], interpolated between random colors `cell` pixels apart."""
    colors = torch.rand(count, 3, size // cell, size // cell, generator=generator)
    return interpolate(colors, size=(size, size), mode="bilinear")
