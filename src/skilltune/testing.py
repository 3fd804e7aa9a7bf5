"""Contract suites: tests of the properties that skilltune needs from your environment, scorer, target or optimizer.

Each suite is a plain function. It raises `AssertionError`, which says what is broken and why that matters, or returns
None. No test framework is needed. A suite starts an event loop, so call it from outside of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from skilltune.edits import apply, parse_edits
from skilltune.envs import Env
from skilltune.errors import CallError, JudgeError
from skilltune.optimizer import Memory, Optimizer, Pair, Proposal, Step
from skilltune.rollout import Rollout, Score, Trajectory, Turn, rollout_from_json, rollout_to_json
from skilltune.samples import Sample, split
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.usage import Usage

ODD_ANSWERS = (
    "",
    " \n",
    "x",
    "{0} {input} %s",
    "\u202e\x00 \ud800 🙂",
    "0" * 20_000,
    '{"a": [1, null]}',
    "<answer></answer>",
)
ODD_SKILLS = ("", "---\r\nname: odd\r\ndescription: Odd.\r\n---\r\n\r\n# {braces} %s\r\n\r\n- 🙂", "x" * 20_000)
CANCEL_S = 10.0  # seconds within which a cancelled `run` of a target must end
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)S?$", re.IGNORECASE)


def check_env(env: Env) -> None:
    """Check an environment.

    Its samples can be split. Prompts and scores repeat. Every expected answer scores 1, an empty answer does not, and
    odd answers do not break the scorer. Scores all expected answers once, and about ten more answers on each of at most
    20 samples.
    """
    asyncio.run(_check_env(env))


def check_scorer(
    score: str | Mapping[str, Any] | Callable[..., Any], samples: Iterable[Sample | Mapping[str, Any]]
) -> None:
    """`check_env` for a scorer alone: `score` is its spec or function; `samples` are at least two that it can score."""
    check_env(Env(samples, score))


def check_target(target: Target, env: Env) -> None:
    """Check that a target honours the contract of `Target` on at most four samples of `env`.

    Runs each sample once, one of them also under odd skills, and cancels one run. Awaits `target.aclose()` at the
    end if the target has that method.
    """
    asyncio.run(_check_target(target, env))


def check_optimizer(optimizer: Optimizer, env: Env, skill: Skill | None = None) -> None:
    """Check an optimizer with batches from `env`: all samples failed, all solved, and none at all.

    Its proposals must apply to `skill` (by default a small one), name only samples that it was shown, and repeat.
    """
    asyncio.run(_check_optimizer(optimizer, env, skill or Skill("# Notes\n\nDo the task.\n")))


async def _check_env(env: Env) -> None:
    split(env.samples)  # ids are unique, train and select are not empty
    assert env.fingerprint == env.fingerprint, "env.fingerprint changes from call to call: nothing could be reused"
    problems = await env.validate()
    assert not problems, "\n".join(problems)
    for sample in env.samples[:20]:
        assert env.messages(sample) == env.messages(sample), (
            f'sample "{sample.id}": its prompt changes from call to call'
        )
        for answer in (*ODD_ANSWERS, env.expected(sample)) if env.scores_text else ():
            rollout = Rollout(sample.id, "", 0, Trajectory(answer), None)
            try:
                first, second = await env.score(sample, rollout), await env.score(sample, rollout)
            except JudgeError as error:
                raise AssertionError(
                    f"{error}\nwhatever a model answers must get a score; here: {answer[:80]!r}"
                ) from error
            assert first == second, (
                f'sample "{sample.id}": the answer {answer[:80]!r} gets {first}, then {second}: '
                "a score that changes makes two skills differ that do not"
            )


async def _check_target(target: Target, env: Env) -> None:
    assert isinstance(target, Target), "a target has `fingerprint`, `run` and `guess`; see skilltune.targets.Target"
    _check_fingerprint(target)
    samples, skill = env.samples[:4], Skill("Do the task.\n")
    for sample in samples:
        guess = target.guess(skill, env.task(sample))
        assert isinstance(guess, Usage), f"guess returned {type(guess).__name__}, not a Usage"
        assert guess.calls >= 1, "guess returned a Usage of no call: a budget would let every run through"
    runs = await asyncio.gather(*(_run(target, skill, sample, env) for sample in samples))
    for sample, trajectory in zip(samples, runs, strict=True):
        _check_trajectory(sample, trajectory)
    for text in ODD_SKILLS:
        _check_trajectory(samples[0], await _run(target, Skill(text), samples[0], env))
    await _check_cancelling(target, skill, samples[0], env)
    _check_fingerprint(target)
    if (close := getattr(target, "aclose", None)) is not None:
        await close()


def _check_fingerprint(target: Target) -> None:
    prints = target.fingerprint, target.fingerprint
    assert all(isinstance(print, str) and print for print in prints), "target.fingerprint must be a text, not empty"
    assert prints[0] == prints[1], "target.fingerprint changes from call to call: every rollout would be paid again"
    for name, value in os.environ.items():
        leaked = _SECRET.search(name) and len(value) >= 8 and value in prints[0]
        assert not leaked, f"target.fingerprint holds the value of {name}: it is written to the run folder"


async def _run(target: Target, skill: Skill, sample: Sample, env: Env) -> Trajectory:
    try:
        return await target.run(skill, env.task(sample), 0)
    except CallError as error:
        raise AssertionError(f'sample "{sample.id}" could not be run, so nothing can be checked: {error}') from error


def _check_trajectory(sample: Sample, trajectory: Trajectory) -> None:
    where = f'run of sample "{sample.id}": '
    assert isinstance(trajectory, Trajectory), f"{where}it returned {type(trajectory).__name__}, not a Trajectory"
    assert trajectory.outcome in ("ok", "agent_limit"), (
        f'{where}outcome "{trajectory.outcome}": raise a failure as InfraError or CallConfigError, so that it is '
        "retried or stops the run, and is never scored"
    )
    assert isinstance(trajectory.answer, str), f"{where}the answer is a {type(trajectory.answer).__name__}, not a text"
    assert trajectory.turns, f"{where}no turns: the optimizer reads the turns"
    assert all(isinstance(turn, Turn) for turn in trajectory.turns), f"{where}each turn must be a Turn(role, text)"
    rollout = Rollout(sample.id, "", 0, trajectory, Score(1.0))
    stored = _stored(rollout_to_json(rollout), f"{where}the trajectory")
    assert rollout_from_json(stored) == rollout, f"{where}the journal returns it changed"


def _stored(value: Any, what: str) -> Any:
    """The value after a round trip through the journal's JSON."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} cannot be written as JSON: {error}") from error


async def _check_cancelling(target: Target, skill: Skill, sample: Sample, env: Env) -> None:
    task = asyncio.create_task(target.run(skill, env.task(sample), 1))
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=CANCEL_S)
    assert done, f"a run that was cancelled has not ended after {CANCEL_S:g} s: Ctrl-C would not stop it"


async def _one_by_one(rollouts: Sequence[Rollout]) -> AsyncIterator[Rollout]:
    for rollout in rollouts:
        yield rollout


async def _check_optimizer(optimizer: Optimizer, env: Env, skill: Skill) -> None:
    assert isinstance(optimizer, Optimizer), (
        "an optimizer has looks_back, propose, learning_rate, slow_update and notes; see skilltune.optimizer.Optimizer"
    )
    step = Step(1, 1, env.samples, 4, starts_epoch=True, ends_epoch=True)
    failed = [_rollout(sample, skill, 0.0) for sample in env.samples]
    solved = [_rollout(sample, skill, 1.0) for sample in env.samples]
    for rollouts in (failed, solved, []):
        proposals = await optimizer.propose(skill, _one_by_one(rollouts), Memory(), step, 4)
        _check_proposals(proposals, rollouts, skill)
        again = await optimizer.propose(skill, _one_by_one(rollouts), Memory(), step, 4)
        assert again == proposals, "the same rollouts give other proposals: a resumed run would take another course"
        rate = await optimizer.learning_rate(skill, proposals, Memory(), step, 4)
        assert rate in range(1, 5), f"learning_rate returned {rate!r}, not a whole number from 1 to `most` (here 4)"
    if optimizer.looks_back:
        pairs = [Pair(before, after) for before, after in zip(failed, solved, strict=True)]
        guidance = await optimizer.slow_update(skill, pairs, Memory(), step)
        _check_proposals([Proposal(guidance)] if guidance else [], failed, skill)
        notes = await optimizer.notes(skill, pairs, Memory(), step)
        assert isinstance(notes, str), f"notes returned {type(notes).__name__}, not a text"


def _rollout(sample: Sample, skill: Skill, value: float) -> Rollout:
    turns = (Turn("user", sample.text), Turn("assistant", "an answer"))
    return Rollout(sample.id, skill.hash, 0, Trajectory("an answer", turns), Score(value, "as the test wants it"))


def _check_proposals(proposals: Sequence[Proposal], rollouts: Sequence[Rollout], skill: Skill) -> None:
    assert isinstance(proposals, list), f"propose returned a {type(proposals).__name__}, not a list of Proposal"
    shown = {rollout.sample for rollout in rollouts}
    for proposal in proposals:
        assert isinstance(proposal, Proposal), (
            f"propose returned a {type(proposal).__name__} in its list, not a Proposal"
        )
        (read,) = parse_edits([proposal.edit.to_json()])
        assert read == proposal.edit, (
            f"not an edit: {getattr(read, 'reason', 'it has fields that its op does not use')}"
        )
        assert set(proposal.support) <= shown, (
            f"an edit is supported by samples that were not shown: {sorted(set(proposal.support) - shown)}"
        )
        (report,) = apply(skill, [proposal.edit]).reports
        assert report.status == "applied", f"an edit cannot be placed in the skill: {report.reason}"


__all__ = ["check_env", "check_optimizer", "check_scorer", "check_target"]
