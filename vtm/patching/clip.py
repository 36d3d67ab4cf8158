"""Blocks of the vision tower of CLIP in Hugging Face transformers: attention within an image, with CLS."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.clip import modeling_clip
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionModel
from transformers.utils.generic import can_return_tuple

from vtm.patching.block import Merging
from vtm.patching.classifiers import TINY, averaging, classify
from vtm.patching.host import Facts, Host, pixel_inputs
from vtm.patching.pooling import TakeStateOfOutput, mean_by_size
from vtm.patching.vit_layers import merge_in_clip_layer


class MergingCLIPEncoderLayer(CLIPEncoderLayer):  # type: ignore[misc]
    """A block of CLIP that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        if self.merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return output
        return merge_in_clip_layer(self, hidden_states, attention_mask, **kwargs)


class CLIPForImageClassification(modeling_clip.CLIPForImageClassification):  # type: ignore[misc]
    """A classifier that weighs each token by its size where it averages the tokens."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Classify images (B, 3, H, W)."""
        outputs = self.vision_model(pixel_values, **kwargs)
        return classify(self, mean_by_size(outputs.last_hidden_state, skip=1), outputs, labels)


def _facts(model: Any) -> Facts:
    return Facts(
        model.config.hidden_size,
        protected=1,
        config=model.config,
        arguments=lambda place: {"attention_mask": None},
        inputs=pixel_inputs(model.config),
    )


def _take_off(model: Any) -> None:
    model.encoder.register_forward_hook(TakeStateOfOutput(model.config.hidden_size))


HOSTS = (
    Host(
        CLIPVisionModel,
        "encoder.layers",
        CLIPEncoderLayer,
        MergingCLIPEncoderLayer,
        "self_attn.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
        averaging=averaging(
            modeling_clip.CLIPForImageClassification, CLIPForImageClassification, "vision_model", vision_config=TINY
        ),
    ),
)
