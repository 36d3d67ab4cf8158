"""Show what a model merges in a video: python -m vtm.visualize model.safetensors video.mp4 --out pictures.

It draws figures 3, 5 and 7 of the paper for any video, the targets, the saliency and the merged groups of every block:
as a sheet for print (PNG), as a video (MP4), and as a page to look at in a browser (HTML, one file, no server).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vtm.errors import errors_in_one_sentence

KINDS = {"sheet": "_sheet.png", "video": "_overlay.mp4", "page": "_page.html"}  # and how the names of the files end


def main() -> None:
    """Draw what the command line names, and print the files."""
    given = _arguments()
    with errors_in_one_sentence():
        _run(given)


def _run(given: argparse.Namespace) -> None:
    # slow to import, and not needed for --help
    import torch

    from vtm.pictures import ClipView
    from vtm.pictures.film import write_film
    from vtm.pictures.page import write_page
    from vtm.pictures.sheet import write_sheet
    from vtm.predictor import load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(given.model, encoder_checkpoint=given.encoder_checkpoint, device=device)
    look = model.look(given.video, start=given.start)
    view = ClipView.of(
        look.frames, look.times, look.output, look.grid, window_frames=look.window_frames, prefix=look.prefix
    )
    title = Path(look.video).name
    name = Path(look.video).stem + (f"_{given.start:g}s" if given.start else "")
    for kind in KINDS if given.only is None else [given.only]:
        path = given.out / f"{name}{KINDS[kind]}"
        {"sheet": write_sheet, "video": write_film, "page": write_page}[kind](
            path, view, title=title, scores=look.scores
        )
        print(path, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.visualize",
        description="Show what a model merges in a video: targets, saliency and merged groups of every block, as a "
        "sheet (PNG), a video (MP4) and a page (HTML, one file that needs no server).",
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
