"""Video Swin encoder from torchvision; each step of features is the time average of a short clip (COIN, Breakfast)."""

from __future__ import annotations

import re
from typing import Any, Unpack

from torch import Tensor, nn
from torchvision.models.video import Swin3D_B_Weights, swin3d_b

from vtm.encoders.base import Encoder, EncoderOptions, check_image_size
from vtm.encoders.weights import fetching, read_weights

_PATCH = 32  # pixels per token: patches of 4 pixels, merged in pairs three times
_CHUNK = 4  # clips


class VideoSwin(Encoder):
    """An encoder of clips of f consecutive frames by Video Swin-B, to H × W × 1024 tokens averaged over time.

    Args:
        frames_per_step: f, number of frames of a clip; 32 in the paper.
        options: arguments of every encoder. The pretrained weights are torchvision's for Kinetics-400 (the paper uses
            Kinetics-600); a checkpoint may come from torchvision, Video Swin Transformer or MMAction2.

    Raises:
        ValueError: if the image size is not a multiple of 32.
    """

    def __init__(self, *, frames_per_step: int, **options: Unpack[EncoderOptions]) -> None:
        check_image_size(options["image_size"], _PATCH, "swin3d_b")
        preprocessing = Swin3D_B_Weights.KINETICS400_V1.transforms()
        super().__init__(
            "swin3d_b.kinetics400" if options["pretrained"] and options["checkpoint"] is None else "swin3d_b",
            frames_per_step=frames_per_step,
            chunk=_CHUNK * frames_per_step,
            mean=tuple(preprocessing.mean),
            std=tuple(preprocessing.std),
            details=(f"{frames_per_step}f",),
            **options,
        )

    def build(self, *, load: bool) -> nn.Module:
        """Create the network without its classifier."""
        published = load and self.pretrained and self.checkpoint is None
        with fetching("swin3d_b of Kinetics-400"):
            backbone: nn.Module = swin3d_b(weights=Swin3D_B_Weights.KINETICS400_V1 if published else None)
        backbone.head = nn.Identity()
        if load and self.checkpoint is not None:
            backbone.load_state_dict(_read(self.checkpoint, backbone))
        return backbone

    def encode(self, backbone: Any, frames: Tensor) -> Tensor:
        """Encode normalized frames (n·f, 3, S, S) to tokens (n, H, W, C)."""
        clips = frames.unflatten(0, (-1, self.frames.frames_per_step)).transpose(1, 2)  # (n, 3, f, S, S)
        features: Tensor = backbone.norm(backbone.features(backbone.pos_drop(backbone.patch_embed(clips))))
        return features.mean(1)  # over time: (n, H, W, C)


def _read(path: str, backbone: nn.Module) -> dict[str, Tensor]:
    """Read the weights of a network, with the tensor names of torchvision and without its classifier.

    Raises:
        ValueError: if the file is not a checkpoint, or a tensor is missing, unexpected or of another shape.
    """
    tensors = {_rename(name): value for name, value in read_weights(path).items()}
    state = dict(backbone.named_buffers())  # the position indices, which some files omit
    state |= {name: value for name, value in tensors.items() if name and isinstance(value, Tensor)}
    required = backbone.state_dict()
    for name in sorted(required.keys() | state.keys()):
        expected, actual = (tuple(part[name].shape) if name in part else None for part in (required, state))
        if expected != actual:
            raise ValueError(
                f"encoder.checkpoint = {path} does not match swin3d_b: expected {name} "
                f"{expected or 'not at all'}, found {actual or 'none'}"
            )
    return state


def _rename(name: str) -> str:
    """Convert a tensor name of Video Swin Transformer or MMAction2 to torchvision's; "" for a classifier.

    >>> _rename("backbone.layers.2.blocks.17.mlp.fc1.weight"), _rename("backbone.layers.0.downsample.norm.bias")
    ('features.4.17.mlp.0.weight', 'features.1.norm.bias')
    """
    name = name.removeprefix("backbone.")
    if name.startswith(("head.", "cls_head.")):
        return ""
    name = re.sub(r"^layers\.(\d+)\.blocks", lambda match: f"features.{2 * int(match[1])}", name)
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"features.{2 * int(match[1]) + 1}", name)
    return re.sub(r"^norm3\.", "norm.", name.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3."))
