"""A skill is what skilltune trains: a Markdown document or an Agent Skills folder.

The one non-obvious decision: a skill is its exact text. Frontmatter, body and locked regions are *views* by offset, and
are never parsed and dumped again. So everything that training does not touch stays the same byte for byte (BOM, CRLF,
key order, comments and a missing final newline included).
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePosixPath

from skilltune.errors import UsageError
from skilltune.files import write_atomic
from skilltune.frontmatter import find_notes, find_problems

MAIN = "SKILL.md"
MAX_FOLDER_BYTES = 64 * 2**20  # a skill is read into memory, so a whole project with a SKILL.md in it is refused

# Files at the top of a skill folder that it is trained with (in the layout of `init`) and that are not part of it. An
# agent that can read `evals/` can read the expected answers.
TRAINING = {"evals", "runs", "samples.jsonl", "samples.json", "samples.csv", "samples.tsv"}
CONFIGS = "skilltune*.toml"

_DOCUMENT_SUFFIXES = {".md", ".markdown", ".txt"}
_NOT_CONTENT = {
    "__pycache__",
    "node_modules",
}  # tools leave these behind, as they do what is hidden (.git, .venv, .env)
_STANDARD_FOLDERS = ("scripts", "references", "assets")
_FENCE_OPEN = re.compile(r"\ufeff?---[ \t]*\r?\n")
_FENCE_CLOSE = re.compile(r"^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_LOCK_OPEN = re.compile(r"<!--\s*skilltune:lock\s*-->")
_LOCK_CLOSE = re.compile(r"<!--\s*/skilltune:lock\s*-->")
LOCK_MARKER = re.compile(r"<!--\s*/?skilltune:lock\s*-->")


@dataclass(frozen=True)
class Skill:
    """A skill document and, for a folder, its other files (relative POSIX path to bytes; never modified).

    `text` is the whole document as on disk; `frontmatter + body == text`. `name` is the name of the folder or file.
    """

    text: str
    name: str = "skill"
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    folder: bool = False

    @classmethod
    def load(cls, path: str | Path, apart: Iterable[Path] = ()) -> Skill:
        """Read a folder with SKILL.md, or a document. A path that does not exist is an empty skill, which `save`
        creates.

        The path of a SKILL.md means its folder if the files beside it belong to it. They do if it names one of them, or
        if there is a folder scripts/, references/ or assets/. Training data is not part of the skill: `TRAINING`,
        `CONFIGS`, folders of runs, and the paths `apart` (samples or scorers with other names). Hidden files and
        leftovers of tools are not part of it either.

        Raises `UsageError` for a folder without SKILL.md, a document that is not UTF-8, and a link that leads out of
        the folder.
        """
        path, outside = Path(path).expanduser(), {place.resolve() for place in apart}
        try:
            if path.is_dir():
                return _load_folder(path.resolve(), outside)
            if _means_folder(path, outside):
                return _load_folder(path.resolve().parent, outside)
            if path.exists():
                return cls(_decode(path.read_bytes(), path), _document_name(path))
        except OSError as error:
            raise UsageError(f"Cannot read the skill {path}: {error.strerror or error}.") from error
        if path.suffix.lower() in _DOCUMENT_SUFFIXES:
            return cls("", _document_name(path))
        return cls("", path.resolve().name or "skill", folder=True)

    @classmethod
    def parse(cls, text: str, name: str = "skill") -> Skill:
        """A document from its text."""
        return cls(text, name)

    @cached_property
    def frontmatter(self) -> str:
        """The fenced YAML block at the top, including its closing line and a BOM; "" if there is none."""
        if (opening := _FENCE_OPEN.match(self.text)) and (closing := _FENCE_CLOSE.search(self.text, opening.end())):
            return self.text[: closing.end()]
        return ""

    @cached_property
    def body(self) -> str:
        """Everything after the frontmatter: the part that the target reads and training may change."""
        return self.text[len(self.frontmatter) :]

    @cached_property
    def hash(self) -> str:
        """16 hex digits of sha256 over the text and the files; the name is not included."""
        content = hashlib.sha256()
        for path, data in (("", self.text.encode("utf-8", "surrogatepass")), *sorted(self.files.items())):
            key = path.encode("utf-8", "surrogatepass")
            content.update(b"%d %d " % (len(key), len(data)) + key + data)  # lengths first: no two skills share bytes
        return content.hexdigest()[:16]

    @property
    def chars(self) -> int:
        """Length of the body in characters."""
        return len(self.body)

    @cached_property
    def tokens(self) -> int:
        """Approximate tokens of the body: a quarter of its UTF-8 bytes, rounded up.

        It uses no tokenizer, so that the number is the same for every target. It counts bytes because tokenizers spend
        more tokens on characters with more bytes, so it also works for languages other than English.
        """
        return -(-len(self.body.encode("utf-8", "surrogatepass")) // 4)

    @cached_property
    def locked(self) -> tuple[tuple[int, int], ...]:
        """Offsets in `text` of the regions that are never edited, including markers. An unclosed one extends to the
        end."""
        regions: list[tuple[int, int]] = []
        end = 0
        while opening := _LOCK_OPEN.search(self.text, end):
            closing = _LOCK_CLOSE.search(self.text, opening.end())
            end = closing.end() if closing else len(self.text)
            regions.append((opening.start(), end))
        return tuple(regions)

    def with_text(self, text: str) -> Skill:
        """The same skill with another document; files stay."""
        return replace(self, text=text)

    def save(self, path: str | Path) -> None:
        """Write the document, or the folder, to `path`. Each file is written atomically; SKILL.md comes last.

        Existing files that are not part of the skill are left alone. An overwritten file keeps its mode. A new file
        that begins with `#!` is made executable, because skills do not store modes.
        """
        path = Path(path).expanduser()
        if path.exists() and path.is_dir() is not self.folder:
            wanted, found = ("a folder", "a file") if self.folder else ("a file", "a folder")
            raise UsageError(f"Cannot save the skill {self.name!r} to {path}: it is {found}, {wanted} is needed.")
        try:
            text = self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"Cannot save the skill {self.name!r}: character {error.start} is not Unicode.") from error
        if not self.folder:
            _write(path.resolve(), text)  # follows a symlink instead of replacing it
            return
        root = path.resolve()
        targets = {name: _inside(root, name) for name in self.files}  # checks all names before anything is written
        for name, target in targets.items():
            _write(target, self.files[name])
        _write(_inside(root, MAIN), text)

    def check(self) -> list[str]:
        """The problems of frontmatter and locks, one sentence each."""
        problems = find_problems(self.frontmatter, self.body, self.name if self.folder else None)
        if self.locked and not _LOCK_CLOSE.search(self.text, self.locked[-1][0]):
            line = self.text.count("\n", 0, self.locked[-1][0]) + 1
            problems.append(f"The lock in line {line} is never closed, so everything after it is locked.")
        return problems

    def notes(self) -> list[str]:
        """Remarks on the frontmatter that require no change, one clause each."""
        return find_notes(self.frontmatter)


def _means_folder(path: Path, apart: Collection[Path]) -> bool:
    """True if the path is a SKILL.md and the files beside it belong to it, see `Skill.load`. A document in a project is
    not, because the project must not ship with it."""
    if path.name != MAIN or not path.is_file():
        return False
    text, root = _decode(path.read_bytes(), path), path.resolve().parent

    def belongs(entry: Path) -> bool:
        if entry.is_dir():
            return entry.name in _STANDARD_FOLDERS or bool(re.search(rf"(?<![\w-]){re.escape(entry.name)}/", text))
        return bool(re.search(rf"(?<![\w-]){re.escape(entry.name)}(?![\w-])", text))

    return any(belongs(entry) for entry in _content(root, root, apart) if entry.name != MAIN)


def _load_folder(root: Path, apart: Collection[Path]) -> Skill:
    if not (root / MAIN).exists():
        there = sorted(entry.name for entry in root.iterdir())
        listing = ", ".join(there[:10]) + (", …" if len(there) > 10 else "") if there else "nothing"
        raise UsageError(f"No {MAIN} in {root}, which holds {listing}. Name a folder with {MAIN}, or a .md file.")
    files: dict[str, bytes] = {}
    size = 0
    for path in _walk(root, root, apart):
        size += path.stat().st_size
        if size > MAX_FOLDER_BYTES:
            raise UsageError(f"{root} holds more than {MAX_FOLDER_BYTES >> 20} MiB: move the skill to its own folder.")
        files[path.relative_to(root).as_posix()] = path.read_bytes()
    return Skill(_decode(files.pop(MAIN), root / MAIN), root.name or "skill", files, folder=True)


def _content(folder: Path, root: Path, apart: Collection[Path]) -> Iterator[Path]:
    """Yield the contents of a folder that are part of the skill."""
    for path in sorted(folder.iterdir()):
        left = path.name.startswith(".") or path.name in _NOT_CONTENT
        trained_with = folder == root and (path.name in TRAINING or fnmatch(path.name, CONFIGS))
        if not (left or trained_with or path in apart or (path / "run.db").is_file()):
            yield path


def _walk(folder: Path, root: Path, apart: Collection[Path]) -> Iterator[Path]:
    for path in _content(folder, root, apart):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UsageError(f"{path} is a link out of the skill folder: replace it by a copy of what it points to.")
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, root, apart)
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"{path} is not a file (a linked folder, a broken link or a device): remove or copy it.")


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error


def _document_name(path: Path) -> str:
    path = path.resolve()
    return (path.parent.name if path.name.lower() == MAIN.lower() else path.stem) or "skill"


def _inside(root: Path, name: str) -> Path:
    """`root / name`. Raises `UsageError` if the name or an existing link leads out of `root`."""
    parts = PurePosixPath(name).parts
    if parts and ".." not in parts and "\0" not in name:
        target = (root / name).resolve()
        if target != root and target.is_relative_to(root):
            return target
    raise UsageError(f"The skill's file {name!r} would be written outside of {root}.")


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically. An overwritten file keeps its mode. A new one that begins with `#!` is executable."""
    if path.exists():
        write_atomic(path, data, mode=stat.S_IMODE(path.stat().st_mode))
        return
    write_atomic(path, data, mode=None)
    if data.startswith(b"#!"):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o444) >> 2)
