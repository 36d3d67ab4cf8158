"""Frozen feature encoders: uint8 frames in, a grid of tokens per step out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vtm.encoders.base import Encoder
from vtm.encoders.precomputed import Precomputed

if TYPE_CHECKING:
    from vtm.encoders.image import ImageEncoder
    from vtm.encoders.video_swin import VideoSwin

__all__ = ["Encoder", "ImageEncoder", "Precomputed", "VideoSwin"]

_FILES = {"ImageEncoder": "image", "VideoSwin": "video_swin"}  # of those whose libraries take seconds to import


def __getattr__(name: str) -> Any:
    """Import an encoder where it is asked for."""
    if name in _FILES:
        return getattr(import_module(f"vtm.encoders.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
