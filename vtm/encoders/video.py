"""Video Swin from torchvision: each step of features is the time average of one clip (COIN and Breakfast)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.video import Swin3D_B_Weights, swin3d_b

from vtm.encoders.base import Encoder

_PATCH = 32  # pixels of a frame that become one token: patches of 4, halved three times


class VideoSwin(Encoder):
    """Encode clips of f consecutive frames by Video Swin-B into H × W × 1024 tokens, averaged over time.

    Args:
        image_size: S in pixels, a multiple of 32.
        frames_per_step: f, frames of one clip; the paper takes 32.
        pretrained: load torchvision's Kinetics-400 weights (the paper's are Kinetics-600); else draw random ones.
        seed: of random weights; they depend on nothing else.
        chunk: frames that go through the model at a time.

    Raises:
        ValueError: if the image size is no multiple of 32.
    """

    def __init__(
        self, *, image_size: int, frames_per_step: int, pretrained: bool, seed: int = 0, chunk: int = 128
    ) -> None:
        if image_size % _PATCH:
            below = image_size // _PATCH * _PATCH
            raise ValueError(
                f"encoder.image_size = {image_size} is no multiple of {_PATCH}, which swin3d_b needs; "
                f"{below} or {below + _PATCH} would be"
            )
        weights = Swin3D_B_Weights.KINETICS400_V1 if pretrained else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = swin3d_b(weights=weights)
        channels = backbone.num_features
        backbone.head = torch.nn.Identity()
        preprocessing = Swin3D_B_Weights.KINETICS400_V1.transforms()
        super().__init__(
            backbone,
            key=f"swin3d_b-{image_size}px-{frames_per_step}f-{weights.name if weights else f'random{seed}'}",
            image_size=image_size,
            frames_per_step=frames_per_step,
            grid=(image_size // _PATCH, image_size // _PATCH),
            channels=channels,
            mean=tuple(preprocessing.mean),
            std=tuple(preprocessing.std),
            chunk=chunk,
        )

    def encode(self, frames: Tensor) -> Tensor:
        """Map normalised frames (n·f, 3, S, S) to tokens (n, H, W, C)."""
        clips = frames.unflatten(0, (-1, self.frames_per_step)).transpose(1, 2)  # (n, 3, f, S, S)
        backbone = self.backbone
        features: Tensor = backbone.norm(backbone.features(backbone.pos_drop(backbone.patch_embed(clips))))
        return features.mean(1)  # over time: (n, H, W, C)
