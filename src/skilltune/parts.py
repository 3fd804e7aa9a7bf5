"""The parts of one run, ready to use. The loop, the gate and the finish get them from here."""

from __future__ import annotations

from dataclasses import dataclass

from skilltune.config import Config
from skilltune.envs import Env
from skilltune.execute import HERE, Executor
from skilltune.gate import Arena, Gate
from skilltune.journal.run import Run
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.optimizer import Optimizer
from skilltune.optimizer.agent import ByAgent
from skilltune.optimizer.handoff import Handoff
from skilltune.rollouts.roller import Roller
from skilltune.samples import Splits
from skilltune.scorers.judge import Reader
from skilltune.skill import Skill
from skilltune.targets.makers import RunTarget


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one run. `build.build_parts` makes them from a config. They hold no state of the training.

    `aclose` frees models and connections. The caller closes the run.
    """

    cfg: Config
    run: Run
    skill: Skill
    env: Env
    splits: Splits
    budget: Budget
    target: RunTarget
    optimizer_client: Client | None
    roll: Roller
    arena: Arena
    gate: Gate
    optimizer: Optimizer
    judge: Reader | None = None
    handoff: Handoff | None = None
    agent: ByAgent | None = None  # the optimizer, if it is an agent
    executor: Executor = HERE  # runs the jobs of agents and of the scorer `tests`

    async def aclose(self) -> None:
        await self.roll.aclose()
        for other in self.arena.also:
            await other.aclose()
        if self.handoff is not None:
            self.handoff.close()
        judge, worker = self.judge and self.judge.client, self.agent and self.agent.worker
        for payee in filter(None, (self.target, self.optimizer_client, worker, judge)):
            await payee.aclose()
        await self.executor.aclose()
