"""From a config to the parts of a run, and from what happened to the files of its folder.

Everything that a loop needs stands ready here before anything is spent: a typo, a missing key or a split that is too
small is found while building, not in the middle of a paid run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skilltune import __version__
from skilltune.budget import Budget
from skilltune.calls import Client
from skilltune.config import Config, ModelConfig, to_toml
from skilltune.envs import Env, load_env
from skilltune.errors import JudgeError, RunError, Stopped, UsageError
from skilltune.gate import Arena, Gate, Verdict, build_gate
from skilltune.gate.stats import standard_error
from skilltune.models import Model, Request, Usage
from skilltune.models.build import build_model
from skilltune.models.retry import Endpoint
from skilltune.names import parse_name
from skilltune.optimizer import Optimizer, Step
from skilltune.optimizer.examples import ExamplesOptimizer
from skilltune.optimizer.model import ModelOptimizer
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.roll import Roller
from skilltune.rollout import Rollout, Trajectory
from skilltune.run import Run, digest
from skilltune.samples import Sample, Splits, split
from skilltune.skill import Skill
from skilltune.targets.chat import ChatTarget

MODEL_SCHEMES = ("openai", "anthropic", "local")
PLANNED_SCHEMES = ("claude-code", "codex", "command", "handoff", "fake")


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

    async def aclose(self) -> None:
        for client in filter(None, (self.target, self.optimizer_client)):
            await client.aclose()

    def should_stop(self, steps_without_accept: int, score: float | None) -> bool:
        """Patience or target score; the reason goes into the events. Raises `Stopped` for a file named `stop` in the
        run folder: that is the user's wish for a pause."""
        cfg = self.cfg.train
        if (self.run.folder / "stop").exists():
            raise Stopped(f"{self.run.folder / 'stop'} exists; delete it and run the same command to go on")
        reason = ""
        if cfg.patience and steps_without_accept >= cfg.patience:
            reason = f"no accept in {steps_without_accept} steps"
        elif cfg.target_score is not None and score is not None and score >= cfg.target_score:
            reason = f"the score on select reached {cfg.target_score:g}"
        if reason:
            self.run.emit("stopping", reason=reason)
        return bool(reason)

    def pin_inputs(self) -> None:
        """Refuse to resume with another start skill or skilltune than the run's decisions were made with."""
        _unchanged(self.run, "version", "skilltune's own version", __version__)
        _unchanged(self.run, "skill", f"the skill {self.cfg.skill}", self.skill.hash)

    async def try_scorer(self) -> None:
        """Score one expected answer, so that a scorer that cannot work is found before anything is paid."""
        sample = self.splits.select[0]
        rollout = Rollout(sample.id, self.skill.hash, 0, Trajectory(self.env.expected(sample)), None)
        try:
            await self.env.score(sample, rollout)
        except JudgeError as error:
            raise UsageError(f"{error}\nNothing was spent: mend the scorer and run the same command again.") from error

    def look_at_test(self, best: Skill) -> int:
        """The number of this look at the test split: 1, unless a run that was stopped and went on certified another
        version before. Each look has its share of the error, so that stopping and going on cannot shop for luck."""
        if best.text != self.skill.text and self.splits.test:
            self.run.emit("certify", best=best.hash)
        seen = [data["best"] for _, _, data in self.run.events("certify")]
        return seen.index(best.hash) + 1 if best.hash in seen else 1

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

    def record(self, step: Step, verdict: Verdict, limit: int, *, version: int) -> None:
        """One verdict: an event with all its figures and, if a version was accepted, the version's files."""
        if verdict.candidate is not None:
            self.run.keep(verdict.candidate.hash, verdict.candidate.text.encode("utf-8", "surrogatepass"))
        data = verdict_to_json(verdict) | {"step": step.index, "epoch": step.epoch, "lr": limit, "version": version}
        if verdict.accepted:
            self._version(version, verdict.skill, data)
        self.run.emit("verdict", **data)

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
    if env is not None:
        return env
    spec = cfg.env.samples
    if not spec:
        raise UsageError('no samples: set env.samples to a file such as "data.jsonl", or to "env.py:factory"')
    file, colon, factory = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return load_env(f"{root / file}:{factory}")
    return Env(root / spec, cfg.env.score, prompt=cfg.env.prompt, fields=cfg.env.fields or None)


def build_session(cfg: Config, run: Run, root: Path, *, env: Env | None = None, skill: Skill | None = None) -> Session:
    """Everything that a run needs, from its config; relative paths are relative to `root`.

    The split is made once per run and kept. Raises `UsageError` for what the user can fix; nothing is spent.
    """
    env = build_env(cfg, root, env)
    start = Skill.load(root / cfg.skill) if skill is None else skill
    splits = fixed_split(cfg, run, env)
    train_by_id = {sample.id: sample for sample in splits.train}
    spent = sum(run.usage.values(), Usage())
    budget = Budget(cfg.budget.limits, spent)
    endpoints: dict[str, Endpoint] = {}
    models: dict[tuple[object, ...], Model] = {}  # the same model in two roles is loaded once

    optimizer_name = cfg.optimizer.model or cfg.target.model
    sections = (cfg.target, cfg.optimizer.model_copy(update={"model": optimizer_name}))

    def client(section: ModelConfig, role: str) -> Client:
        name = parse_name(section.model)
        workers = max(s.workers for s in sections if s.model and parse_name(s.model).endpoint == name.endpoint)
        endpoint = endpoints.setdefault(name.endpoint, Endpoint(workers))
        which = (section.model, section.api, section.timeout_s, section.price)
        if which not in models:
            models[which] = build_model(
                section.model, api=section.api, timeout_s=section.timeout_s, price=section.price
            )
        made = Client(models[which], endpoint, budget, run, role, section.price)
        budget.require_price(role, made.bound(Request(())))
        return made

    if not cfg.target.model:
        raise UsageError('no target: set target.model, e.g. "openai@http://127.0.0.1:8000/v1/qwen3"')
    _refuse_planned("target", cfg.target.model)
    target_client = client(cfg.target, "target")
    target = ChatTarget(target_client, cfg.target.temperature, cfg.target.max_tokens)
    roll = Roller(target, env, run)
    arena = Arena(roll, splits.train, splits.select, cfg.gate, cfg.seed, cfg.train.max_skill_tokens)

    _refuse_planned("optimizer", optimizer_name)
    optimizer_client = None
    if parse_name(optimizer_name).scheme == "examples":
        optimizer: Optimizer = ExamplesOptimizer(env, train_by_id, cfg.gate.pool, cfg.seed)
    else:
        optimizer_client = client(sections[1], "optimizer")
        optimizer = ModelOptimizer(optimizer_client, run, env, sections[1], cfg.train, train_by_id)
    run.write("config.toml", to_toml(cfg))
    return Session(
        cfg, run, start, env, splits, budget, target_client, optimizer_client, roll, arena, build_gate(arena), optimizer
    )


def fixed_split(cfg: Config, run: Run, env: Env) -> Splits:
    """The split of the samples, decided once per run; samples that came later are left out, lost ones refused."""
    made = split(env.samples, cfg.env.split, cfg.seed)
    names = run.fix("split", lambda: {name: [s.id for s in part] for name, part in _parts(made).items()})
    by_id = {sample.id: sample for sample in env.samples}
    lost = [sample for part in names.values() for sample in part if sample not in by_id]
    if lost:
        raise UsageError(
            f"{len(lost)} samples of this run are no longer in the sample file (first: {lost[0]!r}); "
            "put them back, or start a new run with `--fork`"
        )
    used = [by_id[sample].model_dump(mode="json") for part in names.values() for sample in part]
    _unchanged(run, "samples", "the samples", digest(used))
    _unchanged(run, "env", "the scorer or the prompt", env.fingerprint)
    return Splits(**{name: tuple(by_id[sample] for sample in part) for name, part in names.items()})


def _unchanged(run: Run, name: str, what: str, fingerprint: str) -> None:
    """Refuse to resume over another input than the one that the run's decisions were made on."""
    if run.fix(f"input {name}", lambda: fingerprint) != fingerprint:
        raise RunError(
            f"{what} changed since the run in {run.folder} was started: restore the old content to resume it, "
            "`--fork` to start a new run that reuses every rollout that still applies, or `--run DIR` for a fresh one."
        )


def _parts(splits: Splits) -> dict[str, tuple[Sample, ...]]:
    return {"train": splits.train, "select": splits.select, "test": splits.test}


def estimate_calls(cfg: Config, splits: Splits) -> tuple[int, int]:
    """(fewest, most) target calls of a whole run: no edit ever worth a race, and every candidate raced to the end."""
    steps = steps_per_epoch(cfg.train, len(splits.train)) * cfg.train.epochs
    batches = cfg.train.epochs * len(splits.train) * cfg.target.attempts
    select, test = len(splits.select), 2 * cfg.certify.attempts * len(splits.test)
    looks_back = cfg.slow.enabled and cfg.optimizer.model != "examples"
    slow = max(0, cfg.train.epochs - 1) if looks_back else 0
    fewest = len(splits.train) * cfg.target.attempts * bool(cfg.train.epochs) + select
    if cfg.gate.policy == "strict":
        return fewest, batches + select * (1 + steps + slow) + slow * 2 * cfg.slow.samples + test
    per_judgement = cfg.gate.screen + (1 + cfg.gate.passes) * select  # both sides of a race, the incumbent once
    return fewest, batches + select + steps * per_judgement + slow * (2 * cfg.slow.samples + per_judgement) + test


def _refuse_planned(role: str, text: str) -> None:
    scheme = parse_name(text).scheme
    if scheme in PLANNED_SCHEMES or (role == "target" and scheme == "examples"):
        known = ", ".join(f"{name}…" for name in ("openai/", "openai@URL", "anthropic/", "anthropic@URL", "local/"))
        extra = " or examples" if role == "optimizer" else ""
        raise UsageError(f"{role}.model: {text!r} cannot be a {role} in this version; use {known}{extra}")
