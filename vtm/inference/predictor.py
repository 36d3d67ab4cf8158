"""A trained model for inference: it predicts videos exactly as the test of train.py does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from vtm.data.dataset import clip_generator, collate
from vtm.data.sampling import ClipProtocol, Dense, Windows, every_second
from vtm.data.source import StepData, frames_of
from vtm.encoders import Encoder, Pixels, Precomputed
from vtm.inference.clips import EncodedVideo
from vtm.inference.description import check_clip, check_description, check_encoder, check_shapes, limited_size
from vtm.inference.model_card import model_card
from vtm.inference.model_file import PARTS, ModelFileError, build, find, read_model, weights_sha256, write_model
from vtm.inference.prediction import Prediction, Segment, printable
from vtm.merging import FeatureGrid
from vtm.merging.partition import Generators
from vtm.models import VTM, Head, Stream
from vtm.patching import VideoTransformer
from vtm.pictures.view import ClipView
from vtm.tasks.classification import Classification
from vtm.tasks.regression import Regression
from vtm.tasks.task import ranked

FILE_NAME = "model.safetensors"  # the model in a folder, as on the Hub
_CLIPS_AT_ONCE = 4


class Predictor(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vtm",
    pipeline_tag="video-classification",
    paper_url="https://arxiv.org/abs/2410.23782",
    tags=["token-merging", "long-form-video"],
):
    """A model that predicts videos, written by `python -m vtm.export` and read by `vtm.load`.

    It computes in fp32. The weights of the encoder are not part of the model; they are loaded with the first frames.

    Args:
        description: description of the model, with `vtm.inference.model_file.PARTS`.

    Attributes:
        network: head, without the parts that only training uses; on the meta device until it has weights.
        encoder: frozen encoder.
        protocol: protocol that chooses the clips of a video.
        labels: K class names; None for a regression.

    Raises:
        ModelFileError: if the encoder differs from the one in training.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.description = dict(description)
        try:
            with limited_size():
                self.encoder: Encoder | Pixels | Precomputed = build(description["encoder"])
        except FileNotFoundError as error:
            raise ModelFileError(
                f"{error}; if the file has moved since training, pass its path: --encoder-checkpoint FILE of a "
                "command, load(…, encoder_checkpoint=…), or encoder_checkpoint=… of vtm.export"
            ) from None
        if self.encoder.key != description["encoder_key"]:
            trained = printable(description["encoder_key"])[:300]
            raise ModelFileError(
                f"the model was trained on features of {trained}, but its encoder is now "
                f"{self.encoder.key[:300]}; use the same weights and the same version of timm as in training"
            )
        outputs, classes = description["num_outputs"], description["classes"]
        if classes and len(classes) != outputs:
            raise ModelFileError(f"expected {outputs} classes, one for each output, got {len(classes)}")
        self.protocol: ClipProtocol = build(description["protocol"])
        check_clip(self.protocol.num_frames, self.encoder.grid.num_tokens, self.encoder.channels)
        with torch.device("meta"), limited_size():
            self.network = self._build_network().for_inference()
        self.network.plan(self.protocol.num_frames, *self.encoder.grid.shape)  # raises an error if clips do not fit
        self.task = Regression if description["task"] == Regression.name else Classification
        names = classes or [str(index) for index in range(outputs)]
        self.labels: list[str] | None = None if self.task is Regression else names
        self.eval()

    @classmethod
    def from_training(cls, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Self:
        """Build a model from all the weights of a network in training.

        Raises:
            ModelFileError: if the encoder differs from the one in training.
        """
        model = cls(description)
        network = model._build_network()
        network.load_state_dict(weights)
        model.network = network.for_inference()
        return model

    @property
    def identity(self) -> str:
        """The first digits of the SHA-256 of the weights."""
        return weights_sha256(self.network.state_dict())[:12]

    @property
    def device(self) -> torch.device:
        """The device of the network, on which frames are encoded, too."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def forward(
        self,
        features: Tensor,
        motion: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """Score clips from their features, with the arguments of `VTM.forward`.

        Returns:
            (B, K) probabilities, or the (B, 1) values of a regression.

        Raises:
            TypeError: if the features are not in floating point.
            ValueError: if the inputs do not match the network or one another, or a score is not finite.
        """
        logits: Tensor = self.network(features, motion=motion, mask=mask, generator=generator).logits
        return self._scores(logits)

    def predict(
        self, path: str | Path, *, stream: bool = False, seen: Callable[[float, float], None] | None = None
    ) -> Prediction:
        """Predict a video as the test of train.py would; a long video is read in parts.

        If the model samples its targets in evaluation, the noise depends on the file name; in the test of train.py it
        depends on the id of the video in its data set.

        Args:
            path: video file.
            stream: process one frame per second of the whole video in one pass, instead of the clips that the model was
                tested on; the prediction is from the average token of all windows of the last block.
            seen: progress callback, called with the seconds done and the length of the video.

        Raises:
            FileNotFoundError: if the file does not exist.
            VideoError: if the video cannot be read, or is too short.
            ValueError: if the model takes features, not frames, or cannot stream, or a score is not finite.
        """
        seconds = (video := self._open(path)).seconds
        if stream:
            return self._stream(path, video, seen)
        segments, damaged = [], False
        for group in _groups(video.clips(), _CLIPS_AT_ONCE):
            starts, clips = zip(*group, strict=True)
            batch = collate(clips)
            scored = self(batch.inputs, batch.motion, batch.mask, generator=[clip_generator(name) for name in batch.id])
            segments += [
                Segment(start, self._end(start, seconds), scores)
                for start, scores in zip(starts, scored.tolist(), strict=True)
            ]
            damaged = damaged or bool(batch.damaged.any())
            if seen is not None:
                seen(segments[-1].end, seconds)
        short = video.is_short(self.protocol.times(0.0, seconds))
        votes = torch.tensor([segment.scores for segment in segments], dtype=torch.float64).mean(0)
        return Prediction(
            str(path), float(seconds), self.labels, votes.tolist(), segments, short=short, damaged=damaged
        )

    @torch.no_grad()
    def trace(self, path: str | Path, *, start: float | None = None) -> ClipView:
        """Predict one clip of a video and return its frames and merged tokens, for `vtm.pictures` to draw.

        Args:
            path: video file.
            start: start of the clip in seconds, for the protocols `Windows` and `Dense`; None for the first clip that
                `predict` takes.

        Raises:
            FileNotFoundError: if the file does not exist.
            VideoError: if the video cannot be read, or is too short.
            ValueError: if no clip starts at `start`, the model takes features, not frames, a score is not finite, or a
                whole video transformer merges nothing.
        """
        video = self._open(path)
        seconds = video.seconds
        if start and not isinstance(self.protocol, Windows | Dense):
            raise ValueError(f"{path}: this model sees the whole video as one clip; expected start 0 s, got {start} s")
        start = self.protocol.starts(seconds)[0] if start is None else start
        if not 0 <= start < seconds:
            raise ValueError(f"{path}: expected a clip to start in [0, {seconds:.2f}) s, got {start} s")
        clip, frames = video.clip(start)
        batch = collate([clip])
        generators = [clip_generator(name) for name in batch.id]
        if isinstance(self.network, VideoTransformer):
            output, merges = self.network.record(batch.inputs, generator=generators)
            scores = ranked(self.labels, self._scores(output.logits)[0].tolist())
            side = frames.shape[2] // self.network.patch_size
            return ClipView.of_merges(
                frames, self.protocol.times(start, seconds), merges, FeatureGrid(side, side), scores=scores
            )
        output = self.network(batch.inputs, motion=batch.motion, mask=batch.mask, generator=generators)
        return ClipView.of(
            frames[:: frames_of(self.encoder).frames_per_step],
            self.protocol.times(start, seconds),
            output,
            self.encoder.grid,
            scores=ranked(self.labels, self._scores(output.logits)[0].tolist()),
        )

    def open_stream(self) -> Stream:
        """Return a stream of the network, which takes the features of a video in parts.

        Raises:
            ValueError: if the network cannot stream.
        """
        if not isinstance(self.network, VTM):
            raise ValueError(f"{type(self.network).__name__} takes whole clips only")
        return Stream(self.network)

    def generate_model_card(self, *_: Any, **metadata: Any) -> ModelCard:
        """Write the model card, for `save_pretrained` and `push_to_hub`."""
        usual: dict[str, Any] = self._hub_mixin_info.model_card_data.to_dict()  # type: ignore[no-untyped-call]
        return ModelCard(model_card(self.description, **usual | metadata))

    def _scores(self, logits: Tensor) -> Tensor:
        """Turn logits (B, K) into probabilities (B, K), or the values (B, 1) of a regression.

        Raises:
            ValueError: if one is not finite.
        """
        scores = self.task.to_scores(logits).reshape(logits.shape)
        if not torch.compiler.is_compiling() and not scores.isfinite().all():  # a graph cannot raise
            sound = all(bool(value.isfinite().all()) for value in self.network.state_dict().values())
            cause = (
                "the features of the video are too large or not finite"
                if sound
                else "the model has weights that are not"
            )
            raise ValueError(f"expected finite scores, got NaN or infinity, because {cause}")
        return scores

    def _build_network(self) -> Head:
        """Build the network as in training, with random weights."""
        network: Head = build(
            self.description["model"], self.encoder.channels, self.description["num_outputs"], self.encoder.grid
        )
        return network

    def _open(self, path: str | Path) -> EncodedVideo:
        motion = self.description["motion"]
        return EncodedVideo(Path(path), self.encoder, self.protocol, motion=motion, device=self.device)

    def _end(self, start: float, seconds: float) -> float:
        """Return the end of a clip in seconds."""
        if isinstance(self.protocol, Dense):
            return self.protocol.times(start, seconds)[-1]
        return min(start + self.protocol.num_frames, seconds) if isinstance(self.protocol, Windows) else seconds

    def _stream(self, path: str | Path, video: EncodedVideo, seen: Callable[[float, float], None] | None) -> Prediction:
        """Predict the whole video in one pass."""
        stream, damaged, seconds = self.open_stream(), False, video.seconds
        times = [time for time in every_second(0.0, int(seconds) + 1) if time < seconds or not time]
        for steps in video.steps(times):
            content = StepData.join([step.content for step in steps])
            stream.update(content.inputs[None], motion=None if content.motion is None else content.motion[None])
            damaged = damaged or bool(content.substituted.any())
            if seen is not None:
                seen(steps[-1].time, seconds)
        scores = self._scores(stream.logits())[0].tolist()
        segments, short = [Segment(0.0, seconds, scores)], video.is_short(times)
        return Prediction(str(path), seconds, self.labels, scores, segments, short=short, damaged=damaged)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_model(Path(save_directory, FILE_NAME), self.network.state_dict(), self.description)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path, *, encoder_checkpoint: str | Path | None = None, **options: Any
    ) -> Self:
        """Read a model from a folder or the Hub.

        Args:
            name: folder that contains `model.safetensors`, or name of a repository; no other file in it is read.
            encoder_checkpoint: file of the encoder's weights, see `load`.
            options: arguments of `huggingface_hub.hf_hub_download`, such as `revision`.

        Raises:
            ModelFileError: if the file cannot be used, see `load`.
        """
        path = Path(name, FILE_NAME)
        if not Path(name).is_dir():
            path = Path(hf_hub_download(str(name), FILE_NAME, **options))
        return cls._read(path, encoder_checkpoint=encoder_checkpoint)

    @classmethod
    def _read(cls, path: Path, *, encoder_checkpoint: str | Path | None = None) -> Self:
        weights, description = read_model(path)
        try:
            check_description(description, weights, PARTS, find)
            check_encoder(description["encoder"], trusted=encoder_checkpoint is not None)
            if encoder_checkpoint is not None:
                description["encoder"] |= {"checkpoint": str(encoder_checkpoint)}
            model = cls(description)
            check_shapes(model.network, weights)
            model.network = model._build_network().for_inference()
            model.network.load_state_dict(weights)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
        except Exception as error:  # hostile values can raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelFileError(
                f"{path} does not describe a model that this version of vtm can build: {reason}"
            ) from error
        return model


def load(
    path: str | Path, *, encoder_checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> Predictor:
    """Load a model that `python -m vtm.export` has written.

    Args:
        path: .safetensors file, or a folder that contains `model.safetensors`.
        encoder_checkpoint: file of the encoder's weights, if the training used such a file; the path in the model file
            is not opened.
        device: device to run on.

    Returns:
        Model to call as `model.predict("video.mp4").label`.

    Raises:
        ModelFileError: if the file does not exist, is damaged or not a model of vtm, or if the encoder has changed.
    """
    path = Path(path, FILE_NAME) if Path(path).is_dir() else Path(path)
    return Predictor._read(path, encoder_checkpoint=encoder_checkpoint).to(device)


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
