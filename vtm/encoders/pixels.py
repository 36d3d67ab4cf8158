"""The encoder of whole video transformers: it normalizes frames and hands their pixels through as features."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn

from vtm.encoders.weights import offline_without_hub
from vtm.merging import FeatureGrid
from vtm.video.frames import FrameSpec

_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")  # preferred first


class Pixels(nn.Module):
    """An encoder without a backbone, whose features are the normalized pixels of the frames.

    The features of a step are one frame (S, S, 3), so a `vtm.patching.VideoTransformer` takes them as frames.

    Args:
        image_size: S, side of the square frames in pixels.
        mean: mean per color channel of frames in [0, 1].
        std: standard deviation per color channel of frames in [0, 1].
        squash: whether to resize both sides to S; otherwise, resize the shortest side to S and crop the square.
        pretrained: whether the processor file of `processor` replaces `image_size`, `mean` and `std`.
        processor: name of a model on the Hub, or local folder; None, or one without a processor file, replaces nothing.

    Attributes:
        settings: arguments with the values of the processor file, which build the same encoder without the file.

    Raises:
        ValueError: if an argument does not fit, or the processor file cannot be followed.
        RuntimeError: if the processor file cannot be downloaded.
    """

    def __init__(
        self,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        squash: bool,
        pretrained: bool = False,
        processor: str | None = None,
    ) -> None:
        super().__init__()
        found = None if processor is None or not pretrained else read_processor(processor)
        if found is not None:
            image_size, mean, std = found
        if image_size < 1 or len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(
                "expected encoder.image_size of at least 1, and encoder.mean and a positive encoder.std of three color "
                f"channels, got {image_size}, {list(mean)} and {list(std)}"
            )
        self.frames = FrameSpec(image_size, frames_per_step=1, squash=squash)
        self.grid = FeatureGrid(image_size, image_size)
        self.channels = 3
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.settings = {
            "image_size": image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "squash": squash,
            "pretrained": False,
            "processor": None,
        }
        parts = ["pixels", f"{image_size}px", "squash" if squash else "crop"]
        parts += [f"{name}{'_'.join(f'{x:g}' for x in values)}" for name, values in (("mean", mean), ("std", std))]
        self.key = re.sub(r"[^\w.=+-]+", "_", "-".join(parts), flags=re.ASCII)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalize uint8 frames (B, T, 3, S, S) to features (B, T, S, S, 3) in float32.

        Raises:
            TypeError: if the frames are not uint8.
            ValueError: if the frames have another shape.
        """
        size = self.frames.image_size
        if frames.dtype != torch.uint8:
            raise TypeError(f"expected uint8 frames, which the encoder normalizes itself, got {frames.dtype}")
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, size, size):
            raise ValueError(f"expected frames (B, T, 3, {size}, {size}), got {tuple(frames.shape)}")
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=frames.device) for values in (self.mean, self.std)
        )
        return (frames.permute(0, 1, 3, 4, 2).float() / 255 - mean) / std


def read_processor(name: str) -> tuple[int, list[float], list[float]] | None:
    """Read the size, mean and standard deviation of the frames that a model of transformers takes.

    Rescaling by another factor than 1 / 255, with an offset, is part of the returned mean and standard deviation. The
    size before cropping and the interpolation are not returned: frames are scaled by area averaging so that their
    shortest side is that of the square.

    Args:
        name: local folder, or name of a model on the Hub.

    Returns:
        the side of the square frames in pixels, and the mean and standard deviation per channel of frames in [0, 1];
        None if the model has no processor file.

    Raises:
        ValueError: if the file is not one of a processor of square frames.
        RuntimeError: if the file cannot be downloaded.
    """
    path = _find_processor(name)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        size = _side(content.get("crop_size") if content.get("do_center_crop", True) else None) or _side(
            content.get("size")
        )
        if size is None:
            raise ValueError(f"no square size in crop_size = {content.get('crop_size')}, size = {content.get('size')}")
        factor = 255 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
        kinds = (str(content.get(key, "")) for key in ("video_processor_type", "image_processor_type"))
        offset = float(content.get("offset", any(kind.startswith("Vivit") for kind in kinds)))
        normalizes = content.get("do_normalize", True)
        mean = [float(x) for x in content["image_mean"]] if normalizes else [0.0] * 3
        std = [float(x) for x in content["image_std"]] if normalizes else [1.0] * 3
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a processor file of square frames ({error!r}); set encoder.processor=null and give "
            "encoder.image_size, encoder.mean and encoder.std"
        ) from error
    return size, [(offset + x) / factor for x in mean], [x / factor for x in std]


def _find_processor(name: str) -> Path | None:
    """Return the processor file of a model; None if it has none."""
    if Path(name).is_dir():
        return next((path for file in _FILES if (path := Path(name, file)).is_file()), None)
    reason = None
    for file in _FILES:
        try:
            with offline_without_hub():
                return Path(hf_hub_download(name, file))
        except (OSError, ValueError) as error:
            if isinstance(error, LocalEntryNotFoundError) or not isinstance(error, EntryNotFoundError):
                reason = str(error).partition("\n")[0]  # not known whether there is one
    if reason is not None:
        raise RuntimeError(
            f"the processor file of {name} cannot be found on this machine or downloaded ({reason}); give a local "
            "folder with the model as model.host.name, or set encoder.processor=null"
        )
    return None


def _side(size: Any) -> int | None:
    """Return the side of a square size, as processor files write it; None if it is not one."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        return int(size["height"]) if size.get("height") == size.get("width") else None
    return size if isinstance(size, int) else None
