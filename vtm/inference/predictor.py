"""A trained model as its users have it: videos in, answers out, the same as the test of train.py gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from vtm.data.dataset import clip_generator, collate
from vtm.data.sampling import ClipProtocol, Windows, every_second
from vtm.data.source import StepData, frames_of
from vtm.encoders import Encoder, Precomputed
from vtm.inference.clips import EncodedVideo
from vtm.inference.model_card import model_card
from vtm.inference.model_file import ModelFileError, build, read_model, weights_sha256, write_model
from vtm.inference.prediction import Prediction, Segment
from vtm.merging.partition import Generators
from vtm.models import VTM, Head, HeadOutput, Stream
from vtm.pictures.view import ClipView
from vtm.tasks.classification import Classification
from vtm.tasks.regression import Regression
from vtm.tasks.task import ranked

FILE_NAME = "model.safetensors"  # in a folder, as the Hub has it
_CLIPS_AT_ONCE = 4  # in one forward pass
_FETCHING = {"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"}  # arguments of timm


class Predictor(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vtm",
    pipeline_tag="video-classification",
    paper_url="https://arxiv.org/abs/2410.23782",
    tags=["token-merging", "long-form-video"],
):
    """Encode, merge and classify videos by a model that `python -m vtm.export` has written; `vtm.load` reads one.

    Arithmetic is in fp32. The weights of the encoder are no part of the model: they are loaded with the first frames.

    Args:
        description: what `vtm.inference.model_file` has beside the weights.

    Attributes:
        network: the head, without what only training needs.
        encoder: the frozen one.
        protocol: which clips are seen of a video.
        labels: K names of classes; None for a regression.

    Raises:
        ModelFileError: if the encoder is not the one of the training.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.description = dict(description)
        if fetched := _FETCHING & (description["encoder"].get("model_args") or {}).keys():
            raise ModelFileError(f"a model file cannot say where timm gets weights, but has {', '.join(fetched)}")
        try:
            self.encoder: Encoder | Precomputed = build(description["encoder"])
        except FileNotFoundError as error:
            raise ModelFileError(
                f"{error}; the file has moved since the training: name its place by load(…, encoder_checkpoint=…), "
                "--encoder-checkpoint of a command, or encoder_checkpoint=… of vtm.export"
            ) from None
        if self.encoder.key != description["encoder_key"]:
            raise ModelFileError(
                f"the model was trained on features of {description['encoder_key']}, but its encoder now gives "
                f"{self.encoder.key}: give the same weights, and the version of timm that it was trained with"
            )
        outputs, classes = description["num_outputs"], description["classes"]
        if classes and len(classes) != outputs:
            raise ModelFileError(f"expected {outputs} classes, one for each output, got {len(classes)}")
        self.network = self._build_network().for_inference()
        self.protocol: ClipProtocol = build(description["protocol"])
        self.task = Regression if description["task"] == Regression.name else Classification
        names = [str(index) for index in range(outputs)]
        self.labels: list[str] | None = None if self.task is Regression else classes or names
        self.eval()

    @classmethod
    def from_training(cls, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Self:
        """Make a model of all the weights that a network had in training.

        Raises:
            ModelFileError: if the encoder is not the one of the training.
        """
        model = cls(description)
        network = model._build_network()
        network.load_state_dict(weights)
        model.network = network.for_inference()
        return model

    @property
    def identity(self) -> str:
        """Name the model by the first digits of the SHA-256 of its weights."""
        return weights_sha256(self.network.state_dict())[:12]

    @property
    def device(self) -> torch.device:
        """Where the network is, and frames are encoded."""
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
        """Score clips from their features; the arguments are those of `VTM.forward`.

        Returns:
            (B, K) probabilities, or the (B, 1) values of a regression.
        """
        logits: Tensor = self.network(features, motion=motion, mask=mask, generator=generator).logits
        return self._scores(logits)

    def predict(
        self, path: str | Path, *, stream: bool = False, seen: Callable[[float, float], None] | None = None
    ) -> Prediction:
        """Say what is in a video, as the test of train.py would; a long one is read and held in parts.

        Where the model samples its targets in evaluation, the noise depends on the name of the file; in the test of
        train.py it depends on the id of the video in its data set.

        Args:
            path: of the video.
            stream: look at a frame per second of the whole video in one pass, rather than at the clips that the model
                was tested on: the tokens of all its last windows are averaged into one answer.
            seen: is told now and then how many seconds are done, and of how many.

        Raises:
            FileNotFoundError: if there is no such file.
            VideoError: if it cannot be read, or is too short.
            ValueError: if the model takes features and no frames, or cannot stream because it samples.
        """
        video = self._open(path)
        seconds = video.seconds
        if stream:
            return self._stream(path, video, seen)
        segments, damaged = [], False
        for group in _groups(video.clips(), _CLIPS_AT_ONCE):
            starts, clips = zip(*group, strict=True)
            batch = collate(clips)
            found = self(batch.inputs, batch.motion, batch.mask, generator=[clip_generator(name) for name in batch.id])
            segments += [
                Segment(start, self._end(start, seconds), scores)
                for start, scores in zip(starts, found.tolist(), strict=True)
            ]
            damaged = damaged or bool(batch.damaged.any())
            if seen is not None:
                seen(segments[-1].end, seconds)
        short = video.is_short(self.protocol.times(0.0, seconds))
        votes = torch.tensor([window.scores for window in segments], dtype=torch.float64).mean(0)
        return Prediction(str(path), seconds, self.labels, votes.tolist(), segments, short=short, damaged=damaged)

    @torch.no_grad()
    def trace(self, path: str | Path, *, start: float = 0.0) -> ClipView:
        """Classify one clip of a video, and keep what was merged, to be drawn by `vtm.pictures`.

        Args:
            path: of the video.
            start: of the clip, in seconds, for a model of windows.

        Raises:
            VideoError: if the file cannot be read, or is too short.
            ValueError: if there is no clip at `start`, or the model takes features and no frames.
        """
        video = self._open(path)
        seconds = video.seconds
        if start and not isinstance(self.protocol, Windows):
            raise ValueError(f"{path}: this model looks at the whole video at once, from 0 s and not from {start} s")
        if not 0 <= start < seconds:
            raise ValueError(f"{path}: expected a clip to start in [0, {seconds:.2f}) s, got {start} s")
        clip, frames = video.clip(start)
        batch = collate([clip])
        output: HeadOutput = self.network(
            batch.inputs, motion=batch.motion, mask=batch.mask, generator=[clip_generator(name) for name in batch.id]
        )
        return ClipView.of(
            frames[:: frames_of(self.encoder).frames_per_step],
            self.protocol.times(start, seconds),
            output,
            self.encoder.grid,
            scores=ranked(self.labels, self._scores(output.logits)[0].tolist()),
        )

    def open_stream(self) -> Stream:
        """Make a stream of the network, to which the features of a clip are given little by little.

        Raises:
            ValueError: if the network cannot stream.
        """
        if not isinstance(self.network, VTM):
            raise ValueError(f"a {type(self.network).__name__} sees whole clips only")
        return Stream(self.network)

    def generate_model_card(self, *_: Any, **metadata: Any) -> ModelCard:
        """Say what the model is, for `save_pretrained` and `push_to_hub`."""
        usual: dict[str, Any] = self._hub_mixin_info.model_card_data.to_dict()  # type: ignore[no-untyped-call]
        return ModelCard(model_card(self.description, **usual | metadata))

    def _scores(self, logits: Tensor) -> Tensor:
        """Turn logits (B, K) into probabilities (B, K), or the values (B, 1) of a regression."""
        return self.task.to_scores(logits).reshape(logits.shape)

    def _build_network(self) -> Head:
        """Make the network as training has it, with random weights."""
        network: Head = build(
            self.description["model"], self.encoder.channels, self.description["num_outputs"], self.encoder.grid
        )
        return network

    def _open(self, path: str | Path) -> EncodedVideo:
        motion = self.description["motion"]
        return EncodedVideo(Path(path), self.encoder, self.protocol, motion=motion, device=self.device)

    def _end(self, start: float, seconds: float) -> float:
        """Tell where a clip ends."""
        return min(start + self.protocol.num_frames, seconds) if isinstance(self.protocol, Windows) else seconds

    def _stream(self, path: str | Path, video: EncodedVideo, seen: Callable[[float, float], None] | None) -> Prediction:
        """Score the whole video in one pass."""
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
    def _from_pretrained(
        cls, *, model_id: str, encoder_checkpoint: str | Path | None = None, description: Any = None, **place: Any
    ) -> Self:
        """Read a model from a folder, or from the Hub; `description` is that of config.json, for people to read."""
        path = Path(model_id, FILE_NAME)
        if not Path(model_id).is_dir():
            path = Path(hf_hub_download(model_id, FILE_NAME, **place))
        return cls._read(path, encoder_checkpoint=encoder_checkpoint)

    @classmethod
    def _read(cls, path: Path, *, encoder_checkpoint: str | Path | None = None) -> Self:
        weights, description = read_model(path)
        if encoder_checkpoint is not None:
            description["encoder"] |= {"checkpoint": str(encoder_checkpoint)}
        try:
            model = cls(description)
            model.network.load_state_dict(weights)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ModelFileError(
                f"{path} does not describe a model that this version of vtm can build: {error}"
            ) from error
        return model


def load(
    path: str | Path, *, encoder_checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> Predictor:
    """Read a model that `python -m vtm.export` has written.

    Args:
        path: the .safetensors file, or a folder with a `model.safetensors`.
        encoder_checkpoint: where the weights of the encoder lie now, if it was trained with a file of its own.
        device: where it is to run.

    Returns:
        A `Predictor`: `model.predict("video.mp4").label`.

    Raises:
        ModelFileError: if there is no such file, it is damaged or something else, or the encoder has changed.
    """
    path = Path(path, FILE_NAME) if Path(path).is_dir() else Path(path)
    return Predictor._read(path, encoder_checkpoint=encoder_checkpoint).to(device)


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Take `size` items at a time."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
