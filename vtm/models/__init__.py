"""Networks that use the merging core."""

from vtm.models.head import HeadOutput
from vtm.models.streaming import ClosedWindows, Stream
from vtm.models.vtm import VTM, SinusoidalTime

__all__ = ["VTM", "ClosedWindows", "HeadOutput", "SinusoidalTime", "Stream"]
