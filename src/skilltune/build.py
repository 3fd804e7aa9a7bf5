"""Build the parts of a run from its config.

All parts are ready before anything is spent. So a typo, a missing key or a split that is too small is found here, and
not in the middle of a paid run.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skilltune import benchmarks
from skilltune.benchmarks.benchmark import Draw
from skilltune.config import (
    PRESETS,
    CallConfig,
    Config,
    EnvConfig,
    JudgeConfig,
    ModelConfig,
    OptimizerConfig,
    TargetConfig,
    room_for,
    to_toml,
)
from skilltune.envs import Env, load_env
from skilltune.envs.formats import HF, located
from skilltune.envs.formats.huggingface import without_split
from skilltune.envs.harbor import HarborEnv, load_harbor
from skilltune.envs.inspect import InspectEnv, load_inspect, time_limit
from skilltune.errors import RunError, UsageError
from skilltune.execute import HERE, Executor, Tls
from skilltune.finish.reserve import rest
from skilltune.gate import Arena, build_gate, metric_of
from skilltune.gate.also import fewest
from skilltune.journal.run import Run
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.metering.clients import Clients
from skilltune.metering.slots import STRAGGLER
from skilltune.models import Request
from skilltune.names import AGENT_SCHEMES, FORMS, Name, TaskName, parse_name, parse_tasks
from skilltune.optimizer import Optimizer
from skilltune.optimizer.agent import ByAgent
from skilltune.optimizer.examples import ExamplesOptimizer
from skilltune.optimizer.files import ANSWERS
from skilltune.optimizer.handoff import Handoff
from skilltune.optimizer.model import ModelOptimizer
from skilltune.optimizer.plugin import Material, load_optimizer, train_only
from skilltune.optimizer.recorded import Recording
from skilltune.optimizer.stage import ByModel
from skilltune.parts import Parts
from skilltune.rollouts.further import Further, kind_of, measured, pin_further, pinned_further
from skilltune.rollouts.inputs import (
    CONTENTS,
    content_of,
    dropped,
    keep_samples,
    kept_sample,
    pin,
    pinned_contents,
    require_unchanged,
    split_ids,
)
from skilltune.rollouts.inputs import drop as pin_drop
from skilltune.rollouts.roller import NAMED, UNDER_WAY, Roller
from skilltune.rollouts.scores import Scores
from skilltune.samples import Sample, Splits, split
from skilltune.scorers.judge import Reader
from skilltune.scorers.reading import nearest
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.targets.agents.target import AgentTarget, named_skill
from skilltune.targets.chat import ChatTarget
from skilltune.targets.harbor import make_harbor
from skilltune.targets.inspect import InspectTarget, make_inspect
from skilltune.targets.makers import MAKERS, RunTarget, make_agent_target
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage
from skilltune.version import __version__

PROPOSING_AGENTS = ("claude-code", "codex", "opencode")
WORKERS = "workers"  # event: the machines that run jobs, and at the end the account of the jobs
OPTIMIZERS = ("openai", "anthropic", "local", *PROPOSING_AGENTS, "plugin", "examples", "handoff")
"""Schemes, see `build_optimizer`."""


def build_env(cfg: Config, root: Path, env: Env | None = None) -> Env:
    """The environment of a config: `env` if given, else a benchmark, `file.py:factory` or a sample file. Raises
    `UsageError`."""
    made = _env_of(cfg, root, env)
    if cfg.env.limit is not None and not benchmarks.is_benchmark(cfg.env.samples):  # a benchmark has applied it
        made = copy.copy(made)
        made.samples = tuple(Draw(cfg.env.split, cfg.seed, cfg.env.limit)(made.samples))
    if "score_timeout_s" in cfg.env.model_fields_set:
        made.score_timeout_s = cfg.env.score_timeout_s
    if cfg.env.visible:
        made.show(cfg.env.visible)
    return made


def _env_of(cfg: Config, root: Path, env: Env | None) -> Env:
    if env is not None:
        return env
    spec = cfg.env.samples
    if (tasks := parse_tasks(spec)) is not None:
        return _framework_env(cfg, tasks, root)
    if benchmarks.is_benchmark(spec):
        return _benchmark(cfg, root)
    if cfg.env.data:
        raise UsageError(f"env.data is the place of a benchmark's data, and env.samples={spec!r} is none: leave it out")
    if not spec:
        raise UsageError(
            'no samples: set env.samples to a file such as "data.jsonl" or to "env.py:factory", or put them into '
            "evals/evals.json beside the config"
        )
    file, colon, factory = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return load_env(f"{root / file}:{factory}")
    return Env(located(root, spec), cfg.env.score, prompt=cfg.env.prompt, fields=cfg.env.fields or None)


def _framework_env(cfg: Config, tasks: TaskName, root: Path) -> Env:
    """The environment of another framework's tasks. Raises `UsageError` for an option that it would ignore."""
    given = cfg.env.model_fields_set
    if idle := [key for key in ("prompt", "fields", "visible", "score_timeout_s") if key in given]:
        raise UsageError(f"env.{idle[0]}: `{tasks}` makes its own prompts and scores; leave it out")
    score = cfg.env.score if "score" in given else None
    if score is not None and not isinstance(score, str):
        raise UsageError(f"env.score: `{tasks}` is scored by its own scorers; name one of them, or leave it out")
    if tasks.framework == "inspect":
        return load_inspect(tasks, root, score, timeout_s=time_limit(cfg.target))
    return load_harbor(tasks, root, score)


def _benchmark(cfg: Config, root: Path) -> Env:
    """The environment of `bench:NAME`, which has prompt and scorer of its own."""
    given = [
        key for key in ("score", "prompt", "fields") if getattr(cfg.env, key) != EnvConfig.model_fields[key].default
    ]
    if given:
        raise UsageError(
            f"{cfg.env.samples} has its own prompt and scorer: leave out {', '.join(f'env.{key}' for key in given)}"
        )
    name = benchmarks.parse(cfg.env.samples)[0].name
    place = benchmarks.place_of(name, cfg.env.data, root)
    return benchmarks.load(cfg.env.samples, place, seed=cfg.seed, limit=cfg.env.limit)


def split_ratio(cfg: Config, env: Env) -> tuple[float, float, float]:
    """The ratio of the splits: the config's, or the released sizes of a benchmark if the config has its preset's."""
    preset = PRESETS[cfg.preset].get("env", {}).get("split", EnvConfig.model_fields["split"].default)
    return env.split if env.split and cfg.env.split == tuple(preset) else cfg.env.split


def write_config(s: Parts) -> None:
    """Write the settings into the run folder as config.toml."""
    unsaid = made_in_python(s.cfg, s.env)
    s.run.write("config.toml", (f"# {unsaid}\n\n" if unsaid else "") + to_toml(s.cfg))


def pin_inputs(s: Parts) -> None:
    """Pin the run's inputs. Raises `RunError` if the start skill or skilltune's version changed since it started, and
    `UsageError` if the target cannot load the skill."""
    require_loadable(s.cfg, s.skill)
    require_unchanged(s.run, "version", "skilltune's own version", __version__)
    require_unchanged(s.run, "skill", f"the skill {s.cfg.skill}", s.skill.hash)
    pin(s.run, s.skill, s.roll, s.optimizer.looks_back, (*s.splits.train, *s.splits.select))
    pin_further(s.run, s.arena.also)


def made_in_python(cfg: Config, env: Env) -> str:
    """A remark that the settings do not describe an environment made in Python; "" if they describe it."""
    if cfg.env.samples:
        return ""
    factory = f", by {env.name}()" if env.name else ""
    return (
        f"The environment was made in Python{factory}: {len(env.samples)} samples, the scorer {env.scorer}, "
        f"fingerprint {env.fingerprint[:16]}. Samples, score and prompt under [env] do not describe it: the run cannot "
        "be made again from these settings alone, only by a call that is given the same Env."
    )


def load_skill(cfg: Config, root: Path, path: Path | None = None) -> Skill:
    """The skill of a config, or the one at `path`.

    A skill folder is loaded without the samples, the user's own code and the handoff folder that the config names.
    Raises `UsageError`.
    """
    samples = cfg.env.samples
    if (tasks := parse_tasks(samples)) is not None:
        samples = tasks.path
    named = [
        without_split(samples.removeprefix(HF)) if samples.startswith(HF) else re.sub(r"(?<=\.py):.*", "", samples)
    ]
    named += re.findall(r"python:([^:\"]+\.py):", json.dumps(cfg.env.score, ensure_ascii=False))
    for model in (cfg.target.model, cfg.optimizer.model):
        if model and (name := parse_name(model)).scheme == "handoff":
            named.append(str(Path(name.model).expanduser()))
    return Skill.load(path or root / cfg.skill, [root / name for name in named if name])


def describe_overlong(cfg: Config, skill: Skill) -> str:
    """A message if the input is longer than train.max_skill_tokens, because no edit could add anything; else ""."""
    most = cfg.train.max_skill_tokens
    if most is None or skill.tokens <= most or not cfg.train.epochs:
        return ""
    return (
        f"the skill {cfg.skill} has about {skill.tokens:,} tokens, more than train.max_skill_tokens={most} allows, so "
        f"no edit could add anything: leave that key out, or set train.max_skill_tokens={room_for(skill.tokens)}"
    )


def build_parts(
    cfg: Config,
    run: Run,
    root: Path,
    *,
    env: Env | None = None,
    skill: Skill | None = None,
    drop: Sequence[str] = (),
    others: Sequence[TargetConfig] | None = None,
) -> Parts:
    """Build the parts of a run. Relative paths start at `root`. No file is written and nothing is spent. `others` are
    its further targets, by default those of `gate.also`.

    The split is made once per run and journaled. `drop` removes samples from the run for good, by id. Raises
    `UsageError` for mistakes that the user can fix.
    """
    env = build_env(cfg, root, env)
    start = load_skill(cfg, root) if skill is None else skill
    proposing = proposing_section(cfg)
    judging = judge_section(cfg, env, proposing.model)
    budget = build_budget(cfg, run)
    hedge = STRAGGLER if cfg.target.hedge else None
    further_sections = cfg.also if others is None else tuple(others)
    sections = (cfg.target, *further_sections, proposing, *([judging] if judging is not None else []))
    executor = build_executor(cfg, run, root)
    env.executor = executor
    further = [section.model for section in further_sections]
    clients = Clients(sections, run, budget, hedge=hedge, executor=executor, further=further)
    refuse_target(cfg)
    judge = None
    if judging is not None:
        judge = Reader(clients.client(judging, "judge"), run, env.asked, judging.temperature, judging.max_tokens)
        env = env.bound(judge, judge.fingerprint, judging.same_as)
    splits = fixed_split(cfg, run, env, drop)
    target = build_target(cfg, clients, env, start, root)
    refuse_idle(cfg.target, target)
    scores = Scores.of(splits, metric_of(cfg.gate))
    ahead = may_look_ahead(cfg, target.guess(start, env.task(env.samples[0])), judge)
    roll = build_roller(cfg, run, env, target, scores, ahead)
    limit = cfg.train.skill_limit(start.tokens)
    also = tuple(build_further(cfg, section, clients, env, start, root, roll) for section in further_sections)
    arena = Arena(roll, splits.train, splits.select, cfg.gate, cfg.seed, limit, also=also, start=start)
    if others is None:
        require_enough(cfg, splits)
    arena.notify = run.notify
    arena.refuses = refuses_of((target, *(other.roll.target for other in also)))
    resolved = cfg.model_copy(update={"train": cfg.train.model_copy(update={"max_skill_tokens": limit})})
    proposer = build_optimizer(resolved, proposing, clients, env, start, splits.train, root)
    refuse_idle_workers(executor, env, (target, *(other.roll.target for other in also)), proposer)
    parts = Parts(
        cfg,
        run,
        start,
        env,
        splits,
        budget,
        target,
        proposer.client,
        roll,
        arena,
        build_gate(arena),
        Recording(proposer.optimizer, run),
        judge,
        proposer.handoff,
        proposer.agent,
        executor,
    )
    budget.rest = lambda: rest(parts)
    return parts


def refuses_of(targets: Sequence[Target]) -> Callable[[Skill], str]:
    """Returns the first reason why one of the targets cannot load a skill, or ""."""
    each = [target.refuses for target in targets if isinstance(target, MeteredTarget)]
    return lambda skill: next(filter(None, (refuses(skill) for refuses in each)), "")


def build_further(
    cfg: Config, section: TargetConfig, clients: Clients, env: Env, skill: Skill, root: Path, roll: Roller
) -> Further:
    """A further target with a roller of its own. It has its own account in budget and journal, because its rollouts
    cost something else than the target's. Raises `UsageError`, which names it."""
    name, kind = section.model, kind_of(section.model)
    own = cfg.model_copy(update={"target": section})
    try:
        refuse_target(own)
        target = build_target(own, clients, env, skill, root)
    except UsageError as error:
        raise UsageError(
            f"the further target {name}: {error}\n(It can have options of its own, as a table in gate.also or in the "
            f'`targets` of evaluate(): {{model = "{name}", key_env = …, price = …}}.)'
        ) from error
    scheme = parse_name(name).scheme
    proven = None if scheme not in AGENT_SCHEMES else bool(scheme not in ("acp", "command") or section.upstream)
    scores = replace(roll.scores, held={})
    abreast = max(2, section.workers)
    other = Roller(
        _with_account(target, kind),
        env,
        clients.run,
        roll.contents,
        scores,
        under_way=abreast,
        abreast=abreast,
        dropped=roll.dropped,
        kind=kind,
    )
    return Further(name, other, proven)


def _with_account(target: RunTarget, kind: str) -> RunTarget:
    """The target with rollouts of this kind in budget and journal."""
    if isinstance(target, MeteredTarget):
        own = target.target
        own = replace(own, account=kind) if isinstance(own, AgentTarget | InspectTarget) else own
        return replace(target, target=own, meter=replace(target.meter, kind=kind))
    return replace(target, client=replace(target.client, meter=replace(target.client.meter, kind=kind)))


def require_enough(cfg: Config, splits: Splits) -> None:
    """Raise `UsageError` if `select` is so small that with `gate.also` nothing could be accepted."""
    if not cfg.gate.also:
        return
    least, n = fewest(cfg.gate.also_margin), len(splits.select)
    if n < least:
        margin = next(m / 100 for m in range(1, 100) if fewest(m / 100) <= n or m == 99)
        raise UsageError(
            f"gate.also: {n} select samples cannot show that a loss is below gate.also_margin="
            f"{cfg.gate.also_margin:g}, so nothing could be accepted; {least} are needed. Add samples, raise the share "
            f"of select in env.split, or set gate.also_margin={margin:g}"
        )


def proposing_section(cfg: Config) -> OptimizerConfig:
    """The optimizer's section with a model: without one of its own, the optimizer is the target's model.

    For an agent, that is the model behind it. Raises UsageError if there is none.
    """
    if cfg.optimizer.model:
        return cfg.optimizer
    model = cfg.target.model
    if model and (name := parse_name(model)).scheme in AGENT_SCHEMES:
        model = name.inner.text if name.inner is not None else cfg.target.upstream
        if not model:
            raise UsageError(f"`{name}` names no model that could propose edits: set optimizer.model")
    same_as = cfg.optimizer.same_as or cfg.target.same_as
    return cfg.optimizer.model_copy(update={"model": model, "same_as": same_as})


def build_budget(cfg: Config, run: Run) -> Budget:
    """The budget of a run, with all that its earlier lives spent."""
    known = {"target": run.paid("rollout"), "optimizer": run.paid("optimizer"), "judge": run.paid("judge")}
    known |= {kind: run.paid(kind) for kind in map(kind_of, [*pinned_further(run), *measured(run)])}
    return Budget(cfg.budget.limits, sum(run.usage.values(), Usage()), lambda: run.elapsed_s, known=known)


def build_executor(cfg: Config, run: Run, root: Path) -> Executor:
    """The executor of a run. It connects to its machines when the first job comes. Raises UsageError if its extra is
    not installed, or its certificate cannot be used. Relative paths start at `root`."""
    on = cfg.workers
    if on.on == "local":
        return HERE
    from skilltune.execute.ray import OnRay, require_ray

    require_ray(on.on)
    tls = Tls(*(root / Path(file).expanduser() for file in (on.tls_cert, on.tls_key))) if on.tls_cert else None
    if tls is not None:
        tls.context()
    most = on.slots or cfg.target.workers
    return OnRay(on.on, on.cpus, on.memory, most, on.host, tls, lambda facts: run.record(WORKERS, **facts))


def refuse_target(cfg: Config) -> None:
    """Raise UsageError if the config names no target, or one of a kind that is unknown."""
    if not cfg.target.model:
        raise UsageError(
            "no target: set target.model in the config, or add it to the command, "
            "e.g. target.model=openai@http://127.0.0.1:8000/v1/qwen3"
        )
    if parse_name(cfg.target.model).scheme not in MAKERS:
        raise _unusable("target", cfg.target.model)


def build_target(cfg: Config, clients: Clients, env: Env, skill: Skill, root: Path) -> RunTarget:
    """The target within the budget. Raises UsageError if the budget is in dollars and the target's price is unknown,
    or if it cannot be shown the samples' files."""
    scheme = parse_name(cfg.target.model).scheme
    if skill.text.strip():
        require_loadable(cfg, skill)
    if isinstance(env, InspectEnv):
        target = make_inspect(cfg.target, env, clients)
    elif isinstance(env, HarborEnv):
        target = make_harbor(cfg.target, env, clients)
    else:
        target = MAKERS[scheme](cfg.target, clients, root, env)
    clients.require_price(cfg.target, "target", target.guess(skill, env.task(env.samples[0])))
    if isinstance(target, ChatTarget):
        env.require_shown()
    return target


def refuse_idle(cfg: TargetConfig, target: RunTarget) -> None:
    """Raise UsageError if the target has no tools, and an option is set that is about them."""
    for key in ("max_turns", "tool_calls") if isinstance(target, ChatTarget) else ():
        if getattr(cfg, key) is not None:
            raise UsageError(
                f"target.{key} is an option of an agent, or of a chat model with tools, and neither target.tools nor "
                "the environment gives it any: leave it out, or name target.tools"
            )


def refuse_idle_workers(executor: Executor, env: Env, targets: Sequence[Target], proposer: Proposer) -> None:
    """Raise UsageError if the config names machines for jobs, and the run has no such job."""
    agents = [
        target for target in targets if isinstance(target, MeteredTarget) and isinstance(target.target, AgentTarget)
    ]
    if executor is not HERE and not (agents or proposer.agent or env.may_send_jobs):
        raise UsageError(
            f"workers.on={executor.name}: nothing of this run could run there. Workers run agents and the scorer "
            "tests, and this run has neither: leave out [workers], or set workers.on=local"
        )


def require_loadable(cfg: Config, skill: Skill) -> None:
    """Raise UsageError if the target is an agent that could not load the skill."""
    if (agent := parse_name(cfg.target.model).scheme) in AGENT_SCHEMES:
        named_skill(skill, cfg.target.activation or "forced", agent)


def build_roller(cfg: Config, run: Run, env: Env, target: Target, scores: Scores, lookahead: bool) -> Roller:
    """The roller of a run, with the samples that the user took out of it."""
    gone = frozenset(dropped(run))
    workers = cfg.target.workers
    return Roller(
        target,
        env,
        run,
        pinned_contents(run, gone),
        scores,
        lookahead=lookahead,
        under_way=max(UNDER_WAY, 2 * workers),
        abreast=max(2, workers),
        dropped=gone,
    )


@dataclass(frozen=True, slots=True)
class Proposer:
    """An optimizer, and what it asks: a model, an agent and its model, a person through a folder, or nobody."""

    optimizer: Optimizer
    client: Client | None = None
    handoff: Handoff | None = None
    agent: ByAgent | None = None


def build_optimizer(
    cfg: Config,
    section: OptimizerConfig,
    clients: Clients,
    env: Env,
    skill: Skill,
    train: Sequence[Sample],
    root: Path,
) -> Proposer:
    """The optimizer that `section.model` names. `cfg` holds the limit of the skill's length; `train` are all samples
    that the optimizer may know."""
    name, run, samples = parse_name(section.model), clients.run, {sample.id: sample for sample in train}
    if name.scheme not in OPTIMIZERS:
        raise _unusable("optimizer", section.model)
    if name.scheme == "handoff":
        handoff = Handoff(handoff_folder(cfg, root, name, skill), run, clients.budget, cfg.optimizer.wait)
        return Proposer(ModelOptimizer(handoff, run, env, _edits_only(cfg), cfg.train, samples), handoff=handoff)
    if name.scheme == "examples":
        made = Proposer(ExamplesOptimizer(env, samples, cfg.gate.pool, cfg.seed))
    elif name.scheme in PROPOSING_AGENTS:
        made = _proposing_agent(cfg, section, name, clients, env, samples, root)
    elif name.plugin:
        made = _plugin_optimizer(cfg, name, clients, env, samples, root)
    else:
        client = clients.client(section, "optimizer")
        made = Proposer(ModelOptimizer(ByModel(client, run), run, env, cfg.optimizer, cfg.train, samples), client)
    if not cfg.optimizer.wait:
        raise UsageError(
            "optimizer.wait=false needs optimizer.model=handoff:DIR; a run always waits for a model. Leave it out; if "
            "the config sets it, add optimizer.wait=true to the command"
        )
    return made


def _edits_only(cfg: Config) -> OptimizerConfig:
    """The optimizer's section for who reads files: the form of rules is a short text for a small model."""
    return cfg.optimizer.model_copy(update={"form": "edits"})


def _proposing_agent(
    cfg: Config,
    section: OptimizerConfig,
    name: Name,
    clients: Clients,
    env: Env,
    samples: Mapping[str, Sample],
    root: Path,
) -> Proposer:
    """An agent that answers the questions. The client of its model serves probes and estimates."""
    assert name.inner is not None
    client = clients.client(section.model_copy(update={"model": name.inner.text}), "optimizer")
    worker = make_agent_target(section.as_agent(), clients, root, env, role="optimizer", writable=(ANSWERS,))
    agent = ByAgent(worker, clients.run)
    proposing = ModelOptimizer(agent, clients.run, env, _edits_only(cfg), cfg.train, samples)
    return Proposer(proposing, client, agent=agent)


def _plugin_optimizer(
    cfg: Config, name: Name, clients: Clients, env: Env, samples: Mapping[str, Sample], root: Path
) -> Proposer:
    inner = None
    if name.inner is not None:
        inner = clients.client(cfg.optimizer.model_copy(update={"model": name.model}), "optimizer")
    material = Material(cfg, train_only(env, samples), samples, clients.run, inner, root)
    optimizer, package = load_optimizer(name, material)
    require_unchanged(clients.run, "optimizer", f"the package of the optimizer plug-in {name}", package)
    return Proposer(optimizer, inner)


def judge_section(cfg: Config, env: Env, optimizer: str) -> ModelConfig | None:
    """The judge of the score as a model to call; None if the score needs no judge.

    Raises UsageError if the judge is also the optimizer's model, because it would grade its own edits;
    `judge.same_as_optimizer` allows that.
    """
    if env.judge is None:
        if cfg.judge != JudgeConfig():
            raise UsageError(
                'the config has a section [judge], but the score names no judge: set score = {judge = "MODEL"} under '
                "[env], or remove [judge]"
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
    """The folder of `handoff:DIR`; a relative DIR starts at `root`.

    Raises UsageError if it lies inside the skill's folder, or if the config sets options that only a model uses.
    """
    for key, option in CallConfig.model_fields.items():
        if getattr(cfg.optimizer, key) != option.default:
            raise UsageError(f"optimizer.{key} is an option of models and has no effect with {name}; leave it out")
    folder, home = (root / Path(name.model).expanduser()).resolve(), (root / cfg.skill).resolve()
    home = home.parent if home.is_file() else home
    if skill.folder and folder.is_relative_to(home):
        raise UsageError(
            f"{name}: {folder} lies inside the skill's own folder {home} and would ship with it; name one outside, "
            "e.g. handoff:../answers (a relative folder starts at the config's folder)"
        )
    return folder


def fixed_split(cfg: Config, run: Run, env: Env, drop: Sequence[str] = ()) -> Splits:
    """The split of the samples, decided once per run.

    Samples added later are left out. Dropped samples keep their old content. Raises `UsageError` if other samples are
    missing, and `RunError` if they changed.
    """

    def decide() -> dict[str, list[str]]:
        made = _parts(split(env.samples, split_ratio(cfg, env), cfg.seed))
        keep_samples(run, (*made["train"], *made["select"]))
        return {name: [sample.id for sample in part] for name, part in made.items()}

    fixed = run.decide("split", decide)
    with run.reading():
        names = {name: list[str](fixed[name]) for name in ("train", "select", "test")}
    every = [sample for part in names.values() for sample in part]
    if unknown := [sample for sample in drop if sample not in every]:
        raise UsageError(f"--drop: the run has no sample {unknown[0]!r}{nearest(unknown[0], every)}")
    for sample in drop:
        pin_drop(run, sample)
    gone = dropped(run)
    now = {sample.id: sample for sample in env.samples}
    was: dict[str, str] = run.decide(CONTENTS, lambda: {id: content_of(now[id]) for id in every if id in now})
    lost = [id for id in every if id not in gone and id not in now]
    changed = [id for id in every if id not in gone and id in now and was.get(id) != content_of(now[id])]
    if lost:
        raise UsageError(
            f"{len(lost)} samples of this run are no longer in the sample file (first: {lost[0]!r}): put them back, go "
            f"on without them by {_drop_options(lost)}, or start a new run with `--fork`"
        )
    if changed:
        raise RunError(
            f"{len(changed)} samples changed since the run in {run.folder} was started (first: {changed[0]!r}): "
            f"restore the old content to resume it, go on without them by {_drop_options(changed)}, or start a new run "
            "that reuses every rollout that still applies with `--fork`"
        )
    if run.events("start"):  # before that event no score decided anything, so a broken scorer may still be fixed
        require_unchanged(run, "env", "the scorer or the prompt", env.fingerprint)
    names = split_ids(run) or names
    if empty := [name for name in ("train", "select") if not set(names[name]) - gone.keys()]:
        raise UsageError(f"--drop: no sample is left in the {empty[0]} split")
    then = {id: kept_sample(run, id) or Sample(id=id, input="") for id in gone}
    return Splits(**{name: tuple(then[id] if id in then else now[id] for id in ids) for name, ids in names.items()})


def _drop_options(samples: Sequence[str]) -> str:
    """The command-line options that drop the samples."""
    more = " …" if len(samples) > NAMED else ""
    return " ".join(f"--drop {shlex.quote(sample)}" for sample in samples[:NAMED]) + more


def _parts(splits: Splits) -> dict[str, tuple[Sample, ...]]:
    return {"train": splits.train, "select": splits.select, "test": splits.test}


def may_look_ahead(cfg: Config, guess: Usage, judge: Reader | None) -> bool:
    """True if rollouts may be made before they are needed. `guess` is the cost of one.

    Without a setting, that is the case if a wasted rollout costs nothing: target and judge are free, the budget limits
    neither calls nor tokens, and the target is neither the embedded model nor an agent, which would need the cores for
    other calls.
    """
    if cfg.target.lookahead is not None:
        return cfg.target.lookahead
    limits = cfg.budget
    free = guess.usd == 0 and (judge is None or judge.client.bound(Request(())).usd == 0)
    scheme = parse_name(cfg.target.model).scheme
    return free and scheme not in ("local", *AGENT_SCHEMES) and not (limits.calls or limits.tokens)


def _unusable(role: str, model: str) -> UsageError:
    """The error for a name that cannot play a role."""
    schemes, article = (MAKERS, "a") if role == "target" else (OPTIMIZERS, "an")
    known = ", ".join(f"{form}…" for form in FORMS if re.split("[/@:]", form)[0] in schemes)
    return UsageError(f"{role}.model: {model!r} cannot be {article} {role} in this version; use {known}")


def default_folder(cfg: Config, root: Path) -> Path:
    """The default run folder: runs/NAME beside the config; NAME is the name of the skill's folder or file.

    If `skill` names a folder and the config lies in that folder, runs/NAME is in the current folder, or beside the
    skill if the current folder is inside it, because a run folder must not become part of the skill. If `skill` names a
    SKILL.md, only that file is the skill, so its folder may hold the run.
    """
    path = (root / cfg.skill).resolve()
    if path.name.upper() == "SKILL.MD":
        return root / "runs" / path.parent.name
    if path.is_dir() and inside_skill(root, path):
        here = Path.cwd()
        return (path.parent if inside_skill(here, path) else here) / "runs" / path.name
    return root / "runs" / (path.stem or "skill")


def inside_skill(folder: Path, skill: Path) -> bool:
    """True if the folder lies inside the skill's own folder; its files would become part of the skill."""
    return skill.is_dir() and folder.resolve().is_relative_to(skill.resolve())
