"""`skilltune table`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from skilltune.cli.boundary import boundary, say
from skilltune.cli.options import app, reading
from skilltune.errors import UsageError

Form = Literal["text", "markdown", "csv", "html"]
ENDINGS: dict[str, Form] = {".md": "markdown", ".csv": "csv", ".html": "html", ".txt": "text"}


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, e.g. runs/*.")],
    form: Annotated[
        Form | None,
        typer.Option("--format", help="[default: from the ending of --out, else text]", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write to a file. [default: stdout]")
    ] = None,
) -> None:
    """Compare runs in one table: targets down, benchmarks across, without and with the skill.

    Below it, one line per run has the gain with its interval, tokens, calls, cost and seed. Runs that differ only in
    their seed share a cell. Scores are those of the certificate. A run without one is listed with the reason. A run of
    `eval --targets` has a line for each target.

    \b
    Examples:
      skilltune table runs/*
      skilltune table runs/* -o table.html
      skilltune table runs/* --format csv > table.csv
    """
    with boundary():
        if form is None and out is not None and out.suffix and out.suffix not in ENDINGS:
            raise UsageError(f"{out}: unknown ending; use one of {', '.join(ENDINGS)}, or name the --format")
        from skilltune.files import write_atomic
        from skilltune.history.record import Record
        from skilltune.report.table import lines_of, write_table

        with ExitStack() as stack:
            records = [Record.of(stack.enter_context(reading(run))) for run in runs]
            text = write_table(lines_of(records), form or ENDINGS.get(out.suffix if out else "", "text"))
        if out is None:
            say(text.rstrip("\n"))
            return
        try:
            write_atomic(out, text)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
        say(f"wrote {out}")
