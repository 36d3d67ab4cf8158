"""The data types of merging: tokens, their grid, and groupings of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.utils._pytree import register_pytree_node


class Grid(NamedTuple):
    """The token grid of a window before any merging: T frames of H × W tokens."""

    frames: int
    height: int
    width: int


class FeatureGrid(NamedTuple):
    """The layout of the tokens of one step: P prefix tokens, such as CLS, then H × W tokens of the frame.

    The features of a step have shape (H, W, C) without prefix tokens and (1, P + H·W, C) with them.

    Attributes:
        height: H.
        width: W.
        prefix: P, number of prefix tokens.
    """

    height: int
    width: int
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """First two dimensions of the features of a step."""
        return (1, self.prefix + self.height * self.width) if self.prefix else (self.height, self.width)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a step."""
        return self.prefix + self.height * self.width

    def lay_out(self, values: Tensor) -> Tensor:
        """Arrange values (T, H, W) like the tokens, (T, *shape), with 0 for the prefix tokens.

        >>> FeatureGrid(1, 2, prefix=1).lay_out(torch.tensor([[[3.0, 4.0]]]))
        tensor([[[0., 3., 4.]]])
        """
        if not self.prefix:
            return values
        return nn.functional.pad(values.flatten(1), (self.prefix, 0))[:, None]

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Return the position (y, x) of every token of a step, (P + H·W, 2); prefix tokens are at (-1, -1).

        >>> FeatureGrid(1, 2, prefix=1).positions().tolist()
        [[-1, -1], [0, 0], [0, 1]]
        """
        axes = [torch.arange(n, device=device) for n in (self.height, self.width)]
        inside = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
        outside = inside.new_full((self.prefix, 2), -1)
        return torch.cat([outside, inside])


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of windows, ordered by time.

    Attributes:
        x: (B, N, C), any floating-point dtype.
        size: (B, N), number of real encoder tokens merged into each token.
        position: (B, N, 3) int64, (t, y, x) on the original grid, (t, -1, -1) for prefix tokens; the position of a
            merged token is the position of its anchor.
        motion: (B, N), motion magnitude in pixels per frame, or None.
        saliency: (B, N) in (-1, 1), or None.
        mask: (B, N) bool, True = real, False = padding; None if all tokens are real.
    """

    x: Tensor
    size: Tensor
    position: Tensor
    motion: Tensor | None = None
    saliency: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        shape = getattr(self.x, "shape", None)
        if shape is None:  # a pytree may be rebuilt with leaves that are not tensors
            return
        if len(shape) != 3:
            raise ValueError(f"expected x (B, N, C), got shape {tuple(shape)}")
        if not self.x.is_floating_point():
            raise TypeError(f"expected x of a floating-point dtype, got {self.x.dtype}")
        for name, tail in (("size", ()), ("position", (3,)), ("motion", ()), ("saliency", ()), ("mask", ())):
            if (value := getattr(self, name)) is not None:
                layout = "(B, N, 3)" if tail else "(B, N)"
                check_shape(f"{name} {layout}", value, (*shape[:2], *tail))
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise TypeError(f"expected mask of dtype torch.bool, got {self.mask.dtype}")

    @classmethod
    def from_grid(cls, x: Tensor, *, motion: Tensor | None = None, mask: Tensor | None = None) -> Tokens:
        """Flatten a window of features to tokens, frame by frame and row by row.

        Args:
            x: features (B, T, H, W, C).
            motion: (B, T, H, W), motion magnitude in pixels per frame.
            mask: (B, T) bool, True = real frame.

        >>> Tokens.from_grid(torch.zeros(1, 2, 1, 2, 3)).position[0].tolist()
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
        """
        if x.ndim != 5:
            raise ValueError(f"expected x (B, T, H, W, C), got shape {tuple(x.shape)}")
        return cls.from_features(x, FeatureGrid(*x.shape[2:4]), motion=motion, mask=mask)

    @classmethod
    def from_features(
        cls, x: Tensor, grid: FeatureGrid, *, motion: Tensor | None = None, mask: Tensor | None = None
    ) -> Tokens:
        """Flatten a window of features in the layout of an encoder to tokens, step by step.

        Args:
            x: features (B, T, *grid.shape, C).
            grid: layout of the tokens of a step. Prefix tokens get the position (t, -1, -1).
            motion: (B, T, *grid.shape), motion magnitude in pixels per frame.
            mask: (B, T) bool, True = real step.

        >>> Tokens.from_features(torch.zeros(1, 1, 1, 2, 3), FeatureGrid(1, 1, prefix=1)).position[0].tolist()
        [[0, -1, -1], [0, 0, 0]]
        """
        if x.ndim != 5 or x.shape[2:4] != grid.shape:
            raise ValueError(f"expected x (B, T, H, W, C) with (H, W) = {grid.shape}, got shape {tuple(x.shape)}")
        batch, frames, *_, channels = x.shape
        num_tokens = frames * grid.num_tokens
        if motion is not None and motion.shape != x.shape[:4]:
            raise ValueError(f"expected motion (B, T, H, W) = {tuple(x.shape[:4])}, got {tuple(motion.shape)}")
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"expected mask (B, T) = {tuple(x.shape[:2])}, got {tuple(mask.shape)}")
        time = torch.arange(frames, device=x.device).repeat_interleave(grid.num_tokens)
        position = torch.cat([time[:, None], grid.positions(x.device).repeat(frames, 1)], dim=1)  # (N, 3)
        real = None if mask is None else mask.repeat_interleave(grid.num_tokens, dim=1)
        return cls(
            x=x.reshape(batch, num_tokens, channels),
            size=(x.new_ones(batch, num_tokens) if real is None else real).to(accumulator(x.dtype)),
            position=position.expand(batch, num_tokens, 3),
            motion=None if motion is None else motion.reshape(batch, num_tokens),
            mask=real,
        )

    @classmethod
    def from_sequence(cls, x: Tensor, *, mask: Tensor | None = None) -> Tokens:
        """Wrap a sequence of tokens without a grid; token n gets the position (n, 0, 0).

        Args:
            x: features (B, N, C).
            mask: (B, N) bool, True = real.

        >>> Tokens.from_sequence(torch.zeros(1, 3, 4)).position[0].tolist()
        [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
        """
        if x.ndim != 3:
            raise ValueError(f"expected x (B, N, C), got shape {tuple(x.shape)}")
        return cls.from_grid(x[:, :, None, None], mask=mask)


@dataclass(frozen=True)
class Grouping:
    """The assignment of each token to a group in one merge.

    Groups are numbered by ascending anchor; the anchor of a group is its target, or its only token if that is an
    unmerged source.

    Attributes:
        index: (B, N) int64 in [0, num_groups), group of each token.
        num_groups: N − R.
        anchor: (B, num_groups) int64, token whose position the group takes.
    """

    index: Tensor
    num_groups: int
    anchor: Tensor

    @classmethod
    def identity(cls, batch: int, num_tokens: int, *, device: torch.device | None = None) -> Grouping:
        """Create a grouping that leaves every token in its own group.

        >>> Grouping.identity(1, 3).index
        tensor([[0, 1, 2]])
        """
        index = torch.arange(num_tokens, device=device).expand(batch, num_tokens)
        return cls(index, num_tokens, index)

    def join_windows(self, windows: int) -> Grouping:
        """Join the groupings of the W windows of a clip to one grouping of the clip: (B·W, N) -> (B, W·N).

        Windows are ordered by time; group g of window w becomes group w·num_groups + g.

        >>> Grouping.identity(2, 2).join_windows(2).index
        tensor([[0, 1, 2, 3]])
        """
        rows, num_tokens = self.index.shape
        if rows % windows:
            raise ValueError(f"expected rows to be a multiple of windows = {windows}, got {rows}")
        window = torch.arange(windows, device=self.index.device).repeat(rows // windows)[:, None]
        return Grouping(
            index=(self.index + window * self.num_groups).reshape(-1, windows * num_tokens),
            num_groups=windows * self.num_groups,
            anchor=(self.anchor + window * num_tokens).reshape(-1, windows * self.num_groups),
        )


class ClipMerge(NamedTuple):
    """What a block and those before it merged of a clip, for pictures.

    Attributes:
        block: index of the block.
        grouping: groups of the tokens of the clip after the block, step by step and row by row, without prefix tokens;
            one row.
        dropped: (1, N) bool, tokens of the clip that were dropped, so nothing of them is in their group.
        steps: number of steps of the clip, T: frames, or tubelets of several frames.
        tubelet: number of frames of the clip in a step.
    """

    block: int
    grouping: Grouping
    dropped: Tensor
    steps: int
    tubelet: int


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to accumulate sums: fp32 for half precision, otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Raise a ValueError if the shape of `value` is not the expected one."""
    if tuple(value.shape) != expected:
        raise ValueError(f"expected {name} = {expected}, got {tuple(value.shape)}")


register_dataclass(Tokens)
register_pytree_node(  # num_groups is part of the structure, so that tree_map over tensors leaves it alone
    Grouping,
    lambda grouping: ([grouping.index, grouping.anchor], grouping.num_groups),
    lambda tensors, num_groups: Grouping(index=(t := list(tensors))[0], num_groups=num_groups, anchor=t[1]),
    serialized_type_name="vtm.merging.Grouping",
)


def rewindow(tokens: Tokens, rows: int, num_tokens: int) -> Tokens:
    """Regroup the tokens into `rows` windows of N tokens, in an empty batch too.

    x is not copied, because tokens are ordered by time in memory.
    """

    def view(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.reshape(rows, num_tokens, *value.shape[2:])

    return Tokens(
        x=tokens.x.reshape(rows, num_tokens, tokens.x.shape[-1]),
        size=tokens.size.reshape(rows, num_tokens),
        position=tokens.position.reshape(rows, num_tokens, 3),
        motion=view(tokens.motion),
        saliency=view(tokens.saliency),
        mask=view(tokens.mask),
    )
