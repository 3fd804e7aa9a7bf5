"""`skilltune train`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skilltune.cli.boundary import boundary, folder_of, interrupts
from skilltune.cli.options import (
    AsJson,
    Data,
    Here,
    Overrides,
    Tasks,
    app,
    config_and_overrides,
    json_stream,
    with_tasks,
)

if TYPE_CHECKING:
    from skilltune.parts import Parts

RESUME_FORK = "interrupted; to go on name the fork's folder with --run DIR in place of --fork"
RESUME = "interrupted; run the same command to go on"


@app.command()
def train(
    config: Here = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="Run folder. [default: runs/NAME beside the config]", show_default=False
        ),
    ] = None,
    fork: Annotated[
        bool,
        typer.Option(
            "--fork",
            help="Start another run beside the old one and reuse its answers that still apply. Resume the new run with "
            "--run DIR.",
        ),
    ] = False,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="ID", help="Remove a sample from the run for good. May be given several times."),
    ] = None,
    tasks: Tasks = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Train a skill. The same command again resumes the run.

    Each step runs a batch of train samples, asks the optimizer for edits and lets the gate judge them on the select
    samples. The best version is certified on the test samples and written to best_skill.md in the run folder. If none
    is better, the input is kept.

    The command first prints the plan and the estimated cost; set a limit with budget.usd, budget.calls or
    budget.minutes. The run folder keeps every paid answer, so a stopped run continues and pays nothing twice. To pause
    a run, create a file named stop in its folder. With --json each event is one JSON line on stdout.

    \b
    Examples:
      skilltune train
      skilltune train skills/invoice-totals target.model=openai/gpt-5.5 budget.usd=5
      skilltune train skilltune.toml preset=paper --run runs/paper

    \b
    Exit codes:
      0  a better skill is certified or, without a test split, accepted
      1  finished, nothing better found; the input is kept unchanged
      2  usage or configuration error, nothing spent
      3  stopped by a provider or the network (resumable)
      4  stopped by the budget or an interrupt (resumable)
      5  finished undecided: a version was accepted, but not certified
      70  a bug in skilltune: the traceback is in the run folder (resumable)
    """
    from skilltune.api import run_training
    from skilltune.config import load_config
    from skilltune.report.terminal import Events, Lines, Live, stdout

    source, given = config_and_overrides(config, overrides)
    given = with_tasks(given, tasks, data)

    def again(folder: Path) -> str:
        """The command that resumes the run in `folder`."""
        place = ["--run", str(folder)] if fork or run else []
        return shlex.join(["skilltune", "train", str(source), *given, *place])

    out = json_stream(as_json)
    view = Events(out, again) if out else (Live if sys.stdout.isatty() else Lines)(stdout(), again)
    opened: list[Parts] = []

    def ready(session: Parts) -> None:
        opened.append(session)
        view.ready(session)
        session.run.note("command", line=again(session.run.folder), folder=os.getcwd())

    message = RESUME_FORK if fork else RESUME
    gone = message.replace("interrupted", "the reader of the output has gone")
    with boundary(lambda: bool(opened and opened[0].run.spent), view.failed, message, gone, lambda: folder_of(opened)):
        cfg, root = load_config(source, given)
        with view:
            result = interrupts.run(
                run_training(cfg, root, run, fork=fork, drop=drop or (), listeners=[view], ready=ready)
            )
        view.finished(result)
    raise typer.Exit(result.exit_code)
