"""ViTs of transformers with ToMe as slow loops over one image or clip; reads a `state_dict`, imports nothing of vtm.

CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3 (rotary positions of the patches) and V-JEPA 2 (rotary positions in three axes).
A merged token keeps the position of its anchor, the token at whose place it stands.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.patching.loops import reduce_loops
from tests.patching.motionformer_loops import Weights, average, layer_norm

Rotate = Callable[[Tensor, int], Tensor]  # query or key (d,) of a head, place of the token -> rotated


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@dataclass(frozen=True)
class Family:
    """Names of the parameters of a family, and what its blocks compute.

    Attributes:
        blocks: name of the list of blocks.
        names: names of first norm, query, key, value, output, second norm, and of the layers of the MLP.
        scales: names of the two layer scales; none if empty.
        activate: activation of the MLP; with three layers it gates.
        eps: ε of the norms.
        protected: number of leading tokens that stay.
        norm: name of the norm after the last block; none if empty.
    """

    blocks: str
    names: tuple[str, ...]
    scales: tuple[str, ...]
    activate: Callable[[Tensor], Tensor]
    eps: float
    protected: int
    norm: str


CLIP_NAMES = (
    "layer_norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm2",
    "mlp.fc1", "mlp.fc2",
)  # fmt: skip
DINO_NAMES = (
    "norm1", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "norm2",
)  # fmt: skip
VJEPA2_NAMES = (
    "norm1", "attention.query", "attention.key", "attention.value", "attention.proj", "norm2", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    bias = weights.get(f"{name}.bias")
    return x @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def cut(pixels: Tensor, patch: int, frames: int = 1) -> list[Tensor]:
    """Cut a clip (3, T, H, W) into cubes (3, frames, patch, patch), frame by frame, row by row."""
    _, time, height, width = pixels.shape
    return [
        pixels[:, t : t + frames, y : y + patch, x : x + patch]
        for t in range(0, time, frames)
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]


def dinov3_rotation(protected: int, side: int, head_width: int) -> Rotate:
    """Return the rotation of a patch of side × side by its row and column, seen from the center of the image."""

    def rotate(x: Tensor, place: int) -> Tensor:
        if place < protected:
            return x
        row, column = divmod(place - protected, side)
        angles = []
        for index in (row, column):
            turns = 2 * math.pi * torch.tensor(2 * (index + 0.5) / side - 1)  # the model has this in float32,
            for j in range(head_width // 4):
                frequency = 1 / torch.tensor(100.0) ** (4 * j / head_width)  # and this
                angles.append(float(turns) * float(frequency))
        half = head_width // 2
        rotated = torch.zeros_like(x)
        for c in range(half):
            cos, sin = math.cos(angles[c]), math.sin(angles[c])
            rotated[c] = x[c] * cos - x[c + half] * sin
            rotated[c + half] = x[c + half] * cos + x[c] * sin
        return rotated

    return rotate


def vjepa2_rotation(side: int, head_width: int) -> Rotate:
    """Return the rotation of a token by its frame, row and column; the channels left over stay."""
    axis_width = 2 * (head_width // 3 // 2)

    def rotate(x: Tensor, place: int) -> Tensor:
        rotated = x.clone()
        for axis, position in enumerate((place // side**2, place % side**2 // side, place % side)):
            start = axis * axis_width
            for c in range(axis_width):
                angle = position / 10000 ** (c % (axis_width // 2) / (axis_width / 2))
                partner = -x[start + c + 1] if c % 2 == 0 else x[start + c - 1]
                rotated[start + c] = x[start + c] * math.cos(angle) + partner * math.sin(angle)
        return rotated

    return rotate


def run(
    x: Tensor,
    weights: Weights,
    family: Family,
    *,
    num_heads: int,
    schedule: list[int],
    proportional: bool,
    rotate: Rotate = lambda x, place: x,
    frames: int = 1,
) -> tuple[Tensor, Tensor]:
    """Run the blocks on embedded tokens x (N, C), of which each block takes some away, per frame if there are several.

    Returns:
        tokens (N', C) after the last norm, and their sizes (N').
    """
    norm1, query, key, value, output, norm2, *mlp = family.names
    size, places = torch.ones(len(x), dtype=x.dtype), list(range(len(x)))
    for block, count in enumerate(schedule):
        name = f"{family.blocks}.{block}"
        first, second = (weights[f"{name}.{scale}"] for scale in family.scales) if family.scales else (1, 1)
        normed = layer_norm(x, weights, f"{name}.{norm1}", eps=family.eps)
        queries, keys, values = (
            linear(normed, weights, f"{name}.{part}").unflatten(1, (num_heads, -1)) for part in (query, key, value)
        )
        rows = []
        for n in range(len(x)):
            heads = []
            for head in range(num_heads):
                turned = rotate(queries[n, head], places[n]) / math.sqrt(queries.shape[2])
                logits = [turned @ rotate(keys[m, head], places[m]) for m in range(len(x))]
                if proportional:
                    logits = [logit + math.log(size[m]) for m, logit in enumerate(logits)]
                heads.append(average(logits, [values[m, head] for m in range(len(x))]))
            rows.append(torch.cat(heads))
        x = x + first * linear(torch.stack(rows), weights, f"{name}.{output}")

        whole, per_frame = keys.mean(1), len(x) // frames
        parts, kept = [], []
        for frame in range(frames):
            inside = slice(frame * per_frame, (frame + 1) * per_frame)
            part = reduce_loops(whole[inside], x[inside], size[inside], count, mode="merge", protected=family.protected)
            parts.append(part)
            for members in part.members:  # a merged group stands at its target, the one at an odd place
                anchor = members[0] if len(members) == 1 else next(m for m in members if m % 2)
                kept.append(places[frame * per_frame + anchor])
        x = torch.cat([part.x for part in parts])
        size = torch.cat([part.size for part in parts])
        places = kept

        hidden = layer_norm(x, weights, f"{name}.{norm2}", eps=family.eps)
        if len(mlp) == 3:
            gate, up, down = mlp
            gated = family.activate(linear(hidden, weights, f"{name}.{gate}"))
            hidden = linear(gated * linear(hidden, weights, f"{name}.{up}"), weights, f"{name}.{down}")
        else:
            hidden = family.activate(linear(hidden, weights, f"{name}.{mlp[0]}"))
            hidden = linear(hidden, weights, f"{name}.{mlp[1]}")
        x = x + second * hidden
    return (layer_norm(x, weights, family.norm, eps=family.eps) if family.norm else x), size
