"""The size and number of the frames that an encoder takes."""

from typing import NamedTuple


class FrameSpec(NamedTuple):
    """Specification of the frames that an encoder takes.

    Attributes:
        image_size: S, side of the square frames in pixels.
        frames_per_step: f, number of consecutive video frames per step of features.
        squash: scale both sides to S; otherwise scale the shortest side to S and cut out the center.
    """

    image_size: int
    frames_per_step: int
    squash: bool
