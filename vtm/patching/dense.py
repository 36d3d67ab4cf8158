"""Merging inside an image encoder whose features stay a dense grid."""

from __future__ import annotations

import inspect
import threading
import warnings
from functools import partial
from typing import Any

from torch import Tensor, nn

from vtm.merging import unmerge
from vtm.patching.patch import patch, recording, unpatch
from vtm.patching.reduction import Reduction, drop_random, merge_random
from vtm.patching.schedules import SHAPES, Shape, token_counts

_recorded = threading.Lock()  # a model records for one thread at a time


class DenseMerge:
    """A patch for an image model of timm, after which each token has the features of the group it was merged into.

    So the model returns as many tokens as before.

    Args:
        count: number of tokens of a frame that a block takes away, on average over the blocks.
        shape: how the counts change from block to block: "constant", "decreasing" or "increasing".
        proportional: whether to weigh each token in the attention by its size; the papers do so for models that were
            trained with labels.
        reduce: reduction, but not a random one, because features must be reproducible.

    Raises:
        ValueError: if the count is negative, the shape is unknown, or the reduction is random, has no name,
            or is not one.
    """

    def __init__(self, *, count: int, shape: Shape, proportional: bool, reduce: Reduction) -> None:
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"expected merge.count as a whole number >= 0, got {count!r}")
        if shape not in SHAPES:
            raise ValueError(f"expected merge.shape to be one of {', '.join(SHAPES)}, got {shape!r}")
        name, settings = _describe(reduce)
        if name in (merge_random.__name__, drop_random.__name__):
            raise ValueError(f"expected a reduction that gives the same features again, got {name}")
        try:
            inspect.signature(reduce).bind(None, None, 1, protected=0)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "expected merge.reduce as a reduction with all its settings, like vtm.patching.merge_similar, got "
                f"{name}: {error}"
            ) from None
        self.count = count
        self.shape = shape
        self.proportional = proportional
        self.reduce = reduce
        parts = [name, *settings, f"{shape}{count}", *(() if proportional else ("unweighted",))]
        self.key = "-".join(parts) if count else ""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Patch a model in place and return it.

        Raises:
            TypeError: if the model is not one that `vtm.patching` supports.
        """
        patch(model, self._schedule, reduce=self.reduce, proportional=self.proportional)
        self._warn_of_clamped(model)
        model.forward_features = _DenseFeatures(model)  # type: ignore[assignment]
        return model

    def undo(self, model: Any) -> None:
        """Undo the patch of a model in place."""
        del model.forward_features
        unpatch(model)

    def _warn_of_clamped(self, model: Any) -> None:
        """Warn if blocks have too few tokens left to take as many away as their counts."""
        counts, protected = self._schedule(model), model.num_prefix_tokens
        num_tokens = model.patch_embed.num_patches + protected
        *_, left = token_counts(counts, num_tokens, protected=protected)
        if num_tokens - left < sum(counts):
            warnings.warn(
                f"merge.count={self.count}: the blocks take away {num_tokens - left} of {num_tokens} tokens of a "
                f"frame, not {sum(counts)}, since a block takes away at most half of the tokens it is given",
                stacklevel=2,
            )

    def _schedule(self, model: Any) -> list[int]:
        return SHAPES[self.shape](len(model.blocks), self.count)


class _DenseFeatures:
    """The `forward_features` of a patched model, with as many tokens as without the patch."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        with _recorded, recording(self.model) as trace:
            features: Tensor = type(self.model).forward_features(self.model, x)
        return unmerge(features, trace.clip_grouping()) if trace.groupings else features


def _describe(reduce: Any) -> tuple[str, list[str]]:
    """Return the name of a reduction and its settings, such as "threshold=0.4".

    Raises:
        ValueError: if it has no name by which to find it again.
    """
    settings: dict[str, Any] = {}
    while isinstance(reduce, partial):
        settings = reduce.keywords | settings
        reduce = reduce.func
    module, name = getattr(reduce, "__module__", None), getattr(reduce, "__qualname__", "<object>")
    if "<" in name:
        raise ValueError(
            f"expected merge.reduce as a function of a module, whose name tells features apart, got {reduce}"
        )
    name = name if str(module).startswith("vtm.patching.") else f"{module}.{name}"
    return name, [f"{key}={value}" for key, value in sorted(settings.items())]
