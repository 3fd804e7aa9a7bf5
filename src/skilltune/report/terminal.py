"""A run as a person or a program follows it: one line per thing that happens, and on a terminal a status below them.

Every view hears the same events. `Lines` is what a log file gets, `Live` adds the status that is drawn over and over,
`Events` writes JSON for programs. Text from models and files is data: control characters never reach the terminal,
and nothing in it is read as markup.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from skilltune.config import GateConfig
from skilltune.execute import describe_load
from skilltune.export import only_evaluated
from skilltune.finish.reserve import Planned
from skilltune.finish.transfer import TRANSFERS
from skilltune.history.activation import describe_activation
from skilltune.history.left_out import describe, left_out, summed
from skilltune.history.lines import counted_versions, describe_event, explained, short
from skilltune.history.record import Judged, Record, Version, affordable
from skilltune.history.usable import Share, describe_proposals
from skilltune.journal.run import FAILED, by_work
from skilltune.optimizer.handoff import Question, in_use
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.parts import Parts
from skilltune.preflight.check import Check, stated_name
from skilltune.preflight.estimate import Estimate, estimate, remarks
from skilltune.preflight.probe import Probe
from skilltune.report.card import ARM_COST, ARM_HEADERS, arm_row, looks, per_point, unknown_costs
from skilltune.result import Result, headline
from skilltune.rollouts.roller import LEFT_OUT
from skilltune.samples import describe_power
from skilltune.skill import Skill
from skilltune.text import one_line
from skilltune.text import visible as clean
from skilltune.usage import Usage, counted, describe_usage
from skilltune.verdict import percent

SHORT = 60  # lines; a skill up to this length is shown whole in its diff
MOST_CHANGES = 10  # changed lines of the skill that the end of a training shows
WIDEST = 100  # characters of such a line
HEARTBEAT_S = 15.0  # a log file hears at least so often that paid work goes on
FIRST_BEAT_S = 5.0  # and this soon after the start, with the time left
FEWEST_CALLS = 5  # calls that give a pace; the first ones wait for a model to load

EXIT_CODES = {
    0: "a better skill was found",
    1: "finished, nothing better was found: the input is shipped unchanged",
    2: "usage or configuration error, nothing was spent",
    3: "stopped by a provider or the network (resumable)",
    4: "stopped by the budget or an interrupt (resumable)",
    5: "finished undecided: accepted, but not certified",
    70: "a bug in skilltune: the traceback is in the run folder (resumable)",
}

_TONES = {"": "", "quiet": "dim", "good": "green", "warning": "yellow"}
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Whatever is printed is shown: the only control characters are those of our own styles."""
        super().print(*map(_shown, objects), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, which means something else here


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Text) and (text := clean(value.plain)) != value.plain:
        return Text(text, value.style)
    return value


def stdout() -> Console:
    """The console for results: no wrapping in a pipe, no markup, no guessing of colours for numbers."""
    return _Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


# -- what the events add up to


@dataclass(slots=True)
class Progress:
    """The progress of a run, from its events; `clock` gives seconds. `typical` is the expected number of calls of the
    whole run: the pace of the first seconds is applied to it until a step has been paid for."""

    session: Parts
    clock: Callable[[], float] = time.monotonic
    typical: int = 0
    steps: int = 0
    step: int = 0  # the last one that was judged
    score: float | None = None  # of the incumbent on `select`, with its standard deviation
    score_sd: float | None = None
    n: int = 0
    accepted: int = 0
    proposals: Share | None = None  # all proposals of this process so far
    waiting: str = ""
    ending: bool = False  # the training is over, the certificate is not
    _began: float = 0.0
    _paid: int = 0  # calls paid in earlier lives of the run
    _at_verdict: int = 0  # calls paid by this process until the last verdict
    _at_start: int = 0
    _paid_steps: int = 0

    def __post_init__(self) -> None:
        cfg = self.session.cfg.train
        self.steps = steps_per_epoch(cfg, len(self.session.splits.train)) * cfg.epochs
        self._began, self._paid = self.clock(), self.session.budget.spent.calls

    @property
    def calls(self) -> int:
        """Calls paid by this process."""
        return self.session.budget.spent.calls - self._paid

    def hear(self, type: str, data: Mapping[str, Any]) -> None:
        self.ending |= type in ("stopping", "reselection", "certify")
        if type == "waiting":
            until = f", until {data['until']}" if "until" in data else ""
            self.waiting = f"waiting {data['seconds']:g} s{until}: {short(data['why'])}"
        elif type == "handoff":
            self.waiting = f"waiting for an answer to {data['name']} in {data['folder']}"
        elif type in ("rollout", "optimizer"):
            self.waiting = ""
        elif type == "start":
            self.score, self.score_sd, self._at_start = data["score"], data["score_sd"], self.calls
            self._at_verdict = self.calls
        elif type == "proposals":
            before = self.proposals or Share(0, 0)
            self.proposals = Share(before.made + data["made"], before.usable + data["usable"])
        elif type == "verdict":
            self.step, self.score, self.score_sd = data["step"], data["score"], data["score_sd"]
            if data["accepted"]:
                self.accepted = data["version"]
            self._paid_steps += self.calls > self._at_verdict
            self._at_verdict = self.calls

    def calls_left(self) -> float | None:
        """Calls that are still expected; None if nothing is known of them yet."""
        certificate = 2 * self.session.cfg.certify.attempts * len(self.session.splits.test)
        since = self.calls - self._at_verdict
        if self.ending or self.step >= self.steps:
            return max(0.0, certificate - since)
        if self._paid_steps:
            per_step = (self._at_verdict - self._at_start) / self._paid_steps
            return max(0.0, per_step * (self.steps - self.step) + certificate - since)
        if self.typical:
            return float(max(certificate, self.typical - self._paid - self.calls))
        return None

    def seconds_left(self) -> float | None:
        """Time for the calls that are still expected, at the pace of this process; None before `FEWEST_CALLS`."""
        left = self.calls_left()
        return None if left is None or self.calls < FEWEST_CALLS else left * (self.clock() - self._began) / self.calls

    def describe_score(self) -> str:
        """The incumbent's estimated level on `select`; it was selected for being high, so it is no proof."""
        if self.score is None or self.score_sd is None:
            return "select: not measured yet"
        return f"select about {100 * self.score:.0f} ± {100 * self.score_sd:.0f} %"

    @property
    def phase(self) -> str:
        """ "step 2 of 4"; before the first step and after the last one, what is done instead."""
        if self.score is None and not self.step:
            return "scoring the input"
        if self.ending or self.step >= self.steps:
            return "finishing"
        return f"step {self.step + 1} of {self.steps}"

    @property
    def time_left(self) -> str:
        left = self.seconds_left()
        return f" · about {duration(left)} left" if left else ""

    @property
    def learned(self) -> str:
        usable = f" · proposals usable: {self.proposals}" if self.proposals else ""
        return f"{self.describe_score()} · {counted_versions(self.accepted)}{usable}"

    @property
    def workers(self) -> str:
        """The machines, slots and lost jobs; "" if everything runs here."""
        return describe_load(self.session.executor)

    @property
    def spent(self) -> str:
        return describe_usage(self.session.budget.spent)

    def __str__(self) -> str:
        workers = f" · {self.workers}" if self.workers else ""
        return f"{self.phase} · {counted(self.session.budget.spent.calls)}{self.time_left} · {self.learned}{workers}"


def line(type: str, data: Mapping[str, Any], steps: int, slow: bool = False) -> Text | None:
    """The one line that an event is worth, or None. `slow`: the verdict is of the epoch's slow update."""
    found = describe_event(type, data, steps, slow)
    return None if found is None else _text(found.text, _TONES[found.tone])


# -- the views


def _command(folder: Path) -> str:
    """The command that resumes the run in a folder if the command that began it is unknown."""
    return f"skilltune train CONFIG --run {folder}"


@dataclass(slots=True)
class Lines:
    """Plain lines. A listener of a run, and a context manager around it; `ready` is called when all parts are built."""

    console: Console
    command: Callable[[Path], str] = _command
    progress: Progress | None = None
    paid: int = 0  # calls paid in earlier lives of the run
    _left_out: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by sample, see `report.left_out`
    _beat: float = 0.0
    _beat_calls: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def ready(self, session: Parts) -> None:
        """Print the plan: what is trained, on what, what it can show, and what it may take."""
        expected = estimate(session)
        self.progress = Progress(session, typical=expected.typical_calls)
        self._beat = self.progress.clock() + FIRST_BEAT_S - HEARTBEAT_S
        self._left_out |= left_out(session.run)
        self.paid = sum(usage.calls for kind, usage in session.run.usage.items() if kind != FAILED)
        for name, value in plan(session, expected):
            self.console.print(Text.assemble((f"{name:<10}", "bold"), clean(value)))
        if self.paid:
            is_are = "is" if self.paid == 1 else "are"
            held = f"{counted(self.paid, 'answer')} {is_are} in the journal and {is_are} replayed for free"
            self.console.print(f"{'resuming':<10}{held}")
        self.console.print()

    def __call__(self, type: str, data: Mapping[str, Any]) -> None:
        steps, slow = 0, False
        if self.progress is not None:
            steps, slow = self.progress.steps, type == "verdict" and data["step"] == self.progress.step
            self.progress.hear(type, data)
        if type == LEFT_OUT:  # each sample is named once; the end says them all
            new = {sample: failure for sample, failure in data["samples"].items() if sample not in self._left_out}
            self._left_out |= summed(new)
            data = {**data, "samples": new}
        if (text := line(type, data, steps, slow)) is not None:
            self.console.print(text)
        if type == "forked":
            self.console.print(_text(f"  {self.command(Path(data['folder']))}", "bold"))
        self.beat()

    def beat(self) -> None:
        """In a long silence, one line that says that paid work goes on."""
        progress = self.progress
        if progress is None or progress.clock() - self._beat < HEARTBEAT_S or progress.calls == self._beat_calls:
            return
        self._beat, self._beat_calls = progress.clock(), progress.calls
        self.console.print(f"… {progress}")

    def finished(self, result: Result) -> None:
        """Print the result: the changed lines, the certificate, the cost and the files. It fits on one screen."""
        assert self.progress is not None
        session, console = self.progress.session, self.console
        console.print()
        if result.best.text != result.start.text:
            console.print(_text(f"the skill: {result.start.tokens:,} → {result.best.tokens:,} tokens", "bold"))
            console.print(changed_lines(result.start.text, result.best.text, f"skilltune diff {session.run.folder}"))
            console.print()
        print_proof(result, console)
        if result.stopped is not None:
            console.print(f"stopped early: {result.stopped}")
        if text := describe(self._left_out):
            console.print(f"left out: {clean(text)}")
        console.print()
        print_costs(session.run.usage, session.run.estimated, console)
        if self.paid:
            calls = self.progress.calls
            new = f"{counted(calls)} {'was' if calls == 1 else 'were'} new"
            console.print(f"{'journal':<15}{counted(self.paid, 'answer')} came from the journal; {new}")
        console.print(f"{'skill':<15}{best_path(session, result)}")
        console.print(f"{'card':<15}{session.run.folder / 'card.md'}")
        if result.exit_code in (3, 4):
            larger = result.stopped.larger if result.stopped else ""
            console.print(f"{'resume with':<15}{affordable(self.command(session.run.folder), larger)}")
        console.print(f"{'next':<15}skilltune show {session.run.folder}; skilltune report {session.run.folder}")
        console.print(f"{'exit':<15}{result.exit_code}: {EXIT_CODES[result.exit_code]}")

    def failed(self, message: str, exit_code: int, larger: str = "") -> None:
        """The run ended with an error, or was stopped; the message goes to stderr. `larger` is the limit of the budget
        that the run needs to go on ("": none)."""
        print(f"{'stopped' if exit_code == 4 else 'error'}: {clean(message)}", file=sys.stderr)
        if self.progress is not None and exit_code in (3, 4, 70):
            folder = self.progress.session.run.folder
            print(clean(f"so far: {self.progress}; kept in {folder}"), file=sys.stderr)
            print(clean(f"resume with: {affordable(self.command(folder), larger)}"), file=sys.stderr)


@dataclass(slots=True)
class Live(Lines):
    """Lines, and below them a status that is redrawn: step, score, cost, time left."""

    _live: RichLive | None = field(default=None, init=False)

    def ready(self, session: Parts) -> None:
        Lines.ready(self, session)
        self._live = RichLive(get_renderable=self.status, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def beat(self) -> None:
        return None

    def status(self) -> Group:
        assert self.progress is not None
        progress = self.progress
        paid, left = progress.session.budget.spent.calls, progress.calls_left()
        bar = Table.grid(padding=(0, 1))
        total = paid + left if left is not None else None
        bar.add_row(ProgressBar(total=total or 1, completed=paid if total else 0, width=30), progress.phase)
        texts = [_text(f"{progress.spent}{progress.time_left}"), _text(progress.learned)]
        texts += [_text(progress.workers), _text(progress.waiting, "yellow")]
        for text in texts:  # a line that the terminal wraps would be redrawn in the wrong place
            text.truncate(self.console.width - 1, overflow="ellipsis")
        return Group(bar, *(text for text in texts if text.plain))


@dataclass(slots=True)
class Events:
    """One JSON object per line on a stream, and nothing else: {"type": …, …} for every event of the run."""

    stream: TextIO
    command: Callable[[Path], str] = _command

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def ready(self, session: Parts) -> None:
        parts = session.splits
        self(
            "plan",
            {
                "run": str(session.run.folder),
                "resume": self.command(session.run.folder),
                "target": session.cfg.target.model,
                "optimizer": optimizer_name(session),
                "samples": {"train": len(parts.train), "select": len(parts.select), "test": len(parts.test)},
                "remarks": list(session.env.remarks),
                "estimate": asdict(estimate(session)),
                "paid_calls": sum(usage.calls for usage in session.run.usage.values()),
            },
        )

    def __call__(self, type: str, data: Mapping[str, Any]) -> None:
        print(json.dumps({"type": type, **data}), file=self.stream, flush=True)

    def finished(self, result: Result) -> None:
        """Nothing to add: the run's own `finish` event was the last."""

    def failed(self, message: str, exit_code: int, larger: str = "") -> None:
        self("error", {"message": message, "exit_code": exit_code, **({"larger": larger} if larger else {})})
        print(f"error: {clean(message)}", file=sys.stderr)


# -- a run, looked at from outside


def print_costs(spent: Mapping[str, Usage], estimated: int, console: Console) -> None:
    """One row for each kind of work, see `by_work`."""
    for kind, usage in by_work(spent):
        console.print(f"{kind:<14} {describe_usage(usage)}{unknown_costs(kind, estimated)}")


def show_run(record: Record, console: Console) -> None:
    """The table of verdicts, the certificate, the cost, the files."""
    evaluated = only_evaluated(record.run)
    if not evaluated:
        headers = ("step", "epoch", "select ≈", "accepted", "edits", "reason")
        console.print(columns(headers, [_row(row, record.gate) for row in record.rows]))
        console.print()
    if record.state == "running":
        console.print(f"{'running':<15}process {record.writer} writes to it")
    elif record.state == "finished":
        console.print("finished")
    elif evaluated:
        console.print(f"{'eval':<15}answers of `skilltune eval`, no training")
        if record.run.events(TRANSFERS):
            console.print(f"{'targets':<15}skilltune table {record.folder}")
    else:
        console.print(f"{'stopped':<15}{clean(record.stopped) or 'its process was ended from outside'}")
        console.print(f"{'resume with':<15}{clean(record.resume)}")
    if record.ending is not None:
        console.print(f"{'training ended':<15}{clean(record.ending.reason)}")
    finish, proof = record.finish, record.certificate
    if finish is not None:
        console.print(f"{'ended':<15}{finish.exit_code}: {EXIT_CODES[finish.exit_code]}")
        console.print(f"{'certified' if finish.exit_code == 0 else 'test':<15}{proof or 'none'}")
        if proof is not None and proof.unscored:
            console.print(f"{'':<15}test samples {proof.unscored}")
        for row in proof.also if proof is not None else ():
            console.print(f"{'also':<15}{row}")
        if proof is not None and finish.exit_code == 5:
            console.print(f"{'not certified':<15}{proof.reason}")
    if text := describe(record.left_out):
        console.print(f"{'left out':<15}{clean(text)}")
    if text := describe_activation(record.run):
        console.print(f"{'the skill was':<15}{text}")
    if text := describe_proposals(record.proposals):
        console.print(f"{'proposals':<15}{text}")
    if record.controls is not None:
        print_controls(record.controls, console)
        console.print()
    print_costs(record.usage, record.estimated, console)
    for path in record.files:
        console.print(f"{'file':<15}{path}")


def _row(row: Version | Judged, gate: GateConfig | None) -> tuple[str, ...]:
    """The cells of one row of the table of verdicts."""
    if isinstance(row, Version):
        return "", "", percent(row.score), f"version {row.number}", "", row.reason
    verdict = row.verdict
    step = {"slow": f"{verdict.step}, slow update", "step": str(verdict.step)}.get(row.kind, row.kind)
    accepted = f"version {verdict.version}" if verdict.accepted else "no"
    edits = str(len(verdict.applied))
    return step, str(verdict.epoch), percent(verdict.score), accepted, edits, explained(verdict, gate)


def print_proof(result: Result, console: Console) -> None:
    """The claim, and the certificate that it rests on."""
    console.print(_text(headline(result), "bold green" if result.exit_code == 0 else "bold"))
    c = result.certificate
    if c is None:
        console.print(f"no certificate: {result.uncertified}")
        return
    console.print(str(c))
    console.print(f"fixed {c.fixed}, broke {c.broken} of {c.n} test samples; {c.method}; {looks(c)}")
    if c.unscored:
        console.print(f"test samples {c.unscored}")
    for row in c.also:
        console.print(f"also {row}")
    if c.gain > 0:
        console.print(f"each point gained cost {per_point(result.training, c)} (training and certificate)")


def describe_planned(plan: Planned) -> str:
    """The most calls that a command on a finished run makes, and their expected cost."""
    others = {**plan.further, "the optimizer": plan.optimizer}
    more = "".join(f", {calls:,} of {role}" for role, calls in others.items() if calls)
    money = "price unknown" if plan.cost.usd is None else f"${plan.cost.usd:.2f}" if plan.cost.usd else "$0"
    return (
        f"at most {plan.target:,} calls of the target{more}, about {amount(plan.cost.tokens)} tokens, {money} "
        "(at the mean of this run's calls)"
    )


def print_controls(data: Mapping[str, Any], console: Console) -> None:
    """The table of the control arms, and why others are missing."""
    console.print()
    console.print(columns(ARM_HEADERS, [arm_row(arm) for arm in data["arms"]]))
    console.print(ARM_COST)
    for name, why in data["missing"].items():
        console.print(f"not measured: {name}: {short(why)}")


# -- parts


def plan(session: Parts, expected: Estimate) -> list[tuple[str, str]]:
    """The plan as (name, value) rows: to be read before anything is spent."""
    cfg = session.cfg
    limits = [f"{value:g} {name}" for name, value in asdict(cfg.budget.limits).items() if value is not None]
    sizes, *power = describe_power(session.splits).splitlines()
    empty = not session.skill.text.strip()
    nothing = [f"the skill {cfg.skill} does not exist or is empty: training starts from nothing"] if empty else []
    return [
        ("skill", describe_skill(session.skill)),
        ("target", cfg.target.model),
        ("optimizer", optimizer_name(session)),
        *([("judge", session.judge.client.model.name)] if session.judge else []),
        ("samples", sizes),
        *(("power", text) for text in power),
        *estimate_rows(expected),
        ("budget", ", ".join(limits) or "no limit (set one with budget.usd=5, budget.calls=2000, …)"),
        *(("note", text) for text in (*nothing, *session.env.remarks, *remarks(session, expected))),
        ("run", str(session.run.folder)),
    ]


def check_rows(found: Check) -> list[tuple[str, str]]:
    """The findings of a check as (name, value) rows, without its problems and its preview."""
    rows: list[tuple[str, str]] = []
    if found.skill is not None:
        name = stated_name(found.skill)
        own = f"; its frontmatter says name: {name}" if name not in ("", found.skill.name) else ""
        rows.append(("skill", describe_skill(found.skill) + own))
    if found.splits is not None:
        sizes, *power = describe_power(found.splits).splitlines()
        groups = f" · {found.groups} groups" if found.groups else ""
        rows += [("samples", sizes + groups), *(("power", text) for text in power)]
    if found.estimate is not None:
        rows += estimate_rows(found.estimate)
    rows += [("probe", f"{probe.role} {probe.model}: {probe.error or _answered(probe)}") for probe in found.probes]
    if found.agreement is not None:
        rows += found.agreement.rows()
    return rows + [("note", note) for note in found.notes]


def _answered(probe: Probe) -> str:
    return f"answered in {probe.seconds:.2f} s" + (f"; {probe.note}" if probe.note else "")


def describe_skill(skill: Skill) -> str:
    """Name, size and, of a folder, the files that come with it."""
    names = sorted(skill.files)
    more = f", … ({len(names) - 5} more)" if len(names) > 5 else ""
    files = f", with {', '.join(names[:5])}{more}" if names else ""
    return f"{skill.name}, about {skill.tokens:,} tokens{files}"


def estimate_rows(expected: Estimate) -> list[tuple[str, str]]:
    """Calls, tokens and dollars, least to most."""
    (least, most), (few, many) = expected.target_calls, expected.optimizer_calls
    (asked, again), further = expected.judge_calls, expected.further_calls
    if expected.usd is None:
        cost = "the price of a model is unknown; state it with price = [input, output], in dollars per million tokens"
    else:
        cost = f"${expected.usd[0]:.2f} to at most ${expected.usd[1]:.2f}" if expected.usd[1] else "$0"
    unit = " rollouts" if (per := expected.per_rollout) > 1 else ""
    target = f"{least:,} to {most:,}{unit} of the target, typically about {expected.typical_rollouts:,}"
    if unit:
        target = f"{target} (at first a rollout counts as {per} calls of its model)"
    return [
        (
            "calls",
            target
            + (f", {further[0]:,} to {further[1]:,} of the further targets" if further[1] else "")
            + (f", {few:,} to {many:,} of the optimizer" if many else "")
            + (f", {asked:,} to {again:,} of the judge" if again else ""),
        ),
        ("tokens", f"{amount(expected.tokens[0])} to at most {amount(expected.tokens[1])}"),
        ("cost", cost),
    ]


def describe_questions(folder: Path, found: Sequence[Question]) -> str:
    """The open questions of a handoff folder, and how to answer."""
    if not found:
        return f"nothing is open in {folder}" + ("" if in_use(folder) else ", and no run uses it")
    rows = [
        (question.name, duration(time.time() - question.file.stat().st_mtime), (question.refusals or [""])[-1])
        for question in found
    ]
    listed = columns(("question", "open for", "last answer refused"), [(*row[:2], short(row[2])) for row in rows])
    how = f"skilltune answer {folder} {found[0].name} --file ANSWER.json"
    return f"{listed}\n\nread: skilltune answer {folder} --next\nanswer: {how}"


def optimizer_name(session: Parts) -> str:
    return session.cfg.optimizer.model or session.cfg.target.model


def best_path(session: Parts, result: Result) -> str:
    name = f"best/{result.best.name}" if result.best.folder else "best_skill.md"
    return str(session.run.folder / name)


def difference(before: str, after: str, names: tuple[str, str]) -> Text:
    """A unified diff with colours; short texts in full, long ones around their changes."""
    old, new = clean(before).splitlines(), clean(after).splitlines()
    context = SHORT if max(len(old), len(new)) <= SHORT else 3
    rows = list(difflib.unified_diff(old, new, *names, lineterm="", n=context))
    text = Text()
    for number, row in enumerate(rows):
        style = "bold" if number < 2 else _DIFF_STYLES.get(row[:1], "")
        text.append(row + ("\n" if number < len(rows) - 1 else ""), style)
    return text


def changed_lines(before: str, after: str, whole: str) -> Text:
    """The lines that came and went, at most `MOST_CHANGES` of them, and the command that shows all."""
    rows = list(difflib.unified_diff(clean(before).splitlines(), clean(after).splitlines(), lineterm="", n=0))[2:]
    changed = [row for row in rows if not row.startswith("@") and row[1:].strip()]
    shown = changed if len(changed) <= MOST_CHANGES else changed[: MOST_CHANGES - 1]
    text = Text()
    for row in shown:
        text.append(f"  {_short_row(row)}\n", _DIFF_STYLES[row[0]])
    rest = len(changed) - len(shown)
    text.append(f"  … {rest} more changed lines: {whole}" if rest else f"  the whole difference: {whole}")
    return text


def _short_row(row: str) -> str:
    return row if len(row) <= WIDEST else f"{row[: WIDEST - 1]}…"


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns as plain text, two blanks apart; the last one runs on."""
    cells = [list(headers), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(headers) - 1)]
    padded = (
        [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=False)] for row in cells
    )
    return "\n".join("  ".join([*front, row[-1]]) for front, row in zip(padded, cells, strict=True))


def amount(n: float) -> str:
    """12_345 → "12k"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def per_task(usage: Usage) -> str:
    """Tokens and dollars of one call."""
    calls = usage.calls or 1
    money = "price unknown" if usage.usd is None else f"${usage.usd / calls:.5f}" if usage.usd else "$0"
    return f"{usage.tokens / calls:,.0f} tokens, {money}"


def _text(text: str, style: str = "") -> Text:
    return Text(clean(text), style)
