"""Executables that stand in for the command lines of agents."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

CLI = Path(__file__).with_name("cli.py")
KINDS = ("claude", "codex", "opencode", "acp", "script")


def install(folder: Path) -> Path:
    """Write one executable for each kind of agent into `folder`, to be put on the PATH.

    Their code is in the folder `lib` beside it, where a sandbox lets programs read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder.with_name("lib")
    library.mkdir(exist_ok=True)
    shutil.copy(CLI, library)
    shutil.copytree(CLI.with_name("streams"), library / "streams", dirs_exist_ok=True)
    for kind in KINDS:
        file = folder / kind
        line = shlex.join([sys.executable, "-I", str(library / CLI.name), kind])
        file.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        file.chmod(0o755)
    (folder / "rg").write_text("#!/bin/sh\n")  # opencode needs it
    (folder / "rg").chmod(0o755)
    return folder
