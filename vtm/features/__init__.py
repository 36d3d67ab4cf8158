"""Stored features: extract them once, read them from files on a disk or behind an address."""
