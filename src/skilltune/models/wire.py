"""What the provider SDKs have in common: one JSON request over HTTP, and a typed error for whatever goes wrong.

Both SDKs are used as transports only (their `post` with a raw response). Real endpoints deviate from the typed
models in every direction, so replies are read as plain JSON; and exceptions of an SDK hold the request with its
headers, so they are never chained to ours: no key can reach a log through a traceback.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from skilltune.errors import CallConfigError, InfraError, UnreachableError, UsageError
from skilltune.models import Reply, Request
from skilltune.models.retry import RateLimited
from skilltune.names import Name

Json = dict[str, Any]

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
    """One endpoint, reached through an SDK client that is made on first use.

    `connect(key)` returns (the SDK's module, its async client). The key is read from the environment variable
    `key_variable`; only the provider's own endpoint insists on it. `timeout_s` bounds one request in all.
    """

    def __init__(
        self, name: Name, url: str, key_variable: str, connect: Callable[[str], tuple[Any, Any]], timeout_s: float
    ) -> None:
        self._name, self._url, self._variable = name, url, key_variable
        self._connect, self._timeout_s = connect, timeout_s
        self._connection: tuple[Any, Any] | None = None
        key = self._key()
        if not key and name.url is None:
            raise UsageError(f"`{name}` needs a key: set the environment variable {key_variable}")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"{key_variable} holds characters that no key has (white space, a line break, a non-ASCII sign)"
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
                return replace(reply, text=reply.text.encode("utf-8", "replace").decode())  # see _post
            except (LookupError, TypeError, AttributeError):  # not the shape that `read` expects
                failure = self._malformed(json.dumps(body, ensure_ascii=False))
            raise failure

    async def _post(self, path: str, payload: Json, draw: int) -> Json:
        import httpx2

        sdk, client = self._connection = self._connection or self._connect(self._key() or NO_KEY)
        content = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")  # half a surrogate pair becomes ?
        headers = {"Idempotency-Key": idempotency_key(payload, draw), "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._timeout_s):  # the SDK's own is per read, so a trickle would never end
                response = await client.post(
                    path, cast_to=httpx2.Response, content=content, options={"headers": headers}
                )
        except (TimeoutError, sdk.APITimeoutError):
            failure = InfraError(self._text(f"no answer from {self._url} within {self._timeout_s:g} s"))
        except sdk.APIConnectionError as error:
            failure = self._connection_failure(error.__cause__ or error)
        except sdk.APIStatusError as error:
            failure = self._status_failure(error.response)
        else:
            try:
                body = response.json()
            except ValueError:
                body = None
            if isinstance(body, dict) and not body.get("error"):
                return body
            failure = self._malformed(response.text)
        raise failure  # outside the handlers, so that it carries no context

    async def aclose(self) -> None:
        if self._connection is not None:
            _, client = self._connection
            self._connection = None
            await client.close()

    def _key(self) -> str:
        return os.environ.get(self._variable, "").strip()

    def _text(self, problem: str) -> str:
        """The message of an error: the model's name first, and no key even where a server quotes it."""
        key = self._key()
        return f"`{self._name}`: {problem.replace(key, '[key]') if len(key) >= 8 else problem}"

    def _malformed(self, body: str) -> InfraError:
        """For a 200 that is no answer: broken JSON, no choices, an error in disguise."""
        return InfraError(self._text(f"malformed answer from {self._url}: {_clip(body) or '(empty)'}"))

    def _connection_failure(self, cause: BaseException) -> InfraError:
        import httpx2

        if isinstance(cause, httpx2.ConnectError):
            return UnreachableError(self._text(f"cannot connect to {self._url}; is the server running? ({cause})"))
        detail = str(cause) or type(cause).__name__
        return InfraError(self._text(f"the connection to {self._url} was dropped: {detail}"))

    def _status_failure(self, response: Any) -> InfraError | CallConfigError:
        status, said = response.status_code, response.text.lower()
        problem = f"{self._url} answered {status}: {_words(response.text) or response.reason_phrase}"
        if _NO_MONEY.search(said):
            return CallConfigError(self._text(f"{problem}. The account has no credit left; add some or change the key"))
        if status in _TRANSIENT or status >= 500:
            kind = RateLimited if status in (429, 529) else InfraError
            return kind(self._text(problem), retry_after=retry_after(response.headers))
        if status in (400, 413, 422) and _TOO_LONG.search(said):
            fix = "The request is longer than the model's context window: shorten the samples or lower max_tokens"
            return CallConfigError(self._text(f"{problem}. {fix}"))
        if status in (400, 422):
            rejected = Rejected(self._text(problem))
            rejected.said = said
            return rejected
        fix = ""
        if status in (401, 403):
            set_or_not = "is not set" if not self._key() else "is set, but not accepted here"
            fix = f". The key is read from {self._variable}, which {set_or_not}"
        elif status == 404:
            fix = f". Check that the model `{self._name.model}` exists there and that the URL is right"
        return CallConfigError(self._text(problem + fix))


def idempotency_key(payload: Json, draw: int) -> str:
    """32 hex digits of the SHA-256 of what is sent and the number of the draw: equal for retries, and only for them."""
    canonical = json.dumps([payload, draw], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a server asks for, in seconds from now: `retry-after-ms`, or `Retry-After` as seconds or date."""
    for header, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(header, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text) / unit
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


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
