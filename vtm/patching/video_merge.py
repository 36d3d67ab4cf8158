"""How the blocks of a whole video transformer merge tokens, as `model/merge` chooses."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from vtm.patching.block import Heads
from vtm.patching.reduction import Reduction, drop_random, merge_random
from vtm.patching.schedules import SHAPES, Shape, equal_compute


class VideoMerge:
    """How the blocks of a video transformer merge tokens.

    Args:
        count: number of tokens that a block takes away, on average over the blocks; of each frame with
            `groups="frame"`.
        ratio: share of the multiply-adds of the blocks that may be left, in (0, 1], which replaces `count`; None to
            use `count`.
        shape: how the counts change from block to block: "constant", "decreasing" or "increasing".
        proportional: whether to weigh each token in the attention by its size.
        groups: "clip" if any token may meet any other, "frame" for only the tokens of one frame.
        keys: attention keys to compare: "mean" of the heads, or all heads, "concat".
        reduce: reduction with all its settings.

    Raises:
        ValueError: if the count is negative, or the shape or the share is unknown.
    """

    def __init__(
        self,
        *,
        count: int,
        ratio: float | None,
        shape: Shape,
        proportional: bool,
        groups: Literal["clip", "frame"],
        keys: Heads,
        reduce: Reduction,
    ) -> None:
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"expected model.merge.count as a whole number >= 0, got {count!r}")
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"expected model.merge.ratio in (0, 1], or null, got {ratio!r}")
        if shape not in SHAPES:
            raise ValueError(f"expected model.merge.shape to be one of {', '.join(SHAPES)}, got {shape!r}")
        self.count, self.ratio, self.shape = count, ratio, shape
        self.options: dict[str, Any] = {"proportional": proportional, "groups": groups, "keys": keys, "reduce": reduce}
        inner: Any = reduce
        while isinstance(inner, partial):
            inner = inner.func
        self.is_random = inner in (merge_random, drop_random)

    def schedule(self, num_tokens: int, depth: int, width: int, *, protected: int) -> list[int]:
        """Return the number of tokens that each block takes away; see `equal_compute` for the arguments."""
        if self.ratio is None:
            return SHAPES[self.shape](depth, self.count)
        return equal_compute(num_tokens, depth, width, ratio=self.ratio, shape=self.shape, protected=protected)
