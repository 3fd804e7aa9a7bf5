"""The command line: each command reads its arguments, calls the library, prints, and maps the end to an exit code.

Only typer and the errors are imported at the top, so that `skilltune --help` stays fast; a command imports the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from skilltune import __version__, streams
from skilltune.cli.boundary import OUR_FAULT, PIPE_CLOSED, delivered, fail, interrupts, our_fault, say
from skilltune.cli.options import app

COMMANDS = ("train", "evaluate", "check", "doctor", "show", "diff", "report", "export", "convert", "init", "answer")
for name in COMMANDS:  # each module registers its command; `--help` lists them in this order
    import_module(f"skilltune.cli.{name}")


def main() -> None:
    """The entry point of the script `skilltune`."""
    streams.protect()
    interrupts.install()
    try:
        try:
            app()
        except Exception as error:  # beyond the boundary of a command
            fail(our_fault(error, None), OUR_FAULT)
            raise SystemExit(OUR_FAULT) from None
    except SystemExit as end:
        interrupts.end(end.code)
        if not delivered() and not end.code:
            raise SystemExit(PIPE_CLOSED) from None
        raise


def _version(wanted: bool) -> None:
    if wanted:
        say(f"skilltune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
) -> None:
    """Train an agent's skill document like model weights.

    A frozen target does your tasks with the skill, an optimizer proposes small edits, and an edit stays only if
    held-out samples say so. What ships is one document.

    \b
    Begin with:
      skilltune doctor skilltune.toml       is the machine fit, does each model answer?
      skilltune check skilltune.toml        is everything sound, what would it cost?
      skilltune train skilltune.toml        train; the same command resumes
      skilltune show runs/NAME              what happened
      skilltune export runs/NAME --to claude
    """


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
