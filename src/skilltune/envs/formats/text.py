"""Reads the text of a sample file."""

from __future__ import annotations

from pathlib import Path

from skilltune.errors import UsageError


def read_text(path: Path) -> str:
    """A file's UTF-8 text without its byte order mark. Raises UsageError with the line that is not UTF-8."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None
