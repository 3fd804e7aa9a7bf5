"""Check the input and estimate a run before the first paid call.

Problems are collected, not raised, so that one check names them all. A model is called only for `probe` and `labels`.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from skilltune import sandbox
from skilltune.authoring.review import unread
from skilltune.authoring.scaffold import DESCRIPTION
from skilltune.build import build_env, build_parts, describe_overlong, load_skill, split_ratio
from skilltune.config import Config
from skilltune.envs import Env
from skilltune.errors import CallConfigError, JudgeError, Stopped, UsageError
from skilltune.frontmatter import BadFrontmatter, read_block
from skilltune.gate.eprocess import reachable
from skilltune.journal.run import scratch_run
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.parts import Parts
from skilltune.preflight.agreement import Agreement, describe_cost, measure, read_labels
from skilltune.preflight.audit import audit
from skilltune.preflight.estimate import Estimate, estimate, remarks
from skilltune.preflight.preview import preview
from skilltune.preflight.probe import Probe, probe_roles
from skilltune.preflight.scorer import require_evidence
from skilltune.samples import Splits, split
from skilltune.sinks import find_sink
from skilltune.skill import Skill

CONTRADICTING = 0.2  # from this share of contradicting samples on, contradictions are a problem and not a note


@dataclass(slots=True)
class Check:
    """The findings. `problems` must be fixed, `notes` are worth knowing. Other fields are None if a problem prevented
    them."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skill: Skill | None = None
    samples: int = 0
    groups: int = 0
    splits: Splits | None = None
    estimate: Estimate | None = None
    probes: list[Probe] = field(default_factory=list)
    agreement: Agreement | None = None
    preview: list[tuple[str, str]] = field(default_factory=list)  # (label, text): prompt and score of one sample


async def check(
    cfg: Config,
    root: Path,
    *,
    probe: bool = False,
    labels: Path | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Check:
    """Check everything that a run with this config needs.

    `probe` makes one call to each model. `labels` is a file of answers with known verdicts, which the judge then
    reads; `announce` gets the expected cost first, and hears of the rollout of an agent before it begins. A scorer
    written by the user runs on the expected answers, and may make calls of its own.
    """
    found = Check()
    with _collecting(found):
        for sink in cfg.log.sinks:
            find_sink(sink)
    with _collecting(found):
        found.skill = _check_skill(cfg, root, found)
    env = None
    with _collecting(found):
        env = build_env(cfg, root)
        found.notes += env.notes()
        found.notes += [f"the scorer tests runs in {sandbox.describe(sandbox.probe(level))}" for level in env.sandboxes]
        _check_contradictions(env, found)
        await _check_samples(cfg, env, found)
    if found.skill is None or env is None or found.splits is None:
        return found
    if cfg.gate.policy == "eprocess":
        _check_eprocess(cfg, found.splits, found)
    with _collecting(found), scratch_run(None) as run:
        session = build_parts(cfg, run, root, env=env, skill=found.skill)
        found.notes += getattr(session.target, "facts", ())
        for other in session.arena.also:
            found.notes += [f"{other.name}: {fact}" for fact in getattr(other.roll.target, "facts", ())]
        found.preview = preview(session.env, session.skill, session.splits.train[0], cfg.target)
        try:
            found.estimate = estimate(session)
            found.notes += remarks(session, found.estimate)
            with _collecting(found):
                require_evidence(session)
            if probe:
                await _probe(session, announce, found)
            if labels is not None:
                await _measure_judge(session, labels, announce, found)
        finally:
            await session.aclose()
    return found


@contextmanager
def _collecting(found: Check) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        found.problems += str(error).splitlines()


def stated_name(skill: Skill) -> str:
    """The name in a skill's frontmatter; "" if it states none."""
    with suppress(BadFrontmatter):
        return str(read_block(skill.frontmatter).get("name") or "")
    return ""


def _check_skill(cfg: Config, root: Path, found: Check) -> Skill:
    skill = load_skill(cfg, root)
    if not (root / cfg.skill).exists():
        found.notes.append(f"{_absence(root / cfg.skill, cfg.skill)}: training starts from an empty one")
    else:
        if not skill.text.strip():
            found.notes.append(f"the skill {cfg.skill} is empty: training starts from nothing")
        found.problems += [f"skill {cfg.skill}: {problem}" for problem in skill.check()]
        found.notes += [f"skill {cfg.skill}: {note}" for note in skill.notes()]
    if too_long := describe_overlong(cfg, skill):
        found.problems.append(too_long)
    if DESCRIPTION in skill.frontmatter:
        found.notes.append(
            f"the description in {cfg.skill} is still the template's: say what the skill does and when to use it, "
            "because agents find a skill by its description"
        )
    return skill


def _absence(path: Path, named: str) -> str:
    """The fact that no skill is at `path`, with the signs that its name may be a typing error."""
    if not path.parent.is_dir():
        return f"the skill {named} does not exist yet, nor does the folder {path.parent} (a wrong path?)"
    if near := difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1, cutoff=0.8):
        return f'the skill {named} does not exist yet (did you mean "{near[0]}"?)'
    return f"the skill {named} does not exist yet"


async def _check_samples(cfg: Config, env: Env, found: Check) -> None:
    found.samples = len(env.samples)
    found.groups = len({sample.group for sample in env.samples if sample.group is not None})
    found.splits = split(env.samples, split_ratio(cfg, env), cfg.seed)
    await _check_stated_answers(env, found)
    if "\\n" in env.prompt:
        found.notes.append(
            r"env.prompt contains \n as two characters and no line break: in TOML use double quotes, "
            r"""in a command 'env.prompt="Input: {input}\nOutput:"'"""
        )
    invalid = [*unread(env.samples), *await env.validate()]
    found.problems += invalid
    if not invalid:  # else the audit would only repeat these problems
        tricks = await audit(env, found.splits)
        found.problems += tricks.problems
        found.notes += tricks.notes


def _check_eprocess(cfg: Config, splits: Splits, found: Check) -> None:
    """Report that `select` is too small for the e-process to accept any candidate, or any late one."""
    alone = [1 for sample in splits.select if sample.group is None]
    groups = Counter(sample.group for sample in splits.select if sample.group is not None)
    units = [*alone, *groups.values()]
    of = f"{len(splits.select)} select samples" + (f" in {len(units)} groups" if groups else "")
    last = reachable(units, cfg.gate.alpha, cfg.gate.passes)
    enough = next(n for n in count(1) if reachable([1] * n, cfg.gate.alpha, cfg.gate.passes))
    if not last:
        found.problems.append(
            f"gate.policy=eprocess cannot accept anything with {of}: even a candidate that wins all of them stays "
            f"below the bar. Give select at least {enough} independent samples (more samples, or a larger share in "
            f"env.split), raise gate.alpha ({cfg.gate.alpha:g}), or use gate.policy=race"
        )
    elif last < (steps := steps_per_epoch(cfg.train, len(splits.train)) * cfg.train.epochs):
        found.notes.append(
            f"gate.policy=eprocess with {of}: if the first {last} candidates fail, no later one can be accepted, but "
            f"the run has {steps} steps; more select samples allow more candidates"
        )


def _check_contradictions(env: Env, found: Check) -> None:
    """Report samples with the same question and different expected answers.

    A few are noise in the data: a note. Many are a problem, because the prompt then lacks something that the answer
    depends on.
    """
    asked: defaultdict[str, set[str]] = defaultdict(set)
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for sample in env.samples:
        if sample.files or not isinstance(sample.input, str):
            continue
        text = env.messages(sample)[0].text
        asked[text].add(json.dumps([sample.target, sample.checks], sort_keys=True, default=str))
        ids[text].append(sample.id)
    unlike = [ids[text] for text, wanted in asked.items() if len(wanted) > 1]
    if n := sum(map(len, unlike)):
        (found.problems if n >= CONTRADICTING * len(env.samples) else found.notes).append(
            f"{n} of {len(env.samples)} samples ask the same as another sample but expect another answer (such as "
            f"{', '.join(unlike[0][:3])}): does the prompt show everything that the answer depends on?"
        )


async def _check_stated_answers(env: Env, found: Check) -> None:
    """Note samples without an answer to try, and stated answers that fail a check which does not use them.
    `Env.validate` reports the other failing answers."""
    untried, failing = 0, []
    for sample in env.samples:
        if env.expected(sample) and not env.lines(sample):
            continue
        try:
            score = await env.tried(sample)
        except JudgeError as error:
            found.problems.append(str(error))
            continue
        untried += score is None
        if score is not None and not score.hard:
            failing.append(f'"{sample.id}": {score.why}')
    if untried:
        found.notes.append(
            f"{untried} of {found.samples} samples could not be tested: they state no answer, or only a judge could "
            "score it"
        )
    if failing:
        found.notes.append(
            f"the stated answers of {len(failing)} of {found.samples} samples fail their own checks (first: "
            f"{failing[0]}): fix the answers or the checks, unless the answers only describe a correct one"
        )


async def _probe(session: Parts, announce: Callable[[str], None], found: Check) -> None:
    found.probes += await probe_roles(session, announce)
    found.problems += [f"the {probe.role} does not answer: {probe.error}" for probe in found.probes if probe.error]
    found.notes += [f"{probe.role}: {what}" for probe in found.probes for what in probe.learned]


async def _measure_judge(session: Parts, path: Path, announce: Callable[[str], None], found: Check) -> None:
    if session.judge is None:
        raise UsageError('--judge needs a score with a judge: set score = {judge = "MODEL"} under [env]')
    labels = read_labels(path, session.env)
    announce(describe_cost(session.judge, labels))
    try:
        found.agreement = await measure(session.judge, labels)
    except (CallConfigError, Stopped) as error:
        found.problems.append(str(error))
