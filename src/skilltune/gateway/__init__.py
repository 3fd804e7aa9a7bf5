"""The gateway between agents and models: one server through which every request of every agent goes. It listens on
127.0.0.1, unless agents run on other machines.

It speaks Anthropic Messages, OpenAI Responses and Chat Completions. Each rollout has a lease with a random token, which
is a part of the URL and the only key that its agent sees. Each exchange is checked against the limits of the rollout,
takes a slot of the upstream's scheduler, is metered, and is journaled, so that an agent that is started again after a
kill is answered from the journal as far as it repeats itself. Before anything is sent upstream, the first request must
hold what the activation mode promises.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from skilltune.errors import UsageError
from skilltune.execute import LOOPBACK, Tls
from skilltune.gateway.activation import Activation
from skilltune.gateway.body import read_body, texts_of
from skilltune.gateway.lease import Lease, RolloutLimits
from skilltune.gateway.relay import Relay
from skilltune.gateway.upstream import Link, Upstream, upstream_of
from skilltune.journal.run import Run
from skilltune.metering.slots import Endpoint
from skilltune.models import dialects
from skilltune.models.dialects import Dialect, Json
from skilltune.usage import Usage

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger(__name__)

BODY_BYTES = 64_000_000  # most bytes of one request of an agent
PING_S = 10.0  # a waiting agent hears something at least this often
TIMEOUT_S = 600.0  # longest silence of an upstream
WORKERS = 32  # calls at once to an upstream without a scheduler of its own

_DIALECTS: dict[str, Dialect] = {
    "/v1/messages": "anthropic-messages",
    "/v1/responses": "openai-responses",
    "/v1/chat/completions": "openai-chat",
}


class Gateway:
    """One server for all rollouts of a process: `start`, then a `lease` per attempt, then `aclose`.

    `host` is the one address on which it listens; agents on other machines need that of this machine, and `tls`
    encrypts what they send. `on_late` hears of each request of an agent whose rollout has ended.
    """

    def __init__(
        self,
        *,
        host: str = LOOPBACK,
        tls: Tls | None = None,
        ping_s: float = PING_S,
        timeout_s: float = TIMEOUT_S,
        on_late: Callable[[], None] = lambda: None,
    ) -> None:
        self._host, self._ping_s, self._timeout_s, self._on_late = host, ping_s, timeout_s, on_late
        self._tls = tls
        self._ended: set[bytes] = set()  # hashes of the tokens of closed leases
        self._leases: dict[str, Lease] = {}
        self._links: dict[Upstream, tuple[Link, Endpoint]] = {}
        self._runner: web.ServerRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://{self._host}:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self.port

    async def start(self) -> None:
        from aiohttp import web

        server = web.Server(self._handle, access_log=None)  # paths hold tokens
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        context = self._tls.context() if self._tls else None
        await web.TCPSite(self._runner, self._host, 0, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]

    async def aclose(self) -> None:
        for lease in self._leases.values():
            lease.close()
        self._leases.clear()
        if self._runner is not None:
            await self._runner.cleanup()
        for link, _ in self._links.values():
            await link.aclose()

    async def __aenter__(self) -> Gateway:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def lease(
        self,
        upstream: Upstream,
        activation: Activation | None,
        limits: RolloutLimits,
        *,
        rollout_key: str,
        run: Run | None,
        slots: Endpoint | None,
        role: str = "target",
        account: str = "",
        sample: str = "",
        secrets: Sequence[str] = (),
    ) -> Lease:
        """The right of one attempt's agent to ask `upstream`.

        `rollout_key` identifies the attempt and its question; exchanges are journaled under it in `run`, in the name of
        `account` ("" is the role) and for `sample`, without the values in `secrets`. Raises `UsageError` for a limit in
        dollars if the price of the model is unknown.
        """
        if limits.max_usd is not None and upstream.priced(Usage(1, 1000, 1000)).usd is None:
            raise UsageError(
                f"the price of `{upstream.known}` is unknown, so max_usd cannot hold: set price = [input, output], or "
                "use max_turns"
            )
        if upstream not in self._links:
            self._links[upstream] = Link(upstream, self._timeout_s), Endpoint(WORKERS)
        link, own = self._links[upstream]
        lease = Lease(
            link,
            self.url,
            activation,
            limits,
            rollout_key=rollout_key,
            run=run,
            slots=slots or own,
            role=role,
            account=account or role,
            sample=sample,
            secrets=secrets,
        )
        self._ended.update(_hash(token) for token, known in self._leases.items() if known.closed)
        self._leases = {token: known for token, known in self._leases.items() if not known.closed}
        self._leases[lease.token] = lease
        return lease

    # -- the server

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        known = (self._host, "localhost") if self._host == LOOPBACK else (self._host,)
        if request.headers.get("Host", "") not in (f"{name}:{self.port}" for name in known):
            return _refusal(403, "this server is for the agents of a run")
        token, slash, path = request.path.removeprefix("/").partition("/")
        lease = self._find(token)
        path = slash + path
        dialect = _DIALECTS.get(path, "anthropic-messages" if "messages" in path else "openai-chat")
        if lease is None:
            if _hash(token) in self._ended or token in self._leases:
                self._on_late()
            return _refusal(401, "unknown token: the rollout has ended", dialect)
        if path == "/v1/models" and request.method == "GET":
            return web.json_response(_models(lease.upstream.model))
        if path not in (*_DIALECTS, "/v1/messages/count_tokens") or request.method != "POST":
            return _refusal(404, f"the gateway has no {request.method} {path}", dialect)
        raw = await _read(request)
        if raw is None:
            return _refusal(413, f"the request is longer than {BODY_BYTES // 10**6} MB", dialect)
        try:
            body = read_body(raw)
        except ValueError as error:
            return _refusal(400, f"the request is not JSON: {error}", dialect)
        if path == "/v1/messages/count_tokens":
            return web.json_response({"input_tokens": -(-sum(map(len, texts_of(body.data))) // 4)})
        relay = Relay(request, dialect, streams=body.data.get("stream") is True)
        headers = {name.lower(): value for name, value in request.headers.items()}
        await lease.exchange(body, headers, request.query_string, relay, self._ping_s)
        return relay.response or _refusal(500, "the gateway failed", dialect)

    def _find(self, token: str) -> Lease | None:
        """The lease of a token. The comparison takes the same time for every wrong token."""
        given = token.encode("utf-8", "replace")
        found = [lease for known, lease in self._leases.items() if hmac.compare_digest(known.encode(), given)]
        return found[0] if found and not found[0].closed else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


async def _read(request: web.BaseRequest) -> bytes | None:
    parts, size = list[bytes](), 0
    async for part in request.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > BODY_BYTES:
            return None
    return b"".join(parts)


def _refusal(status: int, message: str, dialect: Dialect = "openai-chat") -> web.Response:
    from aiohttp import web

    return web.json_response(dialects.error_body(dialect, status, message), status=status)


def _models(model: str) -> Json:
    """The list of models, in a form that fits both vendors."""
    one = {"id": model, "object": "model", "type": "model", "display_name": model, "created": 0, "owned_by": "gateway"}
    return {"object": "list", "data": [one], "has_more": False, "first_id": model, "last_id": model}


__all__ = ["Activation", "Gateway", "Lease", "RolloutLimits", "Upstream", "upstream_of"]
