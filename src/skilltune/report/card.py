"""card.md: what was trained, on what evidence, at what price; fit for a pull request."""

from __future__ import annotations

from skilltune.gate.certify import Certificate
from skilltune.models import Usage
from skilltune.session import Session
from skilltune.train import Result


def headline(result: Result) -> str:
    """One sentence that says what may be claimed, and no more."""
    changed = result.best.text != result.start.text
    certificate = result.certificate
    if not changed and certificate is not None:
        return "Not better on the untouched test split; the input is shipped unchanged."
    if not changed and result.stopped is not None:
        return "Stopped early, before anything better was found; so far the input is shipped unchanged."
    if not changed:
        return "Nothing better was found; the input is shipped unchanged."
    if certificate is None:
        return f"Accepted on the select split, but not certified: {result.uncertified}."
    if certificate.certified:
        return "Certified better on the untouched test split."
    return "Accepted, but not certified: the test split does not exclude that it is no better."


def card(session: Session, result: Result) -> str:
    """The card as Markdown."""
    cfg, splits = session.cfg, session.splits
    sizes = f"{len(splits.train)} / {len(splits.select)} / {len(splits.test)}"
    rows = [
        ("target", cfg.target.model),
        ("optimizer", cfg.optimizer.model or cfg.target.model),
        ("preset, seed", f"{cfg.preset}, {cfg.seed}"),
        ("train / select / test samples", sizes),
        ("versions accepted", str(len(result.versions) - 1)),
        ("skill size", f"about {result.start.tokens} → {result.best.tokens} tokens"),
        *((f"{name} calls", describe_usage(usage)) for name, usage in sorted(session.run.usage.items())),
    ]
    text = [f"# {result.best.name}", "", headline(result), ""]
    if result.certificate is not None:
        c = result.certificate
        text += [
            f"**{c}**",
            "",
            f"Fixed {c.fixed}, broke {c.broken} of {c.n} test samples; {c.method}; {looks(c)}.",
            "",
        ]
    text += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), ""]
    if result.stopped is not None:
        text += [f"Stopped early: {result.stopped}.", ""]
    return "\n".join(text)


def looks(certificate: Certificate) -> str:
    """How often this run has read the test split, and what that does to the bar."""
    if certificate.look == 1:
        return "read once"
    return f"look {certificate.look} at these samples, so p must be {certificate.look} times smaller"


def describe_usage(usage: Usage) -> str:
    """Calls, tokens and dollars in one line; an unknown price is said to be unknown."""
    money = "price unknown" if usage.usd is None else f"${usage.usd:.4f}" if usage.usd else "$0"
    return f"{usage.calls:,} calls, {usage.input_tokens:,} + {usage.output_tokens:,} tokens, {money}"
