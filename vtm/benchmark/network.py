"""The network, the encoder and the random inputs of a row, built from the configuration of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtm.benchmark.rows import CONF, Row, Setting
from vtm.cli.overrides import near_misses
from vtm.models import VTM, HeadOutput
from vtm.models.streaming import Stream

if TYPE_CHECKING:  # slow to import, and most rows need neither
    from vtm.encoders import Encoder
    from vtm.tasks.task import Task

CLASSES = 6  # of LVU's scenes
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def composed(row: Row, setting: Setting) -> DictConfig:
    """Compose the configuration of a row, with random encoder weights, so that nothing is downloaded.

    Raises:
        ValueError: if an override is unknown or sets `merging` or another network.
    """
    if taken := [text for text in setting.overrides if text.startswith("merging=")]:
        raise ValueError(
            f"{taken[0]} would make all rows the same; leave it out, because every strategy has its own rows"
        )
    if taken := [text for text in setting.overrides if text.startswith(("model=", "encoder=pixels"))]:
        raise ValueError(
            f"{taken[0]} is not measured here, because all rows are of vtm's own network; python -m vtm.benchmark "
            "merging measures merging in ready transformers"
        )
    shared = tuple(text for text in setting.overrides if _concerns(text, row.strategy))
    return _composed(row.strategy, shared, row.overrides)


def identity(row: Row, setting: Setting) -> tuple[Row, str]:
    """Return a key for what a row measures; overrides that change nothing do not change it."""
    config = composed(row, setting)
    chosen = {"model": config.model, "encoder": config.encoder if row.encoder else None, "motion": config.motion}
    resolved = OmegaConf.to_yaml(OmegaConf.create(chosen | {"merging": config.merging}), resolve=True)
    return replace(row, overrides=()), resolved


def make_encoder(row: Row, setting: Setting) -> Encoder | None:
    """Build the encoder of a row, if it has one."""
    encoder: Encoder | None = instantiate(composed(row, setting).encoder) if row.encoder else None
    return encoder


def on_tokens(setting: Setting, encoder: Encoder | None) -> Setting:
    """Return the setting with the token shape of an encoder."""
    if encoder is None:
        return setting
    height, width = encoder.grid.shape
    return replace(setting, height=height, width=width, channels=encoder.channels)


class Workload:
    """The model and the inputs of a row, to be called once per measurement.

    Within FakeTensorMode it takes no memory.

    Args:
        row: row to measure.
        setting: setting of all rows.

    Attributes:
        model: network.
        encoder: encoder in front of the network, or None.
        shape: shape (B, T, H, W, C) of the features.
        inputs: features of this shape, or uint8 frames (B, T·f, 3, S, S) for the encoder; None for a stream.

    Raises:
        ValueError: if an override is unknown, or the clips do not fit the network.
    """

    def __init__(self, row: Row, setting: Setting) -> None:
        config = composed(row, setting)
        self.row = row
        self.device = torch.device(setting.device)
        self.encoder = make_encoder(row, setting)
        setting = on_tokens(setting, self.encoder)
        self.shape = (row.batch, row.frames or setting.frames, setting.height, setting.width, setting.channels)
        self.task: Task | None = instantiate(config.task, CLASSES) if row.training else None
        with self.device:
            grid = None if self.encoder is None else self.encoder.grid
            self.model: VTM = instantiate(config.model, setting.channels, CLASSES, grid)
        self.model = self.model.train() if row.training else self.model.for_inference()
        self.plan = self.model.plan(*self.shape[1:4])
        self.motion = torch.rand(self.shape[:4], device=self.device) if config.motion else None
        self.target = torch.zeros(row.batch, dtype=torch.int64, device=self.device)
        self.network = torch.compile(self.model) if row.compiled else self.model
        self.inputs = None if row.streaming else self._inputs()

    def features(self, frames: int) -> Tensor:
        """Draw random features (B, frames, H, W, C); some kernels would be faster on zeros."""
        return torch.randn(self.shape[0], frames, *self.shape[2:], device=self.device)

    def __call__(self) -> None:
        """Run the encoder, if there is one, and the network once."""
        self.step(self.encode())

    def step(self, features: Tensor) -> None:
        """Run the network on features (B, T, H, W, C); in training also compute loss and gradients."""
        if self.task is None:
            self.head(features)
            return
        self.model.zero_grad(set_to_none=True)
        with self._autocast():
            output = self.head(features)
            loss = self.task.loss(output.logits, output.aux_logits, self.target)["loss"]
        loss.backward()

    def head(self, features: Tensor) -> HeadOutput:
        """Run the network on features (B, t, H, W, C)."""
        motion = None if self.motion is None else self.motion[:, : features.shape[1]]
        with self._autocast():
            output: HeadOutput = self.network(features, motion=motion)
        return output

    def take(self, stream: Stream, features: Tensor, start: int) -> None:
        """Pass features to a stream, with the motion from frame `start` on."""
        motion = None if self.motion is None else self.motion[:, start : start + features.shape[1]]
        with self._autocast():
            stream.update(features, motion=motion)

    def encode(self) -> Tensor:
        """Turn the inputs into features (B, T, H, W, C); the encoder's attention is fused in every row."""
        assert self.inputs is not None  # None only for a stream
        with sdpa_kernel(FUSED), self._autocast():
            return self.inputs if self.encoder is None else self.encoder(self.inputs)

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Select the attention kernels of the row, and enable gradients only for training."""
        allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # else plain attention in bf16 computes in fp32
        kernels = [SDPBackend.MATH] if self.row.plain else FUSED
        try:
            with sdpa_kernel(kernels), torch.inference_mode(not self.row.training):
                yield
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.row.precision]
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def _inputs(self) -> Tensor:
        if self.encoder is None:
            return self.features(self.shape[1])
        size, steps = self.encoder.frames.image_size, self.shape[1] * self.encoder.frames.frames_per_step
        return torch.randint(0, 256, (self.shape[0], steps, 3, size, size), dtype=torch.uint8, device=self.device)


def _concerns(override: str, strategy: str) -> bool:
    """Return whether an override of the user applies to the rows of a strategy."""
    key = override.lstrip("+~").split("=")[0]
    if key == "merging.saliency_weight":  # only where it is a number: not null (no auxiliary attention), not "scale"
        return isinstance(_composed(strategy, (), ()).merging.get("saliency_weight"), int | float)
    return strategy != "none" or not key.startswith("merging")


@cache  # composing takes a third of a second
def _composed(strategy: str, shared: tuple[str, ...], own: tuple[str, ...]) -> DictConfig:
    chosen = ["experiment=lvu_scene", f"merging={strategy}", "encoder.pretrained=false", *shared, *own]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", overrides=chosen)
    except HydraException as error:
        first = " ".join(str(error).split("\n")[0].split())
        if "'encoder.pretrained'" in first:
            first = "encoder=precomputed cannot be measured, because it computes nothing; choose another encoder"
        lines = near_misses(list(shared), CONF, "train") or [first]
        raise ValueError(f"{lines[0]} (the rows of the benchmark are overrides of conf/train.yaml)") from None
