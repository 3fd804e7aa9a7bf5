"""A fresh folder for one attempt of an agent, and what the agent left in it.

The result is the difference between the files that were put in and the files that are there afterwards. It is computed
from the known content, because an agent may delete or rewrite the `.git` of its workspace. Nothing here follows a link
or opens anything but a regular file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from skilltune.errors import UsageError

MOST_FILES, MOST_BYTES, MOST_DIFF = 200, 20_000_000, 200_000
MOST_ENTRIES = 50_000  # files and folders that are looked at
MOST_SKIPPED = 100  # reasons that are kept
LEAST_FREE = 200_000_000  # bytes that stay free beside what is needed
NAME = re.compile(r"w[0-9a-f]{12}")  # of a workspace; short, because the path of a Unix socket has 104 bytes
DIFF_S = 30.0  # seconds that `git diff` may take
CACHES = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "node_modules", ".venv"})
"""New folders with these names hold what tools keep for themselves. They are no result."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one attempt, all below `root`. `start` is the content of `work` at the beginning."""

    root: Path
    work: Path
    home: Path
    tmp: Path
    start: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """The result of an attempt: `work` afterwards is `start` without `deleted`, updated with `files`.

    `skipped` names each path that could not be taken, with the reason, for example "out.bin: 10.0 GB, …". `lost` are
    the files of `start` among them: they changed, and their new content is unknown. `diff` is a unified diff of the
    text files.
    """

    files: Mapping[str, bytes]
    deleted: tuple[str, ...]
    skipped: tuple[str, ...]
    diff: str
    lost: tuple[str, ...] = ()


# -- open and close


def open_workspace(parent: Path, key: str, files: Mapping[str, bytes]) -> Workspace:
    """Create the workspace of a rollout with its files and a first commit of them.

    The path depends only on `parent` and `key`, so that an attempt that is repeated asks its model the same questions.
    Remains of an earlier attempt are removed. Raises UsageError for a path of a file that leads out of the workspace,
    for a folder that cannot be written, and if git is missing.
    """
    start = checked_files(files)
    root = root_of(parent, key)
    workspace = Workspace(root, root / "work", root / "home", root / "tmp", start)
    require_space(parent, sum(map(len, start.values())))
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove(root)
        root.mkdir(mode=0o700)
        for folder in (workspace.work, workspace.home, workspace.tmp):
            folder.mkdir(mode=0o700)
        write_files(workspace.work, start)
    except OSError as error:
        _remove(root)
        raise UsageError(
            f"{root}: the workspace cannot be created: {error.strerror or error}; choose another folder"
        ) from error
    _commit(workspace)
    return workspace


def root_of(parent: Path, key: str) -> Path:
    """The root of the workspace of a rollout."""
    return parent.absolute() / f"w{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}"


def close_workspace(workspace: Workspace) -> None:
    """Remove a workspace, whatever modes and names an agent gave to its files."""
    _remove(workspace.root)


def close_workspaces(parent: Path) -> None:
    """Remove all workspaces of a folder, for example those of a killed process. Other files stay."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(parent):
            if NAME.fullmatch(name):
                _remove(parent / name)


def require_space(parent: Path, bytes_needed: int) -> None:
    """Raise UsageError if the disk of a folder has too little space for `bytes_needed`."""
    place = parent.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        system = os.statvfs(place)
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror}; choose another folder for the workspaces") from error
    free, needed = system.f_bavail * system.f_frsize, bytes_needed + LEAST_FREE
    if free < needed:
        raise UsageError(
            f"{place}: {_size(free)} are free, and the workspaces need {_size(needed)}; "
            "free some space there, or choose another folder (TMPDIR)"
        )
    if system.f_files and system.f_favail < 1_000:
        raise UsageError(
            f"{place}: the disk has no room for more files (inodes); remove some, or choose another folder"
        )


def checked_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files by normal relative paths, sorted. Raises UsageError for a path that is not inside a workspace."""
    found: dict[str, bytes] = {}
    for name, content in files.items():
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
            raise UsageError(
                f'the file "{name}" of a sample leads out of its workspace: use a relative path without ".."'
            )
        if any(part.lower() == ".git" for part in path.parts):
            raise UsageError(
                f'the file "{name}" of a sample is inside a .git folder: the workspace has its own; rename it'
            )
        if str(path) in found:
            raise UsageError(f'the file "{path}" of a sample is given twice')
        found[str(path)] = content
    for name in found:
        if above := next((str(folder) for folder in PurePosixPath(name).parents if str(folder) in found), None):
            raise UsageError(f'"{above}" of a sample is a file, and the folder of "{name}": rename one of them')
    return dict(sorted(found.items()))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write checked files into a folder without links."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _commit(workspace: Workspace) -> None:
    """The first commit. Its hash depends only on the files."""
    identity = ("-c", "user.name=skilltune", "-c", "user.email=skilltune@localhost")
    _git(workspace, "init", "-q", "--template=", "-b", "main")
    _git(workspace, "add", "-A", "-f")
    _git(workspace, *identity, "commit", "-q", "--allow-empty", "--no-verify", "--no-gpg-sign", "-m", "Start")


def _git(workspace: Workspace, *arguments: str) -> None:
    try:
        subprocess.run(
            ("git", *arguments),
            cwd=workspace.work,
            env=git_environment(workspace.home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=120,
        )
    except FileNotFoundError as error:
        raise UsageError("git is not installed; a workspace needs it: install git") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise UsageError(f"{workspace.work}: git {arguments[0]} failed: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{workspace.work}: git took more than {error.timeout:g} s; check the disk") from error


def git_environment(home: Path) -> dict[str, str]:
    """A complete environment in which git reads no configuration of the user or of the system."""
    date = "2000-01-01T00:00:00Z"
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_DATE": date,
    }


def _remove(root: Path) -> None:
    """Remove a file or a folder tree without following links, whatever modes and depth it has. Raises UsageError."""
    if root.is_symlink() or root.is_file():
        root.unlink()
        return
    for attempt in (_remove_tree, _open_folders, _remove_tree, _remove_deep):
        if not os.path.lexists(root):
            return
        attempt(root)
    if os.path.lexists(root):
        raise UsageError(f"{root}: the remains of an earlier attempt cannot be removed; remove them by hand")


def _remove_tree(root: Path) -> None:
    with suppress(RecursionError):
        shutil.rmtree(root, ignore_errors=True)


def _open_folders(root: Path) -> None:
    os.chmod(root, 0o700)
    for folder, names, _ in os.walk(root):
        for name in names:
            with suppress(OSError):
                if not os.path.islink(path := os.path.join(folder, name)):
                    os.chmod(path, 0o700)


def _remove_deep(root: Path) -> None:
    """Remove a tree whose paths are too long for a system call."""
    command = ("rm", "-rf", "--", str(root))
    subprocess.run(command, env={"PATH": os.defpath}, stdin=subprocess.DEVNULL, capture_output=True, check=False)


# -- changes


def changes(
    workspace: Workspace, *, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES, most_diff: int = MOST_DIFF
) -> Changes:
    """The difference between the files put in and the files there now.

    Call it when no process of the attempt lives any more. At most `most_files` files with at most `most_bytes` bytes
    in sum are taken, changed files before new ones, and `most_diff` characters of the diff.
    """
    skipped: list[str] = []
    lost: list[str] = []
    if workspace.work.is_symlink() or not workspace.work.is_dir():
        return Changes({}, tuple(workspace.start), ("work/: the folder was removed or replaced",), "")
    there = dict(_regular_files(workspace.work, workspace.start, skipped))

    def skip(name: str, why: str) -> None:
        skipped.append(f"{name}: {why}")
        if name in workspace.start:
            lost.append(name)

    files: dict[str, bytes] = {}
    taken = 0
    for name in sorted(there, key=lambda name: (name not in workspace.start, name.count("/"), name)):
        known = workspace.start.get(name)
        size = there[name]
        if known is None or size != len(known):
            if len(files) >= most_files:
                skip(name, f"more than {most_files} files have changed")
                continue
            if taken + size > most_bytes:
                skip(name, f"{_size(size)}, more than the {_size(most_bytes)} that are kept in sum")
                continue
        try:
            content = _read(workspace.work / name, size)
        except OSError as error:
            skip(name, f"it cannot be read ({error.strerror or error})")
            continue
        if content == known:
            continue
        if len(files) >= most_files or taken + len(content) > most_bytes:
            skip(name, f"more has changed than is kept ({most_files} files, {_size(most_bytes)})")
            continue
        files[name] = content
        taken += len(content)
    files = dict(sorted(files.items()))
    deleted = tuple(sorted(workspace.start.keys() - there.keys()))
    return Changes(files, deleted, _bounded(skipped), _diff(workspace, files, deleted, most_diff), tuple(lost))


def _bounded(skipped: list[str]) -> tuple[str, ...]:
    more = len(skipped) - MOST_SKIPPED
    return (*skipped[:MOST_SKIPPED], *([f"and {more} more"] if more > 0 else []))


def _regular_files(work: Path, start: Mapping[str, bytes], skipped: list[str]) -> Iterator[tuple[str, int]]:
    """Relative path and size of each regular file. Reasons for everything else go to `skipped`."""
    known = {str(folder) for name in start for folder in PurePosixPath(name).parents}
    folders, seen = [""], 0
    while folders:
        inside = folders.pop()
        try:
            entries = sorted(_entries(work / inside), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(f"{inside or '.'}/: it cannot be read ({error.strerror or error})")
            continue
        for entry in entries:
            seen += 1
            if seen > MOST_ENTRIES:
                skipped.append(f"{inside or '.'}/: more than {MOST_ENTRIES} files and folders; the rest is not read")
                return
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.lower() == ".git":
                continue
            try:
                name.encode()
                mode = entry.stat(follow_symlinks=False)
            except (OSError, UnicodeError) as error:
                skipped.append(f"{name!r}: {'its name is not UTF-8' if isinstance(error, UnicodeError) else error}")
                continue
            if stat.S_ISREG(mode.st_mode):
                yield name, mode.st_size
            elif stat.S_ISDIR(mode.st_mode):
                if entry.name in CACHES and name not in known:
                    skipped.append(f"{name}/: the folder of a tool; it is not read")
                    continue
                folders.append(name)
            elif stat.S_ISLNK(mode.st_mode):
                skipped.append(f"{name}: a link, which is not followed")
            else:
                skipped.append(f"{name}: neither a file nor a folder")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """At most MOST_ENTRIES + 1 entries of a folder, which is made readable if it is not."""
    with suppress(PermissionError):
        return _some_entries(folder)
    os.chmod(folder, 0o700)
    return _some_entries(folder)


def _some_entries(folder: Path) -> list[os.DirEntry[str]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            found.append(entry)
            if len(found) > MOST_ENTRIES:
                break
    return found


def _read(path: Path, size: int) -> bytes:
    """The content of a regular file, of which at most `size` bytes are read. Never waits."""
    kind = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, kind)
    except PermissionError:
        os.chmod(path, 0o600, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
        descriptor = os.open(path, kind)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        return file.read(size)


def _diff(workspace: Workspace, files: Mapping[str, bytes], deleted: tuple[str, ...], most: int) -> str:
    """The unified diff, made by git over copies, so that nothing of the agent's repository is read."""
    before = {name: workspace.start[name] for name in (*files, *deleted) if name in workspace.start}
    if not before and not files:
        return ""
    place = workspace.root / "diff"
    _remove(place)
    for side, content in (("a", before), ("b", files)):
        (place / side).mkdir(mode=0o700, parents=True)
        write_files(place / side, content)
    options = ("--no-index", "--no-prefix", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames")
    with (
        (place / "stdout").open("w+b") as output,
        subprocess.Popen(
            ("git", "-c", "core.attributesFile=/dev/null", "diff", *options, "a", "b"),
            cwd=place,
            env={**git_environment(workspace.home), "GIT_CEILING_DIRECTORIES": str(place.parent)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
        ) as git,
    ):
        late = False
        try:
            git.wait(DIFF_S)
        except subprocess.TimeoutExpired:
            late = True
            git.kill()
        output.seek(0)
        text = output.read(4 * most).decode(errors="replace")
    _remove(place)
    if len(text) > most or late:
        kept = text[:most]
        return kept[: kept.rfind("\n") + 1] + f"[the diff is longer than {most} characters or took too long; cut]\n"
    return text


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
