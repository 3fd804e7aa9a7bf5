"""API keys: one per endpoint, read from an environment variable whose name may be stored.

A provider's own key is sent only to the provider's own host. Every other host gets the key that the user names for it
(`key_env`). No key is ever sent over plain http to another machine, because anybody on the way could read it.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
from urllib.parse import urlsplit

from skilltune.errors import UsageError
from skilltune.names import Name

OWN = {"openai": ("OPENAI_API_KEY", "api.openai.com"), "anthropic": ("ANTHROPIC_API_KEY", "api.anthropic.com")}
"""By scheme: (variable of the provider's key, host that gets it)."""

VARIABLE = r"[A-Z_][A-Z0-9_]*"
"""Pattern of a variable's name. It must be in capitals, so that a key in its place is recognised and not stored."""

_named = {variable for variable, _ in OWN.values()}  # names of the variables that hold keys of this process


def key_variable(name: Name, key_env: str | None) -> str | None:
    """The variable that holds the key for a model's endpoint, or None if no key is sent.

    Raises `UsageError` if the key would go over plain http to another machine.
    """
    if name.scheme not in OWN:
        return None
    own, home = OWN[name.scheme]
    if key_env is None:
        parts = urlsplit(name.url or f"https://{home}")
        host = parts.hostname or ""
        at_home = parts.scheme == "https" and (host == home or host.endswith(f".{home}"))
        return own if at_home else None
    if name.url is not None and name.url.startswith("http:") and not loopback(name.url):
        raise UsageError(
            f"`{name}`: the key in {key_env} would go to {urlsplit(name.url).hostname} over plain http, where anybody "
            "on the way can read it; use https or a tunnel to 127.0.0.1, or leave key_env out if the server needs none"
        )
    return declared(key_env)


def key_of(variable: str | None) -> str:
    """The key, or "" if there is none."""
    return os.environ.get(variable, "").strip() if variable else ""


def all_keys() -> tuple[str, ...]:
    """Every key that this process may hold, so that none of them is shown or stored."""
    return tuple(key for variable in sorted(_named) if (key := key_of(variable)))


def is_key_variable(variable: str) -> bool:
    """True if the variable holds a key of a model's endpoint."""
    return variable in _named


def declared(variable: str) -> str:
    """Register a variable that holds a key. The ValueError does not repeat the text, which may be the key itself."""
    if not re.fullmatch(VARIABLE, variable):
        raise ValueError(
            "name the environment variable that holds the key, in capitals, such as OPENROUTER_API_KEY; never write "
            "the key itself"
        )
    _named.add(variable)
    return variable


@functools.cache
def loopback(url: str) -> bool:
    """True if the URL is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
