"""Motionformer (Patrick et al., "Keeping Your Eye on the Ball", NeurIPS 2021) and its patched blocks.

The names of the parameters are those of the checkpoints of facebookresearch/Motionformer. The tokens are frame-major:
CLS, then all tokens of the first frame (a pair of frames of the clip), then those of the second. A patched model merges
only tokens of one frame and takes equally many from each, so that the attention finds the frames again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from vtm.patching.block import Merging, take_output
from vtm.patching.host import Facts, Host

Values = Literal["trajectory", "projected"]

PATCH, TUBELET = 16, 2  # pixels, frames


class TrajectoryAttention(nn.Module):
    """Attention along the paths of the tokens through the frames (section 3 of the paper).

    Each token attends to the tokens of each frame separately, which results in its trajectory, one vector per frame.
    Then the vector of its own frame attends to the whole trajectory. CLS attends to all tokens; no other attends to it.

    Args:
        width: C, number of channels.
        num_heads: number of heads.
        num_frames: F, number of frames of the tokens.
        values: what the second step averages: "trajectory" for the vectors themselves, as the released weights expect
            (`USE_ORIGINAL_TRAJ_ATTN_CODE`), "projected" for projections of them, as the paper has it.
    """

    def __init__(self, width: int, num_heads: int, num_frames: int, values: Values) -> None:
        super().__init__()
        self.num_heads, self.num_frames, self.values = num_heads, num_frames, values
        self.qkv = nn.Linear(width, 3 * width)
        self.proj_q = nn.Linear(width, width)
        self.proj_kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """Attend from each token to all tokens.

        Args:
            x: (B, 1 + F·S, C).
            size: (B, 1 + F·S), number of tokens of the input in each token; its logarithm is added to the logits of the
                first step, but not to those of CLS. None for ones.

        Returns:
            (B, 1 + F·S, C).
        """
        frames, batch, width = self.num_frames, len(x), x.shape[2]
        query, key, value = (self._split_heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        cls = scaled_dot_product_attention(query[:, :, :1], key, value).transpose(1, 2).flatten(2)

        query = query[:, None, :, 1:].expand(-1, frames, -1, -1, -1).flatten(0, 1)  # (B·F, heads, F·S, d)
        key, value = (
            part[:, :, 1:].unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1) for part in (key, value)
        )  # (B·F, heads, S, d)
        bias = None if size is None else size[:, 1:].log().to(x.dtype).reshape(batch * frames, 1, 1, -1)
        paths = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        paths = paths.unflatten(0, (batch, frames)).permute(0, 3, 1, 2, 4).flatten(3)  # (B, F·S, F, C)

        own = paths.unflatten(1, (frames, -1)).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(1, 2)  # (B, F·S, C)
        if self.values == "projected":
            key, value = self.proj_kv(paths).chunk(2, dim=-1)
        else:  # half of the layer is not needed
            key, value = linear(paths, self.proj_kv.weight[:width], self.proj_kv.bias[:width]), paths
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in (self.proj_q(own), key, value))
        logits = torch.einsum("bnhd,bnfhd->bnhf", query, key) * query.shape[-1] ** -0.5
        attended = torch.einsum("bnhf,bnfhd->bnhd", logits.softmax(-1), value).flatten(2)
        result: Tensor = self.proj(torch.cat([cls, attended], dim=1))
        return result

    def _split_heads(self, x: Tensor) -> Tensor:
        """Reshape (B, N, C) to (B, heads, N, d)."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)


class Mlp(nn.Module):
    """The two-layer perceptron of a block.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C)."""
        result: Tensor = self.fc2(gelu(self.fc1(x)))
        return result


class MotionformerBlock(nn.Module):
    """A block of Motionformer: trajectory attention and an MLP; see `TrajectoryAttention` for its arguments."""

    def __init__(self, width: int, num_heads: int, num_frames: int, values: Values) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = TrajectoryAttention(width, num_heads, num_frames, values)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, 1 + F·S, C)."""
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class Motionformer(nn.Module):
    """Motionformer, by default the base size with the head of Kinetics-400.

    Args:
        num_classes: number of classes, or one number per head, such as (97, 300) for the verbs and nouns of
            EPIC-KITCHENS-100.
        num_frames: number of frames of a clip, an even number.
        image_size: height and width of the images that the positions are made for; others resize the positions.
        width: number of channels.
        depth: number of blocks.
        num_heads: number of heads.
        values: see `TrajectoryAttention`.
    """

    def __init__(
        self,
        *,
        num_classes: int | Sequence[int] = 400,
        num_frames: int = 16,
        image_size: int = 224,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        values: Values = "trajectory",
    ) -> None:
        super().__init__()
        steps = num_frames // TUBELET
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // PATCH) ** 2, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, steps, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.patch_embed.requires_grad_(False)  # it is in the checkpoints, but the model does not use it
        size = (TUBELET, PATCH, PATCH)
        self.patch_embed_3d = nn.ModuleDict({"proj": nn.Conv3d(3, width, size, size)})
        self.blocks = nn.ModuleList(MotionformerBlock(width, num_heads, steps, values) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_logits = nn.ModuleDict({"fc": nn.Linear(width, width)})
        classes = {"head": num_classes} if isinstance(num_classes, int) else name_heads(num_classes)
        self.head_names = tuple(classes)
        for name, number in classes.items():
            self.add_module(name, nn.Linear(width, number))
        self.checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Classify clips.

        Args:
            x: (B, 3, T, H, W), frames minus 0.5, divided by 0.5, from values between 0 and 1.

        Returns:
            logits (B, classes), or a tuple of the logits of each head.

        Raises:
            ValueError: if the number of frames is not that of the model.
        """
        tokens = self.patch_embed_3d["proj"](x)  # (B, C, F, h, w)
        steps = self.temp_embed.shape[1]
        if tokens.shape[2] != steps:
            raise ValueError(
                f"expected clips (B, 3, {TUBELET * steps}, H, W), with the {TUBELET * steps} frames of the model, got "
                f"shape {tuple(x.shape)}"
            )
        positions = self._positions(tokens.shape[3], tokens.shape[4])
        tokens = tokens.flatten(2).transpose(1, 2) + (positions[:, None] + self.temp_embed[:, :, None]).flatten(1, 2)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([cls, tokens], dim=1)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        features = torch.tanh(self.pre_logits["fc"](self.norm(tokens)[:, 0]))
        logits = tuple(self.get_submodule(name)(features) for name in self.head_names)
        return logits[0] if self.head_names == ("head",) else logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the blocks be computed again in the backward pass, to save memory."""
        self.checkpointing = enable

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the positions of a frame (1, height · width, C), resized if they are made for another size."""
        positions = self.pos_embed[:, 1:]
        side = math.isqrt(positions.shape[1])
        if (height, width) == (side, side):
            return positions
        grid = positions.transpose(1, 2).unflatten(2, (side, side))
        return interpolate(grid, (height, width), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def name_heads(num_classes: Sequence[int]) -> dict[str, int]:
    """Return the names of several heads in the checkpoints, with their numbers of classes."""
    return {f"head{index}": number for index, number in enumerate(num_classes)}


def load_motionformer(path: str | Path, *, values: Values = "trajectory") -> Motionformer:
    """Load a model from a checkpoint of facebookresearch/Motionformer, with as many frames, classes and heads.

    Args:
        path: file such as k400_motionformer_224_16x4.pyth, of a model whose heads have 64 channels each.
        values: see `TrajectoryAttention`.

    Raises:
        ValueError: if the file does not contain such a model.
    """
    file = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = file.get("model_state", {}) if isinstance(file, dict) else {}
    heads = [state[name].shape[0] for name in ("head0.weight", "head1.weight") if name in state]
    try:
        model = Motionformer(
            num_classes=heads or state["head.weight"].shape[0],
            num_frames=TUBELET * state["temp_embed"].shape[1],
            image_size=PATCH * math.isqrt(state["pos_embed"].shape[1] - 1),
            width=state["cls_token"].shape[-1],
            depth=sum(name.endswith(".norm1.weight") for name in state),
            num_heads=state["cls_token"].shape[-1] // 64,
            values=values,
        )
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint of Motionformer with an entry model_state: {error}") from error
    return model


class MergingMotionformerBlock(MotionformerBlock):
    """A block of Motionformer that takes tokens of each frame away between attention and MLP."""

    merging: Merging

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, 1 + F·S, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(x):
            return super().forward(x)
        state = merging.enter(x)
        x = state.x + self.attn(self.norm1(state.x), state.size if merging.proportional else None)
        keys = take_output(self.attn.qkv)
        if keys is not None:
            keys = keys.unflatten(-1, (3, self.attn.num_heads, -1))[:, :, 1].transpose(1, 2)
        state = merging.apply(state._replace(x=x), keys)
        return merging.leave(state._replace(x=state.x + self.mlp(self.norm2(state.x))))


def _facts(model: Motionformer) -> Facts:
    steps = model.temp_embed.shape[1]
    width, num_tokens = model.cls_token.shape[-1], 1 + 4 * steps
    side = PATCH * math.isqrt(model.pos_embed.shape[1] - 1)
    return Facts(
        width,
        protected=1,
        frames=steps,
        tubelet=TUBELET,
        only_frames=True,
        num_tokens=num_tokens,
        inputs=lambda: {"x": torch.zeros(1, 3, TUBELET * steps, side, side)},
    )


HOSTS = (Host(Motionformer, "blocks", MotionformerBlock, MergingMotionformerBlock, "attn.qkv", _facts),)
