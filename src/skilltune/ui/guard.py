"""The guard in front of the pages: who may ask, from where, and what an answer may do in a browser.

Other pages of the user's browser and other machines must not reach the runs. A name that an attacker points at
127.0.0.1 is refused by its Host, a form of another site by its Origin and by a header that only our page sends. The
token of the link becomes a cookie that scripts cannot read and other sites cannot send.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER, ITS_VALUE = "x-skilltune", "page"
SAFE_METHODS = ("GET", "HEAD")
ONCE_S = 120.0  # life of a link that is passed to a browser on its command line
LOST = "open the link that the command printed; a link of an earlier server does not work any more"

NO_CONTENT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox"
"""The policy of everything but the page itself."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass
class Session:
    """The secrets of one server. `token` is in the link that the command prints; the cookie holds another secret."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _once: dict[str, float] = field(default_factory=dict)

    @property
    def cookie_name(self) -> str:
        """Cookies of one host are shared by its ports, so each server has a name of its own."""
        return f"skilltune-{self.port}"

    def once(self) -> str:
        """A token that works once and not for long. Other users of the machine can read a browser's command line."""
        token = secrets.token_urlsafe(32)
        self._once[token] = time.monotonic() + ONCE_S
        return token

    def admits(self, token: str) -> bool:
        for known, until in list(self._once.items()):
            if _same(token, known):
                del self._once[known]
                return time.monotonic() < until
        return _same(token, self.token)

    def knows(self, cookies: str) -> bool:
        """True if the Cookie header holds the secret of this server."""
        try:
            found = SimpleCookie(cookies).get(self.cookie_name)
        except CookieError:
            return False
        return found is not None and _same(found.value, self._cookie)

    def give(self, response: Response) -> None:
        response.set_cookie(self.cookie_name, self._cookie, httponly=True, samesite="strict", path="/")


@dataclass(frozen=True)
class Hosts:
    """The values of Host that this server answers to. `names` are lower case. A server on all interfaces also answers
    to every IP address, because only names can be rebound."""

    port: int
    names: frozenset[str]
    addresses: bool = False

    def admits(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.username is not None or parts.path or parts.query or parts.fragment or port != self.port:
            return False
        return name in self.names or (self.addresses and _is_address(name))


class Guard:
    """ASGI middleware. Every answer, also a refusal, has the headers that keep a browser from misusing it."""

    def __init__(self, app: ASGIApp, session: Session, hosts: Hosts) -> None:
        self._app, self._session, self._hosts = app, session, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", NO_CONTENT)
            await send(message)

        answer = self._refusal(scope) or self._entry(scope) or self._app
        await answer(scope, receive, send_safe)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that comes from somewhere else, or None."""
        headers, method = Headers(scope=scope), scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.admits(hosts[0]):
            return refusal(421, "this server is not known by that name", "use the address that the command printed")
        ours = f"http://{hosts[0]}"
        origin = headers.get("origin")
        if origin is not None and not _equal_origins(origin, ours):
            return refusal(403, "a page of another site may not ask", LOST)
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_entrance(scope):
            return refusal(403, "a page of another site may not ask", LOST)
        if method in SAFE_METHODS:
            return None
        if method != "POST":
            return refusal(405, f"there is no method {method[:20]}")
        if origin is None or headers.get(HEADER) != ITS_VALUE:
            return refusal(403, f"an action needs the headers Origin and {HEADER}, which only the page sends")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return None if kind == "application/json" else refusal(415, "an action is sent as application/json")

    def _entry(self, scope: Scope) -> Response | None:
        """Exchange the token of the link for a cookie. None: the request may pass."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in query if name == "token"]
        if tokens and scope["method"] in SAFE_METHODS:
            if not self._session.admits(tokens[0]):
                return refusal(401, "this link is not valid any more", LOST, page=_wants_page(scope))
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            place = "/" + scope["raw_path"].decode("latin-1").partition("?")[0].lstrip("/\\")
            response = RedirectResponse(place + (f"?{rest}" if rest else ""), status_code=303)
            self._session.give(response)
            return response
        if not self._session.knows(Headers(scope=scope).get("cookie", "")):
            return refusal(401, "this page needs the link with the token", LOST, page=_wants_page(scope))
        return None


def refusal(status: int, error: str, fix: str = "", *, page: bool = False) -> Response:
    """An error as JSON, or as plain text for a person who opened the address."""
    if page:
        return PlainTextResponse(f"skilltune: {error}. {fix[:1].upper()}{fix[1:]}.\n", status)
    return answer({"error": error, "fix": fix}, status)


def answer(value: Mapping[str, Any], status: int = 200) -> Response:
    """A JSON answer. Nothing in it could end a script element that it is put into."""
    return Response(embeddable(value), status, media_type="application/json")


def embeddable(value: Any) -> str:
    """JSON in which no text can be read as HTML, on one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair becomes \udXXX, which is JSON


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _equal_origins(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_entrance(scope: MutableMapping[str, Any]) -> bool:
    """A link to the page itself may be followed from anywhere; without the cookie it shows nothing."""
    mode = Headers(scope=scope).get("sec-fetch-mode", "")
    return scope["method"] in SAFE_METHODS and mode == "navigate" and not scope["path"].startswith("/api/")


def _wants_page(scope: MutableMapping[str, Any]) -> bool:
    return not scope["path"].startswith("/api/")
