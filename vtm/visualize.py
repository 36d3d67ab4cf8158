"""Draw what a model merges in a video: python -m vtm.visualize model.safetensors video.mp4 --out pictures.

It draws figures 3, 5 and 7 of the paper for any video: the targets, the saliency and the merged groups of every block,
as a sheet for print (PNG and PDF), as a video (MP4), and as a page for a browser (HTML, one file, no server).
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vtm.cli.errors import concise_errors

if TYPE_CHECKING:  # imported only when the arguments are known to be valid
    from vtm.inference.predictor import Predictor
    from vtm.pictures.selection import Selection

# kinds of pictures, and how the names of their files end
KINDS = {"sheet": ("_sheet.png", "_sheet.pdf"), "video": ("_overlay.mp4",), "page": ("_page.html",)}


def main() -> None:
    """Draw what the command line selects, and print the names of the files."""
    given = _arguments()
    for stream in (sys.stdout, sys.stderr):  # file names may contain bytes that cannot be printed
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    with concise_errors():
        import torch

        from vtm.inference.predictor import load
        from vtm.pictures.selection import Selection
        from vtm.system.threads import use_threads

        selection = Selection(given.blocks, given.layers, given.frames, given.scale)
        use_threads()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load(given.model, encoder_checkpoint=given.encoder_checkpoint, device=device)
        kinds = KINDS if given.only is None else (given.only,)
        for path in visualize(model, given.video, given.out, start=given.start, kinds=kinds, selection=selection):
            print(path, flush=True)


def visualize(
    model: Predictor,
    video: Path,
    out: Path,
    *,
    start: float | None = None,
    kinds: Iterable[str] = tuple(KINDS),
    selection: Selection | None = None,
) -> Iterator[Path]:
    """Write pictures of a clip, one kind after the other, and yield the files of each.

    Args:
        model: model that merges the tokens of the clip.
        video: video file.
        out: folder to write to.
        start: start of the clip in seconds, for a model that sees clips of a video; None for the first that it
            predicts from.
        kinds: some of `KINDS`.
        selection: blocks, layers, frames and scale to draw; None for all.

    Raises:
        VideoError: if the video cannot be read.
        ValueError: if there is no clip at `start`, or the clip lacks a block or a layer that is selected.
    """
    from vtm.inference.prediction import printable
    from vtm.pictures.overlay import write_overlay
    from vtm.pictures.page import write_page
    from vtm.pictures.sheet import write_sheet

    view = model.trace(video, start=start)
    name = video.name + (f"_{start:g}s" if start else "")
    write = {"sheet": write_sheet, "video": write_overlay, "page": write_page}
    for kind in kinds:
        paths = [out / f"{name}{end}" for end in KINDS[kind]]
        write[kind](paths[0], view, title=printable(video.name), selection=selection)
        yield from paths


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.visualize",
        description="Draw what a model merges in a video: targets, saliency and merged groups of every block, as a "
        "sheet (PNG and PDF), a video (MP4) and a page (HTML, one file that needs no server).",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a file written by python -m vtm.export")
    parser.add_argument("video", metavar="VIDEO", type=Path, help="a video file")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--start",
        metavar="SECONDS",
        type=float,
        help="start of the clip, for a model that sees clips of a video (default: the first that it predicts from)",
    )
    parser.add_argument("--only", choices=KINDS, help="one kind of picture; default: all")
    parser.add_argument(
        "--blocks", metavar="N,N", type=_numbers, help="blocks to draw, counted from 1, such as 1,3; default: all"
    )
    parser.add_argument(
        "--layers",
        metavar="NAME,NAME",
        type=_names,
        help="layers to draw of each block, some of saliency,targets,groups; default: all",
    )
    parser.add_argument(
        "--frames",
        metavar="N",
        type=_count,
        default=8,
        help="maximum number of frames of the sheet, spread evenly over the clip (8); video and page always show all",
    )
    parser.add_argument(
        "--scale",
        choices=("all", "block"),
        default="all",
        help="draw saliency on one scale for all blocks of the model, or a separate one for each (all)",
    )
    parser.add_argument(
        "--encoder-checkpoint",
        metavar="FILE",
        help="file of the encoder's weights, if the training used such a file",
    )
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    if not all(number.strip().isdecimal() for number in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, such as 1,3, got {text}")
    return tuple(map(int, text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
