"""`skilltune show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import AsJson, RunFolder, app, indented, json_stream, reading, write_json


@app.command()
def show(
    run: RunFolder,
    edits: Annotated[bool, typer.Option("--edits", help="Show the gain of each rule in the best skill.")] = False,
    again: Annotated[
        bool, typer.Option("--recompute", help="Repeat every decision from the journal alone, and compare.")
    ] = False,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="HASH", help="Print a file or an agent's output; rollouts.jsonl has the hashes."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the state, the verdicts and the certificate of a run.

    Also shows the cost of the run and the paths of its files. Works while the run is under way. Exit codes of
    --recompute: 0 all decisions are equal, 1 a decision differs, 2 the journal is incomplete.

    \b
    Examples:
      skilltune show runs/invoice-totals
      skilltune show runs/invoice-totals --json
      skilltune show runs/invoice-totals --edits
      skilltune show runs/invoice-totals --recompute
      skilltune show runs/invoice-totals --file 2cf24dba5fb0
    """
    from skilltune.history.record import Record
    from skilltune.report.terminal import show_run, stdout

    out = json_stream(as_json)
    if again:
        _recompute(run, out)
    if edits:
        _show_edits(run, out)
        return
    if file is not None:
        _print_file(run, file)
        return
    with boundary(), reading(run) as journal:
        record = Record.of(journal)
        if out:
            write_json(record.to_json(), out)
        else:
            show_run(record, stdout())


def _show_edits(folder: Path, out: TextIO | None) -> None:
    """Print the ledger of the best skill: each rule with its estimated gain."""
    from skilltune.history.ledger import ABOUT, HEADERS, read_ledger, row, to_json
    from skilltune.history.record import Record
    from skilltune.report.terminal import columns, stdout

    with boundary():
        with reading(folder) as journal:
            best = Record.of(journal).best_hash
            rules = read_ledger(journal, best)
        if out:
            write_json({"run": str(folder), "best": best, "edits": [to_json(rule) for rule in rules]}, out)
        elif rules:
            stdout().print(f"{ABOUT}\n")
            stdout().print(columns(HEADERS, [row(rule) for rule in rules]))
        else:
            stdout().print("the best skill contains no edit: it is the input")


def _print_file(folder: Path, hash: str) -> None:
    """Print the bytes of a file that a target left, or of its output, by the start of its hash."""
    with boundary(), reading(folder) as journal:
        data = journal.stored_file(hash)
        typer.get_binary_stream("stdout").write(data)


def _recompute(folder: Path, out: TextIO | None) -> NoReturn:
    """Print one line per decision, with the differences below it, and exit."""
    from dataclasses import asdict

    from skilltune.history.replay import recompute
    from skilltune.report.terminal import stdout

    with boundary():
        with reading(folder) as journal:
            found = interrupts.run(recompute(journal))
        if out:
            write_json({"run": str(folder), "exit_code": found.exit_code, **asdict(found)}, out)
        else:
            console = stdout()
            for decision in found.decisions:
                verdict = "differs" if decision.differences else "equal"
                console.print(f"{verdict:<9}{decision.name:<13}{indented(decision.said, 22)}")
                for difference in decision.differences:
                    console.print(f"{'':<9}{indented(difference, 9)}")
        if found.lacking:
            say(f"lacking: {found.lacking}", err=True)
    raise typer.Exit(found.exit_code)
