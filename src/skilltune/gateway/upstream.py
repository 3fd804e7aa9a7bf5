"""The endpoint at which an agent's model really lives, and the one request that is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from skilltune.errors import CallConfigError, CallError, InfraError
from skilltune.keys import key_of, key_variable
from skilltune.models import anthropic, dialects, openai
from skilltune.models.dialects import Dialect, Json, sse
from skilltune.models.prices import price
from skilltune.models.redact import redacted
from skilltune.models.stream import is_stream
from skilltune.models.wire import BODY_BYTES, CONNECT_S, NO_KEY, Wire, parsed
from skilltune.names import parse_name
from skilltune.usage import Usage

if TYPE_CHECKING:
    import aiohttp

PATHS: dict[Dialect, str] = {
    "anthropic-messages": "/v1/messages",
    "openai-responses": "/responses",
    "openai-chat": "/chat/completions",
}

LAST_S = 5.0  # longest wait for the end of a stream after its answer is whole

Heard = Callable[[list[tuple[bytes, Json | None]], bool], Awaitable[None]]
"""Called with whole events of a stream as they come (bytes and object), and with True once an answer has begun."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model's endpoint. `base_url` ends in "/v1" for the OpenAI dialects and before it for Anthropic's.

    `rate` is (dollars per million input tokens, dollars per million output tokens) and overrides the price list. `name`
    is the model in skilltune's grammar, by which its price is found. `key` is shown nowhere.
    """

    dialect: Dialect
    base_url: str
    model: str
    key: str = field(default="", repr=False)
    rate: tuple[float, float] | None = None
    name: str = ""

    @property
    def known(self) -> str:
        """The model in skilltune's grammar."""
        scheme = "anthropic" if self.dialect == "anthropic-messages" else "openai"
        return self.name or f"{scheme}@{self.base_url}#{self.model}"

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its endpoint, without the key."""
        return f"{self.dialect} {self.base_url} {self.model}"

    def priced(self, usage: Usage, written: int = 0) -> Usage:
        """The usage with its price, None if it is unknown. `written` tokens of the input went into a cache."""
        return replace(usage, usd=price(self.known, usage, override=self.rate, written=written))


def upstream_of(
    text: str,
    *,
    api: Literal["chat", "responses"] | None = None,
    key_env: str | None = None,
    rate: tuple[float, float] | None = None,
) -> Upstream:
    """The upstream behind the name of a model, such as `openai@http://127.0.0.1:8000/v1/qwen3`.

    `api` chooses between OpenAI's two APIs. By default it is Responses at OpenAI's own endpoint and Chat Completions
    everywhere else. Raises `UsageError` for a name that cannot be parsed, `CallConfigError` for one that is not a model
    behind an API, or if its key is not set.
    """
    name = parse_name(text)
    if name.scheme not in ("openai", "anthropic"):
        raise CallConfigError(f"`{name}` has no API that the gateway could call: name an openai or anthropic model")
    variable = key_variable(name, key_env)
    key = key_of(variable)
    if variable and not key and (name.url is None or key_env):
        raise CallConfigError(f"`{name}` needs a key: set the environment variable {variable}")
    if name.scheme == "anthropic":
        return Upstream("anthropic-messages", name.url or anthropic.OFFICIAL, name.model, key, rate, text)
    dialect = "openai-chat" if api == "chat" or (api is None and name.url is not None) else "openai-responses"
    return Upstream(dialect, name.url or openai.OFFICIAL, name.model, key, rate, text)


class Link(Wire):
    """The connections to one upstream. Failures are typed and worded as those of any other model's call."""

    def __init__(self, upstream: Upstream, timeout_s: float) -> None:
        """`timeout_s` limits the silence before and within an answer, because an answer may take long."""
        self.upstream = upstream
        super().__init__(parse_name(upstream.known), upstream.base_url, self._authentication, timeout_s)

    def _key(self) -> str:
        return self.upstream.key

    def _redacted(self, text: str) -> str:
        return redacted(super()._redacted(text), self.upstream.key)

    def _about_key(self) -> str:
        given = "The key of the model" if self.upstream.key else "No key"
        return f'{given} was sent there; key_env = "VARIABLE" beside the model names the variable to read'

    def _authentication(self, key: str) -> Json:
        if self.upstream.dialect == "anthropic-messages":
            official = self.upstream.base_url == anthropic.OFFICIAL
            own = {"x-api-key": key, "anthropic-version": anthropic.VERSION}
            return own if official else own | {"Authorization": f"Bearer {key}"}
        return {"api-key": key} if "?" in self.upstream.base_url else {"Authorization": f"Bearer {key}"}

    async def ask(self, content: bytes, headers: Mapping[str, str], query: str, heard: Heard) -> Json:
        """Send one request and return the whole answer as JSON, also if it is streamed.

        `heard` gets the events of a stream as they come. Raises `InfraError`, `SampleError` or `CallConfigError`.
        """
        import aiohttp

        session = self._session = self._session or self._open()
        sent = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        sent |= self._headers(self.upstream.key or NO_KEY) | dict(headers)
        url = self._at(PATHS[self.upstream.dialect])
        url += ("&" if "?" in url else "?") + query if query else ""
        for _ in range(2):  # two loop turns: one to notice a closed idle connection, one to drop it
            await asyncio.sleep(0)
        sending = aiohttp.UploadTracker()
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=self._timeout_s)
        answer = _Answer(self.upstream.dialect, heard)
        try:
            async with session.post(
                url, data=content, headers=sent, allow_redirects=False, upload_tracker=sending, timeout=timeout
            ) as response:
                kind = response.headers.get("Content-Type", "")
                streamed = response.status < 300 and is_stream(kind, "")
                while chunk := await _next(response, LAST_S if streamed and answer.body is not None else None):
                    if await (answer.events(chunk) if streamed else answer.more(chunk)):
                        break
        except (aiohttp.ClientError, OSError) as error:  # OSError includes time-outs
            failure = None if answer.complete else self._lost(error, reached=sending.bytes_written > 0)
        except _Unreadable as error:
            failure = self._malformed(str(error), "the stream cannot be read")
        else:
            if answer.failure is not None:
                failure = self._reported(answer.failure)
            elif answer.too_long:
                failure = InfraError(self._text(f"malformed answer: it is longer than {BODY_BYTES // 10**6} MB"))
            elif response.status >= 300:
                failure = self._refusal(response.status, response.headers, answer.raw)
            else:
                failure = None if streamed else self._plain(answer, kind)
                if failure is None and answer.body is None:
                    failure = self._lost(
                        ConnectionError("the stream ended before its answer was complete"), reached=True
                    )
        if failure is not None:
            raise failure  # outside the handlers, so that it carries no context
        assert answer.body is not None
        try:
            dialects.parse_response(self.upstream.dialect, answer.body)
        except (LookupError, TypeError, ValueError, AttributeError):
            failure = self._malformed(repr(answer.body), "the answers have no known shape: check the URL")
        else:
            self._readable = True
            return answer.body
        raise failure

    def _plain(self, answer: _Answer, kind: str) -> CallError | None:
        """Read an answer that is not a stream. Returns the failure, or None."""
        body, cause = parsed(answer.raw.decode("utf-8", "replace"), kind)
        if body is None:
            return self._malformed(answer.raw.decode("utf-8", "replace"), cause)
        if body.get("error") or body.get("type") == "error":
            return self._reported(body)
        answer.body = body
        return None


async def _next(response: aiohttp.ClientResponse, patience_s: float | None) -> bytes:
    """The next bytes of an answer, empty at its end. Some servers keep the connection open after a whole answer."""
    if patience_s is None:
        return await response.content.readany()
    async with asyncio.timeout(patience_s):
        return await response.content.readany()


class _Unreadable(ValueError):
    """An event of a stream has no known shape."""


class _Answer:
    """An answer as it arrives."""

    def __init__(self, dialect: Dialect, heard: Heard) -> None:
        self.body: Json | None = None
        self.too_long = False
        self._heard = heard
        self._splitter, self._assembler = sse.Splitter(), dialects.assembler(dialect)
        self._plain: list[bytes] = []
        self._size = 0

    @property
    def failure(self) -> Any:
        return self._assembler.failure

    @property
    def raw(self) -> bytes:
        return b"".join(self._plain)

    @property
    def complete(self) -> bool:
        """True if the answer is whole, so that the loss of the connection after it does no harm."""
        self.body = self._assembler.body if self.failure is None else None
        return self.body is not None

    async def more(self, chunk: bytes) -> bool:
        self._plain.append(chunk)
        self._size += len(chunk)
        self.too_long = self._size > BODY_BYTES
        return self.too_long

    async def events(self, chunk: bytes) -> bool:
        """Read the events of a chunk. Returns True at the end of the stream."""
        events: list[tuple[bytes, Json | None]] = []
        end = False
        try:
            for raw in self._splitter.feed(chunk):
                event = sse.object_of(raw)
                if event is not None:
                    self._assembler.feed(event)
                    if self._assembler.failure is not None:
                        return True
                end = end or (event is None and raw.startswith(b"data:"))  # [DONE]
                events.append((raw, event))
            if events:
                await self._heard(events, self._assembler.content)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _Unreadable(f"{type(error).__name__}: {error}") from None
        self._size += len(chunk)
        self.too_long = self._size > 8 * BODY_BYTES  # a stream of small events is many times its answer
        self.body = self._assembler.body
        return end or self.too_long
