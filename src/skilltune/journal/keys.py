"""Keys derived from content, and the only source of randomness."""

from __future__ import annotations

import hashlib
import json
import random


def digest(*parts: object) -> str:
    """Hash of content: 32 hex digits over the canonical JSON of the parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def rng(seed: int, *purpose: object) -> random.Random:
    """The only source of randomness. It is independent of call order, worker count and Python's hash seed."""
    return random.Random(digest("rng", seed, *purpose))
