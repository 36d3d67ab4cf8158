"""Videos: read the frames on screen at given times, measure durations, write files. Only this folder imports PyAV."""

from vtm.data.video.decoding import TooShortError, VideoError
from vtm.data.video.reading import VideoFrames, read_frames
from vtm.data.video.scanning import duration
from vtm.data.video.writing import write_video

__all__ = ["TooShortError", "VideoError", "VideoFrames", "duration", "read_frames", "write_video"]
