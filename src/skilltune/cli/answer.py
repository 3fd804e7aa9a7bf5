"""`skilltune answer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import app
from skilltune.errors import UsageError

REFUSED = "note: the run refuses such edits, unless optimizer.checks is record; hand in a better answer in the same way"


@app.command()
def answer(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of handoff:DIR. In a config it counts from the config's.")
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
        float, typer.Option("--idle", min=0, help="With --loop: end when no run used DIR for so many seconds.")
    ] = 10.0,
) -> None:
    """Answer the questions of a run whose optimizer is handoff:DIR.

    Without options it lists what is open. An answer is checked for its form here, with a note on quotes and places that
    the question does not hold, and by the run for the rest; what cannot be used is moved aside with the reason, and the
    question stays open. Until a run has used it, an answer can be replaced by another.

    With --loop the COMMAND gets each question on stdin and prints the answer. It runs in an empty folder, and with
    your whole environment, keys included: name a command that you trust with them. Run several loops to answer several
    questions at once.

    \b
    Examples:
      skilltune answer answers
      skilltune answer answers --next
      skilltune answer answers 0001-reflect-1a2b3c4d --file answer.json
      skilltune answer answers --loop 'claude -p'

    \b
    Exit codes:
      0  done
      1  --next, and nothing is open
      2  an answer that cannot be used, a command that failed, a DIR that no run has used
    """
    from skilltune.optimizer.answer import answer_by, hand_in, named, open_questions
    from skilltune.optimizer.handoff import STRAY, strays
    from skilltune.report.terminal import describe_questions

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
            again = "" if question.is_open else ", in place of an answer that no run had used"
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
                say(f"nothing is open in {folder}", err=True)
                raise typer.Exit(1)
            else:
                say(describe_questions(folder, found))
            for path in strays(folder):
                say(f"note: {path.name}: {STRAY}", err=True)
