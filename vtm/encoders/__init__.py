"""Frozen feature encoders: uint8 frames in, a grid of tokens per step out."""

from vtm.encoders.base import Encoder
from vtm.encoders.image import ImageEncoder
from vtm.encoders.precomputed import Precomputed
from vtm.encoders.video import VideoSwin

__all__ = ["Encoder", "ImageEncoder", "Precomputed", "VideoSwin"]
