"""What can be known before the first paid call: is the input sound, what could a run show, what may it take.

Problems are collected rather than raised, so that one look names them all. Nothing here calls a model but `probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import ceil, floor, log10
from pathlib import Path

import yaml

from skilltune.agreement import Agreement, describe_cost, measure, read_labels
from skilltune.api import scratch_run
from skilltune.audit import audit
from skilltune.budget import Budget, Limits
from skilltune.calls import DEFAULT_ANSWER_TOKENS, Client
from skilltune.config import Config
from skilltune.envs import Env
from skilltune.envs.review import unread
from skilltune.errors import CallConfigError, JudgeError, Stopped, UsageError
from skilltune.models import Usage
from skilltune.models.prices import price
from skilltune.optimizer.model import SHOWN_SUCCESSES
from skilltune.probe import Probe, probe_roles
from skilltune.samples import Sample, Splits, split
from skilltune.scaffold import DESCRIPTION
from skilltune.scorers.judge import Reader
from skilltune.session import CONTROL_ARMS, TYPICAL, Session, build_env, build_session, estimate_calls, load_skill
from skilltune.sinks import find_sink
from skilltune.skill import Skill

MEASURED = 50  # samples whose prompts are built for the estimate; images are read for it
PROMPT_TOKENS = (100, 1500)  # least and most of an optimizer's instructions, notes and rejected edits
VERDICT_TOKENS = 20  # of a verdict with a short quote

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole run takes, each as (least, most): calls by role, tokens of both, dollars (None: price unknown).

    Least: no edit is ever worth a race. Most: every candidate is raced to the end with a skill as large as allowed
    and answers as long as allowed; real runs stay well below it. `after_calls` of the target are the certificate and
    the control arms, which the budget keeps back.
    """

    target_calls: Range
    optimizer_calls: Range
    tokens: Range
    usd: tuple[float, float] | None
    judge_calls: Range = (0, 0)
    after_calls: int = 0

    @property
    def typical_calls(self) -> int:
        """Of the target, by a rule of thumb: a training takes 20 to 60 % of the way to its most, as our benches and
        examples did, and a certificate follows."""
        return round(_typical(*self.target_calls, self.after_calls))


@dataclass(slots=True)
class Check:
    """What was found. `problems` must be mended, `notes` should be known; the rest is None where not reached."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skill: Skill | None = None
    samples: int = 0
    groups: int = 0
    splits: Splits | None = None
    estimate: Estimate | None = None
    probes: list[Probe] = field(default_factory=list)
    agreement: Agreement | None = None


async def check(
    cfg: Config,
    root: Path,
    *,
    probe: bool = False,
    labels: Path | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Check:
    """Look at everything that a run with this config needs. `probe` makes one tiny call to each model; with `labels`,
    answers with known verdicts, the judge reads them, at a price that is announced first.

    A scorer written by the user is run on the expected answers, and may itself call what it likes.
    """
    found = Check()
    with _collecting(found):
        for sink in cfg.log.sinks:
            find_sink(sink)
    with _collecting(found):
        found.skill = _look_at_skill(cfg, root, found)
    env = None
    with _collecting(found):
        env = build_env(cfg, root)
        await _look_at_samples(cfg, env, found)
    if found.skill is None or env is None or found.splits is None:
        return found
    with _collecting(found), scratch_run(None) as run:
        session = build_session(cfg, run, root, env=env, skill=found.skill)
        try:
            found.estimate = estimate(session)
            found.notes += remarks(session, found.estimate)
            with _collecting(found):
                session.require_evidence()
            if probe:
                await _probe(session, found)
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
    """The name in a skill's frontmatter; "" where it states none."""
    with suppress(yaml.YAMLError, ValueError):
        data = yaml.safe_load(skill.frontmatter.removeprefix("\ufeff").strip().strip("-"))
        return str(data.get("name") or "") if isinstance(data, dict) else ""
    return ""


def _look_at_skill(cfg: Config, root: Path, found: Check) -> Skill:
    skill = load_skill(cfg, root)
    if not (root / cfg.skill).exists():
        found.notes.append(f"the skill {cfg.skill} does not exist yet: training starts from an empty one")
    else:
        found.problems += [f"skill {cfg.skill}: {problem}" for problem in skill.check(cfg.train.max_skill_tokens)]
    if DESCRIPTION in skill.frontmatter:
        found.notes.append(
            f"the description in {cfg.skill} is still the template's: say what the skill does and when to use it, for "
            "that is what agents find it by"
        )
    return skill


async def _look_at_samples(cfg: Config, env: Env, found: Check) -> None:
    found.samples = len(env.samples)
    found.groups = len({sample.group for sample in env.samples if sample.group is not None})
    found.splits = split(env.samples, cfg.env.split, cfg.seed)
    await _try_stated_answers(env, found)
    if "\\n" in env.prompt:
        found.notes.append(
            r"env.prompt holds \n as two characters and no line break: TOML reads it as one between double quotes, "
            r"""in a command 'env.prompt="Input: {input}\nOutput:"'"""
        )
    invalid = [*unread(env.samples), *await env.validate()]
    found.problems += invalid
    if not invalid:  # else that is what an audit would find
        tricks = await audit(env, found.splits)
        found.problems += tricks.problems
        found.notes += tricks.notes


async def _try_stated_answers(env: Env, found: Check) -> None:
    """Notes on answers that nothing could be tried with, and on those that fail a check which does not look at them
    (`Env.validate` reports the others)."""
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
            f"{untried} of {found.samples} samples cannot be tried: they state no answer, or only a judge could read it"
        )
    if failing:
        found.notes.append(
            f"the stated answers of {len(failing)} of {found.samples} samples fail their own checks (first: "
            f"{failing[0]}): mend one or the other, unless they describe an answer rather than give it"
        )


async def _probe(session: Session, found: Check) -> None:
    found.probes += await probe_roles(session)
    found.problems += [f"the {probe.role} does not answer: {probe.error}" for probe in found.probes if probe.error]


async def _measure_judge(session: Session, path: Path, announce: Callable[[str], None], found: Check) -> None:
    if session.judge is None:
        raise UsageError('--judge measures a judge, but the score names none: score = {judge = "MODEL"} names one')
    labels = read_labels(path, session.env)
    announce(describe_cost(session.judge, labels))
    try:
        found.agreement = await measure(session.judge, labels)
    except (CallConfigError, Stopped) as error:
        found.problems.append(str(error))


def estimate(session: Session) -> Estimate:
    """Calls, tokens and dollars of a whole run, judged from the samples; see `Estimate` for what the ends mean."""
    cfg, target, optimizer = session.cfg, session.target, session.optimizer_client
    samples = _spread([*session.splits.train, *session.splits.select, *session.splits.test], MEASURED)
    asked = [session.roll.target.guess(session.skill, sample, session.env).input_tokens for sample in samples]
    read = ceil(sum(asked) / len(samples))
    written = ceil(sum(len(session.env.expected(s)) for s in samples) / 4 / len(samples)) or 1
    longest = cfg.target.max_tokens or DEFAULT_ANSWER_TOKENS
    growth = max(0, cfg.train.max_skill_tokens - session.skill.tokens)

    least, most = estimate_calls(cfg, session.splits)
    ends = [(target, Usage(least, least * read, least * written))]
    ends += [(target, Usage(most, most * (read + growth), most * longest))]
    thinking = (0, 0)
    if optimizer is not None or session.handoff is not None:
        thinking = few, many = _optimizer_calls(cfg, len(session.splits.train))
    if optimizer is not None:
        few, many = thinking
        reading = few * (PROMPT_TOKENS[0] + session.skill.tokens)
        if few:  # every trajectory is read at least once
            reading += (
                len(session.splits.train) * cfg.train.epochs * cfg.target.attempts * (read - session.skill.tokens)
            )
        answer = cfg.optimizer.max_tokens or DEFAULT_ANSWER_TOKENS
        evidence = max(
            (cfg.train.minibatch_size + SHOWN_SUCCESSES) * min(read + longest, cfg.optimizer.trajectory_chars // 4),
            cfg.train.merge_batch_size * answer if cfg.train.merge == "rank" else 0,
        )
        asking = many * (PROMPT_TOKENS[1] + cfg.train.max_skill_tokens + evidence)
        ends.append((optimizer, Usage(few, reading, few)))
        ends.append((optimizer, Usage(many, asking, many * answer)))
    judging = (0, 0)
    if session.judge is not None:
        judged = [sample for sample in samples if session.env.lines(sample)]
        # Least: an answer is read once. Most: every answer is another one, and each verdict is asked for again once.
        judging = ceil(least * len(judged) / len(samples)), ceil(2 * most * len(judged) / len(samples))
        ends += [(session.judge.client, usage) for usage in _judging(session, session.judge, judged, judging, longest)]
    low, high = ends[::2], ends[1::2]
    after = (2 + CONTROL_ARMS * cfg.certify.controls) * cfg.certify.attempts * len(session.splits.test)
    dollars = (_dollars(low), _dollars(high))
    return Estimate(
        target_calls=(least, most),
        optimizer_calls=thinking,
        tokens=(sum(usage.tokens for _, usage in low), sum(usage.tokens for _, usage in high)),
        usd=None if dollars[0] is None or dollars[1] is None else (dollars[0], dollars[1]),
        judge_calls=judging,
        after_calls=after + least * cfg.certify.controls,  # the dearest arm takes as much as the training
    )


def remarks(session: Session, expected: Estimate) -> list[str]:
    """Where a limit of the budget is less than what a run takes, certificate and control arms included: one sentence
    for each, with the number to raise it to. `minutes` cannot be estimated."""
    cfg = session.cfg
    planned = replace(session, budget=Budget(Limits(), Usage()))
    planned.hold_back()
    kept = planned.budget.held
    ranges = (expected.target_calls, expected.optimizer_calls, expected.judge_calls)
    few, many = (sum(ends) for ends in zip(*ranges, strict=True))
    following = kept.calls + few * cfg.certify.controls
    stretch = (_typical(few, many, following) - following) / few  # a typical training against the shortest
    what = "the certificate and the control arms" if cfg.certify.controls else "the certificate"
    found = []
    for name, shortest, after in (
        ("calls", few, kept.calls),
        ("tokens", expected.tokens[0], kept.tokens),
        ("usd", expected.usd[0] if expected.usd else None, kept.usd),
    ):
        limit = getattr(cfg.budget, name)
        if limit is None or not shortest or after is None:
            continue
        after += shortest * cfg.certify.controls  # the dearest arm takes as much as the training
        least, typical = after + shortest, after + stretch * shortest
        if limit >= typical:
            continue
        short = "is too little for" if limit < least else "may not last for"
        held = f"with {_rounded(after)} kept for {what}, " if after else ""
        found.append(
            f"budget.{name}={limit:.15g} {short} a whole run: {held}the shortest takes about {_rounded(least)} in all, "
            f"a typical one {_rounded(typical)}; raise it, e.g. budget.{name}={_rounded(typical)}"
        )
    return found


def _typical(least: int, most: int, after: int) -> float:
    """Calls of a typical run whose training takes from `least` to `most - after` calls and is followed by `after`."""
    return after + least + TYPICAL * max(0, most - after - least)


def _judging(
    session: Session, judge: Reader, samples: Sequence[Sample], calls: Range, longest: int
) -> tuple[Usage, Usage]:
    """What the judge reads and writes, least (short answers, bare verdicts) and most (long ones, asked for twice)."""
    few, many = calls
    asked = [judge.client.bound(judge.request(s, "", session.env.lines(s))).input_tokens for s in samples] or [0]
    read, lines = ceil(sum(asked) / len(asked)), sum(len(session.env.lines(s)) for s in samples) / max(len(samples), 1)
    answer = session.cfg.judge.max_tokens or DEFAULT_ANSWER_TOKENS
    return Usage(few, few * read, ceil(few * lines * VERDICT_TOKENS)), Usage(
        many, many * (read + longest + answer), many * answer
    )


def _optimizer_calls(cfg: Config, train: int) -> Range:
    """Least: nothing ever fails. Most: every call is asked again once, and every merge, ranking and epoch's end is."""
    loop = cfg.train
    sizes = [min(loop.batch_size, train - start) for start in range(0, train, loop.batch_size)]
    groups = [ceil(size * cfg.target.attempts / loop.minibatch_size) for size in sizes]
    extra = (loop.schedule == "autonomous") + (loop.update == "rewrite")
    slow = 2 * max(0, loop.epochs - 1) if cfg.slow.enabled else 0
    if (
        loop.merge == "rank"
    ):  # failures and successes apart: one minibatch more; fewer merges than patches, and the last
        return loop.epochs * sum(groups), 2 * (loop.epochs * sum(2 * (n + 1) + 2 + extra for n in groups) + slow)
    return 0, 2 * (loop.epochs * sum(n + extra for n in groups) + slow)


def _dollars(parts: Sequence[tuple[Client, Usage]]) -> float | None:
    total = 0.0
    for client, usage in parts:
        cost = price(client.model.name, usage, override=client.rate)
        if cost is None:
            return None
        total += cost
    return total


def _spread(samples: Sequence[Sample], n: int) -> Sequence[Sample]:
    """At most n samples, evenly spread."""
    return samples if len(samples) <= n else [samples[i * len(samples) // n] for i in range(n)]


def _rounded(value: float) -> str:
    """A number as the command line takes it, rounded up to two digits: 1234.5 → "1300", 0.0123 → "0.013"."""
    if not value:
        return "0"
    unit = 10.0 ** (floor(log10(value)) - 1)
    value = ceil(value / unit - 1e-9) * unit
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
