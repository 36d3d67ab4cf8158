"""Video Swin from torchvision: each step of features is the time average of one clip (COIN and Breakfast)."""

from __future__ import annotations

import pickle
import re
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torchvision.models.video import Swin3D_B_Weights, swin3d_b

from vtm.encoders.base import Encoder, EncoderOptions, check_image_size, fetching

_PATCH = 32  # pixels of a frame that become one token: patches of 4, halved three times
_CHUNK = 4  # clips


class VideoSwin(Encoder):
    """Encode clips of f consecutive frames by Video Swin-B into H × W × 1024 tokens, averaged over time.

    Args:
        frames_per_step: f, frames of one clip; the paper takes 32.
        choices: those of every encoder. The pretrained weights are torchvision's of Kinetics-400, the paper's are of
            Kinetics-600; a checkpoint may be a file of torchvision, of Video Swin Transformer or of MMAction2.

    Raises:
        ValueError: if the image size is no multiple of 32.
    """

    def __init__(self, *, frames_per_step: int, **choices: Unpack[EncoderOptions]) -> None:
        check_image_size(choices["image_size"], _PATCH, "swin3d_b")
        preprocessing = Swin3D_B_Weights.KINETICS400_V1.transforms()
        super().__init__(
            "swin3d_b.kinetics400" if choices["pretrained"] and choices["checkpoint"] is None else "swin3d_b",
            frames_per_step=frames_per_step,
            chunk=_CHUNK * frames_per_step,
            mean=tuple(preprocessing.mean),
            std=tuple(preprocessing.std),
            details=(f"{frames_per_step}f",),
            **choices,
        )

    def build(self, *, load: bool) -> nn.Module:
        """Make the network, without its classifier."""
        published = load and self.pretrained and self.checkpoint is None
        with fetching("swin3d_b of Kinetics-400"):
            backbone: nn.Module = swin3d_b(weights=Swin3D_B_Weights.KINETICS400_V1 if published else None)
        backbone.head = nn.Identity()
        if load and self.checkpoint is not None:
            backbone.load_state_dict(_read(self.checkpoint, backbone))
        return backbone

    def encode(self, backbone: Any, frames: Tensor) -> Tensor:
        """Map normalised frames (n·f, 3, S, S) to tokens (n, H, W, C)."""
        clips = frames.unflatten(0, (-1, self.frames.frames_per_step)).transpose(1, 2)  # (n, 3, f, S, S)
        features: Tensor = backbone.norm(backbone.features(backbone.pos_drop(backbone.patch_embed(clips))))
        return features.mean(1)  # over time: (n, H, W, C)


def _read(path: str, backbone: nn.Module) -> dict[str, Tensor]:
    """Read the weights of a network under torchvision's names; every tensor but those of a classifier is needed.

    Raises:
        ValueError: if the file is no checkpoint, or one of its tensors does not fit or is missing.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {_rename(name): value for name, value in content.get("state_dict", content).items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"encoder.checkpoint = {path} is no checkpoint that torch can load safely: {reason}"
        ) from error
    found = dict(backbone.named_buffers())  # the indices of positions, which some files leave out
    found |= {name: value for name, value in tensors.items() if name and isinstance(value, Tensor)}
    ours = backbone.state_dict()
    for name in sorted(ours.keys() | found.keys()):
        expected, actual = (tuple(state[name].shape) if name in state else None for state in (ours, found))
        if expected != actual:
            raise ValueError(
                f"encoder.checkpoint = {path} holds no weights of swin3d_b: expected {name} "
                f"{expected or 'not at all'}, found {actual or 'none'}"
            )
    return found


def _rename(name: str) -> str:
    """Return torchvision's name of a tensor of Video Swin Transformer or MMAction2; "" for those of a classifier.

    >>> _rename("backbone.layers.2.blocks.17.mlp.fc1.weight"), _rename("backbone.layers.0.downsample.norm.bias")
    ('features.4.17.mlp.0.weight', 'features.1.norm.bias')
    """
    name = name.removeprefix("backbone.")
    if name.startswith(("head.", "cls_head.")):
        return ""
    name = re.sub(r"^layers\.(\d+)\.blocks", lambda found: f"features.{2 * int(found[1])}", name)
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"features.{2 * int(found[1]) + 1}", name)
    return re.sub(r"^norm3\.", "norm.", name.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3."))
