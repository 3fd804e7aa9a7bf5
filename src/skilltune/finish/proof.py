"""The proof of a run: the certificate of its best skill, and the cost up to it. No other code of a training reads
`test`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from skilltune.finish.certify import Certificate, both, certify, compare, with_further
from skilltune.finish.looks import look_at_test
from skilltune.parts import Parts
from skilltune.rollouts.further import Further
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
    cost. None without test samples, and if the best skill is the input. A gain is checked on each further target too.
    """
    s.budget.release()
    cfg = s.cfg.certify.model_copy(update={"attempts": s.arena.draws(s.cfg.certify.attempts)})
    look = look_at_test(s, best)
    certificate = await certify(s.roll, start, best, s.splits.test, s.arena.metric, cfg, s.cfg.seed, look)
    if certificate is None:
        return None
    if s.arena.also and certificate.gain > 0:
        others = [(other.name, await _on_further(s, other, start, best, look)) for other in s.arena.also]
        certificate = with_further(certificate, [(name, c) for name, c in others if c], s.cfg.gate.also_margin)
        if missing := [name for name, c in others if c is None]:
            why = f"no test sample was scored on both sides on {', '.join(missing)}"
            certificate = replace(certificate, certified=False, reason=certificate.reason or why)
    paid: dict[str, Any] = s.run.decide(f"paid by certificate {best.hash} {verdicts}", s.budget.spent.to_json)
    with s.run.reading():
        return Proof(certificate, Usage(**paid))


async def _on_further(s: Parts, other: Further, start: Skill, best: Skill, look: int) -> Certificate | None:
    """The comparison on a further target. It may have other noise than the target, so it gets all attempts."""
    cfg, test = s.cfg.certify, s.splits.test
    draws = await both(other.roll, start, best, test, cfg.attempts, f"test on {other.name}")
    return compare(test, draws, s.arena.metric, cfg, s.cfg.seed, look)
