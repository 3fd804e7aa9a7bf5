"""report.html: the page of a run as one file that a browser can open anywhere, made from the journal alone.

It is the live page (`report/page/`) with its data inlined. No network, no external font, style or script: script and
style are named by hash in the Content-Security-Policy, so that nothing in a skill, a sample or an answer can run. The
file stays under 2 MB whatever the size of the run: transcripts that do not fit are left out, and the page says so.
Without JavaScript a short summary is shown.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from skilltune.history.page import IMAGES, key_of, page_of, transcript_of
from skilltune.history.record import SPLITS, Measured, Record, Version
from skilltune.journal.run import Run
from skilltune.report.markup import Html, asset, cut, data, el, fill, many, source_hash
from skilltune.report.words import diff_html
from skilltune.verdict import percent

MOST = 1_950_000  # bytes of the file
TALKS, TALK, PICTURE = 600_000, 16_000, 100_000  # bytes of all transcripts, of the texts of one, of an image
PLAIN = 60_000  # bytes of the difference of the skills in the summary
ROOM = 2_000  # bytes for the data around the transcripts
MODULES = (  # in the order of their imports
    *("preact", "format", "diff", "charts", "model", "transport", "matrix", "transcript"),
    *("actions", "run", "runs", "main"),
)
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|async|class)", re.MULTILINE)


def report(run: Run) -> str:
    """The page with the run inlined, under 2 MB in UTF-8. The same journal gives the same page."""
    record = Record.of(run)
    inlined: dict[str, Any] = {"mode": "static", "page": page_of(record).to_json()}
    plain = _summary(record)
    room = MOST - ROOM - len(shell(inlined, record.name, plain).encode())
    return shell(inlined | _transcripts(record, min(TALKS, room)), record.name, plain)


def shell(inlined: Mapping[str, Any], title: str = "", plain: Html | None = None) -> str:
    """The page around its data. `plain` is shown if there is no JavaScript. {"mode": "live"} is the page of a
    server."""
    is_live = inlined["mode"] == "live"
    return fill(
        asset("page/page.html"),
        policy=policy(live=is_live),
        title=many([f"{title} · skilltune" if title else "skilltune"]),
        style=asset("page/page.css"),
        plain=plain or el("div", el("p", "This page needs JavaScript. `skilltune show` prints a run.")),
        data=data(inlined),
        library=asset("page/vendor/htm-preact.js"),
        script=script(),
    )


def policy(*, live: bool) -> str:
    """The Content-Security-Policy of the page. A live page may also reach its own server."""
    hashes = " ".join(map(source_hash, (asset("page/vendor/htm-preact.js"), script())))
    sources = [f"style-src {source_hash(asset('page/page.css'))}", f"script-src {hashes}"]
    sources += ["img-src 'self' data:", "connect-src 'self'"] if live else ["img-src data:"]
    return "; ".join(["default-src 'none'", *sources, "base-uri 'none'", "form-action 'none'"])


@cache
def script() -> str:
    """The modules of the front end as one: an inline module cannot import another one."""
    parts = (_EXPORT.sub("", _IMPORT.sub("", asset(f"page/{name}.js"))) for name in MODULES)
    return "".join(parts)


# -- transcripts


def _transcripts(record: Record, room: int) -> dict[str, Any]:
    """The transcripts that fit, the most telling first, and their images."""
    places = {sample: place for place, sample in enumerate(record.order)}
    talks: dict[str, Any] = {}
    images: dict[str, str] = {}
    total = sum(len(draws) for draws in record.draws.values())
    for skill, sample in _ranked(record):
        for draw in record.draws[skill, sample]:
            key = key_of(skill, places[sample], draw.attempt)
            talk = transcript_of(record, key, TALK)
            if talk is None:
                continue
            made = talk.to_json()
            pictures = {
                file["hash"]: _picture(record.run, file)
                for file in made["files"]
                if file["image"] and file["size"] <= PICTURE and file["hash"] not in images
            }
            room -= len(data([made, pictures]).encode())
            if room < 0:
                about = f"it holds {len(talks):,} of {total:,}: what changed first, then what still fails. "
                return _talks(talks, images, f"{about}rollouts.jsonl of the run folder has all.")
            talks[key] = made
            images |= pictures
    return _talks(talks, images, "rollouts.jsonl of the run folder has all.")


def _talks(talks: Mapping[str, Any], images: Mapping[str, str], about: str) -> dict[str, Any]:
    return {"transcripts": talks, "images": images, "about": about}


def _ranked(record: Record) -> Iterator[tuple[str, str]]:
    """The rollouts by (skill hash, sample): of samples that changed from the input to what ships, then of those that it
    does not solve, then the others of these two versions, then those of all other texts."""
    start, best = record.start, record.best
    if start is None or best is None:
        return
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    for sample in record.order:
        score = record.score(best, sample)
        groups[0 if record.change(sample) else 1 if score is not None and score < 1 else 2].append(sample)
    ends = list(dict.fromkeys((best.hash, start.hash)))
    first = [(skill, sample) for group in groups for sample in group for skill in ends]
    yield from (key for key in first if key in record.draws)
    known = {sample for group in groups for sample in group}
    yield from (key for key in record.draws if key[0] not in ends and key[1] in known)


def _picture(run: Run, file: Mapping[str, Any]) -> str:
    stored = run.blob(f"artifact:{file['hash']}") or b""
    kind = file["image"] if file["image"] in IMAGES.values() else "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(stored).decode()}"


# -- without JavaScript


def _summary(record: Record) -> Html:
    """The decision, the scores and the change of the skill, as plain HTML."""
    parts: list[Html | None] = [el("h1", record.claim)]
    if (c := record.certificate) is not None:
        parts += [el("p", str(line)) for line in (c, *c.also)]
    parts.append(el("p", "The whole report needs JavaScript; this is its summary."))
    if record.versions:
        parts += [el("h2", "Score per version"), _scores(record)]
    start, best = record.start, record.best
    if start is not None and best is not None and start.text is not None and best.text is not None:
        change = diff_html(start.text, best.text)
        too_long = el("p", "It is too long for this summary; `skilltune diff` shows it.")
        parts += [el("h2", "From the input to what ships"), change if len(change.encode()) <= PLAIN else too_long]
    return el("div", *parts)


def _scores(record: Record) -> Html:
    head = el("tr", *(el("th", name, scope="col") for name in ("version", *SPLITS, "why it was accepted")))
    shown: Sequence[Version] = record.versions[:1] + record.versions[1:][-20:]
    rows = (
        el(
            "tr",
            el("th", str(version.number), scope="row"),
            *(el("td", _measured(record.measured(version, split))) for split in SPLITS),
            el("td", cut(version.reason, 300, "skilltune show has all")),
        )
        for version in shown
    )
    return el("table", el("thead", head), el("tbody", *rows))


def _measured(seen: Measured | None) -> str:
    return (
        "–" if seen is None else f"{percent(seen.mean)} ({100 * seen.low:.0f} to {100 * seen.high:.0f}, n = {seen.n})"
    )
