"""The interface of a head, the trained network on the features of a clip, and the types of its outputs and plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from vtm.merging import Grouping, compose
from vtm.merging.partition import Generators


class BlockTrace(NamedTuple):
    """The merge of one block; rows are the B · T / L_i windows of all clips.

    Attributes:
        grouping: groups of the N tokens of each window.
        targets: (rows, M) int64, indices of the targets.
        saliency: (rows, N), or None without an estimator.
        window_frames: L_i, number of frames of a window.
    """

    grouping: Grouping
    targets: Tensor
    saliency: Tensor | None
    window_frames: int


class BlockPlan(NamedTuple):
    """The shapes of one block for clips of a given shape."""

    window_frames: int
    windows: int
    num_tokens: int  # N of one window
    num_targets: int  # M
    merge_count: int  # R
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class HeadOutput:
    """The outputs of a head.

    Attributes:
        logits: logits (B, K) of the main path.
        aux_logits: logits (B, K) of the auxiliary path; None in evaluation or if no saliency is learned.
        blocks: one trace per block.
    """

    logits: Tensor
    aux_logits: Tensor | None
    blocks: tuple[BlockTrace, ...]

    def clip(self, index: int) -> HeadOutput:
        """Return the outputs of one clip of the batch, whose windows are consecutive rows in every block."""
        batch, blocks = len(self.logits), []
        for grouping, targets, saliency, window_frames in self.blocks:
            share = len(targets) // batch
            rows = slice(index * share, (index + 1) * share)
            own = Grouping(grouping.index[rows], grouping.num_groups, grouping.anchor[rows])
            blocks.append(BlockTrace(own, targets[rows], None if saliency is None else saliency[rows], window_frames))
        aux_logits = None if self.aux_logits is None else self.aux_logits[index : index + 1]
        return HeadOutput(self.logits[index : index + 1], aux_logits, tuple(blocks))

    def clip_groupings(self) -> list[Grouping]:
        """Return, for every block, the group of each input token of a clip after that block."""
        batch = self.logits.shape[0]
        steps = (trace.grouping.join_windows(trace.grouping.index.shape[0] // batch) for trace in self.blocks)
        return list(accumulate(steps, compose))

    def clip_targets(self) -> list[Tensor]:
        """Return, for every block, the anchors of its targets among the input tokens of a clip: (B, windows · M)."""
        batch, anchors, before = self.logits.shape[0], [], None
        for trace, after in zip(self.blocks, self.clip_groupings(), strict=True):
            rows, num_tokens = trace.grouping.index.shape
            first = num_tokens * torch.arange(rows // batch, device=after.index.device).repeat(batch)
            targets = (trace.targets + first[:, None]).reshape(batch, -1)  # among the tokens that enter the block
            anchors.append(targets if before is None else before.anchor.gather(1, targets))
            before = after
        return anchors


class Head(nn.Module, ABC):
    """A network from the features of a clip to logits.

    A head is created by `head(in_channels, num_outputs, grid)` with the width of the features, K outputs (1 for
    regression), and the layout of the tokens of a step.

    Attributes:
        head: last layer, with K outputs; fine-tuning does not load its weights.
    """

    head: nn.Linear

    @property
    @abstractmethod
    def needs_motion(self) -> bool:
        """Whether `forward` needs the motion of the tokens."""

    @property
    @abstractmethod
    def samples_in_eval(self) -> bool:
        """Whether `forward` draws random numbers in evaluation too."""

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
            features: features (B, T, *grid.shape, C) of the encoder.
            motion: (B, T, *grid.shape), motion magnitude in pixels per frame.
            mask: (B, T) bool, True = real step. Masked steps are ignored, even if they are NaN.
            generator: generator of the sampling noise: None, one, or one per clip (see `vtm.merging.partition`).

        Raises:
            TypeError: if the features are not in floating point.
            ValueError: if the shapes do not match the head or one another.
        """

    @abstractmethod
    def plan(self, frames: int, height: int, width: int) -> list[BlockPlan]:
        """Compute the shapes of every block used for clips of T steps in the layout H × W.

        Raises:
            ValueError: if the head does not support clips of this shape.
        """

    @abstractmethod
    def token_counts(self, frames: int, height: int, width: int) -> list[int]:
        """Return how many tokens of a clip of this shape enter each block, followed by how many remain."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings that the head has read from a checkpoint; the configuration keeps them, to build it without."""

    @abstractmethod
    def match_classes(self, names: Sequence[str] | None) -> bool:
        """Match the outputs of a head that is trained already with the names of the classes; None for a regression.

        Returns:
            whether the head is trained already, so that it can be tested without a checkpoint of `train.py`.
        """

    @abstractmethod
    def freeze_unused(self, frames: int, height: int, width: int) -> None:
        """Disable the gradients of parameters that clips of this shape do not use, as DDP requires."""

    @abstractmethod
    def for_inference(self) -> Self:
        """Remove the parts used only in training, switch to evaluation mode, and return the head itself."""


register_dataclass(HeadOutput)
