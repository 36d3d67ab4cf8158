"""Kinds of tasks, a file each: loss, scores, metric and baseline; and what they share, the vote and the intervals."""
