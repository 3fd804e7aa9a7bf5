"""`skilltune check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import Data, Here, Overrides, Tasks, app, config_and_overrides, indented, with_tasks


@app.command()
def check(
    config: Here = None,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option("--probe", help="Also call each model once.")] = False,
    tasks: Tasks = None,
    data: Data = None,
    judge: Annotated[
        Path | None,
        typer.Option("--judge", metavar="LABELS", help="Also compare the judge with answers that you have graded."),
    ] = None,
) -> None:
    """Test skill, samples and scorer, and estimate the cost of a run.

    The expected answer of every sample must score 1, and an empty answer must not. The command also looks for samples
    that contradict each other, and for tricks that would score without doing the task. It calls no model unless --probe
    or --judge is given.

    --judge measures the agreement of the judge with you. Each line of LABELS is a JSON object {"id": "…", "answer":
    "…", "passed": [true, false]}: a sample's id, an answer to it, and your verdict on each check that the judge reads.

    Exit code 0: no problems; 2: at least one problem.

    \b
    Examples:
      skilltune check skilltune.toml
      skilltune check skills/invoice-totals target.model=openai/gpt-5.5 --probe
      skilltune check skilltune.toml --judge labels.jsonl
    """
    from skilltune.config import load_config
    from skilltune.preflight.check import check as look
    from skilltune.report.terminal import check_rows, stdout
    from skilltune.samples import too_small

    console = stdout()
    with boundary():
        source, given = config_and_overrides(config, overrides)
        cfg, root = load_config(source, with_tasks(given, tasks, data))
        found = interrupts.run(look(cfg, root, probe=probe, labels=judge, announce=lambda text: console.print(text)))
        for name, value in (*check_rows(found), *found.preview):
            console.print(f"{name:<10}{indented(value, 10)}", soft_wrap=True)
        shown = found.problems[:20]
        for problem in shown:
            say(f"problem: {indented(problem, 9)}", err=True)
        if len(found.problems) > len(shown):
            say(f"… and {len(found.problems) - len(shown)} more problems", err=True)
        if found.problems:
            raise typer.Exit(2)
        small = too_small(found.splits) if found.splits else ""
        console.print(f"sound, but too few samples: {small}" if small else "fine: no problems")
