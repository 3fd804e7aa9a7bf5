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
    antigravity = "antigravity"
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
            "--to", parser=_kind, metavar="KIND", help="The form to write: a plain file, or an agent's skill folder."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The project to write into. [default: current folder]")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The skill's name, if it has no frontmatter.")] = None,
    description: Annotated[
        str | None,
        typer.Option("--description", help="When an agent should use the skill, if it has no frontmatter."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite another skill of that name.")] = False,
) -> None:
    """Write the trained skill to the folder where an agent looks for skills.

    \b
    The KIND decides what is written below DIR:
      claude         .claude/skills/NAME/
      codex, agents, antigravity
                     .agents/skills/NAME/
      copilot        .github/skills/NAME/
      cursor         .cursor/skills/NAME/
      gemini         .gemini/skills/NAME/ (Gemini CLI, which serves companies only)
      opencode       .opencode/skills/NAME/
      plugin         NAME/, a Claude Code plugin
      file           NAME.md
      skill-creator  NAME-workspace/iteration-N/, answers and grades for the viewer of that skill

    Only the trained lines differ from the input. Files of the training (evals/, runs, skilltune.toml) are not exported.

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
