"""`skilltune adopt`."""

from __future__ import annotations

from skilltune.cli.boundary import boundary, say
from skilltune.cli.options import RunFolder, app, reading


@app.command()
def adopt(run: RunFolder) -> None:
    """Replace the skill that a finished run was given by the skill that it ships.

    Only SKILL.md, or the .md file, is written. Nothing is written if that file has changed since the training. Use
    `skilltune export` to write the skill somewhere else.

    \b
    Examples:
      skilltune adopt runs/invoice-totals
    """
    from skilltune.history.adopt import adoption
    from skilltune.history.record import Record

    with boundary():
        with reading(run) as journal:
            change = adoption(Record.of(journal))
        say(f"wrote {change.write()}")
