"""Networks that use the merging core."""

from vtm.models.head import Head, HeadOutput
from vtm.models.streaming import ClosedWindows, Stream
from vtm.models.vtm import VTM, SinusoidalTime

__all__ = ["VTM", "ClosedWindows", "Head", "HeadOutput", "SinusoidalTime", "Stream"]
