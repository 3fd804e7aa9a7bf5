"""The former place of `skilltune.stats`."""

from skilltune.stats import Mixture, mcnemar, normal_cdf, normal_quantile, paired, standard_error, updated, wilson

__all__ = ["Mixture", "mcnemar", "normal_cdf", "normal_quantile", "paired", "standard_error", "updated", "wilson"]
