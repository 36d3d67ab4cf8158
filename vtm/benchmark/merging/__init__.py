"""The benchmark of training-free merging, `python -m vtm.benchmark merging`: accuracy and speed without a download."""
