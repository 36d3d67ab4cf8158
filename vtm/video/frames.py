"""What an encoder asks of the frames of a video."""

from typing import NamedTuple


class FrameSpec(NamedTuple):
    """Frames that an encoder takes.

    Attributes:
        image_size: S, side of the square frames in pixels.
        frames_per_step: f, consecutive frames of the video that give one step of features.
        squash: scale both sides to S; otherwise scale the shortest side to S and cut out the center.
    """

    image_size: int
    frames_per_step: int
    squash: bool
