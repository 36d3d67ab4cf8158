"""Select the blocks, layers and frames of a clip to draw, and the scale of saliency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from vtm.pictures.captions import describe_block
from vtm.pictures.colors import Ints
from vtm.pictures.layers import LAYERS, Scale
from vtm.pictures.view import BlockView, ClipView


@dataclass(frozen=True)
class Selection:
    """A choice of the blocks, layers and frames of a clip to draw.

    Attributes:
        blocks: numbers of the blocks, counted from 1, in the order in which they are drawn; None for all.
        layers: some of `LAYERS`, in the order in which they are drawn; None for all that the model has.
        frames: maximum number of frames of a sheet, spread evenly over the clip.
        scale: "all" for one scale of saliency for all blocks of the model, drawn or not; "block" for a separate scale
            for each block.

    Raises:
        ValueError: if a value is not one of these.
    """

    blocks: tuple[int, ...] | None = None
    layers: tuple[str, ...] | None = None
    frames: int = 8
    scale: Literal["all", "block"] = "all"

    def __post_init__(self) -> None:
        if self.layers is not None:
            _check("layers", self.layers, LAYERS)
        if self.frames < 1:
            raise ValueError(f"frames: expected a whole number above 0, got {self.frames}")
        if self.scale not in ("all", "block"):
            raise ValueError(f"scale: expected all or block, got {self.scale}")

    def of(self, view: ClipView) -> Selected:
        """Select from a clip.

        Raises:
            ValueError: if the clip lacks a block or a layer that is selected.
        """
        estimates = view.blocks[0].saliency is not None
        layers = self.layers or LAYERS[not estimates :]
        if "saliency" in layers and not estimates:
            raise ValueError("layers: expected targets or groups, since this model estimates no saliency, got saliency")
        known = view.numbers or tuple(range(1, len(view.blocks) + 1))
        numbers = self.blocks or known
        _check("blocks", numbers, known)
        scale = Scale.of(view.blocks) if self.scale == "all" else None
        entered = [view.blocks[0].group.numel(), *(block.num_groups for block in view.blocks)]
        parts = []
        for number in numbers:
            index = known.index(number)
            block = view.blocks[index]
            facts = describe_block(block, entered=entered[index], saliency="saliency" in layers)
            parts.append(Part(number, block, facts, scale or Scale.of([block])))
        steps = np.linspace(0, len(view.times) - 1, min(self.frames, len(view.times))).round().astype(np.int64)
        return Selected(layers, scale, parts, steps)


class Part(NamedTuple):
    """A block that is drawn.

    Attributes:
        number: number of the block, counted from 1.
        block: view of the block.
        facts: lines of text about the block.
        scale: scale of its saliency; None without an estimator.
    """

    number: int
    block: BlockView
    facts: list[str]
    scale: Scale | None


class Selected(NamedTuple):
    """The parts of a clip that are drawn.

    Attributes:
        layers: names of the layers.
        scale: scale of saliency that all blocks share; None if each has its own.
        parts: the blocks.
        steps: steps of the clip that a sheet shows, (n,) int64.
    """

    layers: tuple[str, ...]
    scale: Scale | None
    parts: list[Part]
    steps: Ints

    @property
    def opening(self) -> int:
        """Index of the part to look at first: the last one whose saliency tells the tokens of a frame apart.

        Later blocks merge more, but in the last ones saliency may be almost the same everywhere in a frame. The
        standard deviation within a frame, averaged over frames, must be at least half of the largest one. Without an
        estimator, it is the last part.
        """
        spreads = [_spread(part.block) for part in self.parts]
        return max(index for index, spread in enumerate(spreads) if spread >= max(spreads) / 2)


def _spread(block: BlockView) -> float:
    return 0.0 if block.saliency is None else block.saliency.flatten(1).std(1, correction=0).mean().item()


def _check(key: str, found: Sequence[int] | Sequence[str], known: Sequence[int] | Sequence[str]) -> None:
    if not found or len(set(found)) < len(found) or not set(found) <= set(known):
        raise ValueError(
            f"{key}: expected some of {','.join(map(str, known))}, each at most once, got {','.join(map(str, found))}"
        )
