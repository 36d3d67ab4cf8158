"""Helpers that do not depend on videos or configurations: files, locks, processes, progress, measurements."""
