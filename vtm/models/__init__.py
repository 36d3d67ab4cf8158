"""Networks that use the merging core."""

from vtm.models.vtm import VTM, SinusoidalTime, VTMOutput

__all__ = ["VTM", "SinusoidalTime", "VTMOutput"]
