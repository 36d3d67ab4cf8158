"""Blocks of the vision tower of SigLIP in Hugging Face transformers: attention within an image, without CLS.

The checkpoints of SigLIP 2 for images of a fixed size have this architecture, too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.siglip import modeling_siglip
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionModel
from transformers.utils.generic import can_return_tuple

from vtm.patching.block import Merging
from vtm.patching.classifiers import TINY, averaging, classify, take_off_before
from vtm.patching.host import Facts, Host, pixel_inputs
from vtm.patching.pooling import mean_by_size
from vtm.patching.vit_layers import merge_in_clip_layer


class MergingSiglipEncoderLayer(SiglipEncoderLayer):  # type: ignore[misc]
    """A block of SigLIP that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        if self.merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return output
        return merge_in_clip_layer(self, hidden_states, attention_mask, **kwargs)


class SiglipForImageClassification(modeling_siglip.SiglipForImageClassification):  # type: ignore[misc]
    """A classifier that weighs each token by its size where it averages the tokens."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Classify images (B, 3, H, W)."""
        outputs = self.vision_model(pixel_values, **kwargs)
        return classify(self, mean_by_size(outputs.last_hidden_state), outputs, labels)


def _facts(model: Any) -> Facts:
    return Facts(
        model.config.hidden_size,
        config=model.config,
        arguments=lambda place: {"attention_mask": None},
        inputs=pixel_inputs(model.config),
    )


def _take_off(model: Any) -> None:
    take_off_before(model.post_layernorm, model.config.hidden_size)


HOSTS = (
    Host(
        SiglipVisionModel,
        "encoder.layers",
        SiglipEncoderLayer,
        MergingSiglipEncoderLayer,
        "self_attn.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
        averaging=averaging(
            modeling_siglip.SiglipForImageClassification,
            SiglipForImageClassification,
            "vision_model",
            vision_config=TINY,
        ),
    ),
)
