"""`skilltune ui`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import app
from skilltune.errors import UsageError

NEEDS = ("starlette", "uvicorn")


@app.command()
def ui(
    runs: Annotated[
        Path | None,
        typer.Argument(metavar="[RUNS_DIR]", help="A folder of runs, or one run. [default: runs]", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port. [default: 8377, or a free one]", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    expose: Annotated[
        bool, typer.Option("--expose", help="Allow a --host that other machines can reach, over plain HTTP.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Show runs, and refuse every action.")] = False,
    browse: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="Open a browser. [default: on a terminal with a screen]", show_default=False
        ),
    ] = None,
) -> None:
    """Show the runs of a folder as a live page, and start, pause, resume, export and adopt them there.

    The command prints a link and serves until Ctrl-C. Trainings that were started from the page go on after that. The
    page is for this machine only: it listens on 127.0.0.1, and the link holds a secret token. Skills and tasks are
    those below the current folder; API keys come from the environment of this command and never from the page.

    Needs the extra `ui`: pip install 'skilltune[ui]'.

    \b
    Examples:
      skilltune ui
      skilltune ui runs/invoice-totals --read-only
      skilltune ui runs --port 8080 --no-open
    """
    from importlib.util import find_spec

    with boundary():
        if missing := [name for name in NEEDS if find_spec(name) is None]:
            raise UsageError(
                f"`skilltune ui` needs {' and '.join(missing)}, which is not installed: pip install 'skilltune[ui]'. "
                "Without it, `skilltune report RUN` writes the same page as one file"
            )
        from skilltune.ui.server import LOCAL, make_server

        server = make_server(
            runs or Path("runs"),
            host=host,
            port=port,
            read_only=read_only,
            expose=expose,
            may_miss=runs is None and not read_only,  # the first run is started from the page
        )
        if host not in LOCAL:
            say(
                f"warning: every machine that reaches {host} can ask for this page, and the traffic is not encrypted",
                err=True,
            )

        def ready() -> None:
            say(f"{'runs':<10}{server.feeds.runs.root}" + ("   (read-only)" if read_only else ""))
            say(f"{'open':<10}{server.link(server.session.token)}")
            say(f"{'stop with':<10}Ctrl-C")
            if _has_screen() if browse is None else browse:
                _open(server.link(server.session.once()))

        interrupts.run(server.serve(ready))


def _has_screen() -> bool:
    """True on a terminal of a graphical session. Elsewhere a browser in text mode would take over the terminal."""
    import os
    import sys

    graphical = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(graphical)


def _open(link: str) -> None:
    """Open the link in a browser, in a thread, because some browsers block."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()
