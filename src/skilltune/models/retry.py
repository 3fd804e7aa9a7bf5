"""What is worth another attempt, and after how long: the policy that `models.endpoint` carries out."""

from __future__ import annotations

from dataclasses import dataclass

from skilltune.errors import InfraError

THROTTLED = 5.0
LONGEST_WAIT_S = 60.0


class RateLimited(InfraError):
    """The endpoint has too much to do and asks everybody to slow down (429, 503, 529)."""


class TimedOut(InfraError):
    """The endpoint was given its whole time and said nothing, or not all of it."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all; before the k-th retry (k = 0, 1, …) a wait drawn from [0, min(cap_s, base_s · 2^k)] ("full
    jitter"), where the endpoint asked to slow down and did not say how long from a range `THROTTLED` times as wide.

    What has failed for no reason of ours is asked again soon, because a batch waits for its last call, and often,
    because a sample that is given up changes what is decided: at 30 % of failures eight attempts lose one in 15,000.
    """

    attempts: int = 8
    base_s: float = 0.1
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")

    def delay(self, retry: int, draw: float, failure: InfraError) -> float:
        """Seconds to wait after `failure`; `draw` is uniform in [0, 1). A wait that the server stated is kept, up to
        `LONGEST_WAIT_S`, and not ended by all at one moment; a call that keeps being refused backs off all the same."""
        wide = THROTTLED if isinstance(failure, RateLimited) and failure.retry_after is None else 1.0
        drawn = draw * min(self.cap_s, wide * self.base_s * 2.0**retry)
        if failure.retry_after is None:
            return drawn
        stated = min(failure.retry_after, LONGEST_WAIT_S) * (1 + draw / 4)
        return max(stated, drawn) if retry else stated
