"""The interface of a frozen encoder, whose key identifies its features."""

from __future__ import annotations

import hashlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vtm.encoders.rounding import Quantized, StorageDtype, dequantize, quantize
from vtm.encoders.weights import check_weights_file
from vtm.merging import FeatureGrid
from vtm.system.archive import is_damaged
from vtm.system.names import explain_path
from vtm.video.frames import FrameSpec

Precision = Literal["float32", "bfloat16", "float16"]


class BackboneMerge(Protocol):
    """Merging inside a backbone, which returns as many tokens as without it.

    Attributes:
        key: description for the key of the features; empty if nothing is merged.
    """

    key: str

    def __call__(self, backbone: nn.Module, /) -> nn.Module:
        """Change a backbone and return it; raise a TypeError if it is not supported."""

    def undo(self, backbone: nn.Module, /) -> None:
        """Change a backbone back."""


class EncoderOptions(TypedDict):
    """The arguments of every encoder, documented in `Encoder`."""

    image_size: int
    squash: bool
    normalize: bool
    pretrained: bool
    checkpoint: str | None
    seed: int
    precision: Precision
    storage: StorageDtype
    merge: NotRequired[BackboneMerge | None]


class Encoder(nn.Module, ABC):
    """A frozen encoder from the frames of a clip to tokens (VTM paper, section 4.1).

    The backbone is not part of the parameters or the state of the module. It is loaded with the first frames and moves
    to the device of the frames; before that, only its shapes are known. The features do not depend on the precision of
    the trainer, the default dtype, or the other frames of a call. The backbone always receives the same number of
    frames, padded with black ones, because kernels are chosen by shape and differ in the last bits.

    Args:
        name: name of the backbone in the key, with the tag of the published weights after a dot. For other weights,
            the key has the mean and standard deviation of the tag instead of the tag.
        frames_per_step: f, number of consecutive frames per step of features.
        chunk: number of frames per call of the backbone; a multiple of f.
        mean: mean per color channel of frames in [0, 1].
        std: standard deviation per color channel of frames in [0, 1].
        details: additional parts of the key.
        image_size: S, side of the square frames in pixels.
        squash: whether to resize both sides to S; otherwise, resize the shortest side to S and crop the center.
        normalize: whether to normalize by mean and standard deviation; otherwise, frames are in [0, 1].
        pretrained: whether to use the published weights; otherwise, weights are random without a checkpoint.
        checkpoint: local file of weights to use instead.
        seed: seed of random weights; they depend on nothing else.
        precision: precision of the arithmetic of the backbone.
        storage: number format to which the tokens are rounded.
        merge: merging inside the backbone; None for none.

    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if an option, the precision or the storage format is unknown, or the checkpoint is damaged or a web
            page.
        TypeError: if the backbone does not support the merging.
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
        **options: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        if unknown := options.keys() - EncoderOptions.__annotations__.keys():
            names = {*inspect.signature(type(self)).parameters, *EncoderOptions.__annotations__} - {"options"}
            raise ValueError(f"encoder.{min(unknown)} is unknown; the known ones are {', '.join(sorted(names))}")
        for key, value, known in (
            ("precision", options["precision"], get_args(Precision)),
            ("storage", options["storage"], get_args(StorageDtype)),
        ):
            if value not in known:
                raise ValueError(f"expected encoder.{key} to be one of {', '.join(known)}, got {value}")
        self.frames = FrameSpec(options["image_size"], frames_per_step, options["squash"])
        self.chunk = chunk
        self.mean = mean if options["normalize"] else (0.0,) * 3
        self.std = std if options["normalize"] else (1.0,) * 3
        self.pretrained = options["pretrained"]
        self.checkpoint = options["checkpoint"]
        self.seed = options["seed"]
        self.precision: Precision = options["precision"]
        self.storage_dtype: StorageDtype = options["storage"]
        self.merge = options.get("merge")
        if self.merge is not None and not isinstance(getattr(self.merge, "key", None), str):
            raise TypeError(
                f"expected encoder.merge to have a key, like vtm.patching.DenseMerge, got a {type(self.merge).__name__}"
            )
        tagged = "/" in name or (self.pretrained and self.checkpoint is None)
        named, tag = (name, "") if tagged else name.partition(".")[::2]
        parts = [
            named,
            self._weights(name),
            f"{self.frames.image_size}px",
            "squash" if self.frames.squash else "crop",
            *(() if options["normalize"] else ("unnormalized",)),
            *((f"mean{_join(mean)}", f"std{_join(std)}") if tag and options["normalize"] else ()),
            *details,
            *((self.merge.key,) if self.merge and self.merge.key else ()),
            self.precision,
            self.storage_dtype,
        ]
        self.key = re.sub(r"[^\w.=+-]+", "_", "-".join(parts), flags=re.ASCII)
        with torch.device("meta"), torch.no_grad():
            frames = torch.empty(frames_per_step, 3, self.frames.image_size, self.frames.image_size)
            backbone = self.build(load=False).eval()
            _, height, width, self.channels = self.encode(backbone, frames).shape
        if self.merge:
            self._check_merge(name, backbone)
        self.grid = FeatureGrid(height, width)
        self._loaded: _Loaded | None = None

    @abstractmethod
    def build(self, *, load: bool) -> nn.Module:
        """Create the backbone; with `load`, load the chosen weights; otherwise, the weights are not used."""

    @abstractmethod
    def encode(self, backbone: Any, frames: Tensor) -> Tensor:
        """Encode normalized frames (n·f, 3, S, S) to tokens (n, H, W, C), or (n, 1, P + H·W, C) with a prefix."""

    def forward(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames (B, T·f, 3, S, S) to tokens (B, T, H, W, C), rounded as in storage."""
        return dequantize(self.quantized(frames))

    def quantized(self, frames: Tensor) -> Quantized:
        """Encode uint8 frames (B, T·f, 3, S, S) to tokens (B, T, H, W, C) in the storage format."""
        return quantize(self.tokens(frames), self.storage_dtype)

    def unmerged_tokens(self, frames: Tensor) -> Tensor:
        """Return what `tokens` would return without merging inside the backbone, up to rounding, for a comparison."""
        merge, backbone = self.merge, self._on(frames.device).backbone
        if merge is None:
            return self._tokens(frames, chunk=self.frames.frames_per_step)
        merge.undo(backbone)
        try:
            return self._tokens(frames, chunk=self.frames.frames_per_step)
        finally:
            merge(backbone)

    def tokens(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames (B, T·f, 3, S, S) to tokens (B, T, H, W, C) without rounding.

        Raises:
            TypeError: if the frames are not uint8.
            ValueError: if the frames have another shape, or the weights do not match the backbone.
            RuntimeError: if the weights cannot be downloaded.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"expected uint8 frames, which the encoder normalizes itself, got {frames.dtype}")
        expected = (3, self.frames.image_size, self.frames.image_size)
        if frames.ndim != 5 or tuple(frames.shape[2:]) != expected or frames.shape[1] % self.frames.frames_per_step:
            raise ValueError(
                f"expected frames (B, T·{self.frames.frames_per_step}, {', '.join(map(str, expected))}), "
                f"got {tuple(frames.shape)}"
            )
        return self._tokens(frames, chunk=self.chunk)

    @torch.no_grad()
    def _tokens(self, frames: Tensor, *, chunk: int) -> Tensor:
        """Encode frames, `chunk` at a time."""
        device = frames.device.type
        arithmetic = torch.autocast(
            device, dtype=getattr(torch, self.precision), enabled=self.precision != "float32", cache_enabled=False
        )
        with _float32_by_default(), arithmetic:
            backbone, mean, std = self._on(frames.device)
            tokens: list[Tensor] = []
            for part in frames.flatten(0, 1).split(chunk):
                full = pad(part, (0,) * 7 + (chunk - len(part),))  # (chunk, 3, S, S)
                encoded = self.encode(backbone, (full.float() / 255 - mean) / std).float()
                tokens.append(encoded[: len(part) // self.frames.frames_per_step])
        steps = frames.shape[1] // self.frames.frames_per_step
        return torch.cat(tokens).reshape(frames.shape[0], steps, *self.grid.shape, self.channels)

    @torch.inference_mode(False)
    def _on(self, device: torch.device) -> _Loaded:
        """Return the backbone and the normalization on a device; load the weights on the first call."""
        if self._loaded is None:
            with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would also seed the GPUs
                backbone = self.build(load=True).eval().requires_grad_(False)
                if self.merge:
                    backbone = self.merge(backbone)
            mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
            self._loaded = _Loaded(backbone, mean, std)
        if self._loaded.mean.device != device:
            self._loaded = _Loaded(*(part.to(device) for part in self._loaded))
        return self._loaded

    def _check_merge(self, name: str, backbone: nn.Module) -> None:
        """Merge inside a backbone without weights, so that errors do not come with the first frames."""
        assert self.merge is not None
        try:
            self.merge(backbone)
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"encoder.merge does not support {name}; set encoder/merge=none: {error}") from error

    def _weights(self, name: str) -> str:
        """Return the name of the weights for the key; for a file, the start of its SHA-256 hash."""
        if self.checkpoint is None:
            return "pretrained" if self.pretrained else f"random{self.seed}"
        if not Path(self.checkpoint).is_file():
            raise FileNotFoundError(
                f"encoder.checkpoint = {self.checkpoint} is missing{explain_path(self.checkpoint)}; give a local file "
                f"of weights of {name}"
            )
        check_weights_file(self.checkpoint)
        if is_damaged(self.checkpoint):
            raise ValueError(
                f"encoder.checkpoint = {self.checkpoint} is damaged: its content differs from the checksums in it; "
                "copy or download it again"
            )
        with Path(self.checkpoint).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _join(values: tuple[float, ...]) -> str:
    """Join numbers with underscores; if all are equal, write one."""
    return "_".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))


class _Loaded(NamedTuple):
    """The backbone and the normalization on one device; a tuple, so that `nn.Module` does not register the backbone."""

    backbone: Any
    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)


def check_image_size(size: int, pixels: int, model: str) -> None:
    """Check that frames divide into whole tokens.

    Raises:
        ValueError: if the size is not a multiple of the pixels per token.
    """
    if size % pixels:
        below = size // pixels * pixels
        raise ValueError(
            f"encoder.image_size = {size} is not a multiple of the {pixels} px per token of {model}; "
            f"use {f'{below} or ' if below else ''}{below + pixels}"
        )


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Set the default dtype to float32, whatever a trainer has set, and restore it afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
