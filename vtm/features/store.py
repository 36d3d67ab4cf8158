"""Features that were encoded once: a folder for each encoder and rule of sampling, with one file per video.

A file holds the steps of a video in order of time, so the window of a clip is one slice: of a file on a disk or, by
ranges of bytes, of one behind any address that fsspec knows.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from vtm.data.sampling import ClipProtocol
from vtm.data.source import EncoderSpec, StepData, Video, frames_of, region_length, stored_times
from vtm.encoders.rounding import Quantized, StorageDtype, dequantize
from vtm.features.file import FeatureError, FeatureHeader, FeatureWriter, OtherTimesError, read_header, read_steps
from vtm.features.remote import size_and_version


class StoredEncoder(EncoderSpec, Protocol):
    """What a store has to know of an encoder.

    Attributes:
        storage_dtype: number format of the stored features.
    """

    @property
    def storage_dtype(self) -> StorageDtype: ...


class FeatureStore:
    """Read, for a network that trains without its encoder, what `python -m vtm.extract` has stored.

    Args:
        root: The folder of the data set; features lie in `features/<key>` below it.
        encoder: Has encoded the features; its key is part of theirs.
        sampling: The rule of the stored times, the other part.
        motion: Read how fast each token moves.
        address: Where `<key>` lies instead, if it is elsewhere: a folder, or any address of fsspec such as
            "s3://bucket/lvu" or "https://host/lvu".
        cache: A folder of this machine for what was read from a distant address.
        cache_gb: How much of it to keep, in 10⁹ bytes; the longest unread goes first.
    """

    remedy = "extract them with `python -m vtm.extract` and the same overrides"

    def __init__(
        self,
        *,
        root: Path,
        encoder: StoredEncoder,
        sampling: str,
        motion: bool,
        address: str | None,
        cache: str,
        cache_gb: float,
    ) -> None:
        self.key = f"{encoder.key}-{sampling}"
        place = address or str(root / "features")
        self.folder = f"{place if '://' in place else Path(place).expanduser()}".rstrip("/") + f"/{self.key}"
        self.unusable = root / "features" / self.key / "unusable.csv"
        frames_of(encoder)  # raises where there is nothing to store
        self.grid, self.channels, self.storage_dtype = encoder.grid, encoder.channels, encoder.storage_dtype
        self.motion = motion
        self.cache = Path(cache).expanduser()
        self.cache_bytes = int(cache_gb * 1e9)

    def locate(self, video: Video) -> str:
        """Name the file of a video: a hash of its id, which spreads the files over 256 folders, and the id itself."""
        digest = sha256(video.id.encode()).hexdigest()
        return (
            f"{self.folder}/{digest[:2]}/{digest[:12]}_{re.sub(r'[^A-Za-z0-9._-]', '_', video.id)[-100:]}.safetensors"
        )

    def version(self, video: Video) -> str | None:
        """Name the state of a video's file; None if there is none."""
        try:
            return "-".join(map(str, size_and_version(self.locate(video))))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def length(self, video: Video) -> float:
        """Take the annotated region, or the length that was measured when the features were stored.

        Raises:
            ValueError: The region is empty.
            FeatureError: The file cannot be used.
        """
        return self._header(video).length if video.end is None else region_length(video, video.end)

    def read(self, video: Video, times: list[float]) -> StepData:
        """Read the features of some stored times, (T, H, W, C) in the format of the store, int8 as float32.

        Raises:
            FeatureError: The file is missing or damaged, or holds other times.
        """
        header, rows = self._find(video, times)
        steps = read_steps(header, rows, cache=self.cache, cache_bytes=self.cache_bytes)
        if self.motion and steps["motion"][..., : self.grid.prefix].any():
            raise FeatureError(
                f"{header.path}: an earlier version of vtm measured its motion on other places than those of the "
                "tokens, because the encoder keeps CLS; delete the file and extract it again"
            )
        scale = steps.get("scale")
        return StepData(
            inputs=steps["features"] if scale is None else dequantize(Quantized(steps["features"], scale)),
            motion=steps["motion"] if self.motion else None,
            from_codec=steps["from_codec"].bool() if self.motion else None,
            substituted=steps["substituted"],
        )

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Look at the header alone.

        Raises:
            OtherTimesError: The file lacks some of the times.
        """
        self._find(video, stored_times(self, video, protocol, train=train))

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Read all steps of a video.

        Raises:
            FeatureError: The file is damaged, or lacks some of the times.
        """
        times = stored_times(self, video, protocol, train=train)
        for start in range(0, len(times), 64):
            self.read(video, times[start : start + 64])

    def is_complete(self, video: Video, protocol: ClipProtocol, *, train: bool) -> bool:
        """Tell by its header whether a video is stored: in one piece, for these clips, and from the file as it is."""
        try:
            self.expect(video, protocol, train=train)
        except (FeatureError, ValueError):
            return False
        return self._header(video).video_bytes == video.path.stat().st_size

    def writer(self, video: Video, times: list[float], length: float) -> FeatureWriter:
        """Begin to store a video; the file appears under its name when all steps are there.

        Args:
            video: Names the file.
            times: Of all steps, ascending, in seconds from the first frame of the file.
            length: Of the region of interest, in seconds.
        """
        facts = {"id": video.id, "key": self.key, "length": length, "video_bytes": video.path.stat().st_size}
        shape = (*self.grid.shape, self.channels)
        return FeatureWriter(Path(self.locate(video)), times, shape, self.storage_dtype, facts)

    def _find(self, video: Video, times: list[float]) -> tuple[FeatureHeader, list[int]]:
        """Find the rows of some times."""
        header = self._header(video)
        rows = header.find(times)
        if rows is None:
            raise OtherTimesError(
                f"{header.path}: has no features for some of the times {times[0]:.2f} to {times[-1]:.2f} s; the "
                "annotations or the protocol have changed, so extract them again"
            )
        return header, rows

    def _header(self, video: Video) -> FeatureHeader:
        path = self.locate(video)
        try:
            header = read_header(path, *size_and_version(path), self.cache)
        except FileNotFoundError as error:
            raise FeatureError(f"{path}: is missing; {self.remedy}") from error
        if header.id != video.id or header.key != self.key:
            raise FeatureError(
                f"{path}: expected the features {self.key} of {video.id}, found {header.key} of {header.id}; "
                "the file was moved or renamed"
            )
        return header
