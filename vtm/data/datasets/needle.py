"""Clips of tokens in which very few carry the class: the benchmark of saliency, without videos and without an encoder.

The background is large and redundant: a few patterns per clip that drift over the grid. Clutter is a share of tokens
that resemble nothing else, so that being unlike the rest does not give a needle away. A needle is the code of its class
together with a mark that all needles share; a decoy is the code of any class without the mark. A model that averages
everything sees more decoys than needles; one that has learnt the mark finds the class.
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

_KEPT_BYTES = 2**29  # of clips, in each process that loads them


class NeedleClip(NamedTuple):
    """Hold one clip and what is known of it."""

    features: Tensor  # (T, H, W, C)
    needles: Tensor  # (T, H, W) bool, the tokens that carry the class
    motion: Tensor  # (T, H, W) pixels per frame


@dataclass(frozen=True, kw_only=True)
class Needles:
    """Draw clips of one kind. All vectors have the length √C before noise.

    Args:
        num_classes: K, fewer than the channels.
        frames: T.
        height: H, tokens.
        width: W, tokens.
        channels: C.
        num_needles: Tokens of a clip that carry its class.
        num_decoys: Tokens that carry the code of a class drawn at random, without the mark of a needle.
        clutter: Share of all tokens that are vectors of their own.
        num_patterns: Different vectors of the background of a clip.
        noise: Standard deviation of what is added to every channel of every token.
        needle_speed: Motion of the needles in pixels per frame.
        other_speed: Motion of decoys and clutter, likewise. The background moves at one pixel per frame.
        seed: Fixes the codes and every clip; independent of the seed of a training run.
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
                f"expected 2 <= num_classes < channels, so that codes and mark are orthogonal, got "
                f"{self.num_classes} classes and {self.channels} channels"
            )
        for name, least in (("num_decoys", 0), ("num_patterns", 1), ("clutter", 0), ("noise", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} of {least} or more, got {getattr(self, name)}")
        if self.num_needles < 1 or self.num_needles + self.num_decoys + self._clutter > tokens:
            raise ValueError(
                f"expected one needle or more, and room for all in {tokens} tokens, got {self.num_needles} needles, "
                f"{self.num_decoys} decoys and {self._clutter} tokens of clutter"
            )

    @cached_property
    def key(self) -> str:
        """Tell clips of one kind from those of another, for their names."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:8]

    @property
    def _clutter(self) -> int:
        return round(self.clutter * self.frames * self.height * self.width)

    @cached_property
    def codes(self) -> NDArray[np.float32]:
        """Give each class its code, and in the last row the mark of needles: (K + 1, C), orthogonal, of length √C."""
        square = np.random.default_rng(self.seed).normal(size=(self.channels, self.channels))
        orthogonal = np.linalg.qr(square).Q[:, : self.num_classes + 1].T
        codes: NDArray[np.float32] = (orthogonal * np.sqrt(self.channels)).astype(np.float32)
        return codes

    def draw(self, label: int, rng: np.random.Generator) -> NeedleClip:
        """Draw a clip of one class; the same state of the generator gives the same clip."""
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
        found = np.zeros(len(x), dtype=bool)
        found[needles] = True
        return NeedleClip(
            torch.from_numpy(x.reshape(*shape, self.channels)),
            torch.from_numpy(found.reshape(shape)),
            torch.from_numpy(motion.astype(np.float32).reshape(shape)),
        )

    def oracle(self, clip: NeedleClip) -> int:
        """Classify a clip as well as it can be done by one who is told where the needles are."""
        mean = clip.features[clip.needles].mean(0)
        return int((torch.from_numpy(self.codes[:-1]) @ mean).argmax())

    def _regions(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Tell for every token which pattern is nearest, on a torus over which all of them drift: (T, H, W)."""
        side = np.array([self.height, self.width])
        centers = rng.uniform(0, side, size=(self.num_patterns, 2))
        drift = rng.uniform(-0.5, 0.5, size=2)  # tokens per frame
        places = np.stack(np.meshgrid(np.arange(self.height), np.arange(self.width), indexing="ij"), axis=-1)
        moved = places + drift * np.arange(self.frames)[:, None, None, None]  # (T, H, W, 2)
        away = (moved[..., None, :] - centers) % side  # (T, H, W, patterns, 2)
        nearest: NDArray[np.int64] = (np.minimum(away, side - away) ** 2).sum(-1).argmin(-1)
        return nearest


class NeedleSource:
    """Draw the clips when they are asked for, and keep some; there are no files.

    Args:
        clips: Draws them.
        root: Of the data set; no use here, nor are the encoder and the sampling.
        encoder: Stands for the features.
        sampling: The rule of the times.
        motion: Give the motion, too.
    """

    remedy = "they are drawn, not read"

    def __init__(self, *, clips: Needles, root: Path, encoder: EncoderSpec, sampling: str, motion: bool) -> None:
        self.unusable = root / "unusable.csv"
        self.clips = clips
        self.motion = motion
        self._kept: dict[str, NeedleClip] = {}  # for drawing takes as long as training on what is drawn
        self._room = _KEPT_BYTES // (4 * clips.frames * clips.height * clips.width * clips.channels)

    def clip(self, video: Video) -> NeedleClip:
        """Draw the clip of a name, `<key>/<split>/<number>`."""
        if video.id in self._kept:
            return self._kept[video.id]
        _, split, number = video.id.split("/")
        rng = np.random.default_rng((self.clips.seed, 1 + [str(known) for known in SPLITS].index(split), int(number)))
        clip = self.clips.draw(int(video.target), rng)
        if len(self._kept) < self._room:
            self._kept[video.id] = clip
        return clip

    def locate(self, video: Video) -> str:
        """Name the clip."""
        return video.id

    def version(self, video: Video) -> str:
        """Name the one state there is."""
        return "drawn"

    def length(self, video: Video) -> float:
        """Tell how long a clip is, at one frame per second."""
        return float(self.clips.frames)

    def read(self, video: Video, times: list[float]) -> StepData:
        """Give the frames at some times."""
        clip = self.clip(video)
        frames = [int(time) for time in times]
        motion = clip.motion[frames] if self.motion else None
        drawn = torch.ones(len(frames), dtype=torch.bool)
        return StepData(clip.features[frames], motion, drawn if self.motion else None, substituted=~drawn)

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Expect nothing."""

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Draw it."""
        self.clip(video)


class NeedleDataModule(VideoDataModule):
    """Load clips that a `NeedleSource` draws.

    Args:
        clips: Draws them.
        num_train: Clips for training; the classes take turns, here and below.
        num_val: Clips for validation.
        num_test: Clips for the test.
    """

    source: NeedleSource

    def __init__(
        self, *, clips: Needles, num_train: int, num_val: int, num_test: int, **options: Unpack[LoaderOptions]
    ) -> None:
        if getattr(options["source"], "func", None) is not NeedleSource:
            raise ValueError("needle clips are drawn, not read from videos or features: leave out data/source")
        super().__init__(**options | {"source": partial(options["source"], clips=clips)})
        if [int(time) for time in self.protocol.times(0.0, float(clips.frames))] != list(range(clips.frames)):
            raise ValueError(
                f"needle clips are seen whole: expected data.protocol.num_frames = data.clips.frames = {clips.frames}, "
                f"got {self.protocol.num_frames}"
            )
        self.counts: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}

    @property
    def class_names(self) -> list[str]:
        """Number the classes."""
        return [f"class {index}" for index in range(self.source.clips.num_classes)]

    def read_split(self, split: Split) -> list[Video]:
        """List the clips of a split."""
        clips = self.source.clips
        names = [f"{clips.key}/{split}/{number}" for number in range(self.counts[split])]
        return [Video(name, Path(name), place % clips.num_classes) for place, name in enumerate(names)]
