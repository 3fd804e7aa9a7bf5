"""Removes keys and passwords from text. A server's message may quote the key, which must not reach a message, a journal
or a log."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, urlsplit

T = TypeVar("T")

SHORTEST = 8  # a "key" for a local server, such as "x", is not secret, and replacing it would garble the text
SHOWN = "[key]"
_USER = re.compile(r"(?<=:)//[^/@\s]+@")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH(?!OR(?!IZ))|COOKIE|(?:^|_)(?:PAT|PASS|DSN|JWT|SESSION)(?:_|$)",
    re.IGNORECASE,
)
"""Names of variables with a secret value. GIT_AUTHOR_NAME is none."""


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


def secrets_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets in variables: the values of those with the name of a secret, and the passwords in addresses."""
    found = [value for name, value in env.items() if _NAME.search(name)]
    for value in env.values():
        try:
            found.append(urlsplit(value).password or "")
        except ValueError:  # no address
            continue
    return tuple(dict.fromkeys(value for value in found if len(value) >= SHORTEST))


def without(data: T, secrets: Sequence[str]) -> T:
    """A text, bytes or JSON value with every secret replaced, for storage.

    A secret is found as it is, in a JSON string, URL-encoded, and in base64.
    """
    forms = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
    return _without(data, forms) if forms else data


def _without(data: Any, forms: Sequence[bytes]) -> Any:
    if isinstance(data, str):
        raw = data.encode("utf-8", "surrogatepass")
        kept = _without(raw, forms)
        return data if kept == raw else kept.decode("utf-8", "surrogatepass")
    if isinstance(data, bytes):
        for form in forms:
            data = data.replace(form, SHOWN.encode())
        return data
    if isinstance(data, Mapping):
        return {_without(key, forms): _without(value, forms) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_without(item, forms) for item in data)
    return data


def _forms(secret: str) -> Iterator[bytes]:
    """The encoded forms of a secret. In base64 they are the characters that do not depend on the bytes around it."""
    raw = secret.encode("utf-8", "surrogatepass")
    quoted = quote(secret, safe="", errors="replace")
    texts = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quoted, quoted.lower()}
    texts |= {quote(secret, errors="replace"), quote_plus(secret, errors="replace")}
    yield raw
    yield from (text.encode("utf-8", "surrogatepass") for text in texts)
    for before in range(3):
        word = base64.b64encode(b"\0" * before + raw)
        begin, whole = (0, 2, 3)[before], 4 * ((before + len(raw)) // 3)
        rest = ((before + len(raw)) % 3 * 8) // 6  # characters that hold bits of the secret only
        core = word[begin : whole + rest]
        yield core
        yield core.replace(b"+", b"-").replace(b"/", b"_")


def _holds(word: str, secret: bytes) -> bool:
    """True if a base64 word, in either alphabet and with or without padding, contains the secret."""
    plain = word.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return secret in base64.b64decode(plain + "=" * (-len(plain) % 4))
    except binascii.Error:  # not a valid length for base64
        return False
