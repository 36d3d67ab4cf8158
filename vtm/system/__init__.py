"""Helpers for the machine that know nothing of videos and configs: files, locks, processes, progress, measurements."""
