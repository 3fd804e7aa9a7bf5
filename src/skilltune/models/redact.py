"""Removes keys and passwords from text. A server's message may quote the key, which must not reach a message, a journal
or a log."""

from __future__ import annotations

import base64
import binascii
import json
import re
from urllib.parse import quote, quote_plus

SHORTEST = 8  # a "key" for a local server, such as "x", is not secret, and replacing it would garble the text
SHOWN = "[key]"
_USER = re.compile(r"(?<=:)//[^/@\s]+@")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")


def redacted(text: str, *secrets: str) -> str:
    """Replace every secret in the text, and the user and password in URLs.

    A secret is found as it is, in a JSON string, URL-encoded, and anywhere in a base64 word.
    """
    text = _USER.sub("//…@", text)
    for secret in secrets:
        if len(secret) < SHORTEST:
            continue
        forms = {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""), quote_plus(secret)}
        for form in sorted(forms, key=len, reverse=True):
            text = re.sub(re.escape(form), SHOWN, text, flags=re.IGNORECASE)  # %2b and %2B are the same character
        text = _BASE64.sub(lambda word: SHOWN if _holds(word[0], secret.encode()) else word[0], text)  # noqa: B023
    return text


def _holds(word: str, secret: bytes) -> bool:
    """True if a base64 word, in either alphabet and with or without padding, contains the secret."""
    plain = word.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return secret in base64.b64decode(plain + "=" * (-len(plain) % 4))
    except binascii.Error:  # not a valid length for base64
        return False
