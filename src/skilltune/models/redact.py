"""What a server says may quote the key that it was sent; it must not reach a message, a journal or a log."""

from __future__ import annotations

import base64
import binascii
import json
import re
from urllib.parse import quote, quote_plus

SHORTEST = 8  # a "key" for a local server, such as "x", is no secret, and would tear every word apart
SHOWN = "[key]"
_USER = re.compile(r"(?<=:)//[^/@\s]+@")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")


def redacted(text: str, *secrets: str) -> str:
    """The text without the secrets, each as it is, in a JSON string, URL-encoded, or anywhere in a base64 word; and
    without the user and password of a URL."""
    text = _USER.sub("//…@", text)
    for secret in secrets:
        if len(secret) < SHORTEST:
            continue
        forms = {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""), quote_plus(secret)}
        for form in sorted(forms, key=len, reverse=True):
            text = re.sub(re.escape(form), SHOWN, text, flags=re.IGNORECASE)  # %2b and %2B are the same sign
        text = _BASE64.sub(lambda word: SHOWN if _holds(word[0], secret.encode()) else word[0], text)  # noqa: B023
    return text


def _holds(word: str, secret: bytes) -> bool:
    """Does a base64 word, in either alphabet and with or without its padding, hold the secret?"""
    plain = word.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return secret in base64.b64decode(plain + "=" * (-len(plain) % 4))
    except binascii.Error:  # no length of a base64 word
        return False
