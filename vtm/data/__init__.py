"""Data loading: from the videos of a data set to batches of uint8 frames or stored features.

Notation: B batch, T sampled steps of a clip, f consecutive frames per step, S side of the square frames, (H, W) token
grid, C channels. Times are in seconds from the first frame of a video.
"""
