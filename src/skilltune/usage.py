"""Usage: calls, tokens and dollars, and their text form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by kind, calls and dollars. `usd` is None if the price is unknown, never 0."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # part of input_tokens that the provider read from its cache
    reasoning_tokens: int = 0  # part of output_tokens
    usd: float | None = 0.0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def to_json(self) -> dict[str, float | None]:
        """All fields by name; `Usage(**…)` is the inverse. Called often, so it avoids the deep copies of
        `dataclasses.asdict`."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            None if self.usd is None or other.usd is None else self.usd + other.usd,
        )


def minus(total: Usage, part: Usage) -> Usage:
    """The total without a part of it."""
    usd = None if total.usd is None or part.usd is None else total.usd - part.usd
    return Usage(
        total.calls - part.calls,
        total.input_tokens - part.input_tokens,
        total.output_tokens - part.output_tokens,
        usd=usd,
    )


def counted(n: int, what: str = "call") -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def describe_usage(usage: Usage) -> str:
    """Calls, tokens and dollars in one line. An unknown price is shown as unknown."""
    money = "price unknown" if usage.usd is None else f"${usage.usd:.4f}" if usage.usd else "$0"
    return f"{counted(usage.calls)}, {usage.input_tokens:,} + {usage.output_tokens:,} tokens, {money}"
