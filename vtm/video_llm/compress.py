"""Encode the videos of a prompt, compress their tokens, and shorten the inputs of the model; the model stays as it is.

inputs = compress(model, processor(text=prompt, videos=video, return_tensors="pt"), partial(dyntok, threshold=0.6))
answer = model.generate(**inputs)
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtm.compressors import Clip, Compressed
from vtm.video_llm.families import Family, family_of
from vtm.video_llm.placeholders import Piece, Video, ids_of_frames, locate_frames, locate_videos
from vtm.video_llm.positions import consecutive, rope_positions
from vtm.video_llm.readers import Encoded, call
from vtm.video_llm.rows import cut_inputs, cut_rows, padding_id

Compressor = Callable[[Clip], Compressed]
_NOT_FOR_FORWARD = {"mm_token_type_ids", "second_per_grid_ts", "rows", "cols", "num_patches", "video_metadata"}


@dataclass(frozen=True)
class Compression:
    """A prompt with compressed videos.

    Attributes:
        rows: inputs of the model besides the visual tokens.
        features: for each modality, the type of the encoder's output and its fields.
        clips: the videos before.
        compressed: the videos after, in the same order.
        newlines: number of newline tokens behind the videos, which are not compressed.
        text_ids: number of ids that frames without tokens had for themselves, such as time stamps, and are gone.
    """

    rows: dict[str, Any]
    features: dict[str, tuple[type, dict[str, Any]]]
    clips: list[Clip]
    compressed: list[Compressed]
    newlines: int
    text_ids: int

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments for `forward` or one call of `generate`, made anew each time since beam search changes them."""
        outputs = {modality: kind(**fields) for modality, (kind, fields) in self.features.items()}
        return {**self.rows, "mm_encoder_outputs": outputs}

    @property
    def tokens_before(self) -> int:
        """Number of visual tokens of all videos, without newline tokens."""
        return sum(clip.num_tokens for clip in self.clips)

    @property
    def tokens_after(self) -> int:
        """Number of visual tokens that are left of all videos, without newline tokens."""
        return sum(len(clip.tokens) for clip in self.compressed)


def compress(
    model: Any, inputs: Mapping[str, Any], compressor: Compressor, *, videos: Sequence[Video] | None = None
) -> dict[str, Any]:
    """Return inputs for `model(**inputs)` or one call of `model.generate(**inputs)` with fewer visual tokens.

    Args:
        model: video LLM of a supported family.
        inputs: output of its processor.
        compressor: function such as `partial(dyntok, threshold=0.6)`.
        videos: (row, first image of this row, number of images) of each video, for families whose frames are images;
            needed unless each row holds one video and no image.

    Raises:
        ValueError: if the family is not supported, the inputs hold no video or do not match their placeholders, or
            what is left does not fit into the context of the model.
    """
    return compress_videos(model, inputs, compressor, videos=videos).inputs


def compress_videos(
    model: Any, inputs: Mapping[str, Any], compressor: Compressor, *, videos: Sequence[Video] | None = None
) -> Compression:
    """Compress the videos of a prompt as `compress` does, and return what became of them as well."""
    family = family_of(model)
    ids, mask, is_placeholder = _check_inputs(model, family, inputs, videos)
    with torch.set_grad_enabled(torch.is_grad_enabled() and model.training):
        encoded, images = _encode(model, family, inputs)
        pieces = _locate(family, ids, is_placeholder, encoded, videos)
        cut = _Cut(ids, encoded, family.separator)
        for piece in pieces:
            cut.add(piece, compressor)
    fields: dict[str, Any] = {"pooler_output": family.put_back(cut.tokens)}
    if cut.deepstack:
        fields["deepstack_features"] = cut.deepstack
    features = {family.modality: (type(encoded.outputs), fields), **images}
    rows = _shorten(model, family, inputs, mask, cut)
    done = Compression(
        rows, features, [piece.clip for piece in pieces if piece.compressed], cut.compressed, cut.newlines, cut.text_ids
    )
    if done.tokens_after == done.tokens_before:
        warnings.warn(f"0 of {done.tokens_before} tokens merged: the compressor changed nothing", stacklevel=3)
    return done


class _Cut:
    """The columns of a batch that stay, and the tokens that go into the placeholders among them."""

    def __init__(self, ids: Tensor, encoded: Encoded, separator: int | None) -> None:
        self.keep = torch.ones_like(ids, dtype=torch.bool)  # (B, L)
        self.source = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)  # whose position a column has
        self.tokens: list[Tensor] = []
        self.deepstack: list[list[Tensor]] = [[] for _ in encoded.deepstack]
        self.compressed: list[Compressed] = []
        self.newlines = self.text_ids = 0
        self._ids, self._encoded, self._separator = ids, encoded, separator

    def add(self, piece: Piece, compressor: Compressor) -> None:
        """Compress a video, or take over images as they are."""
        clip = piece.clip
        if not piece.compressed:
            self.tokens.append(clip.tokens.flatten(0, 2))
            return
        compressed = compressor(clip)
        anchor = _anchors(compressed, clip).to(piece.columns.device)
        columns = piece.columns[: clip.num_tokens]
        taken = columns[anchor]
        run = (columns.diff() != 1).cumsum(0)  # of each column but the first; a run has no text inside
        if bool((torch.nn.functional.pad(run, (1, 0))[anchor].diff() < 0).any()):
            raise ValueError("expected the tokens of a compressor frame by frame, since text stands between the frames")
        ordered = taken.sort().values
        self.keep[piece.row, columns] = False
        self.keep[piece.row, ordered] = True
        self.source[piece.row, ordered] = taken
        if self._separator is not None:
            self._drop_text(piece, anchor, self._separator)
        newline = self._encoded.newline
        rest = [] if newline is None else [newline]
        self.newlines += sum(map(len, rest))
        self.tokens.append(torch.cat([compressed.tokens.to(clip.tokens), *rest]))
        for layer, features in zip(self.deepstack, self._encoded.deepstack, strict=True):
            layer.append(compressed.apply(features[len(self.compressed)]))
        self.compressed.append(compressed)

    def _drop_text(self, piece: Piece, anchor: Tensor, separator: int) -> None:
        time, height, width = piece.clip.grid
        columns = piece.columns[: piece.clip.num_tokens].view(time, height * width)
        kept = torch.bincount(anchor // (height * width), minlength=time) > 0
        gone = ids_of_frames(self._ids[piece.row], columns, kept, separator)
        self.text_ids += int(self.keep[piece.row, gone].sum())
        self.keep[piece.row, gone] = False


def _check_inputs(
    model: Any, family: Family, inputs: Mapping[str, Any], videos: Sequence[Video] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and where the placeholders of videos are, (B, L) each."""
    ids = inputs.get("input_ids")
    if ids is None or inputs.get(family.pixels) is None:
        missing = "input_ids" if ids is None else family.pixels
        raise ValueError(f"the inputs hold no {missing}; pass what the processor makes of a prompt and its videos")
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{type(model).__name__} takes no encoded videos; install transformers 5.24 or newer")
    if videos is not None and family.modality == "video":
        raise ValueError("videos= is for models whose frames are images; here the placeholders say which is which")
    token = getattr(model.config, f"{family.modality}_token_id")
    is_placeholder = ids == token
    if not bool(is_placeholder.any()):
        raise ValueError(
            f"the prompt has no placeholder of a video (id {token}), though the inputs hold {family.pixels}; put the "
            "video token of the processor into the prompt"
        )
    mask = inputs.get("attention_mask")
    return ids, torch.ones_like(ids) if mask is None else mask, is_placeholder


def _encode(model: Any, family: Family, inputs: Mapping[str, Any]) -> tuple[Encoded, dict[str, Any]]:
    """Encode the videos, and images that have placeholders of their own."""
    core = model.base_model
    encoded = family.read(core, inputs)
    if family.modality == "image" or inputs.get("pixel_values") is None:
        return encoded, {}
    outputs = call(core.get_image_features, inputs)
    names = ("pooler_output", "deepstack_features")
    fields = {name: outputs[name] for name in names if outputs.get(name) is not None}
    return encoded, {"image": (type(outputs), fields)}


def _locate(
    family: Family, ids: Tensor, is_placeholder: Tensor, encoded: Encoded, videos: Sequence[Video] | None
) -> list[Piece]:
    if family.modality == "video":
        return locate_videos(is_placeholder, encoded)
    return locate_frames(ids, is_placeholder, encoded.clips[0], videos, family.separator or 0)


def _anchors(compressed: Compressed, clip: Clip) -> Tensor:
    """Return the index of the anchor of each token in the flattened clip.

    Raises:
        ValueError: if there is no token, or anchors are not distinct tokens of the clip.
    """
    position, grid = compressed.position, clip.grid
    if len(position) != len(compressed.tokens) or len(position) == 0:
        raise ValueError(
            f"expected at least one token and a position (t, y, x) for each, got tokens "
            f"{tuple(compressed.tokens.shape)} and positions {tuple(position.shape)}"
        )
    inside = bool(((position >= 0) & (position < position.new_tensor(grid))).all())
    time, y, x = position.long().unbind(1)
    anchor = (time * grid[1] + y) * grid[2] + x
    if not inside or len(anchor.unique()) != len(anchor):
        raise ValueError(f"expected distinct positions (t, y, x) on the grid {grid} of the clip, one for each token")
    return anchor


def _shorten(model: Any, family: Family, inputs: Mapping[str, Any], mask: Tensor, cut: _Cut) -> dict[str, Any]:
    """Return the inputs without pixels and without the columns that are gone.

    Raises:
        ValueError: if a row is longer than the context of the model.
    """
    core = model.base_model
    used = {*inspect.signature(core.get_image_features).parameters, *_NOT_FOR_FORWARD, "position_ids", family.pixels}
    if family.modality == "video":
        used |= {*inspect.signature(core.get_video_features).parameters}
    whole = bool(cut.keep.all())  # then padding stays where it was
    keep = cut.keep if whole else cut.keep & mask.bool()
    rows = {name: value for name, value in inputs.items() if name not in used}
    rows = cut_inputs({**rows, "attention_mask": mask}, keep, padding_id(model))
    length = rows["input_ids"].shape[1]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", length)
    if length > limit:
        raise ValueError(
            f"{length} tokens are left, {sum(map(len, cut.tokens))} of them visual, but the context of the model holds "
            f"{limit}; compress more, or take fewer frames"
        )
    numbers = consecutive(rows["attention_mask"])
    if family.mrope:
        full = rope_positions(model, inputs)
        full = cut_rows(full.gather(2, cut.source.expand_as(full)), keep, 0)
        rows["position_ids"] = torch.cat([numbers[None], full])
    elif inputs.get("position_ids") is not None:
        rows["position_ids"] = numbers
    return rows
