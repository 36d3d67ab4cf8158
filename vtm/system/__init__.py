"""The machine: atomic files, locks, processes, progress, time and memory. It knows no video and no config key."""
