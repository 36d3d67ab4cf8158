"""Where the tokens of each video stand among the ids of a prompt, and which ids belong to a single frame."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vtm.compressors import Clip
from vtm.video_llm.readers import Encoded

Video = tuple[int, int, int]
_MORE_DIGITS = 6  # by which the number in the text of a frame may be longer than in that of the second


@dataclass(frozen=True)
class Piece:
    """A video, or images that stay as they are, among the ids of one row.

    Attributes:
        row: row of the batch.
        columns: columns of the placeholders, ascending, with those of newline tokens at the end.
        clip: visual tokens.
        compressed: whether it is a video.
    """

    row: int
    columns: Tensor
    clip: Clip
    compressed: bool = True


def locate_videos(is_placeholder: Tensor, encoded: Encoded) -> list[Piece]:
    """Give the placeholders (B, L), row by row, to the videos in their order."""
    extra = 0 if encoded.newline is None else len(encoded.newline)
    counts = [clip.num_tokens + extra for clip in encoded.clips]
    places = is_placeholder.nonzero()
    if len(places) != sum(counts):
        raise ValueError(
            f"expected {sum(counts)} placeholders for {len(counts)} videos ({', '.join(map(str, counts))}), got "
            f"{len(places)}; make the inputs with the processor of the model, and encode special tokens in questions "
            "as text"
        )
    pieces = []
    for clip, place in zip(encoded.clips, places.split(counts), strict=True):
        row, last = int(place[0, 0]), int(place[-1, 0])
        if row != last:
            raise ValueError(f"the placeholders of one video lie in two rows of the batch, {row} and {last}")
        pieces.append(Piece(row, place[:, 1], clip))
    return pieces


def locate_frames(
    ids: Tensor, is_placeholder: Tensor, images: Clip, videos: Sequence[Video] | None, separator: int
) -> list[Piece]:
    """Give the placeholders (B, L), row by row, to images, some of which are the frames of videos.

    Args:
        ids: (B, L), ids of the prompts.
        is_placeholder: (B, L), where the placeholders are.
        images: clip of all images of the batch.
        videos: (row, first image of this row, number of images) of each video; None if all images of a row are the
            frames of one video.
        separator: number of ids between two frames that belong to neither.
    """
    size = images.num_tokens // len(images.tokens)
    counts = is_placeholder.sum(1).tolist()
    if sum(counts) != images.num_tokens or any(count % size for count in counts):
        raise ValueError(
            f"expected {images.num_tokens} placeholders for {len(images.tokens)} images of {size} tokens, got "
            f"{' + '.join(map(str, counts))} in the rows of the batch; make the inputs with the processor of the model"
        )
    columns = is_placeholder.nonzero()[:, 1].view(-1, size)  # (N, h·w)
    per_row = [count // size for count in counts]
    if videos is None:
        for row, part in enumerate(columns.split(per_row)):
            _check_one_video(ids[row], row, part, separator)
    chosen = [(row, 0, n) for row, n in enumerate(per_row) if n] if videos is None else sorted(videos)
    pieces, done = [], 0
    for row, first, count in chosen:
        start = sum(per_row[:row]) + first
        if not 0 <= row < len(per_row) or first < 0 or count < 1 or first + count > per_row[row] or start < done:
            raise ValueError(
                f"expected videos (row, first image, number of images) without overlap among {per_row} images per "
                f"row, got {(row, first, count)}"
            )
        pieces += _between(per_row, columns, images, done, start)
        pieces.append(_piece(row, columns, images, start, start + count))
        done = start + count
    return pieces + _between(per_row, columns, images, done, len(columns))


def ids_of_frames(ids: Tensor, columns: Tensor, kept: Tensor, separator: int) -> Tensor:
    """Return the columns of the ids that go when frames of a video lose all their tokens.

    A frame has the text before its placeholders, such as a time stamp, and the delimiter behind them.

    Args:
        ids: (L,), ids of the row.
        columns: (t, n), columns of the placeholders of each frame.
        kept: (t,), whether a frame has tokens left.
        separator: number of ids between two frames that belong to neither; they stay between frames that stay.
    """
    if bool(kept.all()):
        return columns.new_empty(0)
    row, keeps = ids.tolist(), kept.tolist()
    spans = _spans(row, columns, separator)
    if spans[0][0] < 0 and not keeps[0]:
        end = int(columns[0, 0])
        raise ValueError(
            f"the first frame of a video has no tokens left, but its text is not found among the ids "
            f"{row[max(0, end - 8) : end]} before it, since it differs from that of the second frame; put a line break "
            "before the video"
        )
    if not keeps[0] and spans[0][0] < int(columns[0, 0]):
        for i in (0, keeps.index(True)):  # its first id may be joined with text before it, so it stays for the next one
            spans[i] = (spans[i][0] + 1, spans[i][1])
    gone: list[int] = []
    for i, (start, end) in enumerate(spans):
        if i and not (keeps[i] and any(keeps[:i])):
            gone += range(spans[i - 1][1], start)
        if not keeps[i]:
            gone += range(start, end)
    return columns.new_tensor(gone)


def _spans(row: list[int], columns: Tensor, separator: int) -> list[tuple[int, int]]:
    """Return where the ids of each frame begin and end; the first begins at -1 if its text is not found."""
    starts, ends = columns[:, 0].tolist(), (columns[:, -1] + 1).tolist()
    spans, begin = [], starts[0]
    for end, start in zip(ends[:-1], starts[1:], strict=True):
        close = min(end + 1, start)
        spans.append((begin, close))
        begin = min(close + separator, max(close, start - 1))
    spans.append((begin, min(ends[-1] + (begin < starts[-1]), len(row))))
    if len(spans) > 1 and spans[1][0] < starts[1]:
        length = _first_text(row[: starts[0]], row[spans[1][0] : starts[1]])
        spans[0] = (starts[0] - length if length else -1, spans[0][1])
    return spans


def _first_text(before: list[int], text: list[int]) -> int:
    """Return how many ids before the first frame are like the text of the second frame; 0 if they are not.

    Their first id is the same, or it is joined with what stands before it and the others are the same but for the
    number.
    """
    near = before[-len(text) - _MORE_DIGITS :]
    if near[-1:] != text[-1:]:
        return 0
    if text[0] in near:
        return near[::-1].index(text[0]) + 1
    pairs = zip(near[::-1], text[:0:-1], strict=False)
    differences = [abs(a - b) for a, b in pairs if a != b]
    digit = len(differences) <= 1 and max(differences, default=0) < 10  # the ids of digits follow one another
    return len(text) if len(near) >= len(text) > 2 and digit else 0


def _check_one_video(ids: Tensor, row: int, columns: Tensor, separator: int) -> None:
    """Raise a ValueError if the images of a row do not look like the frames of one video."""
    if len(columns) < 2:
        return
    values, starts = ids.tolist(), columns[:, 0].tolist()
    spans = _spans(values, columns, separator)
    heads = [values[begin:start] if begin >= 0 else [] for (begin, _), start in zip(spans, starts, strict=True)]
    alike = all(heads) and all(
        head[0] == heads[1][0] and abs(len(head) - len(heads[1])) <= _MORE_DIGITS for head in heads[1:]
    )
    again = any(head == heads[0] != previous for previous, head in itertools.pairwise(heads))
    if not alike or again:
        raise ValueError(
            f"row {row} of the batch holds {len(columns)} images that do not look like the frames of one video; say "
            "which are, videos=[(row, first image of this row, number of images), …]"
        )


def _piece(row: int, columns: Tensor, images: Clip, start: int, end: int, *, compressed: bool = True) -> Piece:
    encoder = None if images.encoder is None else images.encoder[start:end]
    frames = None if images.frames is None else images.frames[start:end]
    return Piece(row, columns[start:end].flatten(), Clip(images.tokens[start:end], encoder, frames), compressed)


def _between(per_row: list[int], columns: Tensor, images: Clip, start: int, end: int) -> list[Piece]:
    """Return the images from `start` to `end`, which belong to no video, row by row."""
    pieces, offset = [], 0
    for row, count in enumerate(per_row):
        first, last = max(start, offset), min(end, offset + count)
        if first < last:
            pieces.append(_piece(row, columns, images, first, last, compressed=False))
        offset += count
    return pieces
