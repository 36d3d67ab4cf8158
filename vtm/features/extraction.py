"""Encode the videos of a data set once and store their features, in any number of processes."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vtm.data.datamodule import VideoDataModule
from vtm.data.source import StepData, Video
from vtm.encoders import Encoder
from vtm.encoders.rounding import Quantized, StorageDtype, dequantize, quantize
from vtm.features.file import FeatureWriter
from vtm.features.store import FeatureStore
from vtm.features.work_queue import WorkQueue, remove_leftovers
from vtm.system.processes import process_rank
from vtm.system.progress import Progress
from vtm.video.decoding import VideoError

_FRAMES = 64  # to decode in one go, at least


def extract(data: VideoDataModule, store: FeatureStore, encoder: Encoder, *, device: torch.device) -> dict[str, str]:
    """Store the features of all videos of a data set that are not stored yet and that nobody else is storing.

    Args:
        data: Lists the videos and says how they are loaded; its source decodes them.
        store: Where the features go.
        encoder: Makes them.
        device: Where it runs.

    Returns:
        Why videos could not be stored, by their ids.

    Raises:
        FileNotFoundError: Videos are missing.
        OSError: The disk is full, now or according to the estimate.
    """
    data.prepare_data()
    remove_leftovers(Path(store.folder))
    work = WorkQueue(data, store)
    steps = -(-_FRAMES // encoder.chunk) * encoder.chunk // encoder.frames.frames_per_step
    _estimate(work, encoder, device, steps)
    loader: DataLoader[_Chunk] = DataLoader(
        _Chunks(data.source.read),
        batch_size=None,
        sampler=_Queue(work, steps),
        num_workers=data.num_workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
    )
    writer: FeatureWriter | None = None
    from_codec: list[bool] = []
    with Progress("storing features", len(work.videos), done=work.passed) as progress:
        try:
            for job, content in loader:
                if job.video.id in work.failed:
                    continue
                try:
                    if isinstance(content, str):
                        raise VideoError(content)
                    writer = writer or store.writer(job.video, job.times, job.length)
                    _write(writer, encoder, content, device)
                    from_codec += [] if content.from_codec is None else content.from_codec.tolist()
                    if job.end < len(job.times):
                        progress.advance(f"{len(from_codec)} steps", to=work.passed)
                        continue
                    writer.publish()
                    work.stored.add(job.video.id)
                except (VideoError, ValueError) as error:  # of this video alone
                    work.failed[job.video.id] = str(error)
                    if writer is not None:
                        writer.abandon()
                writer = None
                work.release(job.video)
                progress.advance(f"{len(from_codec)} steps, {len(work.failed)} failed", to=work.passed)
        except OSError as error:
            raise OSError(
                f"{error.filename or store.folder}: {error.strerror or error}; what is stored is complete, and the "
                "same command goes on when this is put right"
            ) from error
        except KeyboardInterrupt:
            sys.exit(
                f"interrupted with {len(work.stored)} of {len(work.videos)} videos stored; the same command goes on"
            )
        finally:
            if writer is not None:
                writer.abandon()
    work.refresh()
    others = len(work.videos) - len(work.stored) - len(work.failed)
    print(
        f"{len(work.stored)} of {len(work.videos)} videos are stored in {store.folder}"
        + (f", {others} are in the hands of other processes" if others else "")
        + (f"; motion is the codec's in {sum(from_codec) / len(from_codec):.0%} of the new steps" if from_codec else "")
    )
    return work.failed


class _Job(NamedTuple):
    """Name some steps of a video: those of its times from `first` to before `end`."""

    video: Video
    length: float
    times: list[float]
    first: int
    end: int


class _Chunk(NamedTuple):
    """Hold the frames of a job, or why there are none."""

    job: _Job
    content: StepData | str


class _Chunks(Dataset[_Chunk]):
    """Decode the frames of jobs, in the loading processes."""

    def __init__(self, read: Callable[[Video, list[float]], StepData]) -> None:
        self.read = read

    def __getitem__(self, job: _Job) -> _Chunk:
        try:
            return _Chunk(job, self.read(job.video, job.times[job.first : job.end]))
        except VideoError as error:
            return _Chunk(job, str(error))


class _Queue(Sampler[_Job]):
    """Take videos and cut them into jobs, whenever the loader wants more."""

    def __init__(self, work: WorkQueue, steps: int) -> None:
        self.work = work
        self.steps = steps

    def __iter__(self) -> Iterator[_Job]:
        for video, length, times in self.work.take():
            for first in range(0, len(times), self.steps):
                yield _Job(video, length, times, first, min(first + self.steps, len(times)))


def _as_it_is(chunk: Any) -> Any:
    return chunk


def _write(writer: FeatureWriter, encoder: Encoder, content: StepData, device: torch.device) -> None:
    """Encode some steps and append them."""
    quantized = encoder.quantized(content.inputs.to(device, non_blocking=True)[None])
    values, scale = quantized.values[0].cpu(), None if quantized.scale is None else quantized.scale[0].cpu()
    assert content.motion is not None
    assert content.from_codec is not None
    writer.add(Quantized(values, scale), content.motion, content.from_codec, content.substituted)


def _estimate(work: WorkQueue, encoder: Encoder, device: torch.device, steps: int) -> None:
    """Say how much disk and time the work will take: by the lengths of a few videos, and a trial on one.

    Raises:
        OSError: The disk has too little room.
    """
    todo = [entry for name, entry in work.videos.items() if name not in work.stored]
    lengths: list[int] = []
    trial: StepData | None = None
    for video, train in todo[:: max(1, len(todo) // 32)]:
        try:
            _, times = work.plan(video, train)
            lengths.append(len(times))
            if trial is None:
                start = time.perf_counter()
                trial = work.data.source.read(video, times[:steps])
                decoding = (time.perf_counter() - start) / min(steps, len(times))
        except (VideoError, ValueError):  # to be reported when it is its turn
            continue
    if trial is None:
        return
    frames = trial.inputs.to(device)[None]
    tokens = encoder.tokens(frames)  # the first time, with loading the weights
    start = time.perf_counter()
    tokens = encoder.tokens(frames).cpu()
    encoding = (time.perf_counter() - start) / len(trial.substituted)
    total = len(todo) * sum(lengths) / len(lengths)
    cells = encoder.grid.num_tokens
    needed = total * cells * (encoder.channels * getattr(torch, encoder.storage_dtype).itemsize + 8)
    folder = next(path for path in (Path(work.store.folder), *Path(work.store.folder).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    processes, cores = process_rank().world_size, os.cpu_count() or 1
    decoders = min(processes * max(1, work.data.num_workers), cores)
    if device.type == "cpu":  # the same cores do both
        seconds = total * (decoding + encoding) / min(decoders + processes, cores)
    else:
        seconds = total * max(decoding / decoders, encoding / processes)
    if process_rank().rank == 0:
        print(
            f"{len(todo)} of {len(work.videos)} videos are to be stored: about {total:,.0f} steps, "
            f"{needed / 1e9:.3g} GB of {free / 1e9:.3g} GB free, {timedelta(seconds=round(seconds))} "
            f"for {processes} process(es)\n"
            f"decoding takes {1000 * decoding:.3g} ms per step in each of {work.data.num_workers} loading processes, "
            f"encoding {1000 * encoding:.3g} ms\n"
            "error of the tokens in storage, root mean square to root mean square: "
            + ", ".join(f"{storage} {_error(tokens, storage):.2g}" for storage in ("bfloat16", "float16", "int8"))
            + f"; chosen: {encoder.storage_dtype}"
        )
    if needed > free:
        raise OSError(
            f"{folder} has room for {free / 1e9:.3g} GB, but about {needed / 1e9:.3g} GB are needed; choose another "
            "disk with data.source.address=<folder>, or encoder.storage=int8"
        )


def _error(tokens: Tensor, storage: StorageDtype) -> float:
    """Measure how far storage moves the tokens, relative to their size; infinite where they do not fit."""
    try:
        moved = dequantize(quantize(tokens, storage)) - tokens
    except ValueError:
        return float("inf")
    return float(moved.square().mean().sqrt() / tokens.square().mean().sqrt())
