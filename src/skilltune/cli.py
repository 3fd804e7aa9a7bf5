"""The command line: each command reads its arguments, calls the library, prints, and maps the end to an exit code.

Only typer and the errors are imported at the top, so that `skilltune --help` stays fast; a command imports the rest.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from skilltune import __version__
from skilltune.errors import CallConfigError, RunError, SkilltuneError, UsageError

if TYPE_CHECKING:
    from skilltune.api import Evaluation
    from skilltune.session import Session

T = TypeVar("T")

INTERRUPTED = 4
RESUME = "interrupted; run the same command to go on"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Source = Annotated[Path, typer.Argument(metavar="CONFIG|SKILL_DIR", help="a TOML file, or a folder with SKILL.md")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="config keys to override, e.g. train.epochs=2")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, e.g. runs/invoice-totals")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout and nothing else.")]


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


def main() -> None:
    """The entry point of the script `skilltune`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an ASCII terminal is no reason to crash
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skilltune {__version__}")
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
      skilltune check skilltune.toml        is everything sound, what would it cost?
      skilltune train skilltune.toml        train; the same command resumes
      skilltune show runs/NAME              what happened
      skilltune export runs/NAME --to claude
    """


@app.command()
def train(
    config: Source,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Run folder. [default: runs/NAME by the config]", show_default=False),
    ] = None,
    fork: Annotated[
        bool, typer.Option("--fork", help="Start a new run beside the old one, reusing answers that still apply.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a skill; run the same command again to resume.

    Prints the plan and the estimated cost, then trains. Every paid answer is kept in the run folder, so a run that was
    stopped anywhere goes on where it was and pays nothing twice. With --json every event is one JSON line on stdout.

    \b
    Examples:
      skilltune train skilltune.toml
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
    """
    from skilltune.api import run_training
    from skilltune.config import load_config
    from skilltune.report.terminal import Events, Lines, Live, stdout

    view = Events(sys.stdout) if as_json else (Live if sys.stdout.isatty() else Lines)(stdout())
    opened: list[Session] = []

    def ready(session: Session) -> None:
        opened.append(session)
        view.ready(session)

    with _boundary(lambda: bool(opened and opened[0].run.usage), view.failed, RESUME):
        cfg, root = load_config(config, overrides or ())
        with view:
            result = _run(run_training(cfg, root, run, fork=fork, listeners=[view], ready=ready))
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

    Shows mean scores with 95 % intervals, the paired difference, and what a task costs. Name the folder of a
    training run with --run and no answer that it holds is paid again.

    \b
    Examples:
      skilltune eval skilltune.toml
      skilltune eval skilltune.toml --skill runs/desk/best_skill.md --run runs/desk
      skilltune eval skilltune.toml --split all --only without target.model=openai/gpt-5.5
    """
    from skilltune.api import run_evaluation, scratch_run
    from skilltune.config import MAY_DIFFER, load_config
    from skilltune.errors import UsageError
    from skilltune.run import Run
    from skilltune.session import build_session
    from skilltune.skill import Skill

    opened: list[Session] = []

    async def score() -> dict[str, Evaluation]:
        with Run.open(run, cfg.to_json(), may_differ=MAY_DIFFER) if run else scratch_run(None) as journal:
            session = build_session(cfg, journal, root)
            opened.append(session)
            path = skill or root / cfg.skill
            if not path.exists() and (only is None or only.value == "with"):
                raise UsageError(
                    f"the skill {path} does not exist; name another with --skill, e.g. a run's best_skill.md"
                )
            chosen = Skill.load(path)
            try:
                return {
                    side: await run_evaluation(session, text, None if split.value == "all" else split.value, attempts)
                    for side, text in (("without", Skill("")), ("with", chosen))
                    if only is None or only.value == side
                }
            finally:
                await session.aclose()

    with _boundary(lambda: bool(opened and opened[0].run.usage), message=RESUME if run else "interrupted"):
        if skill is not None and not skill.exists():
            raise UsageError(f"there is no skill at {skill}")
        cfg, root = load_config(config, overrides or ())
        sides = _run(score())
        _print_evaluation(sides, split.value, cfg.seed, as_json)


def _print_evaluation(sides: dict[str, Evaluation], split: str, seed: int, as_json: bool) -> None:
    from dataclasses import asdict

    from skilltune.report.terminal import columns, per_task, stdout

    paired = _paired(sides["without"].scores, sides["with"].scores, seed) if len(sides) == 2 else None
    if as_json:
        data = {name: asdict(side) | {"scores": dict(side.scores)} for name, side in sides.items()}
        typer.echo(json.dumps({"split": split, **data, "difference": paired}))
        return
    rows = [(f"{name} the skill", str(side), per_task(side.usage)) for name, side in sides.items()]
    widest = max(len(row[1]) for row in rows)
    console = stdout()
    console.print(columns((f"split {split}", "score".ljust(widest), "per task"), rows))
    if paired is not None:
        console.print(
            f"difference: {100 * paired['gain']:+.1f} points (95 % CI {100 * paired['low']:+.1f}…"
            f"{100 * paired['high']:+.1f}) on {paired['n']} samples scored on both sides, "
            f"fixed {paired['fixed']}, broke {paired['broken']}"
        )


def _paired(before: Any, after: Any, seed: int) -> dict[str, Any] | None:
    """The difference over the samples scored on both sides, with its 95 % interval."""
    from skilltune.gate.stats import bootstrap_interval, paired_difference_interval

    pairs = [(before[sample], after[sample]) for sample in before if sample in after]
    if not pairs:
        return None
    differences = [b - a for a, b in pairs]
    fixed, broken = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if all(value in (0.0, 1.0) for pair in pairs for value in pair):
        both, neither = sum(a == b == 1 for a, b in pairs), sum(a == b == 0 for a, b in pairs)
        low, high = paired_difference_interval(both, fixed, broken, neither)
    else:
        low, high = bootstrap_interval(differences, seed=seed)
    gain = sum(differences) / len(differences)
    return {"gain": gain, "low": low, "high": high, "n": len(pairs), "fixed": fixed, "broken": broken}


@app.command()
def check(
    config: Source,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option("--probe", help="Also make one tiny call to each model.")] = False,
) -> None:
    """Look before you pay: is the input sound, what may a run take?

    Reads the skill and the samples, and tries the scorer: the expected answer of every sample must score 1, an empty
    one must not. No model is called without --probe. Exit code 0: fine, 2: there are problems.

    \b
    Examples:
      skilltune check skilltune.toml
      skilltune check skills/invoice-totals target.model=openai/gpt-5.5 --probe
    """
    from skilltune.check import check as look
    from skilltune.config import load_config
    from skilltune.report.terminal import clean, estimate_rows, stdout
    from skilltune.samples import describe_power

    with _boundary():
        cfg, root = load_config(config, overrides or ())
        found = _run(look(cfg, root, probe=probe))
    rows: list[tuple[str, str]] = []
    if found.skill is not None:
        rows.append(("skill", f"{found.skill.name}, about {found.skill.tokens:,} tokens"))
    if found.splits is not None:
        sizes, *power = describe_power(found.splits).splitlines()
        groups = f" · {found.groups} groups" if found.groups else ""
        rows += [("samples", sizes + groups), *(("power", text) for text in power)]
    if found.estimate is not None:
        rows += estimate_rows(found.estimate)
    rows += [("probe", f"{p.role} {p.model}: {p.error or f'answered in {p.seconds:.2f} s'}") for p in found.probes]
    rows += [("note", note) for note in found.notes]
    console = stdout()
    for name, value in rows:
        console.print(f"{name:<10}{clean(value)}")
    shown = found.problems[:20]
    for problem in shown:
        typer.echo(f"problem: {clean(problem)}", err=True)
    if len(found.problems) > len(shown):
        typer.echo(f"… and {len(found.problems) - len(shown)} more problems", err=True)
    if found.problems:
        raise typer.Exit(2)
    console.print("fine: nothing to mend")


@app.command()
def show(run: RunFolder, as_json: AsJson = False) -> None:
    """Show what happened in a run.

    Its verdicts, its certificate, what it cost and where its files are; also while it is under way.

    \b
    Examples:
      skilltune show runs/invoice-totals
      skilltune show runs/invoice-totals --json
    """
    from skilltune.report.terminal import History, show_run, stdout
    from skilltune.run import Run

    with _boundary():
        journal = Run.read(run)
        history = History.of(journal)
        journal.close()
        if as_json:
            typer.echo(json.dumps(history.to_json()))
        else:
            show_run(history, stdout())


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
    from skilltune.run import Run

    with _boundary():
        journal = Run.read(run)
        history = History.of(journal)
        before, after = (journal.kept(history.hash_of(version)) for version in (old, new))
        journal.close()
        if before is None or after is None:
            raise UsageError(f"{run} no longer holds the text of that version")
        names = (f"version {old}" if old != "best" else old, f"version {new}" if new != "best" else new)
        text = difference(before.decode("utf-8", "replace"), after.decode("utf-8", "replace"), names)
        stdout().print(text if text.plain else f"{names[0]} and {names[1]} are the same")


@app.command()
def export(
    run: RunFolder,
    to: Annotated[Kind, typer.Option("--to", help="What to write: a plain file, or an agent's skill folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The project to write into. [default: current folder]")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The skill's name, where it has none.")] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="When an agent should use it, where the skill does not say.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite another skill of that name.")] = False,
) -> None:
    """Write the trained skill where an agent finds it.

    claude writes .claude/skills/NAME/, codex .codex/skills/NAME/, agents .agents/skills/NAME/, file NAME.md. Only the
    trained lines differ from the input.

    \b
    Examples:
      skilltune export runs/invoice-totals --to claude
      skilltune export runs/rules --to codex --name rules --description "House rules. Use for every ticket."
    """
    from skilltune.export import best_of
    from skilltune.export import export as write
    from skilltune.run import Run

    with _boundary():
        if out is None and Path.cwd() == Path.home() and to is not Kind.file:
            raise UsageError(
                "the current folder is your home, where every project's agent would read it: name --out DIR"
            )
        journal = Run.read(run)
        skill = best_of(journal)
        journal.close()
        path = write(skill, to.value, out or Path(), name=name, description=description, force=force)
        typer.echo(f"wrote {path}")


def _fail(message: str, exit_code: int) -> None:
    from skilltune.report.terminal import clean

    typer.echo(f"error: {clean(message)}", err=True)


@contextmanager
def _boundary(
    spent: Callable[[], bool] = lambda: False,
    fail: Callable[[str, int], None] = _fail,
    message: str = "interrupted",
) -> Iterator[None]:
    """What was raised on purpose becomes a message and an exit code; anything else keeps its traceback.

    What only a call could reveal (a wrong key, a full disk) is 2 while nothing was `spent`, 3 after. SIGTERM is taken
    as Ctrl-C, so that a run that is told to end leaves in the same order.
    """

    def leave(text: str, exit_code: int) -> NoReturn:
        fail(text, exit_code)
        raise typer.Exit(exit_code)

    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        leave(message, INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails again
        leave(message.replace("interrupted", "the reader of the output has gone"), INTERRUPTED)
    except (RunError, CallConfigError) as error:
        leave(str(error), 3 if spent() else 2)
    except SkilltuneError as error:
        leave(str(error), error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in which SIGTERM cancels the work in good order, wherever it waits, instead of breaking into it."""

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        with suppress(NotImplementedError):  # Windows has no such handlers
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    return asyncio.run(main())


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)  # asyncio's while it runs; none in a background job of a script
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


if __name__ == "__main__":
    main()
