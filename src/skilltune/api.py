"""The Python interface: `train`, `atrain`, `evaluate`, `aevaluate` take keyword arguments instead of a config file."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

from skilltune.authoring.review import refuse_unread
from skilltune.build import build_parts, default_folder, inside_skill, pin_inputs, require_loadable, write_config
from skilltune.compaction import compacted, in_doubt, is_compacted, replayed
from skilltune.compaction import plan as plan_compaction
from skilltune.config import (
    MAY_DIFFER,
    ROLE_KEYS,
    Config,
    OptimizerConfig,
    TargetConfig,
    make_config,
    stored_config,
)
from skilltune.envs import Env, Environment, as_env
from skilltune.errors import BudgetExceeded, RunError, UsageError
from skilltune.export import only_evaluated, unfinished
from skilltune.finish.certify import by_group
from skilltune.finish.controls import Controls, measure
from skilltune.finish.controls import most_calls as control_calls
from skilltune.finish.looks import note_fork
from skilltune.finish.reserve import Planned, planned, typical_call
from skilltune.finish.transfer import TRANSFERS, Transfer, Transfers, transfer
from skilltune.history.activation import activation_of
from skilltune.history.left_out import describe, one_line
from skilltune.history.record import ROOT, Record
from skilltune.journal.keys import digest
from skilltune.journal.run import Listener, Run, differences, scratch_run
from skilltune.metering.budget import raise_it
from skilltune.parts import Parts
from skilltune.preflight.probe import try_models, try_targets
from skilltune.preflight.scorer import try_scorer
from skilltune.report.files import write_results
from skilltune.result import Result
from skilltune.rollouts.further import pin_measured
from skilltune.rollouts.inputs import Pins
from skilltune.samples import Sample, SplitName
from skilltune.sinks import recording
from skilltune.skill import Skill
from skilltune.stats import score_interval
from skilltune.train import train as fit_and_certify
from skilltune.usage import Usage

FORKS = 1000
Samples = Env | Environment | Callable[[], Env | Environment] | str | Path
EnvTable = Samples | Mapping[str, Any]
"""Samples with their scorer and prompt, or the config's whole table [env]."""
P = ParamSpec("P")
T = TypeVar("T")


async def run_training(
    cfg: Config,
    root: Path,
    folder: Path | None = None,
    *,
    env: Env | None = None,
    fork: bool = False,
    drop: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    ready: Callable[[Parts], None] | None = None,
) -> Result:
    """Train in the run folder and write its derived files. The folder is created; if it exists, the run is resumed.

    `fork` leaves an existing run alone and starts a new one beside it, which reuses every paid answer that still
    applies. `drop` removes samples from the run for good, by id. `ready` is called with the parts once they are built,
    before anything is spent. Raises `UsageError` and `RunError` before anything is spent, `InfraStopped` or
    `CallConfigError` if a provider fails for good; the run can be resumed.
    """
    folder = default_folder(cfg, root) if folder is None else folder
    if inside_skill(folder, root / cfg.skill):
        raise UsageError(f"the run folder {folder} lies inside the skill's own folder; choose another with `--run DIR`")
    old = Run.read(folder) if fork and (folder / "run.db").is_file() else None
    run = Run.open(_free(folder) if old else folder, cfg.to_json(), may_differ=MAY_DIFFER)
    with run:
        run.listeners.extend(listeners)
        forked = None
        if old is not None:
            forked = _Fork(folder, old.config or {}, run.adopt(old))
            note_fork(run, old)
            old.close()
        async with recording(cfg, run) as board:
            session = build_parts(cfg, run, root, env=env, drop=drop)
            board.executor = session.executor
            try:
                if forked is not None:
                    _notify_fork(forked, session)
                refuse_unread(session.env.samples, cfg.env.samples)
                write_config(session)
                pin_inputs(session)
                await try_scorer(session)
                if session.handoff is not None:
                    session.handoff.open()
                if ready is not None:
                    ready(session)
                run.note(ROOT, folder=str(root.resolve()))
                async with _time_limit(session):
                    await try_models(session)
                    result = await _result(session)
            except asyncio.CancelledError:
                raise asyncio.CancelledError(_resume_hint(run.folder, forked=old is not None)) from None
            finally:
                await session.aclose()
            write_results(session, result)
    return result


async def _result(session: Parts) -> Result:
    """Train, or replay what the journal holds, with the compaction of the run if it had one."""
    result = await fit_and_certify(session)
    return await replayed(session, result)


@dataclass(frozen=True, slots=True)
class _Fork:
    """The source of a fork: its folder, its configuration and the number of paid answers that were copied from it."""

    source: Path
    config: Mapping[str, Any]
    answers: int


def _notify_fork(fork: _Fork, session: Parts) -> None:
    """Notify listeners of a fork: the number of reusable rollouts, the changed settings that make other rollouts
    useless, and the number of other copied answers, which are reused if the same question is asked again."""
    held, rollouts = session.roll.held_in(session.run)
    why = differences(fork.config, session.cfg.to_json(), MAY_DIFFER)
    session.run.notify(
        "forked",
        source=str(fork.source),
        folder=str(session.run.folder),
        answers=held,
        rollouts=rollouts,
        others=fork.answers - rollouts,
        changed=[change for change in why if change.startswith(("target.", "env."))],
    )


@asynccontextmanager
async def _time_limit(session: Parts) -> AsyncIterator[None]:
    """Raise `BudgetExceeded` if the block runs `target.timeout_s` seconds longer than `budget.minutes`.

    Usually the loop stops by itself before its next call, and running calls may finish because they are paid for.
    This limit is for calls that never finish.
    """
    minutes, grace = session.cfg.budget.minutes, session.cfg.target.timeout_s
    left = None if minutes is None else max(0.0, 60 * minutes - session.run.elapsed_s) + grace
    limit = asyncio.timeout(left)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        larger, how = raise_it("minutes", minutes or 0)
        raise BudgetExceeded(
            f"the budget of {minutes:g} minutes is used up, and something under way did not end within {grace:g} s "
            f"more (target.timeout_s); {how}",
            larger,
        ) from error


def _tables(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    for name, section in sections.items():
        if name in ("controls", "compact"):
            raise UsageError(f"{name} is a function now: leave it out, and call st.{name}(result.folder) at the end")
        if not isinstance(section, Mapping):
            raise UsageError(f"{name}={section!r}: give a config table as a dict, such as train={{'epochs': 2}}")
    return {name: dict(section) for name, section in sections.items()}


def _run_to_end(fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The blocking twin of an async function; inside a running event loop, await the async function instead.

    Ctrl-C cancels the work and raises a `KeyboardInterrupt` whose text says how to resume.
    """

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return asyncio.run(fn(*args, **kwargs))
        except KeyboardInterrupt as stop:  # asyncio has cancelled the work; the context is its CancelledError
            raise KeyboardInterrupt(str(stop.__context__ or "") or "interrupted") from None

    return call


def _resume_hint(folder: Path, *, forked: bool = False) -> str:
    once = " and without fork" if forked else ""
    return f"interrupted; what was paid is kept: the same call with run={str(folder)!r}{once} goes on"


def _environment(env: EnvTable) -> tuple[dict[str, Any], Env | None]:
    """The argument `env` as the config's table, and the `Env` itself if it was made in Python."""
    table = dict(env) if isinstance(env, Mapping) else {"samples": env}
    made: Any = table.get("samples", "")
    if callable(made) and not isinstance(made, Env | Environment):
        made = as_env(made(), "env: the function")
    if not isinstance(made, Env | Environment):
        return table | {"samples": str(made)}, None
    made = as_env(made, "env")
    del table["samples"]
    if own := sorted(table.keys() & {"score", "prompt", "fields"}):
        raise UsageError(f"env: {', '.join(own)} and an Env: give them to the Env itself, st.Env(samples, score, …)")
    return table, made


async def atrain(
    skill: str | Path,
    env: EnvTable,
    target: str | Mapping[str, Any],
    optimizer: str | Mapping[str, Any] = "",
    *,
    budget: str | Mapping[str, float] | None = None,
    run: str | Path | None = None,
    preset: str = "default",
    seed: int = 42,
    fork: bool = False,
    drop: Sequence[str] = (),
    **sections: Mapping[str, Any],
) -> Result:
    """Train a skill and return the result. The same call again resumes the run, or replays a finished one for free.

    skill:     a folder with SKILL.md or a .md file; if it is missing, training starts from nothing.
    env:       an `Env` or `Environment`, a function that makes one, a sample file, a folder with evals/evals.json,
               "env.py:factory", "bench:NAME", or the whole table [env]: {"samples": any of these, "score": "f1",
               "split": [2, 1, 1], "prompt": …}.
    target:    the frozen model ("openai@http://127.0.0.1:8000/v1/qwen3", "local/smollm2-135m", …).
    optimizer: the model that proposes edits, or "examples"; empty means the target's model.
               Target and optimizer may also be a whole table, e.g. {"model": "openai/gpt-5.5", "workers": 32}.
    budget:    "5 usd", "2000 calls, 30 minutes", or {"usd": 5}.
    run:       the run folder; by default runs/NAME in the current folder.
    fork:      start a new run beside an existing one, and reuse every paid answer that still applies.
    drop:      ids of samples to remove from the run for good, such as one that the endpoint's filter refuses.
    sections:  the config's other tables by name, e.g. train={"epochs": 2}, gate={"policy": "strict"}.

    Raises `UsageError` before anything is spent, `InfraStopped` or `CallConfigError` if a provider fails for good.
    """
    table, made = _environment(env)
    tree: dict[str, Any] = {"preset": preset, "skill": str(skill), "seed": seed, "env": table}
    tree |= _tables(sections)
    tree |= {"target": _table(target), "optimizer": _table(optimizer)}
    if budget is not None:
        tree["budget"] = budget if isinstance(budget, str) else dict(budget)
    cfg = make_config(tree, source="train()")
    folder = Path(run) if run is not None else None
    return await run_training(cfg, Path(), folder, env=made, fork=fork, drop=drop)


train = _run_to_end(atrain)


# -- a finished run


@asynccontextmanager
async def finished_run(
    folder: Path,
    *,
    env: Env | None = None,
    budget: str | Mapping[str, float] | None = None,
    overrides: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
) -> AsyncIterator[tuple[Parts, Result]]:
    """Open a finished run to measure more: its parts and its result, replayed from the journal at no cost.

    `env` is needed if the run was made with an `Env`. `budget` and `overrides` may change the keys that may differ on a
    resume. `listeners` hear what happens after the replay. Raises `UsageError` for a run that is under way or has not
    finished, and for one whose samples cannot be found; nothing is spent then. The input skill comes from the journal,
    so its file may have changed since.
    """
    cfg, root = _reopened(folder, env, budget, overrides)
    with Run.open(folder, cfg.to_json(), may_differ=MAY_DIFFER) as run:
        async with recording(cfg, run) as board:
            session = build_parts(cfg, run, root, env=env, skill=Pins.of(run).skill)
            board.executor = session.executor
            try:
                pin_inputs(session)
                result = await _result(session)
                if result.stopped is not None:  # by a file named `stop` in the folder
                    raise result.stopped
                run.listeners.extend(listeners)
                async with _time_limit(session):
                    yield session, result
            except asyncio.CancelledError:
                raise asyncio.CancelledError(_resume_hint(run.folder)) from None
            finally:
                await session.aclose()


def _reopened(
    folder: Path, env: Env | None, budget: str | Mapping[str, float] | None, overrides: Sequence[str]
) -> tuple[Config, Path]:
    """The settings of a finished run, and the folder at which its relative paths start."""
    with Run.read(folder) as run:
        record, stored = Record.of(run), run.config
        if record.state == "running":
            raise UsageError(
                f"the run in {folder} is under way (process {record.writer}): wait for its end, or create a file named "
                f"stop in {folder} and finish it later"
            )
        if stored is None or only_evaluated(run):
            raise UsageError(unfinished(run))
        if record.state == "stopped":
            raise UsageError(f"the run in {folder} has not finished; finish it first: {record.resume}")
        cfg = stored_config(stored, folder)
    if not cfg.env.samples and env is None:
        raise UsageError(
            f"the run in {folder} was made in Python with an Env, which its settings do not describe: call "
            "st.compact(RUN, env=ENV) or st.controls(RUN, env=ENV) with the same Env"
        )
    if not record.root or not Path(record.root).is_dir():
        place = f"its folder {record.root} is gone" if record.root else "its folder was not recorded"
        raise UsageError(
            f"the samples of the run in {folder} cannot be found: {place}. Run its `skilltune train` command again "
            "where they are now; a finished run is replayed for free"
        )
    tree = cfg.to_json()
    if budget is not None:
        tree["budget"] = budget if isinstance(budget, str) else dict(budget)
    return make_config(tree, overrides, source=f"the run in {folder}"), Path(record.root)


async def run_compaction(session: Parts, result: Result, ready: Callable[[Planned], None] | None = None) -> Result:
    """Shorten the best skill of an open finished run, and write the derived files again.

    `ready` is called with the most that it may take, before anything is spent. A run is compacted once, because all
    removals together may lose one point: after that, its result is returned. Raises `RunError` like `is_compacted`.
    """
    if not is_compacted(session.run):
        ablation = await in_doubt(session, result)
        _announce(session, plan_compaction(session, result, ablation), ready)
        result = await compacted(session, result, ablation)
    write_results(session, result)
    return result


async def run_controls(session: Parts, result: Result, ready: Callable[[Planned], None] | None = None) -> Controls:
    """Measure the control arms of an open finished run, and write the derived files again.

    `ready` is called with the most that they may take, before anything is spent. Raises `UsageError` if the run has no
    certificate, because there is nothing to compare then.
    """
    if result.certificate is None:
        raise UsageError(
            f"the run in {session.run.folder} has no certificate ({result.uncertified}), so there is nothing to "
            "compare with control arms"
        )
    _announce(session, planned(session, *control_calls(session)), ready)
    found = await measure(session, result.start, result.best)
    session.run.record("controls", **found.to_json())
    write_results(session, result)
    return found


def _announce(session: Parts, plan: Planned, ready: Callable[[Planned], None] | None) -> None:
    """Tell the plan, and base the advice of a budget that runs out on what the plan leaves."""
    end = session.budget.units("target") + plan.target
    session.budget.rest = lambda: ("target", max(0, end - session.budget.units("target")), typical_call(session))
    if ready is not None:
        ready(plan)


async def acompact(
    run: str | Path, *, env: Env | None = None, budget: str | Mapping[str, float] | None = None
) -> Result:
    """Remove the edits of a finished run's best skill that harm or add nothing, and certify what is left.

    run:    the folder of a finished run.
    env:    the `Env` that the training was given; not needed if it was given a file.
    budget: the limits of the whole run from now on, its training included, e.g. "5 usd"; by default those of the run.

    The same call again resumes, or replays for free. Returns the run's result: that of the training if no edit was
    removed. Raises the errors of `train`, `UsageError` also for a run that has not finished.
    """
    async with finished_run(Path(run), env=env, budget=budget) as (session, result):
        return await run_compaction(session, result)


compact = _run_to_end(acompact)


async def acontrols(
    run: str | Path, *, env: Env | None = None, budget: str | Mapping[str, float] | None = None
) -> Controls:
    """Measure the control arms of a finished run: other ways to a skill, on the same test samples.

    The arguments and errors are those of `compact`. It costs about as much as the training.
    """
    async with finished_run(Path(run), env=env, budget=budget) as (session, result):
        return await run_controls(session, result)


controls = _run_to_end(acontrols)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The mean score of a skill with its 95 % interval, 0 to 1, and its cost.

    `n` of `total` samples were scored. `score` is None if none was.
    """

    score: float | None
    low: float
    high: float
    n: int
    total: int
    usage: Usage
    scores: Mapping[str, float]
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # outcome and reason by sample
    activation: str = ""  # agents: in how many rollouts the skill was offered and loaded

    def __str__(self) -> str:
        if self.score is None:
            return f"no score: none of {self.total} samples could be scored; left out: {describe(self.left_out)}"
        left_out = f"; left out: {describe(self.left_out)}" if self.left_out else ""
        interval = f"{100 * self.low:.1f}…{100 * self.high:.1f}"
        return f"{100 * self.score:.1f} % (95 % CI {interval}) on {self.n} samples{left_out}"


def _samples(session: Parts, split: SplitName | None) -> tuple[Sample, ...]:
    """The samples of a split, or all samples. Raises `UsageError` for a split that does not exist or is empty."""
    parts = session.splits
    by_name = {"train": parts.train, "select": parts.select, "test": parts.test}
    if split and split not in by_name:
        raise UsageError(f"there is no split {split!r}: name train, select or test, or leave it out for all samples")
    samples = by_name[split] if split else (*parts.train, *parts.select, *parts.test)
    if not samples:
        raise UsageError(f"the split {split!r} is empty; env.split sets the ratio")
    return tuple(samples)


async def run_evaluation(session: Parts, skill: Skill, split: SplitName | None = None, attempts: int = 1) -> Evaluation:
    """Score a skill on one split of a run's parts; None means all samples. Raises `UsageError` for a split that does
    not exist or is empty."""
    samples = _samples(session, split)
    rollouts = []
    for attempt in range(attempts):
        rollouts += await session.roll(skill, samples, attempt=attempt, purpose=f"eval {split or 'all'}")
    by_sample: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.score is not None:
            by_sample.setdefault(rollout.sample, []).append(session.arena.metric(rollout.score))
    scores = {sample: sum(values) / len(values) for sample, values in by_sample.items()}
    left_out = {
        rollout.sample: {"outcome": str(rollout.outcome), "why": one_line(rollout.trajectory.error)}
        for rollout in rollouts
        if rollout.sample not in scores
    }
    usage = sum((rollout.trajectory.usage for rollout in rollouts if rollout.scored), Usage())
    target = session.cfg.target
    ran = [rollout.trajectory for rollout in rollouts if rollout.scored and skill.body.strip()]
    shares = activation_of(target.model, target.upstream, ran, gateway=target.gateway)
    if not scores:
        return Evaluation(None, 0.0, 1.0, 0, len(samples), usage, scores, left_out, shares)
    values = list(scores.values())
    low, high = score_interval(by_group(samples, scores))
    return Evaluation(sum(values) / len(values), low, high, len(values), len(samples), usage, scores, left_out, shares)


def transfer_config(cfg: Config, targets: Sequence[str | Mapping[str, Any]]) -> tuple[Config, tuple[TargetConfig, ...]]:
    """The settings of an evaluation on several targets, and the section of each. The optimizer is never called.

    Raises `UsageError` for a wrong name or option, a target that is named twice, and if there is none.
    """
    try:
        sections = cfg.targets(targets)
    except ValueError as error:
        raise UsageError(f"targets: {error}") from error
    if not sections:
        raise UsageError("targets: name at least one, e.g. openai/gpt-5.5,codex/gpt-5.5")
    return cfg.model_copy(update={"target": sections[0], "optimizer": OptimizerConfig(model="examples")}), sections


def settings_of(section: TargetConfig) -> str:
    """Identifies the options of a target that can change its answers."""
    return digest("settings", section.model_dump(mode="json", exclude={*ROLE_KEYS, "hedge", "lookahead"}))


async def run_transfer(
    session: Parts, sections: Sequence[TargetConfig], skill: Skill, split: SplitName | None = None, attempts: int = 1
) -> Transfers:
    """Score a skill on each further target of a run's parts, with and without it. `sections` are theirs.

    The targets' versions are journaled, and so is the result. Before a sample is rolled, raises `RunError` if a target
    changed since the same run measured it, `UsageError` for an empty skill and for one that a target cannot load, and
    `CallConfigError` for a wrong key. A target that fails later is a row with its reason.
    """
    if not skill.body.strip():
        raise UsageError("the skill is empty, so there is nothing to compare")
    for section in sections:
        require_loadable(session.cfg.model_copy(update={"target": section}), skill)
    samples = _samples(session, split)
    session.run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
    for other, section in zip(session.arena.also, sections, strict=True):
        pin_measured(session.run, other, settings_of(section))
    await try_targets(session)
    rows: list[Transfer] = []
    for other in session.arena.also:
        purpose = f"eval {split or 'all'}"
        metric, seed = session.arena.metric, session.cfg.seed
        rows.append(await transfer(other, skill, samples, metric, attempts=attempts, seed=seed, purpose=purpose))
        session.run.notify("transferred", target=other.name, reason=rows[-1].reason)
    usages = [arm.usage for row in rows for arm in (row.without, row.skilled) if arm is not None]
    found = Transfers(split or "all", len(samples), attempts, tuple(rows), sum(usages, Usage()))
    session.run.note(TRANSFERS, skill=skill.hash, seed=session.cfg.seed, **found.to_json())
    return found


@overload
async def aevaluate(
    skill: str | Path | Skill,
    env: EnvTable,
    target: str | Mapping[str, Any],
    *,
    targets: None = None,
    split: SplitName | None = None,
    attempts: int = 1,
    run: str | Path | None = None,
    seed: int = 42,
    **sections: Mapping[str, Any],
) -> Evaluation: ...


@overload
async def aevaluate(
    skill: str | Path | Skill,
    env: EnvTable,
    target: Mapping[str, Any] | None = None,
    *,
    targets: Sequence[str | Mapping[str, Any]],
    split: SplitName | None = None,
    attempts: int = 1,
    run: str | Path | None = None,
    seed: int = 42,
    **sections: Mapping[str, Any],
) -> Transfers: ...


async def aevaluate(
    skill: str | Path | Skill,
    env: EnvTable,
    target: str | Mapping[str, Any] | None = None,
    *,
    targets: Sequence[str | Mapping[str, Any]] | None = None,
    split: SplitName | None = None,
    attempts: int = 1,
    run: str | Path | None = None,
    seed: int = 42,
    **sections: Mapping[str, Any],
) -> Evaluation | Transfers:
    """Score a skill on a split, or on all samples if `split` is None. The skill "" scores the target without one.

    targets: score the skill on each of these targets instead, with and without it, and return `Transfers`. Each is a
             name, or a table with the options of [target]; a table `target` without a model has options for all.
    run:     a folder that keeps the rollouts for reuse.

    The other arguments are those of `train`, and so are the errors. With `targets`, a target that infrastructure or the
    budget stops is a row with its reason.
    """
    table, made = _environment(env)
    if target is None and targets is None:
        raise UsageError("name a target, or several: evaluate(skill, env, targets=[…])")
    if targets is not None and (isinstance(targets, str) or isinstance(target, str)):
        raise UsageError(
            "targets is a list of names or tables, and target then only a table of options for all of them"
        )
    tree: dict[str, Any] = {"seed": seed, "env": table, **_tables(sections)}
    tree |= {"target": _table(target or {}), "optimizer": {"model": "examples"}}
    cfg = make_config(tree, source="evaluate()")
    if not isinstance(skill, Skill) and str(skill) and not Path(skill).exists():
        raise UsageError(f'there is no skill at {skill}; "" scores the target without one')
    text = skill if isinstance(skill, Skill) else Skill.load(skill) if str(skill) else Skill("")
    others: tuple[TargetConfig, ...] = ()
    if targets is not None:
        cfg, others = transfer_config(cfg, targets)
    with scratch_run(run) as journal:
        session = build_parts(cfg, journal, Path(), env=made, skill=Skill(""), others=others)
        try:
            if others:
                return await run_transfer(session, others, text, split, attempts)
            return await run_evaluation(session, text, split, attempts)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(_resume_hint(journal.folder) if run else "interrupted") from None
        finally:
            await session.aclose()


evaluate = _run_to_end(aevaluate)


def _table(model: str | Mapping[str, Any]) -> dict[str, Any]:
    """The config's table of a model; a name alone becomes {"model": name}."""
    return {"model": model} if isinstance(model, str) else dict(model)


def _free(folder: Path) -> Path:
    """The first of FOLDER-2, FOLDER-3, … that does not exist."""
    for number in range(2, FORKS):
        if not (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
            return candidate
    raise RunError(f"there are {FORKS} forks of {folder}; choose another folder with `--run DIR`")
