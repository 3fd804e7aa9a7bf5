"""The routes of the live page: the page itself, its data as JSON, streams of changes, and actions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from skilltune.authoring.review import Changed
from skilltune.errors import RunError, SkilltuneError, UsageError
from skilltune.history.page import transcript
from skilltune.journal.run import Run
from skilltune.report.html import policy, shell
from skilltune.ui.actions import Actions, ReadOnly, Refused
from skilltune.ui.feed import Feeds
from skilltune.ui.guard import answer, refusal
from skilltune.ui.runs import UnknownRun

T = TypeVar("T")
ACTIONS_AT_ONCE = 4
MOST_BODY = 1_000_000  # bytes
MOST_FILE = 50_000_000
RETRY_MS = 1_000  # pause before a browser connects to a stream again
_HASH = re.compile(r"[0-9a-f]{6,64}")
_IMAGES = (  # (first bytes, media type) of the images that a browser may show; SVG can hold scripts
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def make_app(feeds: Feeds, actions: Actions) -> Starlette:
    """The application, without its guard. Actions have threads of their own, because a check or a start may take long,
    and reading must not wait for them."""
    allowed = f"{policy(live=True)}; frame-ancestors 'none'"
    pool = ThreadPoolExecutor(ACTIONS_AT_ONCE, "action")

    async def do(fn: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, fn, *arguments)

    async def page(request: Request) -> Response:
        return HTMLResponse(shell({"mode": "live"}), headers={"Content-Security-Policy": allowed})

    async def runs(request: Request) -> Response:
        return _json(await feeds.all.current())

    async def run(request: Request) -> Response:
        return _json((await feeds.run(request.path_params["id"]).current()).text)

    async def rollout(request: Request) -> Response:
        folder, key = feeds.runs.folder(request.path_params["id"]), request.path_params["key"]

        def read() -> dict[str, Any] | None:
            with Run.read(folder) as journal:
                return transcript(journal, key)

        found = await asyncio.to_thread(read)
        return answer(found) if found is not None else refusal(404, "the run has no such rollout")

    async def file(request: Request) -> Response:
        folder, hash = feeds.runs.folder(request.path_params["id"]), request.path_params["hash"]
        if not _HASH.fullmatch(hash):
            return refusal(404, "a file is named by its hash")

        def read() -> bytes:
            with Run.read(folder) as journal:
                return journal.stored_file(hash)

        return _blob(await asyncio.to_thread(read), hash)

    async def run_events(request: Request) -> Response:
        id = request.path_params["id"]
        feeds.runs.folder(id)
        return _stream(feeds.run_events(id, request.headers.get("last-event-id", "")))

    async def list_events(request: Request) -> Response:
        return _stream(feeds.list_events())

    async def general(request: Request) -> Response:
        return answer(await asyncio.to_thread(actions.general))

    async def run_actions(request: Request) -> Response:
        folder = feeds.runs.folder(request.path_params["id"])
        found = await asyncio.to_thread(actions.of_run, folder)
        return answer({"read_only": actions.read_only, "actions": [action.to_json() for action in found]})

    async def check(request: Request) -> Response:
        return answer({"ok": True, **await do(actions.check, await _object(request))})

    async def start(request: Request) -> Response:
        data = await _object(request)
        return answer({"ok": True, "id": await do(actions.start, data)})

    async def act(request: Request) -> Response:
        data = await _object(request)
        name = request.path_params["action"]
        folder = feeds.runs.folder(request.path_params["id"])
        return answer({"ok": True, **await do(actions.act, name, folder, data)})

    async def drafts(request: Request) -> Response:
        return answer(await asyncio.to_thread(actions.drafts))

    async def drafts_of(request: Request) -> Response:
        return answer(await asyncio.to_thread(actions.drafts_of, request.path_params["file"]))

    async def review(request: Request) -> Response:
        data = await _object(request)
        return answer({"ok": True, **await do(actions.review, request.path_params["file"], data)})

    async def icon(request: Request) -> Response:
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/runs/{id}", page),
            Route("/favicon.ico", icon),
            Route("/api/runs", runs),
            Route("/api/events", list_events),
            Route("/api/actions", general),
            Route("/api/check", check, methods=["POST"]),
            Route("/api/start", start, methods=["POST"]),
            Route("/api/drafts", drafts),
            Route("/api/drafts/{file:path}", drafts_of, methods=["GET"]),
            Route("/api/drafts/{file:path}", review, methods=["POST"]),
            Route("/api/runs/{id}", run),
            Route("/api/runs/{id}/events", run_events),
            Route("/api/runs/{id}/actions", run_actions),
            Route("/api/runs/{id}/rollouts/{key}", rollout),
            Route("/api/runs/{id}/files/{hash}", file),
            Route("/api/runs/{id}/{action}", act, methods=["POST"]),
        ],
        exception_handlers={
            UnknownRun: _refused(404),
            Changed: _refused(409),
            ReadOnly: _refused(403),
            Refused: _refused(409),
            UsageError: _refused(400),
            RunError: _refused(409),
            SkilltuneError: _refused(400),
            HTTPException: _http,
            Exception: _bug,
        },
    )


async def _object(request: Request) -> Mapping[str, Any]:
    """The body as a JSON object. Raises `UsageError`."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                raise UsageError(f"the request is larger than {MOST_BODY:,} bytes")
    except ClientDisconnect:
        raise UsageError("the client has gone") from None
    try:
        data = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None
    if not isinstance(data, dict):
        raise UsageError("the request must be a JSON object")
    return data


def _json(text: str) -> Response:
    """A JSON answer of text that `embeddable` made."""
    return Response(text, media_type="application/json")


def _stream(events: AsyncGenerator[str, None]) -> Response:
    async def body() -> AsyncIterator[str]:
        async with contextlib.aclosing(events):
            yield f"retry: {RETRY_MS}\n\n"
            async for event in events:
                yield event

    return StreamingResponse(body(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _blob(data: bytes, hash: str) -> Response:
    """A file that a model made. Only images are shown, by what their first bytes say; anything else is saved."""
    kind = next((kind for first, kind in _IMAGES if data.startswith(first)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if len(data) > MOST_FILE:
        return refusal(413, f"the file has {len(data):,} bytes", f"skilltune show RUN --file {hash} writes it")
    place = "inline" if kind else "attachment"
    headers = {"Content-Disposition": f'{place}; filename="{quote(hash[:64])}"'}
    return Response(data, media_type=kind or "application/octet-stream", headers=headers)


Handler = Callable[[Request, Exception], Awaitable[Response]]


def _refused(status: int) -> Handler:
    async def handle(request: Request, error: Exception) -> Response:
        return refusal(status, str(error))

    return handle


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail))


async def _bug(request: Request, error: Exception) -> Response:
    return refusal(500, f"a bug in skilltune: {type(error).__name__}", "see the output of `skilltune ui`")
