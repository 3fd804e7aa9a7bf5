"""The live page in a real browser, from the start of a training to its certificate, with a reload and a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browser import PATIENCE_S, Page, browser
from journals import a_run, splits
from serving import serving, until
from skilltune.history.record import Record
from skilltune.journal.run import Run
from training import START, small

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[1] / "vendor/axe.min.js"
STATE = "document.querySelector('.decision .chip')?.innerText.trim()"
TEXT = "document.getElementById('main').innerText"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.size(1280, 900)
        yield tab


def says(page: Page, text: str) -> None:
    page.until(f"{TEXT}.includes({json.dumps(text)})")


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def press(page: Page, label: str) -> None:
    """Press the button with this label as soon as it is enabled, in the open dialog if there is one."""
    scope = "(document.querySelector('dialog[open]') || document)"
    enabled = "button:not([disabled], [aria-disabled=true])"
    button = f"[...{scope}.querySelectorAll('{enabled}')].find(b => b.innerText.trim() === {json.dumps(label)})"
    page.until(button)
    page.value(f"{button}.click()")


def test_a_training_is_started_watched_reloaded_killed_resumed_exported_and_adopted(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-only-in-the-environment")
    with small(q=0.9, latency=0.4, train=16, select=12, test=16) as world:  # it must not be over before it is killed
        world.write(tmp_path / "samples.jsonl")
        (tmp_path / "SKILL.md").write_text(START)
        (tmp_path / "runs").mkdir()
        with serving(tmp_path / "runs", project=tmp_path) as client:
            page.open(client.server.link(client.server.session.token))
            says(page, "There is no run in this folder yet")
            press(page, "New run")
            page.until("document.querySelector('dialog[open] input[name=skill]')")
            values = {
                "skill": "SKILL.md",
                "tasks": "samples.jsonl",
                "target": f"openai@{world.url}/target",
                "optimizer": f"openai@{world.url}/optimizer",
            }
            for name, value in values.items():
                page.value(f"document.querySelector('dialog [name={name}]').value = {json.dumps(value)}")
            press(page, "Check")
            page.until("document.querySelector('dialog[open]')?.innerText.includes('Start this training?')")
            assert "calls the target and the optimizer" in page.value("document.querySelector('dialog').innerText")
            press(page, "Start training")
            page.until("location.pathname.startsWith('/runs/')")
            page.until("document.querySelector('#live')")
            says(page, "steps judged")
            assert page.value(STATE) == "running"
            (id,) = (row["id"] for row in client.get("/api/runs").json["runs"])
            path = f"/api/runs/{id}"
            page.open(page.value("location.href"))  # a reload in the middle
            page.until("document.querySelector('.log li')")
            page.until("document.querySelectorAll('.actions [aria-disabled=false]').length === 1")
            assert page.value("document.querySelector('.actions [aria-disabled=false]').innerText") == "Pause …"
            with client.events(f"{path}/events") as events, client.events(f"{path}/events") as other:
                first = next(event for event in events if event.type == "page" and event.data["live"])
                os.killpg(first.data["pid"], signal.SIGKILL)
                world.latency = 0.0
                seen = until(events, "died")
                assert {"state": "died", "read_only": False} in [event.data for event in seen if event.type == "state"]
                assert until(other, "died")[-1].data == seen[-1].data
            says(page, "The process ended before the certificate")
            page.until(f"{STATE} === 'died'")
            press(page, "Resume …")
            page.until(f"document.querySelector('dialog[open]')?.innerText.includes('runs/{id}/start.toml')")
            assert "Stored answers cost nothing again" in page.value("document.querySelector('dialog').innerText")
            press(page, "Resume")
            page.until("!document.querySelector('dialog[open]')")
            assert page.console == []
        with serving(tmp_path / "runs", project=tmp_path) as client:  # the training outlives its server
            page.open(client.server.link(client.server.session.token, f"/runs/{id}"))
            with client.events(f"{path}/events", last=seen[-1].id) as events:
                seen = until(events, "finished")
            lines = [event.data["line"] for event in seen if event.type == "log"]
            assert lines[-1] == "finished"
            assert len(lines) == len(set(lines))
            page.until(f"{STATE} === 'finished'")
            says(page, "on the untouched test split")
            page.until("document.querySelector('.grid .cell[data-column=\"1\"]')")
            page.value("document.querySelector('.grid .cell[data-column=\"1\"]').click()")
            page.until("document.querySelector('.panel .turn')")
            press(page, "Export …")
            page.until("document.querySelector('dialog[open] select[name=to]')")
            page.press("Escape")
            assert page.console == []
            folder = tmp_path / "runs" / id
            assert client.post(f"{path}/export", {"to": "claude"}).json["ok"]
            skill = (tmp_path / ".claude" / "skills" / "desk" / "SKILL.md").read_text()
            assert skill == (folder / "best_skill.md").read_text() != START
            assert client.post(f"{path}/adopt").json == {"ok": True, "path": str(tmp_path / "SKILL.md")}
            assert (tmp_path / "SKILL.md").read_text() == skill
            again = client.post(f"{path}/adopt")
            assert (again.status, "already" in again.json["error"]) == (409, True)
    for file in folder.rglob("*"):
        assert not file.is_file() or b"sk-only-in-the-environment" not in file.read_bytes(), file
    with Run.read(folder) as run:
        proof = Record.of(run).certificate
    assert proof is not None
    page.open(folder / "report.html")  # the same page as a file, without its server
    says(page, f"{proof.fixed} fixed, {proof.broken} broken")
    says(page, f"+{100 * proof.gain:.1f} points")
    page.value("document.querySelector('.grid .cell[data-column=\"1\"]').click()")
    page.until("document.querySelector('.panel .turn')")
    assert page.console == []


def test_the_list_shows_searches_and_compares_runs(page: Page, tmp_path: Path) -> None:
    for name, texts in (("one", ["# A\n", "# A\n\nOne.\n"]), ("two", ["# A\n", "# A\n\nTwo.\n"])):
        a_run(tmp_path / "runs" / name, texts, splits(3)).close()
    with Run.open(tmp_path / "runs/three", {"skill": "x.md", "target": {"model": "openai/other"}}):
        pass
    with serving(tmp_path / "runs", project=tmp_path) as client:
        page.open(client.server.link(client.server.session.token))
        page.until("document.querySelectorAll('table.runs tbody tr').length === 3")
        page.press("/")
        page.type("one")
        page.until("document.querySelectorAll('table.runs tbody tr').length === 1")
        watched = client.server.feeds.all
        page.until("document.querySelector('main .lead').innerText === '3 runs'")
        other = page.call("Target.createTarget", url="about:blank")["targetId"]  # the first tab is hidden by it
        eventually(lambda: watched._watchers == 0)
        page.call("Target.closeTarget", targetId=other)
        page.call("Page.bringToFront")
        eventually(lambda: watched._watchers == 1)
        page.open(f"{client.origin}/runs/%ff")
        says(page, "there is no run")
        page.open(f"{client.origin}/", "#compare=one,two")
        page.until("document.querySelectorAll('.beside article').length === 2")
        assert page.value("document.querySelector('#compare del').textContent") == "One"
        assert page.value("document.querySelector('#compare ins').textContent") == "Two"
        page.value(AXE.read_text() + "; 0")
        found = page.promised("axe.run().then(found => JSON.stringify(found.violations))")
        assert [each["id"] for each in json.loads(found) if each["impact"] in ("serious", "critical")] == []
        assert page.console == []
        page.open(f"{client.origin}/runs/one")
        page.until("[...document.querySelectorAll('.actions button')].find(b => b.innerText.startsWith('Export'))")
        page.value(
            "[...document.querySelectorAll('.actions button')].find(b => b.innerText.startsWith('Export')).focus()"
        )
        page.press("Enter")
        press(page, "Cancel")
        page.until("document.activeElement.innerText.startsWith('Export')")
        port = client.server.port
        eventually(lambda: client.server.feeds.run("one")._watchers == 1)
    with serving(tmp_path / "runs", project=tmp_path, port=port):
        says(page, "a link of an earlier server does not work any more")
