"""The transformers that vtm.patching knows, as loops over clips, blocks and heads; imports nothing of vtm."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.patching.model_loops import (
    Clip,
    Outcome,
    Recipe,
    Transformer,
    Weights,
    attend,
    block_weights,
    compared,
    gelu,
    gelu_fast,
    note,
    patches,
    reduce_frames,
    start,
)


def weights_of(model: nn.Module) -> Weights:
    return Weights({name: value.detach() for name, value in model.state_dict().items()})


def mlp(weights: Weights, x: Tensor, *, norm: str, first: str, second: str, eps: float, act: Any = gelu) -> Tensor:
    return weights.linear(second, act(weights.linear(first, weights.norm(norm, x, eps))))


# timm


def timm_model(model: Any, *, num_heads: int, eps: float = 1e-6, half: bool = False) -> Transformer:
    """Return a ViT or EVA model of timm with a mean or a class token before its head.

    Args:
        half: whether rotary embeddings rotate the two halves of a head, not pairs of neighboring channels.
    """
    weights = weights_of(model)
    special = [weights[name][0] for name in ("cls_token", "dist_token", "reg_token") if name in weights]
    prefix = torch.cat(special) if special else torch.empty(0)
    protected = len(prefix)

    def embed(image: Tensor) -> Tensor:
        kernel = weights["patch_embed.proj.weight"][:, :, None]
        x = patches(image[:, None], kernel, weights["patch_embed.proj.bias"])
        position = weights["pos_embed"][0] if "pos_embed" in weights else torch.zeros_like(x)
        if len(position) == len(x):  # special tokens have no position
            return torch.cat([prefix, x + position]) if protected else x + position
        return torch.cat([prefix, x]) + position

    def queries_keys_values(block: Weights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = block.linear("attn.qkv", x).chunk(3, -1)
        if "attn.q_bias" in block:
            query, value = query + block["attn.q_bias"], value + block["attn.v_bias"]
        query, key = (
            torch.cat([block.norm(f"attn.{name}_norm", head, eps) for head in values.chunk(num_heads, -1)], -1)
            for name, values in (("q", query), ("k", key))
        )
        return query, key, value

    def project(block: Weights, x: Tensor) -> Tensor:
        return block.scale("gamma_1", block.scale("ls1.gamma", block.linear("attn.proj", x)))

    def feed(block: Weights, x: Tensor) -> Tensor:
        hidden = block.linear("mlp.fc1", block.norm("norm2", x, eps))
        if block["mlp.fc2.weight"].shape[1] * 2 == hidden.shape[-1]:  # SwiGLU
            gate, hidden = hidden.chunk(2, -1)
            hidden = gate * torch.sigmoid(gate) * hidden
        else:
            hidden = gelu(hidden)
        return block.scale("gamma_2", block.scale("ls2.gamma", block.linear("mlp.fc2", hidden)))

    def classify(x: Tensor) -> Tensor:
        x = weights.norm("norm", x, eps)
        if "head_dist.weight" in weights:
            return (weights.linear("head", x[0]) + weights.linear("head_dist", x[1])) / 2
        pooled = x[0] if model.global_pool == "token" else x[protected:].mean(0)
        return weights.linear("head", weights.norm("fc_norm", pooled, eps))

    rope = getattr(model, "rope", None)
    rotate = None if rope is None else partial(rotated, rope.get_embed(model.patch_embed.grid_size), protected, half)
    return Transformer(
        embed, queries_keys_values, project, "norm1", feed, classify,
        list(block_weights(weights, "blocks")), num_heads, protected, eps, rotate=rotate,
    )  # fmt: skip


def rotated(table: Tensor, protected: int, half: bool, x: Tensor, place: list[int]) -> Tensor:
    """Rotate each head of queries or keys (N, C) by the sines and cosines (N0 − p, 2·d) of the places."""
    rows = []
    for n, row in enumerate(x):
        if n < protected:
            rows.append(row)
            continue
        sine, cosine = table[place[n] - protected].to(x.dtype).chunk(2)
        heads = []
        for head in row.chunk(len(row) // len(sine)):
            first, second = head.chunk(2) if half else (head[0::2], head[1::2])
            sines, cosines = (angle.chunk(2)[0] if half else angle[0::2] for angle in (sine, cosine))
            turned = first * cosines - second * sines, second * cosines + first * sines
            heads.append(torch.cat(turned) if half else torch.stack(turned, -1).flatten())
        rows.append(torch.cat(heads))
    return torch.stack(rows)


# Hugging Face transformers


def vivit_model(model: Any, *, frames: int | None = None) -> Transformer:
    """Return ViViT; with `frames`, each frame is reduced on its own."""
    config, weights = model.config, weights_of(model)
    trunk, eps = weights.below("vivit"), config.layer_norm_eps

    def embed(clip: Tensor) -> Tensor:
        projection = trunk.below("embeddings.patch_embeddings.projection")
        x = patches(clip.transpose(0, 1), projection["weight"], projection["bias"])
        return torch.cat([trunk["embeddings.cls_token"][0], x]) + trunk["embeddings.position_embeddings"][0]

    def queries_keys_values(block: Weights, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(block.linear(f"attention.{name}_proj", x) for name in "qkv")

    return Transformer(
        embed,
        queries_keys_values,  # type: ignore[arg-type]
        lambda block, x: block.linear("attention.o_proj", x),
        "layernorm_before",
        partial(mlp, norm="layernorm_after", first="mlp.fc1", second="mlp.fc2", eps=eps, act=gelu_fast),
        lambda x: weights.linear("classifier", trunk.norm("layernorm", x[0], eps)),
        list(block_weights(trunk, "layers")), config.num_attention_heads, 1, eps, frames,
    )  # fmt: skip


def videomae_model(model: Any, *, frames: int | None = None) -> Transformer:
    """Return VideoMAE, which classifies the mean of its tokens; with `frames`, each frame is reduced on its own."""
    config, weights = model.config, weights_of(model)
    trunk, eps = weights.below("videomae"), config.layer_norm_eps

    def embed(clip: Tensor) -> Tensor:
        projection = trunk.below("embeddings.patch_embeddings.projection")
        x = patches(clip.transpose(0, 1), projection["weight"], projection["bias"])
        return x + sinusoids(*x.shape).to(x.dtype)

    def queries_keys_values(block: Weights, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(block.linear(f"attention.attention.{name}", x) for name in ("query", "key", "value"))

    return Transformer(
        embed,
        queries_keys_values,  # type: ignore[arg-type]
        lambda block, x: block.linear("attention.output.dense", x),
        "layernorm_before",
        partial(mlp, norm="layernorm_after", first="intermediate.dense", second="output.dense", eps=eps),
        lambda x: weights.linear("classifier", weights.norm("fc_norm", x.mean(0), 1e-5)),
        list(block_weights(trunk, "encoder.layer")), config.num_attention_heads, 0, eps, frames,
    )  # fmt: skip


def sinusoids(num_tokens: int, width: int) -> Tensor:
    """Return the positions (N, C) of VideoMAE, in fp32."""
    rows = []
    for n in range(num_tokens):
        angles = [n / 10000 ** (2 * (c // 2) / width) for c in range(width)]
        rows.append([math.cos(angle) if c % 2 else math.sin(angle) for c, angle in enumerate(angles)])
    return torch.tensor(rows, dtype=torch.float64).float()


class TimeSformer:
    """TimeSformer with divided attention over time and space, whose frames are reduced on their own."""

    def __init__(self, model: Any) -> None:
        self.config, self.weights = model.config, weights_of(model)
        self.trunk = self.weights.below("timesformer")

    def embed(self, clip: Tensor) -> Tensor:
        """Return CLS and the tokens of a clip (T, 3, H, W), all frames of a place after one another."""
        weights = self.trunk.below("embeddings")
        projection = weights.below("patch_embeddings.projection")
        position = weights["position_embeddings"][0]
        frames = [
            patches(image[:, None], projection["weight"][:, :, None], projection["bias"]) + position[1:] + time
            for image, time in zip(clip, weights["time_embeddings"][0], strict=True)
        ]
        tokens = [frame[place] for place in range(len(frames[0])) for frame in frames]
        return torch.stack([weights["cls_token"][0, 0] + position[0], *tokens])

    def attend_over_time(self, block: Weights, x: Tensor) -> Tensor:
        """Let the tokens of a place attend to one another: x (1 + P·T, C) -> (1 + P·T, C)."""
        frames, left = self.config.num_frames, [x[:1]]
        for first in range(1, len(x), frames):
            place = x[first : first + frames]
            normed = block.norm("temporal_layernorm", place, self.config.layer_norm_eps)
            query, key, value = block.linear("temporal_attention.attention.qkv", normed).chunk(3, -1)
            attended = attend(query, key, value, self.config.num_attention_heads)
            changed = block.linear("temporal_attention.output.dense", attended)
            left.append(place + block.linear("temporal_dense", changed))
        return torch.cat(left)

    def attend_over_space(self, block: Weights, clip: Clip, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Let CLS and the tokens of each frame attend to one another; CLS weighs all alike.

        Returns:
            change of the tokens (1 + P·T, C), and their keys.
        """
        frames, change = self.config.num_frames, torch.zeros_like(clip.x)
        rows = [0] * len(clip.x)
        compare: list[Tensor] = [torch.empty(0)] * len(clip.x)
        for frame in range(frames):
            chosen = [0, *range(1 + frame, len(clip.x), frames)]
            normed = block.norm("layernorm_before", clip.x[chosen], self.config.layer_norm_eps)
            query, key, value = block.linear("attention.attention.qkv", normed).chunk(3, -1)
            weight = torch.zeros(len(chosen), len(chosen), dtype=clip.x.dtype)
            if recipe.proportional:
                weight[1:, 1:] = clip.size[chosen[1:]].log()
            attended = attend(
                query, key, value, self.config.num_attention_heads, lambda logits, add=weight: logits + add
            )
            change[chosen] += block.linear("attention.output.dense", attended)
            for n, row in zip(chosen, compared(key, self.config.num_attention_heads, recipe), strict=True):
                rows[n], compare[n] = rows[n] + 1, row
        return change / torch.tensor(rows)[:, None], torch.stack(compare)  # CLS: the mean of its frames

    def __call__(self, x: Tensor, recipe: Recipe) -> Outcome:
        torch.manual_seed(recipe.seed)
        clips, outcome, eps = start([self.embed(clip) for clip in x]), Outcome(), self.config.layer_norm_eps
        for block, count in zip(block_weights(self.trunk, "encoder.layer"), recipe.counts, strict=True):
            keys = []
            for clip in clips:
                clip.x = self.attend_over_time(block, clip.x)
                change, key = self.attend_over_space(block, clip, recipe)
                clip.x = clip.x + change
                keys.append(key)
            found = reduce_frames(clips, keys, count, recipe, 1, self.config.num_frames, space_major=True)
            for clip in clips:
                clip.x = clip.x + mlp(
                    block, clip.x, norm="layernorm_after", first="intermediate.dense", second="output.dense", eps=eps
                )
            note(outcome, clips, found)
        outcome.logits = torch.stack(
            [self.weights.linear("classifier", self.trunk.norm("layernorm", clip.x[0], eps)) for clip in clips]
        )
        return outcome
