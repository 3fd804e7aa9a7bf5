"""`skilltune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, say
from skilltune.cli.options import RunFolder, app, reading


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

    with boundary():
        with reading(run) as journal:
            if to is Kind.skill_creator:
                from skilltune.report.skill_creator import export_workspace

                say(f"wrote {export_workspace(journal, out or Path())}")
                return
            skill = best_of(journal)
        path = write(skill, to.value, out, name=name, description=description, force=force)
        say(f"wrote {path}")
