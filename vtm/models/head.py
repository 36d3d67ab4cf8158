"""The contract of a head, the trained network on the features of a clip: what it takes, gives and plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from vtm.merging import Grouping, compose
from vtm.merging.partition import Generators


class BlockTrace(NamedTuple):
    """What one block merged; rows are the windows of all clips, B · T / L_i.

    Attributes:
        grouping: of the N tokens of each window.
        targets: (rows, M) int64.
        saliency: (rows, N), or None without an estimator.
        window_frames: L_i, frames of a window.
    """

    grouping: Grouping
    targets: Tensor
    saliency: Tensor | None
    window_frames: int


class BlockPlan(NamedTuple):
    """The static shapes of one block for a given clip: everything is known before any tensor is."""

    window_frames: int
    windows: int
    num_tokens: int  # N of one window
    num_targets: int  # M
    merge_count: int  # R
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class HeadOutput:
    """Outputs of the network.

    Attributes:
        logits: (B, K) of the main path.
        aux_logits: (B, K) of the auxiliary path; None in evaluation and where no saliency is learned.
        blocks: one trace per block.
    """

    logits: Tensor
    aux_logits: Tensor | None
    blocks: tuple[BlockTrace, ...]

    def clip(self, index: int) -> HeadOutput:
        """Take the outputs for one clip of the batch; the windows of a clip follow one another in every block."""
        batch, blocks = len(self.logits), []
        for grouping, targets, saliency, window_frames in self.blocks:
            share = len(targets) // batch
            rows = slice(index * share, (index + 1) * share)
            one = Grouping(grouping.index[rows], grouping.num_groups, grouping.anchor[rows])
            blocks.append(BlockTrace(one, targets[rows], None if saliency is None else saliency[rows], window_frames))
        aux_logits = None if self.aux_logits is None else self.aux_logits[index : index + 1]
        return HeadOutput(self.logits[index : index + 1], aux_logits, tuple(blocks))

    def clip_groupings(self) -> list[Grouping]:
        """Follow each of a clip's T·H·W input tokens: for every block, to the token that holds it thereafter."""
        batch = self.logits.shape[0]
        steps = (trace.grouping.join_windows(trace.grouping.index.shape[0] // batch) for trace in self.blocks)
        return list(accumulate(steps, compose))

    def clip_targets(self) -> list[Tensor]:
        """Find for every block the input tokens of a clip that give its targets their place: (B, windows · M) each."""
        batch, found, before = self.logits.shape[0], [], None
        for trace, after in zip(self.blocks, self.clip_groupings(), strict=True):
            rows, num_tokens = trace.grouping.index.shape
            first = num_tokens * torch.arange(rows // batch, device=after.index.device).repeat(batch)
            targets = (trace.targets + first[:, None]).reshape(batch, -1)  # among the tokens that enter the block
            found.append(targets if before is None else before.anchor.gather(1, targets))
            before = after
        return found


class Head(nn.Module, ABC):
    """A network from the features of a clip to logits.

    A head is made by `head(in_channels, num_outputs, grid)`: the width of the features, K outputs (1 for a regression),
    and the layout of the tokens of a step.

    Attributes:
        head: the last layer, with K outputs. Fine-tuning starts without its weights.
    """

    head: nn.Linear

    @property
    @abstractmethod
    def needs_motion(self) -> bool:
        """Tell whether `forward` needs the motion of the tokens."""

    @property
    @abstractmethod
    def samples_in_eval(self) -> bool:
        """Tell whether `forward` draws random numbers in evaluation, too."""

    @abstractmethod
    def forward(
        self,
        features: Tensor,
        *,
        motion: Tensor | None = None,
        mask: Tensor | None = None,
        generator: Generators = None,
    ) -> HeadOutput:
        """Classify clips, or predict their values.

        Args:
            features: (B, T, *grid.shape, C) from the encoder.
            motion: (B, T, *grid.shape) magnitude of motion in pixels per frame.
            mask: (B, T) bool, True = real step. What masked steps hold, NaN included, changes nothing.
            generator: of the noise where the head samples: None, one, or one per clip (`vtm.merging.partition`).

        Raises:
            ValueError: on shapes that do not fit, with the numbers.
        """

    @abstractmethod
    def plan(self, frames: int, height: int, width: int) -> list[BlockPlan]:
        """Work out the shapes of every block for clips of T steps in the layout H × W; blocks left out are not listed.

        Raises:
            ValueError: if clips of this shape do not fit the head.
        """

    @abstractmethod
    def freeze_unused(self, frames: int, height: int, width: int) -> None:
        """Turn off the gradients of parameters that clips of this shape do not reach, as DDP requires."""

    @abstractmethod
    def for_inference(self) -> Self:
        """Drop what only training needs, switch to evaluation, and return the head itself."""


register_dataclass(HeadOutput)
