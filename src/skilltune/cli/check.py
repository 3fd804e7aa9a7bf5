"""`skilltune check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import Data, Here, Overrides, Tasks, app, config_and_overrides, indented, with_tasks

if TYPE_CHECKING:
    from skilltune.preflight.probe import Probe


def _answered(probe: Probe) -> str:
    return f"answered in {probe.seconds:.2f} s" + (f"; {probe.note}" if probe.note else "")


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
    from skilltune.preflight.check import stated_name
    from skilltune.report.terminal import describe_skill, estimate_rows, stdout
    from skilltune.samples import describe_power, too_small

    console = stdout()
    with boundary():
        source, given = config_and_overrides(config, overrides)
        cfg, root = load_config(source, with_tasks(given, tasks, data))
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
        rows += [("probe", f"{p.role} {p.model}: {p.error or _answered(p)}") for p in found.probes]
        if found.agreement is not None:
            rows += found.agreement.rows()
        rows += [("note", note) for note in found.notes]
        for name, value in (*rows, *found.preview):
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
