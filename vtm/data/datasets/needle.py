"""Synthetic clips in which very few tokens show the class: a benchmark of saliency without videos or an encoder.

The background is large and redundant: a few patterns per clip that drift over the grid. Clutter tokens are random, so
that a needle is not found just by being different from the background. A needle is the code of its class plus a mark
that all needles share; a decoy is the code of a random class plus noise instead of the mark. A model that averages all
tokens sees more decoys than needles; a model that learns the mark finds the class.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.sampling import ClipProtocol
from vtm.data.source import EncoderSpec, StepData, Video
from vtm.video.motion import MotionSource

_KEPT_BYTES = 2**29  # memory for clips in each process that loads them


class NeedleClip(NamedTuple):
    """Clip of tokens and the positions of its needles."""

    features: Tensor  # (T, H, W, C)
    needles: Tensor  # (T, H, W) bool, True for the tokens that show the class
    motion: Tensor  # (T, H, W) pixels per frame


@dataclass(frozen=True, kw_only=True)
class Needles:
    """Settings of the clips, and their generator. All vectors have a length of about √C before noise.

    Args:
        num_classes: K, number of classes, less than the channels.
        frames: T, number of frames.
        height: H, height of the grid in tokens.
        width: W, width of the grid in tokens.
        channels: C, channels of a token.
        num_needles: number of tokens of a clip that show its class.
        num_decoys: number of tokens with the code of a random class and without the mark of a needle.
        clutter: share of all tokens that are independent random vectors.
        num_patterns: number of different vectors in the background of a clip.
        noise: standard deviation of the noise that is added to every channel of every token.
        needle_speed: mean motion of the needles in pixels per frame.
        other_speed: mean motion of decoys and clutter in pixels per frame. The background has a mean of one.
        seed: seed of the codes and of every clip, independent of the seed of a training run.

    Raises:
        ValueError: if a setting is out of range, or the tokens do not fit into the clip.
    """

    num_classes: int
    frames: int
    height: int
    width: int
    channels: int
    num_needles: int
    num_decoys: int
    clutter: float
    num_patterns: int
    noise: float
    needle_speed: float
    other_speed: float
    seed: int

    def __post_init__(self) -> None:
        tokens = self.frames * self.height * self.width
        if not 2 <= self.num_classes < self.channels:
            raise ValueError(
                f"expected 2 <= num_classes < channels, so that codes and mark can be orthogonal, got "
                f"{self.num_classes} classes and {self.channels} channels"
            )
        for name, least in (("num_decoys", 0), ("num_patterns", 1), ("clutter", 0), ("noise", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} of {least} or more, got {getattr(self, name)}")
        if self.num_needles < 1 or self.num_needles + self.num_decoys + self._clutter > tokens:
            raise ValueError(
                f"expected at least one needle, and all kinds to fit into {tokens} tokens, got {self.num_needles} "
                f"needles, {self.num_decoys} decoys and {self._clutter} tokens of clutter"
            )

    @cached_property
    def key(self) -> str:
        """Hash of the settings, part of the names of the clips."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:8]

    @property
    def _clutter(self) -> int:
        return round(self.clutter * self.frames * self.height * self.width)

    @cached_property
    def codes(self) -> NDArray[np.float32]:
        """Codes of the classes, and the mark of needles in the last row: (K + 1, C), orthogonal, of length √C."""
        square = np.random.default_rng(self.seed).normal(size=(self.channels, self.channels))
        orthogonal = np.linalg.qr(square).Q[:, : self.num_classes + 1].T
        codes: NDArray[np.float32] = (orthogonal * np.sqrt(self.channels)).astype(np.float32)
        return codes

    def draw(self, label: int, rng: np.random.Generator) -> NeedleClip:
        """Draw a clip of one class; equal states of the generator produce equal clips."""
        shape = (self.frames, self.height, self.width)
        normal: Any = partial(rng.standard_normal, dtype=np.float32)
        background: NDArray[np.float32] = normal((self.num_patterns, self.channels))
        x = background[self._regions(rng)].reshape(-1, self.channels)  # (T·H·W, C)
        ends = np.cumsum([self.num_needles, self.num_decoys, self._clutter])
        needles, decoys, clutter, _ = np.split(rng.permutation(len(x)), ends)
        x[needles] = (self.codes[label] + self.codes[-1]) / np.sqrt(2)
        own = normal((len(decoys), self.channels))
        x[decoys] = (self.codes[rng.integers(self.num_classes, size=len(decoys))] + own) / np.sqrt(2)
        x[clutter] = normal((len(clutter), self.channels))
        x += np.float32(self.noise) * normal(x.shape)
        speed = np.ones(len(x))
        speed[needles], speed[decoys], speed[clutter] = self.needle_speed, self.other_speed, self.other_speed
        motion = speed * rng.uniform(0.5, 1.5, size=len(x))
        is_needle = np.zeros(len(x), dtype=bool)
        is_needle[needles] = True
        return NeedleClip(
            torch.from_numpy(x.reshape(*shape, self.channels)),
            torch.from_numpy(is_needle.reshape(shape)),
            torch.from_numpy(motion.astype(np.float32).reshape(shape)),
        )

    def oracle(self, clip: NeedleClip) -> int:
        """Classify a clip optimally, given the positions of its needles."""
        mean = clip.features[clip.needles].mean(0)
        return int((torch.from_numpy(self.codes[:-1]) @ mean).argmax())

    def _regions(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the index of the nearest pattern of each token (T, H, W), on a torus over which the patterns drift."""
        side = np.array([self.height, self.width])
        centers = rng.uniform(0, side, size=(self.num_patterns, 2))
        drift = rng.uniform(-0.5, 0.5, size=2)  # tokens per frame
        positions = np.stack(np.meshgrid(np.arange(self.height), np.arange(self.width), indexing="ij"), axis=-1)
        moved = positions + drift * np.arange(self.frames)[:, None, None, None]  # (T, H, W, 2)
        away = (moved[..., None, :] - centers) % side  # (T, H, W, patterns, 2)
        nearest: NDArray[np.int64] = (np.minimum(away, side - away) ** 2).sum(-1).argmin(-1)
        return nearest


class NeedleSource:
    """Source that generates clips on demand, without files, and keeps some in memory.

    Args:
        clips: settings of the clips.
        root: folder of the data set, for the list of unusable clips.
        encoder: specification of the features; not used.
        sampling: name of the sampling rule; not used.
        motion: return the motion too.
        motion_source: source of the motion of videos; not used.
    """

    remedy = "they are drawn, not read"

    def __init__(
        self,
        *,
        clips: Needles,
        root: Path,
        encoder: EncoderSpec,
        sampling: str,
        motion: bool,
        motion_source: MotionSource = "codec",
    ) -> None:
        self.unusable = root / "unusable.csv"
        self.clips = clips
        self.motion = motion
        self._kept: dict[str, NeedleClip] = {}  # drawing a clip takes as long as training on it
        self._room = _KEPT_BYTES // (4 * clips.frames * clips.height * clips.width * clips.channels)

    def clip(self, video: Video) -> NeedleClip:
        """Return the clip of a video, whose id is `<key>/<split>/<number>`."""
        if video.id in self._kept:
            return self._kept[video.id]
        _, split, number = video.id.split("/")
        rng = np.random.default_rng((self.clips.seed, 1 + [str(known) for known in SPLITS].index(split), int(number)))
        clip = self.clips.draw(int(video.target), rng)
        if len(self._kept) < self._room:
            self._kept[video.id] = clip
        return clip

    def locate(self, video: Video) -> str:
        """Return the id of the clip, in place of a path."""
        return video.id

    def version(self, video: Video) -> str:
        """Return a constant, since clips never change."""
        return "drawn"

    def length(self, video: Video) -> float:
        """Return the length of a clip in seconds, at one frame per second."""
        return float(self.clips.frames)

    def read(self, video: Video, times: list[float]) -> StepData:
        """Return the features at some times."""
        clip = self.clip(video)
        frames = [int(time) for time in times]
        motion = clip.motion[frames] if self.motion else None
        drawn = torch.ones(len(frames), dtype=torch.bool)
        return StepData(clip.features[frames], motion, drawn if self.motion else None, substituted=~drawn)

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Accept any clip."""

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Draw the clip."""
        self.clip(video)


class NeedleDataModule(VideoDataModule):
    """Data module of needle clips.

    Args:
        clips: settings of the clips.
        num_train: number of training clips; classes alternate in all splits.
        num_val: number of validation clips.
        num_test: number of test clips.
        options: see `VideoDataModule`; the source must be a `NeedleSource`.

    Raises:
        ValueError: if the source reads files, or the protocol does not sample every frame of a clip once.
    """

    source: NeedleSource

    def __init__(
        self, *, clips: Needles, num_train: int, num_val: int, num_test: int, **options: Unpack[LoaderOptions]
    ) -> None:
        if getattr(options["source"], "func", None) is not NeedleSource:
            raise ValueError("needle clips are drawn, not read from videos or features; leave out data/source")
        super().__init__(**options | {"source": partial(options["source"], clips=clips)})
        if [int(time) for time in self.protocol.times(0.0, float(clips.frames))] != list(range(clips.frames)):
            raise ValueError(
                f"needle clips are sampled completely: expected data.protocol.num_frames = data.clips.frames = "
                f"{clips.frames}, got {self.protocol.num_frames}; set both to the same number"
            )
        self.counts: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}

    @property
    def class_names(self) -> list[str]:
        """Numbered names of the classes."""
        return [f"class {index}" for index in range(self.source.clips.num_classes)]

    def read_split(self, split: Split) -> list[Video]:
        """List the clips of a split."""
        clips = self.source.clips
        names = [f"{clips.key}/{split}/{number}" for number in range(self.counts[split])]
        return [Video(name, Path(name), index % clips.num_classes) for index, name in enumerate(names)]
