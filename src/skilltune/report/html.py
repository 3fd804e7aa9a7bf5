"""report.html: a whole run as one file that a browser can open anywhere, made from the journal alone.

No network, no external font, style or script; the page's own two are named by hash in its Content-Security-Policy, so
that nothing in a skill, a sample or an answer can run. Each part has a bound in bytes, and says what it left out; the
whole stays under 2 MB whatever the size of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise

from skilltune.edits import Edit
from skilltune.finish.certify import Also
from skilltune.history.activation import describe_activation
from skilltune.history.record import Record, Version
from skilltune.history.usable import describe_proposals
from skilltune.journal.run import Run
from skilltune.report.card import looks
from skilltune.report.chart import Point, chart
from skilltune.report.markup import Html, asset, cut, data, el, fill, fit, many, source_hash
from skilltune.report.words import diff_html
from skilltune.rollout import Rollout
from skilltune.text import visible
from skilltune.usage import Usage
from skilltune.verdict import Rejected, Screen, StrictFigures, VerdictRecord

TEXTS, DIFFS, LEDGER, GRID, TALKS, TABLE = 300_000, 300_000, 350_000, 350_000, 500_000, 60_000  # bytes; 1.86 MB
MOST_COLUMNS = 12  # versions in the grid
MOST_POINTS = 60  # versions in the chart
MOST_TURN, MOST_TALK = 4_000, 12_000  # characters
MOST_FILES = 20  # changed files that a transcript names
MOST_EDIT, MOST_LINE = 3_000, 400
MOST_IDS = 12  # samples named per verdict

_ROLLOUTS = "rollouts.jsonl of the run folder has all"
_GROUPS = (
    "changed from the input to what ships",
    "still not solved by what ships",
    "solved all along, or seen on one side only",
    "under the versions between",
)
_SAYS = {
    "test": "read once, for the certificate",
    "select": "decides what is kept",
    "train": "the optimizer's evidence",
}


def report(run: Run) -> str:
    """The page, under 2 MB in UTF-8; the same journal gives the same page."""
    record = Record.of(run)
    talks = _chosen_talks(record)
    sections = [
        ("verdict", "Verdict", _verdict(record)),
        ("scores", "Scores", _scores(record)),
        ("changes", "Changes to the skill", _changes(record)),
        ("edits", "Edits", _ledger(record, talks)),
        ("samples", "Samples", _grids(record, talks)),
        ("transcripts", "Transcripts", _transcripts(record, talks)),
        ("spend", "Spend", _spend(record)),
    ]
    links = el("ul", *(el("li", el("a", title, href=f"#{name}")) for name, title, _ in sections))
    name = _line(record.name)
    style, script = asset("report.css"), asset("report.js")
    return fill(
        asset("report.html"),
        title=many([name, " · skilltune report"]),
        style=style,
        style_hash=source_hash(style),
        script=script,
        script_hash=source_hash(script),
        header=el("header", el("p", "skilltune report", class_="kind"), el("h1", name), el("nav", links)),
        main=many(
            el("section", el("h2", title, id=f"{part}-title"), body, id=part, aria_labelledby=f"{part}-title")
            for part, title, body in sections
        ),
        footer=many([f"Made by skilltune {record.program} from run.db alone.".replace("  ", " ")]),
        data=data({"versions": _texts(record)}),
    )


# -- verdict and scores


def _verdict(record: Record) -> Html:
    c, start, best = record.certificate, record.start, record.best
    code = record.finish.exit_code if record.finish else -1
    sign, kind = {0: ("✓", "yes"), 1: ("✗", "no"), 5: ("?", "open")}.get(code, ("…", "open"))
    facts: list[tuple[str, str, str]] = []
    if c is not None:
        facts += [
            (
                "test score",
                f"{_percent(c.before)} → {_percent(c.after)}",
                f"on {c.samples}, {looks(c)}",
            ),
            ("gain", f"{100 * c.gain:+.1f} points", f"{c.confidence} interval {c.interval}"),
            ("chance", f"p = {c.p:.2g}", f"of such a gain without an effect; {c.method}"),
            (
                "fixed and broken",
                f"{c.fixed} fixed, {c.broken} broken",
                f"of {c.n} test samples" + (f"; {c.unscored}" if c.unscored else ""),
            ),
            *(_also(row) for row in c.also),
            (
                "cost of a task",
                f"{c.tokens:+.0f} tokens",
                "price unknown" if c.usd is None else f"{c.usd:+.5f} $" if c.usd else "$0",
            ),
        ]
    if start is not None and best is not None:
        grown = f"{start.tokens} → {best.tokens} tokens" if start.tokens is not None else "unknown"
        accepted = sum(not version.revived for version in record.versions) - 1
        facts.append(("size of the skill", grown, f"versions accepted: {accepted}"))
    sizes = " / ".join(str(len(record.splits[name])) for name in ("train", "select", "test"))
    facts.append(("samples", sizes, "train / select / test"))
    config = record.config
    target, optimizer = (config.get(role, {}).get("model") for role in ("target", "optimizer"))
    shares = describe_activation(record.run)
    facts += [
        ("target", _line(target or "unknown"), f"the skill was {shares}" if shares else ""),
        (
            "optimizer",
            _line(optimizer or target or "unknown"),
            f"preset {config.get('preset')}, seed {config.get('seed')}",
        ),
    ]
    if proposals := describe_proposals(record.proposals):
        facts.append(("proposals", proposals, "the share that passed every check"))
    stopped = record.finish.stopped if record.finish else ""
    return el(
        "div",
        el("p", el("span", sign, aria_hidden="true"), f" {record.claim}", class_="claim"),
        el("p", f"Stopped early: {_line(stopped)}") if stopped else None,
        el("dl", *(_fact(*fact) for fact in facts), class_="facts"),
        class_=f"verdict {kind}",
    )


def _also(row: Also) -> tuple[str, str, str]:
    interval = f"{100 * row.level:.3g} % interval {100 * row.low:+.1f}…{100 * row.high:+.1f}"
    verdict = "no loss above" if row.harmless else "does not exclude a loss above"
    value = f"{_percent(row.before)} → {_percent(row.after)}"
    return f"on {row.target}", value, f"{interval}; {verdict} {100 * row.margin:.3g} points"


def _fact(name: str, value: str, more: str) -> Html:
    return el("div", el("dt", name), el("dd", value, el("small", more) if more else None))


def _scores(record: Record) -> Html:
    versions = record.versions
    if not versions:
        return el("p", "Nothing was measured yet.")
    drawn = versions if len(versions) <= MOST_POINTS else (versions[0], *versions[-(MOST_POINTS - 1) :])
    points: list[Point] = []
    for place, version in enumerate(drawn):
        if version.score is not None and (bounds := version.interval) is not None:
            points.append(Point(place, version.score, *bounds, "select"))
        if (seen := record.measured(version, "test")) is not None:
            points.append(Point(place, seen.mean, seen.low, seen.high, "test"))
    head = ("version", "step", "edits", "tokens", "select, as the gate estimates it", "test", "why it was accepted")
    rows = fit((_version_row(record, version) for version in versions), TABLE)
    return many(
        [
            el(
                "p",
                "● select: what the gate estimates; it chose the version for this number, so it flatters. "
                "□\u00a0test: untouched until the end, and the only fair number. Bars are 95 % intervals.",
            ),
            el(
                "div",
                chart(
                    points, [f"version {v.number}" for v in drawn], "Score of each version; the table has the numbers"
                ),
                class_="scroll",
                tabindex=0,
                role="group",
                aria_label="Chart of the scores",
            ),
            _left_out(len(versions) - len(drawn), "versions in the middle are not drawn"),
            _table(head, rows, "Every accepted version"),
            _left_out(len(versions) - len(rows), "versions; `skilltune show` lists them"),
        ]
    )


def _version_row(record: Record, version: Version) -> Html:
    test = record.measured(version, "test")
    bounds = version.interval
    ships = record.best is not None and version.hash == record.best.hash
    shipped = " (ships)" if ships and record.finish else ""
    estimate = _percent(version.score)
    if bounds is not None:
        estimate += f" ({100 * bounds[0]:.0f} to {100 * bounds[1]:.0f})"
    return el(
        "tr",
        el("th", f"{version.number}{shipped}", scope="row"),
        el("td", "" if version.step is None else str(version.step), class_="number"),
        el("td", str(version.edits or ""), class_="number"),
        el("td", "" if version.tokens is None else f"{version.tokens:,}", class_="number"),
        el("td", estimate),
        el(
            "td",
            f"{_percent(test.mean)} ({100 * test.low:.0f} to {100 * test.high:.0f}), n\u00a0=\u00a0{test.n}"
            if test
            else "—",
        ),
        el("td", _line(version.reason), class_="wide"),
    )


# -- changes


def _texts(record: Record) -> dict[str, str]:
    """The texts for the comparison of any two versions, by number: input, what ships, then the newest ones that fit."""
    first = [version for version in (record.start, record.best) if version is not None]
    texts: dict[str, str] = {}
    room = TEXTS
    for version in (*first, *reversed(record.versions)):
        if version.text is None or str(version.number) in texts:
            continue
        text = visible(version.text)
        room -= len(data({str(version.number): text}).encode())
        if room < 0:
            break
        texts[str(version.number)] = text
    return texts


def _changes(record: Record) -> Html:
    versions, best = record.versions, record.best
    if best is None or len(versions) < 2:
        return el("p", "The skill was not changed: no version but the input was accepted.")
    texts = _texts(record)
    ships = best if best.number else versions[-1]
    pairs = [(versions[0], ships), *pairwise(versions)]
    if len(versions) == 2:
        del pairs[1:]
    blocks = fit((_pair(*pair, whole=not i) for i, pair in enumerate(pairs)), DIFFS)
    options = [version for version in versions if str(version.number) in texts]

    def select(label: str, chosen: Version) -> Html:
        made = (
            el("option", f"version {v.number}", value=v.number, selected=v.number == chosen.number) for v in options
        )
        return el("label", label, el("select", *made))

    compare = el(
        "form", select("compare", versions[0]), select("with", ships), id="compare", hidden=True, aria_label="Versions"
    )
    return many(
        [
            el("p", el("ins", "Underlined"), " words were added, ", el("del", "struck out"), " ones removed."),
            *blocks,
            _left_out(len(pairs) - len(blocks), "comparisons; `skilltune diff` shows them"),
            el("h3", "Any two versions"),
            el("noscript", el("p", "This comparison needs JavaScript; all else on this page does not.")),
            compare,
            _left_out(len(versions) - len(options), "versions cannot be chosen here; `skilltune diff` compares them"),
            el("div", id="compared", aria_live="polite"),
        ]
    )


def _pair(before: Version, after: Version, *, whole: bool) -> Html:
    title = f"Version {before.number} → version {after.number}"
    if before.text is None or after.text is None:
        body = el("p", "The journal no longer holds both texts.")
    else:
        body = diff_html(before.text, after.text)
        if len(body.encode()) > DIFFS // 2:
            body = el("p", "This difference is too long for this file; `skilltune diff` shows it.")
    if whole:
        return many([el("h3", f"From the input to version {after.number}"), body])
    return el("details", el("summary", f"{title}: {_line(after.reason)}"), body, class_="paper")


# -- edits


def _ledger(record: Record, talks: Mapping[tuple[str, str], int]) -> Html:
    entries = fit((_entry(record, verdict, talks) for verdict in record.verdicts), LEDGER)
    if not record.verdicts:
        return el("p", "No edit was judged yet.")
    return many(
        [
            el(
                "p",
                "Every edit that was judged, in order. The screen measures each one on train samples; those that look "
                "good are raced together on select samples, so what they fixed and broke there they did together.",
            ),
            *entries,
            _left_out(len(record.verdicts) - len(entries), "verdicts; `skilltune show` and run.db have them"),
        ]
    )


def _entry(record: Record, verdict: VerdictRecord, talks: Mapping[tuple[str, str], int]) -> Html:
    said = f"accepted as version {verdict.version}" if verdict.accepted else "rejected"
    parts = [
        el("h3", f"Step {verdict.step}: ", _badge(verdict.accepted, said)),
        el("p", _line(verdict.reason)),
    ]
    if verdict.before is not None and verdict.differences:
        n = len(verdict.differences)
        if not isinstance(verdict.figures, StrictFigures):  # its reason has these figures already
            means = f"{_percent(verdict.before)} → {_percent(verdict.after)}"
            parts.append(el("p", f"{means} on the same {n} select samples."))
        version = next((v for v in record.versions if v.hash == verdict.skill), None)
        for name, sign in (("Fixed", 1), ("Broke", -1)):
            moved = [sample for sample, change in verdict.differences.items() if change * sign > 0]
            parts.append(_named(name, moved, version, talks))
    if edits := _edits(verdict):
        parts.append(el("ul", *edits, class_="edits"))
    return el("article", *parts)


def _named(name: str, samples: Sequence[str], version: Version | None, talks: Mapping[tuple[str, str], int]) -> Html:
    """ "Fixed 3: a, b, c", each linked to its transcript where that is in the file."""
    if not samples:
        return el("p", f"{name} none.")
    parts: list[str] = [f"{name} {len(samples)}: "]
    for i, sample in enumerate(samples[:MOST_IDS]):
        number = talks.get((version.hash, sample)) if version else None
        shown = _line(sample)
        parts += [", " if i else "", shown if number is None else el("a", shown, href=f"#t{number}")]
    more = len(samples) - MOST_IDS
    return el("p", *parts, f" and {more} more." if more > 0 else ".")


def _edits(verdict: VerdictRecord) -> list[Html]:
    """The edits of the candidate with their fate, then the edits that were judged and did not get into it."""
    inside = {_identity(report.edit) for report in verdict.reports}
    why_not = {_identity(entry.edit): _cause(verdict, entry) for entry in verdict.rejected}
    made = []
    for report in verdict.reports:
        kept = verdict.accepted
        fate = ("not applied", False) if not report.applied else ("kept", True) if kept else ("tried, not kept", False)
        reason = report.reason if not report.applied else "" if kept else why_not.get(_identity(report.edit), "")
        made.append(_edit(report.edit, *fate, reason, verdict.screen))
    rest = [entry for entry in verdict.rejected if _identity(entry.edit) not in inside]
    return made + [
        _edit(entry.edit, "measured, not tried", False, _cause(verdict, entry), verdict.screen) for entry in rest
    ]


def _cause(verdict: VerdictRecord, entry: Rejected) -> str:
    """The reason why an edit was not kept, without its measured effect, which has a line of its own."""
    screen, key = verdict.screen, entry.edit.key
    return entry.reason if screen is None or screen.row(key) is None else screen.raced(key)


def _identity(edit: Edit) -> tuple[str | None, ...]:
    return edit.op, edit.after, edit.target, edit.text


def _edit(edit: Edit, fate: str, kept: bool, reason: str, screen: Screen | None) -> Html:
    old, new = edit.target, edit.text
    effect = None
    if screen is not None and (row := screen.row(edit.key)) is not None:
        effect = f"Measured effect on train: {100 * row.effect:+.1f} ± {100 * row.sd:.1f} points."
    quotes = [many([el("q", _line(cited.quote)), f" ({_line(cited.sample)}) "]) for cited in edit.evidence[:MOST_IDS]]
    clip = partial(cut, most=MOST_EDIT, where="run.db has all")
    return el(
        "li",
        el("p", _badge(kept, fate), f" {edit.op}", " after: " + _line(edit.after) if edit.after else None),
        el(
            "pre",
            el("del", clip(old)) if old else None,
            "\n" if old and new else None,
            el("ins", clip(new)) if new else None,
        )
        if old or new
        else None,
        el("p", f"Why: {_line(edit.why)}") if edit.why else None,
        el("p", "Evidence: ", *quotes) if quotes else None,
        el("p", effect) if effect else None,
        el("p", f"Verdict: {_line(reason)}") if reason else None,
    )


# -- samples and transcripts


def _chosen_talks(record: Record) -> dict[tuple[str, str], int]:
    """The rollouts whose transcripts are worth the room, in the order of `_GROUPS`, by (skill hash, sample) with their
    number."""
    start, best = record.start, record.best
    if start is None or best is None:
        return {}
    ranked = [
        (_group(record, version, sample), version.hash, sample)
        for split in record.splits.values()
        for sample in split
        for version in dict.fromkeys((best, start, *record.versions))
    ]
    ranked.sort(key=lambda entry: entry[0])
    wanted = [(skill, sample) for _, skill, sample in ranked if (skill, sample) in record.draws]
    room = TALKS
    talks: dict[tuple[str, str], int] = {}
    for number, key in enumerate(wanted):
        room -= len(_talk(record, *key, number).encode())
        if room < 0:
            break
        talks[key] = number
    return talks


def _group(record: Record, version: Version, sample: str) -> int:
    """The index in `_GROUPS` of a sample's rollouts under a version."""
    assert record.start is not None
    assert record.best is not None
    if version.hash not in (record.start.hash, record.best.hash):
        return 3
    score = record.score(record.best, sample)
    return 0 if record.change(sample) else 1 if score is not None and score < 1 else 2


def _grids(record: Record, talks: Mapping[tuple[str, str], int]) -> Html:
    versions = record.versions
    if not versions:
        return el("p", "Nothing was measured yet.")
    shown = versions if len(versions) <= MOST_COLUMNS else (versions[0], *versions[-(MOST_COLUMNS - 1) :])
    parts = [
        el(
            "p",
            "✓ solved, ✗ not solved, a number for partial credit, · not seen under that version. An underlined mark "
            "leads to its transcript; arrow keys move between marks. Samples that changed come first.",
        ),
        _left_out(len(versions) - len(shown), "versions in the middle have no column"),
    ]
    filled = [name for name, samples in record.splits.items() if samples]
    for name in filled:
        samples = sorted(record.splits[name], key=lambda sample: not record.change(sample))
        rows = fit((_grid_row(record, shown, sample, talks) for sample in samples), GRID // len(filled))
        head = ("sample", *(f"v{version.number}" for version in shown), "input → shipped")
        caption = f"{len(samples)} samples of {name} ({_SAYS[name]})"
        parts += [
            el("h3", name.capitalize()),
            _table(head, rows, caption, class_="grid"),
            _left_out(len(samples) - len(rows), f"samples of {name} without a row; {_ROLLOUTS}"),
        ]
    return many(parts)


def _grid_row(record: Record, versions: Sequence[Version], sample: str, talks: Mapping[tuple[str, str], int]) -> Html:
    cells = [_cell(record.score(version, sample), talks.get((version.hash, sample))) for version in versions]
    change = record.change(sample)
    if change:
        moved = el("td", f"{'▲ fixed' if change > 0 else '▼ broken'}", class_="up" if change > 0 else "down")
        if abs(change) < 1:
            moved = el("td", f"{'▲' if change > 0 else '▼'} {100 * change:+.0f}", class_="up" if change > 0 else "down")
    else:
        moved = el("td", "" if change is None else "same")
    return el("tr", el("th", _line(sample, 100), scope="row"), *cells, moved)


def _cell(score: float | None, talk: int | None) -> Html:
    if score is None:
        return el("td", "·")
    sign = "✓" if score >= 1 else "✗" if score <= 0 else f"{score:.2f}"
    mark = el("span", sign) if talk is None else el("a", sign, href=f"#t{talk}")
    return el("td", mark, class_="y" if score >= 1 else "n" if score <= 0 else None)


def _transcripts(record: Record, talks: Mapping[tuple[str, str], int]) -> Html:
    total = sum(len(draws) for draws in record.draws.values())
    shown = sum(len(record.draws[key]) for key in talks)
    note = f"{shown:,} of {total:,} rollouts of the versions above"
    if shown < total:
        note += f": what changed first, then what still fails; {_ROLLOUTS}"
    if record.others:
        note += f". {record.others:,} rollouts of texts that were only tried are not shown"
    groups: dict[int, list[Html]] = {}
    by_hash = {version.hash: version for version in record.versions}
    for (skill, sample), number in talks.items():
        group = _group(record, by_hash[skill], sample)
        groups.setdefault(group, []).append(_talk(record, skill, sample, number))
    folded = (
        el("details", el("summary", f"{len(made):,} {_GROUPS[group]}"), *made) for group, made in sorted(groups.items())
    )
    return many([el("p", f"{note}."), *folded])


def _talk(record: Record, skill: str, sample: str, number: int) -> Html:
    """Every attempt at one sample under one version, folded."""
    version = next(version for version in record.versions if version.hash == skill)
    score = record.score(version, sample)
    said = "not scored" if score is None else f"score {score:.2f}"
    summary = el("summary", f"{_line(sample, 100)} · version {version.number} · {said}")
    return el(
        "details",
        summary,
        el("div", *_draws(record.rollouts(skill, sample)), id=f"t{number}", class_="talk", tabindex="-1"),
    )


def _draws(draws: Sequence[Rollout]) -> Iterator[Html]:
    room = MOST_TALK
    for rollout in draws:
        trajectory, score = rollout.trajectory, rollout.score
        if len(draws) > 1:
            yield el("h4", f"draw {rollout.attempt + 1}")
        turns = [(turn.role, turn.text) for turn in trajectory.turns]
        if not turns or turns[-1][1] != trajectory.answer:
            turns.append(("answer", trajectory.answer))
        for i, (role, text) in enumerate(turns):
            if room <= 0:
                yield el("p", f"[… {len(turns) - i} more turns; {_ROLLOUTS}]")
                break
            shown = cut(text, min(MOST_TURN, room), _ROLLOUTS)
            room -= len(shown)
            yield el("h4", role)
            yield el("pre", shown, dir="auto")
        if files := rollout.artifacts:
            named = [
                f"{_line(path, 100)} ({file.size:,} bytes, {file.hash[:12]})"
                for path, file in islice(files.items(), MOST_FILES)
            ]
            more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
            yield el("h4", "changed files")
            yield el("p", f"{', '.join(named)}{more}")
        if (stream := trajectory.stream) is not None:
            yield el("h4", "output of the agent's command line")
            yield el("p", f"{stream.size:,} bytes; skilltune show RUN --file {stream.hash[:12]} prints it")
        facts = [f"{trajectory.usage.tokens:,} tokens", f"{trajectory.seconds:.1f} s"]
        if rollout.outcome != "ok":
            facts.append(f"{rollout.outcome}: {_line(trajectory.error)}")
        if score is not None:
            facts.insert(0, f"score {score.value:g}" + (f": {_line(score.why)}" if score.why else ""))
        yield el("p", " · ".join(facts), class_="soft")


# -- spend


def _spend(record: Record) -> Html:
    total = sum((row.usage for row in record.spend), Usage())
    rows = [_spend_row("td", row.role, row.phase, row.usage) for row in record.spend if row.usage.calls]
    rows.append(_spend_row("th", "all", "", total))
    head = ("role", "phase", "calls", "input tokens", "of them cached", "output tokens", "dollars")
    return _table(head, rows, "What was paid, over all lives of the run; replayed answers cost nothing")


def _spend_row(cell: str, role: str, phase: str, usage: Usage) -> Html:
    money = "unknown" if usage.usd is None else f"{usage.usd:.4f}" if usage.usd else "0"
    numbers = (usage.calls, usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    return el(
        "tr",
        el("th", role, scope="row"),
        el(cell, phase),
        *(el(cell, f"{number:,}", class_="number") for number in numbers),
        el(cell, money, class_="number"),
    )


# -- parts


def _table(head: Sequence[str], rows: Sequence[Html], caption: str, class_: str | None = None) -> Html:
    table = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", *(el("th", name, scope="col") for name in head))),
        el("tbody", *rows),
        class_=class_,
    )
    return el("div", table, class_="scroll", tabindex=0, role="group", aria_label=caption)


def _badge(good: bool, text: str) -> Html:
    return el("span", f"{'✓' if good else '✗'} {text}", class_=f"badge {'yes' if good else 'no'}")


def _left_out(n: int, what: str) -> Html:
    return el("p", f"Left out: {n:,} {what}.", class_="soft") if n > 0 else Html("")


def _percent(score: float | None) -> str:
    return "—" if score is None else f"{100 * score:.1f}\u00a0%"


def _line(text: str, most: int = MOST_LINE) -> str:
    """One line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
