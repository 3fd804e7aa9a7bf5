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
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where to write it. [default: RUN/report.html]")
    ] = None,
) -> None:
    """Write what happened in a run as one HTML file.

    Verdict and certificate, scores, what changed in the skill and why, every sample under every version, transcripts,
    spend. The file needs no network and stays under 2 MB; a run that is under way is shown as far as it is.

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
