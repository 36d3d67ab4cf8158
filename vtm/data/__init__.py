"""Videos in, batches of uint8 frames out: reading, sampling, data sets and their Lightning data modules.

Notation: B batch, T sampled steps of a clip, f consecutive frames per step, S side of the square frames. Times are in
seconds from the first frame of a video.
"""
