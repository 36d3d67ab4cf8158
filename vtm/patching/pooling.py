"""The mean weighted by sizes: how the sizes get from the last block to where a model averages its tokens.

The last block leaves the state behind the channels. The layer after it is given the tokens alone, and the tensor of
tokens carries their sizes as an attribute, so `forward_features` returns the same tokens as with the plain mean. If an
operation of the user's own loses the attribute, the mean is an error, not a plain mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtm.patching.block import split_state


@dataclass(frozen=True)
class TakeState:
    """A forward pre-hook that takes the state off the tokens.

    Attributes:
        width: C, number of channels of the model.
    """

    width: int

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """Return the tokens alone."""
        return (take_state(args[0], self.width),)


@dataclass(frozen=True)
class TakeStateOfOutput:
    """A forward hook that takes the state off the tokens in the output of an encoder of transformers.

    Attributes:
        width: C, number of channels of the model.
    """

    width: int

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with the tokens alone."""
        return type(output)(last_hidden_state=take_state(output.last_hidden_state, self.width))


def take_state(x: Tensor, width: int) -> Tensor:
    """Return tokens (B, N, C) that carry their sizes, from x (B, N, C + channels of the state)."""
    if x.shape[-1] == width:
        return x
    tokens, size, _ = split_state(x, width)
    tokens.merged_sizes = size  # type: ignore[attr-defined]
    return tokens


def pass_sizes(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    """Let the output of a layer carry the sizes of its input: a forward hook."""
    if (size := getattr(args[0], "merged_sizes", None)) is not None:
        output.merged_sizes = size  # type: ignore[attr-defined]


def mean_by_size(x: Tensor, *, skip: int = 0) -> Tensor:
    """Average tokens that carry their sizes, weighted by the sizes: (B, N, C) -> (B, C).

    Args:
        x: (B, N, C).
        skip: number of leading tokens to leave out.

    Raises:
        RuntimeError: if x does not carry the sizes.
    """
    size: Tensor | None = getattr(x, "merged_sizes", None)
    if size is None:
        raise RuntimeError(
            'the tokens to average have lost their sizes, which pool="size" needs: call the whole model, give '
            'forward_head the very tensor that forward_features returned, or patch with pool="plain"'
        )
    share = size[:, skip:] / size[:, skip:].sum(1, keepdim=True)
    return (x[:, skip:].to(share.dtype) * share[..., None]).sum(1).to(x.dtype)


def check_mean(name: str, width: int, weighing: Callable[[Any], Tensor], plain: Callable[[Any], Tensor]) -> None:
    """Compare a mean by sizes of random tokens with the plain mean of as many equal tokens as the sizes say.

    Args:
        name: name of the model, for the error.
        width: C, number of channels.
        weighing: mean by sizes of tokens (B, N, C) that carry their sizes.
        plain: mean of the library.

    Raises:
        RuntimeError: if they differ.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 36, width, generator=generator)
    size = torch.tensor([1] * 32 + [2, 3, 1, 4])  # the leading tokens may be CLS and registers
    repeated = x.repeat_interleave(size, dim=1)
    x.merged_sizes = size.float().expand(2, -1)  # type: ignore[attr-defined]
    with torch.no_grad():
        difference = (weighing(x) - plain(repeated)).abs().max()
    if not difference < 1e-4:
        raise RuntimeError(
            f"{name} averages its tokens in another way than vtm expects: the means differ by {difference:.2g}"
        )
