"""The contract of a frozen encoder: a key says which features it gives, and nothing around it changes them."""

from __future__ import annotations

import hashlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vtm.encoders.rounding import Quantized, StorageDtype, dequantize, quantize
from vtm.merging import FeatureGrid
from vtm.video.frames import FrameSpec

Precision = Literal["float32", "bfloat16", "float16"]


class EncoderOptions(TypedDict):
    """Name the arguments that every encoder takes; `Encoder` explains them."""

    image_size: int
    squash: bool
    normalize: bool
    pretrained: bool
    checkpoint: str | None
    seed: int
    precision: Precision
    storage: StorageDtype


class Encoder(nn.Module, ABC):
    """Encode the frames of a clip into tokens (VTM paper, section 4.1: the backbone stays frozen).

    The backbone is no part of the module's parameters or state: it is loaded with the first frames and follows their
    device. Until then only its shapes are known. Trainer precision, default dtype and the other frames of a call
    leave the features as they are; every call of the backbone gets the same number of frames, the last ones black,
    because kernels are chosen by shape, and with another kernel the last bits differ.

    Args:
        name: of the backbone, for the key. What follows a dot is the tag of published weights, and in the key of these
            alone; that of others has the mean and standard deviation instead, which go with the tag.
        frames_per_step: f, consecutive frames that give one step of features.
        chunk: frames of one call of the backbone, a multiple of f.
        mean: per colour channel, of frames in [0, 1].
        std: per colour channel, of frames in [0, 1].
        details: further parts of the key.
        image_size: S, side of the square frames in pixels.
        squash: frames are resized to S × S whatever their shape; else the shortest side is, and the centre cut out.
        normalize: by mean and standard deviation; else the backbone sees values in [0, 1].
        pretrained: take the published weights; else random ones, unless there is a checkpoint.
        checkpoint: a local file of weights, used instead.
        seed: of random weights, which depend on nothing else.
        precision: of the backbone's arithmetic.
        storage: the number format to which the tokens are rounded.

    Raises:
        FileNotFoundError: if the checkpoint is missing.
        ValueError: if a choice, the precision or the storage is unknown.
    """

    def __init__(
        self,
        name: str,
        *,
        frames_per_step: int,
        chunk: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        details: tuple[str, ...] = (),
        **choices: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        if unknown := choices.keys() - EncoderOptions.__annotations__.keys():
            names = {*inspect.signature(type(self)).parameters, *EncoderOptions.__annotations__} - {"choices"}
            raise ValueError(f"encoder.{min(unknown)} is unknown; there are {', '.join(sorted(names))}")
        for key, value, known in (
            ("precision", choices["precision"], get_args(Precision)),
            ("storage", choices["storage"], get_args(StorageDtype)),
        ):
            if value not in known:
                raise ValueError(f"expected as encoder.{key} one of {', '.join(known)}, got {value}")
        self.frames = FrameSpec(choices["image_size"], frames_per_step, choices["squash"])
        self.chunk = chunk
        self.mean = mean if choices["normalize"] else (0.0,) * 3
        self.std = std if choices["normalize"] else (1.0,) * 3
        self.pretrained = choices["pretrained"]
        self.checkpoint = choices["checkpoint"]
        self.seed = choices["seed"]
        self.precision: Precision = choices["precision"]
        self.storage_dtype: StorageDtype = choices["storage"]
        tagged = "/" in name or (self.pretrained and self.checkpoint is None)
        named, tag = (name, "") if tagged else name.partition(".")[::2]
        parts = [
            named,
            self._weights(name),
            f"{self.frames.image_size}px",
            "squash" if self.frames.squash else "crop",
            *(() if choices["normalize"] else ("unnormalized",)),
            *((f"mean{_join(mean)}", f"std{_join(std)}") if tag and choices["normalize"] else ()),
            *details,
            self.precision,
            self.storage_dtype,
        ]
        self.key = re.sub(r"[^\w.=+-]+", "_", "-".join(parts), flags=re.ASCII)
        with torch.device("meta"), torch.no_grad():
            frames = torch.empty(frames_per_step, 3, self.frames.image_size, self.frames.image_size)
            _, height, width, self.channels = self.encode(self.build(load=False).eval(), frames).shape
        self.grid = FeatureGrid(height, width)
        self._loaded: _Loaded | None = None

    @abstractmethod
    def build(self, *, load: bool) -> nn.Module:
        """Make the backbone; with `load` its weights are the chosen ones, without they are never looked at."""

    @abstractmethod
    def encode(self, backbone: Any, frames: Tensor) -> Tensor:
        """Map normalised frames (n·f, 3, S, S) to tokens (n, H, W, C), or (n, 1, P + H·W, C) with a prefix."""

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames, uint8 (B, T·f, 3, S, S), to tokens (B, T, H, W, C) as they come back from storage."""
        return dequantize(self.quantized(frames))

    def quantized(self, frames: Tensor) -> Quantized:
        """Encode frames, uint8 (B, T·f, 3, S, S), to tokens (B, T, H, W, C) in the format of storage."""
        return quantize(self.tokens(frames), self.storage_dtype)

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:
        """Encode frames, uint8 (B, T·f, 3, S, S), to tokens (B, T, H, W, C) before they are rounded.

        Raises:
            TypeError: if the frames are not uint8.
            ValueError: if their shape is another one, or the weights do not fit.
            RuntimeError: if the weights cannot be fetched.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"expected uint8 frames, which the encoder normalises itself, got {frames.dtype}")
        expected = (3, self.frames.image_size, self.frames.image_size)
        if frames.ndim != 5 or tuple(frames.shape[2:]) != expected or frames.shape[1] % self.frames.frames_per_step:
            raise ValueError(
                f"expected frames (B, T·{self.frames.frames_per_step}, {', '.join(map(str, expected))}), "
                f"got {tuple(frames.shape)}"
            )
        device = frames.device.type
        arithmetic = torch.autocast(
            device, dtype=getattr(torch, self.precision), enabled=self.precision != "float32", cache_enabled=False
        )
        with _float32_by_default(), arithmetic:
            backbone, mean, std = self._on(frames.device)
            tokens: list[Tensor] = []
            for part in frames.flatten(0, 1).split(self.chunk):
                full = pad(part, (0,) * 7 + (self.chunk - len(part),))  # (chunk, 3, S, S)
                encoded = self.encode(backbone, (full.float() / 255 - mean) / std).float()
                tokens.append(encoded[: len(part) // self.frames.frames_per_step])
        return torch.cat(tokens).reshape(frames.shape[0], -1, *self.grid.shape, self.channels)

    @torch.inference_mode(False)
    def _on(self, device: torch.device) -> _Loaded:
        """Return what encodes on a device, the first time with loading the weights."""
        if self._loaded is None:
            with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reach those of the GPUs, too
                backbone = self.build(load=True).eval().requires_grad_(False)
            mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
            self._loaded = _Loaded(backbone, mean, std)
        if self._loaded.mean.device != device:
            self._loaded = _Loaded(*(part.to(device) for part in self._loaded))
        return self._loaded

    def _weights(self, name: str) -> str:
        """Name the weights, which a file does by its content."""
        if self.checkpoint is None:
            return "pretrained" if self.pretrained else f"random{self.seed}"
        if not Path(self.checkpoint).is_file():
            raise FileNotFoundError(
                f"encoder.checkpoint = {self.checkpoint} is missing; give a local file of weights of {name}"
            )
        with Path(self.checkpoint).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _join(values: tuple[float, ...]) -> str:
    """Write numbers in a row, or once if they are all the same."""
    return "_".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))


class _Loaded(NamedTuple):
    """Hold what is on a device; a tuple, so that `nn.Module` does not take the backbone for a part of the encoder."""

    backbone: Any
    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)


def check_image_size(size: int, pixels: int, model: str) -> None:
    """Check that frames divide into whole tokens.

    Raises:
        ValueError: if the size is no multiple of the pixels that become one token.
    """
    if size % pixels:
        below = size // pixels * pixels
        raise ValueError(
            f"encoder.image_size = {size} is no multiple of the {pixels} px that become one token of {model}; "
            f"{f'{below} or ' if below else ''}{below + pixels} would be"
        )


@contextmanager
def fetching(weights: str) -> Iterator[None]:
    """Say what to do where published weights cannot be had.

    Raises:
        RuntimeError: if there is no way to them.
    """
    try:
        yield
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise RuntimeError(
            f"the weights {weights} can be neither found on this machine nor fetched ({reason}); fetch them elsewhere "
            "and give the file with encoder.checkpoint=<file>, or take encoder=vit_tiny_random, which needs none"
        ) from error


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Keep a trainer's half precision away from what is built and computed within."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
