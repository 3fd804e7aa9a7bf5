"""The page in a real browser: what a reader sees and does, with a mouse, a keyboard or a screen reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Page, browser
from journals import HOSTILE, a_run, splits
from skilltune.history.page import key_of
from skilltune.report.html import report, shell
from skilltune.skill import Skill
from skilltune.text import visible

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[1] / "vendor/axe.min.js"
TEXTS = [
    "# Totals\n\nAnswer.\n",
    "# Totals\n\nAnswer with the total.\n",
    "# Суммы\n\nAnswer with a <total>.\n\nBe brief 👩‍💻.",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.size(1280, 900)
        yield tab


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    with a_run(folder / "run", TEXTS, splits(4)) as run:
        path = folder / "report.html"
        path.write_text(report(run))
    return path


def quiet(page: Page) -> None:
    """No error, no warning, nothing asked of any network."""
    page.until("document.documentElement.dataset.ready === 'true'")
    assert page.console == []
    assert all(url.startswith(("file:", "data:", "about:")) for url in page.requests)


def focused(page: Page, name: str) -> Any:
    return page.value(f"document.activeElement.{name}")


def test_a_run_is_shown_from_its_decision_to_a_transcript(page: Page, file: Path) -> None:
    page.open(file)
    quiet(page)
    order = page.value("[...document.querySelectorAll('main section')].map(section => section.id)")
    assert order == ["decision", "scores", "samples", "edits", "spend", "log"]
    assert page.value("document.querySelectorAll('article.verdict').length") == len(TEXTS) - 1
    page.value("document.querySelector('.grid .cell[data-column=\"1\"]').click()")
    page.until("document.querySelector('.panel .turn')")
    sample = page.value("document.querySelector('.panel h2').textContent")
    assert page.value("document.querySelector('.panel .said pre').textContent") == "an answer"
    page.open(file, page.value("location.hash"))  # a permalink
    page.until("document.querySelector('.panel .turn')")
    assert page.value("document.querySelector('.panel h2').textContent") == sample
    quiet(page)


def test_any_two_versions_are_compared_word_by_word(page: Page, file: Path) -> None:
    hashes = [Skill(text).hash for text in TEXTS]
    for old, new in ((0, 1), (2, 0), (1, 2)):
        page.open(file, f"#a={hashes[old]}&b={hashes[new]}")
        page.until("document.querySelector('#textdiff pre')")
        kept = "[...document.querySelector('#textdiff pre').childNodes].filter(n => n.nodeName !== '{}')"
        text = kept + ".map(n => n.textContent).join('')"
        assert page.value(text.format("INS")) == TEXTS[old]
        assert page.value(text.format("DEL")) == TEXTS[new]
    quiet(page)


def test_hostile_text_does_nothing(page: Page, tmp_path: Path) -> None:
    ids = {name: [f"{name} {i} {HOSTILE}" for i in range(3)] for name in ("train", "select", "test")}
    texts = [f"a {HOSTILE}", f"b {HOSTILE} {HOSTILE}"]
    with a_run(tmp_path / "run", texts, ids, HOSTILE) as run:
        (tmp_path / "x.html").write_text(report(run))
    page.open(tmp_path / "x.html", f"#t={key_of(Skill(texts[1]).hash, 0, 0)}")
    page.until("document.querySelector('.panel .turn')")
    page.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    quiet(page)
    assert page.value("document.images.length") == 0
    assert page.value("document.scripts.length") == 3
    assert page.value("document.title.includes('alert')")  # as text
    assert page.value("document.querySelector('.panel .said pre').textContent") == visible(HOSTILE)


def test_the_policy_of_the_page_stops_what_it_does_not_know(page: Page, file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    foreign = "<script>document.title = 'run'</script><img src='https://example.invalid/x.png'></body>"
    changed.write_text(file.read_text().replace("</body>", foreign))
    page.open(changed)
    assert page.value("document.title") != "run"
    assert any("Content Security Policy" in entry for entry in page.console)
    assert not any("example.invalid" in url for url in page.requests)


def test_all_can_be_done_with_the_keyboard(page: Page, file: Path) -> None:
    page.open(file)
    page.press("Tab")
    assert focused(page, "className") == "skip"
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("/")
    assert focused(page, "id") == "search"
    page.type("s-select")
    page.until("document.querySelectorAll('.grid [data-column=\"0\"]').length === 4")
    for _ in range(20):
        page.press("Tab")
        if focused(page, "className") == "grid":
            break
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.press(key)
    page.until("document.querySelector('.cell.active')?.dataset.column === '1'")
    active = page.value("document.querySelector('.grid').getAttribute('aria-activedescendant')")
    assert page.value(f"document.getElementById('{active}').getAttribute('aria-label')") == "right"
    page.press("Enter")
    page.until("document.querySelector('.panel .turn')")
    assert page.value("document.querySelector('.panel h2').textContent") == "s-select-1"
    page.press("j")
    page.until("document.querySelector('.panel h2').textContent === 's-select-2'")
    page.press("Escape")
    page.until("!document.querySelector('.panel')")
    assert focused(page, "className") == "grid"
    before = page.value("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        page.press("t")
    page.until(f"getComputedStyle(document.body).backgroundColor !== '{before}'")
    page.press("t")
    page.press("?")
    page.until("document.querySelector('dialog[open]')")
    page.press("Escape")
    quiet(page)


def test_an_address_means_what_it_says_and_never_empties_the_page(page: Page, file: Path) -> None:
    for text, query in (("%2541%20%2B", "%41 +"), ("50%", "50%"), ("%ff%zz", "\ufffd%zz")):
        page.open(file, f"#q={text}")
        page.until("document.getElementById('search')")
        assert page.value("document.getElementById('search').value") == query
    page.open(file, "#%zz")
    quiet(page)
    page.until("document.querySelector('.places button')")
    page.value("document.querySelector('.places button').focus()")
    page.press("Enter")
    page.until("document.querySelector('.panel .turn')")
    page.press("Escape")
    page.until("!document.querySelector('.panel')")
    assert focused(page, "parentElement.className") == "places"


def test_without_scripts_a_summary_is_shown(page: Page, file: Path) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(file)
        assert page.value("document.querySelector('h1').checkVisibility()")
        assert page.value("document.querySelectorAll('tbody tr').length") == len(TEXTS)
        assert page.value("document.querySelectorAll('pre.diff ins').length") > 0
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.soak)])
def test_no_part_is_wider_than_the_window_and_axe_has_no_finding(page: Page, file: Path, scheme: str) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        for width in (360, 1280):
            page.size(width, 900)
            page.open(file, f"#t={key_of(Skill(TEXTS[2]).hash, 1, 0)}")
            page.until("document.querySelector('.panel .turn')")
            page.value("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.value("getComputedStyle(document.body).backgroundColor") == (
                "rgb(252, 252, 251)" if scheme == "light" else "rgb(19, 20, 23)"
            )
            page.value(AXE.read_text() + "; 0")
            found = page.promised(
                "axe.run({resultTypes: ['violations']}).then(found => JSON.stringify(found.violations))"
            )
            serious = [
                (each["id"], [node["html"][:200] for node in each["nodes"]][:3])
                for each in json.loads(found)
                if each["impact"] in ("serious", "critical", "moderate")
            ]
            assert serious == []
    finally:
        page.size(1280, 900)


def test_thousands_of_samples_and_a_transcript_without_end(page: Page, tmp_path: Path) -> None:
    n = 10_000
    with a_run(tmp_path / "run", TEXTS, splits(1), "Ж👩‍💻 " * 4_000) as run:
        text = report(run)
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    shown = data["page"]
    shown["samples"]["ids"] = [f"sample {i}" for i in range(n)]
    shown["samples"]["inputs"] = None
    shown["samples"]["sizes"] = shown["samples"]["all"] = {"test": n - 20, "select": 10, "train": 10}
    shown["columns"] = [
        {**shown["columns"][0], "label": f"v{i}", "hash": f"{i:016x}", "cells": ["A05LX." * (n // 6)]}
        for i in range(12)
    ]
    key = f"{0:016x}-0-0"
    talk = next(iter(data["transcripts"].values()))
    data["transcripts"][key] = {**talk, "turns": [{"role": "assistant", "text": "Ж👩‍💻 " * 125_000, "cut": 0}]}
    (tmp_path / "large.html").write_text(shell(data, "large"))
    page.open(tmp_path / "large.html")
    page.until("document.querySelectorAll('.grid .row').length > 10")
    assert page.value("document.querySelectorAll('.grid .row').length") < 100
    page.value("document.querySelector('.grid').focus()")
    page.press("End")
    page.until(f"document.querySelector('[data-place=\"{n - 1}\"]')")
    assert page.value("document.querySelectorAll('.grid .row').length") < 100
    page.value(f"location.hash = 't={key}'")
    page.until("document.querySelector('.panel .turn button')")
    page.value("document.querySelector('.panel .turn button').click()")
    page.until("document.querySelector('.panel .said pre').textContent.length > 800000")
    quiet(page)
