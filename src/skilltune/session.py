"""From a config to the parts of a run, and from what happened to the files of its folder.

Everything that a loop needs stands ready here before anything is spent: a typo, a missing key or a split that is too
small is found while building, not in the middle of a paid run.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skilltune import __version__
from skilltune.budget import Budget
from skilltune.calls import Client
from skilltune.config import CallConfig, Config, JudgeConfig, ModelConfig, TargetConfig, room_for, to_toml
from skilltune.envs import Env, load_env
from skilltune.envs.formats import HF, located
from skilltune.envs.formats.huggingface import without_split
from skilltune.errors import JudgeError, Paused, RunError, UsageError
from skilltune.gate import Arena, Gate, Verdict, build_gate
from skilltune.gate.finish import Reselection
from skilltune.looks import earlier_looks
from skilltune.models import Model, Request, Usage
from skilltune.models.build import build_model
from skilltune.models.endpoint import STRAGGLER, Endpoint
from skilltune.names import Name, parse_name
from skilltune.optimizer import Optimizer, Step
from skilltune.optimizer.examples import ExamplesOptimizer, require_answers
from skilltune.optimizer.handoff import Handoff
from skilltune.optimizer.model import ModelOptimizer
from skilltune.optimizer.plugin import Material, load_optimizer, train_only
from skilltune.optimizer.recorded import Recording
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.optimizer.stage import ByModel
from skilltune.pins import (
    CONTENTS,
    content_of,
    dropped,
    keep_samples,
    kept_sample,
    pin,
    pin_test,
    pinned_contents,
    split_ids,
)
from skilltune.pins import drop as pin_drop
from skilltune.roll import NAMED, UNDER_WAY, Roller
from skilltune.rollout import Rollout, Trajectory
from skilltune.run import PROBE, Run
from skilltune.samples import Sample, Splits, split
from skilltune.scorers.judge import Reader
from skilltune.scorers.reading import nearest
from skilltune.skill import Skill
from skilltune.stats import standard_error, wilson
from skilltune.targets import Target
from skilltune.targets.chat import ChatTarget
from skilltune.targets.plugin import AgentClient, AgentTarget, load_target

LEFT, SURE = 0.1, 0.9  # training ends when the interval of the share of tasks that fail ends below
TRIED = 5  # samples on which an empty answer is scored before anything is paid
MODEL_SCHEMES = ("openai", "anthropic", "local")
TYPICAL = 0.4  # of the way from the least to the most calls of a training
CONTROL_ARMS = 4  # that are rolled on the test split beside the two skills of the certificate
PLANNED_SCHEMES = ("claude-code", "codex", "command", "fake")


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
            self.run.emit("stopping", reason=reason)
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
        that it shares its answers with read some of these samples (`skilltune.looks`). Each later look is held to a
        stricter bar, because two tries are two chances to be lucky."""
        if best.text == self.skill.text or not self.splits.test:
            return 1
        pin_test(self.run, self.roll, self.splits.test)
        contents = [self.roll.content(sample) for sample in self.splits.test]
        self.run.emit("certify", best=best.hash)
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
        self.run.emit("start", **level, select=len(self.splits.select))
        _unchanged(self.run, "env", "the scorer or the prompt", self.env.fingerprint)

    def record(self, step: Step, verdict: Verdict, limit: int, *, version: int) -> None:
        """One verdict: an event with all its figures and, if a version was accepted, the version's files."""
        if verdict.candidate is not None:
            self.run.keep(verdict.candidate.hash, verdict.candidate.text.encode("utf-8", "surrogatepass"))
        judged = "accepted" if verdict.accepted else "a candidate was rejected"
        outcome = judged if verdict.candidate is not None else verdict.reason
        self.outcomes.setdefault(step.index, outcome)  # a slow update follows under the number of its step
        data = verdict_to_json(verdict) | {"step": step.index, "epoch": step.epoch, "lr": limit, "version": version}
        if verdict.accepted:
            self._version(version, verdict.skill, data)
        self.run.emit("verdict", **data)

    def record_choice(self, chosen: Reselection, *, version: int) -> None:
        """The choice at the end: an event and, if it fell on a candidate that was rejected, that version's files."""
        data = chosen.to_json()
        if chosen.best.version is None:
            data["version"] = version
            self._version(version, chosen.best.skill, data)
        self.run.emit("reselection", **data)

    def _version(self, number: int, skill: Skill, verdict: Mapping[str, Any]) -> None:
        folder = f"versions/{number:04d}"
        self.run.keep(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        self.run.write(f"{folder}/SKILL.md", skill.text.encode("utf-8", "surrogatepass"))
        self.run.write(f"{folder}/verdict.json", json.dumps(verdict, indent=1, ensure_ascii=False) + "\n")


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """All that a verdict rests on, as JSON data."""
    return {
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "score": verdict.score,
        "score_sd": verdict.score_sd,
        "skill": verdict.skill.hash,
        "candidate": verdict.candidate.hash if verdict.candidate else None,
        "before": verdict.before,
        "after": verdict.after,
        "differences": dict(verdict.differences),
        "edits": [
            {
                **report.edit.to_json(),
                "status": report.status,
                "match": report.match,
                "reason": report.reason,
                "removed": report.removed,
                "inserted": report.inserted,
                "overlaps": list(report.overlaps),
            }
            for report in verdict.reports
        ],
        "rejected": [{"edit": entry.edit.to_json(), "reason": entry.reason} for entry in verdict.rejected],
        "numbers": dict(verdict.numbers),
    }


def build_env(cfg: Config, root: Path, env: Env | None = None) -> Env:
    """The environment of a config: the one given, `file.py:factory`, or a sample file. Raises `UsageError`."""
    made = _made_env(cfg, root, env)
    if "score_timeout_s" in cfg.env.model_fields_set:
        made.score_timeout_s = cfg.env.score_timeout_s
    return made


def _made_env(cfg: Config, root: Path, env: Env | None) -> Env:
    if env is not None:
        return env
    spec = cfg.env.samples
    if not spec:
        raise UsageError(
            'no samples: set env.samples to a file such as "data.jsonl" or to "env.py:factory", or put them into '
            "evals/evals.json beside the config"
        )
    file, colon, factory = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return load_env(f"{root / file}:{factory}")
    return Env(located(root, spec), cfg.env.score, prompt=cfg.env.prompt, fields=cfg.env.fields or None)


def made_in_python(cfg: Config, env: Env) -> str:
    """What the settings cannot say of an environment that was made in Python; "" where they say it all."""
    if cfg.env.samples:
        return ""
    factory = f", by {env.name}()" if env.name else ""
    return (
        f"The environment was made in Python{factory}: {len(env.samples)} samples, the scorer {env.scorer}, "
        f"fingerprint {env.fingerprint[:16]}. Samples, score and prompt under [env] do not describe it: the run cannot "
        "be made again from these settings alone, only by a call that is given the same Env."
    )


def load_skill(cfg: Config, root: Path, path: Path | None = None) -> Skill:
    """The skill of a config, or the one at `path`: of a folder, without the samples, the user's own code and the
    handoff's questions and answers, where the config puts them. Raises `UsageError`."""
    samples = cfg.env.samples
    named = [
        without_split(samples.removeprefix(HF)) if samples.startswith(HF) else re.sub(r"(?<=\.py):.*", "", samples)
    ]
    named += re.findall(r"python:([^:\"]+\.py):", json.dumps(cfg.env.score, ensure_ascii=False))
    for model in (cfg.target.model, cfg.optimizer.model):
        if model and (name := parse_name(model)).scheme == "handoff":
            named.append(str(Path(name.model).expanduser()))
    return Skill.load(path or root / cfg.skill, [root / name for name in named if name])


def describe_overlong(cfg: Config, skill: Skill) -> str:
    """The problem that the input has more tokens than train.max_skill_tokens allows, so that every edit that adds
    something would be refused; "" if it has not."""
    most = cfg.train.max_skill_tokens
    if most is None or skill.tokens <= most or not cfg.train.epochs:
        return ""
    return (
        f"the skill {cfg.skill} has about {skill.tokens:,} tokens, more than train.max_skill_tokens={most} allows, so "
        f"no edit could add anything: leave that key out, or set train.max_skill_tokens={room_for(skill.tokens)}"
    )


def build_session(
    cfg: Config,
    run: Run,
    root: Path,
    *,
    env: Env | None = None,
    skill: Skill | None = None,
    drop: Sequence[str] = (),
) -> Session:
    """Everything that a run needs, from its config; relative paths are relative to `root`. No file is written.

    The split is made once per run and kept; `drop` takes samples out of the run for good. Raises `UsageError` for what
    the user can fix; nothing is spent.
    """
    env = build_env(cfg, root, env)
    start = load_skill(cfg, root) if skill is None else skill
    spent = sum(run.usage.values(), Usage())
    known = {"target": run.paid("rollout"), "optimizer": run.paid("optimizer"), "judge": run.paid("judge")}
    budget = Budget(cfg.budget.limits, spent, lambda: run.elapsed_s, known=known)
    endpoints: dict[tuple[str, str | None], Endpoint] = {}  # a rate limit belongs to a host and a key
    models: dict[tuple[object, ...], Model] = {}  # the same model in two roles is loaded once

    optimizer_name = cfg.optimizer.model or cfg.target.model
    proposing = cfg.optimizer.model_copy(update={"model": optimizer_name})
    if not cfg.optimizer.model:
        proposing = proposing.model_copy(update={"same_as": proposing.same_as or cfg.target.same_as})
    sections: tuple[ModelConfig, ...] = (cfg.target, proposing)
    judging = judge_section(cfg, env, optimizer_name)
    if judging is not None:
        sections = (*sections, judging)

    def client(section: ModelConfig, role: str) -> Client:
        name = parse_name(section.model)
        key = endpoint_key(section, sections)
        sharing = [s for s in (*sections, section) if _same_place(s, section) and endpoint_key(s, sections) == key]
        workers, patience = max(s.workers for s in sharing), max(s.max_wait_s for s in sharing)
        hedge = STRAGGLER if cfg.target.hedge and role == "target" else None
        endpoint = endpoints.setdefault((name.endpoint, key), Endpoint(workers, hedge=hedge, max_wait_s=patience))
        which = (section.model, section.api, section.timeout_s, section.price, key, section.same_as)
        if which not in models and isinstance(section, TargetConfig) and name.plugin:
            models[which] = load_target(section)
        elif which not in models:
            models[which] = build_model(
                section.model,
                api=section.api,
                timeout_s=section.timeout_s,
                price=section.price,
                key_env=key,
                same_as=section.same_as,
            )
        kind = AgentClient if name.plugin else Client
        made = kind(models[which], endpoint, budget, run, role, section.price)
        budget.require_price(role, made.bound(Request(())))
        return made

    if not cfg.target.model:
        raise UsageError(
            "no target: set target.model in the config, or add it to the command, "
            "e.g. target.model=openai@http://127.0.0.1:8000/v1/qwen3"
        )
    _refuse_planned("target", cfg.target.model)
    judge = None
    if judging is not None:
        judge = Reader(client(judging, "judge"), run, judging.temperature, judging.max_tokens)
        env = env.bound(judge, judge.fingerprint, judging.same_as)
    splits = fixed_split(cfg, run, env, drop)
    train_by_id = {sample.id: sample for sample in splits.train}
    target_client = client(cfg.target, "target")
    target: Target = ChatTarget(target_client, cfg.target.temperature, cfg.target.max_tokens)
    if isinstance(target_client, AgentClient):
        target = AgentTarget(target_client)
    else:
        env.require_shown()
    under_way = max(UNDER_WAY, 2 * cfg.target.workers)
    lookahead = may_look_ahead(cfg, target_client, judge and judge.client)
    gone = frozenset(dropped(run))
    contents = pinned_contents(run, gone)
    roll = Roller(target, env, run, contents, lookahead=lookahead, under_way=under_way, dropped=gone)
    limit = cfg.train.skill_limit(start.tokens)
    arena = Arena(roll, splits.train, splits.select, cfg.gate, cfg.seed, limit)
    loop = cfg.train.model_copy(update={"max_skill_tokens": limit})
    resolved = cfg.model_copy(update={"train": loop})

    _refuse_planned("optimizer", optimizer_name)
    optimizer_client = handoff = None
    name = parse_name(optimizer_name)
    if name.scheme == "examples":
        optimizer: Optimizer = ExamplesOptimizer(env, train_by_id, cfg.gate.pool, cfg.seed)
    elif name.plugin:
        if name.inner is not None:
            optimizer_client = client(cfg.optimizer.model_copy(update={"model": name.model}), "optimizer")
        material = Material(resolved, train_only(env, train_by_id), train_by_id, run, optimizer_client, root)
        optimizer, package = load_optimizer(name, material)
        _unchanged(run, "optimizer", f"the package of the optimizer plug-in {name}", package)
    elif name.scheme == "handoff":
        handoff = Handoff(handoff_folder(cfg, root, name, start), run, budget, cfg.optimizer.wait)
        optimizer = ModelOptimizer(handoff, run, env, cfg.optimizer, loop, train_by_id)
    else:
        optimizer_client = client(sections[1], "optimizer")
        answers = ByModel(optimizer_client, run)
        optimizer = ModelOptimizer(answers, run, env, cfg.optimizer, loop, train_by_id)
    optimizer = Recording(optimizer, run)
    if not cfg.optimizer.wait and handoff is None:
        raise UsageError(
            "optimizer.wait is for handoff:DIR: a model is always waited for; leave it out, or where the config has it "
            "add optimizer.wait=true to the command"
        )
    session = Session(
        cfg,
        run,
        start,
        env,
        splits,
        budget,
        target_client,
        optimizer_client,
        roll,
        arena,
        build_gate(arena),
        optimizer,
        judge,
        handoff,
    )
    budget.rest = session.rest
    return session


def endpoint_key(section: ModelConfig, sections: Sequence[ModelConfig]) -> str | None:
    """The variable that `section` names for its key. A section that names none takes the one that the other sections
    name for the same endpoint, if they agree."""
    if section.key_env is not None:
        return section.key_env
    named = {other.key_env for other in sections if other.key_env and _same_place(other, section)}
    return named.pop() if len(named) == 1 else None


def _same_place(one: ModelConfig, other: ModelConfig) -> bool:
    return bool(one.model and other.model) and parse_name(one.model).endpoint == parse_name(other.model).endpoint


def judge_section(cfg: Config, env: Env, optimizer: str) -> ModelConfig | None:
    """The judge of the score as a model to call; None where the score has none. Raises UsageError where it is the
    optimizer's own model, unless that is wished: its edits would be graded by themselves."""
    if env.judge is None:
        if cfg.judge != JudgeConfig():
            raise UsageError(
                '[judge] says how a judge is called, but the score names none: score = {judge = "MODEL"} under [env] '
                "names one"
            )
        return None
    judge, proposer = parse_name(env.judge.model), parse_name(optimizer)
    proposer = proposer.inner or proposer
    same = (judge.endpoint, judge.model) == (proposer.endpoint, proposer.model)
    if same and not cfg.judge.same_as_optimizer:
        raise UsageError(
            f"the judge {judge} is the optimizer's own model, which would grade its own edits: name another judge in "
            "env.score, another optimizer.model, or allow it with judge.same_as_optimizer=true"
        )
    return ModelConfig(model=env.judge.model, **cfg.judge.model_dump(exclude={"same_as_optimizer"}))


def handoff_folder(cfg: Config, root: Path, name: Name, skill: Skill) -> Path:
    """The folder of `handoff:DIR`, relative to the config. Raises UsageError where it would become part of the skill,
    and for settings of a model, which nobody would look at."""
    for key, option in CallConfig.model_fields.items():
        if getattr(cfg.optimizer, key) != option.default:
            raise UsageError(f"optimizer.{key} is for models: nobody looks at it with {name}; leave it out")
    folder, home = (root / Path(name.model).expanduser()).resolve(), (root / cfg.skill).resolve()
    home = home.parent if home.is_file() else home
    if skill.folder and folder.is_relative_to(home):
        raise UsageError(
            f"{name}: {folder} lies inside the skill's own folder {home}, with which it would ship; name one outside, "
            "e.g. handoff:../answers (a relative folder counts from the config's)"
        )
    return folder


def fixed_split(cfg: Config, run: Run, env: Env, drop: Sequence[str] = ()) -> Splits:
    """The split of the samples, decided once per run. Samples that came later are left out. Samples that were lost or
    changed are refused, unless they were dropped: these are as they were. Raises `UsageError`."""

    def decide() -> dict[str, list[str]]:
        made = _parts(split(env.samples, cfg.env.split, cfg.seed))
        keep_samples(run, (*made["train"], *made["select"]))
        return {name: [sample.id for sample in part] for name, part in made.items()}

    fixed = run.fix("split", decide)
    with run.reading():
        names = {name: list[str](fixed[name]) for name in ("train", "select", "test")}
    every = [sample for part in names.values() for sample in part]
    if unknown := [sample for sample in drop if sample not in every]:
        raise UsageError(f"--drop: the run has no sample {unknown[0]!r}{nearest(unknown[0], every)}")
    for sample in drop:
        pin_drop(run, sample)
    gone = dropped(run)
    now = {sample.id: sample for sample in env.samples}
    was: dict[str, str] = run.fix(CONTENTS, lambda: {id: content_of(now[id]) for id in every if id in now})
    lost = [id for id in every if id not in gone and id not in now]
    changed = [id for id in every if id not in gone and id in now and was.get(id) != content_of(now[id])]
    if lost:
        raise UsageError(
            f"{len(lost)} samples of this run are no longer in the sample file (first: {lost[0]!r}): put them back, go "
            f"on without them by {_dropping(lost)}, or start a new run with `--fork`"
        )
    if changed:
        raise RunError(
            f"{len(changed)} samples changed since the run in {run.folder} was started (first: {changed[0]!r}): "
            f"restore the old content to resume it, go on without them by {_dropping(changed)}, or start a new run "
            "that reuses every rollout that still applies with `--fork`"
        )
    if run.events("start"):  # until then nothing was decided by a score, and a scorer that raised can be mended
        _unchanged(run, "env", "the scorer or the prompt", env.fingerprint)
    names = split_ids(run) or names
    if empty := [name for name in ("train", "select") if not set(names[name]) - gone.keys()]:
        raise UsageError(f"--drop: no sample is left in the {empty[0]} split")
    then = {id: kept_sample(run, id) or Sample(id=id, input="") for id in gone}
    return Splits(**{name: tuple(then[id] if id in then else now[id] for id in ids) for name, ids in names.items()})


def _dropping(samples: Sequence[str]) -> str:
    """The options that drop samples."""
    more = " …" if len(samples) > NAMED else ""
    return " ".join(f"--drop {shlex.quote(sample)}" for sample in samples[:NAMED]) + more


def _unchanged(run: Run, name: str, what: str, fingerprint: str) -> None:
    """Refuse to resume over another input than the one that the run's decisions were made on."""
    if run.fix(f"input {name}", lambda: fingerprint) != fingerprint:
        raise RunError(
            f"{what} changed since the run in {run.folder} was started: restore the old content to resume it, "
            "`--fork` to start a new run that reuses every rollout that still applies, or `--run DIR` for a fresh one."
        )


def _parts(splits: Splits) -> dict[str, tuple[Sample, ...]]:
    return {"train": splits.train, "select": splits.select, "test": splits.test}


def may_look_ahead(cfg: Config, target: Client, judge: Client | None) -> bool:
    """As configured, else where a wasted rollout costs nothing: endpoints that are free, the judge's too, not the
    embedded model (whose cores have better things to do), and no limit but dollars."""
    if cfg.target.lookahead is not None:
        return cfg.target.lookahead
    limits = cfg.budget
    free = all(client.bound(Request(())).usd == 0 for client in (target, judge) if client is not None)
    return free and parse_name(cfg.target.model).scheme != "local" and not (limits.calls or limits.tokens)


def estimate_calls(cfg: Config, splits: Splits) -> tuple[int, int]:
    """(fewest, most) target calls of a whole run: all solved in the first batch (or, without patience, no edit
    ever worth a race), and every candidate raced to the end."""
    steps = steps_per_epoch(cfg.train, len(splits.train)) * cfg.train.epochs
    batches = cfg.train.epochs * len(splits.train) * cfg.target.attempts
    select, test = len(splits.select), 2 * cfg.certify.attempts * len(splits.test)
    looks_back = cfg.slow.enabled and cfg.optimizer.model != "examples"
    slow = max(0, cfg.train.epochs - 1) if looks_back else 0
    first = min(len(splits.train), cfg.train.batch_size) if cfg.train.patience else len(splits.train)
    fewest = first * cfg.target.attempts * bool(cfg.train.epochs) + select
    twice, rules = select * cfg.gate.calibrate, steps * cfg.train.lr * cfg.train.compact
    fewest += twice
    if cfg.train.confirm and cfg.target.attempts == 1:
        batches *= 2  # each failure once more
    if cfg.gate.policy == "strict":
        most = batches + select * (1 + steps + slow) + slow * 2 * cfg.slow.samples
    else:
        race = cfg.gate.passes * select  # of the candidate; the incumbent was one before, or is the start skill
        most = batches + race + (steps + slow) * (cfg.gate.screen + race) + slow * 2 * cfg.slow.samples
    most += twice + rules * (cfg.train.minibatch_size + 2 * select)
    arms = most + CONTROL_ARMS * test // 2 if cfg.certify.controls else 0
    return fewest, most + test + arms


def _refuse_planned(role: str, text: str) -> None:
    scheme = parse_name(text).scheme
    if scheme in PLANNED_SCHEMES or (role == "target" and scheme in ("examples", "handoff")):
        forms = ("openai/", "openai@URL", "anthropic/", "anthropic@URL", "local/", "plugin:")
        known = ", ".join(f"{name}…" for name in forms)
        extra = ", examples or handoff:DIR" if role == "optimizer" else ""
        raise UsageError(f"{role}.model: {text!r} cannot be a {role} in this version; use {known}{extra}")
