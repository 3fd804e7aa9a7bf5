"""`skilltune doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts
from skilltune.cli.options import AsJson, Overrides, app, indented, json_stream, write_json


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

    from skilltune.preflight.doctor import examine
    from skilltune.report.terminal import stdout

    out = json_stream(as_json)
    with boundary():
        findings = interrupts.run(examine(config, overrides or ()))
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
