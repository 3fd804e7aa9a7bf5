"""Forward pass of a training step: roll the batch with the incumbent, and retry failures that may be bad luck."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from skilltune.config import TrainConfig
from skilltune.rollout import Rollout, Score
from skilltune.rollouts.roller import Roller
from skilltune.samples import Sample
from skilltune.skill import Skill

SOLVED = 0.5  # share of a batch that must be solved before its failures may be bad luck
REPEATS = 8  # equal pairs of answers (not counting the most frequent answer) that show a deterministic target


@dataclass(slots=True)
class Forward:
    """Rolls train batches and tracks which samples failed under the incumbent.

    `failed` maps the id of each train sample that was rolled with the incumbent to True if any attempt failed. It is
    empty again when a batch has another incumbent. `hold` is False if each rollout is passed on at once. `confirm`
    rolls failures again, until the target is seen to be deterministic. `whole` is True if the last batch was held back
    to its end: then `failed` covers it before any of its rollouts is passed on, and the training may end there.
    """

    roll: Roller
    metric: Callable[[Score], float]
    hold: bool
    confirm: bool
    attempts: int = 1  # at each sample
    whole: bool = False
    failed: dict[str, bool] = field(default_factory=dict)
    _incumbent: Skill | None = None

    @classmethod
    def of(
        cls, roll: Roller, metric: Callable[[Score], float], cfg: TrainConfig, attempts: int, *, noisy: bool
    ) -> Forward:
        """The forward pass of a training. A failure is confirmed only if a second attempt may end differently."""
        hold = cfg.confirm or cfg.by_value
        return cls(roll, metric, hold, cfg.confirm and attempts == 1 and noisy, attempts)

    def known(self, skill: Skill) -> Mapping[str, bool]:
        """`failed` of a skill: empty if no batch was rolled with it."""
        return self.failed if skill == self._incumbent else {}

    @asynccontextmanager
    async def batch(
        self, skill: Skill, samples: Sequence[Sample], name: str
    ) -> AsyncIterator[AsyncGenerator[Rollout, None]]:
        """The rollouts of a batch in order, each as soon as it is final. Rollouts that are under way when the block
        ends are cancelled."""
        if skill != self._incumbent:
            self.failed.clear()
            self._incumbent = skill
        async with aclosing(await self._begun(skill, samples, name)) as rollouts:
            yield rollouts

    async def _begun(self, skill: Skill, samples: Sequence[Sample], name: str) -> AsyncGenerator[Rollout, None]:
        """Begin a batch, and hold it back as long as half of it may be solved.

        In that case a failure may be bad luck and is rolled again, or there may be too few failures to train on.
        """
        rollouts = self.roll.stream(skill, samples, attempts=self.attempts, purpose=name)
        held, lost, size = list[Rollout](), 0.0, self.attempts * len(samples)
        self.whole = False
        if self.hold:
            by_id = {sample.id: sample for sample in samples}
            async for rollout in rollouts:
                held.append(rollout)
                lost += 1 - self.metric(rollout.score) if rollout.score else 0.0
                if lost > (1 - SOLVED) * size:
                    break
                if self.confirm and _scored_zero(rollout) and len(held) - lost >= SOLVED * size:
                    self.roll.prefetch(skill, [by_id[rollout.sample]], 1)
            else:
                self.whole = True
                if self.confirm:
                    held = await self._confirmed(skill, held, by_id.values(), f"{name}, failures again")
            for rollout in held:
                self._track(rollout)
        return self._rest(held, rollouts)

    async def _confirmed(
        self, skill: Skill, rollouts: Sequence[Rollout], samples: Iterable[Sample], purpose: str
    ) -> list[Rollout]:
        """Roll each failure of the batch once more and return the batch.

        A sample that succeeds now counts as a success. If the target repeats its answers, later batches are not
        confirmed.
        """
        zero = {rollout.sample for rollout in rollouts if _scored_zero(rollout)}
        again = await self.roll(skill, [s for s in samples if s.id in zero], attempt=1, purpose=purpose)
        second = {rollout.sample: rollout for rollout in again}
        if repeats_itself([(r.answer, second[r.sample].answer) for r in rollouts if r.sample in second]):
            self.confirm = False
        lucky = {sample for sample, rollout in second.items() if rollout.score and rollout.score.hard}
        return [second[rollout.sample] if rollout.sample in lucky else rollout for rollout in rollouts]

    async def _rest(
        self, held: Sequence[Rollout], rollouts: AsyncGenerator[Rollout, None]
    ) -> AsyncGenerator[Rollout, None]:
        """Yield the rollouts that were held back and tracked, then the remaining ones as they finish."""
        async with aclosing(rollouts):
            for rollout in held:
                yield rollout
            async for rollout in rollouts:
                self._track(rollout)
                yield rollout

    def _track(self, rollout: Rollout) -> None:
        failed = rollout.score is None or self.metric(rollout.score) < 1
        self.failed[rollout.sample] = failed or self.failed.get(rollout.sample, False)


async def drain(rollouts: AsyncIterable[Rollout]) -> None:
    """Wait for the rollouts that nobody has read yet."""
    async for _ in rollouts:
        pass


def _scored_zero(rollout: Rollout) -> bool:
    return rollout.score is not None and rollout.score.value == 0


def repeats_itself(answers: Sequence[tuple[str, str]]) -> bool:
    """True if second answers to the same questions show that the target is deterministic.

    All pairs must be equal, and `REPEATS` of them must differ from the most frequent answer. Equal pairs of that answer
    prove nothing: a target that lacks the knowledge says "I don't know" twice at any temperature.
    """
    most_frequent = max(Counter(first for first, _ in answers).values(), default=0)
    return all(first == second for first, second in answers) and len(answers) - most_frequent >= REPEATS
