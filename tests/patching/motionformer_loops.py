"""Motionformer as slow loops over one clip, written from the paper (Patrick et al. 2021, section 3).

It reads a `state_dict` and imports nothing of vtm. The tokens are CLS, then those of each frame in turn.
"""

import math

import torch
from torch import Tensor

from tests.patching.loops import Reduced, reduce_loops

Weights = dict[str, Tensor]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Weights, name: str, *, eps: float = 1e-6) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def average(logits: list[Tensor], values: list[Tensor]) -> Tensor:
    shares = torch.stack(logits).softmax(0)
    return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)


def trajectory_attention(
    x: Tensor, weights: Weights, name: str, *, num_heads: int, frames: int, values: str, size: Tensor | None
) -> Tensor:
    """Attend from each of the tokens x (1 + F·S, C); size (1 + F·S) weighs the keys for all but CLS."""
    num_tokens, width = x.shape
    head_width, per_frame = width // num_heads, (num_tokens - 1) // frames
    query, key, value = linear(x, weights, f"{name}.qkv").split(width, dim=-1)
    channels = [slice(head * head_width, (head + 1) * head_width) for head in range(num_heads)]
    rows = []
    for n in range(num_tokens):
        if n == 0:
            row = []
            for c in channels:
                logits = [query[0, c] @ key[m, c] / math.sqrt(head_width) for m in range(num_tokens)]
                row.append(average(logits, [value[m, c] for m in range(num_tokens)]))
            rows.append(torch.cat(row))
            continue
        path = []
        for frame in range(frames):
            members = range(1 + frame * per_frame, 1 + (frame + 1) * per_frame)
            vector = []
            for c in channels:
                logits = [query[n, c] @ key[m, c] / math.sqrt(head_width) for m in members]
                if size is not None:
                    logits = [logit + math.log(size[m]) for logit, m in zip(logits, members, strict=True)]
                vector.append(average(logits, [value[m, c] for m in members]))
            path.append(torch.cat(vector))
        own = path[(n - 1) // per_frame]
        second_query = linear(own, weights, f"{name}.proj_q")
        pairs = [linear(vector, weights, f"{name}.proj_kv").split(width) for vector in path]
        second_values = path if values == "trajectory" else [pair[1] for pair in pairs]
        row = []
        for c in channels:
            logits = [second_query[c] @ pair[0][c] / math.sqrt(head_width) for pair in pairs]
            row.append(average(logits, [vector[c] for vector in second_values]))
        rows.append(torch.cat(row))
    return linear(torch.stack(rows), weights, f"{name}.proj")


def embed(clip: Tensor, weights: Weights) -> Tensor:
    """Turn a clip (3, T, H, W) into tokens (1 + F·S, C)."""
    kernel, bias = weights["patch_embed_3d.proj.weight"], weights["patch_embed_3d.proj.bias"]
    tokens = [weights["cls_token"][0, 0] + weights["pos_embed"][0, 0]]
    for frame in range(clip.shape[1] // 2):
        place = 0
        for top in range(0, clip.shape[2], 16):
            for left in range(0, clip.shape[3], 16):
                cube = clip[:, 2 * frame : 2 * frame + 2, top : top + 16, left : left + 16]
                content = (kernel * cube).flatten(1).sum(1) + bias
                tokens.append(content + weights["pos_embed"][0, 1 + place] + weights["temp_embed"][0, frame])
                place += 1
    return torch.stack(tokens)


def motionformer(
    clip: Tensor,
    weights: Weights,
    *,
    num_heads: int,
    schedule: list[int],
    values: str,
    proportional: bool,
) -> tuple[Tensor, Tensor, list[list[list[int]]]]:
    """Run Motionformer, merging as many tokens of each frame as the schedule has it in each block.

    Returns:
        logits, sizes of the tokens after the last block, and for each block the tokens of its input in each output.
    """
    frames = clip.shape[1] // 2
    x = embed(clip, weights)
    size = torch.ones(len(x), dtype=x.dtype)
    merged = []
    for block, count in enumerate(schedule):
        name = f"blocks.{block}"
        normed = layer_norm(x, weights, f"{name}.norm1")
        x = x + trajectory_attention(
            normed,
            weights,
            f"{name}.attn",
            num_heads=num_heads,
            frames=frames,
            values=values,
            size=size if proportional else None,
        )
        keys = linear(normed, weights, f"{name}.attn.qkv")[:, x.shape[1] : 2 * x.shape[1]]
        keys = keys.unflatten(1, (num_heads, -1)).mean(1)
        per_frame = (len(x) - 1) // frames
        parts: list[Reduced] = []
        members = [[0]]
        for frame in range(frames):
            start = 1 + frame * per_frame
            inside = slice(start, start + per_frame)
            parts.append(reduce_loops(keys[inside], x[inside], size[inside], count, mode="merge"))
            members += [[start + m for m in group] for group in parts[-1].members]
        x = torch.cat([x[:1], *(part.x for part in parts)])
        size = torch.cat([size[:1], *(part.size for part in parts)])
        merged.append(members)
        hidden = gelu(linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
        x = x + linear(hidden, weights, f"{name}.mlp.fc2")
    features = torch.tanh(linear(layer_norm(x, weights, "norm")[0], weights, "pre_logits.fc"))
    return linear(features, weights, "head"), size, merged
