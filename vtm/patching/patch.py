"""Patch ready transformers, so that their blocks merge tokens, and undo it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from vtm.patching.block import Heads, Merging, Trace, keep_output, take_output
from vtm.patching.reduction import Reduction, merge_similar

Schedule = Sequence[int] | Callable[[nn.Module], Sequence[int]]

_FAMILIES = {
    "timm": "timm",
    "transformers.models.vivit.modeling_vivit": "vivit",
    "transformers.models.videomae.modeling_videomae": "videomae",
    "transformers.models.timesformer.modeling_timesformer": "timesformer",
}  # module that defines the models: file of vtm.patching that knows their blocks


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
        unusable: names of methods of the model that would return the state with the tokens.
        prepare: function that changes what else must change in a block, for proportional attention.
        restore: function that undoes it.
    """

    model: type[nn.Module]
    blocks: str
    block: type[nn.Module]
    merging: type[nn.Module]
    key_layer: str
    facts: Callable[[Any], Facts]
    unusable: tuple[str, ...] = ()
    prepare: Callable[[Any], None] = lambda block: None
    restore: Callable[[Any], None] = lambda block: None


@dataclass(frozen=True)
class Facts:
    """What `patch` needs to know of a model.

    Attributes:
        width: C, number of channels.
        protected: number of leading tokens that stay, such as CLS.
        frames: number of frames of the tokens; 1 for a model of images.
        space_major: whether the tokens are ordered by place and then by frame.
        only_frames: whether only the tokens of one frame can meet.
        attention: name of the implementation of the attention in transformers; None where it takes a bias.
        num_tokens: number of tokens that the self-check of a block takes.
        problem: why the model cannot be patched; None if it can.
    """

    width: int
    protected: int = 0
    frames: int = 1
    space_major: bool = False
    only_frames: bool = False
    attention: str | None = None
    num_tokens: int = 8
    problem: str | None = None


def patch(
    model: nn.Module,
    schedule: Schedule,
    *,
    reduce: Reduction = merge_similar,
    keys: Heads = "mean",
    proportional: bool = True,
    groups: Literal["clip", "frame"] = "clip",
) -> nn.Module:
    """Let the blocks of a ready transformer take tokens away between attention and MLP, without training.

    The model is changed in place, and may be trained, exported, copied and saved like before; its `state_dict` stays
    the same. A model that is patched already is patched anew.

    Args:
        model: transformer of a family that vtm/patching/README.md lists.
        schedule: number of tokens to take away in each block, or a function from the model to these numbers, see
            `vtm.patching.schedules`.
        reduce: `merge_similar` (ToMe), `drop_similar`, `merge_random`, `drop_random` or, with its threshold,
            `partial(merge_hybrid, threshold=…)`.
        keys: attention keys to compare: "mean" of the heads, or all heads, "concat".
        proportional: whether to weigh each token in the attention by its size. The papers do so for supervised models
            with CLS, but not for VideoMAE.
        groups: "clip" if any token may meet any other, "frame" for only the tokens of one frame; then the schedule
            counts tokens per frame.

    Returns:
        the same model.

    Raises:
        TypeError: if the model has no blocks that can be patched.
        ValueError: if the schedule does not fit the model, or an option is unknown.
        RuntimeError: if the library's block computes something else than this version of vtm expects.
    """
    unpatch(model)
    for name, value, known in (("keys", keys, ("mean", "concat")), ("groups", groups, ("clip", "frame"))):
        if value not in known:
            raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}")
    host, owner, blocks = _find(model)
    facts = host.facts(owner)
    if facts.problem is not None:
        raise TypeError(f"{type(owner).__name__} cannot be patched: {facts.problem}")
    if facts.only_frames and groups != "frame":
        raise ValueError(
            f'{type(owner).__name__} attends within frames: set groups="frame", and count tokens per frame'
        )
    if proportional and facts.attention not in (None, "eager", "sdpa"):
        raise ValueError(
            f"proportional attention needs an implementation that takes a bias, got {facts.attention}; load the model "
            'with attn_implementation="sdpa", or set proportional=False'
        )
    counts = list(schedule(model) if callable(schedule) else schedule)
    if len(counts) != len(blocks) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(
            f"expected a schedule of {len(blocks)} numbers >= 0, one for each block of {type(model).__name__}, got "
            f"{counts}"
        )
    for index, (block, count) in enumerate(zip(blocks, counts, strict=True)):
        merging = Merging(
            block=index,
            count=count,
            width=facts.width,
            protected=facts.protected,
            reduce=reduce,
            heads=keys,
            proportional=proportional,
            frames=facts.frames if groups == "frame" else None,
            space_major=facts.space_major,
            last=index == len(blocks) - 1,
        )
        block.__class__ = host.merging
        block.merging = merging  # type: ignore[assignment]
        if proportional:
            host.prepare(block)
        if count:
            block.get_submodule(host.key_layer).register_forward_hook(keep_output)
    for name in host.unusable:
        setattr(owner, name, _Refusal(name))
    try:
        _check(host, blocks[0], facts.num_tokens)
    except BaseException:
        unpatch(model)
        raise
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Undo `patch`; a model that is not patched stays as it is.

    Returns:
        the same model.
    """
    for host in _hosts():
        for block in [module for module in model.modules() if type(module) is host.merging]:
            block.__class__ = host.block
            del block.merging
            layer = block.get_submodule(host.key_layer)
            take_output(layer)
            host.restore(block)
            for number, hook in list(layer._forward_hooks.items()):
                if hook is keep_output:
                    del layer._forward_hooks[number]
    for module in model.modules():
        for name in [name for name, value in module.__dict__.items() if isinstance(value, _Refusal)]:
            delattr(module, name)
    return model


@contextmanager
def recording(model: nn.Module) -> Iterator[Trace]:
    """Record what the blocks of a patched model merge in its last forward: `with recording(model) as trace: model(x)`.

    Raises:
        ValueError: if the model is not patched.
    """
    blocks = [merging for module in model.modules() if isinstance(merging := getattr(module, "merging", None), Merging)]
    if not blocks:
        raise ValueError(
            f"expected a patched model, got {type(model).__name__} without patch; call patch(model, …) first"
        )
    trace = Trace()
    for merging in blocks:
        merging.trace = trace
    try:
        yield trace
    finally:
        for merging in blocks:
            merging.trace = None


class _Refusal:
    """A method of a patched model that cannot be used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error."""
        raise RuntimeError(
            f"{self.name} returns the tokens between blocks, whose number differs while the model is patched; call "
            "unpatch(model) first, or use vtm.patching.recording"
        )


def _hosts() -> list[Host]:
    """Return the hosts of the packages that are imported; a model of another package cannot exist."""
    files = [f"vtm.patching.{file}" for package, file in _FAMILIES.items() if package in sys.modules]
    return [host for file in files for host in import_module(file).HOSTS]


def _find(model: nn.Module) -> tuple[Host, nn.Module, list[nn.Module]]:
    """Return the host of a model, the part of the model that contains the blocks, and the blocks in order.

    Raises:
        TypeError: if the model has no such part or several, or a block is of another class.
    """
    hosts = _hosts()
    owners = [module for module in model.modules() if isinstance(module, tuple(host.model for host in hosts))]
    if len(owners) != 1:
        known = ", ".join(sorted({_path(host.model) for host in hosts})) or "those of timm and transformers"
        raise TypeError(
            f"expected a model that contains one of the supported transformers ({known}), but {_path(type(model))} "
            f"contains {len(owners) or 'none'}"
        )
    (owner,) = owners
    for host in hosts:
        blocks = list(owner.get_submodule(host.blocks).children()) if isinstance(owner, host.model) else []
        if blocks and all(type(block) is host.block and "forward" not in vars(block) for block in blocks):
            return host, owner, blocks
    host = next(host for host in hosts if isinstance(owner, host.model))
    classes = sorted({_path(type(block)) for block in owner.get_submodule(host.blocks).children()})
    known = ", ".join(sorted({_path(host.block) for host in hosts if isinstance(owner, host.model)}))
    raise TypeError(
        f"the blocks of {_path(type(owner))} are of {', '.join(classes)}, or have a forward of their own; "
        f"only {known} itself can be patched"
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check(host: Host, block: nn.Module, num_tokens: int) -> None:
    """Compare the forward of a patched block that takes nothing away with the original one, on random tokens.

    On the meta device, which holds no values, nothing is compared.
    """
    merging: Any = block.merging
    parameter = next(block.parameters())
    if parameter.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, num_tokens, merging.width, generator=generator).to(parameter.device, parameter.dtype)
    training, hooked = block.training, block.get_submodule(host.key_layer)
    block.eval()
    try:
        with torch.no_grad():
            block.merging = replace(merging, count=0, last=True, checked=False)
            found, expected = (
                output[0] if isinstance(output, tuple) else output
                for output in (block(x), host.block.forward(block, x))
            )
    finally:
        block.merging = merging
        block.train(training)
        take_output(hooked)
    tolerance = 1e-5 if parameter.dtype in (torch.float32, torch.float64) else 0.05
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        package = host.block.__module__.partition(".")[0]
        raise RuntimeError(
            f"{host.block.__name__} of {package} {version(package)} ({inspect.getsourcefile(host.block)}) computes "
            f"something else than vtm expects: the outputs differ by {float((found - expected).abs().max()):.2g}; use "
            "another version, and report this one"
        )
