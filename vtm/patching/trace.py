"""What was merged inside a patched model, as `vtm.patching.recording` records it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtm.merging import ClipMerge, Grouping, compose


@dataclass
class Trace:
    """What the blocks of a patched model merged in its last forward.

    Attributes:
        groupings: grouping of each block that took tokens away, by the index of the block.
        sizes: sizes (B, N) of the tokens after each of these blocks.
        weights: weights (B, N) of the tokens that entered each of these blocks; 0 for a token that was dropped.
        protected: number of leading tokens of the input that stay, such as CLS.
        steps: number of steps of a clip: frames, or tubelets of several frames; 1 for a model of images.
        tubelet: number of frames of the clip in a step.
        space_major: whether the tokens of the input are ordered by place and then by step, not by step and then by
            place.
    """

    groupings: dict[int, Grouping] = field(default_factory=dict)
    sizes: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    protected: int = 0
    steps: int = 1
    tubelet: int = 1
    space_major: bool = False

    def clip_grouping(self) -> Grouping:
        """Return the group after the last block of each token of the input, protected tokens included.

        Raises:
            ValueError: if nothing was recorded.
        """
        self._check()
        whole, *others = (self.groupings[block] for block in sorted(self.groupings))
        for grouping in others:
            whole = compose(whole, grouping)
        return whole

    def clip_merges(self, clip: int = 0, *, images: int = 1) -> list[ClipMerge]:
        """Return what each block that took tokens away merged of a clip, for `ClipView.of_merges` to draw.

        Args:
            clip: index of the clip in the batch.
            images: number of images of the batch that make up a clip, for a model of images; their tokens are joined
                in the order of the batch.

        Raises:
            ValueError: if nothing was recorded, or the batch has no such clip.
        """
        self._check()
        batch = len(next(iter(self.sizes.values())))
        if images < 1:
            raise ValueError(f"expected images >= 1, got {images}")
        if not 0 <= clip < batch // images:
            raise ValueError(
                f"expected clip in [0, {batch // images}), since the batch of {batch} has so many clips with images = "
                f"{images}, got clip = {clip}"
            )
        rows = slice(clip * images, (clip + 1) * images)
        num_tokens = self.groupings[min(self.groupings)].index.shape[1]
        whole = Grouping.identity(images, num_tokens, device=self.sizes[min(self.sizes)].device)
        dropped = torch.zeros_like(whole.index, dtype=torch.bool)
        merges = []
        for block in sorted(self.groupings):
            own = self.groupings[block]
            dropped = dropped | (self.weights[block][rows] == 0).gather(1, whole.index)
            whole = compose(whole, Grouping(own.index[rows], own.num_groups, own.anchor[rows]))
            merges.append(
                ClipMerge(
                    block,
                    self._step_by_step(whole).join_windows(images),
                    self._reorder(dropped).reshape(1, -1),
                    images * self.steps,
                    self.tubelet,
                )
            )
        return merges

    def _step_by_step(self, grouping: Grouping) -> Grouping:
        """Order the tokens of the input by step and then by place, and leave the protected ones out."""
        prefix = self.protected
        anchor = grouping.anchor[:, prefix:] - prefix
        if self.space_major:
            places = (grouping.index.shape[1] - prefix) // self.steps
            anchor = anchor % self.steps * places + anchor // self.steps
        return Grouping(self._reorder(grouping.index) - prefix, grouping.num_groups - prefix, anchor)

    def _reorder(self, values: Tensor) -> Tensor:
        """Order the values (B, N) of the tokens of the input like `_step_by_step`."""
        values = values[:, self.protected :]
        return values.unflatten(1, (-1, self.steps)).transpose(1, 2).flatten(1) if self.space_major else values

    def _check(self) -> None:
        if not self.groupings:
            raise ValueError("nothing was recorded; call the model inside `with recording(model)`, with a schedule > 0")
