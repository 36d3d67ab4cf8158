"""Videos: find them, read the frames on screen at given times, measure durations and motion, write files.

Only this folder imports PyAV. Times are in seconds from the first frame of a video.
"""
