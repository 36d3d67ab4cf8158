"""Blocks of VideoMAE in Hugging Face transformers: joint attention over all tokens of a clip, without CLS."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.models.videomae import modeling_videomae
from transformers.models.videomae.modeling_videomae import (
    VideoMAEForPreTraining,
    VideoMAELayer,
    VideoMAEModel,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple

from vtm.patching.block import Merging, split_heads, take_output
from vtm.patching.given_bias import given_bias, let_take_bias, restore_attention
from vtm.patching.host import Averaging, Facts, Host, pixel_inputs
from vtm.patching.pooling import TakeStateOfOutput, check_mean, mean_by_size


class MergingVideoMAELayer(VideoMAELayer):  # type: ignore[misc]
    """A block of VideoMAE that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, **kwargs)
            return output
        state = merging.enter(hidden_states)
        attention = self.attention.attention
        with given_bias(attention, merging.bias(state, None)):
            attended = self.attention(self.layernorm_before(state.x), **kwargs)
        keys = split_heads(take_output(attention.key), attention.num_attention_heads)
        state = merging.apply(state._replace(x=attended + state.x), keys)
        x = self.output(self.intermediate(self.layernorm_after(state.x)), state.x)
        return merging.leave(state._replace(x=x))


class VideoMAEForVideoClassification(modeling_videomae.VideoMAEForVideoClassification):  # type: ignore[misc]
    """A VideoMAE that weighs each token by its size where it averages the tokens.

    It has the name of the original class, because `save_pretrained` writes the name into the configuration.
    """

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Classify clips (B, T, 3, H, W)."""
        outputs = self.videomae(pixel_values, **kwargs)
        logits = self.classifier(self.fc_norm(mean_by_size(outputs.last_hidden_state)))
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _prepare(block: Any) -> None:
    let_take_bias(block.attention.attention, eager_attention_forward)


def _restore(block: Any) -> None:
    restore_attention(block.attention.attention)


def _pooling_problem(model: Any) -> str | None:
    return "takes the first token (use_mean_pooling = False)" if model.fc_norm is None else None


def _take_off(model: Any) -> None:
    model.encoder.register_forward_hook(TakeStateOfOutput(model.config.hidden_size))


class _Given(nn.Module):
    """A model that returns given tokens."""

    tokens: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return them."""
        return BaseModelOutput(last_hidden_state=self.tokens)


def _check(patched: Any) -> None:
    """Compare the logits of a tiny model of the library with those of the same model that weighs the tokens."""
    with torch.random.fork_rng(devices=[]):
        config = VideoMAEConfig(image_size=16, num_frames=2, num_hidden_layers=0, hidden_size=12)
        model = modeling_videomae.VideoMAEForVideoClassification(config).eval()
    model.videomae = given = _Given()

    def logits(kind: Any, tokens: Tensor) -> Any:
        given.tokens = tokens
        return kind.forward(model, None).logits

    weighing, plain = VideoMAEForVideoClassification, modeling_videomae.VideoMAEForVideoClassification
    check_mean(plain.__name__, config.hidden_size, partial(logits, weighing), partial(logits, plain))


def _facts(model: Any) -> Facts:
    config = model.config
    return Facts(
        config.hidden_size,
        frames=config.num_frames // config.tubelet_size,
        tubelet=config.tubelet_size,
        whole=model.embeddings.num_patches,
        config=config,
        inputs=pixel_inputs(config, frames=True),
    )


HOSTS = (
    Host(
        VideoMAEModel,
        "encoder.layer",
        VideoMAELayer,
        MergingVideoMAELayer,
        "attention.attention.key",
        _facts,
        _take_off,
        returns_hidden=True,
        averaging=Averaging(
            modeling_videomae.VideoMAEForVideoClassification,
            VideoMAEForVideoClassification,
            _pooling_problem,
            _check,
        ),
        unsuited=(VideoMAEForPreTraining,),
        prepare=_prepare,
        restore=_restore,
    ),
)
