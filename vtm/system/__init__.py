"""The machine: atomic files, processes, progress, time and memory. Nothing here knows a video or a config key."""
