"""Tasks (classification, regression): loss, scores, metric and baseline; averages over clips, and intervals."""


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of a metric are better, given its name.

    >>> lower_is_better("mse"), lower_is_better("accuracy")
    (True, False)
    """
    return metric == "mse"
