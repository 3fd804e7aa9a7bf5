"""The gate decides during training which edits enter the skill. A policy is one class with the two members of `Gate`.

Three later places may change what ships. `finish.reselect` may choose another version or revive a rejected candidate.
`finish.ablation` may leave out edits, at the end of the training or later for `skilltune compact`. `result.conclude`
ships the input if the certificate shows no gain.

Policies are found by name: the ones here, then installed plug-ins (entry points of the group `skilltune.gates`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from skilltune import plugins
from skilltune.config import GateConfig
from skilltune.errors import UsageError
from skilltune.optimizer import Proposal
from skilltune.rollout import Score
from skilltune.rollouts.further import Further
from skilltune.rollouts.roller import Roller
from skilltune.rollouts.scores import Scores, Seen
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import Verdict


@runtime_checkable
class Gate(Protocol):
    """Judges proposed edits against an incumbent.

    `baseline` measures the start skill on `select` and returns its mean. `judge` returns a verdict whose skill is
    the incumbent, or the incumbent with at most `limit` of the edits applied; text in `protect` stays untouched. With
    `alone` these proposals are judged by themselves, without what a pool may hold from earlier steps.
    A gate may keep state (a pool, a model of the evidence): a replay rebuilds it, because it calls the same again.
    """

    async def baseline(self, skill: Skill) -> float | None: ...

    async def judge(
        self,
        skill: Skill,
        proposals: Sequence[Proposal],
        *,
        limit: int,
        name: str,
        protect: Sequence[str] = (),
        alone: bool = False,
    ) -> Verdict: ...


def silent(type: str, **data: Any) -> None:
    """Nobody watches."""


@dataclass(slots=True)
class Arena:
    """The parts that a gate may use: the roller, the two splits it may touch (never `test`), its settings, the seed.

    A gate reads `scores` by split. The optimizer sees what follows from scores on `train`: the screen, the choice of
    candidates, the reasons of rejections. Scores on `select` are for the accept decision and for reselection only;
    nothing else of them may reach the optimizer, or it could fit them.

    `upcoming` is the batch of the next step, which idle workers may begin under the likelier incumbent. `noise` is the
    measured variance of a repeated score: 0 for a deterministic target, None if it was not measured. `refuses` returns
    the reason why the target or a further one cannot load a skill as it is, or "".

    `notify` tells whoever watches the run what the gate does: a "phase", and each "interim" analysis of a race. Nothing
    may depend on it.

    `also` are the further targets that no accepted candidate may harm, and `start` is the input of the run. Before a
    gate accepts a candidate, it asks `gate.also.check_elsewhere`.
    """

    roll: Roller
    train: Sequence[Sample]
    select: Sequence[Sample]
    cfg: GateConfig
    seed: int
    max_tokens: int
    upcoming: Sequence[Sample] = ()
    noise: float | None = None
    also: tuple[Further, ...] = ()
    start: Skill | None = None
    refuses: Callable[[Skill], str] = lambda _: ""
    notify: Callable[..., None] = silent

    def draws(self, wanted: int) -> int:
        """The number of attempts at a sample if `wanted` are configured: one if the target is deterministic, because a
        repetition would tell nothing."""
        return 1 if self.noise == 0 else wanted

    def metric(self, score: Score) -> float:
        """The number that is compared, see `metric_of`."""
        return metric_of(self.cfg)(score)

    @property
    def scores(self) -> Scores:
        """The scores of the run, by split: `scores.on("train")`, `scores.on("select")`."""
        return self.roll.scores

    def by_text(self, split: Seen) -> dict[tuple[str, str], list[float]]:
        """The scores of every text on each sample of a split, by text hash and sample, in a fixed order."""
        scores: dict[tuple[str, str], list[float]] = {}
        for (text, sample, _), score in self.scores.on(split).items():
            scores.setdefault((text, sample), []).append(score)
        return scores


def metric_of(cfg: GateConfig) -> Callable[[Score], float]:
    """The number that is compared: score, hard, soft, or weight·hard + (1 − weight)·soft."""
    match cfg.metric:
        case "hard":
            return lambda score: score.hard
        case "soft":
            return lambda score: score.partial
        case "mixed":
            return lambda score: cfg.weight * score.hard + (1 - cfg.weight) * score.partial
        case _:
            return lambda score: score.value


_POLICIES = {
    "strict": "skilltune.gate.strict:Strict",
    "race": "skilltune.gate.race:Race",
    "eprocess": "skilltune.gate.eprocess:EProcess",
}


def build_gate(arena: Arena) -> Gate:
    """The gate that `arena.cfg.policy` names. Raises `UsageError` for an unknown one."""
    name = arena.cfg.policy
    if name in _POLICIES:
        module, _, attribute = _POLICIES[name].partition(":")
        make: Callable[[Arena], Gate] = getattr(import_module(module), attribute)
        return make(arena)
    if (plugin := plugins.find("gate", name)) is not None:
        if arena.also:
            raise UsageError(
                f"gate.also needs one of the policies {', '.join(_POLICIES)}: the plug-in gate {name} does not check "
                "further targets"
            )
        return plugin.make(arena)
    raise UsageError(
        f'gate.policy: unknown policy "{name}"; known: {", ".join(_POLICIES)}, or an installed plug-in '
        "(entry point group skilltune.gates)"
    )


__all__ = ["Arena", "Gate", "Verdict", "build_gate", "metric_of"]
