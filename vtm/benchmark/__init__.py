"""The benchmark of speed and memory, `python -m vtm.benchmark`: its rows, measurements and report."""
