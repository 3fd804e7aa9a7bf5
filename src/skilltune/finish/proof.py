"""The proof of a run: the certificate of its best skill, and the cost up to it. No other code of a training reads
`test`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skilltune.finish.certify import Certificate, certify
from skilltune.finish.looks import look_at_test
from skilltune.parts import Parts
from skilltune.skill import Skill
from skilltune.usage import Usage


@dataclass(frozen=True, slots=True)
class Proof:
    """A certificate, and `cost`: what the run had spent when it was made."""

    certificate: Certificate
    cost: Usage


async def prove(s: Parts, start: Skill, best: Skill, verdicts: int) -> Proof | None:
    """Certify the best skill on `test`, with the budget that was reserved for it.

    `verdicts` is the number of verdicts that the run has made; a run that goes on and is certified again has a new
    cost. None without test samples, and if the best skill is the input.
    """
    s.budget.release()
    cfg = s.cfg.certify.model_copy(update={"attempts": s.arena.draws(s.cfg.certify.attempts)})
    look = look_at_test(s, best)
    certificate = await certify(s.roll, start, best, s.splits.test, s.arena.metric, cfg, s.cfg.seed, look)
    if certificate is None:
        return None
    paid: dict[str, Any] = s.run.decide(f"paid by certificate {best.hash} {verdicts}", s.budget.spent.to_json)
    with s.run.reading():
        return Proof(certificate, Usage(**paid))
