"""The share of the optimizer's proposals that passed every check, by the form in which it wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skilltune.journal.run import Run

NAMES = {"edits": "edits", "lines": "edits by line number", "rules": "plain rules"}


@dataclass(frozen=True, slots=True)
class Share:
    """`usable` of `made` proposals passed every check."""

    made: int
    usable: int

    def __str__(self) -> str:
        return f"{self.usable} of {self.made} ({100 * self.usable / self.made:.0f} %)"


def usable_proposals(run: Run) -> dict[str, Share]:
    """The share of each form of proposals (see `optimizer.model.Form`), in the order of first use."""
    steps = {(data["step"], data["form"]): data for _, _, data in run.events("proposals")}
    total: dict[str, Share] = {}
    for (_, form), data in steps.items():
        before = total.get(form, Share(0, 0))
        total[form] = Share(before.made + data["made"], before.usable + data["usable"])
    return total


def describe_proposals(shares: Mapping[str, Share]) -> str:
    """One sentence for the report of a run; "" if the optimizer is no model or made no proposal."""
    if not shares:
        return ""
    total = Share(sum(share.made for share in shares.values()), sum(share.usable for share in shares.values()))
    forms = ", ".join(f"{NAMES.get(form, form)} {share}" for form, share in shares.items())
    return f"{total} usable" + (f": {forms}" if set(shares) != {"edits"} else "")
