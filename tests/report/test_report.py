"""The report says what the journal says, runs nothing of what it shows, needs no network, and works in a browser."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from journals import HOSTILE, a_run, splits
from skilltune.cli.main import app
from skilltune.journal.run import Run
from skilltune.report.card import inline
from skilltune.report.html import policy, report, shell
from skilltune.report.markup import Html, asset, data, el, fill
from skilltune.report.words import changes, diff_html
from skilltune.text import visible
from training import Trained, small, train

VOID = {"meta", "link", "br", "img", "input"}
# Every element that the page may hold; one more would be somebody else's.
TAGS = """html head meta title link style body noscript div h1 h2 p table thead tbody tr th td pre ins del span
    script"""
VARIABLES = re.compile(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);")


class Parsed(HTMLParser):
    """Checks that tags are balanced while it reads; keeps tags, attributes and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def check(page: str) -> dict[str, Any]:
    """Properties of every page, for any content. Returns its data."""
    parsed = Parsed(page)
    assert set(parsed.tags) <= set(TAGS.split())
    assert parsed.tags.count("script") == 3
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on") or name in ("src", "style", "srcdoc")]
    assert all(value == "data:," for _, name, value in parsed.attributes if name == "href")
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"^(import|export) ", parsed.scripts[2], re.MULTILINE)
    return json.loads(parsed.scripts[0])


@pytest.fixture(scope="module")
async def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with small(seed=3) as world:
        return await train(world, tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


# -- the parts


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_goes_in_comes_out_as_text(text: str, other: str) -> None:
    made = el("p", text, el("b", other), title=text)
    parsed = Parsed(made)
    assert parsed.tags == ["p", "b"]
    assert parsed.attributes == [("p", "title", visible(text))]
    assert made.encode()  # no half surrogate pair is left


@given(st.text() | st.sampled_from([HOSTILE]))
def test_embedded_data_cannot_end_its_element(text: str) -> None:
    made = data({"x": visible(text)})
    assert "<" not in made
    assert json.loads(made) == {"x": visible(text)}


def test_slots_are_filled_once() -> None:
    assert fill("{{a}}-{{b}}", a="{{b}}", b="{{a}}") == "{{b}}-{{a}}"


def test_hidden_characters_are_spelled_out_and_other_scripts_stay() -> None:
    assert visible("a\r\nb\tשלום 👩‍💻\x00\u202e\ud800\ufeff") == "a\nb\tשלום 👩‍💻\\x00\\u202e\\ud800\\ufeff"
    assert isinstance(el("p", Html("<b>x</b>")), Html)


documents = st.lists(st.sampled_from(["one two", "one, two three", "", "# head", "tail\r", "x\u2028y"]), max_size=12)


@given(documents, documents, st.booleans())
@settings(max_examples=200)
def test_the_changes_give_both_texts_back(old: list[str], new: list[str], ended: bool) -> None:
    before, after = "\n".join(old) + "\n" * ended, "\n".join(new)
    found = changes(before, after)
    assert "".join(text for kind, text in found if kind != "+") == before
    assert "".join(text for kind, text in found if kind != "-") == after
    Parsed(diff_html(before, after))


def test_only_the_words_that_differ_are_marked_and_long_stretches_are_folded() -> None:
    assert changes("Answer with the total.\n", "Answer with the net total.\n") == [
        ("=", "Answer with the "),
        ("+", "net "),
        ("=", "total.\n"),
    ]
    assert changes("a big dog", "a small cat") == [("=", "a "), ("-", "big dog"), ("+", "small cat")]
    text = "".join(f"line {i}\n" for i in range(40))
    assert "33 unchanged lines" in diff_html(text, text + "more\n") or "unchanged lines" in diff_html(
        text, f"{text}x\n"
    )
    assert diff_html(text, text) == "<p>No difference.</p>"


def test_a_huge_difference_stays_quick_and_whole() -> None:
    before, after = "a b\n" * 30_000, "c d\n" * 30_000
    assert changes(before, after) == [("-", before), ("+", after)]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two #rgb or #rrggbb colours."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_enough_contrast_in_light_and_in_dark() -> None:
    pairs = {name: (light, dark) for name, light, dark in VARIABLES.findall(asset("page/page.css"))}
    for scheme in (0, 1):
        colour = {name: pair[scheme] for name, pair in pairs.items()}
        for ground in ("page", "card", "sunk"):
            assert all(contrast(colour[name], colour[ground]) >= 4.5 for name in ("text", "soft", "accent", "bad"))
        for name, ground in (("text", "add"), ("text", "cut"), ("accent", "accent-soft"), ("accent-text", "accent")):
            assert contrast(colour[name], colour[ground]) >= 4.5, (name, ground)
        assert contrast(colour["limit"], colour["page"]) >= 4.5


# -- the page


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_page_is_written_at_the_end_of_a_run_and_says_what_the_journal_says(trained: Trained) -> None:
    text = trained.read("report.html")
    shown = check(text)["page"]
    certificate = trained.result.certificate
    assert certificate is not None
    for name in ("before", "after", "gain", "low", "high", "p", "fixed", "broken", "n"):
        assert shown["decision"][name] == pytest.approx(getattr(certificate, name), abs=1e-6), name
    assert [verdict["accepted"] for verdict in shown["verdicts"]] == [v["accepted"] for v in trained.verdicts]
    assert [version["text"] for version in shown["versions"]] == [v.text for v in trained.result.versions]
    assert sum(row["calls"] for row in shown["money"]["rows"]) == shown["money"]["total"]["calls"]
    with Run.read(trained.folder) as run:
        again = check(report(run))
        for page in (again["page"], shown):
            assert page["money"].pop("minutes") > 0  # the process that wrote the report was still at work
        assert again["page"] == shown
        assert shown["money"]["total"]["calls"] == sum(usage.calls for usage in run.usage.values())
    assert str(certificate) in text.split("<noscript>")[1].split("</noscript>")[0]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    ids = {name: [f"{name} {i} {HOSTILE}" for i in range(3)] for name in ("train", "select", "test")}
    texts = [f"# Start\n{HOSTILE}\n", f"# Next\n{HOSTILE}\n{HOSTILE}", f"# Last\n{HOSTILE}\nmore"]
    with a_run(tmp_path, texts, ids, HOSTILE) as run:
        shown = check(report(run))
    assert shown["page"]["versions"][0]["text"] == visible(texts[0])
    assert not re.search("[\x00\x1b\u202e\u200b\ud800]", json.dumps(shown, ensure_ascii=False))
    assert len(shown["transcripts"]) == 27


@pytest.mark.slow
def test_a_large_run_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    samples = {name: [f"{name}-{i:04}" for i in range(n)] for name, n in (("train", 1), ("select", 1), ("test", 4998))}
    with a_run(tmp_path, ["# Start\n", "# End\n"], samples, "long <answer> & " * 40) as run:
        shown = check(report(run))
    assert len(shown["page"]["samples"]["ids"]) == 5000
    assert re.search(r"it holds [\d,]+ of 10,000: what changed first", shown["about"])


@pytest.mark.slow
def test_many_versions_of_a_large_skill_with_endless_answers_stay_small(tmp_path: Path) -> None:
    texts = [f"# Version {i}\n" + f"{i} rule <&> é\n" * 3_000 for i in range(90)]
    with a_run(tmp_path, texts, splits(3), "<é&>" * 2_000) as run:
        text = report(run)
    shown = check(text)
    left = {part["what"] for part in shown["page"]["omitted"]}
    assert left == {
        "texts of versions",
        "versions in the middle",
        "versions without a column",
        "earlier verdicts",
    }
    assert "It is too long for this summary" in text


def test_a_run_that_has_just_begun_and_one_that_found_nothing(tmp_path: Path) -> None:
    with Run.open(tmp_path / "new", {"skill": "x.md"}) as run:
        text = report(run)
        assert (
            check(text)["page"]["decision"]["claim"]
            == "Training is under way. Nothing is proven before the certificate."
        )
        assert "Not finished" in text
    with a_run(tmp_path / "same", ["# Start\n"], splits(2)) as run:
        shown = check(report(run))["page"]
        assert shown["decision"]["claim"] == "Nothing better was found; the input is shipped unchanged."


def test_the_command_writes_the_page_where_it_is_told(tmp_path: Path) -> None:
    a_run(tmp_path / "run", ["# Start\n", "# End\n"], splits(2)).close()
    runner = CliRunner()
    done = runner.invoke(app, ["report", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    written = (tmp_path / "run/report.html").read_text()
    assert runner.invoke(app, ["report", str(tmp_path / "run"), "-o", str(tmp_path / "x.html")]).exit_code == 0
    assert (tmp_path / "x.html").read_text() == written
    check(written)
    (tmp_path / "taken").mkdir()
    refused = runner.invoke(app, ["report", str(tmp_path / "run"), "-o", str(tmp_path / "taken")])
    assert refused.exit_code == 2
    assert "cannot write" in refused.stderr
    assert runner.invoke(app, ["report", str(tmp_path / "none")]).exit_code == 2


def test_what_is_vendored_is_what_was_released() -> None:
    rows = re.findall(r"^\| (\S+\.js) .* ([0-9a-f]{64}) \|$", asset("page/vendor/VENDORED.md"), re.MULTILINE)
    assert rows
    for name, known in rows:
        assert hashlib.sha256(asset(f"page/vendor/{name}").encode()).hexdigest() == known


def test_the_page_of_a_server_has_no_data_and_reaches_only_its_server() -> None:
    text = shell({"mode": "live"})
    assert check(text) == {"mode": "live"}
    assert "connect-src 'self'" in policy(live=True)
    assert "connect-src" not in policy(live=False)


# -- the card


@pytest.mark.anyio
async def test_the_card_is_valid_markdown_with_the_certificate_first(trained: Trained) -> None:
    text = trained.read("card.md")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 2
    assert str(trained.result.certificate) in text.split("## Versions")[0]
    fences = [token for token in tokens if token.type == "fence"]
    assert [token.info for token in fences] == ["diff", "toml"]
    assert "".join(token.content for token in tokens if token.type == "html_block").count("<details>") == 2
    assert trained.result.best.hash in text


@given(st.text(max_size=60) | st.sampled_from(["a|b", "<b>x</b>", "@someone #12", "$x$", "1. x", "](x)", "`", HOSTILE]))
def test_text_in_the_card_is_text(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(f"| | |\n| --- | --- |\n| x | {inline(text)} |\n")
    assert [token.type for token in tokens].count("td_open") == 2
    children = [child.type for token in tokens for child in token.children or ()]
    assert set(children) <= {"text", "text_special"}
