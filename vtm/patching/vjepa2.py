"""Blocks of the encoder of V-JEPA 2 in Hugging Face transformers: joint attention over a clip, rotary in three axes.

Merged tokens keep the position of their anchor. The predictor needs the tokens at all positions, so it is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer, VJEPA2Model, eager_attention_forward

from vtm.patching.block import Merging, split_heads, take_output
from vtm.patching.given_bias import given_bias, let_take_bias, restore_attention
from vtm.patching.host import Facts, Host
from vtm.patching.pooling import TakeState


class MergingVJEPA2Layer(VJEPA2Layer):  # type: ignore[misc]
    """A block of V-JEPA 2 that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(
        self, hidden_states: Tensor, position_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(hidden_states):
            output: tuple[Tensor, Tensor | None] = super().forward(hidden_states, position_mask, **kwargs)
            return output
        state = merging.enter(hidden_states)
        position = state.place if position_mask is None else position_mask.gather(1, state.place)
        with given_bias(self.attention, merging.bias(state, None)):  # the attention of V-JEPA 2 passes no mask
            attended, shares = self.attention(self.norm1(state.x), position_mask=position)
        keys = split_heads(take_output(self.attention.key), self.attention.num_attention_heads)
        state = merging.apply(state._replace(x=self.drop_path(attended) + state.x), keys)
        x = self.drop_path(self.mlp(self.norm2(state.x))) + state.x
        return merging.leave(state._replace(x=x)), shares


def attend_eagerly(
    module: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, scaling: float, **kwargs: Any
) -> Any:
    """Attend as the model's eager attention does, which ignores masks, with a bias (B, 1, 1, N) on the keys."""
    if bias is not None:  # as one more channel of queries and keys
        one = torch.full_like(query[..., :1], 1 / scaling)
        query = torch.cat([query, one], dim=-1)
        key = torch.cat([key, bias.transpose(2, 3).expand(-1, key.shape[1], -1, -1)], dim=-1)
    return eager_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)


def refuse_prediction(model: Any, args: Any, kwargs: Any) -> None:
    """Raise an error if a model whose blocks take tokens away must predict, or select tokens: a forward pre-hook."""
    given = dict(zip(("pixel_values_videos", "context_mask", "target_mask", "skip_predictor"), args, strict=False))
    given |= kwargs
    masked = given.get("context_mask") is not None or given.get("target_mask") is not None
    if (masked or not given.get("skip_predictor")) and any(block.merging.count for block in model.encoder.layer):
        raise ValueError(
            "the predictor and the masks of V-JEPA 2 need the tokens at all positions, and a patched model merges "
            "them: call it with skip_predictor=True and without masks, or call unpatch(model) first"
        )


def _prepare(block: Any) -> None:
    let_take_bias(block.attention, attend_eagerly)


def _restore(block: Any) -> None:
    restore_attention(block.attention)


def _facts(model: Any) -> Facts:
    config = model.config
    frames = config.frames_per_clip // config.tubelet_size
    return Facts(
        config.hidden_size,
        frames=frames,
        tubelet=config.tubelet_size,
        whole=frames * (config.crop_size // config.patch_size) ** 2,
        config=config,
        arguments=lambda place: {"position_mask": place.expand(2, -1)},
        inputs=lambda: {
            "pixel_values_videos": torch.zeros(
                1, config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size
            ),
            "skip_predictor": True,
        },
        returns_tuple=True,
    )


def _take_off(model: Any) -> None:
    model.register_forward_pre_hook(refuse_prediction, with_kwargs=True)
    model.encoder.layernorm.register_forward_pre_hook(TakeState(model.config.hidden_size))


HOSTS = (
    Host(
        VJEPA2Model,
        "encoder.layer",
        VJEPA2Layer,
        MergingVJEPA2Layer,
        "attention.key",
        _facts,
        _take_off,
        returns_hidden=True,
        prepare=_prepare,
        restore=_restore,
    ),
)
