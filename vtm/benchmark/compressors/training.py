"""A small LlavaOnevision that is trained here, without compression, to answer questions about drawn clips.

A prompt is a clip and all kinds of question, one token each, in an order drawn for each clip. The answer to a question
is read from the logits behind its token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionConfig, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from vtm.benchmark.compressors.clips import CELLS, KINDS, PATCH, draw_clips
from vtm.system.atomic import write_atomically
from vtm.system.measure import clock_seconds

WIDTH, DEPTH = 64, 2  # width and layers of the language model
_PAD, _IMAGE, _VIDEO, _QUESTIONS = range(4)  # ids; the last is that of the first kind of question
_ANSWERS = list(accumulate(map(len, KINDS.values()), initial=_QUESTIONS + len(KINDS)))  # id of the first option


@dataclass(frozen=True)
class Recipe:
    """The training of the model, on short clips first, whose tokens are few, and its test.

    Attributes:
        stages: frames of a clip, drawn clips per step and number of steps, of one stage after the other.
        learning_rate: maximum learning rate, between a linear warm-up and a linear decay.
        frames: frames of a test clip.
        test_clips: number of test clips.
    """

    stages: tuple[tuple[int, int, int], ...] = ((2, 16, 260), (4, 16, 140), (8, 16, 50), (16, 8, 100))
    learning_rate: float = 3e-3
    frames: int = 16
    test_clips: int = 200

    @property
    def work(self) -> int:
        """Number of frames in training."""
        return sum(frames * batch * steps for frames, batch, steps in self.stages)


class Prompts(NamedTuple):
    """Clips with all kinds of question, and the answers.

    Attributes:
        inputs: arguments of the model, as a processor makes them.
        order: (N, kinds), kinds of the questions, in the order in which they are asked.
        answers: (N, kinds), index of the right option of each kind, in the order of `KINDS`.
    """

    inputs: dict[str, Tensor]
    order: Tensor
    answers: Tensor

    def to(self, device: torch.device | str) -> Prompts:
        """Copy everything to a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Prompts(inputs, self.order.to(device), self.answers.to(device))

    def split(self, size: int) -> list[Prompts]:
        """Split the prompts into parts of `size` or fewer."""
        inputs = zip(*(value.split(size) for value in self.inputs.values()), strict=True)
        parts = zip(inputs, self.order.split(size), self.answers.split(size), strict=True)
        return [Prompts(dict(zip(self.inputs, some, strict=True)), order, answers) for some, order, answers in parts]


def draw_prompts(count: int, *, frames: int, generator: torch.Generator) -> Prompts:
    """Draw clips, ask all kinds of question about each, and return them with the answers."""
    drawn = draw_clips(count, frames=frames, generator=generator)
    order = torch.rand(count, len(KINDS), generator=generator).argsort(dim=1)
    video = torch.full((count, frames * CELLS**2 + 1), _VIDEO)  # one more for the newline token
    ids = torch.cat([video, _QUESTIONS + order], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": drawn.pixels}
    return Prompts(inputs, order, drawn.answers)


def small_llava_onevision() -> Any:
    """Return a LlavaOnevision of 144 tokens per frame with random weights.

    The tower is one random layer and stays as it is, as towers stay in the first stage of training a LLaVA. It has a
    CLS token. The initial values of transformers are too small to learn quickly.
    """
    size = CELLS * 2 * PATCH
    tower = CLIPVisionConfig(
        image_size=size, patch_size=PATCH, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=_ANSWERS[-1], hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=_PAD,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=tower, text_config=text, image_token_id=_IMAGE, video_token_id=_VIDEO,
        image_grid_pinpoints=[[size, size]], vision_feature_layer=-1, vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlavaOnevisionForConditionalGeneration(config)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    embeddings = next(module for module in model.modules() if hasattr(module, "class_embedding"))
    with torch.no_grad():
        embeddings.class_embedding.zero_()  # so that CLS tells one frame from another
        positions = embeddings.position_embedding.weight
        positions.copy_(positions[:1] + 0.1 * positions)  # for the most part the same everywhere
    model.model.vision_tower.requires_grad_(False)
    return model


def train(recipe: Recipe, *, seed: int, device: torch.device | str, after_step: Callable[[int], None]) -> Any:
    """Train a small LlavaOnevision.

    Args:
        recipe: stages and learning rate.
        seed: seed of the weights and of the clips.
        device: torch device.
        after_step: function to call with the number of frames after each step.

    Returns:
        the model, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_llava_onevision().to(device)
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    total = sum(steps for *_, steps in recipe.stages)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (0.1 * total), (total - step) / (0.35 * total))
    )
    for frames, batch, steps in recipe.stages:
        for _ in range(steps):
            prompts = draw_prompts(batch, frames=frames, generator=generator).to(device)
            targets = prompts.answers.new_tensor(_ANSWERS[:-1]) + prompts.answers
            logits = model(**prompts.inputs, use_cache=False, logits_to_keep=len(KINDS)).logits
            loss = cross_entropy(logits.flatten(0, 1), targets.gather(1, prompts.order).flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1)
            optimizer.step()
            schedule.step()
            after_step(frames * batch)
    return model.eval()


def chosen_options(logits: Tensor, order: Tensor) -> Tensor:
    """Return the index of the option with the largest logit of each kind of question.

    Args:
        logits: (N, kinds, vocabulary), behind the questions in the order in which they are asked.
        order: (N, kinds), their kinds.

    Returns:
        options (N, kinds) in the order of `KINDS`.
    """
    by_kind = logits.gather(1, order.argsort(dim=1)[..., None].expand_as(logits))
    spans = pairwise(_ANSWERS)
    return torch.stack([by_kind[:, kind, slice(*span)].argmax(1) for kind, span in enumerate(spans)], dim=1)


def load_or_train(
    path: Path, recipe: Recipe, *, seed: int, device: torch.device | str, after_step: Callable[[int], None]
) -> tuple[Any, float]:
    """Return the trained model of a seed, and the seconds of its training, from its file if there is one.

    Raises:
        ValueError: if the file holds a model of another recipe.
    """
    description = json.dumps(asdict(recipe) | {"seed": seed})
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if file.metadata()["recipe"] != description:
                raise ValueError(
                    f"{path} holds a model of another recipe, {file.metadata()['recipe']}, expected {description}; "
                    "choose another --out"
                )
            seconds = float(file.metadata()["seconds"])
        with torch.random.fork_rng(devices=[]):
            model = small_llava_onevision()
        model.load_state_dict(load_file(path))
        after_step(recipe.work)
        return model.eval().to(device), seconds
    start = clock_seconds(device)
    model = train(recipe, seed=seed, device=device, after_step=after_step)
    seconds = round(clock_seconds(device) - start, 1)
    metadata = {"recipe": description, "seconds": str(seconds)}
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, save(weights, metadata=metadata))
    return model, seconds
