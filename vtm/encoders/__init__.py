"""Frozen feature encoders, from uint8 frames to a grid of tokens per step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vtm.encoders.base import Encoder
from vtm.encoders.pixels import Pixels
from vtm.encoders.precomputed import Precomputed

if TYPE_CHECKING:
    from vtm.encoders.image import ImageEncoder
    from vtm.encoders.video_swin import VideoSwin

__all__ = ["Encoder", "ImageEncoder", "Pixels", "Precomputed", "VideoSwin"]

_FILES = {"ImageEncoder": "image", "VideoSwin": "video_swin"}  # imported lazily: timm and torchvision take seconds


def __getattr__(name: str) -> Any:
    """Import an encoder on first access."""
    if name in _FILES:
        return getattr(import_module(f"vtm.encoders.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
