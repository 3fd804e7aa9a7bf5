"""Intervals, tests and beliefs: the few statistics that decide, with their sources."""

from skilltune.stats.comparison import Paired, difference_interval, paired, score_interval
from skilltune.stats.mixture import Mixture, normal_cdf, normal_quantile, updated
from skilltune.stats.proportions import mcnemar, standard_error, wilson

__all__ = [
    "Mixture",
    "Paired",
    "difference_interval",
    "mcnemar",
    "normal_cdf",
    "normal_quantile",
    "paired",
    "score_interval",
    "standard_error",
    "updated",
    "wilson",
]
