"""Retry policy: which failures are retried, and after how long. `metering.slots` carries it out."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from skilltune.errors import InfraError

RATE_LIMIT_FACTOR = 5.0  # longer waits after a rate limit without a stated wait
MAX_JITTER_S = 15.0  # spreads calls that got the same wait

_YEAR_S = 366 * 86400.0
_EPOCH_S, _EPOCH_MS = 1e9, 1e11  # from this number on, a reset is a time since 1970, in seconds or in milliseconds
_PART = r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|milliseconds?|d(?:ays?)?|h(?:ours?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)"
_UNIT = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(rf"(?:{_PART}\s*)+")
_AGAIN = re.compile(rf"(?:try|retry)(?: your request)?(?: again)? (?:in|after) ((?:{_PART}\s*)+)", re.IGNORECASE)
_DELAY = re.compile(r'"retryDelay"\s*:\s*"([^"]{1,40})"')
_DAILY = re.compile(r"per[ _-]?day|\b[rt]pd\b|\bdaily\b[^.]{0,40}\b(?:limit|quota|allowance)", re.IGNORECASE)
_BODY = 20_000  # characters of an error body that are searched for a wait


class Refused(InfraError):
    """The endpoint answered with an error, so it did no billable work."""

    billed = False


class RateLimited(Refused):
    """The endpoint is overloaded and asks all callers to slow down (429, 503, 529). `daily` is True if a daily quota is
    used up."""

    daily = False


class TimedOut(InfraError):
    """The endpoint sent no answer, or only a part of it, before the time-out."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter. `attempts` counts the first attempt too.

    The wait before retry k (0, 1, …) is uniform in [0, min(cap_s, base_s · 2^k)] seconds. If the endpoint asked to slow
    down without stating a wait, the range is `RATE_LIMIT_FACTOR` times as wide.

    Waits are short, because a batch waits for its last call. Attempts are many, because an excluded sample changes
    decisions: if 30 % of calls fail, eight attempts lose one sample in 15,000.
    """

    attempts: int = 8
    base_s: float = 0.1
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")

    def delay(self, retry: int, draw: float, failure: InfraError) -> float:
        """Seconds to wait after `failure`; `draw` is uniform in [0, 1).

        A wait stated by the server is kept in full, with jitter added. A call that is refused again and again backs off
        as well.
        """
        factor = RATE_LIMIT_FACTOR if isinstance(failure, RateLimited) and failure.retry_after is None else 1.0
        drawn = draw * min(self.cap_s, factor * self.base_s * 2.0**retry)
        if failure.retry_after is None:
            return drawn
        stated = failure.retry_after + draw * min(failure.retry_after / 4, MAX_JITTER_S)
        return max(stated, drawn) if retry else stated


# -- the wait that a server states


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """The wait in seconds that `retry-after-ms` or `Retry-After` states, counted from `now` (epoch seconds, default:
    the current time). None if neither is present.

    A number is a duration in seconds or, if it is large, a time since 1970 in seconds or milliseconds. Durations are
    read in Go's format ("6m0s", "17ms"), dates in the formats of HTTP and RFC 3339. A time in the past gives 0.
    """
    now = time.time() if now is None else now
    if (wait := _number(headers.get("retry-after-ms", ""))) is not None:
        return wait / 1000
    return _wait(headers.get("retry-after", ""), now)


def stated_wait(headers: Mapping[str, str], body: str, now: float | None = None) -> float | None:
    """Like `retry_after`, but looks in all usual places: `Retry-After`, then the resets of used-up limits, then the
    body."""
    now, body = time.time() if now is None else now, body[:_BODY]
    given = {name.lower(): value for name, value in headers.items()}
    if (wait := retry_after(given, now)) is not None:
        return wait
    quoted = _headers_in(body)
    if resets := [*_resets(given, now), *_resets(quoted, now)]:
        return max(resets)
    if (wait := retry_after(quoted, now)) is not None:
        return wait
    found = _DELAY.search(body) or _AGAIN.search(body)
    return _duration(found[1]) if found else None


def is_daily(headers: Mapping[str, str], body: str) -> bool:
    """True if a refusal says that a daily quota is used up."""
    return bool(_DAILY.search(body[:_BODY]) or any(_DAILY.search(f"{name} {value}") for name, value in headers.items()))


def _resets(headers: Mapping[str, str], now: float) -> Iterator[float]:
    """Yield the waits until used-up limits reset. A limit with a remainder did not cause the refusal."""
    for name, value in headers.items():
        if "reset" in name and "ratelimit" in name.replace("rate-limit", "ratelimit"):
            left = _number(headers.get(name.replace("reset", "remaining"), "0"))
            if not left and (wait := _wait(value, now)) is not None:
                yield wait


def _headers_in(body: str) -> dict[str, str]:
    """Rate limit headers inside an error body, as OpenRouter returns them in `metadata.headers`."""
    try:
        tree: Any = json.loads(body)
        for key in ("error", "metadata", "headers"):
            tree = tree[key]
        return {str(name).lower(): str(value) for name, value in tree.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _wait(text: str, now: float) -> float | None:
    """Seconds from now until the number, duration or date in a header. None if it is unreadable or over a year away."""
    text = text.strip()
    if (number := _number(text)) is not None:
        wait = number / 1000 - now if number >= _EPOCH_MS else number - now if number >= _EPOCH_S else number
    elif (span := _duration(text)) is not None:
        wait = span
    elif (date := _date(text)) is not None:
        wait = date - now
    else:
        return None
    return max(0.0, wait) if wait < _YEAR_S else None


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if re.fullmatch(r"\d{1,16}(\.\d{1,9})?", text) else None


def _duration(text: str) -> float | None:
    """Seconds of a duration such as "1h2m3.5s", "250ms" or "20 seconds"."""
    text = text.strip().lower()
    if len(text) > 60 or not _DURATION.fullmatch(text):
        return None
    parts = re.findall(_PART, text)
    return sum(float(n) * (0.001 if unit.startswith(("ms", "mil")) else _UNIT[unit[0]]) for n, unit in parts)


def _date(text: str) -> float | None:
    """Epoch seconds of a date in the format of HTTP or RFC 3339."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        pass
    try:
        date = datetime.fromisoformat(text)
        return date.timestamp() if date.tzinfo else None
    except (ValueError, OverflowError):
        return None


def clock_time(seconds: float, now: float | None = None) -> str:
    """The local time after this many seconds: "14:05:30" today, with the date on other days."""
    now = time.time() if now is None else now
    then, today = datetime.fromtimestamp(now + seconds), datetime.fromtimestamp(now)
    return f"{then:%H:%M:%S}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"


def span(seconds: float) -> str:
    """A duration for a message: "40 s", "12 min", "9 h 3 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h" + (f" {rest} min" if rest else "")
