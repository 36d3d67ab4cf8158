"""What a compressor takes and returns: the visual tokens of one video, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtm.compressors.reduction import REDUCTIONS, reduce_groups
from vtm.merging import Grouping


@dataclass(frozen=True)
class Clip:
    """The visual tokens of one video.

    Attributes:
        tokens: (t, h, w, d), tokens for the language model.
        encoder: (t, h, w, c), features of the vision encoder before the projector, averaged onto the token grid.
        frames: (t, c), CLS token of the vision encoder of each frame; None for encoders without one.
    """

    tokens: Tensor
    encoder: Tensor | None = None
    frames: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.tokens.shape)
        if len(shape) != 4 or 0 in shape:
            raise ValueError(
                f"expected tokens (t, h, w, d) of one video with at least one token, got shape {shape}; "
                "pass one Clip per video"
            )
        if self.encoder is not None and (self.encoder.ndim != 4 or self.encoder.shape[:3] != shape[:3]):
            raise ValueError(
                f"expected encoder (t, h, w, c) with (t, h, w) = {shape[:3]}, got {tuple(self.encoder.shape)}"
            )
        if self.frames is not None and (self.frames.ndim != 2 or len(self.frames) != shape[0]):
            raise ValueError(f"expected frames (t, c) with t = {shape[0]}, got {tuple(self.frames.shape)}")
        for name in ("tokens", "encoder", "frames"):
            value = getattr(self, name)
            if value is not None and not value.is_floating_point():
                raise TypeError(f"expected {name} of a floating-point dtype, got {value.dtype}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of frames, and of rows and columns of tokens in a frame."""
        frames, height, width, _ = self.tokens.shape
        return frames, height, width

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all frames."""
        frames, height, width = self.grid
        return frames * height * width


@dataclass(frozen=True)
class Compressed:
    """The tokens that are left of a clip, in the order in which the language model reads them.

    Attributes:
        tokens: (M, d).
        position: (M, 3) int64, (t, y, x) of the anchor of each group in the grid of the clip.
        size: (M,) int64, number of tokens of the clip that each one stands for.
        index: (t·h·w,) int64 in [0, M), group of each token of the clip; -1 for tokens left out.
        reduce: "mean", of all tokens of a group, or "max", channel by channel.
    """

    tokens: Tensor
    position: Tensor
    size: Tensor
    index: Tensor
    reduce: str

    def apply(self, other: Tensor) -> Tensor:
        """Reduce other features of the same tokens, such as those of other layers: (t, h, w, c) -> (M, c)."""
        if other.ndim != 4 or other.shape[:3].numel() != len(self.index):
            raise ValueError(
                f"expected features (t, h, w, c) of the {len(self.index)} tokens of the clip, got {tuple(other.shape)}"
            )
        return reduce_groups(other.flatten(0, 2), self.index, len(self.size), reduce=self.reduce)


def compressed(clip: Clip, index: Tensor, anchor: Tensor, *, reduce: str = "mean") -> Compressed:
    """Reduce the tokens of a clip.

    Args:
        clip: tokens before.
        index: (t·h·w,), group of each token; -1 to leave it out. Every group has a token.
        anchor: (M,), token whose position each group takes.
        reduce: "mean" or "max".
    """
    _, height, width = clip.grid
    axes = (anchor // (height * width), anchor // width % height, anchor % width)
    return Compressed(
        tokens=reduce_groups(clip.tokens.flatten(0, 2), index, len(anchor), reduce=reduce),
        position=torch.stack(axes, dim=1),
        size=torch.bincount(index[index >= 0], minlength=len(anchor)),
        index=index,
        reduce=reduce,
    )


def compressed_frames(clip: Clip, frames: Tensor, grouping: Grouping, *, reduce: str = "mean") -> Compressed:
    """Reduce the tokens of some frames of a clip, and leave out the others.

    Args:
        clip: tokens before.
        frames: (R,), indices of the frames to keep, ascending.
        grouping: grouping of the h·w tokens of each of these frames.
        reduce: "mean" or "max".
    """
    num_frames, height, width = clip.grid
    token = torch.arange(clip.num_tokens, device=frames.device).view(num_frames, height * width)
    joined = grouping.join_windows(len(frames))
    index = torch.full_like(token, -1)
    index[frames] = joined.index.view(len(frames), height * width)
    return compressed(clip, index.flatten(), token[frames].flatten()[joined.anchor[0]], reduce=reduce)


def count_budget(clip: Clip, budget: float) -> int:
    """Return how many tokens a budget allows: an int counts tokens, a float frames' worth of tokens, rounded down.

    >>> count_budget(Clip(torch.zeros(9, 24, 24, 1)), 6.39)
    3680
    """
    _, height, width = clip.grid
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise ValueError(f"expected budget > 0, as a number of tokens (int) or of frames (float), got {budget!r}")
    total = budget if isinstance(budget, int) else int(budget * height * width)
    if total < 1:
        raise ValueError(
            f"a budget of {budget} frames of {height} × {width} tokens is less than one token; raise budget"
        )
    return total


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError if `value` is not one of the choices."""
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {value!r}")


def check_reduce(reduce: str) -> None:
    """Raise a ValueError if there is no such reduction."""
    check_choice("reduce", reduce, REDUCTIONS)
