"""What a patched block does besides its own layers: carry the state, weigh attention, and reduce the tokens.

Between two blocks the state travels inside the tensor, as channels behind those of the model: the size of each token
and its place, the index of its anchor in the input. So nothing is kept on the model that activation checkpointing, a
second forward, or another thread could mix up. In half precision a number takes two channels and is exact up to 65,536.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vtm.merging import Grouping
from vtm.merging.merge import average, group_sum
from vtm.patching.reduction import Reduction, has_generator, most_reduced
from vtm.patching.trace import Trace

Heads = Literal["mean", "concat"]

_HALF = (torch.float16, torch.bfloat16)
_kept = threading.local()  # .output: the last (module, output) that `keep_output` kept in this thread


class State(NamedTuple):
    """The tokens inside a patched model.

    Attributes:
        x: (B, N, C).
        size: (B, N) in fp32 at least, number of tokens of the input in each token.
        place: (B, N) int64, index of the anchor of each token among the tokens of the input.
    """

    x: Tensor
    size: Tensor
    place: Tensor


@dataclass
class Merging:
    """How a block of a patched model merges.

    Attributes:
        block: index of the block.
        count: number of tokens to take away, per frame if there are `frames`.
        width: C, number of channels of the model.
        protected: number of leading tokens that stay.
        reduce: reduction.
        heads: "mean" to average the keys over the heads, "concat" to concatenate them.
        proportional: whether to add the logarithm of the sizes to the attention logits.
        steps: number of steps of the tokens of a clip: frames, or tubelets of several frames.
        tubelet: number of frames of the clip in a step.
        frames: number of frames whose tokens are kept apart; None if all tokens may meet.
        whole: number of tokens that the first block must be given if tokens are kept apart; None for any.
        space_major: whether the tokens are ordered by place and then by frame, not by frame and then by place.
        last: whether this is the last block, and returns the tokens without the state.
        pooled: whether this is the last block and the sizes are needed after it, for `pool="size"`.
        trace: where to record; None outside of `recording`.
        checked: whether the block may leave the work to the original forward; False during the self-check.
    """

    block: int
    count: int
    width: int
    protected: int
    reduce: Reduction
    heads: Heads
    proportional: bool
    steps: int
    tubelet: int
    frames: int | None
    whole: int | None
    space_major: bool
    last: bool
    pooled: bool
    trace: Trace | None = None
    checked: bool = True

    def is_idle(self, x: Tensor) -> bool:
        """Return whether the original forward does all there is to do: no state yet, and nothing to take away."""
        return self.checked and not self.pooled and x.shape[-1] == self.width and self._count(x.shape[1]) == 0

    def enter(self, x: Tensor) -> State:
        """Split the state off x (B, N, C + channels of the state); without a state, start one.

        Raises:
            ValueError: if x without a state has too many tokens, or not all tokens of the frames.
        """
        batch, num_tokens, channels = x.shape
        if channels != self.width:
            tokens, size, place = split_state(x, self.width)
            return State(tokens, size, place)
        if self.frames is not None and self.checked and num_tokens != (self.whole or num_tokens):
            raise ValueError(
                f'groups="frame" needs all {self.whole} tokens of a clip, got {num_tokens}: masking has taken tokens '
                'away without regard to frames; patch with groups="clip"'
            )
        if x.dtype in _HALF and num_tokens > 65_504:
            raise ValueError(f"in {x.dtype} a clip can have up to 65,504 tokens while it is merged, got {num_tokens}")
        place = torch.arange(num_tokens, device=x.device).expand(batch, num_tokens)
        return State(x, x.new_ones(batch, num_tokens, dtype=torch.promote_types(x.dtype, torch.float32)), place)

    def leave(self, state: State) -> Tensor:
        """Join the state to x, for the next block; the last block returns x alone."""
        if self.last and not self.pooled:
            return state.x
        parts = [state.x]
        for value in (state.size, state.place):
            high = value.to(state.x.dtype)
            parts.append(high[..., None])
            if state.x.dtype in _HALF:
                parts.append((value - high.to(torch.float32)).to(state.x.dtype)[..., None])
        return torch.cat(parts, dim=-1)

    def bias(self, state: State, mask: Tensor | None) -> Tensor | None:
        """Return what to add to the attention logits, which broadcasts to (B, heads, N, N); None for nothing.

        Args:
            state: tokens before the attention.
            mask: mask of the model for the tokens of the input, boolean (True = attend) or additive, which broadcasts
                to (B, heads, N0, N0); None without a mask.
        """
        if mask is not None:
            mask = _at_places(mask, state.place)
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=state.x.dtype).masked_fill(~mask, -torch.inf)
        if not self.proportional:
            return mask
        weight = state.size.log().to(state.x.dtype)[:, None, None, :]
        return weight if mask is None else mask + weight

    def apply(self, state: State, keys: Tensor | None) -> State:
        """Take tokens away.

        Args:
            state: N tokens.
            keys: (B, heads, N, d), attention keys; None if the layer that computes them was not called.

        Raises:
            RuntimeError: if keys are needed, and None is given, or if random tokens could not be drawn again.
        """
        num_tokens = state.x.shape[1]
        count = self._count(num_tokens)
        if not count and self.checked:
            return state
        if keys is None or keys.ndim != 4 or keys.shape[2] != num_tokens:
            raise RuntimeError(f"block {self.block} computes its keys in another way than vtm expects; it cannot merge")
        if not count:
            return state
        if torch.is_grad_enabled() and state.x.requires_grad and has_generator(self.reduce):
            raise RuntimeError(
                "a generator of its own draws other tokens when activation checkpointing computes a block again, so "
                "the gradients would be wrong; train with the global generator (generator=None), or call the model "
                "inside torch.no_grad()"
            )
        keys = keys.detach()
        keys = keys.mean(1) if self.heads == "mean" else keys.transpose(1, 2).flatten(2)
        grouping, weights = self._reduce(keys, state.size, count)
        left = State(
            average(state.x, grouping, weights=weights),
            group_sum(weights, grouping),
            state.place.gather(1, grouping.anchor),
        )
        if self.trace is not None:
            self.trace.groupings[self.block] = grouping
            self.trace.weights[self.block] = weights
            self.trace.sizes[self.block] = left.size
        return left

    def _count(self, num_tokens: int) -> int:
        """Return how many tokens the block takes away, per frame if there are frames."""
        if self.frames is None:
            return min(self.count, most_reduced(num_tokens, self.protected))
        return min(self.count, most_reduced((num_tokens - self.protected) // self.frames))

    def _reduce(self, keys: Tensor, size: Tensor, count: int) -> tuple[Grouping, Tensor]:
        if self.frames is None:
            return self.reduce(keys, size, count, protected=self.protected)
        frames, prefix = self.frames, self.protected
        grouping, weights = self.reduce(
            self._by_frame(keys[:, prefix:]), self._by_frame(size[:, prefix:]), count, generator=None
        )
        first = torch.arange(prefix, device=keys.device).expand(len(keys), -1)
        frame = torch.arange(frames, device=keys.device).repeat(len(keys))[:, None]  # (B·F, 1)
        stride, offset = (frames, frame) if self.space_major else (1, frame * grouping.num_groups)
        index = self._by_clip(grouping.index * stride + offset)
        offset = frame if self.space_major else frame * grouping.index.shape[1]
        anchor = self._by_clip(grouping.anchor * stride + offset)
        num_groups = prefix + frames * grouping.num_groups
        return (
            Grouping(torch.cat([first, index + prefix], 1), num_groups, torch.cat([first, anchor + prefix], 1)),
            torch.cat([size[:, :prefix], self._by_clip(weights)], dim=1),
        )

    def _by_frame(self, values: Tensor) -> Tensor:
        """Reshape values of the tokens of clips (B, F·S, …) to those of their frames (B·F, S, …)."""
        assert self.frames is not None
        layout = (-1, self.frames) if self.space_major else (self.frames, -1)
        values = values.reshape(len(values), *layout, *values.shape[2:])
        return (values.transpose(1, 2) if self.space_major else values).flatten(0, 1)

    def _by_clip(self, values: Tensor) -> Tensor:
        """Reshape values of the tokens of frames (B·F, S) to those of their clips (B, F·S)."""
        assert self.frames is not None
        values = values.unflatten(0, (-1, self.frames))
        return (values.transpose(1, 2) if self.space_major else values).flatten(1)


def split_state(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split x (B, N, C + channels of the state) into tokens (B, N, C), sizes and places (B, N); see `State`."""
    exact = torch.promote_types(x.dtype, torch.float32)
    size, place = (part.to(exact).sum(-1) for part in x[..., width:].detach().chunk(2, dim=-1))
    tokens = x[..., :width].contiguous()  # once, or each layer copies the rows that the state makes uneven
    return tokens, size, place.round().to(torch.int64)


def keep_output(module: nn.Module, args: Any, output: Tensor) -> None:
    """Keep the output of a module until `take_output`, for this thread alone: a forward hook."""
    _kept.output = (module, output)


def take_output(module: nn.Module) -> Tensor | None:
    """Return the output of a module that `keep_output` kept, and forget it; None if it kept none."""
    kept, output = getattr(_kept, "output", (None, None))
    _kept.output = (None, None)
    return output if kept is module else None


def split_heads(keys: Tensor | None, num_heads: int) -> Tensor | None:
    """Split keys (B, N, heads · d) into heads, (B, heads, N, d)."""
    return None if keys is None else keys.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _at_places(mask: Tensor, place: Tensor) -> Tensor:
    """Take the rows and columns of a mask (…, N0, N0), with up to four dimensions, at the places (B, N)."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    batch, num_tokens = place.shape
    mask = mask.expand(batch, -1, -1, -1)
    if mask.shape[-2] > 1:
        rows = place[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
        mask = mask.gather(2, rows)
    columns = place[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], num_tokens)
    return mask.gather(3, columns)
