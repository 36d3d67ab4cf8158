"""A tiny random model and the real processor of each family, built without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

WORDS = ["Watch this film.", "What happens in it?", "And here?", "Why?"]
SPECIAL = {
    "pad_token": "<pad>", "eos_token": "<eos>", "image_token": "<image>", "video_token": "<video>",
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "fake_image_token": "<fake>", "global_image_token": "<global-img>", "end_of_utterance_token": "<end>",
    "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 4,
}  # fmt: skip


TEMPLATE = (
    "{% for message in messages %}{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}VIDEO{% else %}{{ part.text }}{% endif %}{% endfor %}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A model, its processor, and the placeholder of a video in a prompt.

    Attributes:
        frames_per_step: number of frames of a video that become one frame of tokens.
    """

    family: str
    model: Any
    processor: Any
    video: str
    image: str
    frames_per_step: int = 1

    def inputs(
        self,
        text: str | list[str],
        videos: list[Tensor] | None = None,
        *,
        images: list[Any] | None = None,
        frames: list[list[int]] | None = None,
        fps: float = 2.0,
    ) -> dict[str, Tensor]:
        """Process prompts, in which V stands for a video and I for an image; `frames` are their indices at `fps`."""
        from transformers.video_utils import VideoMetadata

        text = [text] if isinstance(text, str) else text
        text = [line.replace("V", self.video).replace("I", self.image) for line in text]
        options: dict[str, Any] = {}
        if videos:
            frames = frames or [list(range(len(video))) for video in videos]
            metadata = [
                VideoMetadata(
                    total_num_frames=indices[-1] + 1, fps=fps, duration=(indices[-1] + 1) / fps, frames_indices=indices
                )
                for indices in frames
            ]
            options = {"videos": videos, "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False}}
        out = self.processor(text=text, images=images, padding=True, return_tensors="pt", **options)
        return dict(out)

    def ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text)["input_ids"]


def video(frames: int, *, seed: int = 0, height: int = 32, width: int = 32) -> Tensor:
    """Draw a video of noise in which pairs of frames look alike."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.rand((frames + 3) // 4, 3, height // 4, width // 4, generator=generator)
    pixels = scenes.repeat_interleave(4, 0)[:frames].repeat_interleave(4, -1).repeat_interleave(4, -2)
    return (pixels * 200 + torch.rand(pixels.shape, generator=generator) * 50).to(torch.uint8)


def image(seed: int = 9, size: int = 32) -> Any:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@cache
def tokenizer() -> Any:
    """A byte-level tokenizer with merges, which splits text like the one of Qwen."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    corpus = [
        *WORDS,
        "Frame from: seconds series of frames video user assistant provided following",
        "Is it A, A or A?",
    ] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(corpus, trainer)
    extra = {key: token for key, token in SPECIAL.items() if key not in ("pad_token", "eos_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left", extra_special_tokens=extra
    )


def _text(**more: Any) -> dict[str, Any]:
    names = tokenizer()
    return {
        **TEXT, "vocab_size": len(names), "pad_token_id": names.pad_token_id, "eos_token_id": names.eos_token_id,
        "bos_token_id": None, **more,
    }  # fmt: skip


def _id(token: str) -> int:
    return tokenizer().convert_tokens_to_ids(token)


def llava_onevision() -> Tiny:
    import transformers as t

    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False), text_config=t.Qwen2Config(**_text()),
        image_token_id=_id("<image>"), video_token_id=_id("<video>"), image_grid_pinpoints=[[32, 32], [64, 64]],
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    square = {"height": 32, "width": 32}
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=[[32, 32], [64, 64]]),
        tokenizer(), t.LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=64, vision_feature_select_strategy="full",
    )  # fmt: skip
    return Tiny("llava_onevision", t.LlavaOnevisionForConditionalGeneration(config), processor, "<video>", "<image>")


def llava_next_video() -> Tiny:
    import transformers as t

    config = t.LlavaNextVideoConfig(
        vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**_text()),
        image_token_id=_id("<image>"), video_token_id=_id("<video>"), image_grid_pinpoints=[[32, 32], [64, 64]],
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=64,
    )  # fmt: skip
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    processor = t.LlavaNextVideoProcessor(
        t.LlavaNextVideoVideoProcessor(size=size, crop_size=crop),
        t.LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=[[32, 32], [64, 64]]),
        tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return Tiny("llava_next_video", t.LlavaNextVideoForConditionalGeneration(config), processor, "<video>", "<image>")


def _qwen(family: str, name: str, video_processor: str, vision: dict[str, Any], rope: dict[str, Any]) -> Tiny:
    import transformers as t

    ids = {
        "image_token_id": _id("<image>"), "video_token_id": _id("<video>"),
        "vision_start_token_id": _id("<|vision_start|>"), "vision_end_token_id": _id("<|vision_end|>"),
    }  # fmt: skip
    config = getattr(t, f"{name}Config")(vision_config=vision, text_config=_text(rope_parameters=rope), **ids)
    size = {"shortest_edge": 8 * 8, "longest_edge": 64 * 64 * 64}
    options = {"size": size, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    processor = getattr(t, f"{name}Processor")(
        t.Qwen2VLImageProcessor(**options), tokenizer(), getattr(t, video_processor)(**options)
    )
    model = getattr(t, f"{name}ForConditionalGeneration")(config)
    around = "<|vision_start|>{}<|vision_end|>"
    return Tiny(family, model, processor, around.format("<video>"), around.format("<image>"), frames_per_step=2)


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def qwen2_vl() -> Tiny:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return _qwen("qwen2_vl", "Qwen2VL", "Qwen2VLVideoProcessor", vision, ROPE)


def qwen2_5_vl() -> Tiny:
    vision = {
        "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 16,
        "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 4,
    }  # fmt: skip
    return _qwen("qwen2_5_vl", "Qwen2_5_VL", "Qwen2VLVideoProcessor", vision, ROPE)


def qwen3_vl() -> Tiny:
    vision = {
        "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 16,
        "patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    return _qwen("qwen3_vl", "Qwen3VL", "Qwen3VLVideoProcessor", vision, {**ROPE, "mrope_interleaved": True})


def internvl() -> Tiny:
    import transformers as t

    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**{**TOWER, "image_size": [32, 32], "patch_size": [4, 4]}),
        text_config=t.Qwen2Config(**_text()), image_token_id=_id("<IMG_CONTEXT>"), image_seq_length=16,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    square = {"height": 32, "width": 32}
    processor = t.InternVLProcessor(
        t.GotOcr2ImageProcessor(size=square), tokenizer(), t.InternVLVideoProcessor(size=square), image_seq_length=16
    )
    return Tiny("internvl", t.InternVLForConditionalGeneration(config), processor, "<video>\n", "<IMG_CONTEXT>\n")


def smolvlm() -> Tiny:
    if importlib.util.find_spec("num2words") is None:
        pytest.skip("the processor of SmolVLM needs num2words (pip install num2words)")
    import transformers as t

    config = t.SmolVLMConfig(
        vision_config=t.SmolVLMVisionConfig(**TOWER), text_config=t.LlamaConfig(**_text()),
        image_token_id=_id("<image>"), scale_factor=2,
    )  # fmt: skip
    edge = {"longest_edge": 32}
    processor = t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False), tokenizer(),
        t.SmolVLMVideoProcessor(size=edge, max_image_size=edge), image_seq_len=16,
    )  # fmt: skip
    return Tiny("smolvlm", t.SmolVLMForConditionalGeneration(config), processor, "<video>", "<image>")


FAMILIES: dict[str, Callable[[], Tiny]] = {
    build.__name__: build
    for build in (llava_onevision, llava_next_video, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, smolvlm)
}


@cache
def build(family: str) -> Tiny:
    """Build the tiny model of a family, the same one in all tests."""
    pytest.importorskip("transformers", reason="transformers is not installed (pip install vtm[hf])")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = FAMILIES[family]()
        for parameter in tiny.model.parameters():
            torch.nn.init.normal_(parameter, std=0.25) if parameter.ndim > 1 else None
    tiny.model.eval()
    tiny.processor.chat_template = TEMPLATE.replace("VIDEO", tiny.video)
    return tiny
