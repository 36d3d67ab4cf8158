"""The feature file of one video: a safetensors file that is written step by step and checked at every read.

Memory use does not grow with the length of the video. Header and steps have checksums, so that files that are cut short
or have changed bytes are detected.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtm.encoders.rounding import Quantized, StorageDtype
from vtm.features.remote import forget, read_ranges
from vtm.system.processes import host_name

_FORMAT = "1"  # increase when files of the previous format can no longer be read
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8", "float64": "F64", "int64": "I64"}
_DTYPES = {name: getattr(torch, dtype) for dtype, name in _NAMES.items()}
_STEPS = ("features", "scale", "motion", "from_codec", "substituted")  # tensors with a row per step; scale is optional


class FeatureError(Exception):
    """Error for stored features that cannot be used; the message names the file and the remedy."""


class OtherTimesError(FeatureError):
    """Error for a feature file that lacks some of the requested times."""


class FeatureWriter:
    """Writer of the feature file of one video, which keeps no steps in memory.

    Args:
        path: file to write.
        times: times of all T steps in seconds.
        shape: (H, W, C) of a step.
        storage: number format of the features.
        facts: other entries of the header.
    """

    def __init__(
        self, path: Path, times: list[float], shape: tuple[int, int, int], storage: StorageDtype, facts: dict[str, Any]
    ) -> None:
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "times": (torch.float64, (steps := len(times),)),  # in descending order of width, so that all are aligned
            "crc32": (torch.int64, (steps,)),
            "substituted": (torch.int64, (steps,)),
            **({"scale": (torch.float32, (steps, *shape[:2]))} if storage == "int8" else {}),
            "motion": (torch.float32, (steps, *shape[:2])),
            "features": (getattr(torch, storage), (steps, *shape)),
            "from_codec": (torch.int8, (steps,)),
        }
        stamps = np.asarray(times, np.float64).tobytes()
        self.path = path
        head, self._tensors = _make_header(layout, stamps, {name: str(value) for name, value in facts.items()})
        self._partial = path.with_name(f".{path.stem}.{host_name()}.{os.getpid()}.part")
        self._done, self._total = 0, steps
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        self._file.write(head + stamps)

    def __enter__(self) -> Self:
        """Return the writer; the block publishes the file at its end, or removes it on an error."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the file, or remove it if the block raised an error."""
        if kind is None:
            self.publish()
        else:
            self.abandon()

    def add(self, quantized: Quantized, motion: Tensor, from_codec: Tensor, substituted: Tensor) -> None:
        """Append steps.

        Args:
            quantized: features (t, H, W, C) on the CPU.
            motion: pixels per frame (t, H, W).
            from_codec: whether the motion is from the codec (t,), bool.
            substituted: number of frames that could not be decoded (t,), int64.

        Raises:
            ValueError: if a shape or number format does not match the file, or a value is not finite.
        """
        steps = {
            "features": quantized.values.contiguous(),
            **({} if quantized.scale is None else {"scale": quantized.scale.contiguous()}),
            "motion": motion.float().contiguous(),
            "from_codec": from_codec.to(torch.int8),
            "substituted": substituted,
        }
        crc32 = [_checksum(steps, row) for row in range(len(quantized.values))]
        steps["crc32"] = torch.tensor(crc32, dtype=torch.int64)
        for name, rows in steps.items():
            entry = self._tensors[name]
            if rows.dtype != entry.dtype or rows.shape[1:] != entry.shape[1:]:
                raise ValueError(
                    f"expected {name} as {entry.dtype} (t, {entry.shape[1:]}), got {rows.dtype} {tuple(rows.shape)}"
                )
            if not _is_finite(rows):
                raise ValueError(
                    f"{self.path}: expected finite numbers as {name}, got NaN or infinity; nothing is stored"
                )
            self._file.seek(entry.rows(self._done, self._done)[0])
            self._file.write(_bytes(rows))
        self._done += len(crc32)

    def publish(self) -> None:
        """Move the complete file to its path, with the permissions of the umask.

        Raises:
            OSError: if the file cannot be written, for example if the disk is full; the partial file is removed.
            ValueError: if steps are missing; the partial file is removed.
        """
        try:
            if self._done != self._total:
                raise ValueError(f"{self.path}: expected {self._total} steps, got {self._done}")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self.path)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove the partial file."""
        try:
            self._file.close()
        except OSError:  # buffered bytes cannot be written if the disk is full
            pass
        finally:
            self._partial.unlink(missing_ok=True)


class _Tensor(NamedTuple):
    """Location of a tensor in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # offset in the file in bytes

    def rows(self, low: int, high: int) -> tuple[int, int]:
        """Return the byte range of the rows `low` to before `high` in the file."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self.start + low * row, self.start + high * row


class FeatureHeader(NamedTuple):
    """Header of a feature file."""

    path: str  # path or address of the file
    version: str  # see `size_and_version`
    id: str  # id of the video
    key: str  # key of the encoder and sampling rule
    length: float  # length of the region of interest in seconds
    video_bytes: int  # size of the video file
    motion_source: str  # "codec" or "difference"; "codec" if the file does not record it
    pixel_rule: int  # see `vtm.video.view`; 0 if the file does not record it
    times: NDArray[np.float64]  # (T,) times of the steps in seconds, ascending
    tensors: dict[str, _Tensor]

    def find(self, times: Iterable[float]) -> list[int] | None:
        """Return the rows of some times; None if one of them is not stored."""
        wanted = np.asarray(list(times))
        rows = np.searchsorted(self.times, wanted - 1e-6).clip(max=len(self.times) - 1)
        return rows.tolist() if (abs(self.times[rows] - wanted) < 1e-6).all() else None


def _make_header(
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], stamps: bytes, facts: dict[str, str]
) -> tuple[bytes, dict[str, _Tensor]]:
    """Return the bytes of a safetensors file before its data, and the location of each tensor."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        code = _NAMES[str(dtype).removeprefix("torch.")]
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    facts = {"format": _FORMAT, **facts}
    facts["crc32"] = str(zlib.crc32(stamps, zlib.crc32(json.dumps([facts, entries], sort_keys=True).encode())))
    text = json.dumps({"__metadata__": facts, **entries}).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {
        name: _Tensor(dtype, shape, len(head) + entries[name]["data_offsets"][0])
        for name, (dtype, shape) in layout.items()
    }


def read_steps(
    header: FeatureHeader, rows: list[int], *, cache: Path, cache_bytes: int | None = None
) -> dict[str, Tensor]:
    """Read some steps of a file and verify their checksums.

    Args:
        header: header of the file.
        rows: indices of the t steps; all bytes from the first to the last are read as one slice.
        cache: folder for the cached blocks of remote files.
        cache_bytes: size limit of the cache in bytes; None for no limit.

    Returns:
        `features` (t, H, W, C), `scale` for int8, `motion` (t, H, W), `from_codec` and `substituted` (t,).

    Raises:
        FeatureError: if some of the steps are damaged or not finite.
    """
    low, high, retried = min(rows), max(rows) + 1, False
    names = [name for name in (*_STEPS, "crc32") if name in header.tensors]
    ranges = [header.tensors[name].rows(low, high) for name in names]
    while True:
        parts = read_ranges(header.path, header.version, ranges, cache=cache, cache_bytes=cache_bytes)
        steps = {
            name: torch.from_numpy(part).view(header.tensors[name].dtype).reshape(-1, *header.tensors[name].shape[1:])
            for name, part in zip(names, parts, strict=True)
        }
        expected = steps.pop("crc32").tolist()
        damaged = [row for row in sorted(set(rows)) if _checksum(steps, row - low) != expected[row - low]]
        if not damaged:
            break
        if retried or not forget(header.path, header.version, cache=cache):  # cached blocks may be damaged or outdated
            raise FeatureError(
                f"{header.path}: the features at {header.times[damaged[0]]:.2f} s are damaged; delete the file and "
                "extract it again"
            )
        retried = True
    if rows != list(range(low, high)):
        chosen = torch.tensor(rows) - low
        steps = {name: values[chosen] for name, values in steps.items()}
    for name, values in steps.items():
        if not _is_finite(values):
            bad = next(index for index in range(len(rows)) if not _is_finite(values[index]))
            raise FeatureError(
                f"{header.path}: expected finite numbers as {name}, got NaN or infinity at "
                f"{header.times[rows[bad]]:.2f} s; delete the file and extract it again"
            )
    return steps


@lru_cache(maxsize=4096)
def read_header(path: str, size: int, version: str, cache: Path) -> FeatureHeader:
    """Read and check the header of a feature file, from memory unless its size or version has changed.

    Args:
        path: path or address of the file.
        size: size of the file in bytes.
        version: version of the file, see `size_and_version`.
        cache: folder for the cached blocks of remote files.

    Raises:
        FileNotFoundError: if the file does not exist.
        FeatureError: if the file is damaged, cut short or not a feature file.
    """
    try:
        return _read_header(path, size, version, cache)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise FeatureError(
            f"{path}: is not a feature file, or is damaged ({error}); delete it and extract it again"
        ) from error


def _read_header(path: str, size: int, version: str, cache: Path) -> FeatureHeader:
    def read(start: int, end: int) -> bytes:
        return bytes(read_ranges(path, version, [(start, end)], cache=cache, cache_bytes=None)[0])

    if size < 8 or 8 + (length := int.from_bytes(read(0, 8), "little")) > size:
        raise ValueError("it is cut short")
    entries = json.loads(read(8, 8 + length))
    facts = entries.pop("__metadata__")
    if facts["format"] != _FORMAT:
        raise ValueError(f"expected format {_FORMAT}, found {facts['format']}")
    tensors = {
        name: _Tensor(_DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
    }
    if size != max(8 + length + entry["data_offsets"][1] for entry in entries.values()):
        raise ValueError("it is cut short")
    for name, tensor in tensors.items():  # before memory for them is taken
        if (tensor.start, 8 + length + entries[name]["data_offsets"][1]) != tensor.rows(0, tensor.shape[0]):
            raise ValueError(f"expected {name} of {tensor.shape} in other bytes of the file")
    stamps = read(*tensors["times"].rows(0, tensors["times"].shape[0]))
    crc32 = int(facts.pop("crc32"))
    if crc32 != zlib.crc32(stamps, zlib.crc32(json.dumps([facts, entries], sort_keys=True).encode())):
        raise ValueError("its header has changed")
    video = facts["id"], facts["key"], float(facts["length"]), int(facts["video_bytes"])
    records = facts.get("motion_source", "codec"), int(facts.get("pixel_rule", 0))
    return FeatureHeader(path, version, *video, *records, np.frombuffer(stamps, np.float64), tensors)


def _is_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    if not values.is_floating_point() or not values.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())  # ten times as fast as `isfinite` of all


def _checksum(steps: dict[str, Tensor], row: int) -> int:
    """Compute the CRC-32 of all data of one step."""
    crc32 = 0
    for name in (name for name in _STEPS if name in steps):
        crc32 = zlib.crc32(_bytes(steps[name][row]), crc32)
    return crc32


def _bytes(tensor: Tensor) -> memoryview:
    """Return a view of the bytes of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
