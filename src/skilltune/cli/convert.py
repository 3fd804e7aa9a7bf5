"""`skilltune convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, say
from skilltune.cli.options import app
from skilltune.errors import UsageError
from skilltune.text import visible_json


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A sample file or folder, or hf:NAME.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The file to write. [default: stdout]")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="OURS=THEIRS", help="Our field's name, and its name in SOURCE."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Convert samples of any readable format to plain JSONL.

    The result loads to the same samples, including ids, checks, files and splits.

    \b
    Examples:
      skilltune convert promptfooconfig.yaml -o data.jsonl
      skilltune convert data.csv --field input=question --field target=solution -o data.jsonl
      skilltune convert hf:openai/gsm8k/main@train -o data.jsonl
    """
    from skilltune.authoring.convert import convert as read

    with boundary():
        pairs = [field.partition("=") for field in fields or ()]
        if wrong := [ours for ours, equals, theirs in pairs if not (ours and equals and theirs)]:
            raise UsageError(f'--field "{wrong[0]}" must look like input=question')
        named = {ours: theirs for ours, _, theirs in pairs}
        text = read(source, out, fields=named, force=force, warn=lambda text: say(f"warning: {text}", err=True))
        if out is None:
            typer.echo(visible_json(text), nl=False)
        else:
            say(f"wrote {text.count(chr(10)):,} samples to {out}")
