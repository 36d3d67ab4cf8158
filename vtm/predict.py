"""Say what is in videos: python -m vtm.predict model.safetensors video.mp4."""

from __future__ import annotations

import argparse
import glob
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vtm.errors import errors_in_one_sentence

if TYPE_CHECKING:  # what the command needs is imported when its arguments are known to be right
    from vtm.prediction import Prediction
    from vtm.predictor import Predictor
    from vtm.progress import Progress


def main() -> None:
    """Predict what the command line names; end with an error if a video could not be read."""
    arguments = _parser().parse_args()
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what cannot be printed
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    with errors_in_one_sentence():
        sys.exit(_run(arguments, list_videos(arguments.videos)))


def list_videos(names: Iterable[str]) -> list[Path]:
    """List files, those of folders, and those that match patterns, each once and in the order of the names.

    Raises:
        ValueError: if a name is none of these, or nothing is there.
    """
    from vtm.data.listing import is_video, walk

    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [file for file in walk(path) if is_video(file)]
        else:
            matches = sorted(map(Path, glob.glob(name, recursive=True)))
            files = [path] if path.exists() else [file for file in matches if file.is_file() and is_video(file)]
        if not files:
            what = (
                "no video in or below the folder" if path.is_dir() else "no such file or folder, and no video matches"
            )
            raise ValueError(f"{name}: {what}")
        found |= dict.fromkeys(files)
    return list(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.predict",
        description="Say what is in videos, by a model that vtm.export has written.",
        epilog="Example: python -m vtm.predict scene.safetensors videos/ --csv scenes.csv",
    )
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file, or a folder with a model.safetensors")
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="files, folders, or patterns in quotation marks")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each video")
    parser.add_argument("--csv", metavar="FILE", help="write a table; videos that are in it already are left out")
    parser.add_argument("--top", metavar="N", type=_count, default=5, help="classes to print of each video (default 5)")
    parser.add_argument("--timeline", action="store_true", help="also say what each window of a video gives")
    parser.add_argument("--stream", action="store_true", help="one pass over a frame per second of the whole video")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1; the first GPU, or else the CPU, by default")
    parser.add_argument("--encoder-checkpoint", metavar="FILE", help="where the encoder's own weights lie now")
    return parser


def _count(text: str) -> int:
    """Read a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace, videos: Sequence[Path]) -> int:
    """Predict all videos; return the exit status."""
    model = _load(arguments)
    if arguments.csv is None:
        return _predict_all(model, videos, arguments, lambda prediction: None)
    from vtm.prediction_table import PredictionTable

    way = model.identity + ("+stream" if arguments.stream else "")
    with PredictionTable(Path(arguments.csv), way) as table:
        left = [video for video in videos if str(video) not in table.videos]
        if len(left) < len(videos):
            print(f"{len(videos) - len(left)} of {len(videos)} are in {arguments.csv} already", file=sys.stderr)
        return _predict_all(model, left, arguments, table.add)


def _load(arguments: argparse.Namespace) -> Predictor:
    import torch

    from vtm.predictor import load

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} is not to be had here ({reason}); --device cpu is") from None
    return load(arguments.model, encoder_checkpoint=arguments.encoder_checkpoint, device=device)


def _predict_all(
    model: Predictor,
    videos: Sequence[Path],
    arguments: argparse.Namespace,
    keep: Callable[[Prediction], None],
) -> int:
    """Predict videos, print each and hand it on to `keep`; return the exit status."""
    import torch

    from vtm.data.video import VideoError
    from vtm.progress import Progress

    failed: list[str] = []
    with Progress("predict", len(videos)) as progress:
        for video in videos:
            seen = partial(_show, progress, video.name)
            try:
                prediction = model.predict(video, stream=arguments.stream, seen=seen)
            except torch.OutOfMemoryError:
                failed.append(f"{video}: out of memory on {model.device}; --device cpu has another")
            except (VideoError, OSError, ValueError) as error:
                failed.append(str(error) if str(video) in str(error) else f"{video}: {error}")
            else:
                progress.print("\n".join(_lines(prediction, arguments)))
                keep(prediction)
            progress.advance(f"{len(failed)} failed" if failed else "")
    for reason in failed:
        print(f"failed: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(videos)} videos could not be predicted", file=sys.stderr)
    return int(bool(failed))


def _show(progress: Progress, name: str, seconds: float, total: float) -> None:
    """Say how far a video is, which matters for those of hours."""
    progress.advance(f"{name}: {seconds:.0f} of {total:.0f} s", to=progress.done)


def _lines(prediction: Prediction, arguments: argparse.Namespace) -> Iterator[str]:
    """Say in text, or in one line of JSON, what a video is predicted to be."""
    if arguments.json:
        yield json.dumps(as_dict(prediction, top=arguments.top, timeline=arguments.timeline), ensure_ascii=False)
        return
    regression = prediction.labels is None
    windows = f"{len(prediction.windows)} windows" if len(prediction.windows) > 1 else "1 window"
    facts = f"{prediction.seconds:.1f} s, {windows}" + (", damaged" if prediction.damaged else "")
    yield f"{prediction.video}  {_text(prediction.top(arguments.top), regression)}  ({facts})"
    if arguments.timeline:
        for window, best in prediction.timeline(1):
            yield f"  {window.start:9.1f} to {window.end:.1f} s  {_text(best, regression)}"


def as_dict(prediction: Prediction, *, top: int, timeline: bool) -> dict[str, Any]:
    """Put a prediction into plain containers, as `--json` prints it."""
    regression = prediction.labels is None
    found: dict[str, Any] = {"video": prediction.video, "seconds": round(prediction.seconds, 3)}
    found |= {"damaged": prediction.damaged, **_answer(prediction.top(top), regression)}
    found["windows"] = len(prediction.windows)
    if timeline:
        found["timeline"] = [
            {"start": window.start, "end": round(window.end, 3), **_answer(best, regression)}
            for window, best in prediction.timeline(top)
        ]
    return found


def _answer(best: Sequence[tuple[str, float]], regression: bool) -> dict[str, Any]:
    name, score = best[0]
    if regression:
        return {"value": score}
    return {"label": name, "probability": score, "top": [{"label": k, "probability": p} for k, p in best]}


def _text(best: Sequence[tuple[str, float]], regression: bool) -> str:
    return ", ".join(f"{score:.4g}" if regression else f"{name} {score:.3f}" for name, score in best)


if __name__ == "__main__":
    main()
