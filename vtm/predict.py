"""Say what is in videos: python -m vtm.predict model.safetensors video.mp4.

Any number of processes, on any number of machines that see the file, may write one table (`--csv`) at the same time:
each takes videos that no other has taken. They may be stopped at any moment; the same command goes on, and does again
only the videos that were in hand. On all GPUs of a machine:
torchrun --nproc-per-node=gpu -m vtm.predict model.safetensors videos/ --csv table.csv
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vtm.cli.errors import concise_errors, interruption
from vtm.system.processes import process_rank

if TYPE_CHECKING:  # what the command needs is imported when its arguments are known to be right
    from vtm.inference.predictor import Predictor
    from vtm.inference.table import PredictionTable

_EPILOG = """\
A table (--csv) has the columns

  video         as it was named on the command line
  prediction    the class of highest probability, or the value of a regression
  probability   of that class
  windows       how many clips of the video voted
  seconds       its length
  short         1 if it has fewer frames to look at than a clip has steps; padding or repeated frames fill the rest
  damaged       1 if frames could not be decoded; their nearest neighbours stand in for them
  error         why there is no prediction; the other columns are empty then, but for video and model
  model         what predicted: the first digits of the SHA-256 of its weights, and +stream
  prediction_2, probability_2, ...   the other classes, as many as --top says and the model has

and a row for each video that is done. The same command goes on with the videos that are not in the table,
and tries those again that have an error. Several processes share the videos when they write the same table, here
those that torchrun starts, one per GPU:

  python -m vtm.predict scene.safetensors videos/ --csv scenes.csv
  torchrun --nproc-per-node=gpu -m vtm.predict scene.safetensors videos/ --csv scenes.csv

The exit status is 1 where a video could not be predicted; with torchrun it is 0, since another would stop the others.
"""


def main() -> None:
    """Predict what the command line names; end with an error if a video could not be read."""
    arguments = _parser().parse_args()
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what cannot be printed
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    with concise_errors():
        from vtm.video.listing import list_videos

        sys.exit(_run(arguments, list_videos(arguments.videos)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.predict",
        description="Say what is in videos, by a model that vtm.export has written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file, or a folder with a model.safetensors")
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="files, folders, or patterns in quotation marks")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each video")
    parser.add_argument("--csv", metavar="FILE", help="write a table instead, or go on with one; see below")
    parser.add_argument("--top", metavar="N", type=_count, default=5, help="classes to list of each video (default 5)")
    parser.add_argument("--timeline", action="store_true", help="also say what each window of a video gives")
    parser.add_argument("--stream", action="store_true", help="one pass over a frame per second of the whole video")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1; by default a GPU of each process, or the CPU")
    parser.add_argument("--encoder-checkpoint", metavar="FILE", help="where the encoder's own weights lie now")
    return parser


def _count(text: str) -> int:
    """Read a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace, videos: Sequence[Path]) -> int:
    """Predict all videos; return the exit status."""
    processes = process_rank().world_size
    if processes > 1 and arguments.csv is None:
        raise ValueError(f"{processes} processes share the videos by the table that they write: give --csv FILE")
    model = _load(arguments)
    _check(model, arguments)
    with nullcontext() if arguments.csv is None else _table(model, videos, arguments) as table:
        if table is not None:
            if processes > 1 and not table.locked:
                raise ValueError(
                    f"{processes} processes cannot share {table.path} there: give --csv FILE on another disk"
                )
            if known := _known(videos, table):
                _say(f"{known} of {len(videos)} are in {table.path} already")
        try:
            failed = _predict_all(model, videos, arguments, table)
        except BaseException as stop:
            if (status := interruption(stop)) is None:
                raise
            found = table and f" with {_known(videos, table)} of {len(videos)} videos in {table.path}"
            _say(f"interrupted{found}; the same command goes on" if found else "interrupted")
            return status
        if table is not None and (others := len(videos) - _known(videos, table)):
            _say(f"{others} of {len(videos)} videos are in the hands of other processes")
    return int(failed and processes == 1)  # else a process that ends in failure would take the others along


def _table(model: Predictor, videos: Sequence[Path], arguments: argparse.Namespace) -> PredictionTable:
    from vtm.inference.table import PredictionTable

    way = model.identity + ("+stream" if arguments.stream else "")
    classes = 1 if model.labels is None else min(arguments.top, len(model.labels))
    return PredictionTable(Path(arguments.csv), way, classes=classes, again=videos)


def _known(videos: Sequence[Path], table: PredictionTable) -> int:
    """Count the videos of this command that are in a table, which may have others too."""
    return len(table.videos.intersection(map(str, videos)))


def _load(arguments: argparse.Namespace) -> Predictor:
    import torch

    from vtm.inference.predictor import load

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        device = f"cuda:{process_rank().local_rank % max(1, torch.cuda.device_count())}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} is not to be had here ({reason}); --device cpu is") from None
    return load(arguments.model, encoder_checkpoint=arguments.encoder_checkpoint, device=device)


def _check(model: Predictor, arguments: argparse.Namespace) -> None:
    """Refuse at once what the model would refuse for every video."""
    if model.encoder.frames is None:
        raise ValueError(
            f"{arguments.model} was trained on features ({model.encoder.key}) and cannot look at videos: give a model "
            "that was trained with an encoder"
        )
    if arguments.stream:
        try:
            model.open_stream()
        except ValueError as error:
            raise ValueError(f"{arguments.model} cannot be used with --stream: {error}") from None


def _predict_all(
    model: Predictor, videos: Sequence[Path], arguments: argparse.Namespace, table: PredictionTable | None
) -> bool:
    """Predict the videos that are not in a table, print each, and add it; return whether some failed."""
    from vtm.inference.prediction import as_dict, as_lines, printable
    from vtm.inference.table import predict_videos
    from vtm.system.progress import Progress

    failed: dict[Path, str] = {}
    shown = {"top": arguments.top, "timeline": arguments.timeline}
    before = 0 if table is None else _known(videos, table)
    try:
        with Progress("predict", len(videos), done=before) as progress:

            def seen(video: Path, seconds: float, total: float) -> None:  # which matters for videos of hours
                note = f"{printable(video.name)}: {seconds:.0f} of {total:.0f} s"
                progress.advance(note, to=progress.done)

            for video, answer in predict_videos(model, videos, table, stream=arguments.stream, seen=seen):
                if isinstance(answer, str):
                    failed[video] = answer
                elif arguments.json:
                    progress.print(json.dumps(as_dict(answer, **shown), ensure_ascii=False))
                elif table is None or arguments.timeline:
                    progress.print("\n".join(as_lines(answer, **shown)))
                note = f"{len(failed)} failed" if failed else ""
                progress.advance(note, to=None if table is None else _known(videos, table))
    finally:
        for video, reason in failed.items():
            _say(printable(f"failed: {video}: {reason}"))
        if failed:
            _say(f"{len(failed)} of {len(videos)} videos could not be predicted")
    return bool(failed)


def _say(text: str) -> None:
    """Write a line in one piece, so that those of several processes do not mix."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
