"""Adopt a trained skill: replace the input of a finished run by the skill that the run ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skilltune.errors import UsageError
from skilltune.export import best_of
from skilltune.files import write_atomic
from skilltune.history.record import Record
from skilltune.skill import MAIN, Skill


@dataclass(frozen=True, slots=True)
class Adoption:
    """The file to replace, and the new text."""

    path: Path
    text: str

    def write(self) -> Path:
        """Replace the text, or create the file. It keeps its mode; other files of a skill folder are not touched."""
        try:
            mode = self.path.stat().st_mode & 0o777 if self.path.exists() else None
            write_atomic(self.path, self.text, mode=mode)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror or error}") from error
        return self.path


def adoption(record: Record) -> Adoption:
    """The adoption of a run's skill. Writes nothing.

    Raises `UsageError` if the run has not finished, found nothing better than its input, or does not say where its
    input is, and if the input has changed since: then the trained lines belong to another text.
    """
    best = best_of(record.run)
    if record.start is None or record.start.text is None or not record.root:
        raise UsageError(f"the run in {record.folder} does not say where its input is: use `skilltune export`")
    if best.text == record.start.text:
        raise UsageError(f"the run in {record.folder} found nothing better than its input, so nothing is to adopt")
    source = Path(record.root) / str(record.config.get("skill", ""))
    folder = source.is_dir() or (not source.exists() and Skill.load(source).folder)
    path = (source / MAIN if folder else source).resolve()
    if not record.start.text and not path.exists():
        return Adoption(path, best.text)  # the training started from nothing, and nothing is there now
    if not path.is_file():
        raise UsageError(f"the input of the run, {path}, is gone: use `skilltune export`")
    now = Skill.load(path).text
    if now == best.text:
        raise UsageError(f"{path} is the trained skill already")
    if now != record.start.text:
        raise UsageError(
            f"{path} has changed since the training, so nothing was written: compare it with `skilltune diff "
            f"{record.folder}`, and take the trained skill with `skilltune export {record.folder} --to file`"
        )
    return Adoption(path, best.text)
