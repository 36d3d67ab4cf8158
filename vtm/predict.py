"""Predict the class or the value of videos: python -m vtm.predict model.safetensors video.mp4.

Any number of processes, on one or more machines that share the file, can write one table (`--csv`) at the same time:
each takes videos that no other has taken. After an interruption the same command continues, and repeats only the
unfinished videos. On all GPUs of a machine:
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
from vtm.system.threads import use_threads

if TYPE_CHECKING:  # slow to import, so only after the arguments are checked
    from vtm.inference.predictor import Predictor
    from vtm.inference.table import PredictionTable

_SHOWN = 10  # failures that are printed although the table has them
_EPILOG = """\
A table (--csv) has one row per finished video, with the columns

  video         path as given on the command line, after an apostrophe if it looks like a formula
  prediction    class with the highest probability, or the value of a regression
  probability   probability of this class
  windows       number of clips whose scores were averaged
  seconds       length of the video
  short         1 if the video has fewer frames than a clip has steps; padding or repeated frames fill the rest
  damaged       1 if some frames could not be decoded; their nearest neighbors replace them
  error         why there is no prediction; all columns except video and model are then empty
  model         first digits of the SHA-256 of the model's weights, followed by +stream with --stream
  prediction_2, probability_2, ...   the next classes, up to --top in all

Run the same command again to continue: it predicts the videos that are not in the table yet, and retries those with
an error. Processes that write the same table share the videos, such as one process per GPU, started by torchrun:

  python -m vtm.predict scene.safetensors videos/ --csv scenes.csv
  torchrun --nproc-per-node=gpu -m vtm.predict scene.safetensors videos/ --csv scenes.csv

The exit status is 1 if a video could not be predicted. With torchrun it is 0, because torchrun stops all processes
when one fails.
"""


def main() -> None:
    """Predict the videos named on the command line; exit with status 1 if one could not be predicted."""
    arguments = _parser().parse_args()
    for stream in (sys.stdout, sys.stderr):  # file names may contain bytes that cannot be printed
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    with concise_errors():
        from vtm.video.listing import list_videos

        sys.exit(_run(arguments, list_videos(arguments.videos)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.predict",
        description="Predict the class or the value of videos, with a model that vtm.export has written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a .safetensors file, or a folder that contains model.safetensors"
    )
    parser.add_argument(
        "videos", metavar="VIDEO", nargs="+", help="video files, folders, or quoted patterns: 'videos/*.mp4'"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per video")
    parser.add_argument("--csv", metavar="FILE", help="write a table instead, or continue one; see below")
    parser.add_argument(
        "--top", metavar="N", type=_count, default=5, help="number of classes to list per video (default: 5)"
    )
    parser.add_argument("--timeline", action="store_true", help="also print the prediction for each window of a video")
    parser.add_argument(
        "--stream", action="store_true", help="process the whole video in one pass, at one frame per second"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:1 (default: one GPU per process if there are GPUs, else cpu)",
    )
    parser.add_argument(
        "--encoder-checkpoint",
        metavar="FILE",
        help="file of the encoder's weights, if the training used such a file",
    )
    return parser


def _count(text: str) -> int:
    """Parse a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace, videos: Sequence[Path]) -> int:
    """Predict all videos; return the exit status."""
    processes = process_rank().world_size
    if processes > 1 and arguments.csv is None:
        raise ValueError(f"{processes} processes can only share the videos by writing one table; add --csv FILE")
    use_threads()
    model = _load(arguments)
    _check(model, arguments)
    with nullcontext() if arguments.csv is None else _table(model, videos, arguments) as table:
        if table is not None:
            if processes > 1 and not table.locked:
                raise ValueError(
                    f"{processes} processes cannot share {table.path}, whose file system has no locks; choose a --csv "
                    "FILE on another disk"
                )
            if table.known:
                _say(f"{table.known} of {len(videos)} videos are already in {table.path}")
        try:
            failed = _predict_all(model, videos, arguments, table)
        except BaseException as stop:
            if (status := interruption(stop)) is None:
                raise
            if table is None:
                _say("interrupted")
            else:
                done = f"{table.known} of {len(videos)} videos in {table.path}"
                _say(f"interrupted with {done}; run the same command to continue")
            return status
        if table is not None and (others := len(videos) - table.known):
            _say(f"{others} of {len(videos)} videos are being predicted by other processes")
    return int(failed and processes == 1)  # torchrun stops all processes when one fails


def _table(model: Predictor, videos: Sequence[Path], arguments: argparse.Namespace) -> PredictionTable:
    from vtm.inference.table import PredictionTable

    name = model.identity + ("+stream" if arguments.stream else "")
    classes = 1 if model.labels is None else min(arguments.top, len(model.labels))
    return PredictionTable(Path(arguments.csv), name, classes=classes, again=videos)


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
        raise ValueError(f"--device {device} cannot be used ({reason}); use --device cpu") from None
    return load(arguments.model, encoder_checkpoint=arguments.encoder_checkpoint, device=device)


def _check(model: Predictor, arguments: argparse.Namespace) -> None:
    """Raise the errors that would occur for every video."""
    if model.encoder.frames is None:
        raise ValueError(
            f"{arguments.model} was trained on features ({model.encoder.key}) and cannot read videos; use a model that "
            "was trained with an encoder"
        )
    if arguments.stream:
        try:
            model.open_stream()
        except ValueError as error:
            raise ValueError(f"{arguments.model} cannot be used with --stream: {error}") from None


def _predict_all(
    model: Predictor, videos: Sequence[Path], arguments: argparse.Namespace, table: PredictionTable | None
) -> bool:
    """Predict the videos that are not in the table, print or store each, and return whether any failed."""
    from vtm.inference.prediction import as_dict, as_lines, printable
    from vtm.inference.table import predict_videos
    from vtm.system.progress import Progress

    failed: dict[Path, str] = {}
    shown = {"top": arguments.top, "timeline": arguments.timeline}
    try:
        with Progress("predict", len(videos), done=0 if table is None else table.known) as progress:

            def seen(video: Path, seconds: float, total: float) -> None:  # progress within a long video
                note = f"{printable(video.name)}: {seconds:.0f} of {total:.0f} s"
                progress.advance(note, to=progress.done)

            for video, answer in predict_videos(model, videos, table, stream=arguments.stream, seen=seen):
                if isinstance(answer, str):
                    failed[video] = answer
                elif arguments.json:
                    progress.print(json.dumps(as_dict(answer, **shown), ensure_ascii=False, allow_nan=False))
                elif table is None or arguments.timeline:
                    progress.print("\n".join(as_lines(answer, **shown)))
                note = f"{len(failed)} failed" if failed else ""
                progress.advance(note, to=None if table is None else table.known)
    finally:
        for video, reason in list(failed.items())[: None if table is None else _SHOWN]:
            _say(printable(f"failed: {video}: {reason}"))
        if failed:
            reasons = "" if table is None else f"; the column error of {table.path} has the reasons"
            _say(f"{len(failed)} of {len(videos)} videos could not be predicted{reasons}")
    return bool(failed)


def _say(text: str) -> None:
    """Write a line in one call, so that lines of several processes do not mix."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
