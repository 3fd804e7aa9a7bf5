"""The table of one skill on several targets."""

from __future__ import annotations

from skilltune.finish.certify import Certificate
from skilltune.finish.transfer import Arm, Transfer, Transfers
from skilltune.report.terminal import columns
from skilltune.text import one_line
from skilltune.usage import describe_usage

HEADERS = (
    "target",
    "without (95 %)",
    "with (95 %)",
    "gain (95 %)",
    "p",
    "n",
    "skill loaded",
    "tokens/task",
    "cost/task",
)
ABOUT = (
    "Scores in percent, gains in points. p (of no gain) is that of the certificate's test. The interval of the gain is "
    "by the same test, with equal errors at both ends. Tokens and cost: without → with the skill."
)


def transfer_table(found: Transfers) -> str:
    """The table as text, with the reasons of the targets without figures below it."""
    rows = [_row(row) for row in found.rows]
    lines = [columns(HEADERS, rows), "", ABOUT]
    lines += [f"{row.target}: {one_line(row.reason)}" for row in found.rows if row.reason]
    lines += [
        f"{row.target}: test samples {row.comparison.unscored}"
        for row in found.rows
        if row.comparison and row.comparison.unscored
    ]
    lines.append(f"all rollouts of the table: {describe_usage(found.usage)}")
    return "\n".join(lines)


def _row(row: Transfer) -> tuple[str, ...]:
    if row.without is None or row.skilled is None:
        return row.target, *["—"] * (len(HEADERS) - 2), "no figures, see below"
    return (
        row.target,
        _score(row.without),
        _score(row.skilled),
        *_gain(row.comparison),
        _loaded(row.skilled),
        f"{row.without.tokens:,.0f} → {row.skilled.tokens:,.0f}",
        f"{_money(row.without)} → {_money(row.skilled)}",
    )


def _score(arm: Arm) -> str:
    return "—" if arm.mean is None else f"{100 * arm.mean:.1f} ({100 * arm.low:.1f}…{100 * arm.high:.1f})"


def _gain(c: Certificate | None) -> tuple[str, str, str]:
    return ("—", "—", "0") if c is None else (f"{100 * c.gain:+.1f} ({c.interval})", f"{c.p:.2g}", str(c.n))


def _loaded(arm: Arm) -> str:
    """The shares of the rollouts in which an agent was offered the skill and loaded it."""
    if arm.offered is None or arm.loaded is None:
        return "—"
    return f"{100 * arm.loaded:.0f} % (offered {100 * arm.offered:.0f} %)"


def _money(arm: Arm) -> str:
    return "unknown" if arm.usd is None else f"${arm.usd:.5f}" if arm.usd else "$0"
