"""Installing packages for real, with whichever of pip and uv this environment has."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def clean() -> dict[str, str]:
    """This process's environment without what would let a checkout shine through."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def install(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    """`pip install ARGUMENTS` into the environment of `python`, or into a folder by `--target`."""
    if find_spec("pip"):
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check"]
    else:
        command = ["uv", "pip", "install", "--python", python]
    done = subprocess.run([*command, "-q", *arguments], env=clean(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
