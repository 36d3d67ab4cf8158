"""The self-check of a model around its patched blocks: it must hand the output of each block to the next unchanged.

Between blocks, the tokens carry sizes and places. A model that scales them there, drops some of them out, or normalizes
them, as a subclass with a forward of its own or another version of a library may do, would change sizes and places too,
and no error would show it. So the forward of the model is run on the CPU, with blocks that compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vtm.patching.block import State
from vtm.patching.check import draw
from vtm.patching.host import Facts, class_path

_LEFT = 8  # tokens of a frame after each block


def check_handover(owner: nn.Module, blocks: Sequence[Any], facts: Facts) -> None:
    """Run a model on blocks that return random tokens, and compare what it gives to the next block with these tokens.

    Args:
        owner: patched model, or the part of it that contains the blocks.
        blocks: its blocks.
        facts: what is known of the model; without `inputs`, nothing is checked.

    Raises:
        RuntimeError: if it gives other tokens to a block, runs the blocks in another order, or cannot be run.
    """
    if facts.inputs is None:
        return
    values = draw(owner, torch.Generator().manual_seed(0), without=set(blocks))
    for training in (False, True):
        _run(owner, blocks, facts, values, training=training)


def _run(owner: nn.Module, blocks: Sequence[Any], facts: Facts, values: dict[str, Tensor], *, training: bool) -> None:
    """Run a model with other values of its parameters and buffers, on blocks that return random tokens."""
    assert facts.inputs is not None
    generator = torch.Generator().manual_seed(0)
    left = facts.protected + _LEFT * facts.frames
    given: list[Tensor] = []

    def make_stub(index: int, block: Any) -> Callable[..., Any]:
        def stub(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            if len(given) != index:
                raise _Changed(f"it runs block {index} after {len(given)} others")
            if given and not (x.shape == given[-1].shape and torch.equal(x, given[-1])):
                raise _Changed(f"it changes the tokens between blocks {index - 1} and {index}")
            tokens = torch.randn(len(x), left, facts.width, generator=generator)
            place = torch.arange(left).expand(len(x), -1)
            given.append(block.merging.leave(State(tokens, torch.ones(len(x), left), place)))
            return (given[-1],) if facts.returns_tuple else given[-1]

        return stub

    buffers = dict(owner.named_buffers())  # which a layer may change
    values = {name: value.clone() if name in buffers else value for name, value in values.items()}
    with _stubs(owner, blocks, make_stub, training=training):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", enabled=False):
                functional_call(owner, values, (), facts.inputs())
            if len(given) != len(blocks):
                raise _Changed(f"it runs {len(given)} of its {len(blocks)} blocks")
        except _Changed as error:
            raise RuntimeError(
                f"the forward of {class_path(type(owner))} is not one that vtm can patch: {error}; the sizes and "
                "places of merged tokens would be wrong"
            ) from None
        except Exception as error:
            raise RuntimeError(
                f"the forward of {class_path(type(owner))} cannot be run in the way vtm expects: {error}"
            ) from error


class _Changed(Exception):
    """What a model does to the tokens between its blocks."""


@contextmanager
def _stubs(
    owner: nn.Module, blocks: Sequence[Any], make: Callable[[int, Any], Any], *, training: bool
) -> Iterator[None]:
    """Replace the forward of blocks, without their hooks, and let the model train or infer; undo it afterwards."""
    modes = {module: module.training for module in owner.modules()}
    names = ("_forward_hooks", "_forward_pre_hooks")
    hooks = {(block, name): dict(getattr(block, name)) for block in blocks for name in names}
    for module in modes:
        module.training = training
    for index, block in enumerate(blocks):
        block.forward = make(index, block)
        for name in names:
            getattr(block, name).clear()
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        for (block, name), own in hooks.items():
            getattr(block, name).update(own)
        for module, mode in modes.items():
            module.training = mode
