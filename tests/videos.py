"""Videos whose pixels encode the number of each frame."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from vtm.data.sampling import Single
from vtm.data.source import VideoFiles
from vtm.merging import FeatureGrid
from vtm.video.frames import FrameSpec
from vtm.video.writing import write_video

HEIGHT, WIDTH, BITS = 48, 64, 8


class Stamps:
    """Write and read frame numbers: one bright or dark column per bit, inside the center crop of 48 x 48."""

    size = HEIGHT

    def picture(self, number: int) -> NDArray[np.uint8]:
        picture = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
        for bit in range(BITS):
            if number >> bit & 1:
                picture[16:32, 8 + 6 * bit : 14 + 6 * bit] = 220
        return picture

    def pictures(self, count: int) -> Iterator[NDArray[np.uint8]]:
        return (self.picture(number) for number in range(count))

    def write(self, path: Path, count: int, *, fps: float = 10, codec: str = "libx264", **options: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, self.pictures(count), fps=fps, codec=codec, options=options)
        return path

    def read(self, frames: Tensor) -> list[int]:
        columns = frames.float().mean(1)[:, 18:30].mean(1)  # (T, S)
        return [sum(int(row[6 * bit + 1 : 6 * bit + 5].mean() > 125) << bit for bit in range(BITS)) for row in columns]


@pytest.fixture(scope="session")
def stamps() -> Stamps:
    return Stamps()


class FakeEncoder:
    """A stand-in for an encoder, as data modules need it: 48 x 48 frames become 3 x 3 tokens."""

    def __init__(self, **attributes: Any) -> None:
        self.key, self.frames = "fake-48px", FrameSpec(HEIGHT, 1, squash=False)
        self.grid, self.channels, self.storage_dtype = FeatureGrid(3, 3), 4, "bfloat16"
        self.__dict__.update(attributes)


@pytest.fixture(scope="session")
def loading() -> Callable[..., dict[str, Any]]:
    """Return the arguments of every data module, for videos of the fixture `stamps`."""

    def make(root: Path, **changes: Any) -> dict[str, Any]:
        defaults = {
            "root": root,
            "protocol": Single(num_frames=2),
            "source": partial(VideoFiles, motion=False),
            "encoder": FakeEncoder(),
            "batch_size": 2,
            "num_workers": 0,
            "seed": 0,
            "allow_missing": False,
        }
        return defaults | changes

    return make
