"""Synthetic videos for a demonstration without download: shots with moving backgrounds and many moving shapes.

In each video, a small disc in the two colors of the class is on screen for a few seconds; everything else is
independent of the class. A model that finds the few tokens of the disc outperforms one that averages all tokens.
"""

import colorsys
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import read_rows
from vtm.data.datasets.checking import Item, check_items
from vtm.data.source import Video
from vtm.system.atomic import write_atomically
from vtm.system.progress import Progress
from vtm.video.writing import write_video

_HUES = {"red": 0, "orange": 30, "yellow": 58, "green": 120, "cyan": 180, "blue": 230, "purple": 275, "pink": 320}
_PERIOD = 256  # side of the background textures, the largest side of a frame
_RECIPE = 2  # increase when the same settings no longer produce the same videos


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Settings of the videos, and their renderer.

    Args:
        num_classes: number of classes, each a pair of colors, 2 to 4.
        seconds: length of a video in seconds.
        fps: frames per second.
        height: height of the frames in pixels, even.
        width: width of the frames in pixels, even.
        object_size: diameter of the disc that shows the class, in pixels.
        min_visible: minimum share of the time in which the disc is on screen.
        max_visible: maximum share of the time in which the disc is on screen.
        num_distractors: number of moving shapes on screen, half of them gray, half in a pale color of any class.
        object_speed: speed of the disc in pixels per second.
        distractor_speed: speed of the other shapes in pixels per second.
        pan_speed: mean speed of the background in pixels per second; each shot has 0.5 to 1.5 times this speed.
        noise: standard deviation of the sensor noise in gray levels.
    """

    num_classes: int
    seconds: int
    fps: int
    height: int
    width: int
    object_size: int
    min_visible: float
    max_visible: float
    num_distractors: int
    object_speed: float
    distractor_speed: float
    pan_speed: float
    noise: float = 4.0

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= len(_HUES) // 2:
            raise ValueError(f"expected num_classes of 2 to {len(_HUES) // 2}, got {self.num_classes}")
        if not 0 < self.min_visible <= self.max_visible <= 1:
            raise ValueError(
                f"expected 0 < min_visible <= max_visible <= 1, got {self.min_visible} and {self.max_visible}"
            )
        if max(self.height, self.width) > _PERIOD:
            raise ValueError(f"expected height and width up to {_PERIOD}, got {self.height} and {self.width}")
        if 2 * self.object_size > min(self.height, self.width):
            raise ValueError(
                f"expected object_size of at most half the height and width, {self.height} and {self.width}, "
                f"got {self.object_size}"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes: two neighboring colors of the color wheel each."""
        colors = list(_HUES)
        return [f"{colors[2 * k]}-{colors[2 * k + 1]}" for k in range(self.num_classes)]

    def render(self, label: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames (H, W, 3) of a random video of one class; equal generators produce equal videos."""
        count = self.seconds * self.fps
        disc = _two_color_disc(self.object_size, *self.class_names[label].split("-"))
        side = min(self.height, self.width)
        inside = ((self.height - side) // 2, (self.width - side) // 2, side, side)  # the center crop
        corners: dict[int, tuple[int, int]] = {}  # frame to the corner of the disc
        for first, length in self._appearances(count, rng):
            path = _bounce(length, inside, self.object_size, speed=self.object_speed / self.fps, rng=rng)
            corners.update(zip(range(first, first + length), path, strict=True))
        grain = rng.normal(0, self.noise, (2 * self.height, 2 * self.width, 3)).round().astype(np.int16)
        cuts = np.cumsum(rng.uniform(1, 2, rng.integers(3, 6)))
        ends = np.round(cuts / cuts[-1] * count).astype(int).tolist()
        frame = 0
        for end in ends:
            for picture in self._shot(end - frame, rng):
                if frame in corners:
                    _paint(picture, disc, corners[frame])
                top, left = rng.integers(self.height), rng.integers(self.width)
                picture += grain[top : top + self.height, left : left + self.width]
                yield picture.clip(0, 255).astype(np.uint8)
                frame += 1

    def _appearances(self, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Draw the first frame and the length of each appearance of the disc, of about 2.5 s each."""
        total = max(1, round(rng.uniform(self.min_visible, self.max_visible) * count))
        number = max(1, round(total / self.fps / 2.5))
        lengths = [total // number + (i < total % number) for i in range(number)]
        gaps = np.sort(rng.integers(0, count - total + 1, number)).tolist()
        return [(gap + sum(lengths[:i]), lengths[i]) for i, gap in enumerate(gaps)]

    def _shot(self, length: int, rng: np.random.Generator) -> Iterator[NDArray[np.int16]]:
        """Yield the frames of one shot without disc and noise: a panning texture and moving shapes."""
        ground = np.tile(_texture(_PERIOD, rng), (2, 2, 1))
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5) * self.pan_speed / self.fps
        start = rng.integers(0, _PERIOD, 2)
        pan = (start + np.outer(np.arange(length), speed * np.array([np.sin(angle), np.cos(angle)]))).astype(int)
        colors = sorted({color for name in self.class_names for color in name.split("-")})
        moving = []
        for number in range(self.num_distractors):
            gray = np.full(3, rng.uniform(20, 235))
            pale = 0.4 * _rgb(colors[rng.integers(len(colors))]) + 0.6 * gray
            color = gray if number % 2 else pale
            size = int(self.object_size * rng.uniform(0.6, 1.2))
            box = (0, 0, self.height, self.width)
            moving.append(
                (_shape(size, color, rng), _bounce(length, box, size, speed=self.distractor_speed / self.fps, rng=rng))
            )
        for frame, (top, left) in enumerate((pan % _PERIOD).tolist()):
            picture = ground[top : top + self.height, left : left + self.width].copy()
            for sprite, path in moving:
                _paint(picture, sprite, path[frame])
            yield picture


class DemoDataModule(VideoDataModule):
    """Data module of the demonstration set, which is written on first use.

    Args:
        scene: settings of the videos.
        num_train: number of training videos; classes alternate in all splits.
        num_val: number of validation videos.
        num_test: number of test videos.
        data_seed: seed of the videos, independent of the seed of the training run.
    """

    def __init__(
        self,
        *,
        scene: Scene,
        num_train: int,
        num_val: int,
        num_test: int,
        data_seed: int,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(**options)
        self.scene = scene
        self.counts: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.data_seed = data_seed

    @property
    def class_names(self) -> list[str]:
        """Names of the classes: two colors each."""
        return self.scene.class_names

    def prepare_data(self) -> None:
        """Write the missing videos, the lists, and finally `demo.json`, which marks the set as complete.

        Raises:
            ValueError: if the folder contains videos with other settings.
        """
        settings = asdict(self.scene) | {f"num_{split}": count for split, count in self.counts.items()}
        settings |= {"data_seed": self.data_seed, "recipe": _RECIPE}
        complete, begun = self.root / "demo.json", self.root / "demo.json.begun"
        for path in (complete, begun):
            if path.is_file() and (stored := json.loads(path.read_text(encoding="utf-8"))) != settings:
                other = {key: stored.get(key) for key in settings if stored.get(key) != settings[key]}
                raise ValueError(
                    f"{path}: the videos in this folder were made with {other}, expected "
                    f"{ {key: settings[key] for key in other} }; delete the folder or choose another root"
                )
        if complete.is_file():
            return
        write_atomically(begun, json.dumps(settings))
        videos = [(index, video) for index, split in enumerate(self.counts) for video in self._plan(split)]
        todo = [(index, number, video) for number, (index, video) in enumerate(videos) if not video.path.exists()]
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            Progress("writing demonstration videos", len(videos), done=len(videos) - len(todo)) as progress,
        ):
            for _ in pool.map(lambda job: self._write(*job), todo):
                progress.advance()
        for split in self.counts:
            rows = "".join(f"{video.id},{self.class_names[int(video.target)]}\n" for video in self._plan(split))
            write_atomically(self.root / "annotations" / f"{split}.csv", f"path,label\n{rows}")
        write_atomically(complete, json.dumps(settings, indent=2))
        begun.unlink(missing_ok=True)

    def read_split(self, split: Split) -> list[Video]:
        """List the videos in `annotations/<split>.csv`."""
        rows = {s: read_rows(self.annotation(f"{s}.csv"), ("path", "label"), delimiter=",") for s in SPLITS}
        items = [Item(row["path"], row["label"], s, row.origin) for s in SPLITS for row in rows[s]]
        check_items(items, source=self.root / "annotations", known=self.class_names)
        return [self._video(row["path"], self.class_names.index(row["label"])) for row in rows[split]]

    def _video(self, name: str, label: int) -> Video:
        return Video(name, self.root / "videos" / name, label, end=float(self.scene.seconds))

    def _plan(self, split: Split) -> list[Video]:
        """List the videos of a split from the settings, before its list is written."""
        labels = [number % self.scene.num_classes for number in range(self.counts[split])]
        return [self._video(f"{split}/{self.class_names[y]}/{i:04}.mp4", y) for i, y in enumerate(labels)]

    def _write(self, split_index: int, number: int, video: Video) -> None:
        rng = np.random.default_rng((self.data_seed, split_index, number))
        video.path.parent.mkdir(parents=True, exist_ok=True)
        frames = self.scene.render(int(video.target), rng)
        options = {"preset": "veryfast", "crf": "23", "g": str(2 * self.scene.fps)}
        write_video(video.path, frames, fps=self.scene.fps, options=options)


class _Sprite(NamedTuple):
    """Small picture to paint into a frame."""

    mask: NDArray[np.bool_]  # (S, S, 1)
    color: NDArray[np.int16]  # (S, S, 3)


def _rgb(color: str) -> NDArray[np.float64]:
    """Return a bright color as RGB (3,) in 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(_HUES[color] / 360, 0.9, 0.95))


def _two_color_disc(size: int, first: str, second: str) -> _Sprite:
    """Draw the object of a class: a disc whose quarters alternate between two colors."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    color = np.where(((y > 0) == (x > 0))[..., None], _rgb(first), _rgb(second))
    return _Sprite((np.hypot(y, x) <= size / 2)[..., None], color.astype(np.int16))


def _shape(size: int, color: NDArray[np.float64], rng: np.random.Generator) -> _Sprite:
    """Draw a random disc, square, triangle, ring or cross in one color."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    radius = np.hypot(y, x)
    masks = [
        radius <= 1,
        np.maximum(abs(y), abs(x)) <= 0.85,
        abs(x) <= (y + 1) / 2,
        (radius <= 1) & (radius >= 0.6),
        np.minimum(abs(y), abs(x)) <= 0.33,
    ]
    return _Sprite(masks[rng.integers(len(masks))][..., None], np.broadcast_to(color, (size, size, 3)).astype(np.int16))


def _texture(side: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Draw a random pattern in two dull colors that tiles seamlessly, (side, side, 3)."""
    y, x = 2 * np.pi * np.mgrid[:side, :side] / side
    scale = int(rng.integers(3, 17))
    kind = rng.integers(3)
    if kind == 0:
        frequency = np.hypot(
            *np.meshgrid(np.fft.fftfreq(side, 1 / side), np.fft.rfftfreq(side, 1 / side), indexing="ij")
        )
        smooth = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) * np.exp(-((frequency / scale) ** 2)))
        shade = 1 / (1 + np.exp(-2 * smooth / smooth.std()))
    elif kind == 1:
        shade = 0.5 + 0.5 * np.sin(rng.integers(-scale, scale + 1) * y + scale * x)
    else:
        shade = (np.sin(scale * y) * np.sin(scale * x) > 0).astype(float)
    dark, light = (
        255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.05, 0.4), rng.uniform(low, low + 0.35)))
        for low in (0.15, 0.5)
    )
    picture: NDArray[np.int16] = (dark + shade[..., None] * (light - dark)).astype(np.int16)
    return picture


def _bounce(
    length: int, box: tuple[int, int, int, int], size: int, *, speed: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Move a square on a line reflected at the sides of a box (top, left, height, width); list its corner by frame."""
    angle = rng.uniform(0, 2 * np.pi)
    corner = []
    for low, extent, step in zip(box[:2], box[2:], (np.sin(angle), np.cos(angle)), strict=True):
        room = extent - size
        way = (rng.uniform(0, 2 * room) + speed * step * np.arange(length)) % (2 * room)
        corner.append((low + np.minimum(way, 2 * room - way)).astype(int).tolist())
    return list(zip(*corner, strict=True))


def _paint(picture: NDArray[np.int16], sprite: _Sprite, corner: tuple[int, int]) -> None:
    (top, left), size = corner, len(sprite.mask)
    np.copyto(picture[top : top + size, left : left + size], sprite.color, where=sprite.mask)
