"""Show what a model merges in a video: python -m vtm.visualize model.safetensors video.mp4 --out pictures.

It draws figures 3, 5 and 7 of the paper for any video, the targets, the saliency and the merged groups of every block:
as a sheet for print (PNG and PDF), as a video (MP4), and as a page to look at in a browser (HTML, one file, no server).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vtm.cli.errors import concise_errors

if TYPE_CHECKING:  # what the command needs is imported when its arguments are known to be right
    from vtm.inference.predictor import Predictor

# and how the names of their files end
KINDS = {"sheet": ("_sheet.png", "_sheet.pdf"), "video": ("_overlay.mp4",), "page": ("_page.html",)}


def main() -> None:
    """Draw what the command line names, and print the files."""
    given = _arguments()
    with concise_errors():
        import torch

        from vtm.inference.predictor import load

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load(given.model, encoder_checkpoint=given.encoder_checkpoint, device=device)
        kinds = KINDS if given.only is None else (given.only,)
        for path in visualize(model, given.video, given.out, start=given.start, kinds=kinds):
            print(path, flush=True)


def visualize(
    model: Predictor, video: Path, out: Path, *, start: float = 0.0, kinds: Iterable[str] = tuple(KINDS)
) -> Iterator[Path]:
    """Write pictures of a clip, one kind after the other; yield the files of each.

    Args:
        model: looks at the clip.
        video: any video.
        out: the folder of the files.
        start: of the clip in seconds, for a model of windows.
        kinds: some of `KINDS`.

    Raises:
        VideoError: if the video cannot be read.
        ValueError: if there is no clip at `start`.
    """
    from vtm.pictures.overlay import write_overlay
    from vtm.pictures.page import write_page
    from vtm.pictures.sheet import write_sheet

    view = model.trace(video, start=start)
    name = video.name + (f"_{start:g}s" if start else "")
    write = {"sheet": write_sheet, "video": write_overlay, "page": write_page}
    for kind in kinds:
        paths = [out / f"{name}{end}" for end in KINDS[kind]]
        write[kind](paths[0], view, title=video.name)
        yield from paths


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.visualize",
        description="Show what a model merges in a video: targets, saliency and merged groups of every block, as a "
        "sheet (PNG and PDF), a video (MP4) and a page (HTML, one file that needs no server).",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a file that python -m vtm.export has written")
    parser.add_argument("video", metavar="VIDEO", type=Path, help="any video")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where the pictures go")
    parser.add_argument(
        "--start", metavar="SECONDS", type=float, default=0.0, help="of the clip, for a model of windows (0)"
    )
    parser.add_argument("--only", choices=KINDS, help="one kind of picture; default: all")
    parser.add_argument("--encoder-checkpoint", metavar="FILE", help="where the encoder's own weights lie now")
    return parser.parse_args()


if __name__ == "__main__":
    main()
