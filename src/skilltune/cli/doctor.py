"""`skilltune doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import AsJson, Data, Overrides, Tasks, app, indented, json_stream, with_tasks, write_json


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG|SKILL_DIR]", help="A TOML file, or a folder with SKILL.md.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    tasks: Tasks = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Test the machine, the keys and each model.

    With a config, each model answers one call, an agent does one short task, and a judge gives one verdict. Without a
    config no model is called. The other lines show versions, keys (set or not, never their values), the confinement
    of your own code, disk, clock and terminal. Each line is ok, warn or fail, and tells how to fix a fault.

    Exit code 0: nothing fails; 2: something fails.

    \b
    Examples:
      skilltune doctor
      skilltune doctor skilltune.toml
      skilltune doctor skills/invoice-totals target.model=openai/gpt-5.5 --json
    """
    from dataclasses import asdict

    from skilltune.errors import UsageError
    from skilltune.preflight.doctor import examine
    from skilltune.report.terminal import stdout

    out = json_stream(as_json)
    with boundary():
        if config is None and (tasks is not None or data is not None):
            raise UsageError("--tasks and --data need a config or a skill folder: name one")
        findings = interrupts.run(examine(config, with_tasks(overrides, tasks, data), lambda text: say(text, err=True)))
        failed = sum(finding.level == "fail" for finding in findings)
        if out:
            write_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, out)
        else:
            console = stdout()
            for finding in findings:
                console.print(f"{finding.level:<6}{finding.topic:<22}{indented(finding.text, 28)}")
                if finding.fix:
                    console.print(f"{'':<28}→ {indented(finding.fix, 30)}")
            console.print(f"{failed} of {len(findings)} fail" if failed else "fine: nothing fails")
    if failed:
        raise typer.Exit(2)
