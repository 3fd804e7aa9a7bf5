"""The former place of `skilltune.stats`."""

from skilltune.stats import *  # noqa: F403
