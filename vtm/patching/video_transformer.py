"""A whole video transformer as a head: frames in, logits out, with training-free merging as an option.

With `encoder=pixels`, the features of a clip are its frames, so a ready model is trained and tested like every head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from vtm.merging import FeatureGrid
from vtm.merging.partition import Generators
from vtm.merging.tokens import ClipMerge
from vtm.models.head import BlockPlan, Head, HeadOutput
from vtm.patching.class_names import match_outputs, new_layer
from vtm.patching.host import find_host
from vtm.patching.patch import patch, recording
from vtm.patching.schedules import token_counts
from vtm.patching.video_hosts import VideoHost
from vtm.patching.video_merge import VideoMerge


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
        self.head = trained if keeps else new_layer(trained.in_features, num_outputs)
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

    def record(self, features: Tensor, *, generator: Generators = None) -> tuple[HeadOutput, list[ClipMerge]]:
        """Classify one clip (1, T, S, S, 3), and return what its blocks merge, too, for pictures.

        Raises:
            ValueError: if no block merges.
        """
        if not any(self._schedule):
            raise ValueError(
                f"{self._name} merges no tokens, so there is nothing to draw; test it with model/merge=merge_similar"
            )
        with recording(self.host) as trace:
            output = self(features, generator=generator)
        return output, trace.clip_merges(images=features.shape[1] if self._facts.steps is None else 1)

    @property
    def patch_size(self) -> int:
        """Side in pixels of the patch of a frame that is a token."""
        return self._facts.patch

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
        trained, self._trained = self._trained, []
        if trained and names is not None:
            matched = match_outputs(trained[0], self._facts.labels or [], names, model=self._name)
            self.head = self.head if matched is None else matched
            self.is_trained = matched is not None
        return self.is_trained and names is not None

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


@contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators from a generator, and restore them afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
