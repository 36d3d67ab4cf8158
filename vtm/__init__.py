"""Learnable video token merging for long-form video understanding (Lee et al., NeurIPS 2024, arXiv 2410.23782)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtm.inference.predictor import Predictor, load

__all__ = ["Predictor", "load"]


def __getattr__(name: str) -> Any:
    """Import what is in `__all__` where it is asked for: what it needs would make `import vtm.merging` slow."""
    if name in __all__:
        from vtm.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
