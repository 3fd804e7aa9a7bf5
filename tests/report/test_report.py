"""The report says what the journal says, runs nothing of what it shows, needs no network, and works in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from browser import Page, browser
from skilltune.cli.main import app
from skilltune.edits import Edit
from skilltune.history.record import Record
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.report.card import inline
from skilltune.report.html import report
from skilltune.report.markup import Html, asset, data, el, fill
from skilltune.report.words import changes, diff_html
from skilltune.rollout import Rollout, Score, Trajectory, Turn, rollout_to_json
from skilltune.skill import Skill
from skilltune.text import visible
from skilltune.usage import Usage
from training import Trained, small, train

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' --> <!-- ]]> &amp; {{main}} </pre></details>"
    "\x00\x1b[31m \u202eesrever\u202c \ud800 שלום \u200b `x` | https://example.com\u2028end"
)
VOID = {"meta", "link", "br", "img", "input"}
# Every element that the page may hold; one more would be somebody else's.
TAGS = """html head meta title link style body a header p h1 h2 h3 h4 nav ul li main section div span dl dt dd small
    svg line text g circle rect table caption thead tbody tr th td pre ins del details summary form label select option
    noscript article q footer script"""
VARIABLES = re.compile(r"--([\w-]+): (#\w+);")


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


def check(page: str) -> Parsed:
    """What must hold for every page, whatever it shows."""
    parsed = Parsed(page)
    assert set(parsed.tags) <= set(TAGS.split())
    assert parsed.tags.count("script") == 2
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on") or name in ("src", "style", "srcdoc")]
    assert all(value.startswith(("#", "data:,")) for _, name, value in parsed.attributes if name == "href" and value)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for tag, name, value in parsed.attributes if tag == "a" and name == "href" and value}
    assert targets <= set(ids)
    assert len(page.encode()) < 2_000_000
    return parsed


def rolled(skill: Skill, sample: str, value: float, text: str = "an answer", why: str = "because") -> dict[str, Any]:
    trajectory = Trajectory(text, (Turn("user", text), Turn("assistant", text)), usage=Usage(1, 10, 5))
    return rollout_to_json(Rollout(sample, skill.hash, 0, trajectory, Score(value, why)))


def a_run(
    folder: Path, texts: list[str], samples: dict[str, list[str]], text: str = "an answer", finish: bool = True
) -> Run:
    """A journal as training writes it: every version on every sample, the first wrong and all others right."""
    run = Run.open(folder, {"skill": "SKILL.md", "seed": 1, "preset": "default", "target": {"model": text}})
    run.decide("split", lambda: samples)
    skills = [Skill(each) for each in texts]
    run._db.execute("BEGIN")  # thousands of rows at once
    for number, skill in enumerate(skills):
        run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        for sample in (sample for part in samples.values() for sample in part):
            value = rolled(skill, sample, float(number > 0), text, text)
            run.put(digest(number, sample), "rollout", Paid(value, Usage(1, 10, 5)))
    run.record("start", skill=skills[0].hash, score=0.0, score_sd=0.01, select=len(samples["select"]))
    for number, skill in enumerate(skills[1:], start=1):
        edit = {"op": "replace", "after": None, "target": text, "text": text, "why": text}
        edit["evidence"] = [{"sample": sample, "quote": text} for sample in samples["train"][:2]]
        run.record(
            "verdict",
            **{"accepted": True, "reason": text, "score": 0.9, "score_sd": 0.02, "skill": skill.hash},
            **{"candidate": skill.hash, "before": 0.0, "after": 1.0, "step": number, "epoch": 1, "lr": 4},
            version=number,
            differences=dict.fromkeys(samples["select"], 1.0),
            edits=[{**edit, "status": "applied", "match": "exact", "reason": "", "removed": text, "inserted": text}],
            rejected=[{"edit": {**edit, "op": "delete"}, "reason": text}],
            numbers={},
        )
    run._db.execute("COMMIT")
    if finish:
        hashes = {"start": skills[0].hash, "best": skills[-1].hash}
        run.record("finish", name=text, exit_code=0, **hashes, versions=[], certificate=None, stopped=None)
    return run


def splits(n: int, prefix: str = "s") -> dict[str, list[str]]:
    return {name: [f"{prefix}-{name}-{i}" for i in range(n)] for name in ("train", "select", "test")}


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
    light, dark = (dict(VARIABLES.findall(block)) for block in asset("report.css").split(":root {")[1:3])
    for colours in (light, dark):
        for name in ("text", "soft", "link", "good", "bad"):
            assert contrast(colours[name], colours["page"]) >= 4.5
            assert contrast(colours[name], colours["card"]) >= 4.5
        assert contrast(colours["add-text"], colours["add"]) >= 4.5
        assert contrast(colours["cut-text"], colours["cut"]) >= 4.5
        assert all(contrast(colours[name], colours["page"]) >= 3 for name in ("select", "test", "focus"))


# -- the page


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_page_is_written_at_the_end_of_a_run_and_says_what_the_journal_says(trained: Trained) -> None:
    page = trained.read("report.html")
    parsed = check(page)
    certificate = trained.result.certificate
    assert certificate is not None
    assert f"{certificate.fixed} fixed, {certificate.broken} broken" in page
    assert f"{100 * certificate.gain:+.1f} points" in page
    assert page.count("accepted as version") == len(trained.result.versions) - 1
    assert parsed.tags.count("article") == len(trained.verdicts)
    with Run.read(trained.folder) as run:
        assert report(run) == page
        record = Record.of(run)
        spend, draws = record.spend, record.draws
    assert draws
    best, start = record.best, record.start
    assert best is not None
    assert start is not None
    test, old = record.measured(best, "test"), record.measured(start, "test")
    assert test is not None
    assert old is not None
    assert (old.mean, test.mean, test.n) == (certificate.before, certificate.after, certificate.n)
    moved = [record.change(sample) for sample in record.splits["test"]]
    assert sum(change is not None and change > 0 for change in moved) == certificate.fixed
    assert sum((row.usage.calls for row in spend), 0) == sum(u.calls for u in run.usage.values())
    embedded = json.loads(parsed.scripts[0])["versions"]
    assert embedded == {str(i): visible(version.text) for i, version in enumerate(trained.result.versions)}


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    ids = {name: [f"{name} {i} {HOSTILE}" for i in range(3)] for name in ("train", "select", "test")}
    texts = [f"# Start\n{HOSTILE}\n", f"# Next\n{HOSTILE}\n{HOSTILE}", f"# Last\n{HOSTILE}\nmore"]
    with a_run(tmp_path, texts, ids, HOSTILE) as run:
        parsed = check(report(run))
    assert json.loads(parsed.scripts[0])["versions"]["0"] == visible(texts[0])
    assert "\x00" not in parsed.scripts[0]


@pytest.mark.slow
def test_a_large_run_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    samples = {name: [f"{name}-{i:04}" for i in range(n)] for name, n in (("train", 1), ("select", 1), ("test", 4998))}
    with a_run(tmp_path, ["# Start\n", "# End\n"], samples, "long <answer> & " * 40) as run:
        page = report(run)
    check(page)
    assert re.search(r"Left out: [\d,]+ samples of test", page)
    assert re.search(r"[\d,]+ of 10,000 rollouts of the versions above: .* has all", page)


@pytest.mark.slow
def test_many_versions_of_a_large_skill_with_endless_answers_stay_small(tmp_path: Path) -> None:
    texts = [f"# Version {i}\n" + f"{i} rule <&> é\n" * 3_000 for i in range(90)]
    with a_run(tmp_path, texts, splits(3), "<é&>" * 2_000) as run:
        page = report(run)
    check(page)
    assert "more characters" in page
    for what in ("comparisons", "verdicts", "versions cannot be chosen", "have no column", "are not drawn"):
        assert re.search(f"Left out: [\\d,]+ [^.]*{what}", page), what


def test_a_run_that_has_just_begun_and_one_that_found_nothing(tmp_path: Path) -> None:
    with Run.open(tmp_path / "new", {"skill": "x.md"}) as run:
        page = report(run)
        check(page)
        assert "Not finished" in page
    with a_run(tmp_path / "begun", ["# Start\n"], splits(2), finish=False) as run:
        page = report(run)
        check(page)
        assert "The skill was not changed" in page
    with a_run(tmp_path / "same", ["# Start\n"], splits(2)) as run:
        page = report(run)
        check(page)
        assert "Nothing better was found; the input is shipped unchanged." in page


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


# -- in a real browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


TEXTS = [
    "# Totals\n\nAnswer.\n",
    "# Totals\n\nAnswer with the total.\n",
    "# Sums\n\nAnswer with a <total>.\n\nBe brief.",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    with a_run(folder / "run", TEXTS, splits(4)) as run:
        path = folder / "report.html"
        path.write_text(report(run))
    return path


def quiet(page: Page) -> None:
    """No error, no warning, nothing asked of any network."""
    assert page.console == []
    assert all(url.startswith(("file:", "data:", "about:")) for url in page.requests)
    assert page.value("document.documentElement.dataset.ready") == "true"


def test_any_two_versions_are_compared(page: Page, file: Path) -> None:
    for old in range(len(TEXTS)):
        for new in range(len(TEXTS)):
            page.open(file, f"#diff={old},{new}")
            if old == new:
                assert page.value("document.getElementById('compared').textContent") == "No difference."
                continue
            kept = "[...document.querySelector('#compared pre').childNodes].filter(n => n.nodeName !== '{}')"
            text = kept + ".map(n => n.textContent).join('')"
            assert page.value(text.format("INS")) == TEXTS[old]
            assert page.value(text.format("DEL")) == TEXTS[new]
    chosen = "document.getElementById('compare').elements[{}].value = '{}'"
    page.value(chosen.format(0, 1))
    page.value(chosen.format(1, 2))
    page.value("document.getElementById('compare').dispatchEvent(new Event('change'))")
    assert page.value("location.hash") == "#diff=1,2"
    quiet(page)


def test_hostile_text_does_nothing_in_a_browser(page: Page, tmp_path: Path) -> None:
    ids = {name: [f"{name} {i} {HOSTILE}" for i in range(3)] for name in ("train", "select", "test")}
    with a_run(tmp_path / "run", [f"a {HOSTILE}", f"b {HOSTILE} {HOSTILE}"], ids, HOSTILE) as run:
        (tmp_path / "x.html").write_text(report(run))
    page.open(tmp_path / "x.html", "#diff=0,1")
    quiet(page)
    assert page.value("document.images.length") == 0
    assert page.value("document.scripts.length") == 2
    assert "<img" in page.value("document.getElementById('compared').textContent")


def test_the_policy_of_the_page_stops_what_it_does_not_know(page: Page, file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    foreign = "<script>document.title = 'run'</script><img src='https://example.invalid/x.png'></footer>"
    changed.write_text(file.read_text().replace("</footer>", foreign))
    page.open(changed)
    assert page.value("document.title") != "run"
    assert any("Content Security Policy" in entry for entry in page.console)
    assert not any("example.invalid" in url for url in page.requests)


def test_a_mark_leads_to_its_transcript_and_arrow_keys_move_between_marks(page: Page, file: Path) -> None:
    page.open(file)
    page.value("document.querySelector('table.grid td a').focus()")
    first = page.value("document.activeElement.hash")
    page.press("ArrowDown", 40)
    assert page.value("document.activeElement.closest('tr').rowIndex") == 2
    page.press("ArrowRight", 39)
    assert page.value("document.activeElement.closest('td').cellIndex") == 2
    page.press("ArrowUp", 38)
    page.press("ArrowLeft", 37)
    assert page.value("document.activeElement.hash") == first
    page.value("document.activeElement.click()")
    page.open(file, first)
    assert page.value(f"document.querySelector('{first}').checkVisibility()")
    quiet(page)


def test_the_first_tab_stop_skips_to_the_report(page: Page, file: Path) -> None:
    page.open(file)
    page.press("Tab", 9)
    assert page.value("document.activeElement.className") == "skip"
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_without_scripts_all_but_the_free_comparison_is_there(page: Page, file: Path) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(file, "#t0")
        assert page.value("document.querySelectorAll('pre.diff ins').length") > 0
        assert page.value("getComputedStyle(document.getElementById('compare')).display") == "none"
        assert page.value("document.querySelector('noscript p').checkVisibility()")
        assert page.value("document.getElementById('t0').checkVisibility()")  # opened by the browser itself
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_part_is_wider_than_the_window(page: Page, file: Path, width: int, scheme: str) -> None:
    page.size(width, 900)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(file)
    assert page.value("document.documentElement.scrollWidth") <= width
    colour = page.value("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 27)"}[scheme]
    quiet(page)


def test_the_effect_of_an_edit_and_the_reason_for_its_fate_are_said_once(tmp_path: Path) -> None:
    """The optimizer is told both in one text; the page has a line for each, from the figures."""
    edits = [Edit("add", text=f"- {name}") for name in ("raced", "screened", "misplaced")]
    effect = "measured effect -2.0 ± 1.0 points"
    reasons = [f"{effect}; raced: given up: not shown to be better", effect, "not found"]
    rows = [{"key": edit.key, "text": edit.text, "effect": -0.02, "sd": 0.01} for edit in edits[:2]]
    with a_run(tmp_path, ["# Desk"], splits(1)) as run:
        (_, _, start), *_ = run.events("start")
        run.record(
            "verdict",
            **{"accepted": False, "reason": "no gain", "score": 0.5, "score_sd": 0.1, "skill": start["skill"]},
            **{"candidate": "abc", "before": 0.5, "after": 0.5, "step": 1, "epoch": 1, "lr": 4, "version": 0},
            **{"differences": {}, "edits": [{**edits[0].to_json(), "status": "applied"}]},
            rejected=[{"edit": e.to_json(), "reason": why} for e, why in zip(edits, reasons, strict=True)],
            numbers={"screen": rows, "chosen": [0]},
        )
        page = report(run)
    assert page.count("Measured effect on train: -2.0 ± 1.0 points.") == 2
    assert "measured effect" not in page
    assert page.count("Verdict: raced: given up: not shown to be better") == 1
    assert page.count("Verdict: not found") == 1
