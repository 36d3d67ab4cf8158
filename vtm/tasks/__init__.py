"""Kinds of tasks, a file each: loss, scores, metric and baseline; and what they share, the vote and the intervals."""


def lower_is_better(metric: str) -> bool:
    """Tell by its name whether a metric is an error.

    >>> lower_is_better("mse"), lower_is_better("accuracy")
    (True, False)
    """
    return metric == "mse"
