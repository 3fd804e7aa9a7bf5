"""`skilltune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, say
from skilltune.cli.options import RunFolder, app, reading
from skilltune.errors import UsageError


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The file to write. [default: RUN/report.html]")
    ] = None,
) -> None:
    """Write a run's report as one HTML file.

    It shows the verdicts and the certificate, the scores, each change of the skill with its reason, every sample under
    every version, transcripts and the cost. The file needs no network and stays under 2 MB. A report of a running
    training shows the steps so far.

    \b
    Examples:
      skilltune report runs/invoice-totals
      skilltune report runs/invoice-totals -o invoice-totals.html
    """
    from skilltune.files import write_atomic
    from skilltune.report.html import report as page

    with boundary():
        with reading(run) as journal:
            text = page(journal)
        path = out or run / "report.html"
        try:
            write_atomic(path, text)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        say(f"wrote {path}")
