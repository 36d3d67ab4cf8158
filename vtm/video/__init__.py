"""Video files: list and write them, read frames at given times, measure duration and motion.

Only this package imports PyAV. Times are in seconds from the first frame of a video.
"""
