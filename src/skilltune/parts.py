"""The parts of one run, ready to use: the loop, the gate and the finish get them from here."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from skilltune.build import describe_overlong, made_in_python
from skilltune.config import Config, to_toml
from skilltune.envs import Env
from skilltune.errors import JudgeError, Paused, UsageError
from skilltune.finish.controls import CONTROL_ARMS
from skilltune.finish.looks import earlier_looks
from skilltune.finish.reselect import Reselection
from skilltune.finish.reserve import TYPICAL, estimate_calls
from skilltune.gate import Arena, Gate
from skilltune.journal.run import PROBE, Run
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.optimizer import Optimizer, Step
from skilltune.optimizer.examples import require_answers
from skilltune.optimizer.handoff import Handoff
from skilltune.rollout import Rollout, Trajectory
from skilltune.rollouts.inputs import _unchanged, pin, pin_test
from skilltune.rollouts.roller import Roller
from skilltune.samples import Splits
from skilltune.scorers.judge import Reader
from skilltune.skill import Skill
from skilltune.stats import standard_error, wilson
from skilltune.usage import Usage
from skilltune.verdict import Verdict, verdict_to_json
from skilltune.version import __version__

LEFT, SURE = 0.1, 0.9  # training ends when the interval of the share of tasks that fail ends below
TRIED = 5  # samples on which an empty answer is scored before anything is paid


@dataclass(slots=True)
class Session:
    """The parts of one run, ready to use. `aclose` frees models and connections; the run stays the caller's."""

    cfg: Config
    run: Run
    skill: Skill
    env: Env
    splits: Splits
    budget: Budget
    target: Client
    optimizer_client: Client | None
    roll: Roller
    arena: Arena
    gate: Gate
    optimizer: Optimizer
    judge: Reader | None = None
    handoff: Handoff | None = None
    outcomes: dict[int, str] = field(default_factory=dict)  # what came of each step's own candidate

    async def aclose(self) -> None:
        await self.roll.aclose()
        if self.handoff is not None:
            self.handoff.close()
        for client in filter(None, (self.target, self.optimizer_client, self.judge and self.judge.client)):
            await client.aclose()

    def should_stop(self, steps_without_accept: int, score: float | None) -> bool:
        """Patience or the target score; the reason goes into the events. Raises `Paused` like `pause_if_wanted`."""
        self.pause_if_wanted()
        cfg = self.cfg.train
        reason = ""
        if cfg.patience and steps_without_accept >= cfg.patience:
            counted = Counter(list(self.outcomes.values())[-steps_without_accept:])
            how = ", ".join(f"{times} × {outcome}" for outcome, times in counted.items())
            reason = f"no accept in {steps_without_accept} steps (train.patience = {cfg.patience}): {how}"
        elif cfg.target_score is not None and score is not None and score >= cfg.target_score:
            reason = f"the score on select reached {cfg.target_score:g}"
        return self._stopping(reason)

    def pause_if_wanted(self) -> None:
        """Raise `Paused` if the run folder holds a file named `stop`: that is the user's wish for a pause."""
        if (self.run.place / "stop").exists():
            raise Paused(f"{self.run.folder / 'stop'} exists; delete it and run the same command to go on")

    def nothing_left(self, failed: Mapping[str, bool]) -> bool:
        """True if so few tasks fail that there is nothing left to learn from, the epoch's slow update included.
        `failed`: for each train task that the incumbent did, whether it failed; what a second try solved did not. The
        reason goes into the events."""
        counts = f"{sum(failed.values())} of {len(failed)} train tasks are left to learn from, too few"
        return self._stopping(f"{counts} (train.patience = 0 goes on)" if self.too_few(failed) else "")

    def too_few(self, failed: Mapping[str, bool]) -> bool:
        """The rule of `nothing_left`."""
        left = sum(failed.values())
        return bool(self.cfg.train.patience and failed) and wilson(left, len(failed), SURE)[1] <= LEFT

    def _stopping(self, reason: str) -> bool:
        if reason:
            self.run.record("stopping", reason=reason)
        return bool(reason)

    def write_config(self) -> None:
        """The settings of the run as a file of its folder."""
        unsaid = made_in_python(self.cfg, self.env)
        self.run.write("config.toml", (f"# {unsaid}\n\n" if unsaid else "") + to_toml(self.cfg))

    def pin_inputs(self) -> None:
        """Refuse to resume with another start skill or skilltune than the run's decisions were made with."""
        _unchanged(self.run, "version", "skilltune's own version", __version__)
        _unchanged(self.run, "skill", f"the skill {self.cfg.skill}", self.skill.hash)
        pin(self.run, self.skill, self.roll, self.optimizer.looks_back, (*self.splits.train, *self.splits.select))

    @property
    def spent(self) -> bool:
        """Was more paid than a probe?"""
        return bool(self.run.usage.keys() - {PROBE})

    async def try_scorer(self) -> None:
        """Score one expected answer, so that a scorer that cannot work is found before anything is paid; an empty one
        where a judge would have to be paid for it. Refuses samples from which the optimizer could propose nothing."""
        if too_long := describe_overlong(self.cfg, self.skill):
            raise UsageError(f"{too_long}. Nothing was spent.")
        self.require_evidence()
        sample = next(s for s in (*self.splits.select, *self.splits.train) if s.id not in self.roll.dropped)
        answer = "" if self.env.lines(sample) else self.env.expected(sample)
        rollout = Rollout(sample.id, self.skill.hash, 0, Trajectory(answer), None)
        try:
            await self.env.score(sample, rollout)
        except JudgeError as error:
            raise UsageError(f"{error}\nNothing was spent: mend the scorer and run the same command again.") from error
        if not self.env.lines(sample) and await self._indifferent():
            raise UsageError(
                "the scorer gives full marks to an empty answer, so nothing could be learned: `skilltune check` lists "
                "the samples. Nothing was spent."
            )

    def require_evidence(self) -> None:
        """Raises UsageError where the optimizer could never propose anything from the train samples."""
        if self.cfg.optimizer.model == "examples" and self.cfg.train.epochs:
            require_answers(self.env, self.splits.train)

    async def _indifferent(self) -> bool:
        """Does an empty answer solve every sample tried where something was expected?"""
        known = (s for s in self.splits.select if s.id not in self.roll.dropped)
        tried = [s for s in known if self.env.expected(s)][:TRIED]
        rollouts = [Rollout(sample.id, self.skill.hash, 0, Trajectory(""), None) for sample in tried]
        with suppress(JudgeError):  # a scorer that fails on an empty answer is not indifferent
            scores = [await self.env.score(s, rollout) for s, rollout in zip(tried, rollouts, strict=True)]
            return bool(scores) and all(score.value >= 1 for score in scores)
        return False

    def look_at_test(self, best: Skill) -> int:
        """The number of this look at the test split. It is 1 unless this run certified another version before, or runs
        that it shares its answers with read some of these samples (`skilltune.finish.looks`). Each later look is held to a
        stricter bar, because two tries are two chances to be lucky."""
        if best.text == self.skill.text or not self.splits.test:
            return 1
        pin_test(self.run, self.roll, self.splits.test)
        contents = [self.roll.content(sample) for sample in self.splits.test]
        self.run.record("certify", best=best.hash)
        return 1 + earlier_looks(self.run, best.hash, contents)

    def hold_back(self) -> None:
        """Keep the cost of what follows the training: the certificate, its judge included, and, where they are wanted,
        the control arms, the dearest of which takes as much as the training itself."""
        cfg, test = self.cfg.certify, self.splits.test
        draws = (2 + CONTROL_ARMS * cfg.controls) * cfg.attempts
        self.budget.hold("target", draws * len(test), self.typical_call(), again=cfg.controls)
        if self.judge is not None and (read := [sample for sample in test if self.env.lines(sample)]):
            sample = max(read, key=lambda sample: len(sample.text))
            guess = self.judge.client.bound(self.judge.request(sample, "", self.env.lines(sample)))
            self.budget.hold("judge", draws * len(read), guess)

    def rest(self) -> tuple[str, int, Usage]:
        """What a typical run still takes: target calls, how many, and a guess at one."""
        fewest, most = estimate_calls(self.cfg, self.splits)
        done = self.budget.units("target")
        after = (2 + CONTROL_ARMS * self.cfg.certify.controls) * self.cfg.certify.attempts * len(self.splits.test)
        training = max(0, fewest - done) + TYPICAL * max(0, most - after - max(done, fewest))
        return "target", math.ceil(training + after), self.typical_call()

    def typical_call(self) -> Usage:
        """A guess at one target call on a test sample: what the certificate reserves until calls have been seen. A
        guess that is too small costs little, one that is too large would stop the run before its first call."""
        sample = max(self.splits.test or self.splits.select, key=lambda sample: len(sample.text))
        return self.roll.target.guess(self.skill, sample, self.env)

    # -- what is written down

    def record_start(self, skill: Skill, score: float | None) -> None:
        scores = [self.arena.metric(r.score) for r in self.roll.seen.values() if r.score and r.skill == skill.hash]
        level = {"skill": skill.hash, "score": score, "score_sd": standard_error(scores)}
        self._version(0, skill, {"version": 0, **level, "reason": "the input"})
        self.run.record("start", **level, select=len(self.splits.select))
        _unchanged(self.run, "env", "the scorer or the prompt", self.env.fingerprint)

    def record(self, step: Step, verdict: Verdict, limit: int, *, version: int) -> None:
        """One verdict: an event with all its figures and, if a version was accepted, the version's files."""
        if verdict.candidate is not None:
            self.run.put_blob(verdict.candidate.hash, verdict.candidate.text.encode("utf-8", "surrogatepass"))
        judged = "accepted" if verdict.accepted else "a candidate was rejected"
        outcome = judged if verdict.candidate is not None else verdict.reason
        self.outcomes.setdefault(step.index, outcome)  # a slow update follows under the number of its step
        data = verdict_to_json(verdict) | {"step": step.index, "epoch": step.epoch, "lr": limit, "version": version}
        if verdict.accepted:
            self._version(version, verdict.skill, data)
        self.run.record("verdict", **data)

    def record_choice(self, chosen: Reselection, *, version: int) -> None:
        """The choice at the end: an event and, if it fell on a candidate that was rejected, that version's files."""
        data = chosen.to_json()
        if chosen.best.version is None:
            data["version"] = version
            self._version(version, chosen.best.skill, data)
        self.run.record("reselection", **data)

    def _version(self, number: int, skill: Skill, verdict: Mapping[str, Any]) -> None:
        folder = f"versions/{number:04d}"
        self.run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        self.run.write(f"{folder}/SKILL.md", skill.text.encode("utf-8", "surrogatepass"))
        self.run.write(f"{folder}/verdict.json", json.dumps(verdict, indent=1, ensure_ascii=False) + "\n")
