"""One rollout at the gateway: its token, its limits, and everything that its agent asked and was answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from secrets import token_urlsafe
from typing import Any, TypeVar

from skilltune.aio import background
from skilltune.errors import CallConfigError, CallError, InfraError, SampleError, Stopped
from skilltune.gateway.activation import Activation, complaint, holds_body
from skilltune.gateway.body import Body, request_key, texts_of
from skilltune.gateway.relay import Relay
from skilltune.gateway.trajectory import turns_of
from skilltune.gateway.upstream import Link, Upstream
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run, exchange_kind
from skilltune.metering.slots import Endpoint
from skilltune.models import dialects, openai
from skilltune.models.dialects import Answer, Conversation, Dialect, Ended, Json, Message, Text, deltas_of
from skilltune.models.dialects.canonical import dumped
from skilltune.models.redact import without
from skilltune.rollout import Turn
from skilltune.usage import Usage

T = TypeVar("T")

GRACE_S = 10.0  # a request without tools waits so long for the request with tools that proves the skill
ENDED = "This task has reached its limit ({}). Stop here."
_ID: Mapping[Dialect, str] = {"anthropic-messages": "msg_", "openai-responses": "resp_", "openai-chat": "chatcmpl-"}
_FORWARDED = ("anthropic-version", "anthropic-beta", "openai-beta", "user-agent")


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """`max_turns` counts requests with tools, `max_usd` dollars. None means no limit."""

    max_turns: int | None = None
    max_usd: float | None = None


class _Broken(Exception):
    """An answer broke off after a part of it had reached the agent, so that only the agent can ask again."""

    def __init__(self, failure: CallError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Lease:
    """The right of one agent to ask one upstream, until `close`.

    `url` is the base URL for the agent (the OpenAI dialects live under url + "/v1"), and `token` is its key. `usage` is
    the cost of all exchanges of this rollout. `paid` is what this process paid for it: exchanges that were not replayed
    from the journal, and failed attempts. `turns_taken` counts the exchanges with tools. `offered` is True once the
    skill was proven to be in a request, `loaded` once its body was. `limit` is the limit that ended the rollout, or "".
    `sample` is the id of the task, for the account, and no value in `secrets` is journaled.
    """

    def __init__(
        self,
        link: Link,
        url: str,
        activation: Activation | None,
        limits: RolloutLimits,
        *,
        rollout_key: str,
        run: Run | None,
        slots: Endpoint,
        role: str,
        account: str,
        sample: str = "",
        secrets: Sequence[str] = (),
    ) -> None:
        self.token = token_urlsafe(24)
        self.url = f"{url}/{self.token}"
        self.usage = self.paid = Usage()
        self.exchanges = self.replayed = self.turns_taken = 0
        self.offered = self.loaded = False
        self.limit = ""
        self.closed = False
        self._final: Exception | None = None  # the failure that ended the rollout
        self._open: dict[tuple[str, ...], Exception] = {}  # failures after which the agent may go on, by conversation
        self._retried: dict[object, CallError] = {}  # the last failed attempt of each exchange under way
        self._link, self._activation, self._limits = link, activation, limits
        self._rollout_key, self._run, self._slots, self._role = rollout_key, run, slots, role
        self._kind, self._sample, self._secrets = exchange_kind(account), sample, secrets
        self._answered: Counter[str] = Counter()  # questions that the agent had a whole answer to
        self._last: tuple[_Question, Dialect, Mapping[str, Any], Json] | None = None
        self._proven = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], float] = {}  # exchanges under way, with the time of their start

    @property
    def upstream(self) -> Upstream:
        return self._link.upstream

    @property
    def key(self) -> str:
        """The API key that the agent gets: the token."""
        return self.token

    @property
    def fault(self) -> Exception | None:
        """The failure that ended the rollout, else one after which its conversation never went on, or None."""
        return self._final or next(iter(self._open.values()), None)

    @property
    def trouble(self) -> CallError | None:
        """The last failed attempt of an exchange that has not succeeded since, or None."""
        return next(iter(self._retried.values()), None)

    def close(self) -> None:
        """End the rollout: its token is unknown from now on, and calls under way are cancelled."""
        self.closed = True
        for task in self._tasks:
            task.cancel()

    async def end(self) -> float:
        """Close the lease and wait for its exchanges. A cancelled call counts as paid, because it may have been billed.

        Returns the seconds that the oldest cancelled exchange had waited for its answer, 0 without one.
        """
        under_way = {task: began for task, began in self._tasks.items() if not task.done()}
        waited = max((time.monotonic() - began for began in under_way.values()), default=0.0)
        self.close()
        await asyncio.gather(*under_way, return_exceptions=True)
        return waited

    # -- the trajectory

    def turns(self) -> tuple[Turn, ...]:
        """The messages of the last request with tools (or the last one at all), then its answer."""
        if self._last is None:
            return ()
        question, dialect, asked, body = self._last
        answer = self._parsed(body, question)
        return turns_of(dialects.parse_request(dialect, asked), answer, self._activation)

    def answer(self) -> str:
        """The text of the last answer, "" if there is none."""
        return self._parsed(self._last[3], self._last[0]).text if self._last is not None else ""

    # -- one exchange

    async def exchange(self, body: Body, headers: Mapping[str, str], query: str, relay: Relay, ping_s: float) -> None:
        """Answer one request of the agent, whatever happens."""
        task = background(self._exchange(body, headers, query, relay))
        self._tasks[task] = time.monotonic()
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=ping_s)
                if not task.done():
                    await relay.ping(ping_s)
            await task
        except asyncio.CancelledError:
            if not task.cancelled():  # this handler was cancelled, because the server stops
                task.cancel()
                raise
            await relay.fail(400, "the rollout has ended")
        except _Broken as broken:
            self._interrupt(broken.failure, relay.dialect, body.data)
            await relay.fail(529 if relay.dialect == "anthropic-messages" else 500, str(broken))
        except SampleError as failure:
            self._interrupt(failure, relay.dialect, body.data)
            await relay.fail(400, str(failure))
        except (CallError, Stopped) as failure:
            self._end(failure)
            await relay.fail(400, str(failure))
        except Exception as failure:  # our own error: the agent must not wait for ever, and the rollout has no result
            self._end(failure)
            await relay.fail(400, "the gateway failed")
        finally:
            self._tasks.pop(task, None)

    def _end(self, failure: Exception) -> None:
        """The first failure that ends the rollout is its fault."""
        self._final = self._final or failure

    def _interrupt(self, failure: Exception, dialect: Dialect, asked: Mapping[str, Any]) -> None:
        """Remember a failure after which the agent may go on. It is forgotten if the same conversation goes on.

        Another conversation, such as that of a sub-agent beside it, proves nothing.
        """
        self._open[_conversation(dialect, asked)] = failure

    async def _exchange(self, body: Body, headers: Mapping[str, str], query: str, relay: Relay) -> None:
        if self.closed or self._final is not None:
            raise self._final or CallConfigError("the rollout has ended")
        asks_tools = bool(body.data.get("tools"))
        same = request_key(self._rollout_key, self.upstream.fingerprint, relay.dialect, body)
        key = f"{same}/{self._answered[same]}"
        question = self._question(body, headers, query, relay.dialect, f"{_ID[relay.dialect]}{digest(key)[:24]}")
        await self._prove(body.data, asks_tools)
        if self._over(asks_tools):
            await self._say_limit(relay, question)
            return
        replayed = self._run is not None and self._run.recall(key) is not None
        self.turns_taken += asks_tools
        heard = _Translation(self.upstream.dialect, question, relay) if question.asked else _Passage(relay)
        live: list[Json] = []  # the answer as the model gave it, if it was asked now
        try:
            stored = await self._memo(key, lambda: self._ask(question, relay, heard, live))
        except BaseException:
            self.turns_taken -= asks_tools  # it was no turn
            raise
        answer = live[0] if live else stored["body"]
        self._count(relay.dialect, body.data, answer, question, replayed=replayed, asks_tools=asks_tools)
        if relay.committed:
            await heard.end(lambda: self._parsed(answer, question))
        else:
            await self._replay(answer, question, relay)
        if not relay.gone:
            self._answered[same] += 1

    def _question(self, body: Body, headers: Mapping[str, str], query: str, dialect: Dialect, id: str) -> _Question:
        upstream = self.upstream
        if dialect == upstream.dialect:
            kept = {name: headers[name] for name in _FORWARDED if name in headers}
            content, asked_for = body.for_model(upstream.model), str(body.data.get("model"))
            return _Question(content, kept, query, None, len(body.text), asked_for, id)
        asked = dialects.translated_request(dialect, body.data)
        sent = dialects.render_request(upstream.dialect, replace(asked, model=upstream.model))
        if upstream.base_url == openai.OFFICIAL and "max_tokens" in sent:
            sent["max_completion_tokens"] = sent.pop("max_tokens")  # its new models know no other name
        return _Question(dumped(sent).encode("utf-8", "replace"), {}, "", asked, len(body.text), asked.model, id)

    async def _prove(self, body: Mapping[str, Any], asks_tools: bool) -> None:
        """Raise `CallConfigError` unless the skill stands in the first request with tools. One without tools that does
        not hold it waits for that, because agents ask for a title at the same time, and fails if none comes."""
        if not self._proven.is_set():
            why = complaint(self._activation, body)
            if why and not asks_tools:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._proven.wait(), GRACE_S)
                if isinstance(self.fault, CallConfigError):
                    raise self.fault
                if not self._proven.is_set():
                    raise CallConfigError(f"nothing was sent to the model: {why}")
                return
            if why:
                failure = CallConfigError(f"nothing was sent to the model: {why}")
                self._end(failure)
                self._proven.set()  # those who wait fail now, because of the fault
                raise failure
            self.offered = self._activation is not None
            self._proven.set()
        if self._activation is not None and not self.loaded:
            self.loaded = holds_body(self._activation, texts_of(body))

    def _over(self, asks_tools: bool) -> bool:
        limits = self._limits
        if not self.limit and asks_tools and limits.max_turns is not None and self.turns_taken >= limits.max_turns:
            self.limit = f"max_turns = {limits.max_turns}"
        if not self.limit and limits.max_usd is not None and (self.usage.usd or 0.0) >= limits.max_usd:
            self.limit = f"max_usd = {limits.max_usd:g}"
        return bool(self.limit)

    async def _say_limit(self, relay: Relay, question: _Question) -> None:
        """An answer without a tool call ends the loop of every agent; an error would be tried again."""
        await self._deliver(Answer((Text(ENDED.format(self.limit)),), "stop", Usage()), relay, question)

    async def _deliver(self, answer: Answer, relay: Relay, question: _Question) -> None:
        encoder = dialects.encoder(relay.dialect, question.model, question.id)
        events = (event for delta in deltas_of(answer) for event in encoder.feed(delta))
        await relay.finish(
            dialects.render_response(relay.dialect, replace(answer, id=question.id, model=question.model)), events
        )

    async def _replay(self, body: Json, question: _Question, relay: Relay) -> None:
        """Deliver an answer that is complete."""
        if question.asked is None:
            await relay.finish(body, dialects.events_of(relay.dialect, body))
        else:
            await self._deliver(self._parsed(body, question), relay, question)

    def _parsed(self, body: Json, question: _Question) -> Answer:
        tools = question.asked.tools if question.asked is not None else ()
        return dialects.parse_response(self.upstream.dialect, body, tools)

    async def _memo(self, key: str, ask: Callable[[], Awaitable[Paid]]) -> Json:
        if self._run is not None:
            return await self._run.memo(key, self._kind, ask)
        return (await ask()).value

    async def _ask(self, question: _Question, relay: Relay, heard: _Passage | _Translation, live: list[Json]) -> Paid:
        """Ask the model. Nothing is awaited after its answer is whole, so every whole answer is journaled."""

        async def work() -> Json:
            try:
                heard.begin()
                return await self._link.ask(question.content, question.headers, question.query, heard)
            except asyncio.CancelledError:
                self._note_failure(InfraError("the call was cut off by the end of the rollout"), question)
                raise
            except CallError as failure:
                self._retried[relay] = failure
                self._note_failure(failure, question)
                if relay.committed:
                    raise _Broken(failure) from failure
                raise

        try:
            body = await in_slot(self._slots, self._role, work)
        except Exception:  # not if it is cut off: then its last failure explains the agent's time-out
            self._retried.pop(relay, None)
            raise
        self._retried.pop(relay, None)
        usage = self._priced(body, question)
        self.paid += usage
        live.append(body)
        return Paid({"body": without(body, self._secrets), "sample": self._sample}, usage)

    def _note_failure(self, failure: CallError, question: _Question) -> None:
        """Count a failed attempt that reached the endpoint. If its cost is unknown, the request counts as read."""
        if not isinstance(failure, InfraError) or not failure.reached:
            return
        known = failure.usage or (None if failure.billed else Usage(calls=1))
        usage = known or self.upstream.priced(Usage(calls=1, input_tokens=question.characters // 4))
        self.paid += usage
        if self._run is not None:
            why = without(str(failure), self._secrets)
            self._run.record_failure(self._kind, why, usage, estimated=known is None)

    def _priced(self, body: Json, question: _Question) -> Usage:
        dialect = self.upstream.dialect
        usage = dialects.usage_of(dialect, body)
        if not usage.input_tokens:
            usage += Usage(input_tokens=-(-question.characters // 4))
        if not usage.output_tokens:
            usage += Usage(output_tokens=max(1, sum(map(len, texts_of(body))) // 4))
        return self.upstream.priced(usage, dialects.cache_writes(dialect, body))

    def _count(
        self,
        dialect: Dialect,
        asked: Mapping[str, Any],
        body: Json,
        question: _Question,
        *,
        replayed: bool,
        asks_tools: bool,
    ) -> None:
        self.exchanges += 1
        self.replayed += replayed
        self.usage += self._priced(body, question)
        if self._open:
            here = _conversation(dialect, asked)
            self._open = {begin: why for begin, why in self._open.items() if here[: len(begin)] != begin}
        if asks_tools or self._last is None or not self._last[2].get("tools"):
            self._last = question, dialect, asked, body


@dataclass(frozen=True, slots=True)
class _Question:
    """A request as it is sent. `asked` is its canonical form if it is translated, else None. `model` is the name that
    the agent asked for, `id` the id of a response that we write ourselves."""

    content: bytes
    headers: Mapping[str, str]
    query: str
    asked: Conversation | None
    characters: int
    model: str
    id: str


class _Passage:
    """Relays a stream of the agent's own dialect. Events before the answer are held back for as long as it has not
    begun, so that an upstream that fails at the start can be asked again."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._held: list[bytes] = []

    def begin(self) -> None:
        self._held.clear()

    async def __call__(self, events: list[tuple[bytes, Json | None]], content: bool) -> None:
        self._held += [raw for raw, _ in events]
        if content and self._relay.streams:
            data = b"".join(self._held)
            self._held.clear()
            await self._relay.write(data)

    async def end(self, answer: Callable[[], Answer]) -> None:
        pass


class _Translation:
    """Translates a stream event by event."""

    def __init__(self, dialect: Dialect, question: _Question, relay: Relay) -> None:
        self._dialect: Dialect = dialect
        self._question, self._relay = question, relay
        self.begin()

    def begin(self) -> None:
        asked = self._question.asked
        self._decoder = dialects.decoder(self._dialect, asked.tools if asked else ())
        self._encoder = dialects.encoder(self._relay.dialect, self._question.model, self._question.id)

    async def __call__(self, events: list[tuple[bytes, Json | None]], content: bool) -> None:
        if not self._relay.streams:
            return
        deltas = (delta for _, event in events if event is not None for delta in self._decoder.feed(event))
        if data := b"".join(event for delta in deltas for event in self._encoder.feed(delta)):
            await self._relay.write(data)

    async def end(self, answer: Callable[[], Answer]) -> None:
        await self._relay.write(b"".join(self._encoder.feed(Ended(answer()))))


def _conversation(dialect: Dialect, asked: Mapping[str, Any]) -> tuple[str, ...]:
    """Identifies the conversation of a request by the user's texts before the model's first answer.

    Empty for a request without tools, because agents ask for titles and summaries in passing. The rollout goes on
    without them, so any later answer makes up for them.
    """
    messages: tuple[Message, ...] = ()
    if asked.get("tools"):
        with suppress(CallConfigError):
            messages = dialects.parse_request(dialect, asked).messages
    begin = takewhile(lambda message: message.role != "assistant", messages)
    texts = (
        part.text for message in begin if message.role == "user" for part in message.parts if isinstance(part, Text)
    )
    return tuple(texts)


async def in_slot(slots: Endpoint, role: str, work: Callable[[], Awaitable[T]]) -> T:
    """Run work in a slot of the scheduler, which repeats it after an `InfraError`. It is never hedged, because two
    answers cannot be relayed."""
    return await slots.run(role, work, on_hedge=_never)


def _never() -> None:
    raise CallConfigError("an exchange of an agent is not sent twice")
