"""The store of extracted features: a folder per encoder and sampling rule, with one file per video.

A file contains the steps of a video in order of time, so that the steps of a clip are one slice, which is read from a
local file or, as a byte range, from any address that fsspec supports.
"""

from __future__ import annotations

import difflib
import re
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from vtm.data.sampling import ClipProtocol
from vtm.data.source import EncoderSpec, StepData, Video, frames_of, region_length, stored_times
from vtm.encoders import Pixels
from vtm.encoders.rounding import Quantized, StorageDtype, dequantize
from vtm.features.file import FeatureError, FeatureHeader, FeatureWriter, OtherTimesError, read_header, read_steps
from vtm.features.remote import size_and_version
from vtm.video.motion import MotionSource
from vtm.video.reading import has_plain_pixels
from vtm.video.view import PIXEL_RULE, PYAV_VERSION


class StoredEncoder(EncoderSpec, Protocol):
    """Specification of the encoder of stored features.

    Attributes:
        storage_dtype: number format of the stored features.
    """

    @property
    def storage_dtype(self) -> StorageDtype: ...


class FeatureStore:
    """Source that reads the features stored by `python -m vtm.extract`, to train without running the encoder.

    Args:
        root: folder of the data set, whose features are in `features/<key>`.
        encoder: specification of the encoder of the features; its key is part of the key of the features.
        sampling: name of the rule of the stored times, the other part of the key.
        motion: read the motion of each token.
        motion_source: where the stored motion must come from, if it is read.
        address: folder or fsspec address that contains `<key>` instead of `root/features`, such as
            "s3://bucket/lvu" or "https://host/lvu".
        cache: local folder for the cached blocks of remote files.
        cache_gb: size limit of the cache in 10⁹ bytes; the least recently used blocks are removed first.

    Raises:
        ValueError: if the data are features already, or frames.
    """

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
        motion_source: MotionSource = "codec",
    ) -> None:
        if isinstance(encoder, Pixels):
            raise ValueError(
                "encoder=pixels hands frames through, so it has no features to store; train on the videos with "
                "data/source=videos"
            )
        self.key = f"{encoder.key}-{sampling}"
        base = address or str(root / "features")
        self.folder = f"{base if '://' in base else Path(base).expanduser()}".rstrip("/") + f"/{self.key}"
        self.unusable = root / "features" / self.key / "unusable.csv"
        frames_of(encoder)  # raises an error if the data are features already
        self.grid, self.channels, self.storage_dtype = encoder.grid, encoder.channels, encoder.storage_dtype
        self.motion = motion
        self.motion_source = motion_source
        self.cache = Path(cache).expanduser()
        self.cache_bytes = int(cache_gb * 1e9)

    @property
    def remedy(self) -> str:
        """What the user can do about missing features; names the features of other settings that are there instead."""
        text = "extract them with `python -m vtm.extract` and the same overrides"
        folder = Path(self.folder)
        if "://" in self.folder or folder.exists() or not folder.parent.is_dir():
            return text
        stored = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(folder.name, stored, n=2, cutoff=0.5)
        return text + (f", or set the overrides of the features stored there: {', '.join(near)}" if near else "")

    def locate(self, video: Video) -> str:
        """Return the path or address of a video's file: a hash of the id, in one of 256 folders, and the id itself."""
        digest = sha256(video.id.encode(errors="surrogateescape")).hexdigest()
        return (
            f"{self.folder}/{digest[:2]}/{digest[:12]}_{re.sub(r'[^A-Za-z0-9._-]', '_', video.id)[-100:]}.safetensors"
        )

    def version(self, video: Video) -> str | None:
        """Return a string that changes when the file of a video changes; None if the file does not exist."""
        try:
            return "-".join(map(str, size_and_version(self.locate(video))))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def length(self, video: Video) -> float:
        """Return the length of the region of interest in seconds, as annotated or else as stored in the header.

        Raises:
            ValueError: if the region is empty.
            FeatureError: if the file is missing or damaged.
        """
        return self._header(video).length if video.end is None else region_length(video, video.end)

    def read(self, video: Video, times: list[float]) -> StepData:
        """Read the features (T, H, W, C) at some stored times, in the number format of the store, int8 as float32.

        Raises:
            FeatureError: if the file is missing or damaged, or lacks some of the times.
        """
        header, rows = self._find(video, times)
        steps = read_steps(header, rows, cache=self.cache, cache_bytes=self.cache_bytes)
        if self.motion and steps["motion"][..., : self.grid.prefix].any():
            raise FeatureError(
                f"{header.path}: expected no motion at the CLS tokens, got motion from an earlier version of vtm, "
                "which assigned it to the wrong tokens; delete the file and extract it again"
            )
        scale = steps.get("scale")
        return StepData(
            inputs=steps["features"] if scale is None else dequantize(Quantized(steps["features"], scale)),
            motion=steps["motion"] if self.motion else None,
            from_codec=steps["from_codec"].bool() if self.motion else None,
            substituted=steps["substituted"],
        )

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Check the header only.

        Raises:
            FeatureError: if the file is missing or its header is damaged.
            OtherTimesError: if the file lacks some of the times.
        """
        self._find(video, stored_times(self, video, protocol, train=train))

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Read all steps that clips of a video may sample.

        Raises:
            FeatureError: if the file is missing or damaged, or lacks some of the times.
        """
        times = stored_times(self, video, protocol, train=train)
        for start in range(0, len(times), 64):
            self.read(video, times[start : start + 64])

    def is_complete(self, video: Video, protocol: ClipProtocol, *, train: bool) -> bool:
        """Return whether the stored features of a video are complete for these clips and from the current video file.

        Only the header is read, and for files of earlier versions of vtm, which read some videos wrongly, the first
        frames of the video.
        """
        try:
            self.expect(video, protocol, train=train)
        except (FeatureError, ValueError):
            return False
        header = self._header(video)
        if header.video_bytes != video.path.stat().st_size:
            return False
        return header.pixel_rule == PIXEL_RULE or has_plain_pixels(video.path)

    def writer(self, video: Video, times: list[float], length: float) -> FeatureWriter:
        """Return a writer of the feature file of a video.

        Args:
            video: video to store.
            times: times of all steps in seconds from the first frame of the file, ascending.
            length: length of the region of interest in seconds.
        """
        facts = {
            "id": video.id,
            "key": self.key,
            "length": length,
            "video_bytes": video.path.stat().st_size,
            "motion_source": self.motion_source,
            "pixel_rule": PIXEL_RULE,
            "pyav": PYAV_VERSION,
        }
        shape = (*self.grid.shape, self.channels)
        return FeatureWriter(Path(self.locate(video)), times, shape, self.storage_dtype, facts)

    def _find(self, video: Video, times: list[float]) -> tuple[FeatureHeader, list[int]]:
        """Return the header of a video's file and the rows of some times."""
        header = self._header(video)
        rows = header.find(times)
        if rows is None:
            raise OtherTimesError(
                f"{header.path}: has no features for some of the times {times[0]:.2f} to {times[-1]:.2f} s, because "
                "the annotations or the protocol have changed; extract them again"
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
                f"{path}: expected the features {self.key} of {video.id}, got {header.key} of {header.id}; "
                "the file was moved or renamed, so delete it and extract it again"
            )
        if self.motion and header.motion_source != self.motion_source:
            raise FeatureError(
                f"{path}: expected motion from data.motion_source={self.motion_source}, got {header.motion_source}; "
                f"set data.motion_source={header.motion_source}, or extract again with {self.motion_source}"
            )
        return header
