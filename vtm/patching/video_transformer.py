"""A whole video transformer as a head: frames in, logits out, with training-free merging as an option.

With `encoder=pixels`, the features of a clip are its frames, so a ready model is trained and tested like every head.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from vtm.merging import FeatureGrid
from vtm.merging.partition import Generators
from vtm.models.head import BlockPlan, Head, HeadOutput
from vtm.patching.block import Heads
from vtm.patching.host import find_host
from vtm.patching.patch import patch
from vtm.patching.reduction import Reduction, drop_random, merge_random
from vtm.patching.schedules import SHAPES, Shape, equal_compute, token_counts
from vtm.patching.video_hosts import VideoHost

_SHOWN = 3  # names of classes in a message


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


class VideoTransformer(Head):
    """A ready video transformer, such as VideoMAE, whose blocks may merge tokens.

    Args:
        in_channels: number of channels of the features, 3, because they are the pixels of frames.
        num_outputs: K, number of classes, or 1 for a regression.
        grid: layout of the features of a step, S × S pixels.
        host: function that makes the transformer, see `vtm.patching.video_hosts`.
        merge: merging in its blocks; None for none.
        frozen_layers: number of blocks that are not trained, from the first one on, nor is anything before them.
        new_classifier: whether to train a new last layer even if the trained one has as many classes.

    Raises:
        ValueError: if the features are not frames, or an option does not fit the transformer.
        TypeError: if the blocks of the transformer cannot merge tokens.
    """

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        grid: FeatureGrid | None,
        *,
        host: Callable[[int], VideoHost],
        merge: VideoMerge | None = None,
        frozen_layers: int = 0,
        new_classifier: bool = False,
    ) -> None:
        super().__init__()
        if in_channels != 3 or grid is None:
            raise ValueError(
                f"model=video_transformer takes frames, not features of {in_channels} channels; set encoder=pixels"
            )
        self.host, trained, self._facts = host(num_outputs)
        self._name = type(self.host).__name__
        keeps = trained.out_features == num_outputs and not new_classifier
        self.head = trained if keeps else _new_layer(trained.in_features, num_outputs)
        self.is_trained = keeps and self._facts.labels is not None
        self._trained: list[nn.Linear] = [] if self._facts.labels is None or new_classifier else [trained]
        blocks = find_host(self.host)[2]
        depth = len(blocks)
        if not 0 <= frozen_layers <= depth:
            raise ValueError(f"expected model.frozen_layers from 0 to the {depth} blocks, got {frozen_layers}")
        self._freeze(blocks[:frozen_layers])
        self.merge = merge
        self._schedule = [0] * depth
        if merge is not None:
            patch(self.host, self._plan_schedule, **merge.options)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the host has read from a checkpoint, by their place in the configuration of the model."""
        return {"host": {"config": self._facts.config}}

    @property
    def needs_motion(self) -> bool:
        """False: no host uses motion."""
        return False

    @property
    def samples_in_eval(self) -> bool:
        """Whether tokens are merged or dropped at random."""
        return self.merge is not None and self.merge.is_random

    def forward(
        self,
        features: Tensor,
        *,
        motion: Tensor | None = None,
        mask: Tensor | None = None,
        generator: Generators = None,
    ) -> HeadOutput:
        """Classify clips (B, T, S, S, 3) of normalized frames, see `Head.forward`.

        Raises:
            TypeError: if the frames are not in floating point.
            ValueError: if the clips do not fit, or some of their frames are masked.
        """
        if not features.is_floating_point():
            raise TypeError(f"expected normalized frames in floating point, got {features.dtype}")
        if features.ndim != 5 or features.shape[4] != 3:
            raise ValueError(f"expected clips (B, T, S, S, 3), got {tuple(features.shape)}")
        self.plan(*features.shape[1:4])
        if mask is not None:
            raise ValueError(
                f"{self._name} takes whole clips without padding, but some clips end before their video has enough "
                "frames; set data/protocol=dense, which repeats the last frame"
            )
        clips = features.permute(0, 1, 4, 2, 3).contiguous()  # (B, T, 3, S, S)
        if generator is None or not self.samples_in_eval:
            return HeadOutput(self._logits(clips), None, ())
        generators = generator if isinstance(generator, Sequence) else [generator] * len(clips)
        logits = []
        for clip, source in zip(clips.split(1), generators, strict=True):
            with _seeded(source, clip.device):
                logits.append(self._logits(clip))
        return HeadOutput(torch.cat(logits), None, ())

    def plan(self, frames: int, height: int, width: int) -> list[BlockPlan]:
        """Check that clips have the shape that the host expects; there are no plans of blocks.

        Raises:
            ValueError: if they have not.
        """
        expected_frames = frames if self._facts.frames is None else self._facts.frames
        size = height if self._facts.image_size is None else self._facts.image_size
        if (frames, height, width) != (expected_frames, size, size):
            raise ValueError(
                f"{self._name} takes clips of {expected_frames} frames of {size} × {size} pixels, got {frames} of "
                f"{height} × {width}; change data.protocol.num_frames and encoder.image_size, or model.host.config"
            )
        return []

    def token_counts(self, frames: int, height: int, width: int) -> list[int]:
        """Return how many tokens of a clip enter each block, followed by how many remain."""
        steps, whole, protected = self._tokens(frames, height, width)
        counts = token_counts(self._schedule, whole, protected=protected)
        if self._facts.steps is None or not self._merges_in_frames:
            return [steps * count for count in counts]
        return [self._protected + steps * count for count in counts]

    def match_classes(self, names: Sequence[str] | None) -> bool:
        """Bring the trained last layer into the order of the classes, or replace it by a new one and say so.

        Args:
            names: names of the K classes, by index; None for a regression.

        Returns:
            whether the last layer is trained.

        Raises:
            ValueError: if the trained layer has K classes of other names.
        """
        trained, labels, name = self._trained, self._facts.labels, self._name
        self._trained = []
        if not trained or names is None:
            self.is_trained = self.is_trained and names is not None
            return self.is_trained
        (layer,) = trained
        rows = {_plain(label): row for row, label in enumerate(labels or [])}
        absent = [text for text in names if _plain(text) not in rows]
        if not absent:
            order = [rows[_plain(text)] for text in names]
            if order != list(range(layer.out_features)):
                self.head = _select(layer, order)
            if len(names) < layer.out_features:
                warnings.warn(
                    f"the {len(names)} classes of the data are compared only with one another; {name} knows "
                    f"{layer.out_features}",
                    stacklevel=2,
                )
            self.is_trained = True
        elif len(names) != layer.out_features:
            warnings.warn(
                f"the last layer of {name} is new, with {len(names)} classes, because the trained one has "
                f"{layer.out_features} and lacks {_shown(absent)}",
                stacklevel=2,
            )
        elif labels:
            others = [label for label in labels if _plain(label) not in set(map(_plain, names))]
            raise ValueError(
                f"{name} is trained on other classes: the data have {_shown(absent)} where it has {_shown(others)}; "
                "use the data it was trained on, or set model.new_classifier=true to train a new last layer"
            )
        else:
            warnings.warn(
                f"the checkpoint of {name} does not name its {len(names)} classes, so they are taken in the order of "
                f"the data, {_shown(list(names))}",
                stacklevel=2,
            )
        return self.is_trained

    def freeze_unused(self, frames: int, height: int, width: int) -> None:
        """Disable the gradients of the parts of the host that its features do not use."""
        for part in self._facts.unused:
            self.host.get_submodule(part).requires_grad_(False)

    def for_inference(self) -> Self:
        """Switch to evaluation mode and return the head itself."""
        return self.eval()

    def _logits(self, clips: Tensor) -> Tensor:
        """Classify clips (B, T, 3, S, S); logits of frames are averaged."""
        logits: Tensor = self.head(self._facts.features(self.host, clips))
        return logits.mean(1) if logits.ndim == 3 else logits

    def _freeze(self, blocks: Sequence[nn.Module]) -> None:
        """Disable the gradients of blocks and of all parameters that are registered before them."""
        last = {id(parameter) for parameter in blocks[-1].parameters()} if blocks else set()
        parameters = list(self.host.parameters())
        end = max((index for index, parameter in enumerate(parameters) if id(parameter) in last), default=-1)
        for parameter in parameters[: end + 1]:
            parameter.requires_grad_(False)

    @property
    def _merges_in_frames(self) -> bool:
        return self.merge is not None and self.merge.options["groups"] == "frame"

    @property
    def _protected(self) -> int:
        host, owner, _ = find_host(self.host)
        return host.facts(owner).protected

    def _tokens(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the number of groups whose tokens cannot meet, and of all and of protected tokens in each."""
        per_step = (height // self._facts.patch) * (width // self._facts.patch)
        if self._facts.steps is None:  # images
            return frames, self._protected + per_step, self._protected
        if self._merges_in_frames:
            return self._facts.steps, per_step, 0
        return 1, self._protected + self._facts.steps * per_step, self._protected

    def _plan_schedule(self, model: nn.Module) -> list[int]:
        assert self.merge is not None
        host, owner, blocks = find_host(model)
        facts = self._facts
        frames, size = facts.frames or 1, facts.image_size or 224
        _, whole, protected = self._tokens(frames, size, size)
        self._schedule = self.merge.schedule(whole, len(blocks), host.facts(owner).width, protected=protected)
        return self._schedule


def _new_layer(channels: int, num_outputs: int) -> nn.Linear:
    layer = nn.Linear(channels, num_outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _select(layer: nn.Linear, rows: Sequence[int]) -> nn.Linear:
    """Return a layer with some of the outputs of another, in the given order."""
    chosen = nn.Linear(layer.in_features, len(rows))
    with torch.no_grad():
        chosen.weight.copy_(layer.weight[list(rows)])
        chosen.bias.copy_(layer.bias[list(rows)])
    return chosen


def _plain(name: str) -> str:
    """Return the name of a class without what lists of one data set spell differently.

    >>> _plain("Putting [something] on_a table")
    'putting something on a table'
    """
    return " ".join(re.sub(r"[\[\]_]", " ", name).casefold().split())


def _shown(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


@contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators from a generator, and restore them afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
