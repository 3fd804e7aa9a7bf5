"""HTTP for all endpoints: one JSON request per call, and a typed error for every failure.

It uses aiohttp, because a provider's SDK takes ten times the CPU per call. Replies are read as plain JSON, because real
endpoints deviate from any typed model. aiohttp's exceptions hold the request with its headers, so they are never
chained to ours: no key can reach a log through a traceback.

It reads these environment variables: the key; HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; SSL_CERT_FILE and
SSL_CERT_DIR. It ignores ~/.netrc, so that passwords for other programs are never sent.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from skilltune.api_keys import OWN, all_keys, key_of, key_variable, loopback
from skilltune.errors import (
    CallConfigError,
    CallError,
    InfraError,
    RejectedError,
    SampleError,
    UnreachableError,
    UsageError,
)
from skilltune.models import Message, Reply, Request
from skilltune.models.reading import CUT, Context, NoText, Raw, finished, sane
from skilltune.models.redact import redacted
from skilltune.models.retry import RateLimited, Refused, TimedOut, is_daily, retry_after, stated_wait
from skilltune.models.stream import assembled, is_stream
from skilltune.names import Name
from skilltune.version import __version__

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import ssl

    import aiohttp

Json = dict[str, Any]

CONNECT_S = 5.0  # covers name resolution, TCP and TLS: a host that drops packets is detected long before `timeout_s`
NO_KEY = "no-key"  # local servers want any key
NO_CREDIT = "The account has no credit left; add some or change the key"
BODY_BYTES = 8_000_000  # most bytes of one decompressed answer that are read

_TRANSIENT = {408, 409, 425, 429}
_NO_MONEY = re.compile(r"insufficient_quota|billing_hard_limit|credit balance is too low")
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|(prompt|input|request)( is)? too (long|large)|request_too_large|"
    r"range of input length|input (token count|length)[^.]{0,40} exceed|reduce the length|too many (input )?tokens"
)
_FILTERED = re.compile(
    r"content[ _](management[ _])?(policy|filter)|responsibleaipolicy|moderation|flagged|usage polic(y|ies)|"
    r"data_inspection_failed|inappropriate content|prohibited[ _]content|content exists risk|"
    r"sensitive (content|information)|safety (system|settings|filter|reasons|policy|policies)"
)
_TRANSIENT_400 = re.compile(
    r"failed[ _]to[ _]generate|overloaded|capacity|temporar|try again|too many requests|rate[ _]limit"
)
_THINKS_TOO_LONG = re.compile(r"output limit (was|is) reached")
_NO_SYSTEM = re.compile(r"\bsystem[ _](role|message|prompt|instruction)|\brole.{0,40}\bsystem\b|developer instruction")
_USER_AND_ASSISTANT = re.compile(r"conversation roles must alternate user/assistant|should be 'user' or 'assistant'")
_REFUSES = re.compile(
    r"unsupported|not support|unknown|unrecognized|unexpected|deprecated|removed|only the default|may only be|"
    r"(not|n't) (allowed|permitted|accepted|available|enabled)|extra[ _](inputs|fields)|unavailable"
)
_RANGE = re.compile(
    r"between|at (most|least)|(less|greater|larger|smaller|higher|lower) than|range|maximum|minimum|[<>]=?|too "
)
_ECHOES = {"input", "failed_generation"}  # fields of an error body that repeat the request or the answer
_SLIP = re.compile(r"json_validate_failed|failed_generation|failed to generate json")


class Rejected(RejectedError):
    """The endpoint rejects the request as it is (400 or 422).

    `said` is the complaint in lower case. `passing` is raised instead if the request cannot be adapted and the
    rejection may be transient.
    """

    said = ""
    passing: InfraError | None = None


class Learned(dict[str, str]):
    """The features that an endpoint turned out not to support: name → a sentence for the user."""

    def __init__(self, model: str, sentences: Mapping[str, str]) -> None:
        super().__init__()
        self._model, self._sentences = model, sentences

    def note(self, name: str) -> None:
        if name not in self:
            self[name] = self._sentences[name]
            logger.info("`%s`: %s", self._model, self[name])


class Wire:
    """One endpoint. All calls share its kept-alive connections; the first call opens the session.

    `headers(key)` returns the authentication headers. The key is read from the environment variable `key_env`, or at
    the provider's own host from the provider's variable; see `skilltune.api_keys`. Raises `UsageError` if that variable
    is not set, unless the endpoint has a URL of its own and no `key_env`. `timeout_s` limits one whole request,
    including the body of the answer.
    """

    def __init__(
        self, name: Name, url: str, headers: Callable[[str], Json], timeout_s: float, key_env: str | None = None
    ) -> None:
        self._name, self._url, self._variable = name, url, key_variable(name, key_env)
        self._headers, self._timeout_s = headers, timeout_s
        self._proxy = proxy_of(url)
        self._readable = False  # True as soon as one answer had the shape that is expected
        self._session: aiohttp.ClientSession | None = None
        self._context = Context()
        key = self._key()
        if not key and self._variable and (name.url is None or key_env):
            raise UsageError(f"`{name}` needs a key: set the environment variable {self._variable}")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"{self._variable} contains characters that are not allowed in a key (white space or non-ASCII)"
            )

    async def exchange(
        self,
        path: str,
        request: Request,
        build: Callable[[Request], Json],
        learn: Callable[[Json, str], None],
        read: Callable[[Request, Json], Raw],
    ) -> Reply:
        """Send `build(request)`, parse the answer with `read`, and return the finished reply.

        If the endpoint rejects the request, `learn` gets the payload and the complaint. The request is sent again if
        `build` then returns a different payload.
        """
        while True:
            payload = build(request)
            try:
                body = await self._post(path, payload, request.draw)
            except Rejected as rejection:
                learn(payload, rejection.said)
                if build(request) != payload:
                    continue
                failure = rejection.passing or rejection
            else:
                try:
                    raw = read(request, body)
                except (LookupError, TypeError, ValueError, AttributeError, RecursionError):  # an unknown shape
                    failure = self._malformed(
                        _dumped(body), "the endpoint's answers have no known shape: check the URL"
                    )
                else:
                    self._readable = True
                    if not raw.error:
                        reply = finished(raw, request, self._text)
                        self._context.check(request, reply.usage, self._text)
                        return replace(reply, text=cut(reply.text, raw.stop))
                    failure = self._reported(raw.error)
            raise failure  # outside the handlers, so that it carries no context

    async def _post(self, path: str, payload: Json, draw: int) -> Json:
        import aiohttp

        session = self._session = self._session or self._open()
        content = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")  # half a surrogate pair becomes ?
        headers = self._headers(self._key() or NO_KEY)  # not on the session, because a proxy would see them
        headers |= {"Content-Type": "application/json", "Idempotency-Key": idempotency_key(payload, draw)}
        for _ in range(2):  # two loop turns: one to notice a closed idle connection, one to drop it
            await asyncio.sleep(0)
        sending = aiohttp.UploadTracker()
        try:
            async with session.post(
                self._at(path), data=content, headers=headers, allow_redirects=False, upload_tracker=sending
            ) as response:
                raw = await _bounded(response)
        except (aiohttp.ClientError, OSError) as error:  # OSError includes time-outs
            failure = self._lost(error, reached=sending.bytes_written > 0)
        except ValueError:
            failure = CallConfigError(self._text(f"{self._url} is not a valid address; correct the name"))
        else:
            if raw is None:
                cause = f"the endpoint's answers are longer than {BODY_BYTES // 10**6} MB"
                failure = InfraError(self._text(f"malformed answer: {cause}"), systemic=cause, attempts=2)
            elif response.status >= 300:
                failure = self._refusal(response.status, response.headers, raw)
            else:
                body, cause = parsed(raw.decode("utf-8", "replace"), response.headers.get("Content-Type", ""))
                if body is not None and not body.get("error"):
                    return body
                malformed = body is None
                failure = self._malformed(raw.decode("utf-8", "replace"), cause) if malformed else self._reported(body)
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
        """The URL of a call. The path goes before the query string, which Azure needs."""
        base, question, query = self._url.partition("?")
        return f"{base}{path}{question}{query}"

    def _key(self) -> str:
        return key_of(self._variable)

    def _text(self, problem: str) -> str:
        """An error message that starts with the model's name and contains no key, even if a server quotes it."""
        return f"`{self._name}`: {self._redacted(problem)}"

    def _redacted(self, text: str) -> str:
        """Redact before clipping, because half a key would not be recognised."""
        return redacted(text, *all_keys(), unquote(urlsplit(proxy_of(self._url) or "").password or ""))

    def _about_key(self) -> str:
        """Explains where the key of a refused call came from, and how to use another."""
        another = 'key_env = "VARIABLE" beside the model ([target], [optimizer] or [judge]) names'
        if self._variable is None:
            own = OWN[self._name.scheme][0]
            return f"No key was sent: {own} is for the provider's own host alone. {another} the variable to read"
        state = "is set, but not accepted here" if self._key() else "is not set"
        return f"The key is read from {self._variable}, which {state}; {another} another variable"

    def _malformed(self, body: str, cause: str = "") -> InfraError:
        """Error for a 200 that is not an answer. `cause` explains it if it affects all answers of the endpoint. An
        endpoint that has answered well has a bad moment, so it is asked again in full."""
        said = _clip(self._redacted(body)) or "(empty)"
        problem = f"malformed answer from {self._url}: {f'{cause}: ' if cause else ''}{said}"
        attempts = 3 if cause and not self._readable else None
        return InfraError(self._text(problem), systemic=cause, attempts=attempts)

    def _reported(self, error: Any) -> CallError:
        """Error for a 200 that contains an error. The type of the error follows the status that it stands for."""
        shown = _dumped(error)
        said = shown.lower()
        inside = error.get("error") if isinstance(error, dict) and isinstance(error.get("error"), dict) else error
        code = inside.get("code") or inside.get("status") if isinstance(inside, dict) else None
        place = "an error in an answer of status 200"
        problem = f"malformed answer from {self._url}: {place}: {_clip(self._redacted(shown))}"
        if _NO_MONEY.search(said):
            return CallConfigError(self._text(_then(problem, NO_CREDIT)))
        if _FILTERED.search(said):
            return self._filtered(problem)
        if _TOO_LONG.search(said):
            return self._too_long(problem)
        limited = str(code) in ("429", "503", "529") or "rate limit" in said
        return (RateLimited if limited else InfraError)(self._text(problem))

    def _filtered(self, problem: str) -> SampleError:
        fix = "A content filter refused this request: reword or leave out the sample"
        return SampleError(self._text(_then(problem, fix)), systemic="a content filter refuses the requests")

    def _too_long(self, problem: str) -> SampleError:
        fix = (
            "The request is longer than the model's context window: shorten or leave out the sample, shorten the "
            "skill, or lower max_tokens"
        )
        systemic = "the requests are longer than the model's context window: shorten the skill or lower max_tokens"
        return SampleError(self._text(_then(problem, fix)), systemic=systemic)

    def _lost(self, error: Exception, *, reached: bool) -> InfraError:
        """Error for a call without an answer. If not `reached`, nothing was sent, so nothing can be billed."""
        detail = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            detail = f"no connection within {min(CONNECT_S, self._timeout_s):g} s"
        elif "CERTIFICATE_VERIFY_FAILED" in detail:
            detail += "; if the network has its own certificate, set SSL_CERT_FILE to its file"
        if not reached:
            problem = f"cannot connect to {self._url}; is the server running? ({detail})"
            if self._proxy:
                host = urlsplit(self._url).hostname
                problem = (
                    f"cannot connect to {self._url} through the proxy {_bare(self._proxy)} from the environment "
                    f"({detail}). If {host} needs no proxy, list it in NO_PROXY"
                )
            return UnreachableError(self._text(problem))
        if isinstance(error, TimeoutError):
            return TimedOut(self._text(f"no answer from {self._url} within {self._timeout_s:g} s"))
        return InfraError(self._text(f"the connection to {self._url} was dropped: {detail}"))

    def _refusal(self, status: int, headers: Mapping[str, str], raw: bytes) -> CallError:
        """Error for a status other than 2xx."""
        body = raw.decode("utf-8", "replace")
        said = _complaint(body)
        problem = f"{self._url} answered {status}: {_words(self._redacted(body)) or '(empty)'}"
        if _NO_MONEY.search(said):
            return CallConfigError(self._text(_then(problem, NO_CREDIT)))
        if status in (400, 403, 422, 451) and _FILTERED.search(said):
            return self._filtered(problem)
        if status in (400, 422) and _THINKS_TOO_LONG.search(said):
            return NoText(self._text(f"{problem} ({CUT})"), systemic=CUT, attempts=2)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(said) and not _SLIP.search(said)):
            return self._too_long(problem)
        if status in (400, 422) or (status == 500 and refuses_system(said)):
            rejected = Rejected(self._text(problem))
            rejected.said = said
            if status == 500 or _SLIP.search(said) or _TRANSIENT_400.search(said):
                rejected.passing = InfraError(self._text(problem), retry_after=retry_after(headers))
            return rejected
        if status in _TRANSIENT or status >= 500:
            if status not in (429, 503, 529):
                return Refused(self._text(problem), retry_after=retry_after(headers))
            limited = RateLimited(self._text(problem), retry_after=stated_wait(headers, body))
            limited.daily = status == 429 and is_daily(headers, body)
            return limited
        fix = ""
        if status < 400:  # never followed, because the key would go to an address that nobody configured
            fix = f"It redirects to {_bare(headers.get('Location', ''))}: use the final address in the name"
        elif status in (401, 403):
            fix = self._about_key()
        elif status == 404:
            fix = f"Check that the model `{self._name.model}` exists there and that the URL is right"
        return CallConfigError(self._text(_then(problem, fix)))


def _then(problem: str, fix: str) -> str:
    """The problem in the endpoint's words, which may end with a full stop, and the sentence that says what to do."""
    return f"{problem.rstrip('.')}. {fix}" if fix else problem


@functools.cache
def tls_context() -> ssl.SSLContext:
    """TLS context with certifi's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    import ssl

    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()  # OpenSSL reads both variables
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def proxy_of(url: str) -> str | None:
    """The proxy for `url` from the environment, or None. Raises `UsageError` if the proxy does not speak HTTP."""
    from urllib.request import getproxies, proxy_bypass

    if loopback(url):
        return None  # a proxy cannot reach servers on this machine
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
    """32 hex digits of the SHA-256 of payload and draw number: equal for retries of a call only."""
    canonical = json.dumps([payload, draw], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def refuses(said: str, parameter: str) -> bool:
    """True if a complaint says that the parameter is unknown. A wrong *value* is for the user to fix."""
    return bool(re.search(rf"\b{parameter}\b", said) and _REFUSES.search(said))


def refuses_temperature(said: str) -> bool:
    """True if a complaint refuses all temperatures but one. A value out of range is for the user to fix."""
    named = re.search(r"\btemperature\b", said)
    return bool(named and (_REFUSES.search(said) or not _RANGE.search(said)))


def refuses_system(said: str) -> bool:
    """True if a complaint says that there is no system role."""
    return bool((_NO_SYSTEM.search(said) and _REFUSES.search(said)) or _USER_AND_ASSISTANT.search(said))


def wants(said: str, parameter: str) -> bool:
    """True if a complaint says that the parameter is missing."""
    return bool(
        re.search(rf"\b{parameter}\b", said)
        and re.search(r"required|missing|must be (set|given|specified|provided)", said)
    )


def wants_stream(said: str) -> bool:
    """True if a complaint says that the endpoint only streams."""
    return bool(
        re.search(r"non[- _]stream", said)
        or (re.search(r"\bstream", said) and re.search(r"\bonly\b|\bmust\b|required|please enable", said))
    )


def slipped(said: str) -> bool:
    """True if a complaint says that the model failed to produce JSON this time."""
    return bool(_SLIP.search(said))


def fold_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Move the system text to the start of the first user message, for models without a system role."""
    instructions = "\n\n".join(message.text for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    first = next((index for index, message in enumerate(rest) if message.role == "user"), None)
    if not instructions:
        return messages
    if first is None:
        return (Message("user", instructions), *rest)
    rest[first] = replace(rest[first], text=f"{instructions}\n\n{rest[first].text}")
    return tuple(rest)


def count(body: Mapping[str, Any], *path: str) -> int:
    """The number of tokens at `path`. 0 if the server reports none, null, or an implausible number."""
    value: Any = body
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return sane(value)


def estimate_tokens(request: Request, answer: str) -> tuple[int, int]:
    """Estimate (input, output) tokens if a server reports none: 4 characters per token, 1,000 tokens per image."""
    characters = sum(message.chars for message in request.messages)
    images = sum(len(message.images) for message in request.messages)
    return -(-characters // 4) + 1000 * images, -(-len(answer) // 4)


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The text up to the first stop sequence, for APIs without stop sequences."""
    return text[: min((at for s in stop if s and (at := text.find(s)) >= 0), default=len(text))]


async def _bounded(response: aiohttp.ClientResponse) -> bytes | None:
    """The decompressed body, or None if it is longer than `BODY_BYTES`."""
    if (response.content_length or 0) > BODY_BYTES:
        return None
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def parsed(text: str, content_type: str = "") -> tuple[Json | None, str]:
    """Return (object in a body, ""), also for a streamed body. If it cannot be read, return (None, cause).

    The cause is "" if only this body may be broken, and not all bodies of the endpoint.
    """
    try:
        value = json.loads(text, parse_int=_number)
        return (value, "") if isinstance(value, dict) else (None, "the endpoint's answers are not JSON objects")
    except RecursionError:
        return None, "the endpoint's answers are nested too deeply"
    except ValueError as error:
        broken = error
    if is_stream(content_type, text):
        try:
            return assembled(text), ""
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None, "the endpoint answers with a stream that cannot be read, although none was asked for"
    if text.lstrip().startswith("<"):
        return None, "the endpoint answers with a web page: check the URL"
    if isinstance(broken, json.JSONDecodeError) and broken.msg == "Extra data":
        return None, "the endpoint answers with several JSON values in one body"
    return None, ""


def _number(digits: str) -> float:
    """An integer of a JSON text. Very long ones become floats, hundreds of digits become infinite."""
    return int(digits) if len(digits) < 20 else float(digits)


def _dumped(body: Any) -> str:
    try:
        return json.dumps(body, ensure_ascii=False)
    except RecursionError:
        return "(nested too deeply)"


def _complaint(body: str) -> str:
    """An error body in lower case, without the fields that repeat the request."""
    try:
        found = json.loads(body)
        return json.dumps(_without_echo(found), ensure_ascii=False).lower()
    except (ValueError, RecursionError):
        return body.lower()


def _without_echo(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_echo(item) for item in value]
    if isinstance(value, dict):
        return {key: "" if key in _ECHOES else _without_echo(item) for key, item in value.items()}
    return value


def _bare(url: str) -> str:
    """The URL without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) or "(nowhere)"


def _words(body: str) -> str:
    """The human-readable part of an error body in any of the usual shapes."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return _clip(body)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict):
            found = found.get(key) or found
    return _clip(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


def _clip(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "…"
