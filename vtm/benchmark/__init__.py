"""The benchmark of speed and memory, `python -m vtm.benchmark`: what it measures, how, and what it writes."""
