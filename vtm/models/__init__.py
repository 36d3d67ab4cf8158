"""Networks that use the merging core."""

from vtm.models.streaming import ClosedWindows, Stream
from vtm.models.vtm import VTM, SinusoidalTime, VTMOutput

__all__ = ["VTM", "ClosedWindows", "SinusoidalTime", "Stream", "VTMOutput"]
