"""`skilltune answer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import app
from skilltune.errors import UsageError

REFUSED = "note: the run refuses such edits unless optimizer.checks=record; hand in a better answer in the same way"


@app.command()
def answer(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder of handoff:DIR, relative to the current folder."),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A question, by its name or number.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The answer to NAME. [default: stdin]")
    ] = None,
    next_: Annotated[bool, typer.Option("--next", help="Print the oldest open question.")] = False,
    loop: Annotated[
        str | None, typer.Option("--loop", metavar="COMMAND", help="Let a command answer all questions.")
    ] = None,
    idle: Annotated[
        float, typer.Option("--idle", min=0, help="With --loop: end if no run has used DIR for this many seconds.")
    ] = 10.0,
) -> None:
    """Answer the questions of a run whose optimizer is handoff:DIR.

    Without options it lists the open questions. This command checks an answer's form, and notes quotes and places that
    the question does not contain. The run checks the rest: it moves an answer that it cannot use aside, with the
    reason, and the question stays open. You can replace an answer until a run has used it.

    With --loop, COMMAND gets each question on stdin and prints the answer. It runs in an empty folder with your whole
    environment, keys included, so name only a command that you trust. Start several loops to answer several questions
    at the same time.

    \b
    Examples:
      skilltune answer answers
      skilltune answer answers --next
      skilltune answer answers 0001-reflect-1a2b3c4d --file answer.json
      skilltune answer answers --loop 'claude -p'

    \b
    Exit codes:
      0  done
      1  no question is open (with --next)
      2  the answer cannot be used, COMMAND failed, or no run has used DIR
    """
    from skilltune.optimizer.answer import answer_by, hand_in, named, open_questions
    from skilltune.optimizer.handoff import STRAY, strays

    with boundary():
        if (file is not None and name is None) or sum((name is not None, next_, loop is not None)) > 1:
            raise UsageError("give one of NAME (with --file or stdin), --next and --loop")
        if loop is not None:
            count = interrupts.run(answer_by(folder, loop, idle=idle, say=lambda text: say(text, err=True)))
            say(f"{count} answered; no run waits in {folder}")
        elif name is not None:
            question = named(folder, name)
            try:
                text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read the answer: {error}") from error
            again = "" if question.is_open else "; it replaces an answer that no run had used"
            doubts = hand_in(question, text)
            say(f"answered {question.name}{again}")
            for doubt in doubts:
                say(f"note: {doubt}", err=True)
            if doubts:
                say(REFUSED, err=True)
        else:
            found = open_questions(folder)
            if next_ and found:
                say(found[0].text(), nl=False)
            elif next_:
                say(f"no question is open in {folder}", err=True)
                raise typer.Exit(1)
            else:
                from skilltune.report.terminal import describe_questions  # a large module, for the list alone

                say(describe_questions(folder, found))
            for path in strays(folder):
                say(f"note: {path.name}: {STRAY}", err=True)
