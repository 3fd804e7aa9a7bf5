"""The server of the live page against attacks, and what it shows: real HTTP to a real server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from journals import a_run, splits
from serving import Client, serving
from skilltune.cli import ui
from skilltune.errors import UsageError
from skilltune.journal.run import Paid, Run
from skilltune.ui import feed, guard
from skilltune.ui.runs import Runs
from skilltune.ui.server import make_server
from skilltune.usage import Usage

Json = dict[str, Any]
ONE = Usage(calls=1)
PLANTED = "</script><script>alert(1)</script><img onerror=alert(1)>\x1b[31m\u202e\u2028"
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 16
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def begin(folder: Path, **event: Any) -> Path:
    """A run that was stopped after one paid call."""
    with Run.open(folder, {"target": {"model": PLANTED}}) as run:
        run.put("a", "rollout", Paid({"sample": "s", "skill": "h", "attempt": 0, "score": {"value": 1.0}}, ONE))
        run.record("stopped", reason=PLANTED, seconds=1.0)
        for name, data in (("1" * 64, PNG), ("2" * 64, SVG), ("3" * 64, b"<html>" + PLANTED.encode())):
            run.put_blob(f"artifact:{name}", data)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def page(home: Path) -> Iterator[Client]:
    begin(home / "runs" / "one")
    begin(home / "runs" / "deep" / "~er")
    begin(home / "outside")
    begin(home / "elsewhere")
    (home / "runs" / "link").symlink_to(home / "outside")
    (home / "runs" / "half").mkdir()
    (home / "runs" / "half" / "run.db").symlink_to(home / "outside" / "run.db")
    (home / "runs" / "empty").mkdir()
    with serving(home / "runs", project=home) as client:
        yield client


# -- who may ask


def test_the_link_gives_a_cookie_that_no_script_and_no_other_site_gets(page: Client) -> None:
    token = page.server.session.token
    entered = page.get(f"/runs/one?token={token}&x=1", {"Cookie": None})
    assert (entered.status, entered.headers["location"]) == (303, "/runs/one?x=1")
    assert token not in entered.headers["set-cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(entered.headers["set-cookie"].split("; "))
    assert page.get(f"//evil.example?token={token}").headers["location"].startswith("/evil.example")
    once = page.server.session.once()
    assert page.get(f"/?token={once}", {"Cookie": None}).status == 303
    assert page.get(f"/?token={once}", {"Cookie": None}).status == 401
    for path in ("/", "/runs/one", "/api/runs", "/api/runs/one", "/api/runs/one/events", "/api/events", "/nothing"):
        for cookie in (None, "", "skilltune=x", f"skilltune-{page.server.port}=wrong", "\x80;=;;", page.cookie[:-1]):
            refused = page.get(path, {"Cookie": cookie})
            assert (refused.status, b"one" in refused.body.replace(b"one that", b"")) == (401, False), (path, cookie)
    assert page.get("/?token=wrong").status == 401  # even with a cookie: the person sees that the link is old
    assert page.post("/api/start", {}, {"Cookie": None}).status == 401


HOSTS = (
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.0.0.1.evil.example:{port}",
    "127.0.0.1:{port}@evil.example",
    "evil.example@127.0.0.1:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "192.168.0.1:{port}",
    "127.0.0.1:{port}/x",
    "127.1:{port}",
    "[",
    "",
    None,
)


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_was_pointed_at_this_machine_is_refused(page: Client, host: str | None) -> None:
    port = page.server.port
    refused = page.get("/api/runs", {"Host": None if host is None else host.format(port=port)})
    assert refused.status in (400, 421)
    assert b"runs" not in refused.body
    for ours in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert page.get("/api/runs", {"Host": f"{ours}:{port}"}).status == 200


ORIGINS = (
    "http://evil.example",
    "null",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "",
    None,
)


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_action_of_another_page_is_refused(page: Client, home: Path, origin: str | None) -> None:
    own = None if origin is None else origin.format(port=page.server.port)
    refused = page.post("/api/runs/one/pause", {}, {"Origin": own})
    assert refused.status == 403
    if own is not None:
        assert page.get("/api/runs", {"Origin": own}).status == 403
    assert not (home / "runs" / "one" / "stop").exists()


def test_a_form_and_a_cross_site_request_are_refused(page: Client) -> None:
    assert page.post("/api/check", {}, {"X-Skilltune": None}).status == 403
    assert page.post("/api/check", {}, {"X-Skilltune": "form"}).status == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        assert page.post("/api/check", {}, {"Content-Type": kind}).status == 415
    for site in ("cross-site", "same-site"):
        assert page.get("/api/runs", {"Sec-Fetch-Site": site}).status == 403
        assert page.get("/api/runs", {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status == 403
        assert page.get("/", {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status == 200
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert page.ask(method, "/api/runs", headers={"Origin": page.origin}).status == 405
    assert page.get("/api/start").status == 405
    assert page.post("/api/check", [1]).json["error"] == "the request must be a JSON object"
    big = page.ask(
        "POST",
        "/api/check",
        b"1" * 1_100_000,
        {"Origin": page.origin, "X-Skilltune": "page", "Content-Type": "application/json"},
    )
    assert (big.status, "larger than" in big.json["error"]) == (400, True)


# -- what an answer may hold


def test_every_answer_tells_the_browser_what_it_is_and_that_it_may_do_nothing_else(page: Client) -> None:
    paths = ("/", "/api/runs", "/api/runs/one", "/api/runs/nope", "/nope", "/api/runs/one/actions")
    answers = [page.get(path) for path in paths]
    answers += [page.get("/api/runs", {"Host": "evil"}), page.get("/", {"Cookie": None}), page.post("/api/zzz")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    assert all("text/html" not in answer.headers["content-type"] for answer in answers[1:])


def test_the_page_runs_its_own_scripts_and_no_other(page: Client) -> None:
    shown = page.get("/runs/one")
    allowed = shown.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in allowed
    inline = re.findall(r"<(script|style)([^>]*)>(.*?)</\1>", shown.body.decode(), re.DOTALL)
    assert {kind for kind, _, _ in inline} == {"script", "style"}
    for kind, attributes, text in inline:
        assert "src=" not in attributes
        if "json" in attributes:
            assert json.loads(text) == {"mode": "live"}
        else:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in allowed.partition(f"{kind}-src ")[2].partition(";")[0]
    assert not re.search(
        r"\son\w+=|(?:src|href)=.?https?:", re.sub(r"<(script|style).*?</\1>", "", shown.body.decode(), flags=re.DOTALL)
    )


def test_what_models_wrote_can_be_put_into_a_page(page: Client) -> None:
    for path in ("/api/runs", "/api/runs/one", "/api/runs/one/actions", "/api/runs/%3Cscript%3E"):
        body = page.get(path).body.decode()
        assert "<" not in body
        assert "\x1b" not in body
    assert PLANTED.split("\x1b")[0] in page.get("/api/runs/one").json["stopped"]
    with page.events("/api/runs/one/events") as events:
        assert PLANTED.split("\x1b")[0] in list(islice(events, 2))[1].data["stopped"]


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text(), max_size=2), max_size=3))
@settings(max_examples=50)
def test_json_cannot_end_an_element_and_stays_one_line(value: Any) -> None:
    text = guard.embeddable(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029\n\r") & set(text)


def test_a_half_surrogate_pair_is_answered() -> None:
    assert json.loads(guard.embeddable({"a": "\ud83d"})) == {"a": "\ud83d"}


def test_a_file_of_a_model_is_shown_only_if_it_is_an_image(page: Client) -> None:
    image, drawing, html = (page.get(f"/api/runs/one/files/{n * 64}") for n in "123")
    assert (image.headers["content-type"], image.body) == ("image/png", PNG)
    assert image.headers["content-disposition"].startswith("inline;")
    for file, data in ((drawing, SVG), (html, b"<html>" + PLANTED.encode())):
        assert (file.headers["content-type"], file.body) == ("application/octet-stream", data)
        assert file.headers["content-disposition"].startswith("attachment;")
        assert "sandbox" in file.headers["content-security-policy"]
    for hash in ("4" * 64, "zz", "1", "..", "artifact:1", "%2e%2e%2frun.db"):
        assert page.get(f"/api/runs/one/files/{hash}").status in (400, 404)


# -- nothing outside of the folder


ids = (
    "..",
    "%2e%2e",
    "..%2foutside",
    "../outside",
    "link",
    "half",
    "empty",
    "one/../../outside",
    "/etc",
    "one%00",
    "elsewhere",
    "deep",
    ".",
    "~",
    "%ff",
)


@pytest.mark.parametrize("id", ids)
def test_no_id_leads_out_of_the_folder(page: Client, id: str) -> None:
    for end in ("", "/events", "/actions", "/rollouts/a-0-0", f"/files/{'1' * 64}"):
        assert page.get(f"/api/runs/{id}{end}").status in (404, 405), end
    for action in ("pause", "resume", "export", "adopt"):
        assert page.post(f"/api/runs/{id}/{action}").status in (404, 405)


def test_the_list_holds_the_runs_of_the_folder_and_of_its_folders(page: Client, home: Path) -> None:
    listed = page.get("/api/runs").json
    assert [row["id"] for row in listed["runs"]] == ["deep~1~0er", "one"]
    assert page.get("/api/runs/deep~1~0er").json["id"] == "deep~1~0er"
    assert not any((home / name / "stop").exists() for name in ("outside", "elsewhere"))
    assert list(Runs.of(home / "runs" / "one").folders()) == ["one"]


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    begin(tmp_path / "good")
    begin(tmp_path / "bad")
    (tmp_path / "bad" / "run.db").write_bytes(b"no database" * 100)
    begin(tmp_path / "young")
    (tmp_path / "young" / "run.db").write_bytes(b"")
    with serving(tmp_path) as client:
        rows = {row["id"]: row for row in client.get("/api/runs").json["runs"]}
        assert set(rows) == {"good", "bad", "young"}
        assert "error" not in rows["good"]
        assert "damaged" in rows["bad"]["error"]
        assert client.get("/api/runs/bad").status == 409
        with client.events("/api/runs/bad/events") as events:
            assert [event.type for event in events] == ["problem"]


ODD: dict[str, Json] = {
    "root": {},
    "start": {"skill": 1},
    "proposals": {"step": "x"},
    "stopping": {"forecast": 2.0},
    "verdict": {"edits": [{"evidence": [1]}]},
    "finish": {"certificate": [], "stopped": {}},
    "stopped": {},
    "reselection": {"version": 1},
}


def test_a_run_of_unexpected_values_does_not_hide_the_others(tmp_path: Path) -> None:
    begin(tmp_path / "good")
    for type, data in ODD.items():
        with Run.open(begin(tmp_path / type)) as run:
            run.record(type, **data)
    with sqlite3.connect(begin(tmp_path / "view") / "run.db") as db:
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS id, 1.0 AS t"
        db.execute("DROP TABLE event")
        db.execute(f"CREATE VIEW event AS {endless}, 'stopped' AS type, '{{}}' AS json FROM n")
    db.close()
    with serving(tmp_path) as client:
        rows = {row["id"]: row.get("error", "") for row in client.get("/api/runs").json["runs"]}
        assert rows.pop("good") == ""
        assert set(rows) == {"view", *ODD}
        for id, error in rows.items():
            assert "damaged" in error or "another program" in error, id
            for end in ("", "/actions", "/rollouts/a-0-0"):
                assert client.get(f"/api/runs/{id}{end}").status == 409, (id, end)


@pytest.mark.parametrize("name", ["lock.db", "run.db-wal", "run.db-shm", "run.db-journal", "lock.db-journal"])
def test_a_run_whose_database_has_a_pipe_or_a_link_is_left_out(tmp_path: Path, name: str) -> None:
    begin(tmp_path / "runs" / "good")
    for kind in ("pipe", "link"):
        file = begin(tmp_path / "runs" / kind) / name
        file.unlink(missing_ok=True)
        file.symlink_to("/etc/hostname") if kind == "link" else os.mkfifo(file)
    assert list(Runs.of(tmp_path / "runs").folders()) == ["good"]


def test_a_run_is_found_by_an_id_that_can_be_listed(tmp_path: Path) -> None:
    for name in ("a,b", "a~2b", "a/b"):
        begin(tmp_path / name)
    ids = list(Runs.of(tmp_path).folders())
    assert sorted(ids) == ["a~02b", "a~1b", "a~2b"]
    assert Runs.of(tmp_path).folder("a~2b") == tmp_path / "a,b"


# -- a server that only shows


def test_a_read_only_server_refuses_every_action_and_says_so(tmp_path: Path) -> None:
    begin(tmp_path / "one")
    (tmp_path / "d.jsonl").write_text('{"id": "1", "input": "a", "reviewed": false}\n')
    with serving(tmp_path, read_only=True, project=tmp_path) as client:
        assert client.get("/api/runs").json["read_only"]
        for path in (
            "check",
            "start",
            "drafts/d.jsonl",
            *(f"runs/one/{a}" for a in ("pause", "resume", "budget", "export", "adopt")),
        ):
            refused = client.post(f"/api/{path}", {"digest": "x", "decision": "delete"})
            assert (refused.status, refused.json["error"]) == (403, "this server was started with --read-only"), path
        for path in ("/api/actions", "/api/runs/one/actions"):
            actions = client.get(path).json["actions"]
            assert actions
            assert not any(action["enabled"] for action in actions)
    assert sorted(file.name for file in (tmp_path / "one").iterdir() if file.name != ".gitignore") == [
        "lock.db",
        "run.db",
    ]


# -- reading changes nothing, and streams end


def test_looking_at_runs_writes_nothing_into_them(tmp_path: Path) -> None:
    folder = begin(tmp_path / "one")
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    with serving(tmp_path) as client, client.events("/api/runs/one/events") as events:
        client.get("/api/runs")
        assert [next(events).type for _ in range(2)] == ["state", "page"]
        client.get("/api/runs/one/actions")
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before


def test_streams_of_two_tabs_follow_a_run_and_end_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "EVERY_S", 0.02)
    monkeypatch.setattr(feed, "PING_S", 0.05)
    with Run.open(tmp_path / "one", {}) as run, serving(tmp_path) as client:
        run.put("a", "probe", Paid(1, ONE))
        watched = [client.events(f"/api/{path}") for path in ("runs/one/events", "runs/one/events", "events")]
        with watched[0] as one, watched[1] as two, watched[2] as rows:
            assert next(rows).data["runs"][0]["state"] == "running"
            first = [next(one), next(one)]
            assert [event.type for event in first] == ["state", "page"]
            assert [event.type for event in (next(two), next(two))] == ["state", "page"]
            run.record("stopping", reason=PLANTED)
            for tab in (one, two):
                line = next(event for event in tab if event.type == "log")
                assert line.data["line"].startswith("stopping: </script>")
                assert next(event for event in tab if event.type == "page").data["log"]
            run.record("certify", best="h")
            with client.events("/api/runs/one/events", last=first[-1].id) as again:  # after a lost connection
                missed = [event.data["line"] for event in (next(again), next(again))]
                assert [text[:8] for text in missed] == ["stopping", "certific"]
            began = time.monotonic()
            client.stop()
            assert [[event.type for event in events][-1] for events in (one, two, rows)] == ["end"] * 3
            assert time.monotonic() - began < 5
        run.put("b", "probe", Paid(2, ONE))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nonsense", "large"])
def test_a_live_file_that_is_none_of_ours_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret.json").write_text('{"step": 7}')
    with Run.open(tmp_path / "runs" / "one", {}):
        file = tmp_path / "runs" / "one" / "live.json"
        if kind == "link":
            file.symlink_to(tmp_path / "secret.json")
        elif kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.write_text("[" * 100_000 if kind == "large" else "{")
        with serving(tmp_path / "runs") as client:
            shown = client.get("/api/runs/one").json
            assert (shown["state"], shown["live"]) == ("running", None)


def test_a_run_that_is_deleted_ends_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "EVERY_S", 0.02)
    begin(tmp_path / "one")
    with serving(tmp_path) as client, client.events("/api/runs/one/events") as events:
        assert next(events).type == "state"
        (tmp_path / "one" / "run.db").unlink()
        assert [event.type for event in events] == ["page", "gone"]


# -- starting the server


def test_the_port_the_host_and_the_folder_are_checked_before_anything_listens(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use.*--port"):
            make_server(tmp_path, port=port)
    with pytest.raises(UsageError, match="--expose"):
        make_server(tmp_path, host="0.0.0.0")
    with pytest.raises(UsageError, match="no folder"):
        make_server(tmp_path / "nope")
    one, two = make_server(tmp_path), make_server(tmp_path)  # without a port, the second one gets a free port
    with closing(one.socket), closing(two.socket):
        assert one.port != two.port
        assert one.session.token != two.session.token
        assert one.session.cookie_name != two.session.cookie_name
    anywhere = make_server(tmp_path, host="0.0.0.0", port=0, expose=True)
    with closing(anywhere.socket):
        hosts = anywhere.guard._hosts
        assert hosts.admits(f"192.168.7.7:{anywhere.port}")
        assert not hosts.admits(f"evil.example:{anywhere.port}")


def run_ui(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "skilltune", "ui", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_the_command_prints_a_link_and_ends_cleanly(tmp_path: Path) -> None:
    begin(tmp_path / "runs" / "one")
    process = run_ui(tmp_path, "--no-open", "--port", "0")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=[\w-]{40,}", lines[1])
    assert found, lines
    with closing(socket.create_connection(("127.0.0.1", int(found[1])))) as open_tab:
        open_tab.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{found[1]}\r\n\r\n".encode())
        assert b" 401 " in open_tab.recv(1000)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "", "")


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_the_command_names_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(typer.Exit) as end:
        ui.ui()
    assert end.value.exit_code == 2
    assert f"needs {missing}, which is not installed: pip install 'skilltune[ui]'" in capsys.readouterr().err


def test_a_finished_run_is_shown_with_its_transcripts(tmp_path: Path) -> None:
    a_run(tmp_path / "run", ["# A\n", "# B\n"], splits(2)).close()
    with serving(tmp_path / "run") as client:
        (row,) = client.get("/api/runs").json["runs"]
        assert (row["id"], row["state"], row["kind"]) == ("run", "finished", "yes")
        shown = client.get("/api/runs/run").json
        talk = client.get(f"/api/runs/run/rollouts/{shown['columns'][0]['hash']}-0-0").json
        assert talk["sample"] == shown["samples"]["ids"][0]
        assert client.get("/api/runs/run/rollouts/0-0-0").status == 404
