"""Write a video file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vtm.video.decoding import local


def write_video(
    path: Path | str,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
) -> None:
    """Write frames to a video file, which appears under its name only when it is complete.

    Args:
        path: file to write; the suffix selects the container.
        frames: RGB frames (H, W, 3) uint8 of the same size, H and W even; consumed one at a time.
        fps: frames per second.
        codec: FFmpeg's name of the encoder.
        options: options of the encoder, such as `{"crf": "23", "g": "16"}`.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if there are no frames, or one is not (H, W, 3) uint8 with even H and W.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    pictures = iter(frames)
    head = next(pictures, None)
    if head is None or head.ndim != 3 or head.shape[0] % 2 or head.shape[1] % 2:
        shape = None if head is None else head.shape
        raise ValueError(f"{path}: expected one or more frames (H, W, 3) with even H and W, got {shape}")
    try:
        with av.open(local(partial), "w") as container:
            rate = Fraction(fps).limit_denominator(1001)
            fixed = {"x264-params": "mbtree=0"} if codec == "libx264" else {}  # mbtree is not reproducible with AVX-512
            stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=fixed | dict(options or {})))
            stream.height, stream.width = head.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1  # the output of libx264 depends on the number of threads
            for picture in chain((head,), pictures):
                expected, actual = ((*head.shape[:2], 3), np.dtype(np.uint8)), (picture.shape, picture.dtype)
                if expected != actual:
                    raise ValueError(f"{path}: expected all frames to be {expected}, got {actual}")
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    except OSError as error:
        if isinstance(error, av.error.FFmpegError) or error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
