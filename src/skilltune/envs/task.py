"""The part of a sample that a target may see.

A `Task` is plain data without a reference to its sample or Env. So no target, plug-ins included, can reach an expected
answer, a check or another sample through it. It can be pickled and sent to another process.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skilltune.models import Image, Message

INLINED = 100_000  # characters of all files of one sample that a message includes
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


@dataclass(frozen=True, slots=True)
class Task:
    """One task for a target.

    `messages` is the prompt without the skill. Its last user message asks the question. `files` maps a path in the
    workspace to the content. `metadata` holds the columns that the environment marks as visible (`env.visible`).
    """

    id: str
    messages: tuple[Message, ...]
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def shown(self) -> tuple[Message, ...]:
        """The messages with the content of all files in the last user message, for a target without a workspace."""
        return with_files(self.messages, self.files)


def with_files(messages: tuple[Message, ...], files: Mapping[str, bytes]) -> tuple[Message, ...]:
    """Append text files as text, and images as images, to the last user message."""
    if not files:
        return messages
    attached = attach(files.items())
    last = max(i for i, message in enumerate(messages) if message.role == "user")
    asked = messages[last]
    text = "\n\n".join(filter(None, (asked.text, attached.text)))
    return (
        *messages[:last],
        replace(asked, text=text, images=(*asked.images, *attached.images)),
        *messages[last + 1 :],
    )


@dataclass(frozen=True, slots=True)
class Attached:
    """A sample's files as parts of a message, and the reasons why others cannot be shown."""

    text: str = ""
    images: tuple[Image, ...] = ()
    unseen: tuple[str, ...] = ()


def attach(files: Iterable[tuple[str, bytes]]) -> Attached:
    """Attach text files as text (at most `INLINED` characters per sample) and images as images."""
    texts, images, unseen, room = [], [], [], INLINED
    for name, data in files:
        kind = mimetypes.guess_type(name)[0]
        if kind in _IMAGES:
            images.append(Image(data, kind))
            continue
        try:
            if len(data) > 4 * INLINED:
                raise _TooLong
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            if "\0" in text:
                raise ValueError
            if len(text) > room:
                raise _TooLong
        except _TooLong:
            unseen.append(f"{name} is too long: at most {INLINED:,} characters of all files of a sample are shown")
        except ValueError:  # includes UnicodeDecodeError
            unseen.append(f"{name} is neither text nor an image ({', '.join(t.partition('/')[2] for t in _IMAGES)})")
        else:
            room -= len(text)
            texts.append(f'<file path="{name}">\n{text}{"" if text.endswith(chr(10)) or not text else chr(10)}</file>')
    return Attached("\n\n".join(texts), tuple(images), tuple(unseen))


def is_image(name: str) -> bool:
    """True if a message shows a file of this name as an image."""
    return mimetypes.guess_type(name)[0] in _IMAGES


def beginning(path: Path) -> bytes:
    """The start of a file: enough for `attach` to tell if it can be shown."""
    with path.open("rb") as file:
        return file.read(4 * INLINED + 1)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _TooLong(Exception):
    pass
