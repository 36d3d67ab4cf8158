"""The self-check of patched blocks: without merging, they must compute what the library's own blocks compute.

It protects against a library whose forward is not the one that vtm was written for. Each kind of block in the model is
run on the CPU with random parameters, as those of the model may hide a difference: a LayerScale of 1e-5, or layers
initialized to zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vtm.patching.block import keep_output, take_output
from vtm.patching.host import Facts, Host


def check_blocks(host: Host, blocks: Sequence[nn.Module], facts: Facts, *, proportional: bool) -> None:
    """Compare the forward of each kind of patched block, with nothing to take away, with that of the library.

    Tokens that have moved must keep their positions, and with proportional attention, a token of size n must count as
    much as n equal tokens.

    Raises:
        RuntimeError: if they differ, or if a block cannot be run.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, facts.num_tokens, facts.width, generator=generator)
    size = torch.randint(1, 4 if proportional else 2, (facts.num_tokens,), generator=generator)
    size[: facts.protected] = 1
    place = torch.arange(facts.num_tokens)
    arguments = facts.arguments(place)
    moved = torch.cat([place[: facts.protected], place[facts.protected :].flip(0)])  # its own inverse
    merged = torch.cat([x, torch.stack([size, moved], dim=-1).expand(2, -1, -1)], dim=-1)
    kinds = {_kind(block): index for index, block in reversed([*enumerate(blocks)])}
    for index in sorted(kinds.values()):
        block = blocks[index]
        drawn = draw(block, generator)
        runs = [(x, x, arguments, False), (x, x, arguments, True)]
        if not facts.only_frames:
            times = size[moved]  # of the tokens in the order of their places
            repeated_arguments = facts.arguments(place.repeat_interleave(times))
            runs.append((merged, x[:, moved].repeat_interleave(times, dim=1), repeated_arguments, False))
        for given, repeated, own_arguments, training in runs:
            with _prepared(block, host, training=training):
                try:
                    found = _run(host.merging.forward, block, drawn, given, arguments)
                    expected = _run(host.block.forward, block, drawn, repeated, own_arguments)
                except Exception as error:
                    raise RuntimeError(
                        f"{_describe(host, index)} cannot be run in the way vtm expects: {error}"
                    ) from error
            if repeated is not given:
                expected = expected[:, size[moved].cumsum(0) - 1][:, moved]
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                raise RuntimeError(
                    f"{_describe(host, index)} computes something else than vtm expects: the outputs differ by "
                    f"{float((found - expected).abs().max()):.2g}; use another version, and report this one"
                )


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """Return a value that is equal for blocks that compute the same with the same parameters and buffers."""
    parts: list[Any] = [
        (name, tuple(value.shape)) for name, value in [*block.named_parameters(), *block.named_buffers()]
    ]
    for name, module in block.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        parts += [name, type(module), *(id(hook) for hook in hooks if hook is not keep_output)]
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in ("merging", "training"):
                plain = isinstance(value, bool | int | float | str | tuple | None)
                parts.append((key, repr(value) if plain else id(value)))
    return tuple(parts)


def draw(module: nn.Module, generator: torch.Generator, *, without: Collection[nn.Module] = ()) -> dict[str, Tensor]:
    """Draw values for the parameters and floating buffers of a block or a model, so that all its layers matter.

    Args:
        module: block or model.
        generator: generator on the CPU.
        without: parts of it that get no values.
    """
    inside = tuple(f"{name}." for name, part in module.named_modules() if part in without)
    drawn = {}
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name.startswith(inside):
            continue
        if value.is_floating_point():
            scale = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.5
            drawn[name] = scale * torch.randn(value.shape, generator=generator)
        else:
            drawn[name] = torch.zeros_like(value, device="cpu") if value.is_meta else value.cpu()
    return drawn


def _run(
    forward: Callable[..., Any], block: nn.Module, values: dict[str, Tensor], x: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """Run a forward of a block with other values of its parameters and buffers."""
    buffers = dict(block.named_buffers())  # which a layer may change
    values = {f"block.{name}": value.clone() if name in buffers else value for name, value in values.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", enabled=False):
        torch.default_generator.manual_seed(0)
        output = functional_call(_Forward(block, forward), values, (x,), arguments)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


class _Forward(nn.Module):
    """A module that runs a given forward of a block, without the hooks of the block."""

    def __init__(self, block: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.block, self.run = block, run

    def forward(self, x: Tensor, **arguments: Any) -> Any:
        """Run it."""
        return self.run(self.block, x, **arguments)


@contextmanager
def _prepared(block: Any, host: Host, *, training: bool) -> Iterator[None]:
    """Let a block take nothing away, and keep its keys; undo it afterwards."""
    merging, modes = block.merging, {module: module.training for module in block.modules()}
    layer = block.get_submodule(host.key_layer)
    hook = layer.register_forward_hook(keep_output)
    block.merging = replace(merging, count=0, last=True, pooled=False, checked=False)
    try:
        for module in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        block.merging = merging
        hook.remove()
        take_output(layer)


def _describe(host: Host, index: int) -> str:
    package = host.block.__module__.partition(".")[0]
    return f"{host.block.__name__} of {package} {version(package)} ({inspect.getsourcefile(host.block)}, block {index})"
