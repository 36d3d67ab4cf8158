"""Which transformers can be patched: what `patch` must know of a library's model, and where its blocks are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

_FAMILIES = {
    "timm": "timm",
    "transformers.models.vivit.modeling_vivit": "vivit",
    "transformers.models.videomae.modeling_videomae": "videomae",
    "transformers.models.timesformer.modeling_timesformer": "timesformer",
    "transformers.models.clip.modeling_clip": "clip",
    "transformers.models.siglip.modeling_siglip": "siglip",
    "transformers.models.siglip2.modeling_siglip2": "siglip2",
    "transformers.models.dinov2.modeling_dinov2": "dinov2",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers": "dinov2_with_registers",
    "transformers.models.dinov3_vit.modeling_dinov3_vit": "dinov3",
    "transformers.models.vjepa2.modeling_vjepa2": "vjepa2",
    "vtm.patching.motionformer": "motionformer",
}  # module that defines the models: file of vtm.patching that knows their blocks


@dataclass(frozen=True)
class Facts:
    """What `patch` needs to know of a model.

    Attributes:
        width: C, number of channels.
        protected: number of leading tokens that stay, such as CLS.
        frames: number of steps of the tokens, frames or tubelets; 1 for a model of images.
        tubelet: number of frames of the clip in a step.
        space_major: whether the tokens are ordered by place and then by frame.
        only_frames: whether only the tokens of one frame can meet.
        whole: number of tokens that the first block must be given if only tokens of one frame may meet; None for any.
        config: configuration of transformers that names the implementation of the attention; None without one.
        num_tokens: number of tokens that the self-check of a block takes.
        arguments: function from the places (N,) of tokens to what else the model gives to a block.
        inputs: function that returns arguments of the model for a short clip, for the check of what it does between its
            blocks; None if that is not checked.
        returns_tuple: whether the blocks return a tuple.
        problem: why the model cannot be patched; None if it can.
    """

    width: int
    protected: int = 0
    frames: int = 1
    tubelet: int = 1
    space_major: bool = False
    only_frames: bool = False
    whole: int | None = None
    config: Any = None
    num_tokens: int = 8
    arguments: Callable[[Tensor], dict[str, Any]] = lambda place: {}
    inputs: Callable[[], dict[str, Any]] | None = None
    returns_tuple: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Averaging:
    """What `patch(…, pool="size")` needs to know of a model that averages its tokens.

    Attributes:
        model: class of the model that averages; only this very class is changed, not its subclasses.
        weighing: subclass that weighs the tokens by their sizes.
        problem: function from the model to why it does not average; to None if it does.
        check: function that compares the mean of `weighing` with that of `model`, and raises a RuntimeError.
    """

    model: type[nn.Module]
    weighing: type[nn.Module]
    problem: Callable[[Any], str | None]
    check: Callable[[Any], None]


@dataclass(frozen=True)
class Host:
    """What `patch` needs to know of a kind of block.

    Attributes:
        model: class of the model, or of its part that contains the blocks.
        blocks: name of the list of blocks in it.
        block: class of the block; only this very class is patched, not its subclasses.
        merging: subclass with the same layers and a forward that merges.
        key_layer: name of the layer of the block whose output are the keys.
        facts: function from the model to what else must be known.
        take_off: function that lets a layer after the last block take the state off the tokens, if it is left there.
        returns_hidden: whether the model can return hidden states; then the last block, too, leaves the state.
        averaging: how its tokens are averaged; None if they are not.
        unusable: names of methods of the model that would return the state with the tokens.
        unsuited: classes of models around it that need every token after the last block, or after others.
        prepare: function that changes what else must change in a block, for proportional attention.
        restore: function that undoes it.
    """

    model: type[nn.Module]
    blocks: str
    block: type[nn.Module]
    merging: type[nn.Module]
    key_layer: str
    facts: Callable[[Any], Facts]
    take_off: Callable[[Any], None] = lambda owner: None
    returns_hidden: bool = False
    averaging: Averaging | None = None
    unusable: tuple[str, ...] = ()
    unsuited: tuple[type[nn.Module], ...] = ()
    prepare: Callable[[Any], None] = lambda block: None
    restore: Callable[[Any], None] = lambda block: None


def known_hosts() -> list[Host]:
    """Return the hosts of the packages that are imported; a model of another package cannot exist."""
    files = [f"vtm.patching.{file}" for package, file in _FAMILIES.items() if package in sys.modules]
    return [host for file in files for host in import_module(file).HOSTS]


def find_host(model: nn.Module) -> tuple[Host, nn.Module, list[nn.Module]]:
    """Return the host of a model, the part of the model that contains the blocks, and the blocks in order.

    Raises:
        TypeError: if the model has no such part or several, or a block is of another class.
    """
    hosts = known_hosts()
    owners = [module for module in model.modules() if isinstance(module, tuple(host.model for host in hosts))]
    if len(owners) != 1:
        known = ", ".join(sorted({class_path(host.model) for host in hosts})) or "those of timm and transformers"
        raise TypeError(
            f"expected a model that contains one of the supported transformers ({known}), but "
            f"{class_path(type(model))} contains {len(owners) or 'none'}; vtm/patching/README.md lists all families"
        )
    (owner,) = owners
    host = next(host for host in hosts if isinstance(owner, host.model))
    blocks = [block for block in owner.get_submodule(host.blocks)._modules.values() if block is not None]
    if len(set(blocks)) < len(blocks):
        raise TypeError(f"{class_path(type(owner))} runs one of its blocks several times, so it cannot be patched")
    if not blocks or any(type(b) not in (host.block, host.merging) or "forward" in vars(b) for b in blocks):
        classes = ", ".join(sorted({class_path(type(block)) for block in blocks})) or "no class"
        raise TypeError(
            f"the blocks of {class_path(type(owner))} are of {classes}, or have a forward of their own; "
            f"only {class_path(host.block)} itself can be patched"
        )
    for block in blocks:
        try:
            block.get_submodule(host.key_layer)
        except AttributeError:
            raise TypeError(
                f"a block of {class_path(type(owner))} has no layer {host.key_layer}, whose output are its keys; "
                "models with another attention cannot be patched"
            ) from None
    for module in model.modules():
        if isinstance(module, host.unsuited):
            raise TypeError(f"{class_path(type(module))} cannot be patched: it needs every token after a block")
    return host, owner, blocks


def find_averaging(model: nn.Module, host: Host, owner: nn.Module) -> tuple[Averaging, nn.Module]:
    """Return how a model averages its tokens, and the part of it that does.

    Raises:
        ValueError: if it does not average them.
    """
    problem = f"{type(owner).__name__} does not average its tokens"
    if host.averaging is not None:
        averaging = host.averaging
        for module in model.modules():
            if isinstance(module, averaging.model) and any(part is owner for part in module.modules()):
                if type(module) not in (averaging.model, averaging.weighing):
                    problem = f"{class_path(type(module))} may average its tokens in a way of its own"
                elif (found := averaging.problem(module)) is None:
                    return averaging, module
                else:
                    problem = f"{type(module).__name__} {found}"
    raise ValueError(f'pool="size" weighs the tokens where a model averages them, but {problem}; set pool="plain"')


def check_implementation(config: Any) -> str:
    """Return the name of the implementation of the attention in a configuration of transformers.

    Raises:
        ValueError: if it takes no bias.
    """
    name: str = config._attn_implementation
    if name not in ("eager", "sdpa"):
        raise ValueError(
            f"a bias or mask of merged tokens needs attention that takes one, expected eager or sdpa, got {name}; load "
            'the model with attn_implementation="sdpa", or patch with proportional=False and give no mask'
        )
    return name


def pixel_inputs(config: Any, *, frames: bool = False) -> Callable[[], dict[str, Any]]:
    """Return a function that returns a black image, or a clip, for a model of transformers.

    Args:
        config: configuration of the model.
        frames: whether it takes clips.
    """
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, *((config.num_frames,) if frames else ()), config.num_channels, height, width)
    return lambda: {"pixel_values": torch.zeros(shape)}


def class_path(kind: type) -> str:
    """Return the module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
