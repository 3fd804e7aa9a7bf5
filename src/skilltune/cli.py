"""The command line: each command reads its arguments, calls the library, prints, and maps the end to an exit code.

Only typer and the errors are imported at the top, so that `skilltune --help` stays fast; a command imports the rest.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from skilltune import __version__, streams
from skilltune.errors import CallConfigError, RunError, SkilltuneError, UsageError
from skilltune.interrupts import Interrupts
from skilltune.text import visible, visible_json

if TYPE_CHECKING:
    from skilltune.api import Evaluation
    from skilltune.models import Usage
    from skilltune.run import Run
    from skilltune.session import Session

INTERRUPTED = 4
FULL = {errno.ENOSPC, errno.EDQUOT}  # no fault of ours
OUR_FAULT = 70  # as EX_SOFTWARE of sysexits.h: no end of a run, but an error of skilltune itself
interrupts = Interrupts(INTERRUPTED)
PIPE_CLOSED = 141  # as of a program that SIGPIPE ends: the reader had enough, and nothing is wrong
RESUME = "interrupted; run the same command to go on"
REFUSED = "note: the run refuses such edits, unless optimizer.checks is record; hand in a better answer in the same way"
RESUME_FORK = "interrupted; to go on name the fork's folder with --run DIR in place of --fork"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Source = Annotated[Path, typer.Argument(metavar="CONFIG|SKILL_DIR", help="a TOML file, or a folder with SKILL.md")]
Here = Annotated[
    str | None,  # as it was written: it may be an override, and Path would fold the // of a URL
    typer.Argument(
        metavar="[CONFIG|SKILL_DIR]",
        help="a TOML file, or a folder with SKILL.md; left out: the current folder",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="config keys to override, e.g. train.epochs=2")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, e.g. runs/invoice-totals")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout and nothing else.")]


def _declared(variable: str) -> str:
    """The name of a variable that holds a key, "" for none. Raises UsageError for what may be the key itself."""
    from skilltune.models.keys import declared

    try:
        return declared(variable) if variable else ""
    except ValueError as error:
        raise UsageError(f"--key-env: {error}") from None


def _say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print text that may come from anywhere."""
    typer.echo(visible(text), nl=nl, err=err)


def _indented(text: str, by: int) -> str:
    """Text for one entry of a list: none of its lines can pass for an entry of ours."""
    return text.replace("\n", "\n" + " " * by)


def _json_stream(wanted: bool) -> TextIO | None:
    """Stdout for JSON alone, if that is wanted; from then on nothing else can be written there."""
    return streams.claim_stdout() if wanted else None


def _write_json(value: Any, stream: TextIO) -> None:
    print(json.dumps(value), file=stream, flush=True)


def _here(config: str | None, overrides: list[str] | None) -> tuple[Path, list[str]]:
    """The config of a command, the current folder's where none is named, and the overrides."""
    given = list(overrides or ())
    if config is None or ("=" in config and not Path(config).exists()):
        return Path(), [*([config] if config else []), *given]
    return Path(config), given


class SplitChoice(StrEnum):
    train = "train"
    select = "select"
    test = "test"
    all = "all"


class Side(StrEnum):
    with_ = "with"
    without = "without"


class Kind(StrEnum):
    file = "file"
    claude = "claude"
    codex = "codex"
    agents = "agents"
    copilot = "copilot"
    cursor = "cursor"
    gemini = "gemini"
    opencode = "opencode"
    plugin = "plugin"
    skill_creator = "skill-creator"


def _kind(text: str) -> Kind:
    from skilltune.scorers.reading import nearest

    if text in list(Kind):
        return Kind(text)
    raise typer.BadParameter(f'"{text}" is none of {", ".join(Kind)}{nearest(text, Kind)}')


def main() -> None:
    """The entry point of the script `skilltune`."""
    streams.protect()
    interrupts.install()
    try:
        try:
            app()
        except Exception as error:  # beyond the boundary of a command
            _fail(_our_fault(error, None), OUR_FAULT)
            raise SystemExit(OUR_FAULT) from None
    except SystemExit as end:
        interrupts.end(end.code)
        if not _delivered() and not end.code:
            raise SystemExit(PIPE_CLOSED) from None
        raise


def _our_fault(error: Exception, folder: Path | None) -> str:
    """What to say of an error that nobody foresaw. Its traceback is written to the run folder, or where there is none
    to a temporary file; both without keys."""
    import tempfile
    import traceback

    from skilltune.models.keys import all_keys
    from skilltune.models.redact import redacted

    trace = redacted("".join(traceback.format_exception(error)), *all_keys())
    what = redacted(f"{type(error).__name__}: {error}"[:300].rstrip(": "), *all_keys())
    where = "the traceback follows:\n" + trace
    for place in filter(None, (folder, Path(tempfile.gettempdir()))):
        with suppress(OSError):
            number, path = tempfile.mkstemp(".txt", "crash-" if place == folder else "skilltune-crash-", place)
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"skilltune {__version__}, Python {sys.version}\n{trace}")
            where = f"the traceback is in {path}"
            break
    kept = " What was paid is kept, and the same command goes on." if folder else ""
    return f"an error of skilltune itself, not of yours ({what}); please report it: {where}{kept}"


def _delivered() -> bool:
    """Has all output reached its readers? Where one has gone, what is left is dropped, or the interpreter's own last
    flush would complain of it."""
    arrived = True
    for stream in (sys.stdout, sys.stderr, *streams.claimed):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:  # the reader has gone, or the disk is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            arrived = False
    return arrived


def _version(wanted: bool) -> None:
    if wanted:
        _say(f"skilltune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
) -> None:
    """Train an agent's skill document like model weights.

    A frozen target does your tasks with the skill, an optimizer proposes small edits, and an edit stays only if
    held-out samples say so. What ships is one document.

    \b
    Begin with:
      skilltune doctor skilltune.toml       is the machine fit, does each model answer?
      skilltune check skilltune.toml        is everything sound, what would it cost?
      skilltune train skilltune.toml        train; the same command resumes
      skilltune show runs/NAME              what happened
      skilltune export runs/NAME --to claude
    """


@app.command()
def train(
    config: Here = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Run folder. [default: runs/NAME by the config]", show_default=False),
    ] = None,
    fork: Annotated[
        bool,
        typer.Option(
            "--fork",
            help="Start a new run beside the old one, reusing answers that still apply; each time another. Resume it "
            "with --run DIR.",
        ),
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="At the end, measure cheaper ways on the same samples; doubles the cost.")
    ] = False,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="ID", help="Go on without a sample, for good. Can be given several times."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a skill; run the same command again to resume.

    Prints the plan and the estimated cost, then trains. Every paid answer is kept in the run folder, so a run that was
    stopped anywhere goes on where it was and pays nothing twice. With --json every event is one JSON line on stdout.

    \b
    Examples:
      skilltune train
      skilltune train skills/invoice-totals target.model=openai/gpt-5.5 budget.usd=5
      skilltune train skilltune.toml preset=paper --run runs/paper

    \b
    Exit codes:
      0  a better skill is certified or, without a test split, accepted
      1  finished, nothing better found; the input is shipped unchanged
      2  usage or configuration error, nothing spent
      3  stopped by a provider or the network (resumable)
      4  stopped by the budget or an interrupt (resumable)
      5  finished undecided: accepted, but not certified
      70  an error of skilltune itself: its traceback is in the run folder (resumable)
    """
    from skilltune.api import run_training
    from skilltune.config import load_config
    from skilltune.report.terminal import Events, Lines, Live, stdout

    source, given = _here(config, overrides)

    def again(folder: Path) -> str:
        """The command that resumes the run in a folder."""
        place = ["--run", str(folder)] if fork or run else []
        return shlex.join(["skilltune", "train", str(source), *given, *place, *["--controls"] * controls])

    out = _json_stream(as_json)
    view = Events(out, again) if out else (Live if sys.stdout.isatty() else Lines)(stdout(), again)
    opened: list[Session] = []

    def ready(session: Session) -> None:
        opened.append(session)
        view.ready(session)
        session.run.note("command", line=again(session.run.folder), folder=os.getcwd())

    message = RESUME_FORK if fork else RESUME
    gone = message.replace("interrupted", "the reader of the output has gone")
    with _boundary(lambda: bool(opened and opened[0].spent), view.failed, message, gone, lambda: _folder_of(opened)):
        cfg, root = load_config(source, [*given, *(["certify.controls=true"] if controls else [])])
        with view:
            result = interrupts.run(
                run_training(cfg, root, run, fork=fork, drop=drop or (), listeners=[view], ready=ready)
            )
        view.finished(result)
    raise typer.Exit(result.exit_code)


@app.command("eval")
def evaluate(
    config: Source,
    overrides: Overrides = None,
    skill: Annotated[
        Path | None, typer.Option("--skill", metavar="PATH", help="The skill to score. [default: the config's]")
    ] = None,
    split: Annotated[SplitChoice, typer.Option("--split", help="The samples to score it on.")] = SplitChoice.test,
    only: Annotated[
        Side | None, typer.Option("--only", help="Score only with, or only without the skill. [default: both]")
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Draws of each sample.")] = 1,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Keep the answers there; a run of train is reused.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a skill, with and without it.

    Shows mean scores with 95 % intervals, the paired difference, and what a task costs; what a judge took now stands
    apart. Name the folder of a training run with --run and no answer that it holds is paid again; the optimizer, which
    is asked nothing, may be another one then.

    \b
    Examples:
      skilltune eval skilltune.toml
      skilltune eval skilltune.toml --skill runs/desk/best_skill.md --run runs/desk
      skilltune eval skilltune.toml --split all --only without target.model=openai/gpt-5.5
    """
    from skilltune.api import run_evaluation, scratch_run
    from skilltune.budget import minus
    from skilltune.config import MAY_DIFFER, OptimizerConfig, load_config
    from skilltune.errors import UsageError
    from skilltune.models import Usage
    from skilltune.run import FAILED, Run
    from skilltune.session import build_session, load_skill
    from skilltune.skill import Skill

    opened: list[Session] = []
    out = _json_stream(as_json)

    def judged(journal: Run) -> Usage:
        """What the run has paid for verdicts."""
        failed = [usage for _, value, usage in journal.memos(FAILED) if value["role"] == "judge"]
        return sum(failed, journal.usage.get("judge", Usage()))

    async def score() -> tuple[dict[str, Evaluation], Usage | None]:
        may_differ = (*MAY_DIFFER, "optimizer.")  # which is asked nothing: a run keeps the one that it was started with
        with Run.open(run, cfg.to_json(), may_differ=may_differ) if run else scratch_run(None) as journal:
            kept = journal.recall("config")
            with journal.reading():
                own = OptimizerConfig(**kept[0]["optimizer"]) if kept else cfg.optimizer
            before = judged(journal)
            session = build_session(cfg.model_copy(update={"optimizer": own}), journal, root)
            opened.append(session)
            path = skill or root / cfg.skill
            if not path.exists() and (only is None or only.value == "with"):
                raise UsageError(
                    f"the skill {path} does not exist; name another with --skill, e.g. a run's best_skill.md"
                )
            chosen = load_skill(cfg, root, path)
            try:
                sides = {
                    side: await run_evaluation(session, text, None if split.value == "all" else split.value, attempts)
                    for side, text in (("without", Skill("")), ("with", chosen))
                    if only is None or only.value == side
                }
                return sides, minus(judged(journal), before) if session.judge else None
            finally:
                await session.aclose()

    with _boundary(
        lambda: bool(opened and opened[0].spent),
        message=RESUME if run else "interrupted",
        folder=lambda: _folder_of(opened) if run else None,
    ):
        if skill is not None and not skill.exists():
            raise UsageError(f"there is no skill at {skill}")
        cfg, root = load_config(config, overrides or ())
        sides, verdicts = interrupts.run(score())
        _print_evaluation(sides, opened[0], verdicts, split.value, out)


def _print_evaluation(
    sides: dict[str, Evaluation], session: Session, verdicts: Usage | None, split: str, out: TextIO | None
) -> None:
    """`verdicts` is what the judge took now, None where there is none."""
    from dataclasses import asdict

    from skilltune.report.card import describe_usage
    from skilltune.report.terminal import columns, per_task, stdout

    paired = _paired(session, sides["without"].scores, sides["with"].scores) if len(sides) == 2 else None
    if out:
        data = {name: asdict(side) | {"scores": dict(side.scores)} for name, side in sides.items()}
        judge = {} if verdicts is None else {"judge": asdict(verdicts)}
        _write_json({"split": split, **data, **judge, "difference": paired}, out)
        return
    rows = [(f"{name} the skill", str(side), per_task(side.usage)) for name, side in sides.items()]
    widest = max(len(row[1]) for row in rows)
    console = stdout()
    console.print(columns((f"split {split}", "score".ljust(widest), "per task"), rows))
    if verdicts is not None:
        console.print(f"the judge took {describe_usage(verdicts)}, beside what a task costs")
    if paired is not None:
        console.print(
            f"difference: {100 * paired['gain']:+.1f} points (95 % CI {100 * paired['low']:+.1f}…"
            f"{100 * paired['high']:+.1f}) on {paired['n']} samples scored on both sides, "
            f"fixed {paired['fixed']}, broke {paired['broken']}"
        )


def _paired(session: Session, before: Any, after: Any) -> dict[str, Any] | None:
    """The difference over the samples scored on both sides, with its 95 % interval."""
    from skilltune.gate.certify import by_group
    from skilltune.stats import difference_interval

    pairs = [(before[sample], after[sample]) for sample in before if sample in after]
    if not pairs:
        return None
    differences = [b - a for a, b in pairs]
    fixed, broken = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    samples = (*session.splits.train, *session.splits.select, *session.splits.test)
    old, new = (by_group(samples, {id: of[id] for id in before if id in after}) for of in (before, after))
    low, high = difference_interval(old, new)
    gain = sum(differences) / len(differences)
    return {"gain": gain, "low": low, "high": high, "n": len(pairs), "fixed": fixed, "broken": broken}


@app.command()
def check(
    config: Here = None,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option("--probe", help="Also ask each model once.")] = False,
    judge: Annotated[
        Path | None, typer.Option("--judge", metavar="LABELS", help="Also let the judge read answers you have graded.")
    ] = None,
) -> None:
    """Look before you pay: is the input sound, what may a run take?

    Reads the skill and the samples, and tries the scorer: the expected answer of every sample must score 1, an empty
    one must not. No model is called without --probe or --judge. Exit code 0: fine, 2: there are problems.

    --judge measures how far the judge agrees with you. LABELS is JSONL, a line being {"id": "…", "answer": "…",
    "passed": [true, false]}: the sample, an answer to it, and your verdict on each check that the judge reads.

    \b
    Examples:
      skilltune check skilltune.toml
      skilltune check skills/invoice-totals target.model=openai/gpt-5.5 --probe
      skilltune check skilltune.toml --judge labels.jsonl
    """
    from skilltune.check import check as look
    from skilltune.check import stated_name
    from skilltune.config import load_config
    from skilltune.report.terminal import describe_skill, estimate_rows, stdout
    from skilltune.samples import describe_power, too_small

    console = stdout()
    with _boundary():
        cfg, root = load_config(*_here(config, overrides))
        found = interrupts.run(look(cfg, root, probe=probe, labels=judge, announce=lambda text: console.print(text)))
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
        rows += [("probe", f"{p.role} {p.model}: {p.error or f'answered in {p.seconds:.2f} s'}") for p in found.probes]
        if found.agreement is not None:
            rows += found.agreement.rows()
        rows += [("note", note) for note in found.notes]
        for name, value in (*rows, *found.preview):
            console.print(f"{name:<10}{_indented(value, 10)}", soft_wrap=True)
        shown = found.problems[:20]
        for problem in shown:
            _say(f"problem: {_indented(problem, 9)}", err=True)
        if len(found.problems) > len(shown):
            _say(f"… and {len(found.problems) - len(shown)} more problems", err=True)
        if found.problems:
            raise typer.Exit(2)
        small = too_small(found.splits) if found.splits else ""
        console.print(f"sound, but too few samples: {small}" if small else "fine: nothing to mend")


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG|SKILL_DIR]", help="a TOML file, or a folder with SKILL.md", show_default=False),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Look at the machine and let each model answer once.

    With a config, each model answers one call (a model in two roles, one), and a judge gives a verdict. Then:
    versions, keys (set or not, never their values), how your own code is confined, disk, clock, terminal. Each line is
    ok, warn or fail, and says how to mend what is wrong. Exit code 0: nothing fails, 2: something does.

    \b
    Examples:
      skilltune doctor
      skilltune doctor skilltune.toml
      skilltune doctor skills/invoice-totals target.model=openai/gpt-5.5 --json
    """
    from dataclasses import asdict

    from skilltune.doctor import examine
    from skilltune.report.terminal import stdout

    out = _json_stream(as_json)
    with _boundary():
        findings = interrupts.run(examine(config, overrides or ()))
        failed = sum(finding.level == "fail" for finding in findings)
        if out:
            _write_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, out)
        else:
            console = stdout()
            for finding in findings:
                console.print(f"{finding.level:<6}{finding.topic:<22}{_indented(finding.text, 28)}")
                if finding.fix:
                    console.print(f"{'':<28}→ {_indented(finding.fix, 30)}")
            console.print(f"{failed} of {len(findings)} fail" if failed else "fine: nothing fails")
    if failed:
        raise typer.Exit(2)


@app.command()
def show(
    run: RunFolder,
    edits: Annotated[bool, typer.Option("--edits", help="What each rule of the best skill is worth.")] = False,
    again: Annotated[
        bool, typer.Option("--recompute", help="Make every decision again from the journal alone, and compare.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened in a run.

    Whether it is running, was stopped or has finished; its verdicts, its certificate, what it cost and where its files
    are. Exit codes of --recompute: 0 all equal, 1 something differs, 2 the journal lacks something.

    \b
    Examples:
      skilltune show runs/invoice-totals
      skilltune show runs/invoice-totals --json
      skilltune show runs/invoice-totals --edits
      skilltune show runs/invoice-totals --recompute
    """
    from skilltune.report.terminal import History, show_run, stdout

    out = _json_stream(as_json)
    if again:
        _recompute(run, out)
    if edits:
        _show_edits(run, out)
        return
    with _boundary(), _reading(run) as journal:
        history = History.of(journal)
        if out:
            _write_json(history.to_json(), out)
        else:
            show_run(history, stdout())


def _show_edits(folder: Path, out: TextIO | None) -> None:
    """The ledger of the best skill."""
    from skilltune.report.ledger import ABOUT, HEADERS, read_ledger, row, to_json
    from skilltune.report.terminal import History, columns, stdout

    with _boundary():
        with _reading(folder) as journal:
            best = History.of(journal).best
            rules = read_ledger(journal, best)
        if out:
            _write_json({"run": str(folder), "best": best, "edits": [to_json(rule) for rule in rules]}, out)
        elif rules:
            stdout().print(f"{ABOUT}\n")
            stdout().print(columns(HEADERS, [row(rule) for rule in rules]))
        else:
            stdout().print("no edit stands in the best skill: it is the input")


def _recompute(folder: Path, out: TextIO | None) -> NoReturn:
    """One line per decision, with what differs below it; exits."""
    from dataclasses import asdict

    from skilltune.gate.replay import recompute
    from skilltune.report.terminal import stdout

    with _boundary():
        with _reading(folder) as journal:
            found = interrupts.run(recompute(journal))
        if out:
            _write_json({"run": str(folder), "exit_code": found.exit_code, **asdict(found)}, out)
        else:
            console = stdout()
            for decision in found.decisions:
                verdict = "differs" if decision.differences else "equal"
                console.print(f"{verdict:<9}{decision.name:<13}{_indented(decision.said, 22)}")
                for difference in decision.differences:
                    console.print(f"{'':<9}{_indented(difference, 9)}")
        if found.lacking:
            _say(f"lacking: {found.lacking}", err=True)
    raise typer.Exit(found.exit_code)


@app.command()
def diff(
    run: RunFolder,
    old: Annotated[str, typer.Argument(metavar="V1", help="A version's number, or best.")] = "0",
    new: Annotated[str, typer.Argument(metavar="V2", help="A version's number, or best.")] = "best",
) -> None:
    """Compare two versions of the skill: the input and the best.

    \b
    Examples:
      skilltune diff runs/invoice-totals
      skilltune diff runs/invoice-totals 2 3
    """
    from skilltune.report.terminal import History, difference, stdout

    with _boundary():
        with _reading(run) as journal:
            history = History.of(journal)
            before, after = (journal.kept(history.hash_of(version)) for version in (old, new))
            if before is None or after is None:
                raise UsageError(f"{run} no longer holds the text of that version")
            names = (f"version {old}" if old != "best" else old, f"version {new}" if new != "best" else new)
            text = difference(before.decode("utf-8", "replace"), after.decode("utf-8", "replace"), names)
        stdout().print(text if text.plain else f"{names[0]} and {names[1]} are the same")


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where to write it. [default: RUN/report.html]")
    ] = None,
) -> None:
    """Write what happened in a run as one HTML file.

    Verdict and certificate, scores, what changed in the skill and why, every sample under every version, transcripts,
    spend. The file needs no network and stays under 2 MB; a run that is under way is shown as far as it is.

    \b
    Examples:
      skilltune report runs/invoice-totals
      skilltune report runs/invoice-totals -o invoice-totals.html
    """
    from skilltune.files import write_atomic
    from skilltune.report.html import report as page

    with _boundary():
        with _reading(run) as journal:
            text = page(journal)
        path = out or run / "report.html"
        try:
            write_atomic(path, text)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        _say(f"wrote {path}")


@app.command()
def export(
    run: RunFolder,
    to: Annotated[
        Kind,
        typer.Option(
            "--to", parser=_kind, metavar="KIND", help="What to write: a plain file, or an agent's skill folder."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The project to write into. [default: current folder]")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The skill's name, where it has none.")] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="When an agent should use it, where the skill does not say.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a skill of that name that differs.")] = False,
) -> None:
    """Write the trained skill where an agent finds it.

    claude writes .claude/skills/NAME/, codex and agents .agents/skills/NAME/, copilot .github/skills/NAME/, cursor,
    gemini and opencode .cursor/, .gemini/ and .opencode/skills/NAME/, plugin a Claude Code plugin NAME/, file NAME.md.
    Only the trained lines differ from the input; evals/, runs and skilltune.toml stay behind.
    skill-creator writes the run's answers and grades as NAME-workspace/iteration-N/ for the viewer of that skill.

    \b
    Examples:
      skilltune export runs/invoice-totals --to claude
      skilltune export runs/rules --to codex --name rules --description "House rules. Use for every ticket."
    """
    from skilltune.export import best_of
    from skilltune.export import export as write

    with _boundary():
        with _reading(run) as journal:
            if to is Kind.skill_creator:
                from skilltune.report.skill_creator import export_workspace

                _say(f"wrote {export_workspace(journal, out or Path())}")
                return
            skill = best_of(journal)
        path = write(skill, to.value, out, name=name, description=description, force=force)
        _say(f"wrote {path}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a sample file or folder, or hf:NAME")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where to write. [default: stdout]")
    ] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--field", metavar="OURS=THEIRS", help="A field by its name in SOURCE.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write samples of any readable format as plain JSONL.

    The result loads to the same samples: ids, checks, files and splits included.

    \b
    Examples:
      skilltune convert promptfooconfig.yaml -o data.jsonl
      skilltune convert data.csv --field input=question --field target=solution -o data.jsonl
      skilltune convert hf:openai/gsm8k/main@train -o data.jsonl
    """
    from skilltune.convert import convert as read

    with _boundary():
        pairs = [field.partition("=") for field in fields or ()]
        if wrong := [ours for ours, equals, theirs in pairs if not (ours and equals and theirs)]:
            raise UsageError(f'--field "{wrong[0]}" must look like input=question')
        named = {ours: theirs for ours, _, theirs in pairs}
        text = read(source, out, fields=named, force=force, warn=lambda text: _say(f"warning: {text}", err=True))
        if out is None:
            typer.echo(visible_json(text), nl=False)
        else:
            _say(f"wrote {text.count(chr(10)):,} samples to {out}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the skill.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="The skill's name: lower case, digits, hyphens.")] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="What it does and when an agent should use it.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="What a task looks like, in a sentence.")] = None,
    score: Annotated[str | None, typer.Option("--score", help="How answers are scored, e.g. exact, number.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The model that does the tasks.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="The model that proposes edits.")] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="VARIABLE", help="What holds the key of the optimizer's endpoint.")
    ] = "",
    document: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Draft samples from it with the optimizer's model.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite config and samples; never a SKILL.md.")] = False,
) -> None:
    """Begin a skill: SKILL.md, five example tasks to overwrite, and a commented config.

    A SKILL.md and an evals/evals.json that are there already are kept byte for byte, with --force too: the config is
    added, and tasks where there are no evals. (Delete them first to begin from the template.) Asks what no option says.
    With --from, the optimizer's model drafts tasks from a document; each is marked "reviewed": false, and training
    refuses it until you have read it and set that to true.

    \b
    Examples:
      skilltune init skills/invoice-totals
      skilltune init . --name dates --description "Writes dates. Use for every date." --score exact --yes
      skilltune init . --from handbook.md --optimizer anthropic/claude-opus-5
    """
    from skilltune.config import EVALS
    from skilltune.scaffold import ANSWER_ONLY, Plan, describe_evals, draft_with, propose, scaffold

    with _boundary():
        given = {"name": name, "description": description, "task": task, "score": score, "target": target}
        given |= {"optimizer": optimizer}
        plan: dict[str, str] = {}
        questions = propose(folder, drafting=document is not None)
        if answered := [f"--{key}" for key, value in given.items() if value is not None and key not in questions]:
            raise UsageError(
                f"{folder} has a SKILL.md already, which is kept as it is: leave out {', '.join(answered)}, or delete "
                "it to begin from the template"
            )
        for key, (question, default) in questions.items():
            value = given[key]
            if value is None and not yes:
                if not sys.stdin.isatty():
                    raise UsageError(f"nobody is there to answer: add --{key}, or --yes for the default ({default})")
                value = typer.prompt(question, default=default)
            plan[key] = default if value is None else value
        kept = {"name": folder.resolve().name, "description": "", "task": ANSWER_ONLY}  # of a SKILL.md that is there
        chosen = Plan(**(kept | plan), key_env=_declared(key_env))
        evals = describe_evals(folder / EVALS) if document is None and (folder / EVALS).is_file() else ""
        drafts = interrupts.run(draft_with(chosen, document)) if document is not None else []
        for path in scaffold(folder, chosen, drafts=drafts, force=force):
            _say(f"wrote {path}")
        if "name" not in questions:
            _say(f"kept {folder / 'SKILL.md'}")
        todo = f"write your own tasks into {folder / chosen.samples(folder)}, then "
        if drafts:
            todo = f'read the {len(drafts)} drafts in {folder / "samples.jsonl"}, set "reviewed" to true in each, then '
        elif evals:
            _say(f"kept {folder / EVALS}: {evals}")
            todo = ""
        _say(f"next: {todo}skilltune check {folder}")


@app.command()
def answer(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of handoff:DIR. In a config it counts from the config's.")
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A question, by its name or number.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The answer to NAME. [default: stdin]")
    ] = None,
    next_: Annotated[bool, typer.Option("--next", help="Print the oldest open question.")] = False,
    loop: Annotated[
        str | None, typer.Option("--loop", metavar="COMMAND", help="Let a command answer all questions.")
    ] = None,
    idle: Annotated[
        float, typer.Option("--idle", min=0, help="With --loop: end when no run used DIR for so many seconds.")
    ] = 10.0,
) -> None:
    """Answer the questions of a run whose optimizer is handoff:DIR.

    Without options it lists what is open. An answer is checked for its form here, with a note on quotes and places that
    the question does not hold, and by the run for the rest; what cannot be used is moved aside with the reason, and the
    question stays open. Until a run has used it, an answer can be replaced by another.

    With --loop the COMMAND gets each question on stdin and prints the answer. It runs in an empty folder, and with
    your whole environment, keys included: name a command that you trust with them. Run several loops to answer several
    questions at once.

    \b
    Examples:
      skilltune answer answers
      skilltune answer answers --next
      skilltune answer answers 0001-reflect-1a2b3c4d --file answer.json
      skilltune answer answers --loop 'claude -p'

    \b
    Exit codes:
      0  done
      1  --next, and nothing is open
      2  an answer that cannot be used, a command that failed, a DIR that no run has used
    """
    from skilltune.answer import answer_by, hand_in, named, open_questions
    from skilltune.optimizer.handoff import STRAY, strays
    from skilltune.report.terminal import describe_questions

    with _boundary():
        if (file is not None and name is None) or sum((name is not None, next_, loop is not None)) > 1:
            raise UsageError("give one of NAME (with --file or stdin), --next and --loop")
        if loop is not None:
            count = interrupts.run(answer_by(folder, loop, idle=idle, say=lambda text: _say(text, err=True)))
            _say(f"{count} answered; no run waits in {folder}")
        elif name is not None:
            question = named(folder, name)
            try:
                text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read the answer: {error}") from error
            again = "" if question.is_open else ", in place of an answer that no run had used"
            doubts = hand_in(question, text)
            _say(f"answered {question.name}{again}")
            for doubt in doubts:
                _say(f"note: {doubt}", err=True)
            if doubts:
                _say(REFUSED, err=True)
        else:
            found = open_questions(folder)
            if next_ and found:
                _say(found[0].text(), nl=False)
            elif next_:
                _say(f"nothing is open in {folder}", err=True)
                raise typer.Exit(1)
            else:
                _say(describe_questions(folder, found))
            for path in strays(folder):
                _say(f"note: {path.name}: {STRAY}", err=True)


@contextmanager
def _reading(folder: Path) -> Iterator[Run]:
    """A run to look at. All that shows it belongs into the block: a journal of another shape is "damaged" there."""
    from skilltune.run import Run

    with Run.read(folder) as journal, journal.reading():
        yield journal


def _fail(message: str, exit_code: int) -> None:
    _say(f"error: {message}", err=True)


def _folder_of(opened: list[Session]) -> Path | None:
    return opened[0].run.folder if opened else None


@contextmanager
def _boundary(
    spent: Callable[[], bool] = lambda: False,
    fail: Callable[[str, int], None] = _fail,
    message: str = "interrupted",
    gone: str = "",
    folder: Callable[[], Path | None] = lambda: None,
) -> Iterator[None]:
    """What was raised on purpose becomes a message and an exit code. Anything else is an error of skilltune itself:
    `OUR_FAULT`, with its traceback in the run's `folder`.

    What only a call could reveal (a wrong key, a full disk) is 2 while nothing was `spent`, 3 after. Output that nobody
    reads any more ends a command quietly, and one that it cuts short with the message `gone`, as an interrupt.
    """

    def leave(text: str, exit_code: int) -> NoReturn:
        with suppress(BrokenPipeError):
            fail(text, exit_code)
        raise typer.Exit(exit_code)

    try:
        with interrupts.during(message):
            yield
            sys.stdout.flush()
    except (KeyboardInterrupt, asyncio.CancelledError):
        leave(message, INTERRUPTED)
    except BrokenPipeError:
        _delivered()
        if gone:
            leave(gone, INTERRUPTED)
        raise typer.Exit(PIPE_CLOSED) from None
    except (RunError, CallConfigError) as error:
        leave(str(error), 3 if spent() else 2)
    except SkilltuneError as error:
        leave(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in FULL:
            leave(_our_fault(error, folder()), OUR_FAULT)
        place = f" ({error.filename})" if error.filename else ""
        fix = "free some space on the disk, then run the same command again"
        leave(f"{error.strerror}{place}: {fix}", 3 if spent() else 2)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        leave(_our_fault(error, folder()), OUR_FAULT)


if __name__ == "__main__":
    main()
