"""Downloads the data of a benchmark: resumable, checked against a digest, and complete or not there.

A file is written to NAME.part and renamed once its digest is right. A digest is pinned in this package, or stated by
Hugging Face, or recorded at the first download (`RECORD`) and compared from then on.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

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
) -> Fetched:
    """Bring the data of a benchmark into a folder. `wait` is the pause between attempts.

    Raises UsageError if there is nothing to fetch, or if a file here differs from the one that is meant; FetchError if
    the download fails. The same call goes on where it was cut off.
    """
    if not benchmark.files:
        raise UsageError(f"bench:{benchmark.name} has no files to fetch: {benchmark.gated or benchmark.source}")
    new, kept = list[str](), list[str]()
    with _alone(folder):
        async with _session() as session:
            for source in await _expanded(benchmark, session):
                here = await _one(benchmark, source, folder, session, progress, wait)
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


async def _one(
    benchmark: Benchmark,
    source: Source,
    folder: Path,
    session: aiohttp.ClientSession,
    progress: Progress,
    wait: Callable[[float], Any],
) -> bool:
    """Bring one file. True if it was here."""
    target, known = folder / source.path, recorded(folder).get(source.path, {})
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
        digest = await _download(benchmark, source, target, wanted, session, progress, wait)
        here = False
    if not known:
        entry = {"url": source.url, "sha256": digest, "bytes": target.stat().st_size}
        _note(folder, source.path, entry | {"date": datetime.now(UTC).date().isoformat()})
    if source.unpack:  # again if it was here, because its content may be gone
        await asyncio.to_thread(_unpack, target, folder)
    return here


async def _download(
    benchmark: Benchmark,
    source: Source,
    target: Path,
    wanted: str,
    session: aiohttp.ClientSession,
    progress: Progress,
    wait: Callable[[float], Any],
) -> str:
    """Download to NAME.part, check it, and rename it. Returns the SHA-256."""
    import aiohttp

    part = target.with_name(f"{target.name}.part")
    failed, size = 0, -1
    while True:
        try:
            await _receive(benchmark, source, part, session, progress, checked=bool(wanted))
            break
        except _Broken as broken:
            arrived = part.stat().st_size if part.is_file() else 0
            failed = 1 if arrived > size >= 0 else failed + 1
            size = arrived
            if failed >= (UNREACHED if isinstance(broken.cause, aiohttp.ClientConnectorError) else ATTEMPTS):
                raise FetchError(_explain(source, target, arrived, broken)) from None
            await wait(2.0 ** (failed - 1))
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


async def _receive(
    benchmark: Benchmark,
    source: Source,
    part: Path,
    session: aiohttp.ClientSession,
    progress: Progress,
    *,
    checked: bool,
) -> None:
    """One connection: from the start, or from where the last one was cut. Raises `_Broken` if it ends too early.

    A server that names no version of its file is asked to go on only if the whole is `checked` in the end.
    """
    import aiohttp

    mark = _mark(part)
    resumable = mark.get("url") == source.url and (mark.get("version") or checked)
    start = part.stat().st_size if part.is_file() and resumable else 0
    headers = {"Accept-Encoding": "identity", **_token(source)}
    if start:
        headers |= {"Range": f"bytes={start}-", **({"If-Range": str(mark["version"])} if mark["version"] else {})}
    try:
        async with session.get(source.url, headers=headers, proxy=proxy_of(source.url)) as reply:
            if reply.status == 416:
                _drop(part)
                raise _Broken("the server has fewer bytes than have arrived; beginning again")
            _require_ok(benchmark, source, reply)
            if reply.status != 206:
                start = 0
            length = reply.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else None
            if not start:
                version = reply.headers.get("ETag", "")
                version = reply.headers.get("Last-Modified", "") if version.startswith("W/") or not version else version
                write_atomic(_mark_of(part), json.dumps({"url": source.url, "version": version}))
            with part.open("r+b" if start else "wb", buffering=0) as file:  # a kill keeps what has arrived
                file.seek(start)
                done = start
                async for chunk in reply.content.iter_chunked(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    progress(source.path, done, total)
            if total is not None and done < total:
                raise _Broken(f"it ended after {done:,} of {total:,} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise
        raise _Broken(" ".join(str(error).split()) or type(error).__name__, error) from None


_LOCAL = {28, 122, 13, 30, 5}  # ENOSPC, EDQUOT, EACCES, EROFS, EIO: the disk's fault, not the network's


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


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive beside itself, into place file by file. A path that leads out of the folder is refused."""
    room = folder / f".unpacking-{os.getpid()}"
    try:
        shutil.unpack_archive(archive, room, filter="data") if archive.suffix != ".zip" else _unzip(archive, room)
        for path in sorted(room.rglob("*")):
            place = folder / path.relative_to(room)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                os.replace(path, place)
    except (shutil.ReadError, tarfile.TarError, zlib.error, ValueError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise
        raise UsageError(f"{archive} cannot be unpacked ({error}): delete it and fetch again") from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _unzip(archive: Path, room: Path) -> None:
    import zipfile

    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(room)  # drops "..", and the root of an absolute path
    except (zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: it has a password, or an unknown compression
        raise ValueError(str(error)) from None


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
    while url:
        source = Source(parent, url, dataset=dataset)
        try:
            async with session.get(url, headers=_token(source), proxy=proxy_of(url)) as reply:
                _require_ok(benchmark, source, reply)
                entries = await reply.json()
                found += [entry for entry in entries if isinstance(entry, dict) and entry.get("type") == "file"]
                following = reply.links.get("next")
                url = urljoin(url, str(following["url"])) if following else None
        except _Broken as broken:
            raise FetchError(f"{url}: {broken}; run the same command again later") from None
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise FetchError(_explain(source, Path(parent), 0, _Broken(str(error), error))) from None
        except (aiohttp.ClientError, ValueError, TypeError) as error:
            raise FetchError(f"{url}: the list of files cannot be read ({error})") from None
    return found


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


__all__ = ["RECORD", "FetchError", "Fetched", "fetch", "lacking", "recorded", "size_text"]
