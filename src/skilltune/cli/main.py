"""The command line. Each command reads its arguments, calls the library, prints, and maps the outcome to an exit code.

Commands import the library inside their functions, so that `skilltune --help` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from skilltune import __version__, streams
from skilltune.cli.boundary import OUR_FAULT, PIPE_CLOSED, delivered, fail, interrupts, our_fault, say
from skilltune.cli.options import app

COMMANDS = (
    "train",
    "evaluate",
    "check",
    "doctor",
    "show",
    "diff",
    "report",
    "ui",
    "table",
    "export",
    "adopt",
    "compact",
    "controls",
    "convert",
    "init",
    "data",
    "answer",
)
for name in COMMANDS:  # each module registers its command; `--help` lists them in this order
    import_module(f"skilltune.cli.{name}")


def main() -> None:
    """The entry point of the script `skilltune`."""
    streams.protect()
    interrupts.install()
    try:
        try:
            app()
        except Exception as error:  # raised outside of a command's `boundary`
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

    A frozen model (the target) does your tasks with the skill. Another model (the optimizer) reads the failures and
    proposes small edits. An edit is accepted only if samples that the optimizer never saw improve. At the end, unused
    test samples certify the gain. The result is one document, best_skill.md.

    \b
    Start here, in this order:
      skilltune init skills/NAME            write a skill, example tasks and a config
      skilltune check skills/NAME           test samples and scorer, estimate the cost; calls no model
      skilltune doctor skills/NAME          test the machine, the keys and each model
      skilltune train skills/NAME           train; the same command resumes
      skilltune show RUN                    read the verdicts and the certificate; `train` prints the folder RUN
      skilltune export RUN --to claude      install the trained skill
      skilltune ui                          watch, start and stop runs in the browser

    \b
    Other commands:
      skilltune eval skills/NAME            score a skill without training it
      skilltune table runs/*                compare runs in one table
      skilltune compact RUN                 remove edits that add nothing from a trained skill
      skilltune controls RUN                compare a trained skill with cheaper ways to a skill
      skilltune data list                   published benchmarks: their data and licences
      skilltune COMMAND --help              options and examples of a command
    """


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
