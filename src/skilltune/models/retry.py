"""What is worth another attempt, and after how long: the policy that `models.endpoint` carries out."""

from __future__ import annotations

from dataclasses import dataclass

from skilltune.errors import InfraError


class RateLimited(InfraError):
    """The endpoint has too much to do and asks everybody to slow down (429, 503, 529)."""


class TimedOut(InfraError):
    """The endpoint was given its whole time and said nothing, or not all of it."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all; before the k-th retry a wait drawn from [0, min(cap_s, base_s · 2^k)] ("full jitter")."""

    attempts: int = 5
    base_s: float = 0.5
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")

    def delay(self, retry: int, draw: float) -> float:
        return draw * min(self.cap_s, self.base_s * 2.0**retry)
