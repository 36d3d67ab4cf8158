"""A small VideoMAE that is trained here, on drawn clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from vtm.benchmark.merging.clips import NUM_CLASSES, moving_squares

NUM_TOKENS, DEPTH, WIDTH = 64, 4, 64


@dataclass(frozen=True)
class Recipe:
    """The training of the model and its test.

    Attributes:
        steps: training steps.
        batch: drawn clips per step.
        learning_rate: maximum learning rate, after a warm-up and before a cosine decay.
        test_clips: number of other clips to test on.
    """

    steps: int = 1200
    batch: int = 32
    learning_rate: float = 2e-3
    test_clips: int = 2000


def small_videomae() -> nn.Module:
    """Return a VideoMAE with mean pooling for 8 frames of 32 × 32 pixels, in 64 tokens, with random weights.

    The initial values of transformers are too small to learn the motion.
    """
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=4, intermediate_size=4 * WIDTH, num_labels=NUM_CLASSES, use_mean_pooling=True,
    )  # fmt: skip
    model: nn.Module = VideoMAEForVideoClassification(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=0.05)
        elif isinstance(positions := getattr(module, "position_embeddings", None), Tensor):
            positions.mul_(0.3)
    return model


def train(
    recipe: Recipe, *, seed: int, device: torch.device | str, after_step: Callable[[], None], still: bool = False
) -> nn.Module:
    """Train a small VideoMAE.

    Args:
        recipe: steps, batch size and learning rate.
        seed: seed of the weights and of the clips.
        device: torch device.
        after_step: function to call after each step.
        still: whether to train on one frame of each clip, repeated.

    Returns:
        the model, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_videomae().to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    for _ in range(recipe.steps):
        clips, labels = moving_squares(recipe.batch, generator=generator, still=still)
        loss = cross_entropy(model(clips.to(device)).logits, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step()
    return model.eval()


def predict(model: nn.Module, clips: Tensor, *, device: torch.device | str) -> Tensor:
    """Return the logits (N, classes) of clips, on the CPU."""
    with torch.inference_mode():
        return torch.cat([model(part.to(device)).logits.cpu() for part in clips.split(250)])
