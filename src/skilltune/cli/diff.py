"""`skilltune diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from skilltune.cli.boundary import boundary
from skilltune.cli.options import RunFolder, app, reading
from skilltune.errors import UsageError


@app.command()
def diff(
    run: RunFolder,
    old: Annotated[str, typer.Argument(metavar="V1", help="A version's number, or best.")] = "0",
    new: Annotated[str, typer.Argument(metavar="V2", help="A version's number, or best.")] = "best",
) -> None:
    """Show the difference between two versions of the skill.

    Version 0 is the input, and best is the version that the run ships.

    \b
    Examples:
      skilltune diff runs/invoice-totals
      skilltune diff runs/invoice-totals 2 3
    """
    from skilltune.history.record import Record
    from skilltune.report.terminal import difference, stdout

    with boundary():
        with reading(run) as journal:
            record = Record.of(journal)
            before, after = (journal.blob(record.hash_of(version)) for version in (old, new))
            if before is None or after is None:
                raise UsageError(f"{run} no longer holds the text of that version")
            names = (f"version {old}" if old != "best" else old, f"version {new}" if new != "best" else new)
            text = difference(before.decode("utf-8", "replace"), after.decode("utf-8", "replace"), names)
        stdout().print(text if text.plain else f"{names[0]} and {names[1]} are the same")
