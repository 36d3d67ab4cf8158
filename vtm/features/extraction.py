"""Extract and store the features of the videos of a data set, in any number of processes."""

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

_FRAMES = 64  # minimum number of frames to decode at a time
_COMPARED = 4  # steps to compare with and without merging inside the encoder


def extract(data: VideoDataModule, store: FeatureStore, encoder: Encoder, *, device: torch.device) -> dict[str, str]:
    """Store the features of all videos of a data set that are not stored yet and not held by another process.

    Args:
        data: data module, whose source decodes the videos.
        store: store to write the features to.
        encoder: encoder of the features.
        device: device of the encoder.

    Returns:
        Error messages of the videos that could not be stored, by video id.

    Raises:
        FileNotFoundError: if videos are missing.
        OSError: if a file cannot be written, or the disk has too little space for the estimated features.
    """
    data.check_lists()
    remove_leftovers(Path(store.folder))
    queue = WorkQueue(data, store)
    steps = -(-_FRAMES // encoder.chunk) * encoder.chunk // encoder.frames.frames_per_step
    _estimate(queue, encoder, device, steps)
    loader: DataLoader[_Chunk] = DataLoader(
        _Chunks(data.source.read),
        batch_size=None,
        sampler=_JobSampler(queue, steps),
        num_workers=data.num_workers,
        collate_fn=_identity,
        pin_memory=device.type == "cuda",
    )
    writer: FeatureWriter | None = None
    from_codec: list[bool] = []
    with Progress("storing features", len(queue.videos), done=queue.passed) as progress:
        try:
            for job, content in loader:
                if job.video.id in queue.failed:
                    continue
                try:
                    if isinstance(content, str):
                        raise VideoError(content)
                    writer = writer or store.writer(job.video, job.times, job.length)
                    _write(writer, encoder, content, device)
                    from_codec += [] if content.from_codec is None else content.from_codec.tolist()
                    if job.end < len(job.times):
                        progress.advance(f"{len(from_codec)} steps", to=queue.passed)
                        continue
                    writer.publish()
                    queue.stored.add(job.video.id)
                except (VideoError, ValueError) as error:  # concerns this video only
                    queue.failed[job.video.id] = str(error)
                    if writer is not None:
                        writer.abandon()
                writer = None
                queue.release(job.video)
                progress.advance(f"{len(from_codec)} steps, {len(queue.failed)} failed", to=queue.passed)
        except OSError as error:
            raise OSError(
                f"{error.filename or store.folder}: {error.strerror or error}; the stored features are complete, fix "
                "this and run the same command again to continue"
            ) from error
        except KeyboardInterrupt:
            sys.exit(
                f"interrupted with {len(queue.stored)} of {len(queue.videos)} videos stored; run the same command "
                "again to continue"
            )
        finally:
            if writer is not None:
                writer.abandon()
    queue.refresh()
    others = len(queue.videos) - len(queue.stored) - len(queue.failed)
    print(
        f"{len(queue.stored)} of {len(queue.videos)} videos are stored in {store.folder}"
        + (f", {others} are held by other processes" if others else "")
        + (f"; motion is from the codec in {sum(from_codec) / len(from_codec):.0%} of new steps" if from_codec else "")
    )
    return queue.failed


class _Job(NamedTuple):
    """Steps of a video to encode together, `times[first:end]`."""

    video: Video
    length: float
    times: list[float]
    first: int
    end: int


class _Chunk(NamedTuple):
    """Frames of a job, or the message of the error that decoding raised."""

    job: _Job
    content: StepData | str


class _Chunks(Dataset[_Chunk]):
    """Data set that decodes the frames of a job, in worker processes."""

    def __init__(self, read: Callable[[Video, list[float]], StepData]) -> None:
        self.read = read

    def __getitem__(self, job: _Job) -> _Chunk:
        try:
            return _Chunk(job, self.read(job.video, job.times[job.first : job.end]))
        except VideoError as error:
            return _Chunk(job, str(error))


class _JobSampler(Sampler[_Job]):
    """Sampler that takes videos from a queue on demand and divides them into jobs of at most `steps` steps."""

    def __init__(self, queue: WorkQueue, steps: int) -> None:
        self.queue = queue
        self.steps = steps

    def __iter__(self) -> Iterator[_Job]:
        for video, length, times in self.queue.take():
            for first in range(0, len(times), self.steps):
                yield _Job(video, length, times, first, min(first + self.steps, len(times)))


def _identity(chunk: Any) -> Any:
    return chunk


def _write(writer: FeatureWriter, encoder: Encoder, content: StepData, device: torch.device) -> None:
    """Encode the frames of some steps and append the features to the file."""
    quantized = encoder.quantized(content.inputs.to(device, non_blocking=True)[None])
    values, scale = quantized.values[0].cpu(), None if quantized.scale is None else quantized.scale[0].cpu()
    assert content.motion is not None
    assert content.from_codec is not None
    writer.add(Quantized(values, scale), content.motion, content.from_codec, content.substituted)


def _estimate(queue: WorkQueue, encoder: Encoder, device: torch.device, steps: int) -> None:
    """Print the estimated disk space and time, from the lengths of a sample of videos and a trial on one of them.

    With merging inside the encoder, print also its error on the frames of the trial.

    Raises:
        OSError: if the disk has too little space.
    """
    todo = [entry for name, entry in queue.videos.items() if name not in queue.stored]
    lengths: list[int] = []
    trial: StepData | None = None
    for video, train in todo[:: max(1, len(todo) // 32)]:
        try:
            _, times = queue.plan(video, train)
            lengths.append(len(times))
            if trial is None:
                start = time.perf_counter()
                trial = queue.data.source.read(video, times[:steps])
                decoding = (time.perf_counter() - start) / min(steps, len(times))
        except (VideoError, ValueError):  # reported when the video is extracted
            continue
    if trial is None:
        return
    frames = trial.inputs[: encoder.chunk].to(device)[None]
    tokens = encoder.tokens(frames)  # the first call loads the weights and is not timed
    start = time.perf_counter()
    tokens = encoder.tokens(frames).cpu()
    encoding = (time.perf_counter() - start) / tokens.shape[1]
    total = len(todo) * sum(lengths) / len(lengths)
    cells = encoder.grid.num_tokens
    needed = total * cells * (encoder.channels * getattr(torch, encoder.storage_dtype).itemsize + 8)
    folder = next(path for path in (Path(queue.store.folder), *Path(queue.store.folder).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    processes, cores = process_rank().world_size, os.cpu_count() or 1
    decoders = min(processes * max(1, queue.data.num_workers), cores)
    if device.type == "cpu":  # decoding and encoding share the cores
        seconds = total * (decoding + encoding) / min(decoders + processes, cores)
    else:
        seconds = total * max(decoding / decoders, encoding / processes)
    if process_rank().rank == 0:
        print(
            f"{len(todo)} of {len(queue.videos)} videos are to be stored: about {total:,.0f} steps, "
            f"{needed / 1e9:.3g} GB of {free / 1e9:.3g} GB free, {timedelta(seconds=round(seconds))} "
            f"for {processes} process(es)\n"
            f"decoding takes {1000 * decoding:.3g} ms per step{_place(queue.data.num_workers)}, "
            f"encoding {1000 * encoding:.3g} ms\n"
            "relative error of the stored tokens (RMS): "
            + ", ".join(f"{storage} {_error(tokens, storage):.2g}" for storage in ("bfloat16", "float16", "int8"))
            + f"; chosen: {encoder.storage_dtype}"
        )
        if encoder.merge and encoder.merge.key:
            expected = encoder.unmerged_tokens(frames[:, : _COMPARED * encoder.frames.frames_per_step]).cpu()
            _report_merging(tokens[:, : expected.shape[1]], expected)
    if needed > free:
        raise OSError(
            f"{folder}: expected about {needed / 1e9:.3g} GB of free space for the features, got {free / 1e9:.3g} GB; "
            "choose another disk with data.source.address=<folder>, or encoder.storage=int8"
        )


def _place(num_workers: int) -> str:
    return f" in each of {num_workers} worker processes" if num_workers else ""


def _report_merging(tokens: Tensor, expected: Tensor) -> None:
    """Print the difference between the tokens with and without merging inside the encoder, (1, T, H, W, C)."""
    cosine = torch.cosine_similarity(tokens, expected, dim=-1).mean()
    print(
        f"merging inside the encoder, on {tokens.shape[1]} steps of one video: relative error of the tokens (RMS) "
        f"{_relative_error(tokens, expected):.2g}, cosine {cosine:.3f}"
    )


def _error(tokens: Tensor, storage: StorageDtype) -> float:
    """Return the RMS error of the tokens in storage relative to their RMS; infinite if they exceed its range."""
    try:
        return _relative_error(dequantize(quantize(tokens, storage)), tokens)
    except ValueError:
        return float("inf")


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
