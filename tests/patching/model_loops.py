"""Whole transformers that merge, as loops over clips, blocks and heads, for tests; imports nothing of vtm.

A model is computed from the entries of its `state_dict`. Blocks reduce their tokens between attention and MLP, as
Bolya et al. 2023 (section 3) and Pollard and Wray 2025 (section 3) do.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.patching.loops import reduce_loops


@dataclass(frozen=True)
class Recipe:
    """How the blocks of a model reduce.

    Attributes:
        counts: number of tokens that each block takes away, per frame if there are frames.
        mode: "merge", "drop", "hybrid", "random merge" or "random drop".
        concat: whether the keys of all heads are compared, not their mean.
        proportional: whether the attention weighs tokens by their size.
        threshold: similarity below which a source replaces its target, for "hybrid".
        seed: seed of the global generator before the forward, for the random modes.
    """

    counts: list[int]
    mode: str = "merge"
    concat: bool = False
    proportional: bool = True
    threshold: float = 0.0
    seed: int = 0


@dataclass
class Outcome:
    """The tokens (B, N', C) and sizes (B, N') after each block, and the logits (B, K).

    The similarities are those of the tokens that each block took away.
    """

    similarities: list[list[float]] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Clip:
    """The tokens x (N, C) of one clip inside a model, their sizes (N), and the places (N) of their anchors."""

    x: Tensor
    size: Tensor
    place: list[int]


class Weights:
    """The entries of a `state_dict` below a prefix."""

    def __init__(self, entries: dict[str, Tensor], prefix: str = "") -> None:
        self.entries, self.prefix = entries, prefix

    def below(self, name: str) -> "Weights":
        return Weights(self.entries, f"{self.prefix}{name}.")

    def get(self, name: str) -> Tensor | None:
        return self.entries.get(self.prefix + name)

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.entries

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.get(f"{name}.bias")
        return x @ self[f"{name}.weight"].T + (0.0 if bias is None else bias)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """Apply a layer norm, or nothing if the model has none of this name."""
        if f"{name}.weight" not in self:
            return x
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]

    def scale(self, name: str, x: Tensor) -> Tensor:
        """Apply a layer scale, or nothing if the model has none of this name."""
        return x * self[name] if name in self else x


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def patches(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Embed the blocks (t, h, w) of a clip (3, T, H, W) that do not overlap, frame by frame and row by row."""
    t, h, w = weight.shape[2:]
    rows = []
    for frame in range(0, x.shape[1], t):
        for top in range(0, x.shape[2], h):
            for left in range(0, x.shape[3], w):
                block = x[:, frame : frame + t, top : top + h, left : left + w]
                rows.append(weight.flatten(1) @ block.flatten() + bias)
    return torch.stack(rows)


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Attend from queries (N, C) to keys and values (N, C), head by head.

    Args:
        bias: function that adds something to the logits (N, N) of a head.
    """
    parts = []
    for q, k, v in zip(*(tensor.chunk(num_heads, -1) for tensor in (query, key, value)), strict=True):
        logits = q @ k.T / math.sqrt(q.shape[-1])
        exp = (logits if bias is None else bias(logits)).exp()
        parts.append(exp / exp.sum(-1, keepdim=True) @ v)
    return torch.cat(parts, -1)


def compared(key: Tensor, num_heads: int, recipe: Recipe) -> Tensor:
    """Return what is compared of keys (N, C): all heads or their mean."""
    return key if recipe.concat else torch.stack(key.chunk(num_heads, -1)).mean(0)


def draw(recipe: Recipe, batch: int, num_tokens: int) -> list[Tensor | None]:
    """Draw a score of each even and odd token of each item, as the peers do: one matrix per block that reduces."""
    if not recipe.mode.startswith("random"):
        return [None] * batch
    return list(torch.rand(batch, (num_tokens + 1) // 2, num_tokens // 2))


def reduce_clips(clips: list[Clip], keys: list[Tensor], count: int, recipe: Recipe, protected: int) -> list[float]:
    """Reduce the tokens of clips in place, and return the similarities of those taken away."""
    num_tokens = len(clips[0].x)
    count = min(count, (num_tokens - protected) // 2)
    if not count:
        return []
    similarities = []
    draws = draw(recipe, len(clips), num_tokens)
    for clip, key, scores in zip(clips, keys, draws, strict=True):
        reduced = reduce_loops(
            key,
            clip.x,
            clip.size,
            count,
            mode=recipe.mode.removeprefix("random "),
            protected=protected,
            threshold=recipe.threshold,
            scores=scores,
        )
        clip.x, clip.size, clip.place = reduced.x, reduced.size, [clip.place[n] for n in reduced.anchors]
        similarities += reduced.similarities
    return similarities


def reduce_frames(
    clips: list[Clip], keys: list[Tensor], count: int, recipe: Recipe, protected: int, frames: int, *, space_major: bool
) -> list[float]:
    """Reduce the tokens of each frame of clips on their own, in place, and return their similarities."""
    parts, part_keys = [], []
    for clip, key in zip(clips, keys, strict=True):
        for frame in range(frames):
            chosen = frame_indices(len(clip.x), protected, frames, frame, space_major=space_major)
            parts.append(Clip(clip.x[chosen], clip.size[chosen], [clip.place[n] for n in chosen]))
            part_keys.append(key[chosen])
    similarities = reduce_clips(parts, part_keys, count, recipe, 0)
    for number, clip in enumerate(clips):
        of_clip = parts[number * frames : (number + 1) * frames]
        left = len(of_clip[0].x)
        order = [(f, s) for s in range(left) for f in range(frames)]
        if not space_major:
            order = sorted(order)
        clip.x = torch.stack([*clip.x[:protected], *(of_clip[f].x[s] for f, s in order)])
        clip.size = torch.stack([*clip.size[:protected], *(of_clip[f].size[s] for f, s in order)])
        clip.place = [*clip.place[:protected], *(of_clip[f].place[s] for f, s in order)]
    return similarities


def frame_indices(num_tokens: int, protected: int, frames: int, frame: int, *, space_major: bool) -> list[int]:
    """Return the indices of the tokens of a frame, in order."""
    per_frame = (num_tokens - protected) // frames
    if space_major:
        return [protected + s * frames + frame for s in range(per_frame)]
    return [protected + frame * per_frame + s for s in range(per_frame)]


def start(sequences: list[Tensor]) -> list[Clip]:
    return [Clip(x, x.new_ones(len(x)), list(range(len(x)))) for x in sequences]


@dataclass
class Transformer:
    """A model: how a clip becomes tokens, what a block computes, and how tokens become logits.

    Attributes:
        embed: function from a clip or image to tokens (N, C).
        queries_keys_values: function from the weights of a block and normed tokens to what its attention takes (N, C).
        project: function from the weights of a block and the output of its attention to the change of the tokens.
        before: name of the norm before the attention, in a block.
        mlp: function from the weights of a block and tokens to the change of the tokens.
        classify: function from the tokens after the last block to the logits.
        blocks: weights of the blocks.
        num_heads: number of heads.
        protected: number of leading tokens that stay.
        eps: of the norms.
        frames: number of frames that are reduced on their own; None for the whole clip.
        rotate: function from queries or keys (N, C) and places to rotated ones; None without rotary embeddings.
    """

    embed: Callable[[Tensor], Tensor]
    queries_keys_values: Callable[[Weights, Tensor], tuple[Tensor, Tensor, Tensor]]
    project: Callable[[Weights, Tensor], Tensor]
    before: str
    mlp: Callable[[Weights, Tensor], Tensor]
    classify: Callable[[Tensor], Tensor]
    blocks: list[Weights]
    num_heads: int
    protected: int
    eps: float
    frames: int | None = None
    rotate: Callable[[Tensor, list[int]], Tensor] | None = None

    def __call__(self, x: Tensor, recipe: Recipe) -> Outcome:
        torch.manual_seed(recipe.seed)
        clips, outcome = start([self.embed(clip) for clip in x]), Outcome()
        for weights, count in zip(self.blocks, recipe.counts, strict=True):
            keys = []
            for clip in clips:
                normed = weights.norm(self.before, clip.x, self.eps)
                query, key, value = self.queries_keys_values(weights, normed)
                keys.append(compared(key, self.num_heads, recipe))
                if self.rotate is not None:
                    query, key = self.rotate(query, clip.place), self.rotate(key, clip.place)
                log_size = clip.size.log() if recipe.proportional else torch.zeros_like(clip.size)
                attended = attend(query, key, value, self.num_heads, lambda logits, add=log_size: logits + add)
                clip.x = clip.x + self.project(weights, attended)
            if self.frames is None:
                found = reduce_clips(clips, keys, count, recipe, self.protected)
            else:
                found = reduce_frames(clips, keys, count, recipe, self.protected, self.frames, space_major=False)
            for clip in clips:
                clip.x = clip.x + self.mlp(weights, clip.x)
            note(outcome, clips, found)
        outcome.logits = torch.stack([self.classify(clip.x) for clip in clips])
        return outcome


def note(outcome: Outcome, clips: list[Clip], similarities: list[float]) -> None:
    """Record the tokens after a block."""
    outcome.similarities.append(similarities)
    outcome.tokens.append(torch.stack([clip.x for clip in clips]))
    outcome.sizes.append(torch.stack([clip.size for clip in clips]))


def block_weights(weights: Weights, name: str) -> Iterator[Weights]:
    number = 0
    while any(entry.startswith(f"{weights.prefix}{name}.{number}.") for entry in weights.entries):
        yield weights.below(f"{name}.{number}")
        number += 1
