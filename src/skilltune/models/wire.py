"""What all endpoints have in common: one JSON request over HTTP, and a typed error for whatever goes wrong.

aiohttp carries it, because a provider's SDK takes ten times the CPU per call. Replies are read as plain JSON, because
real endpoints deviate from any typed model. aiohttp's exceptions hold the request with its headers, so they are never
chained to ours: no key can reach a log through a traceback.

From the environment: the key; HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; SSL_CERT_FILE and SSL_CERT_DIR. Not
~/.netrc: a password meant for other programs is never sent.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from skilltune import __version__
from skilltune.errors import CallConfigError, InfraError, UnreachableError, UsageError
from skilltune.models import Reply, Request
from skilltune.models.keys import OWN, all_keys, key_of, key_variable, loopback
from skilltune.models.redact import redacted
from skilltune.models.retry import RateLimited, Refused, TimedOut, is_daily, retry_after, stated_wait
from skilltune.names import Name

if TYPE_CHECKING:
    import ssl

    import aiohttp

Json = dict[str, Any]

CONNECT_S = 5.0  # name, TCP and TLS: a host that drops packets is found dead long before `timeout_s`
NO_KEY = "no-key"  # local servers want some key, any key

_TRANSIENT = {408, 409, 425, 429}
_NO_MONEY = re.compile(r"insufficient_quota|billing_hard_limit|credit balance is too low")
_TOO_LONG = re.compile(r"context[ _](length|window|size)|prompt is too long|request_too_large")
_REFUSES = re.compile(
    r"unsupported|not support|unknown|unrecognized|unexpected|deprecated|removed|only the default|may only be|"
    r"(not|n't) (allowed|permitted|accepted|available)|extra[ _](inputs|fields)"
)


class Rejected(CallConfigError):
    """400 or 422: the endpoint refuses the request as it is. `said` is the response body in lower case."""

    said = ""


class Wire:
    """One endpoint. Connections are kept alive and shared by all calls; the first call opens the session.

    `headers(key)` are the headers that prove who asks. The key is read from the environment variable `key_env`, or
    from the provider's own at the provider's own host; see `models.keys`. A variable that is named, or that the
    provider's endpoint needs, must be set. `timeout_s` bounds one request in all, its answer's body included.
    """

    def __init__(
        self, name: Name, url: str, headers: Callable[[str], Json], timeout_s: float, key_env: str | None = None
    ) -> None:
        self._name, self._url, self._variable = name, url, key_variable(name, key_env)
        self._headers, self._timeout_s = headers, timeout_s
        self._proxy = proxy_of(url)
        self._session: aiohttp.ClientSession | None = None
        key = self._key()
        if not key and self._variable and (name.url is None or key_env):
            raise UsageError(f"`{name}` needs a key: set the environment variable {self._variable}")
        if self._variable and url.startswith("http:") and self._proxy and not loopback(self._proxy):
            raise UsageError(
                f"`{name}`: the key in {self._variable} would go to the proxy {_bare(self._proxy)} over plain http; "
                f"list {urlsplit(url).hostname} in NO_PROXY"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"{self._variable} holds characters that no key has (white space, a line break, a non-ASCII sign)"
            )

    async def exchange(
        self,
        path: str,
        request: Request,
        build: Callable[[Request], Json],
        learn: Callable[[Json, str], None],
        read: Callable[[Request, Json], Reply],
    ) -> Reply:
        """Send what `build` makes of the request and `read` the answer. Where the endpoint rejects it, `learn` is told
        the payload and the complaint, and it goes again if `build` now makes something else."""
        while True:
            payload = build(request)
            try:
                body = await self._post(path, payload, request.draw)
            except Rejected as rejection:
                learn(payload, rejection.said)
                if build(request) == payload:
                    raise
                continue
            try:
                reply = read(request, body)
            except (LookupError, TypeError, AttributeError):  # not the shape that `read` expects
                failure = self._malformed(json.dumps(body, ensure_ascii=False))
            else:
                if reply.text or reply.finish != "stop" or reply.usage.output_tokens:
                    return _sendable(reply)
                failure = InfraError(self._text(f"empty answer from {self._url}: no text, and no token was counted"))
            raise failure

    async def _post(self, path: str, payload: Json, draw: int) -> Json:
        import aiohttp

        session = self._session = self._session or self._open()
        content = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")  # half a surrogate pair becomes ?
        headers = self._headers(self._key() or NO_KEY)  # not the session's: those go to a proxy too
        headers |= {"Content-Type": "application/json", "Idempotency-Key": idempotency_key(payload, draw)}
        for _ in range(2):  # loop turns: one to see that a server closed an idle connection, one to drop it
            await asyncio.sleep(0)
        sending = aiohttp.UploadTracker()
        try:
            async with session.post(
                self._at(path), data=content, headers=headers, allow_redirects=False, upload_tracker=sending
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError) as error:  # OSError: a time-out too
            failure = self._lost(error, reached=sending.bytes_written > 0)
        except ValueError:
            failure = CallConfigError(self._text(f"{self._url} is no address that can be called; correct the name"))
        else:
            if response.status >= 300:
                failure = self._refusal(response.status, response.headers, raw)
            else:
                try:
                    body = json.loads(raw)
                except ValueError:
                    body = None
                if isinstance(body, dict) and not body.get("error"):
                    return body
                failure = self._malformed(raw.decode("utf-8", "replace"))
        raise failure  # outside the handlers, so that it carries no context

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        return aiohttp.ClientSession(
            headers={"User-Agent": f"skilltune/{__version__}"},
            connector=aiohttp.TCPConnector(limit=0, ssl=tls_context() if self._url.startswith("https:") else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=CONNECT_S),
            proxy=self._proxy,
        )

    async def aclose(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _at(self, path: str) -> str:
        """The address of a call: the path stands before the query that Azure wants."""
        base, question, query = self._url.partition("?")
        return f"{base}{path}{question}{query}"

    def _key(self) -> str:
        return key_of(self._variable)

    def _text(self, problem: str) -> str:
        """The message of an error: the model's name first, and no key even where a server quotes it."""
        return f"`{self._name}`: {self._redacted(problem)}"

    def _redacted(self, text: str) -> str:
        """Before anything is cut off, or half a key would be no key to look for."""
        return redacted(text, *all_keys(), unquote(urlsplit(proxy_of(self._url) or "").password or ""))

    def _about_key(self) -> str:
        """Where the key of a refused call came from, and how to name another."""
        another = 'key_env = "VARIABLE" beside the model ([target], [optimizer] or [judge]) names'
        if self._variable is None:
            own = OWN[self._name.scheme][0]
            return f"No key was sent: {own} is for the provider's own host alone. {another} the variable to read"
        state = "is set, but not accepted here" if self._key() else "is not set"
        return f"The key is read from {self._variable}, which {state}; {another} another variable"

    def _malformed(self, body: str) -> InfraError:
        """For a 200 that is no answer: broken JSON, no choices, an error in disguise."""
        said = _clip(self._redacted(body)) or "(empty)"
        return InfraError(self._text(f"malformed answer from {self._url}: {said}"))

    def _lost(self, error: Exception, *, reached: bool) -> InfraError:
        """For a call without an answer. Not `reached`: nothing of the request was sent, so nothing can be billed."""
        detail = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            detail = f"no connection within {min(CONNECT_S, self._timeout_s):g} s"
        elif "CERTIFICATE_VERIFY_FAILED" in detail:
            detail += "; where the network has a certificate of its own, set SSL_CERT_FILE to a file that holds it"
        if not reached:
            return UnreachableError(self._text(f"cannot connect to {self._url}; is the server running? ({detail})"))
        if isinstance(error, TimeoutError):
            return TimedOut(self._text(f"no answer from {self._url} within {self._timeout_s:g} s"))
        return InfraError(self._text(f"the connection to {self._url} was dropped: {detail}"))

    def _refusal(self, status: int, headers: Mapping[str, str], raw: bytes) -> InfraError | CallConfigError:
        """For an answer that is no 2xx."""
        body = raw.decode("utf-8", "replace")
        said = body.lower()
        problem = f"{self._url} answered {status}: {_words(self._redacted(body)) or '(empty)'}"
        if _NO_MONEY.search(said):
            return CallConfigError(self._text(f"{problem}. The account has no credit left; add some or change the key"))
        if status in _TRANSIENT or status >= 500:
            if status not in (429, 503, 529):
                return Refused(self._text(problem), retry_after=retry_after(headers))
            limited = RateLimited(self._text(problem), retry_after=stated_wait(headers, body))
            limited.daily = status == 429 and is_daily(headers, body)
            return limited
        if status in (400, 413, 422) and _TOO_LONG.search(said):
            fix = "The request is longer than the model's context window: shorten the samples or lower max_tokens"
            return CallConfigError(self._text(f"{problem}. {fix}"))
        if status in (400, 422):
            rejected = Rejected(self._text(problem))
            rejected.said = said
            return rejected
        fix = ""
        if status < 400:  # not followed: the key would go to an address that nobody named
            fix = f". It redirects to {_bare(headers.get('Location', ''))}: put the address that answers into the name"
        elif status in (401, 403):
            fix = f". {self._about_key()}"
        elif status == 404:
            fix = f". Check that the model `{self._name.model}` exists there and that the URL is right"
        return CallConfigError(self._text(problem + fix))


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Certificates are checked against certifi's list, or against what SSL_CERT_FILE and SSL_CERT_DIR name."""
    import ssl

    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()  # OpenSSL reads both
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for `url`, if any. `UsageError`: one that does not speak HTTP."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    scheme, mark, _ = proxy.rpartition("://")
    if mark and scheme not in ("http", "https"):
        raise UsageError(
            f"the proxy for {url} is a {scheme} proxy, and only http and https ones are supported: set "
            f"{parts.scheme.upper()}_PROXY to one of those, or list {parts.hostname} in NO_PROXY"
        )
    return proxy if mark else f"http://{proxy}"


def idempotency_key(payload: Json, draw: int) -> str:
    """32 hex digits of the SHA-256 of what is sent and the number of the draw: equal for retries, and only for them."""
    canonical = json.dumps([payload, draw], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def refuses(said: str, parameter: str) -> bool:
    """Whether a complaint says that `parameter` is not known; that its *value* is wrong is the user's to fix."""
    return bool(re.search(rf"\b{parameter}\b", said) and _REFUSES.search(said))


def count(body: Mapping[str, Any], *path: str) -> int:
    """The number at `path`, 0 where a server leaves it out or has null."""
    value: Any = body
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return int(value) if isinstance(value, (int, float)) else 0


def estimate_tokens(request: Request, answer: str) -> tuple[int, int]:
    """(input, output) tokens where a server reports none: four characters a token, a thousand tokens an image."""
    characters = sum(len(message.text) for message in request.messages)
    images = sum(len(message.images) for message in request.messages)
    return -(-characters // 4) + 1000 * images, -(-len(answer) // 4)


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The text up to the first stop sequence, for APIs that take none."""
    return text[: min((at for s in stop if s and (at := text.find(s)) >= 0), default=len(text))]


def _sendable(reply: Reply) -> Reply:
    """The reply without halves of surrogate pairs, which no request can carry back."""
    if reply.text.isascii():
        return reply
    return replace(reply, text=reply.text.encode("utf-8", "replace").decode())


def _bare(url: str) -> str:
    """A URL without what may be a secret in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) or "(nowhere)"


def _words(body: str) -> str:
    """The human part of an error body, in any of the usual shapes."""
    try:
        found = json.loads(body)
    except ValueError:
        return _clip(body)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict):
            found = found.get(key) or found
    return _clip(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


def _clip(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "…"
