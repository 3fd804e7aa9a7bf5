"""The limits of a budget, and their short text form."""

from __future__ import annotations

import re
from dataclasses import dataclass

from skilltune.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """The user's limits; None means no limit. `minutes` is wall-clock time over all processes of the run."""

    usd: float | None = None
    tokens: int | None = None
    calls: int | None = None
    minutes: float | None = None


_UNITS = {"usd": "usd", "$": "usd", "token": "tokens", "call": "calls", "minute": "minutes", "min": "minutes"}
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}


def parse_budget(text: str) -> dict[str, float]:
    """Parse "5 usd", "$5" or "2M tokens, 30 minutes" → {"usd": 5.0, …}. Raises `UsageError`."""
    limits: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.lower().split(","))):
        found = re.fullmatch(r"(\$?)\s*(\d[\d_]*(?:\.\d+)?)\s*([km]?)\s*(usd|tokens?|calls?|minutes?|min|)", part)
        unit = found and found[1] + found[4].rstrip("s")  # both or neither is not a unit
        if not found or unit not in _UNITS:
            raise UsageError(
                f'cannot read the budget "{part}": write "5 usd", "2000 calls", "2M tokens" or "30 minutes"'
            )
        if _UNITS[unit] in limits:
            raise UsageError(f'the budget "{text}" limits {_UNITS[unit]} twice')
        limits[_UNITS[unit]] = round(float(found[2]) * _SCALE[found[3]], 9)  # 1.001k is a whole number
    if not limits:
        raise UsageError(
            'the budget is empty: write "5 usd", "2000 calls", "2M tokens" or "30 minutes", or leave it out'
        )
    return limits


MAX_WAIT_S = 600.0
