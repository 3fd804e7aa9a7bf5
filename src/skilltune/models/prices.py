"""Cost of a call from the price list in `genai-prices`: offline, and None for unknown models.

An unknown price is None and never 0, so that a dollar budget can refuse to guess. Only own hardware is free (the
embedded model, or an endpoint on a loopback address). For a local proxy to a paid service, state the price explicitly.
"""

from __future__ import annotations

from skilltune.keys import loopback
from skilltune.names import Name, parse_name
from skilltune.usage import Usage

PROVIDERS = {"openai": "openai", "anthropic": "anthropic", "codex": "openai", "claude-code": "anthropic"}


def price(
    model_name: Name | str, usage: Usage, *, override: tuple[float, float] | None = None, written: int = 0
) -> float | None:
    """Dollars for `usage`, or None if the price is unknown. `written` input tokens went into the provider's cache.

    `override` is (dollars per million input tokens, dollars per million output tokens). It has no discount for cached
    input, so it may overestimate.
    """
    if override is not None:
        return (usage.input_tokens * override[0] + usage.output_tokens * override[1]) / 1e6
    name = parse_name(model_name) if isinstance(model_name, str) else model_name
    if name.scheme in ("local", "examples") or (name.url is not None and loopback(name.url)):
        return 0.0
    if name.scheme not in PROVIDERS:
        return None
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=written or None,
    )
    try:
        if name.url is not None:
            cost = genai_prices.calc_price(tokens, name.model, provider_api_url=name.url)
        else:
            cost = genai_prices.calc_price(tokens, name.model, provider_id=PROVIDERS[name.scheme])
    except (LookupError, ValueError):
        return None
    return float(cost.total_price)
