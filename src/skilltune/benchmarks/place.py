"""The data folder: the place of the benchmarks' data on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "SKILLTUNE_DATA"


def data_folder() -> Path:
    """$SKILLTUNE_DATA, else the user's cache folder of the platform. It need not exist."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "skilltune" / "data"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "skilltune" / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "skilltune" / "data"


def place_of(name: str, given: str = "", root: Path = Path()) -> Path:
    """The place of a benchmark's data: `given` (a relative one starts at `root`), else NAME in the data folder."""
    return root / Path(given).expanduser() if given else data_folder() / name
