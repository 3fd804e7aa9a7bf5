"""The live page in a real browser, from the start of a training to its certificate, with a reload and a kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browser import Page, browser
from journals import a_run, splits
from serving import serving
from skilltune.history.record import Record
from skilltune.journal.run import Run
from training import START, small

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[1] / "vendor/axe.min.js"
TEXT = "document.getElementById('main').innerText"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.size(1280, 900)
        yield tab


def says(page: Page, text: str) -> None:
    page.until(f"{TEXT}.includes({json.dumps(text)})")


def press(page: Page, label: str) -> None:
    """Press the button with this label as soon as it is enabled, in the open dialog if there is one."""
    scope = "(document.querySelector('dialog[open]') || document)"
    enabled = "button:not([disabled], [aria-disabled=true])"
    button = f"[...{scope}.querySelectorAll('{enabled}')].find(b => b.innerText.trim() === {json.dumps(label)})"
    page.until(button)
    page.value(f"{button}.click()")


def test_a_training_is_started_watched_reloaded_killed_and_resumed(page: Page, tmp_path: Path) -> None:
    with small(q=0.9, latency=0.5, train=16, select=12, test=16) as world:  # it must not be over before it is killed
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
            assert page.value("document.querySelector('.decision .chip').innerText.trim()") == "running"
            page.open(page.value("location.href"))  # a reload in the middle
            page.until("document.querySelector('.log li')")
            (id,) = client.get("/api/runs").json["runs"]
            os.kill(client.get(f"/api/runs/{id['id']}").json["pid"], signal.SIGKILL)
            world.latency = 0.0
            says(page, "The process ended before the certificate")
            assert page.value("document.querySelector('.decision .chip').innerText.trim()") == "died"
            press(page, "Resume …")
            page.until(
                "document.querySelector('dialog[open]')?.innerText.includes('Stored answers cost nothing again')"
            )
            press(page, "Resume")
            page.until("document.querySelector('.decision .chip').innerText.trim() === 'running'")
            page.until("document.querySelector('.decision .chip').innerText.trim() === 'finished'")
            says(page, "on the untouched test split")
            page.until("document.querySelector('.grid .cell[data-column=\"1\"]')")
            page.value("document.querySelector('.grid .cell[data-column=\"1\"]').click()")
            page.until("document.querySelector('.panel .turn')")
            press(page, "Export …")
            page.until("document.querySelector('dialog[open] select[name=to]')")
            page.press("Escape")
            assert page.console == []
            (folder,) = (tmp_path / "runs").iterdir()
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
        page.open(f"{client.origin}/", "#compare=one,two")
        page.until("document.querySelectorAll('.beside article').length === 2")
        assert page.value("document.querySelector('#compare del').textContent") == "One"
        assert page.value("document.querySelector('#compare ins').textContent") == "Two"
        page.value(AXE.read_text() + "; 0")
        found = page.promised("axe.run().then(found => JSON.stringify(found.violations))")
        assert [each["id"] for each in json.loads(found) if each["impact"] in ("serious", "critical")] == []
        assert page.console == []
