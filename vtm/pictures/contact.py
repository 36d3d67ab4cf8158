"""Draw what a compressor did to a clip on one contact sheet: which frames were kept, and which tokens were merged."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vtm.pictures.canvas import DPI, Canvas
from vtm.pictures.captions import clock_times, shortened
from vtm.pictures.colors import PALETTE, Bytes, group_colors
from vtm.pictures.layers import DROPPED, fill_groups, fill_shades
from vtm.pictures.legend import LETTER
from vtm.pictures.view import BlockView
from vtm.system.atomic import write_atomically

_WIDTH, _MARGIN, _GAP = 1848, 36, 12  # of what is inside the margins
_SMALL, _NORMAL, _LARGE = 22, 28, 36  # pixels of type
_LINE = 1.35  # in sizes of type
_STAMP = 34  # pixels below a picture for its time
_BORDER = 5
_TALLEST = 2.0  # height of a picture in widths; taller ones become narrower
_MOST_FRAMES, _MOST_LARGER = 120, 48  # that are drawn
_KEPT: Bytes = np.array([0, 158, 115], dtype=np.uint8)
_AXIS: Bytes = np.array([190, 190, 190], dtype=np.uint8)
_FADED = 0.3  # share of a frame that was left out; the rest is white


@dataclass(frozen=True)
class TokenView:
    """The frames of tokens of a clip, and what became of each token.

    Attributes:
        frames: picture of each frame of tokens, (t, 3, Y, X) uint8, what the model sees of it.
        times: their times in seconds, (t,), ascending.
        seconds: length of the video.
        group: token that each token became a part of, (t, h, w) int64; -1 for tokens left out.
    """

    frames: Tensor
    times: Sequence[float]
    seconds: float
    group: Tensor

    @property
    def kept(self) -> Tensor:
        """Which frames have tokens left, (t,) bool."""
        return (self.group >= 0).flatten(1).any(1)


def write_contact_sheet(path: Path, view: TokenView, *, title: str, lines: Sequence[str] = ()) -> None:
    """Write the contact sheet as a PNG file, see `draw_contact_sheet`."""
    content = io.BytesIO()
    picture = draw_contact_sheet(view, title=title, lines=lines)
    Image.fromarray(picture).save(content, "png", dpi=(DPI, DPI), compress_level=4)
    write_atomically(path, content.getvalue())


def draw_contact_sheet(view: TokenView, *, title: str, lines: Sequence[str] = ()) -> Bytes:
    """Draw all frames along the time line, and the tokens of those that were kept, as a picture (Y, X, 3).

    At most 120 frames are drawn, and 48 with their tokens, evenly spaced, so the size is bounded.

    Args:
        view: frames and tokens.
        title: name of the clip.
        lines: what else to write at the top, such as the question.
    """
    kept = view.kept
    is_merged = _counts(view.group)[view.group.clamp(min=0)] > 1
    shows_tokens = bool((is_merged | (view.group < 0))[kept].any())
    head = [line for text in lines for line in wrap(text, int(_WIDTH / _NORMAL / LETTER))[:3]]
    frames, tokens = _Frames(view), _Tokens(view) if shows_tokens else None
    legend = _legend(view, shows_tokens)
    top = _MARGIN + round(_LARGE * _LINE) + round(len(head) * _NORMAL * _LINE) + 24
    middle = top + frames.height
    bottom = middle + (0 if tokens is None else tokens.height)
    canvas = Canvas(_WIDTH + 2 * _MARGIN, bottom + round(len(legend) * _SMALL * _LINE) + _MARGIN)
    canvas.write(_MARGIN, _MARGIN, shortened(title, int(_WIDTH / _LARGE / LETTER)), _LARGE, va="top", weight="bold")
    for number, line in enumerate(head):
        y = _MARGIN + _LARGE * _LINE + (number + 0.5) * _NORMAL * _LINE
        canvas.write(_MARGIN, y, line, _NORMAL, va="center_baseline", color="0.25")
    frames.draw(canvas, top)
    if tokens is not None:
        tokens.draw(canvas, middle)
    for number, (symbol, text) in enumerate(legend):
        y = bottom + number * _SMALL * _LINE
        canvas.show(_MARGIN, round(y + 0.15 * _SMALL * _LINE), symbol)
        canvas.write(_MARGIN + 4 * _SMALL, y + _SMALL * _LINE / 2, text, _SMALL, va="center_baseline", color="0.25")
    return canvas.picture()


class _Frames:
    """All frames in rows, below an axis of time; those that were left out are faded."""

    def __init__(self, view: TokenView) -> None:
        count = len(view.frames)
        self.view, self.steps = view, _spread(count, _MOST_FRAMES)
        self.columns = min(12, max(6, len(self.steps)))
        self.cell = _Cell(view, self.columns)
        num_kept = int(view.kept.sum())
        self.heading = (
            f"All {count} frames were kept" if num_kept == count else f"{num_kept} of {count} frames were kept"
        )
        if len(self.steps) < count:
            self.heading += f" ({len(self.steps)} are drawn)"

    @property
    def height(self) -> int:
        """Height in pixels."""
        return 110 + self.cell.rows_height(len(self.steps))

    def draw(self, canvas: Canvas, y: int) -> None:
        """Draw the section."""
        canvas.write(_MARGIN, y, self.heading, _NORMAL, va="top", weight="bold")
        _axis(canvas, y + 62, self.view)
        kept = self.view.kept.tolist()
        some = not all(kept)
        pictures = self.cell.scale(self.view.frames[self.steps])
        stamps = clock_times(self.view.times)
        for number, (step, picture) in enumerate(zip(self.steps, pictures, strict=True)):
            if not kept[step]:
                gray = picture @ np.array([0.299, 0.587, 0.114]) * _FADED + 255 * (1 - _FADED)
                picture = gray.round().astype(np.uint8)[..., None].repeat(3, axis=-1)
            elif some:
                picture = picture.copy()
                for edge in (np.s_[:_BORDER], np.s_[-_BORDER:], np.s_[:, :_BORDER], np.s_[:, -_BORDER:]):
                    picture[edge] = _KEPT
            style = {"weight": "bold", "color": "0.1"} if kept[step] and some else {"color": "0.25"}
            if not kept[step]:
                style = {"color": "0.65"}
            self.cell.place(canvas, y + 110, number, picture, stamps[step], style)


class _Tokens:
    """The kept frames, larger, with the tokens that were merged in the color of their group."""

    def __init__(self, view: TokenView) -> None:
        kept = view.kept.nonzero().flatten().tolist()
        self.view, self.steps = view, [kept[i] for i in _spread(len(kept), _MOST_LARGER)]
        self.columns = 4 if len(self.steps) <= 8 else 6
        self.cell = _Cell(view, self.columns)
        total, left = view.group[view.kept].numel(), len(_counts(view.group))
        whose = "Their" if len(kept) == len(view.frames) else "In the kept frames,"
        self.heading = f"{whose} {total} tokens became {left}"
        if len(self.steps) < len(kept):
            self.heading += f" ({len(self.steps)} frames are drawn)"

    @property
    def height(self) -> int:
        """Height in pixels."""
        return 24 + 56 + self.cell.rows_height(len(self.steps))

    def draw(self, canvas: Canvas, y: int) -> None:
        """Draw the section."""
        canvas.write(_MARGIN, y + 24, self.heading, _NORMAL, va="top", weight="bold")
        group = self.view.group[self.steps]
        frames = self.view.frames[self.steps]
        block, dropped = _block(group)
        height, width = (
            max(1, pixels // tokens) * tokens for pixels, tokens in zip(self.cell.shape, group.shape[1:], strict=True)
        )
        pictures = _resized(frames, (height, width))
        drawn = fill_groups(pictures, block.group.numpy(), group_colors(frames, block), dropped=dropped.numpy())
        stamps = clock_times(self.view.times)
        for number, (step, picture) in enumerate(zip(self.steps, drawn, strict=True)):
            tokens = self.view.group[step]
            text = f"{stamps[step]}: {tokens.numel()} → {len(tokens[tokens >= 0].unique())}"
            self.cell.place(canvas, y + 24 + 56, number, picture, text, {"color": "0.25"})


class _Cell:
    """A place for a picture and its time, in rows of some columns."""

    def __init__(self, view: TokenView, columns: int) -> None:
        self.columns = columns
        self.width = (_WIDTH + _GAP) // columns - _GAP
        height, width = view.frames.shape[2:]
        scale = min(self.width / width, _TALLEST * self.width / height)
        self.shape = max(1, round(height * scale)), max(1, round(width * scale))

    def rows_height(self, count: int) -> int:
        """Height of the rows of so many pictures."""
        return -(-count // self.columns) * (self.shape[0] + _STAMP + _GAP)

    def scale(self, frames: Tensor) -> Bytes:
        """Scale frames (n, 3, Y, X) to pictures (n, Y', X', 3)."""
        return _resized(frames, self.shape)

    def place(self, canvas: Canvas, top: int, number: int, picture: Bytes, text: str, style: dict[str, str]) -> None:
        """Show the picture with this number, with text below it."""
        row, column = divmod(number, self.columns)
        x = _MARGIN + column * (self.width + _GAP)
        y = top + row * (self.shape[0] + _STAMP + _GAP)
        canvas.show(x + (self.width - picture.shape[1]) // 2, y, picture)
        canvas.write(
            x + self.width / 2, y + self.shape[0] + _STAMP / 2, text, _SMALL, ha="center", va="center", **style
        )


def _axis(canvas: Canvas, y: int, view: TokenView) -> None:
    """Draw the length of the video, with a mark for each frame, and a large one for those that were kept."""
    start, end = _MARGIN + 90, _MARGIN + _WIDTH - 130
    canvas.write(_MARGIN, y + 10, "0 s", _SMALL, va="center")
    canvas.write(end + 16, y + 10, clock_times([view.seconds])[0], _SMALL, va="center")
    canvas.pixels[y + 9 : y + 12, start:end] = _AXIS
    order = sorted(zip(view.kept.tolist(), view.times, strict=True))  # those that were kept above the others
    for kept, time in order:
        x = start + round((end - start - 6) * min(1.0, time / max(view.seconds, 1e-9)))
        canvas.pixels[y + (0 if kept else 5) : y + (21 if kept else 16), x : x + (6 if kept else 3)] = (
            _KEPT if kept else _AXIS
        )


def _legend(view: TokenView, shows_tokens: bool) -> list[tuple[Bytes, str]]:
    """List symbols with what they mean."""
    entries = []
    if not bool(view.kept.all()):
        entries.append((_symbol([(120, 140, 160)], [_KEPT]), "Kept: the language model reads tokens of this frame."))
        entries.append((_symbol([(222, 222, 222)], [(222, 222, 222)]), "Faded: left out, with all of its tokens."))
    if shows_tokens:
        if bool((_counts(view.group) > 1).any()):
            shades = fill_shades()
            across = ", also across frames" if _merges_frames(view.group) else ""
            text = f"Merged: tokens of the same inner and border color became one token{across}."
            entries.append((_symbol(list(shades[[0, 4, 0]]), list(PALETTE[[0, 4, 0]])), text))
            entries.append((_symbol([(120, 140, 160)], [(120, 140, 160)]), "Natural color: a token on its own."))
        if bool((view.group[view.kept] < 0).any()):
            entries.append((_symbol([DROPPED], [DROPPED]), "Blank: a token that was left out."))
        entries.append(
            (_symbol([], []), "Below a larger frame: its time, and the number of its tokens before → after.")
        )
    else:
        entries.append((_symbol([], []), "No tokens were merged."))
    return entries


def _symbol(inner: Sequence[Sequence[int] | Bytes], border: Sequence[Sequence[int] | Bytes]) -> Bytes:
    """Draw boxes in a row, as wide as three together; without any, nothing."""
    side, line = _SMALL, 4
    symbol = np.full((side, 3 * side, 3), 255, dtype=np.uint8)
    for number, (fill, edge) in enumerate(zip(inner, border, strict=True)):
        left, right = (round(3 * side * i / len(inner)) for i in (number, number + 1))
        symbol[:, left:right] = edge
        symbol[line:-line, left + line : right - line] = fill
    return symbol


def _block(group: Tensor) -> tuple[BlockView, Tensor]:
    """Number the groups (t, h, w) of some frames anew; tokens that were left out get groups of their own."""
    dropped = group < 0
    numbers, index = group[~dropped].unique(return_inverse=True)
    anew = torch.empty_like(group)
    anew[~dropped] = index
    anew[dropped] = len(numbers) + torch.arange(int(dropped.sum()))
    return BlockView(anew, torch.zeros_like(dropped), None, len(numbers), None), dropped


def _merges_frames(group: Tensor) -> bool:
    """Return whether tokens of different frames are in one group."""
    per_frame = sum(len(frame[frame >= 0].unique()) for frame in group)
    return per_frame > len(group[group >= 0].unique())


def _counts(group: Tensor) -> Tensor:
    """Count the tokens of each group."""
    return torch.bincount(group[group >= 0])


def _spread(count: int, most: int) -> list[int]:
    """Return the indices of at most `most` of `count` frames, evenly spaced."""
    drawn = min(count, most)
    return [(2 * i + 1) * count // (2 * drawn) for i in range(drawn)]


def _resized(frames: Tensor, shape: tuple[int, int]) -> Bytes:
    pictures = F.interpolate(frames, shape, mode="bilinear", antialias=True)
    return pictures.movedim(1, -1).contiguous().numpy()
