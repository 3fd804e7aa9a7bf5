"""Downloads over real HTTP: resume, digests, kills, what a publisher or a network does wrong, Hugging Face."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from http_server import Answer, Call, Server
from skilltune import benchmarks
from skilltune.benchmarks.archives import unpack
from skilltune.benchmarks.benchmark import Benchmark, Metric, Source
from skilltune.benchmarks.fetch import RECORD, FetchError, fetch, lacking, recorded
from skilltune.errors import UsageError

pytestmark = pytest.mark.anyio
DATA = bytes(range(256)) * 400
DIGEST = hashlib.sha256(DATA).hexdigest()


def benchmark(*files: Source, **more: Any) -> Benchmark:
    metric = Metric("m", "a metric")
    home = "https://example.org/set"
    return Benchmark("own", "Own", lambda *_: None, (1, 1, 1), home, "MIT", metric, metric, files=files, **more)  # type: ignore[arg-type]


async def no_wait(_: float) -> None:
    return None


def sent(data: bytes, status: str = "200 OK", promised: int | None = None, etag: str = "", place: str = "") -> Answer:
    """A response with bytes. `promised` is a Content-Length that the body need not have, `place` a Content-Range."""
    lines = {"Content-Length": str(len(data) if promised is None else promised), "Connection": "close"}
    lines |= {name: value for name, value in (("ETag", etag), ("Content-Range", place)) if value}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return Answer(raw=f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data)


def ranged(data: bytes, cuts: list[int], etag: str = '"v1"') -> Callable[[Call], Answer]:
    """A server that honours Range. Each answer is cut after the next number of bytes, then none is."""

    def answer(call: Call) -> Answer:
        start = int(call.headers.get("range", "bytes=0-")[6:-1])
        fresh = not start or call.headers.get("if-range", etag) != etag
        start = 0 if fresh else start
        rest = data[start:]
        part = rest[: cuts.pop(0)] if cuts else rest
        if fresh:
            return sent(part, promised=len(rest), etag=etag)
        place = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return sent(part, "206 Partial Content", len(rest), etag, place)

    return answer


async def test_a_file_is_fetched_once_and_recorded(tmp_path: Path) -> None:
    async with Server(ranged(DATA, [])) as server:
        own = benchmark(Source("a/data.bin", f"{server.url}/data.bin"))
        assert lacking(own, tmp_path) == ["a/data.bin"]
        first = await fetch(own, tmp_path)
        second = await fetch(own, tmp_path)
    assert (first.new, second.kept, len(server.calls)) == (("a/data.bin",), ("a/data.bin",), 1)
    assert (tmp_path / "a" / "data.bin").read_bytes() == DATA
    assert recorded(tmp_path)["a/data.bin"]["sha256"] == DIGEST
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["data.bin"]


@pytest.mark.parametrize("cuts", [[1], [50_000], [50_000, 0, 0, 1, 7], [len(DATA) - 1]])
async def test_a_cut_connection_is_resumed(tmp_path: Path, cuts: list[int]) -> None:
    n = len(cuts)
    async with Server(ranged(DATA, cuts)) as server:
        await fetch(benchmark(Source("data.bin", f"{server.url}/data.bin")), tmp_path, wait=no_wait)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert len(server.calls) == n + 1
    assert server.calls[-1].headers["range"].startswith("bytes=")


async def test_the_next_command_resumes_too(tmp_path: Path) -> None:
    async with Server(ranged(DATA, [60_000, 0, 0, 0, 0])) as server:
        own = benchmark(Source("data.bin", f"{server.url}/data.bin"))
        with pytest.raises(FetchError, match=r"60 kB have arrived and are kept: run the same command again"):
            await fetch(own, tmp_path, wait=no_wait)
        assert not (tmp_path / "data.bin").exists()
    async with Server(ranged(DATA, [])) as server:
        moved = (tmp_path / "data.bin.part.json").read_text()
        (tmp_path / "data.bin.part.json").write_text(moved.replace(moved.split('"')[3], f"{server.url}/data.bin"))
        await fetch(benchmark(Source("data.bin", f"{server.url}/data.bin")), tmp_path)
        assert server.calls[0].headers["range"] == "bytes=60000-"
    assert (tmp_path / "data.bin").read_bytes() == DATA


async def test_a_file_that_changed_between_two_connections_is_fetched_anew(tmp_path: Path) -> None:
    new = DATA[::-1]
    async with Server(ranged(DATA, [50_000]), ranged(new, [], etag='"v2"')) as server:
        await fetch(benchmark(Source("data.bin", f"{server.url}/data.bin")), tmp_path, wait=no_wait)
    assert (tmp_path / "data.bin").read_bytes() == new


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
async def test_a_server_without_versions_is_resumed_only_if_the_digest_is_known(tmp_path: Path, etag: str) -> None:
    for pinned, asked in ((DIGEST, "bytes=50000-"), ("", None)):
        place = f"bytes 50000-{len(DATA) - 1}/{len(DATA)}"
        rest = sent(DATA[50_000:], "206 Partial Content", etag=etag, place=place) if asked else sent(DATA, etag=etag)
        async with Server(sent(DATA[:50_000], promised=len(DATA), etag=etag), rest) as server:
            folder = tmp_path / (pinned or "none")
            await fetch(benchmark(Source("data.bin", f"{server.url}/x", pinned)), folder, wait=no_wait)
            assert server.calls[1].headers.get("range") == asked
        assert (folder / "data.bin").read_bytes() == DATA


async def test_a_range_beyond_the_end_begins_again(tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA + b"more")
    async with Server(sent(b"", "416 Range Not Satisfiable"), ranged(DATA, [])) as server:
        url = f"{server.url}/data.bin"
        (tmp_path / "data.bin.part.json").write_text(json.dumps({"url": url, "version": '"v1"'}))
        await fetch(benchmark(Source("data.bin", url)), tmp_path, wait=no_wait)
    assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize("place", ["", "bytes 0-102399/102400", "bytes 49999-102399/102400", "lines 5-7"])
async def test_a_server_that_goes_on_elsewhere_is_asked_for_the_whole(tmp_path: Path, place: str) -> None:
    cut = sent(DATA[:50_000], promised=len(DATA), etag='"v1"')
    wrong = sent(DATA[:1000], "206 Partial Content", etag='"v1"', place=place)
    async with Server(cut, wrong, ranged(DATA, [])) as server:
        await fetch(benchmark(Source("data.bin", f"{server.url}/x")), tmp_path, wait=no_wait)
    assert "range" not in server.calls[2].headers
    assert (tmp_path / "data.bin").read_bytes() == DATA


async def test_a_file_that_had_arrived_whole_is_not_sent_again(tmp_path: Path) -> None:
    async with Server(sent(b"", "416 Range Not Satisfiable", place=f"bytes */{len(DATA)}")) as server:
        url = f"{server.url}/x"
        (tmp_path / "data.bin.part").write_bytes(DATA)
        (tmp_path / "data.bin.part.json").write_text(json.dumps({"url": url, "version": '"v1"'}))
        await fetch(benchmark(Source("data.bin", url, DIGEST)), tmp_path, wait=no_wait)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert len(server.calls) == 1


# -- bounds


def endless(call: Call) -> Answer:
    """A body without a stated length that is longer than all that is allowed."""
    block = b"%x\r\n" % len(DATA) + DATA + b"\r\n"
    return Answer(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + block * 30, hang=True)


@pytest.mark.parametrize(
    ("stated", "answer", "why"),
    [
        (None, sent(b"", promised=10**12), r"has 1e\+03 GB or more, and 1 MB are allowed: allow more with --max-gb$"),
        (len(DATA) - 1, sent(DATA), r"it has 102,399 bytes, and the server sends 102 kB or more"),
        (len(DATA) - 1, endless, "it has 102,399 bytes"),
    ],
)
async def test_a_file_that_is_larger_than_it_may_be_is_stopped(
    tmp_path: Path, stated: int | None, answer: Any, why: str
) -> None:
    async with Server(answer) as server:
        own = benchmark(Source("data.bin", f"{server.url}/x", size=stated))
        with pytest.raises(FetchError, match=why):
            await fetch(own, tmp_path, wait=no_wait, most=10**6)
    assert len(server.calls) == 1, "it is not tried again"
    assert not list(tmp_path.glob("data.bin*"))


async def test_what_arrived_before_the_users_limit_is_kept(tmp_path: Path) -> None:
    whole = DATA * 30
    async with Server(ranged(whole, [2_000_000, 0, 0, 0, 0])) as server:
        own = benchmark(Source("data.bin", f"{server.url}/x"))
        with pytest.raises(FetchError, match="broke off"):
            await fetch(own, tmp_path, wait=no_wait)
        with pytest.raises(FetchError, match=r"3\.07 MB or more, and 1 MB are allowed: .* --max-gb; what has .* kept$"):
            await fetch(own, tmp_path, wait=no_wait, most=10**6)
        await fetch(own, tmp_path)
        assert server.calls[-1].headers["range"] == "bytes=2000000-"
    assert (tmp_path / "data.bin").read_bytes() == whole


async def test_a_body_without_a_length_is_stopped_at_the_users_limit(tmp_path: Path) -> None:
    async with Server(endless) as server:
        with pytest.raises(FetchError, match=r"1 MB are allowed: allow more with --max-gb; what has arrived is kept$"):
            await fetch(benchmark(Source("data.bin", f"{server.url}/x")), tmp_path, wait=no_wait, most=10**6)
    assert len(server.calls) == 1
    assert 0 < (tmp_path / "data.bin.part").stat().st_size <= 10**6


async def test_a_length_that_is_not_kept_is_no_whole_file(tmp_path: Path) -> None:
    """A server that promises more than it sends is asked four times; what arrived is kept."""
    async with Server(sent(DATA, promised=len(DATA) + 1)) as server:
        with pytest.raises(FetchError, match="102 kB have arrived and are kept"):
            await fetch(benchmark(Source("data.bin", f"{server.url}/x")), tmp_path, wait=no_wait)
    assert not (tmp_path / "data.bin").exists()


@pytest.mark.parametrize("known", [True, False], ids=["before", "by the server"])
async def test_a_disk_without_room_is_named_before_anything_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr("skilltune.benchmarks.fetch.SPARE", 10**17)
    async with Server(ranged(DATA, [])) as server:
        sources = [Source(name, f"{server.url}/x", size=len(DATA) if known else None) for name in ("a.bin", "b.bin")]
        with pytest.raises(FetchError, match=r"has no room for (102|205) kB more .* another disk with --data") as told:
            await fetch(benchmark(*sources), tmp_path, wait=no_wait)
    assert ("205 kB" in str(told.value)) == known, "all files that are to come count"
    assert len(server.calls) == (0 if known else 1)
    assert not list(tmp_path.glob("*.bin*"))


@pytest.mark.parametrize("hub", [False, True])
async def test_a_circle_of_redirects_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: bool) -> None:
    async with Server(lambda call: Answer("", 302, {"Location": call.path})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        source = Source("data.bin", dataset="me/set") if hub else Source("data.bin", f"{server.url}/x")
        with pytest.raises(FetchError, match=r"in a circle of redirects: see https://example\.org/set, .*--data PATH"):
            await fetch(benchmark(source), tmp_path, wait=no_wait)
    assert len(server.calls) < 25


async def test_a_redirect_out_of_the_web_is_named(tmp_path: Path) -> None:
    async with Server(Answer("", 302, {"Location": "file:///etc/passwd"})) as server:
        with pytest.raises(FetchError, match="leads to an address that cannot be fetched"):
            await fetch(benchmark(Source("data.bin", f"{server.url}/x")), tmp_path, wait=no_wait)


LOGIN = "\n<!DOCTYPE html><html><body><form action=/login>Please log in</form></body></html>"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Answer(LOGIN, headers={"Content-Type": "text/html; charset=utf-8"}), "a web page"),
        (Answer(LOGIN), "a web page"),
        (Answer("{}", headers={"Content-Type": "text/html"}), "a web page"),
        (Answer("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), "a pointer of Git LFS"),
    ],
)
async def test_a_page_in_place_of_the_file_is_no_file(tmp_path: Path, answer: Answer, what: str) -> None:
    for gated, how in (("ask the publisher", "ask the publisher"), ("", r"get it in your browser.*--data PATH")):
        async with Server(answer) as server:
            own = benchmark(Source("data.jsonl", f"{server.url}/x"), gated=gated)
            with pytest.raises(FetchError, match=rf"the server sent {what} in place of the file.*: .*{how}"):
                await fetch(own, tmp_path, wait=no_wait)
        assert len(server.calls) == 1
        assert not list(tmp_path.glob("data.jsonl*"))
        assert not recorded(tmp_path)


async def test_a_list_of_files_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(lambda call: Answer([], headers={"Link": f'<{call.path}>; rel="next"'})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(FetchError, match="its pages do not end"):
            await fetch(benchmark(Source("*.parquet", dataset="me/set")), tmp_path)
    assert len(server.calls) == 1


async def test_a_wrong_digest_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Server(ranged(DATA[:-1] + b"!", [])) as server:
        with pytest.raises(FetchError, match="is not the file that is meant"):
            await fetch(benchmark(Source("data.bin", f"{server.url}/x", DIGEST)), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("data.bin")]


async def test_a_publisher_who_changes_a_file_is_noticed(tmp_path: Path) -> None:
    async with Server(ranged(DATA, []), ranged(DATA[1:], [])) as server:
        own = benchmark(Source("data.bin", f"{server.url}/x"))
        await fetch(own, tmp_path)
        (tmp_path / "data.bin").unlink()
        with pytest.raises(FetchError, match="recorded at the first download"):
            await fetch(own, tmp_path)


@pytest.mark.parametrize("pinned", [DIGEST, ""])
async def test_a_file_that_changed_here_is_not_overwritten(tmp_path: Path, pinned: str) -> None:
    async with Server(ranged(DATA, [])) as server:
        own = benchmark(Source("data.bin", f"{server.url}/x", pinned))
        await fetch(own, tmp_path)
        (tmp_path / "data.bin").write_bytes(b"mine")
        with pytest.raises(UsageError, match="move it away"):
            await fetch(own, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("answer", "message", "calls"),
    [
        (Answer("gone", 404), "is not there (404)", 1),
        (Answer("no", 403), "may not be read (403)", 1),
        (Answer("busy", 503), "broke off (the server answered 503)", 4),
        (Answer(drop=True), "broke off", 8),  # aiohttp itself tries each connection twice
    ],
)
async def test_a_failure_is_one_line(tmp_path: Path, answer: Answer, message: str, calls: int) -> None:
    async with Server(answer) as server:
        with pytest.raises(FetchError) as caught:
            await fetch(benchmark(Source("data.bin", f"{server.url}/x")), tmp_path, wait=no_wait)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.calls) == calls


async def test_without_a_network_one_line_says_so(tmp_path: Path) -> None:
    async with Server(Answer("")) as server:
        url = f"{server.url}/x"
    with pytest.raises(FetchError, match="is there a network") as caught:
        await fetch(benchmark(Source("data.bin", url)), tmp_path, wait=no_wait)
    assert "\n" not in str(caught.value)


async def test_a_set_without_files_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ask for access"):
        await fetch(benchmark(gated="ask for access at example.org"), tmp_path)


async def test_two_fetches_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    async with Server(Answer(hang=True)) as server:
        own = benchmark(Source("data.bin", f"{server.url}/x"))
        first = asyncio.create_task(fetch(own, tmp_path))
        while not server.calls:
            await asyncio.sleep(0.01)
        with pytest.raises(UsageError, match="another skilltune is fetching"):
            await fetch(own, tmp_path)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"files": [')
    with pytest.raises(UsageError, match="delete it and fetch again"):
        recorded(tmp_path)


# -- archives


def archive(kind: str, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(name, name)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(name)
                file.addfile(entry, io.BytesIO(name.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
async def test_an_archive_is_unpacked_beside_itself(tmp_path: Path, kind: str) -> None:
    async with Server(ranged(archive(kind, ["set/a.txt", "set/b/c.txt"]), [])) as server:
        own = benchmark(Source(f"all.{kind}", f"{server.url}/all", unpack=True))
        await fetch(own, tmp_path)
        (tmp_path / "set" / "a.txt").unlink()
        await fetch(own, tmp_path)
    assert (tmp_path / "set" / "a.txt").read_text() == "set/a.txt"
    assert (tmp_path / "set" / "b" / "c.txt").read_text() == "set/b/c.txt"
    assert not list(tmp_path.glob(".unpacking*"))


async def test_the_rest_of_a_killed_unpacking_goes(tmp_path: Path) -> None:
    (tmp_path / ".unpacking").mkdir()
    (tmp_path / ".unpacking" / "half.txt").write_text("ha")
    async with Server(ranged(archive("zip", ["a.txt"]), [])) as server:
        await fetch(benchmark(Source("all.zip", f"{server.url}/all", unpack=True)), tmp_path)
    shown = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".skilltune"))
    assert shown == ["a.txt", "all.zip"]


@pytest.mark.parametrize(("place", "value"), [(0, b"\1\0"), (2, b"\x63\0")], ids=["password", "compression"])
async def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path, place: int, value: bytes) -> None:
    whole = bytearray(archive("zip", ["a.txt"]))
    for header in (whole.index(b"PK\3\4") + 6, whole.index(b"PK\1\2") + 8):
        whole[header + place : header + place + 2] = value
    async with Server(ranged(bytes(whole), [])) as server:
        with pytest.raises(UsageError, match=r"all\.zip cannot be unpacked"):
            await fetch(benchmark(Source("all.zip", f"{server.url}/all", unpack=True)), tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/{tmp}/out.txt"])
async def test_an_archive_cannot_write_outside(tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / "in"
    name = name.replace("/{tmp}", str(tmp_path))
    async with Server(ranged(archive(kind, [name]), [])) as server:
        with pytest.raises(UsageError, match=r"was not unpacked: it holds a file outside of its folder, '.*out\.txt'"):
            await fetch(benchmark(Source(f"all.{kind}", f"{server.url}/all", unpack=True)), folder)
    assert not list(tmp_path.rglob("*out.txt"))


def odd(kind: str) -> bytes:
    """An archive with a member that is no plain file, after one that is."""
    buffer = io.BytesIO()
    if kind == "zip link":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("fine.txt", "fine")
            entry = zipfile.ZipInfo("odd")
            entry.external_attr = 0o120777 << 16
            file.writestr(entry, "/etc/passwd")
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("fine.txt"))
        entry = tarfile.TarInfo("odd")
        entry.type = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}[kind]
        entry.linkname = "fine.txt"
        file.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "zip link"])
async def test_an_archive_holds_files_and_nothing_else(tmp_path: Path, kind: str) -> None:
    end = "zip" if kind == "zip link" else "tar.gz"
    async with Server(ranged(odd(kind), [])) as server:
        with pytest.raises(UsageError, match=r"was not unpacked: 'odd' in it is a (link|device), not a file"):
            await fetch(benchmark(Source(f"all.{end}", f"{server.url}/all", unpack=True)), tmp_path)
    assert not list(tmp_path.rglob("fine.txt"))


@pytest.mark.parametrize("name", ["all.zip", "ALL.zip", "./b/Other.zip", "all.zip.part", "all.zip.part.json"])
def test_an_archive_cannot_replace_a_download(tmp_path: Path, name: str) -> None:
    path = tmp_path / "all.zip"
    path.write_bytes(archive("zip", [name]))
    with pytest.raises(UsageError, match=rf"'{re.escape(name)}' in it would replace a downloaded file"):
        unpack(path, tmp_path, 10**6, lambda size: None, ["all.zip", "b/other.zip"])
    assert [each.name for each in tmp_path.iterdir()] == ["all.zip"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a", "a/b"], "'a/b' is in it as a file and as a folder"),
        (["a/b", "a"], "'a' is in it as a file and as a folder"),
        (["a/b/c", "a/b/c/d/e"], "'a/b/c/d/e' is in it as a file and as a folder"),
        (["a.txt", "x/" + "n" * 300], f"a name in it is too long for the disk, 'x/{'n' * 198}'"),
        (["n" * 300 + "/x"], f"a name in it is too long for the disk, '{'n' * 200}'"),
        (["here/b"], "here is no folder, so here/b cannot be unpacked: move it away"),
        (["a.txt", "there"], "there is a folder, so there cannot be unpacked: move it away"),
    ],
)
def test_what_is_in_the_way_of_an_archive_is_named(tmp_path: Path, kind: str, names: list[str], why: str) -> None:
    path = tmp_path / f"all.{kind}"
    path.write_bytes(archive(kind, names))
    (tmp_path / "here").write_text("mine")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match=re.escape(why)):
        unpack(path, tmp_path, 10**6, lambda size: None)
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "here", "there"]


@pytest.mark.parametrize("name", [RECORD, RECORD.upper(), ".Unpacking/a.txt"])
async def test_an_archive_cannot_rewrite_the_record(tmp_path: Path, name: str) -> None:
    async with Server(ranged(archive("zip", [name]), [])) as server:
        with pytest.raises(UsageError, match=r"a name of skilltune's own files"):
            await fetch(benchmark(Source("all.zip", f"{server.url}/all", unpack=True)), tmp_path)
    assert list(recorded(tmp_path)) == ["all.zip"]


def swelling(kind: str, files: int = 4, size: int = 2_000_000, stated: int | None = None) -> bytes:
    """A few kB that become `files` times `size` bytes. `stated` is the size that the directory of the zip states."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for number in range(files):
                file.writestr(f"{number}.txt", bytes(size))
        made = buffer.getvalue()
        return made if stated is None else made.replace(size.to_bytes(4, "little"), stated.to_bytes(4, "little"))
    packed: Any = f"w:{kind.removeprefix('tar.')}"
    with tarfile.open(fileobj=buffer, mode=packed) as file:
        for number in range(files):
            entry = tarfile.TarInfo(f"{number}.txt")
            entry.size = size
            file.addfile(entry, io.BytesIO(bytes(size)))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
async def test_an_archive_that_swells_is_stopped_on_the_way(tmp_path: Path, kind: str) -> None:
    made = swelling(kind)
    assert len(made) < 20_000
    async with Server(ranged(made, [])) as server:
        own = benchmark(Source(f"all.{kind}", f"{server.url}/all", unpack=True))
        with pytest.raises(UsageError, match=r"holds more than 5,000,000 bytes, .*allow more with --max-gb"):
            await fetch(own, tmp_path, most=5_000_000)
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".txt") == []
        assert not list(tmp_path.glob(".unpacking*"))
        await fetch(own, tmp_path, most=8_000_000)
    assert (tmp_path / "3.txt").stat().st_size == 2_000_000


def headed(kind: bytes, content: bytes, *, size: int | None = None) -> bytes:
    """A tar file whose one file has a header of a kind that tarfile reads whole. `size` is another one than it has."""
    entry = tarfile.TarInfo("header")
    entry.type, entry.size = kind, len(content) if size is None else size
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as file:
        assert file.fileobj is not None
        file.fileobj.write(entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        file.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])
@pytest.mark.parametrize("content", [b"1" * 200_000, bytes(50_000_000)], ids=["digits", "large"])
def test_a_header_of_an_archive_is_bounded(tmp_path: Path, kind: bytes, content: bytes) -> None:
    path = tmp_path / "all.tar.gz"
    path.write_bytes(headed(kind, content))
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"a header in it states [\d,]+ bytes, and 8,192 are allowed"):
            unpack(path, tmp_path, 10**9, lambda size: None)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "made",
    [headed(b"x", bytes(512), size=-512), headed(b"0", b"", size=-1024), headed(b"x", b"14 size=-1024\n")],
    ids=["header", "file", "pax"],
)
def test_a_negative_size_in_an_archive_is_refused(tmp_path: Path, made: bytes) -> None:
    path = tmp_path / "all.tar.gz"
    path.write_bytes(made)
    with pytest.raises(UsageError, match=r"states -[\d,]+ bytes"):
        unpack(path, tmp_path, 10**9, lambda size: None)


def test_the_longest_names_of_an_archive_are_read(tmp_path: Path) -> None:
    name = "/".join(["d" * 200] * 15)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "all.tar.gz", "w:gz", format=form) as file:
            file.addfile(tarfile.TarInfo(name))
        unpack(tmp_path / "all.tar.gz", tmp_path / str(form), 10**9, lambda size: None)
        assert (tmp_path / str(form) / name).is_file()


async def test_an_archive_that_lies_about_its_sizes_is_damaged(tmp_path: Path) -> None:
    async with Server(ranged(swelling("zip", stated=10), [])) as server:
        with pytest.raises(UsageError, match="cannot be unpacked"):
            await fetch(benchmark(Source("all.zip", f"{server.url}/all", unpack=True)), tmp_path, most=5_000_000)
    assert not list(tmp_path.glob("*.txt"))


async def test_an_archive_needs_room_for_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = iter([10**12, 10**12, 10**12 - 5])  # before the download, at its start, and at the first file
    spare = "skilltune.benchmarks.fetch.shutil.disk_usage"
    monkeypatch.setattr(spare, lambda path: usage._replace(free=next(free, 0)))
    async with Server(ranged(swelling("tar.gz"), [])) as server:
        with pytest.raises(FetchError, match="has no room for 2 MB more"):
            await fetch(benchmark(Source("all.tar.gz", f"{server.url}/all", unpack=True)), tmp_path)
    assert (tmp_path / "all.tar.gz").is_file(), "what has arrived is kept"
    assert not list(tmp_path.glob("*.txt"))


# -- Hugging Face


def hub(files: dict[str, bytes], digest: Callable[[bytes], str] = lambda d: hashlib.sha256(d).hexdigest()) -> Any:
    """A hub with one data set, which lists its files one a page."""

    def answer(call: Call) -> Answer:
        path, _, query = call.path.partition("?")
        if "/api/datasets/" in path:
            names = [name for name in files if path.endswith(f"/tree/main/{Path(name).parent}")]
            page = int(query.removeprefix("page=") or 0)
            name = names[page]
            entry = {"type": "file", "path": name, "size": len(files[name]), "lfs": {"oid": digest(files[name])}}
            more = f'<{path}?page={page + 1}>; rel="next"'
            return Answer([entry], headers={"Link": more} if page + 1 < len(names) else {})
        return ranged(files[path.partition("/resolve/main/")[2]], [])(call)

    return answer


FILES = {"data/train-0.parquet": b"one", "data/train-1.parquet": b"two", "data/README.md": b"text"}


async def test_a_data_set_of_the_hub_is_listed_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with Server(hub(FILES)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        result = await fetch(benchmark(Source("data/*.parquet", dataset="me/set")), tmp_path)
    assert result.new == ("data/train-0.parquet", "data/train-1.parquet")
    assert (tmp_path / "data" / "train-1.parquet").read_bytes() == b"two"
    assert {call.headers.get("authorization") for call in server.calls} == {"Bearer hf_secret"}


async def test_the_hubs_digest_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(hub(FILES, digest=lambda _: DIGEST)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(FetchError, match="is not the file that is meant"):
            await fetch(benchmark(Source("data/*.parquet", dataset="me/set")), tmp_path)


async def test_the_token_does_not_follow_a_redirect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with Server(ranged(b"one", [])) as store:
        listed = hub({"data/a.bin": b"one"})

        def answer(call: Call) -> Answer:
            return listed(call) if "/api/" in call.path else Answer("", 302, {"Location": f"{store.url}/blob"})

        async with Server(answer) as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            await fetch(benchmark(Source("data/a.bin", dataset="me/set")), tmp_path)
    assert "authorization" not in store.calls[0].headers
    assert (tmp_path / "data" / "a.bin").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer("", 401), "ask the publisher"),
        (Answer([]), "has no file"),
        (Answer("<html>"), "cannot be read"),
        (Answer([{"type": "file", "path": "../evil.parquet"}]), "has no file|outside"),
    ],
)
async def test_a_hub_that_answers_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, message: str
) -> None:
    async with Server(answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        own = benchmark(Source("*.parquet", dataset="me/set"), gated="ask the publisher")
        with pytest.raises(FetchError, match=message):
            await fetch(own, tmp_path, wait=no_wait)
    assert not (tmp_path.parent / "evil.parquet").exists()


@pytest.mark.slow
async def test_a_kill_in_the_middle_costs_only_the_rest(tmp_path: Path) -> None:
    """The whole command, killed while the file arrives, then run again."""
    rows = "".join(
        json.dumps({"id": str(i), "question": f"q{i}", "context": f"c{i}", "answers": ["a"]}) + "\n" for i in range(999)
    ).encode()
    listed, whole = hub({"data/all.parquet": rows}), [False]

    def answer(call: Call) -> Answer:
        if "/api/" in call.path or whole[0]:
            return listed(call)
        return replace(sent(rows[:30_000], promised=len(rows), etag='"v1"'), hang=True)

    async with Server(answer) as server:
        command = [sys.executable, "-m", "skilltune", "data", "fetch", "searchqa", "--data", str(tmp_path)]
        place = os.environ | {"HF_ENDPOINT": server.url}
        process = await asyncio.create_subprocess_exec(*command, env=place, stdout=asyncio.subprocess.DEVNULL)
        part = tmp_path / "data" / "all.parquet.part"
        while not part.is_file() or part.stat().st_size < 30_000:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert not (tmp_path / "data" / "all.parquet").exists()
        whole[0], before = True, len(server.calls)
        process = await asyncio.create_subprocess_exec(*command, env=place, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"licence: " in out.partition(b"got ")[0]
    assert server.calls[before + 1].headers["range"] == "bytes=30000-"
    assert (tmp_path / "data" / "all.parquet").read_bytes() == rows
    assert not lacking(benchmarks.find("searchqa"), tmp_path)
