"""Heads: the trained networks on the features of a clip, for whole clips and for streams of frames."""

from vtm.models.head import Head, HeadOutput
from vtm.models.streaming import ClosedWindows, Stream
from vtm.models.vtm import VTM, SinusoidalTime

__all__ = ["VTM", "ClosedWindows", "Head", "HeadOutput", "SinusoidalTime", "Stream"]
