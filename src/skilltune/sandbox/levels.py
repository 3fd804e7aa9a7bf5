"""The command line of each level."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from skilltune.errors import CallConfigError, UsageError
from skilltune.sandbox import confine
from skilltune.sandbox.process import Command

Level = Literal["none", "landlock", "bwrap"]
LEVELS: tuple[Level, ...] = get_args(Level)
SOCKET_FOLDERS = Path("/run"), Path("/var/run")  # sockets of the system's services, for example Docker's
OWN_VIEWS = Path("/dev"), Path("/proc")  # a view of its own replaces them

KERNEL = tuple(Path("/proc", name) for name in ("sys", "sysrq-trigger", "irq", "bus", "fs"))
"""Root could change the running kernel there, for example by a program that it calls outside the sandbox."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rights of one command. Paths are folders or files; the longest path that contains a file decides.

    `write`: everything below may be read and written. `read`: everything below may be read; None means all that the
    system allows. `hidden`: nothing below may be read. `shown`: may be read although it lies below a hidden path.
    `connect`: TCP ports to which the command may connect; None means no limit.
    """

    write: tuple[Path, ...] = ()
    read: tuple[Path, ...] | None = None
    hidden: tuple[Path, ...] = ()
    connect: tuple[int, ...] | None = ()
    shown: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Holds:
    """The parts of a policy that a level was seen to keep on this machine. `note` states limits.

    `read`: hidden files cannot be read. `write`: nothing is written outside. `network`: no connection but to granted
    ports. `processes`: processes outside cannot be signalled or traced.
    """

    read: bool = False
    write: bool = False
    network: bool = False
    processes: bool = False
    note: str = ""


def wrapped(level: Level, command: Command, policy: Policy, *, trial: bool = False) -> Command:
    """A command behind a level, see `Sandbox.wrap`. With `trial`, everything is done but running the program."""
    if level == "none":
        return command
    command = replace(command, argv=(_program(command), *command.argv[1:]))
    if level == "landlock":
        return _confined(command, _real(policy), files=True, trial=trial)
    return _bubble(command, policy, trial)


def _real(policy: Policy) -> Policy:
    """The policy with paths free of links. Raises UsageError for a hidden path inside a writable one."""
    real = {
        name: None
        if (paths := getattr(policy, name)) is None
        else tuple(Path(os.path.realpath(path)) for path in paths)
        for name in ("write", "read", "hidden", "shown")
    }
    if Path("/") in (real["read"] or ()):
        real["read"] = None
    found = replace(policy, **real)
    for path in found.hidden:
        if inside := next((folder for folder in found.write if path.is_relative_to(folder)), None):
            raise UsageError(
                f"the sandbox cannot hide {path}, because a command may write to {inside}: move one of them"
            )
    return found


def _program(command: Command) -> str:
    """The file of a command's program, found before the sandbox hides folders."""
    name = command.argv[0]
    if "/" in name:
        found = name if os.path.exists(os.path.join(command.cwd, name)) else None
    else:
        found = shutil.which(name, path=command.env.get("PATH", os.defpath))
    if found is None:
        raise CallConfigError(
            f'there is no command "{name}" on the PATH {command.env.get("PATH", "")!r}: install it, or name its file'
        )
    return found


def _confined(command: Command, policy: Policy, *, files: bool, trial: bool) -> Command:
    """A command behind `confine.py`, with Landlock for its files or without."""
    rules = {
        "files": files,
        "write": [str(path) for path in policy.write],
        "read": None if policy.read is None else [str(path) for path in policy.read],
        "hidden": [str(path) for path in policy.hidden],
        "shown": [str(path) for path in policy.shown],
        "connect": policy.connect,
        "trial": trial,
    }
    return replace(command, argv=(*_python(), confine.__file__, json.dumps(rules), *command.argv))


def _python() -> tuple[str, ...]:
    return os.path.realpath(sys.executable), "-I", "-S"


_DEAF = ("/bin/sh", "-c", 'trap "" TERM; exec "$@"', "sh")  # SIGTERM is for the command; bwrap would end it at once


def _bubble(command: Command, given: Policy, trial: bool) -> Command:
    """A command in namespaces of its own, behind bubblewrap. Connections to ports are limited by `confine.py`."""
    policy = _real(given)
    offline = policy.connect == ()
    limited = replace(policy, connect=None if offline else policy.connect)
    inner = _confined(command, limited, files=False, trial=trial)
    mounts = _mounts(policy)
    sealed = [path for path, mount in mounts.items() if mount[0] == "--tmpfs"]
    whole = policy.read is None
    start = ("--ro-bind", "/", "/") if whole else ("--tmpfs", "/", *_links(given, mounts))
    argv = (
        *_DEAF,
        *(shutil.which("bwrap") or "bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *(("--unshare-net",) if offline else ()),
        *start,
        *("--dev", "/dev", "--proc", "/proc"),
        *(part for path in KERNEL if path.exists() for part in ("--ro-bind", str(path), str(path))),
        *(part for mount in mounts.values() for part in mount),
        *(part for path in sealed for part in ("--remount-ro", str(path))),
        *(() if whole else ("--remount-ro", "/")),
        *("--chdir", os.path.realpath(command.cwd), "--"),
        *inner.argv,
    )
    return replace(command, argv=argv, cwd=Path("/"))


def _mounts(policy: Policy) -> dict[Path, tuple[str, ...]]:
    """The mount of each path, outer paths first. The last rule for a path wins."""
    hidden = {path for path in policy.hidden if path.exists()}
    ours = {Path(os.path.realpath(sys.base_prefix)), Path(confine.__file__).resolve(), Path(_python()[0])}
    sockets = {Path(os.path.realpath(path)) for path in SOCKET_FOLDERS if path.exists() and policy.connect is not None}
    shown = {*policy.shown, *(policy.read or ())}
    shown |= {path for path in ours if policy.read is not None or _under(path, hidden)}
    found: dict[Path, tuple[str, ...]] = {}
    for path in hidden:
        found[path] = _cover(path)
    for path in shown:
        if path.exists() and not _under(path, OWN_VIEWS):
            found[path] = ("--ro-bind", str(path), str(path))
    for path in sockets:
        found[path] = _cover(path)
    for path in policy.write:
        found[path] = ("--bind", str(path), str(path))
    return dict(sorted(found.items(), key=lambda item: len(item[0].parts)))


def _cover(path: Path) -> tuple[str, ...]:
    return ("--tmpfs", str(path)) if path.is_dir() else ("--ro-bind", os.devnull, str(path))


def _links(given: Policy, mounts: Mapping[Path, object]) -> tuple[str, ...]:
    """Links in a view that begins empty: those of the root folder, such as /bin → usr/bin, and those that were given as
    paths."""
    links = {path: os.readlink(path) for path in Path("/").iterdir() if path.is_symlink()}
    for path in (*(given.read or ()), *given.shown):
        real = os.path.realpath(path)
        if str(path) != real and not _under(path, {*mounts, *links}):
            links[path] = real
    return tuple(part for path, target in links.items() for part in ("--symlink", target, str(path)))


def _under(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
