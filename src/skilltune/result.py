"""The result of a run, and the one sentence that may be claimed of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skilltune.errors import Stopped
from skilltune.export import export
from skilltune.finish.certify import Certificate
from skilltune.finish.proof import Proof
from skilltune.parts import Parts
from skilltune.skill import Skill
from skilltune.state import State
from skilltune.usage import Usage
from skilltune.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run. `best` is the input itself if nothing better was found."""

    start: Skill
    best: Skill
    certificate: Certificate | None
    versions: tuple[Skill, ...]
    test: int  # samples in the test split
    folder: Path  # of the run
    stopped: Stopped | None = None
    spent: Usage = field(default_factory=Usage)  # over all lives of the run
    training: Usage = field(default_factory=Usage)  # of that, for training and certificate
    revived: bool = False  # `best` was rejected by its race, and chosen at the end
    verdicts: tuple[Verdict, ...] = field(default=(), compare=False)  # of the gate, in order

    def __repr__(self) -> str:
        """The claim, the evidence for it, the cost and the file, in a line each."""
        from skilltune.usage import describe_usage

        best = f"best/{self.best.name}" if self.best.folder else "best_skill.md"
        proof = str(self.certificate) if self.certificate else f"no certificate: {self.uncertified}"
        return "\n".join((headline(self), proof, describe_usage(self.spent), str(self.folder / best)))

    def export(self, kind: str, to: str | Path | None = None, **options: Any) -> Path:
        """Put the best skill where an agent finds it; see `skilltune.export.export`."""
        return export(self.best, kind, to, **options)

    @property
    def exit_code(self) -> int:
        """0 better, 1 nothing better, 4 stopped by budget, 5 accepted but not certified (see the contract)."""
        if self.stopped is not None:
            return self.stopped.exit_code
        if self.best.text == self.start.text:
            return 1
        certified = self.certificate.certified if self.certificate else not self.test
        return 0 if certified else 5

    @property
    def uncertified(self) -> str:
        """The reason why there is no certificate, "" if there is one."""
        if self.certificate is not None:
            return ""
        if self.best.text == self.start.text:
            return "the best skill is the input, so the test split was not read"
        if not self.test:
            return "there is no test split"
        return "the run was stopped before it" if self.stopped else "no test sample was scored on both sides"


def conclude(s: Parts, state: State, best: Skill, proof: Proof | None = None) -> Result:
    """The result of a run. If the certificate shows no gain, the input is shipped."""
    certificate = proof.certificate if proof else None
    if certificate is not None and certificate.gain <= 0:
        best = state.start
    return Result(
        start=state.start,
        best=best,
        certificate=certificate,
        versions=tuple(state.versions),
        test=len(s.splits.test),
        folder=s.run.folder,
        stopped=state.stopped,
        spent=s.budget.spent,
        training=proof.cost if proof else s.budget.spent,
        revived=state.revived == best.hash,
        verdicts=tuple(state.verdicts),
    )


def headline(result: Result) -> str:
    """The claim that the evidence allows, in one sentence."""
    changed = result.best.text != result.start.text
    return claim(changed, result.certificate, result.stopped is not None, result.uncertified, revived=result.revived)


def claim(
    changed: bool, certificate: Certificate | None, stopped: bool, uncertified: str, *, revived: bool = False
) -> str:
    """The claim that the evidence allows, in one sentence.

    `changed`: the skill that ships is not the input. `uncertified`: the reason why there is no certificate.
    `revived`: the race rejected the skill that ships, and it was chosen at the end by all evidence.
    """
    taken = "Rejected by its race, then chosen by all evidence" if revived else "Accepted"
    if not changed and certificate is not None:
        return "Not better on the untouched test split; the input is shipped unchanged."
    if not changed and stopped:
        return "Stopped early, before anything better was found; so far the input is shipped unchanged."
    if not changed:
        return "Nothing better was found; the input is shipped unchanged."
    if certificate is None:
        return f"{taken} on the select split, but not certified: {uncertified}."
    if certificate.certified:
        history = " (Its race had rejected it; it was chosen at the end by all evidence.)" if revived else ""
        return f"Certified better on the untouched test split.{history}"
    return f"{taken}, but not certified: {certificate.reason}."
