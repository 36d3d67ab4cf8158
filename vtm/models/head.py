"""What every head takes, gives and plans."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from vtm.merging import Grouping, compose


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
