"""Tools over the files of one folder: read, write, glob, grep. They never leave the folder, also not by a link.

The tool loop offers them over a rollout's workspace, and an environment over a folder of documents.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import regex

from skilltune.models import Tool

READ_BYTES = 2_000_000  # of a file
FOUND = 200  # paths or lines that `glob` and `grep` list
PATTERN_S = 5.0
_OF_A_LINE = regex.compile(r"\\[AZz]|\(\?")  # marks of a pattern that may match a line but not the text that holds it


class ToolError(Exception):
    """A tool call that failed by the fault of its caller. The model sees the message."""


def text_tool(name: str, description: str, **parameters: str) -> Tool:
    """A tool whose parameters are all text. One whose description begins with "optional" may be left out."""
    needed = [key for key, text in parameters.items() if not text.startswith("optional")]
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": needed})


READ = text_tool("read", "Read a text file.", path="path of the file")
WRITE = text_tool(
    "write", "Write a text file. An existing file is replaced.", path="path of the file", content="its text"
)
GLOB = text_tool("glob", "List the files that match a pattern.", pattern="for example **/*.csv")
GREP = text_tool(
    "grep", "Search text files line by line.", pattern="regular expression", path="optional: file or folder"
)


def inside(root: Path, name: str) -> Path:
    """A path below `root`, which has no links. Raises `ToolError` if it leads out."""
    try:
        path = (root / name).resolve()
        path.exists()  # raises for a name that is too long
    except (OSError, ValueError, RuntimeError):
        raise ToolError(f"{name!r} is no path") from None
    if not path.is_relative_to(root):
        raise ToolError(f"{name} is outside of the current folder")
    return path


def read_file(root: Path, name: str, largest: int = READ_BYTES) -> str:
    path = inside(root, name)
    if not path.is_file():
        raise ToolError(f"there is no file {name}")
    if path.stat().st_size > largest:
        raise ToolError(f"{name} is too large to read at once ({path.stat().st_size:,} bytes)")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ToolError(f"{name} is not a text file") from None
    except OSError as error:
        raise ToolError(f"{name}: {error.strerror}") from None


def write_file(root: Path, name: str, content: str) -> str:
    path = inside(root, name)
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise ToolError(f"{name} is not a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ToolError(f"{name}: {error.strerror}") from None
    return f"{name} is written ({len(content):,} characters)"


def glob(root: Path, pattern: str) -> str:
    wanted = tuple(part for part in pattern.split("/") if part != ".")
    if ".." in wanted or not all(wanted):
        raise ToolError(f"{pattern!r} is no pattern of paths below the current folder")
    found = (str(path.relative_to(root)) for path in files_below(root))
    return _listed(sorted(name for name in found if _matches(tuple(name.split("/")), wanted)))


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """True if the parts of a path match those of a pattern, in which `**` stands for any number of folders."""
    reached = _reachable({0}, wanted)  # places in the pattern, so that the time is bounded by their number
    for part in parts:
        reached = {
            place if wanted[place] == "**" else place + 1
            for place in reached
            if place < len(wanted) and (wanted[place] == "**" or fnmatchcase(part, wanted[place]))
        }
        reached = _reachable(reached, wanted)
    return len(wanted) in reached


def _reachable(places: set[int], wanted: tuple[str, ...]) -> set[int]:
    """The places in a pattern, and those behind each `**` that stands for no folder."""
    found = set(places)
    for place in places:
        while place < len(wanted) and wanted[place] == "**":
            place += 1
            found.add(place)
    return found


def grep(root: Path, pattern: str, place: str, *, seconds: float = PATTERN_S, largest: int = READ_BYTES) -> str:
    """The lines that match, in files of at most `largest` bytes. Raises `ToolError` after `seconds`."""
    try:
        wanted = regex.compile(pattern)
        anywhere = None if _OF_A_LINE.search(pattern) else regex.compile(pattern, regex.MULTILINE)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ToolError(f"{pattern!r} is no regular expression: {error}") from None
    start = inside(root, place or ".")
    files = [start] if start.is_file() else sorted(files_below(start))
    found: list[str] = []
    ends = time.monotonic() + seconds
    for path in files:
        try:
            lines = read_file(root, str(path.relative_to(root)), largest).splitlines()
        except ToolError:
            continue
        try:
            if anywhere and not anywhere.search("\n".join(lines), timeout=max(0.01, ends - time.monotonic())):
                continue  # ten times as fast as line by line
            for number, line in enumerate(lines, 1):
                if wanted.search(line, timeout=max(0.01, ends - time.monotonic())):
                    found.append(f"{path.relative_to(root)}:{number}:{line}")
        except TimeoutError:
            raise ToolError(
                f"{pattern!r} takes longer than {seconds:g} s: simplify it, or search fewer files"
            ) from None
    return _listed(found)


def files_below(folder: Path) -> Iterator[Path]:
    """The regular files below a folder, without links and without those of git. No link is followed, because it may
    lead to the whole disk."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        paths = (Path(place, name) for name in names)
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _listed(found: list[str]) -> str:
    more = f"\n… and {len(found) - FOUND:,} more" if len(found) > FOUND else ""
    return "\n".join(found[:FOUND]) + more if found else "nothing found"
