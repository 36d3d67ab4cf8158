"""What the blocks of CLIP and SigLIP, and those of the DINO models in Hugging Face transformers, have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtm.patching.block import Merging, State, split_heads, take_output
from vtm.patching.host import check_implementation


def merge_in_clip_layer(layer: Any, x: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """Run a block with the layers of CLIP or SigLIP that takes tokens away between attention and MLP.

    Args:
        layer: patched block.
        x: (B, N, C + channels of the state).
        mask: mask of the model for the tokens of the input.
        kwargs: what else its attention is given.
    """
    merging: Merging = layer.merging
    state = merging.enter(x)
    bias = bias_of(merging, state, mask, layer.self_attn.config)
    attended, _ = layer.self_attn(layer.layer_norm1(state.x), attention_mask=bias, **kwargs)
    keys = split_heads(take_output(layer.self_attn.k_proj), layer.self_attn.num_heads)
    state = merging.apply(state._replace(x=state.x + attended), keys)
    return merging.leave(state._replace(x=state.x + layer.mlp(layer.layer_norm2(state.x))))


def merge_in_dino_layer(layer: Any, state: State, mask: Tensor | None, *, num_heads: int, **kwargs: Any) -> Tensor:
    """Run a block with the layers of DINOv2 or DINOv3 that takes tokens away between attention and MLP.

    Args:
        layer: patched block.
        state: tokens before the block.
        mask: mask of the model for the tokens of the input.
        num_heads: number of heads.
        kwargs: what else its attention is given.
    """
    merging: Merging = layer.merging
    bias = bias_of(merging, state, mask, layer.attention.config)
    attended, _ = layer.attention(layer.norm1(state.x), attention_mask=bias, **kwargs)
    x = layer.drop_path(layer.layer_scale1(attended)) + state.x
    state = merging.apply(state._replace(x=x), split_heads(take_output(layer.attention.k_proj), num_heads))
    x = layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(state.x)))) + state.x
    return merging.leave(state._replace(x=x))


def bias_of(merging: Merging, state: State, mask: Tensor | None, config: Any) -> Tensor | None:
    """Return what to add to the attention logits, see `Merging.bias`.

    Raises:
        ValueError: if the implementation of the attention in the configuration takes no bias.
    """
    bias = merging.bias(state, mask)
    if bias is not None:
        check_implementation(config)
    return bias
