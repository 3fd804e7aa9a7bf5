"""card.md: what was trained, on what evidence, at what price; fit for a pull request."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from skilltune.build import made_in_python
from skilltune.config import to_toml
from skilltune.finish.certify import Certificate
from skilltune.finish.controls import TRAINED
from skilltune.history.activation import describe_activation
from skilltune.history.left_out import describe, left_out
from skilltune.history.record import Record
from skilltune.history.usable import describe_proposals, usable_proposals
from skilltune.journal.run import FAILED, by_work
from skilltune.metering.client import LEARNED
from skilltune.parts import Parts
from skilltune.report.markup import cut
from skilltune.result import Result, headline
from skilltune.text import visible
from skilltune.usage import Usage, counted, describe_usage
from skilltune.version import __version__

LONGEST_DIFF = 20_000  # characters; a pull request's description holds 65,536
MOST_VERSIONS = 30
READ = (
    "The figure to rely on is the certificate's, of test samples that took no part in the training. This table tells "
    "how versions were chosen: `select ≈` was selected because it is high, and an estimated gain is shrunk."
)

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def card(session: Parts, result: Result) -> str:
    """The card as GitHub's Markdown: certificate, versions, what changed, cost, how to do it again."""
    text = [f"# {inline(result.best.name)}", "", headline(result), ""]
    if result.certificate is not None:
        c = result.certificate
        text += [
            f"**{c}**",
            "",
            f"Fixed {c.fixed}, broke {c.broken} of {c.n} test samples; {c.method}; {looks(c)}.",
            "",
            *([f"Test samples {c.unscored}.", ""] if c.unscored else []),
            *(line for row in c.also for line in (f"Also on {inline(str(row))}.", "")),
        ]
    if result.stopped is not None:
        text += [f"Stopped early: {inline(str(result.stopped))}.", ""]
    if missing := describe(left_out(session.run)):
        text += [f"Left out: {inline(missing)}.", ""]
    text += [line for remark in session.env.remarks for line in (f"Tasks: {inline(remark)}.", "")]
    text += [line for fact in getattr(session.target, "facts", ()) for line in (f"Target: {inline(fact)}.", "")]
    if shares := describe_activation(session.run):
        text += [f"The skill was {inline(shares)}.", ""]
    record = Record.of(session.run)
    text += _versions(record, result) + _changes(result)
    if record.controls is not None:
        text += _controls(record.controls)
    text += _cost(session, result) + _again(session, result)
    return "\n".join(text)


ARM_HEADERS = ("arm", "test score (95 %)", "n", "against the trained skill", "cost of making it")
ARM_COST = (
    "Cost of making it: its rollouts of train and select samples and the optimizer's calls; no rollout of test "
    "samples, so neither the certificate nor this table."
)


def arm_row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of one control arm (its JSON), in the order of `ARM_HEADERS`."""
    difference = (
        f"{100 * arm['difference']:+.1f} ({100 * arm['difference_low']:+.1f}…{100 * arm['difference_high']:+.1f})"
    )
    return (
        arm["name"],
        f"{100 * arm['score']:.1f} % ({100 * arm['low']:.1f}…{100 * arm['high']:.1f})",
        str(arm["n"]),
        "" if arm["name"] == TRAINED else difference,
        describe_usage(Usage(**arm["cost"])) if arm["cost"]["calls"] else "nothing",
    )


def _controls(found: Mapping[str, Any]) -> list[str]:
    """The control arms (their JSON), and why others are missing."""
    rows = [tuple(inline(cell) for cell in arm_row(arm)) for arm in found["arms"]]
    missing = [f"Not measured: {inline(name)}: {inline(why)}" for name, why in found["missing"].items()]
    return ["## Control arms", "", *_table(ARM_HEADERS, rows), "", ARM_COST, "", *missing, ""]


def _versions(record: Record, result: Result) -> list[str]:
    versions = record.versions
    rows = [
        (
            f"**{version.number}** (shipped)" if version.hash == result.best.hash else str(version.number),
            "" if version.step is None else str(version.step),
            "—" if version.score is None else f"{100 * version.score:.1f} %",
            str(version.edits or ""),
            "—" if version.tokens is None else str(version.tokens),
            inline(version.reason),
        )
        for version in versions
    ]
    left_out = len(rows) - MOST_VERSIONS
    if left_out > 0:
        rows = [rows[0], *rows[1 + left_out :]]
    note = [f"{left_out} versions in between are left out; `skilltune show` lists them.", ""] if left_out > 0 else []
    head = ("version", "step", "select ≈", "edits", "tokens", "accepted because")
    return ["## Versions", "", *_table(head, rows), "", *note, *([READ, ""] if result.certificate else [])]


def _changes(result: Result) -> list[str]:
    before, after = (visible(skill.text).splitlines() for skill in (result.start, result.best))
    diff = "\n".join(difflib.unified_diff(before, after, "input", "trained", lineterm="", n=3))
    if not diff:
        return []
    shown = cut(diff, LONGEST_DIFF, "`skilltune diff` shows all")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    added = sum(line.startswith("+") for line in diff.splitlines()[2:])
    removed = sum(line.startswith("-") for line in diff.splitlines()[2:])
    summary = f"<summary>What changed in the skill: {added} lines added, {removed} removed</summary>"
    return ["<details>", summary, "", f"{fence}diff", shown, fence, "", "</details>", ""]


def _cost(session: Parts, result: Result) -> list[str]:
    cfg, splits = session.cfg, session.splits
    proposals = describe_proposals(usable_proposals(session.run))
    rows = [
        ("target", inline(cfg.target.model)),
        *(("further target", inline(other.model)) for other in cfg.also),
        ("optimizer", inline(cfg.optimizer.model or cfg.target.model)),
        *([("proposals of the optimizer", proposals)] if proposals else []),
        ("train / select / test samples", f"{len(splits.train)} / {len(splits.select)} / {len(splits.test)}"),
        ("skill size", f"about {result.start.tokens} → {result.best.tokens} tokens"),
        *(
            (f"{name} calls", inline(describe_usage(usage) + unknown_costs(name, session.run.estimated)))
            for name, usage in by_work(session.run.usage)
        ),
    ]
    if result.certificate is not None and result.certificate.gain > 0:
        rows.append(
            ("training and certificate, per point gained", inline(per_point(result.training, result.certificate)))
        )
    learned = [f"{inline(event['model'])}: {inline(event['what'])}" for _, _, event in session.run.events(LEARNED)]
    return ["## Cost", "", *_table(("", ""), rows), "", *(line for text in learned for line in (text, ""))]


def _again(session: Parts, result: Result) -> list[str]:
    """The section on reproduction: the resolved config, and the hashes of input and trained skill."""
    cfg = session.cfg
    toml = visible(to_toml(cfg)).rstrip()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", toml)), default=0))
    how = (
        "save the settings below as `skilltune.toml` beside the skill and the samples, then `skilltune train "
        "skilltune.toml`."
    )
    if unsaid := made_in_python(cfg, session.env):
        how = f"the settings are below. {inline(unsaid)}"
    return [
        "## How to reproduce",
        "",
        f"With skilltune {__version__}, preset {cfg.preset}, seed {cfg.seed}: {how} The input skill has "
        f"the hash `{result.start.hash}`, the trained one `{result.best.hash}`.",
        "",
        "<details>",
        "<summary>Settings</summary>",
        "",
        f"{fence}toml",
        toml,
        fence,
        "",
        "</details>",
        "",
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def inline(text: str) -> str:
    """Text for one line or one table cell of Markdown, in which nothing is markup, a link or a formula."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split())).replace("://", "&#58;//")


def looks(certificate: Certificate) -> str:
    """The number of times that this run and its forks have read the test split, and the effect on the bar."""
    if certificate.look == 1:
        return "read once"
    return (
        f"look {certificate.look} at these samples, those of forks included, so p must be {certificate.look} times "
        "smaller"
    )


def per_point(spent: Usage, certificate: Certificate) -> str:
    """The cost of training and certificate per point of the gain on test, which is positive."""
    points = 100 * certificate.gain
    money = f" and ${spent.usd / points:.4f}" if spent.usd else ""
    return f"{counted(round(spent.calls / points))}{money}"


def unknown_costs(kind: str, estimated: int) -> str:
    """A remark on the failed attempts whose cost is unknown, "" if there are none."""
    if kind != FAILED or not estimated:
        return ""
    return f"; of {estimated:,} the cost is unknown: they got no answer, and are counted at an estimate"
