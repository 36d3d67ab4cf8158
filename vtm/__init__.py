"""Learnable video token merging for long-form video understanding (Lee et al., NeurIPS 2024, arXiv 2410.23782)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtm.inference.predictor import Predictor, load

__all__ = ["Predictor", "load"]


def __getattr__(name: str) -> Any:
    """Import the names of `__all__` on first use, so that `import vtm.merging` stays fast."""
    if name in __all__:
        from vtm.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
