"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from skilltune import streams

if TYPE_CHECKING:
    from skilltune.journal.run import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
Here = Annotated[
    str | None,  # not a Path, which would fold the // of a URL if the argument is an override
    typer.Argument(
        metavar="[CONFIG|SKILL_DIR]",
        help="A TOML file, or a folder with SKILL.md. [default: the current folder]",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Override keys of the config, e.g. train.epochs=2.")
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks", metavar="SAMPLES", help="Use these tasks in place of the config's: a sample file, or bench:NAME."
    ),
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="bench:NAME: your own folder or file of its data.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. runs/invoice-totals.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout and nothing else.")]


def config_and_overrides(config: str | None, overrides: list[str] | None) -> tuple[Path, list[str]]:
    """The config (the current folder's if none is named), and the overrides."""
    given = list(overrides or ())
    if config is None or ("=" in config and not Path(config).exists()):
        return Path(), [*([config] if config else []), *given]
    return Path(config), given


def with_tasks(overrides: list[str] | None, tasks: str | None, data: Path | None) -> list[str]:
    """The overrides with those that --tasks and --data stand for. Their paths start at the current folder.

    A benchmark replaces the whole table [env], because it has a scorer and a prompt of its own. Keys of [env] that are
    overridden too still count.
    """
    from skilltune.benchmarks import is_benchmark

    found = []
    if tasks is not None and is_benchmark(tasks):
        found.append(f"env={{samples = {json.dumps(tasks)}}}")
    elif tasks is not None:
        remote = tasks.startswith("hf:") and not Path(tasks.removeprefix("hf:").partition("@")[0]).exists()
        place = f"hf:{Path(tasks[3:]).absolute()}" if tasks.startswith("hf:") else str(Path(tasks).absolute())
        found.append(f"env.samples={json.dumps(tasks if remote else place)}")
    if data is not None:
        found.append(f"env.data={json.dumps(str(data.expanduser().absolute()))}")
    return [*found, *(overrides or ())]


def json_stream(wanted: bool) -> TextIO | None:
    """Reserve stdout for JSON if `wanted`: everything else goes to stderr from now on. None if not wanted."""
    return streams.claim_stdout() if wanted else None


def write_json(value: Any, stream: TextIO) -> None:
    print(json.dumps(value), file=stream, flush=True)


@contextmanager
def reading(folder: Path) -> Iterator[Run]:
    """Open a run for reading. In the block, unexpected content of the journal is reported as a damaged file."""
    from skilltune.journal.run import Run

    with Run.read(folder) as journal, journal.reading():
        yield journal


def indented(text: str, by: int) -> str:
    """Indent all lines of a list entry but the first, so that none looks like an entry of its own."""
    return text.replace("\n", "\n" + " " * by)
