"""`skilltune data`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import AsJson, app, json_stream, write_json

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A benchmark, e.g. gsm8k; `skilltune data list` names all.")]
Folder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Its folder. [default: NAME in $SKILLTUNE_DATA or the cache folder]"),
]
Most = Annotated[
    float,
    typer.Option("--max-gb", metavar="GB", min=0.001, help="Most gigabytes of one file, and of one archive's content."),
]


@group.callback()
def data() -> None:
    """The data of the benchmarks that `bench:NAME` names: where it comes from, where it is, how to get it.

    The data is downloaded from its publisher, never from a copy. Nothing is downloaded unless you ask for it.

    \b
    Examples:
      skilltune data list
      skilltune data fetch gsm8k
      skilltune data path gsm8k
    """


@group.command("list")
def list_data(as_json: AsJson = False) -> None:
    """List the benchmarks with their licence, size and place, and what is missing."""
    from skilltune import benchmarks
    from skilltune.benchmarks.fetch import lacking, recorded, size_text

    out = json_stream(as_json)
    with boundary():
        rows = []
        for name in benchmarks.names():
            found = benchmarks.find(name)
            place = benchmarks.place_of(name)
            missing = lacking(found, place)
            sizes = [source.size for source in found.files] if missing else []
            sizes = sizes or [entry.get("bytes") for entry in recorded(place).values()]
            known = sum(size for size in sizes if size) if sizes and all(sizes) else None
            state = "here" if not missing else "missing" if len(missing) == len(found.files) else "incomplete"
            if not found.files:
                state = "comes with a package" if found.needs or found.gated else "none to fetch"
            rows.append((found, place, missing, known, state))
        if out:
            write_json(
                [
                    {
                        "name": found.name,
                        "title": found.title,
                        "licence": found.licence,
                        "source": found.source,
                        "gated": found.gated,
                        "bytes": known,
                        "place": str(place),
                        "state": state,
                        "missing": missing,
                    }
                    for found, place, missing, known, state in rows
                ],
                out,
            )
            return
        for name, (found, place, missing, known, state) in zip(benchmarks.names(), rows, strict=True):
            say(f"bench:{name}: {found.title}")
            say(f"  licence  {found.licence}")
            say(f"  source   {found.source}")
            if found.files:
                say(f"  size     {'unknown before it is fetched' if known is None else size_text(known)}")
            say(f"  place    {place}: {state}" + (f" ({_some(missing)})" if state == "incomplete" else ""))
            if found.gated and (missing or not found.files):
                say(f"  get it   {found.gated}")


@group.command("fetch")
def fetch_data(name: Name, data: Folder = None, max_gb: Most = 10.0) -> None:
    """Download the data of a benchmark from its publisher.

    The licence is shown first. A download that was cut off goes on where it stopped. Every file is checked against a
    SHA-256 that is pinned here or stated by the publisher's host; a file without one is recorded when it arrives, and
    compared from then on. Nothing is fetched that has no room on the disk or is larger than --max-gb.

    Exit code 0: complete; 2: nothing to fetch, or a file here is another one; 3: the download failed, and the same
    command goes on.
    """
    from skilltune import benchmarks
    from skilltune.benchmarks.fetch import fetch, size_text
    from skilltune.text import visible

    with boundary(message="interrupted; run the same command to go on"):
        found = benchmarks.find(name)
        place = data or benchmarks.place_of(name)
        say(f"{found.name}: {found.title}")
        say(f"licence: {found.licence}")
        say(f"source:  {found.source}")
        say(f"place:   {place}")
        shown = sys.stderr.isatty()

        def progress(path: str, done: int, total: int | None) -> None:
            if shown:
                share = "" if not total else f" of {size_text(total)}"
                typer.echo(f"\r\x1b[K{visible(path)}: {size_text(done)}{share}", nl=False, err=True)

        def tell(text: str) -> None:
            if shown:
                typer.echo("\r\x1b[K", nl=False, err=True)
            say(text)

        result = interrupts.run(fetch(found, place, tell, progress, most=round(max_gb * 10**9)))
        say(f"complete: {len(result.new)} files fetched, {len(result.kept)} unchanged")


@group.command("path")
def data_path(name: Name) -> None:
    """Print the folder of a benchmark's data. Exit code 2 if the data is not complete."""
    from skilltune import benchmarks
    from skilltune.benchmarks.fetch import lacking
    from skilltune.errors import UsageError

    with boundary():
        found = benchmarks.find(name)
        place = benchmarks.place_of(name)
        say(str(place))
        if missing := lacking(found, place):
            how = found.gated or f"`skilltune data fetch {name}` gets it"
            raise UsageError(f"bench:{name}: {_some(missing)} missing: {how}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


app.add_typer(group, name="data")
