"""Make one loss of the main and of the auxiliary path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

PathLoss = Callable[[Tensor, Tensor], Tensor]


class Fusion(Protocol):
    """Make one loss of the outputs (B, K) of the main and of the auxiliary path, and name its parts for the log."""

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class AuxiliaryLoss:
    """Let each path predict on its own, as in figure 6 of the VTM paper: main + weight * aux.

    Args:
        weight: What the loss of the auxiliary path counts, against 1 for the main path.
    """

    weight: float

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses = {"main": path_loss(main, target), "aux": path_loss(aux, target)}
        return {"loss": losses["main"] + self.weight * losses["aux"], **losses}


@dataclass(frozen=True)
class AveragedLogits:
    """Let both paths predict together: the loss of the mean of their outputs."""

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": path_loss((main + aux) / 2, target), "main": path_loss(main.detach(), target)}
