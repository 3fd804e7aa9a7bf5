"""Downloads the data of a benchmark: resumable, bounded, checked against a digest, and complete or not there.

A file is written to NAME.part and renamed once its digest is right. A digest is pinned in this package, or stated by
Hugging Face, or recorded at the first download (`RECORD`) and compared from then on.
"""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from skilltune.benchmarks.archives import LOCAL, unpack
from skilltune.benchmarks.benchmark import Benchmark, Source
from skilltune.errors import SkilltuneError, UsageError
from skilltune.files import write_atomic
from skilltune.models.wire import proxy_of, tls_context
from skilltune.version import __version__

if TYPE_CHECKING:
    import aiohttp

RECORD = ".skilltune-data.json"
ATTEMPTS = 4  # connections in a row that bring no byte
UNREACHED = 2  # attempts at a host that cannot be reached
CONNECT_S, SILENCE_S = 15.0, 60.0
CHUNK = 1 << 20
MOST_BYTES = 10_000_000_000  # of one file, and of the content of one archive, unless the user allows more
SPARE = 200_000_000  # bytes of the disk that a download leaves free
MOST_PAGES, PAGE_BYTES = 1_000, 50_000_000  # of the hub's list of files
_PAGES = (b"<!doctype html", b"<html")
_POINTER = b"version https://git-lfs."
HUB = "https://huggingface.co"
Tell: TypeAlias = Callable[[str], None]
Progress: TypeAlias = Callable[[str, int, int | None], None]
"""(path, bytes so far, bytes in total or None)."""


class FetchError(SkilltuneError):
    """A download that did not work. The message says how to go on; what has arrived is kept."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of a fetch: files that were downloaded, and files that were there and are unchanged."""

    new: tuple[str, ...]
    kept: tuple[str, ...]


async def fetch(
    benchmark: Benchmark,
    folder: Path,
    tell: Tell = lambda text: None,
    progress: Progress = lambda path, done, total: None,
    wait: Callable[[float], Any] = asyncio.sleep,
    most: int = MOST_BYTES,
) -> Fetched:
    """Bring the data of a benchmark into a folder. `wait` is the pause between attempts, and `most` the bytes of one
    file and of the content of one archive.

    Raises UsageError if there is nothing to fetch, if a file here differs from the one that is meant, or if an archive
    is not what it should be; FetchError if the download fails, is too large or has no room. The same call goes on where
    it was cut off.
    """
    if not benchmark.files:
        raise UsageError(f"bench:{benchmark.name} has no files to fetch: {benchmark.gated or benchmark.source}")
    new, kept = list[str](), list[str]()
    with _alone(folder):
        async with _session() as session:
            sources = await _expanded(benchmark, session)
            _require_space(folder, sum(_left(source, folder) for source in sources))
            for source in sources:
                job = _Job(benchmark, source, folder / source.path, most, session, progress, wait)
                here = await _one(job, folder, [each.path for each in sources])
                (kept if here else new).append(source.path)
                size = size_text((folder / source.path).stat().st_size)
                tell(f"{'unchanged' if here else 'got'} {source.path} ({size})")
    return Fetched(tuple(new), tuple(kept))


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that were fetched into a folder: url, sha256, bytes and date, by path. Raises UsageError if the record
    is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): dict(entry) for name, entry in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({error}): delete it and fetch again") from None


def lacking(benchmark: Benchmark, folder: Path) -> list[str]:
    """The files of a benchmark that are not in a folder; a pattern is there if a file matches it."""
    return [source.path for source in benchmark.files if not any(folder.glob(source.path))]


def size_text(size: int) -> str:
    """A size in bytes for people: 750 kB, 4.2 MB."""
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size} bytes"


# -- one file


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to bring: where it comes from, its place here, and the most bytes that it may have."""

    benchmark: Benchmark
    source: Source
    target: Path
    most: int
    session: aiohttp.ClientSession
    progress: Progress
    wait: Callable[[float], Any]

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")


async def _one(job: _Job, folder: Path, paths: Sequence[str]) -> bool:
    """Bring one file of those at `paths`. True if it was here."""
    source, target = job.source, job.target
    known = recorded(folder).get(source.path, {})
    before = str(known.get("sha256", ""))
    wanted = before or source.sha256 if source.dataset else source.sha256 or before
    if target.is_file():
        digest = await asyncio.to_thread(_digest, target)
        if wanted and digest != wanted:
            raise UsageError(
                f"{target} differs from the file that is meant (SHA-256 {digest[:16]}…, expected {wanted[:16]}…): move "
                "it away and fetch again"
            )
        here = True
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = await _download(job, wanted)
        here = False
    if not known:
        entry = {"url": source.url, "sha256": digest, "bytes": target.stat().st_size}
        _note(folder, source.path, entry | {"date": datetime.now(UTC).date().isoformat()})
    if source.unpack:  # again if it was here, because its content may be gone
        await asyncio.to_thread(unpack, target, folder, job.most, lambda size: _require_space(folder, size), paths)
    return here


def _left(source: Source, folder: Path) -> int:
    """The bytes of a file that are yet to come, 0 if its size is unknown."""
    target = folder / source.path
    part = target.with_name(f"{target.name}.part")
    here = part.stat().st_size if part.is_file() else 0
    return 0 if target.is_file() else max(0, (source.size or 0) - here)


def _require_space(folder: Path, size: int) -> None:
    """Raise FetchError if the disk has no room for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if size and size + SPARE > free:
        raise FetchError(
            f"{folder} has no room for {size_text(size)} more ({size_text(free)} are free, of which "
            f"{size_text(SPARE)} stay so): make room, or name a folder on another disk with --data or SKILLTUNE_DATA; "
            "what has arrived is kept"
        )


async def _download(job: _Job, wanted: str) -> str:
    """Download to NAME.part, check it, and rename it. Returns the SHA-256."""
    import aiohttp

    source, target, part = job.source, job.target, job.part
    failed, size = 0, -1
    while True:
        try:
            await _receive(job, checked=bool(wanted))
            break
        except _Broken as broken:
            arrived = part.stat().st_size if part.is_file() else 0
            failed = 1 if arrived > size >= 0 else failed + 1
            size = arrived
            if failed >= (UNREACHED if isinstance(broken.cause, aiohttp.ClientConnectorError) else ATTEMPTS):
                raise FetchError(_explain(source, target, arrived, broken)) from None
            await job.wait(2.0 ** (failed - 1))
    digest = await asyncio.to_thread(_digest, part)
    if wanted and digest != wanted:
        got = f"SHA-256 {digest[:16]}…, {part.stat().st_size:,} bytes"
        _drop(part)
        origin = "pinned here" if source.sha256 else "recorded at the first download"
        raise FetchError(
            f"{source.url} is not the file that is meant ({got}; {origin}: {wanted[:16]}…), and was thrown away. Try "
            "again; if it stays so, the publisher has changed it"
            + ("" if source.sha256 else f": to accept the new file, delete {target.parent / RECORD}")
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    _drop(part)
    return digest


async def _receive(job: _Job, *, checked: bool) -> None:
    """One connection: from the start, or from where the last one was cut. Raises `_Broken` if it ends too early.

    A server that names no version of its file is asked to go on only if the whole is `checked` in the end.
    """
    import aiohttp

    source, part = job.source, job.part
    mark = _mark(part)
    resumable = mark.get("url") == source.url and (mark.get("version") or checked)
    start = part.stat().st_size if part.is_file() and resumable else 0
    headers = {"Accept-Encoding": "identity", **_token(source)}
    if start:
        headers |= {"Range": f"bytes={start}-", **({"If-Range": str(mark["version"])} if mark["version"] else {})}
    try:
        async with job.session.get(source.url, headers=headers, proxy=proxy_of(source.url)) as reply:
            first, end = _range(reply)
            if reply.status == 416 and end == start:
                return  # all of it had arrived
            if reply.status == 416 or (reply.status == 206 and first != start):
                _drop(part)
                raise _Broken("the server does not go on where the last connection ended; beginning again")
            _require_ok(job.benchmark, source, reply)
            if reply.status != 206:
                start = 0
            length = reply.headers.get("Content-Length", "")
            packed = reply.headers.get("Content-Encoding", "identity") != "identity"
            total = start + int(length) if length.isdecimal() and not packed else None
            _require_size(job, total or 0)
            _require_space(part.parent, (total or start) - start)
            if not start:
                version = reply.headers.get("ETag", "")
                version = reply.headers.get("Last-Modified", "") if version.startswith("W/") or not version else version
                version = "" if packed else version
                write_atomic(_mark_of(part), json.dumps({"url": source.url, "version": version}))
            with part.open("r+b" if start else "wb", buffering=0) as file:  # a kill keeps what has arrived
                file.seek(start)
                done = start
                async for chunk in reply.content.iter_chunked(CHUNK):
                    if not done:
                        _require_data(job, reply, chunk)
                    done += len(chunk)
                    _require_size(job, done)
                    file.write(chunk)
                    job.progress(source.path, done, total)
            if total is not None and done < total:
                raise _Broken(f"it ended after {done:,} of {total:,} bytes")
    except aiohttp.TooManyRedirects:
        raise FetchError(f"{source.url} leads in a circle of redirects: {_elsewhere(job.benchmark)}") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise FetchError(f"{source.url} leads to an address that cannot be fetched ({error})") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if isinstance(error, OSError) and error.errno in LOCAL:
            raise
        raise _Broken(" ".join(str(error).split()) or type(error).__name__, error) from None


_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


def _range(reply: aiohttp.ClientResponse) -> tuple[int | None, int | None]:
    """The first byte of an answer and the bytes of the whole file, by its Content-Range; None if it does not say."""
    found = _RANGE.fullmatch(reply.headers.get("Content-Range", "").strip())
    first, whole = found.groups() if found else (None, None)
    return int(first) if first else None, int(whole) if whole and whole != "*" else None


def _require_size(job: _Job, size: int) -> None:
    """Raise FetchError if a file of so many bytes is larger than it may be. What has arrived of it is thrown away if it
    is another file than the one that is meant, and kept if the user may allow more."""
    stated = job.source.size
    if stated is not None and size > stated:
        _drop(job.part)
        why = f"it has {stated:,} bytes, and the server sends {size_text(size)} or more: try again later"
    elif size > job.most:
        kept = "; what has arrived is kept" if job.part.is_file() else ""
        why = f"it has {size_text(size)} or more, and {size_text(job.most)} are allowed: allow more with --max-gb{kept}"
    else:
        return
    raise FetchError(f"{job.source.url} is larger than it may be: {why}")


def _require_data(job: _Job, reply: aiohttp.ClientResponse, start: bytes) -> None:
    """Raise FetchError if a web page or a pointer comes in place of a file, as hosts send them with a status of 200."""
    opening = start[:1000].removeprefix(codecs.BOM_UTF8).lstrip()
    html = reply.content_type == "text/html" or opening.lower().startswith(_PAGES)
    if html and PurePosixPath(job.source.path).suffix not in (".html", ".htm"):
        what = "a web page in place of the file, perhaps a login"
    elif opening.startswith(_POINTER):
        what = "a pointer of Git LFS in place of the file"
    else:
        return
    _drop(job.part)
    raise FetchError(f"{job.source.url}: the server sent {what}: {_elsewhere(job.benchmark)}")


def _elsewhere(benchmark: Benchmark) -> str:
    return benchmark.gated or f"see {benchmark.source}, get it in your browser, and name the copy with --data PATH"


class _Broken(Exception):
    """A connection that ended too early, or was never made."""

    def __init__(self, why: str, cause: BaseException | None = None) -> None:
        super().__init__(why)
        self.cause = cause


def _require_ok(benchmark: Benchmark, source: Source, reply: aiohttp.ClientResponse) -> None:
    """Raise FetchError for an answer that no repetition changes, and `_Broken` for one that may pass."""
    if reply.status in (200, 206):
        return
    if reply.status in (401, 403):
        how = benchmark.gated or "it may need an account: get it in your browser, and name the copy with --data PATH"
        raise FetchError(f"{source.url} may not be read ({reply.status}): {how}")
    if reply.status in (408, 425, 429) or reply.status >= 500:
        raise _Broken(f"the server answered {reply.status}")
    raise FetchError(
        f"{source.url} is not there ({reply.status}): its publisher may have moved it; see {benchmark.source}, and "
        "name a copy with --data PATH"
    )


def _explain(source: Source, target: Path, arrived: int, broken: _Broken) -> str:
    import aiohttp

    host = urlsplit(source.url).netloc
    if isinstance(broken.cause, aiohttp.ClientConnectorError):
        return (
            f"cannot reach {host} ({broken}): is there a network? Run the same command again once there is one, or "
            f"copy the file from elsewhere to {target}"
        )
    return (
        f"the download of {source.url} broke off ({broken}); {size_text(arrived)} have arrived and are kept: run the "
        "same command again to go on"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mark_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _mark(part: Path) -> dict[str, Any]:
    """The URL and the version of the file of which `part` is the beginning; empty if it is unknown."""
    try:
        found = json.loads(_mark_of(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _mark_of(part).unlink(missing_ok=True)


def _note(folder: Path, path: str, entry: Mapping[str, Any]) -> None:
    files = recorded(folder) | {path: dict(entry)}
    write_atomic(folder / RECORD, json.dumps({"files": files}, indent=2) + "\n", mode=None)


# -- Hugging Face, and the session


async def _expanded(benchmark: Benchmark, session: aiohttp.ClientSession) -> list[Source]:
    """The files with their URLs. Patterns in data sets of Hugging Face become the files that match them."""
    found, listings = list[Source](), dict[tuple[str, str], list[dict[str, Any]]]()
    for source in benchmark.files:
        if not source.dataset:
            found.append(source)
            continue
        parent = str(PurePosixPath(source.path).parent)
        key = (source.dataset, "" if parent == "." else parent)
        if key not in listings:
            listings[key] = await _listing(benchmark, *key, session)
        name, _, revision = source.dataset.partition("@")
        matching = [entry for entry in listings[key] if fnmatchcase(str(entry.get("path")), source.path)]
        if not matching:
            raise FetchError(f"the data set {name} has no file {source.path}: see {benchmark.source}")
        for entry in matching:
            path = str(entry["path"])
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise FetchError(f"the data set {name} names a file outside of its folder: {path}")
            digest = (entry.get("lfs") or {}).get("oid") or source.sha256
            url = f"{_hub()}/datasets/{name}/resolve/{revision or 'main'}/{quote(path)}"
            found.append(replace(source, path=path, url=url, sha256=digest, size=entry.get("size")))
    return found


async def _listing(
    benchmark: Benchmark, dataset: str, parent: str, session: aiohttp.ClientSession
) -> list[dict[str, Any]]:
    """The files in one folder of a data set, with their sizes and digests. The hub answers in pages."""
    import aiohttp

    name, _, revision = dataset.partition("@")
    url: str | None = f"{_hub()}/api/datasets/{name}/tree/{revision or 'main'}/{quote(parent)}".rstrip("/")
    found: list[dict[str, Any]] = []
    seen = set[str]()
    while url:
        seen.add(url)
        source = Source(parent, url, dataset=dataset)
        try:
            async with session.get(url, headers=_token(source), proxy=proxy_of(url)) as reply:
                _require_ok(benchmark, source, reply)
                entries = json.loads(await _page(reply))
                found += [entry for entry in entries if isinstance(entry, dict) and entry.get("type") == "file"]
                following = reply.links.get("next")
                url = urljoin(url, str(following["url"])) if following else None
                if url in seen or len(seen) > MOST_PAGES:
                    raise ValueError("its pages do not end")
        except _Broken as broken:
            raise FetchError(f"{url}: {broken}; run the same command again later") from None
        except aiohttp.TooManyRedirects:
            raise FetchError(f"{url} leads in a circle of redirects: {_elsewhere(benchmark)}") from None
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise FetchError(_explain(source, Path(parent), 0, _Broken(str(error), error))) from None
        except (aiohttp.ClientError, ValueError, TypeError) as error:
            raise FetchError(f"{url}: the list of files cannot be read ({error})") from None
    return found


async def _page(reply: aiohttp.ClientResponse) -> bytes:
    page = bytearray()
    async for chunk in reply.content.iter_chunked(CHUNK):
        page += chunk
        if len(page) > PAGE_BYTES:
            raise ValueError(f"a page of it has more than {size_text(PAGE_BYTES)}")
    return bytes(page)


def _hub() -> str:
    """The address of the hub: $HF_ENDPOINT, as for Hugging Face's own tools."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _token(source: Source) -> dict[str, str]:
    """The user's token, for the hub alone. aiohttp drops it when a redirect leads to another host."""
    token = os.environ.get("HF_TOKEN", "")
    to_hub = source.dataset and source.url.startswith(f"{_hub()}/")
    return {"Authorization": f"Bearer {token}"} if token and to_hub else {}


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    agent = {"User-Agent": f"skilltune/{__version__}"}
    connector = aiohttp.TCPConnector(ssl=tls_context())
    async with aiohttp.ClientSession(headers=agent, connector=connector, timeout=timeout) as session:
        yield session


class _alone:
    """Holds the lock of a data folder. It ends with the process in any case."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / ".skilltune-data.lock").open("w")
        except OSError as error:
            raise UsageError(
                f"cannot write to {self._folder} ({error.strerror}): set SKILLTUNE_DATA to a folder of yours"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"another skilltune is fetching into {self._folder}: wait for it") from None

    def __exit__(self, *_: object) -> None:
        self._file.close()


__all__ = ["MOST_BYTES", "RECORD", "FetchError", "Fetched", "fetch", "lacking", "recorded", "size_text"]
