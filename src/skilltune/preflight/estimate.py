"""The estimate of a run's calls, tokens and dollars, and remarks on the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import cast

from skilltune.config import Config
from skilltune.finish.reserve import TYPICAL, estimate_calls, estimate_elsewhere, hold_back
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.client import DEFAULT_ANSWER_TOKENS, Client
from skilltune.optimizer.model import SHOWN_SUCCESSES
from skilltune.parts import Parts
from skilltune.samples import Sample, spread
from skilltune.scorers.judge import Reader
from skilltune.stats import paired
from skilltune.targets.makers import RunTarget
from skilltune.usage import Usage

MEASURED = 50  # most samples whose prompts are built for the estimate, because that reads their images
PROMPT_TOKENS = (100, 1500)  # least and most tokens of an optimizer's instructions, notes and rejected edits
VERDICT_TOKENS = 20  # a verdict with a short quote
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bounds of a whole run's cost as (least, most): calls by role, tokens of all models, dollars (None: no price).

    `target_calls` counts rollouts. A rollout of an agent takes several calls of its model: `per_rollout`, a guess.

    Least: no edit is ever worth a race. Most: every candidate is raced to the end, with a skill and answers as long as
    allowed; real runs stay well below. `further_calls` are those of all further targets. `after_calls` counts the
    rollouts for the certificate, which the budget reserves.
    """

    target_calls: Range
    optimizer_calls: Range
    tokens: Range
    usd: tuple[float, float] | None
    judge_calls: Range = (0, 0)
    after_calls: int = 0
    further_calls: Range = (0, 0)
    per_rollout: int = 1

    @property
    def typical_rollouts(self) -> int:
        """The rollouts of a typical run, by a rule of thumb from our benches and examples: the training takes the share
        TYPICAL of the range from least to most, and the certificate follows."""
        return round(_typical(*self.target_calls, self.after_calls))

    @property
    def typical_calls(self) -> int:
        """The target's calls in a typical run."""
        return self.per_rollout * self.typical_rollouts


def estimate(session: Parts) -> Estimate:
    """Estimate the calls, tokens and dollars of a whole run from its samples and settings."""
    cfg, target, optimizer = session.cfg, session.target, session.optimizer_client
    samples = spread([*session.splits.train, *session.splits.select, *session.splits.test], MEASURED)
    asked = sum((session.roll.target.guess(session.skill, session.env.task(s)) for s in samples), Usage())
    per = max(1, round(asked.calls / len(samples)))
    read = ceil(asked.input_tokens / len(samples))
    written = ceil(sum(len(session.env.expected(s)) for s in samples) / 4 / len(samples)) or 1
    longest = cfg.target.max_tokens or DEFAULT_ANSWER_TOKENS
    if per > 1:  # the answers between tool calls are longer than the expected one
        written = longest = ceil(asked.output_tokens / len(samples))
    largest = cfg.train.skill_limit(session.skill.tokens)
    growth = max(0, largest - session.skill.tokens)

    least, most = estimate_calls(cfg, session.splits)
    ends: list[tuple[Client | RunTarget, Usage]] = [(target, Usage(least * per, least * read, least * written))]
    ends += [(target, Usage(most * per, most * (read + per * growth), most * longest))]
    for other in session.arena.also:
        few, many = estimate_elsewhere(cfg, session.splits)
        ends.append((cast(RunTarget, other.roll.target), Usage(few, few * read, few * written)))
        ends.append((cast(RunTarget, other.roll.target), Usage(many, many * (read + growth), many * longest)))
    elsewhere = [len(session.arena.also) * calls for calls in estimate_elsewhere(cfg, session.splits)]
    thinking = (0, 0)
    if optimizer is not None or session.handoff is not None:
        falls_back = cfg.optimizer.form == "auto" and session.handoff is None and session.agent is None
        thinking = few, many = _optimizer_calls(cfg, len(session.splits.train), falls_back)
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
        asking = many * (PROMPT_TOKENS[1] + largest + evidence)
        ends.append((optimizer, Usage(few, reading, few)))
        ends.append((optimizer, Usage(many, asking, many * answer)))
    judging = (0, 0)
    if session.judge is not None:
        judged = [sample for sample in samples if session.env.lines(sample)]
        # Least: each answer is read once. Most: all answers differ, and each verdict is asked for twice.
        share = len(judged) / len(samples)
        judging = ceil((least + elsewhere[0]) * share), ceil(2 * (most + elsewhere[1]) * share)
        ends += [(session.judge.client, usage) for usage in _judging(session, session.judge, judged, judging, longest)]
    low, high = ends[::2], ends[1::2]
    dollars = (_dollars(low), _dollars(high))
    return Estimate(
        target_calls=(least, most),
        optimizer_calls=thinking,
        tokens=(sum(usage.tokens for _, usage in low), sum(usage.tokens for _, usage in high)),
        usd=None if dollars[0] is None or dollars[1] is None else (dollars[0], dollars[1]),
        judge_calls=judging,
        further_calls=(elsewhere[0], elsewhere[1]),
        after_calls=2 * cfg.certify.attempts * len(session.splits.test),
        per_rollout=per,
    )


def _typical(least: int, most: int, after: int) -> float:
    """Calls of a typical run: a training of between `least` and `most - after` calls, then `after` calls."""
    return after + least + TYPICAL * max(0, most - after - least)


def _judging(
    session: Parts, judge: Reader, samples: Sequence[Sample], calls: Range, longest: int
) -> tuple[Usage, Usage]:
    """The judge's usage: least (short answers, bare verdicts) and most (long answers, each verdict asked for twice)."""
    few, many = calls
    asked = [judge.client.bound(judge.request(s, "", session.env.lines(s))).input_tokens for s in samples] or [0]
    read, lines = ceil(sum(asked) / len(asked)), sum(len(session.env.lines(s)) for s in samples) / max(len(samples), 1)
    answer = session.cfg.judge.max_tokens or DEFAULT_ANSWER_TOKENS
    return Usage(few, few * read, ceil(few * lines * VERDICT_TOKENS)), Usage(
        many, many * (read + longest + answer), many * answer
    )


def _optimizer_calls(cfg: Config, train: int, falls_back: bool = False) -> Range:
    """The optimizer's calls. Least: no sample ever fails. Most: every call is made twice, in all merges, rankings and
    ends of epochs too. `falls_back`: a minibatch may also be asked about for plain rules, twice."""
    loop = cfg.train
    sizes = [min(loop.batch_size, train - start) for start in range(0, train, loop.batch_size)]
    groups = [ceil(size * cfg.target.attempts / loop.minibatch_size) for size in sizes]
    extra = (loop.schedule == "autonomous") + (loop.update == "rewrite")
    rest = 2 * max(0, loop.epochs - 1) if cfg.slow.enabled else 0
    rest += falls_back * loop.epochs * sum(groups)
    if (
        loop.merge == "rank"
    ):  # failures and successes apart: one more minibatch; fewer merges than patches, and the final merge
        return loop.epochs * sum(groups), 2 * (loop.epochs * sum(2 * (n + 1) + 2 + extra for n in groups) + rest)
    return 0, 2 * (loop.epochs * sum(n + extra for n in groups) + rest)


def _dollars(parts: Sequence[tuple[Client | RunTarget, Usage]]) -> float | None:
    total = 0.0
    for payee, usage in parts:
        cost = payee.usd(usage)
        if cost is None:
            return None
        total += cost
    return total


def _rounded(value: float) -> str:
    """A number for the command line, rounded up to two digits: 1234.5 → "1300", 0.0123 → "0.013"."""
    if not value:
        return "0"
    unit = 10.0 ** (floor(log10(value)) - 1)
    value = ceil(value / unit - 1e-9) * unit
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _unprovable(session: Parts) -> str:
    """A sentence if the test split is so small that no loss up to `gate.also_margin` could be excluded, else ""."""
    cfg, n = session.cfg, len(session.splits.test)
    if not session.arena.also or not n:
        return ""
    least = -paired([0.0] * n, [0.0] * n, alpha=cfg.certify.alpha).low
    if least < cfg.gate.also_margin:
        return ""
    return (
        f"gate.also: {n} test samples exclude only a loss above {100 * least:.1f} points, even if nothing changes, so "
        f"no gain could be certified with gate.also_margin={cfg.gate.also_margin:g}; add test samples, or set "
        f"gate.also_margin={ceil(100 * least + 0.5) / 100:g}"
    )


def remarks(session: Parts, expected: Estimate) -> list[str]:
    """One sentence for each limit of the budget that is lower than a typical run needs, with a sufficient number.

    The certificate is included. `minutes` cannot be estimated.
    """
    cfg = session.cfg
    planned = replace(session, budget=Budget(Limits(), Usage()))
    hold_back(planned)
    kept = planned.budget.held
    rolled = tuple(expected.per_rollout * rollouts for rollouts in expected.target_calls)
    ranges = (rolled, expected.further_calls, expected.optimizer_calls, expected.judge_calls)
    few, many = (sum(ends) for ends in zip(*ranges, strict=True))
    stretch = (_typical(few, many, kept.calls) - kept.calls) / few  # ratio of a typical training to the shortest
    found = [loss] if (loss := _unprovable(session)) else []
    for name, shortest, after in (
        ("calls", few, kept.calls),
        ("tokens", expected.tokens[0], kept.tokens),
        ("usd", expected.usd[0] if expected.usd else None, kept.usd),
    ):
        limit = getattr(cfg.budget, name)
        if limit is None or not shortest or after is None:
            continue
        least, typical = after + shortest, after + stretch * shortest
        if limit >= typical:
            continue
        short = "is too little for" if limit < least else "may not last for"
        held = f"with {_rounded(after)} reserved for the certificate, " if after else ""
        found.append(
            f"budget.{name}={limit:.15g} {short} a whole run: {held}the shortest takes about {_rounded(least)} in all, "
            f"a typical one {_rounded(typical)}; raise it, e.g. budget.{name}={_rounded(typical)}"
        )
    return found
