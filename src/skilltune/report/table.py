"""A table of finished runs: targets down, benchmarks across, each cell without and with the trained skill.

It is made from run folders alone and has the shape of Table 1 of SkillOpt (arXiv 2605.23904). Runs that differ only in
their seed share a cell, which then shows the mean over the runs and its standard deviation.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from skilltune.errors import UsageError
from skilltune.export import only_evaluated
from skilltune.finish.certify import Certificate
from skilltune.finish.transfer import TRANSFERS
from skilltune.history.record import Record
from skilltune.journal.keys import digest
from skilltune.report.markup import Html, asset, el, fill, many
from skilltune.report.terminal import amount, columns
from skilltune.rollouts.inputs import CONTENTS
from skilltune.usage import Usage

Form = Literal["text", "markdown", "csv", "html"]
HEADERS = (
    "benchmark",
    "target",
    "seed",
    "without",
    "with",
    "gain",
    "95 % interval",
    "n",
    "tokens/task",
    "calls",
    "cost",
)

GENERAL = ("data", "samples", "evals", "items", "tasks", "train")  # names of files that say nothing about the content


@dataclass(frozen=True, slots=True)
class Line:
    """One run. `data` identifies the samples by their content: two runs with another `data` are not comparable.

    `note` says why there are no figures, "" if there are some. Scores are means in [0, 1]. `low` and `high` bound the
    gain. `certified` is None for a comparison by `eval --targets`, which claims nothing. `tokens` is the change per
    task.
    """

    run: str
    benchmark: str
    data: str
    target: str
    optimizer: str
    seed: int
    calls: int
    usd: float | None
    note: str = ""
    before: float | None = None
    after: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    certified: bool | None = False
    tokens: float | None = None

    @property
    def gain(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


def lines_of_run(record: Record) -> list[Line]:
    """The line of a training, then one for each further target that `eval --targets` measured in the same folder.

    A run without a certificate has no figures, and its note says why. Raises `UsageError` for the folder of an
    evaluation in Python on one target, which has neither config nor table.
    """
    compared = _compared(record)
    if compared and (not record.config or not record.versions):
        return compared
    own = line_of(record)
    return [own, *(line for line in compared if line.target != own.target)]


def line_of(record: Record) -> Line:
    """The line of a training."""
    if not record.config:
        raise UsageError(
            f"{record.folder} holds no training: it has answers, but no config and no certificate; leave it out"
        )
    config, spent = record.config, sum(record.usage.values(), Usage())
    target = config["target"]["model"]
    facts: dict[str, Any] = {
        "run": str(record.folder),
        "benchmark": _benchmark(record),
        "data": _data(record),
        "target": target,
        "optimizer": config["optimizer"]["model"] or target,
        "seed": config["seed"],
        "calls": spent.calls,
        "usd": spent.usd,
    }
    proof = record.certificate
    if proof is None:
        return Line(**facts, note=_note(record))
    return Line(**facts, **_figures(proof))


def lines_of(records: Sequence[Record]) -> list[Line]:
    """The lines in order of benchmark, target and seed. Raises `UsageError` if one run is named twice."""
    for number, record in enumerate(records):
        if any(other.folder.resolve() == record.folder.resolve() for other in records[:number]):
            raise UsageError(f"{record.folder} is named twice; a run counts once")
    lines = [line for record in records for line in lines_of_run(record)]
    return sorted(lines, key=lambda line: (line.benchmark, line.data, line.target, line.seed, line.run))


def write_table(lines: Sequence[Line], form: Form) -> str:
    """The matrix and the list of runs in one of the forms. CSV holds the list alone, with unrounded figures."""
    if form == "csv":
        return _csv(lines)
    header, matrix = _matrix(lines)
    rows = [_row(line) for line in lines]
    notes = _notes(lines)
    if form == "text":
        return "\n\n".join([columns(header, matrix), columns(HEADERS, rows), *notes]) + "\n"
    if form == "markdown":
        return "\n\n".join([_markdown(header, matrix), _markdown(HEADERS, rows), *notes]) + "\n"
    style = asset("page/page.css")
    body = many([_html(header, matrix), _html(HEADERS, rows), *(el("p", note) for note in notes)])
    return fill(_PAGE, style=Html(style), body=body)


# -- the contents


def _compared(record: Record) -> list[Line]:
    """A line for each target of the last evaluation on several targets, and of earlier ones with the same skill."""
    events = [event for _, _, event in record.run.events(TRANSFERS)]
    rows: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for event in events:
        if all(event[name] == events[-1][name] for name in ("skill", "split", "attempts", "seed")):
            rows |= {row["target"]: (event, row) for row in event["targets"]}
    return [_line_of_target(record, event, row) for event, row in rows.values()]


def _line_of_target(record: Record, event: Mapping[str, Any], row: Mapping[str, Any]) -> Line:
    without, skilled = row["without"], row["with"]
    spent = sum((Usage(**arm["usage"]) for arm in (without, skilled) if arm), Usage())
    split = "" if event["split"] == "test" else f", {event['split']}"
    facts: dict[str, Any] = {
        "run": str(record.folder),
        "benchmark": _benchmark(record) + split,
        "data": _data(record),
        "target": row["target"],
        "optimizer": "",
        "seed": event["seed"],
        "calls": spent.calls,
        "usd": spent.usd,
        "certified": None,
    }
    if row["gain"] is None:
        return Line(**facts, note=f"{row['target']} has no figures: {row['reason']}")
    figures = {name: row[name] for name in ("before", "after", "low", "high", "n")}
    return Line(**facts, **figures, tokens=skilled["tokens"] - without["tokens"])


def _data(record: Record) -> str:
    contents = record.run.recall(CONTENTS)
    return digest("samples", sorted(contents[0].items()))[:8] if contents else "unknown"


def _benchmark(record: Record) -> str:
    """The name of the samples: their file's; its folder's or the skill's if the file has a general name."""
    samples = str(record.config.get("env", {}).get("samples") or "")
    path = Path(samples)
    if ":" in samples or (path.stem and path.stem.lower() not in GENERAL):
        return samples if ":" in samples else path.stem
    return path.parent.name or record.name


def _figures(proof: Certificate) -> dict[str, Any]:
    names = ("before", "after", "low", "high", "n", "certified", "tokens")
    return {name: getattr(proof, name) for name in names}


def _note(record: Record) -> str:
    if record.state == "running":
        return "still running"
    if record.finish is None or record.finish.stopped:
        if only_evaluated(record.run):
            return "answers of `skilltune eval`, no training"
        return f"stopped before the certificate: {record.stopped or 'its process was ended from outside'}"
    if record.finish.best == record.finish.start:
        return "no edit was accepted, so the test split was not read"
    return "no certificate: there is no test split"


def _matrix(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Two rows per target (without and with the skill), one column per benchmark."""
    benchmarks = list(dict.fromkeys((line.benchmark, line.data) for line in lines))
    named = [name for name, _ in benchmarks]
    header = ["target", "skill", *(name if named.count(name) == 1 else f"{name} ({data})" for name, data in benchmarks)]
    rows: list[list[str]] = []
    for target in dict.fromkeys(line.target for line in lines):
        cells = [
            [line for line in lines if (line.target, line.benchmark, line.data) == (target, *b)] for b in benchmarks
        ]
        rows.append([target, "without", *(_mean([line.before for line in cell]) for cell in cells)])
        rows.append([target, "with", *(_mean([line.after for line in cell]) for cell in cells)])
    return header, rows


def _mean(values: Sequence[float | None]) -> str:
    """The mean in percent; over several runs with their standard deviation and number."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "—"
    spread = f" ± {stdev(known):.1f} ({len(known)} runs)" if len(known) > 1 else ""
    return f"{fmean(known):.1f}{spread}"


def _row(line: Line) -> list[str]:
    names = [line.benchmark, line.target, str(line.seed)]
    cost = "unknown" if line.usd is None else f"${line.usd:.2f}"
    spent = [amount(line.calls), cost]
    if line.before is None or line.after is None or line.low is None or line.high is None or line.tokens is None:
        return [*names, "—", "—", "—", "—", "—", "—", *spent]
    gain = f"{100 * (line.after - line.before):+.1f}{' (not certified)' if line.certified is False else ''}"
    interval = f"{100 * line.low:+.1f}…{100 * line.high:+.1f}"
    figures = [f"{100 * line.before:.1f}", f"{100 * line.after:.1f}", gain, interval, str(line.n)]
    return [*names, *figures, f"{line.tokens:+.0f}", *spent]


def _notes(lines: Sequence[Line]) -> list[str]:
    """The sentences under the table: units, runs without figures, and samples that differ."""
    notes = ["Scores are percent of unseen test samples. The interval is the certificate's, of the gain in points."]
    compared = dict.fromkeys(line.run for line in lines if line.certified is None)
    notes += [
        f"{run}: targets compared by `eval --targets`. Their intervals have equal errors at both ends, and no gain is "
        "certified."
        for run in compared
    ]
    notes += [f"{line.run}: {line.note.removesuffix('.')}." for line in lines if line.note]
    for name in dict.fromkeys(line.benchmark for line in lines):
        if len(hashes := {line.data for line in lines if line.benchmark == name}) > 1:
            notes.append(
                f"{name}: the runs have {len(hashes)} different sets of samples ({', '.join(sorted(hashes))}), so they "
                "stand in columns of their own."
            )
    return notes


# -- the forms


def _csv(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(asdict(lines[0])) if lines else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return out.getvalue()


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"

    return "\n".join([row(header), row(["---"] * len(header)), *map(row, rows)])


def _html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    head = el("tr", *(el("th", cell, scope="col") for cell in header))
    return el("table", el("thead", head), el("tbody", *(el("tr", *(el("td", cell) for cell in row)) for row in rows)))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>skilltune: table of runs</title><style>{{style}}</style></head><body><main>{{body}}</main></body></html>
"""
