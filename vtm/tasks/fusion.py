"""Combinations of the main and the auxiliary path into one loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

PathLoss = Callable[[Tensor, Tensor], Tensor]


class Fusion(Protocol):
    """A function from the outputs (B, K) of both paths to the loss and its parts by name, for the log."""

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class AuxiliaryLoss:
    """The sum of the losses of both paths, main + weight * aux (VTM paper, figure 6).

    Args:
        weight: weight of the loss of the auxiliary path.
    """

    weight: float

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses = {"main": path_loss(main, target), "aux": path_loss(aux, target)}
        return {"loss": losses["main"] + self.weight * losses["aux"], **losses}


@dataclass(frozen=True)
class AveragedLogits:
    """The loss of the mean of the outputs of both paths."""

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": path_loss((main + aux) / 2, target), "main": path_loss(main.detach(), target)}
