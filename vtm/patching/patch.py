"""Patch ready transformers, so that their blocks merge tokens, and undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from vtm.patching.block import Heads, Merging, State, keep_output
from vtm.patching.check import check_blocks
from vtm.patching.handover import check_handover
from vtm.patching.host import check_implementation, find_averaging, find_host, known_hosts
from vtm.patching.reduction import Reduction, merge_hybrid, merge_similar
from vtm.patching.schedules import constant, decreasing, increasing
from vtm.patching.trace import Trace

Schedule = Sequence[int] | Callable[[nn.Module], Sequence[int]]


def patch(
    model: nn.Module,
    schedule: Schedule,
    *,
    reduce: Reduction = merge_similar,
    keys: Heads = "mean",
    proportional: bool = True,
    groups: Literal["clip", "frame"] = "clip",
    pool: Literal["plain", "size"] = "plain",
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
        pool: "size" to weigh each token by its size where the model averages its tokens, "plain" to leave that as it
            is, like the papers.

    Returns:
        the same model.

    Raises:
        TypeError: if the model has no blocks that can be patched.
        ValueError: if the schedule or an option does not fit the model, or an option is unknown.
        RuntimeError: if the library's block computes something else than this version of vtm expects.
    """
    options = (
        ("keys", keys, ("mean", "concat")),
        ("groups", groups, ("clip", "frame")),
        ("pool", pool, ("plain", "size")),
    )
    for name, value, known in options:
        if value not in known:
            raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}")
    if getattr(reduce, "__name__", "") == merge_hybrid.__name__:
        raise ValueError("merge_hybrid needs its threshold: set reduce=partial(merge_hybrid, threshold=0.4)")
    host, owner, blocks = find_host(model)
    facts = host.facts(owner)
    if facts.problem is not None:
        raise TypeError(f"{type(owner).__name__} cannot be patched: {facts.problem}")
    if facts.only_frames and groups != "frame":
        raise ValueError(
            f'{type(owner).__name__} attends within frames: set groups="frame", and count tokens per frame'
        )
    if proportional and facts.config is not None:
        check_implementation(facts.config)
    averaging = find_averaging(model, host, owner) if pool == "size" else None
    counts = _counts(schedule, model, len(blocks))
    if not any(counts):
        averaging = None  # all sizes are 1, and the plain mean is equal to the bit
    unpatch(model)
    takes_off = host.returns_hidden or averaging is not None
    for index, (block, count) in enumerate(zip(blocks, counts, strict=True)):
        last = index == len(blocks) - 1
        merging = Merging(
            block=index,
            count=count,
            width=facts.width,
            protected=facts.protected,
            reduce=reduce,
            heads=keys,
            proportional=proportional,
            steps=facts.frames,
            tubelet=facts.tubelet,
            frames=facts.frames if groups == "frame" else None,
            whole=facts.whole,
            space_major=facts.space_major,
            last=last and not takes_off,
            pooled=last and averaging is not None,
        )
        block.__class__ = host.merging
        block.merging = merging  # type: ignore[assignment]
        if proportional:
            host.prepare(block)
        if count:
            block.get_submodule(host.key_layer).register_forward_hook(keep_output)
    for name in host.unusable:
        setattr(owner, name, _Refusal(name))
    if takes_off:
        host.take_off(owner)
    if averaging is not None:
        averaging[1].__class__ = averaging[0].weighing
    try:
        with torch.device("cpu"), _default_float32():  # whatever the defaults are
            check_blocks(host, blocks, facts, proportional=proportional)
            if any(counts):
                check_handover(owner, blocks, facts)
            if averaging is not None:
                averaging[0].check(averaging[1])
    except BaseException:
        unpatch(model)
        raise
    return model


@contextmanager
def _default_float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _counts(schedule: Schedule, model: nn.Module, depth: int) -> list[int]:
    """Return the number of tokens to take away in each block.

    Raises:
        TypeError: if the schedule is neither a list nor a function of the model.
        ValueError: if it is not one whole number >= 0 for each block.
    """
    given: Any = schedule
    if given in (constant, decreasing, increasing) or not (callable(given) or isinstance(given, Sequence)):
        name = getattr(given, "__name__", repr(given))
        raise TypeError(
            f"expected a schedule of {depth} whole numbers, such as constant({depth}, 8), or a function from the model "
            f"to one, got {name}"
        )
    counts = list(given(model) if callable(given) else given)
    if len(counts) != depth or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(
            f"expected a schedule of {depth} whole numbers >= 0, one for each block of {type(model).__name__}, got "
            f"{len(counts)}: {counts}"
        )
    return counts


def unpatch(model: nn.Module) -> nn.Module:
    """Undo `patch`; a model that is not patched stays as it is.

    Returns:
        the same model.

    Raises:
        TypeError: if a patched block has another class since, as `fully_shard` gives it; nothing is undone then.
    """
    classes = [host.merging for host in known_hosts()]
    classes += [host.averaging.weighing for host in known_hosts() if host.averaging is not None]
    for module in model.modules():
        if isinstance(module, tuple(classes)) and type(module) not in classes:
            raise TypeError(
                f"a patched part of the model has become a {type(module).__name__}, so the patch cannot be undone; "
                "undo what has changed it first, or make the model anew"
            )
    for host in known_hosts():
        for module in list(model.modules()):
            if type(module) is host.merging:
                module.__class__ = host.block
                del module.merging
                host.restore(module)
            elif host.averaging is not None and type(module) is host.averaging.weighing:
                module.__class__ = host.averaging.model
    for module in model.modules():
        for name in [name for name, value in module.__dict__.items() if isinstance(value, _Refusal)]:
            delattr(module, name)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [number for number, hook in hooks.items() if _is_own(hook)]:
                del hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)
    return model


def _is_own(hook: Any) -> bool:
    """Return whether `patch` has registered a hook."""
    return str(getattr(hook, "__module__", "")).startswith("vtm.patching.")


@contextmanager
def recording(model: nn.Module) -> Iterator[Trace]:
    """Record what the blocks of a patched model merge in its last forward: `with recording(model) as trace: model(x)`.

    The trace belongs to the model, so other threads must not run the model meanwhile.

    Raises:
        ValueError: if the model is not patched.
    """
    blocks = _mergings(model)
    outer = [merging.trace for merging in blocks]
    first = blocks[0]
    trace = Trace(protected=first.protected, steps=first.steps, tubelet=first.tubelet, space_major=first.space_major)
    for merging in blocks:
        merging.trace = trace
    try:
        yield trace
    finally:
        for merging, before in zip(blocks, outer, strict=True):
            merging.trace = before


def _mergings(model: nn.Module) -> list[Merging]:
    """Return how each block of a patched model merges."""
    found = [merging for module in model.modules() if isinstance(merging := getattr(module, "merging", None), Merging)]
    if not found:
        raise ValueError(
            f"expected a patched model, got {type(model).__name__} without patch; call patch(model, …) first"
        )
    return found


def split_hidden_states(model: nn.Module, hidden_states: Sequence[Tensor]) -> list[State]:
    """Split the `hidden_states` that a patched model of transformers returns into tokens, sizes and places.

    Args:
        model: patched model.
        hidden_states: what `model(x, output_hidden_states=True).hidden_states` holds, or its first elements.

    Returns:
        of each hidden state, tokens x (B, N, C), size (B, N), number of tokens of the input in each token, and place
        (B, N), index of its anchor among the tokens of the input.

    Raises:
        ValueError: if the model is not patched, or a hidden state is not one of its own.

    >>> from transformers import VivitConfig, VivitModel  # doctest: +SKIP
    >>> model = patch(VivitModel(VivitConfig()), [300] * 12)  # doctest: +SKIP
    >>> hidden_states = model(clips, output_hidden_states=True).hidden_states  # doctest: +SKIP
    >>> x, size, place = split_hidden_states(model, hidden_states)[-1]  # doctest: +SKIP
    """
    merging = replace(_mergings(model)[0], frames=None)
    states = []
    for index, x in enumerate(hidden_states):
        known = (merging.width, *(merging.width + channels for channels in (2, 4)))
        if x.shape[-1] not in known or (x.shape[-1] == merging.width and x.shape[1] != hidden_states[0].shape[1]):
            raise ValueError(
                f"expected hidden states of this patched model, of {' or '.join(map(str, known))} channels, the first "
                f"without state, got shape {tuple(x.shape)} at index {index}; give it model(x, "
                "output_hidden_states=True).hidden_states"
            )
        states.append(merging.enter(x))
    return states


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
