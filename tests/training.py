"""Training on a simulated world, for the end-to-end tests; `python tests/training.py JSON` does it in a process of its
own, so that it can be killed.

Worlds are small (a run takes about a second) and free of chance: what a test sees once, it always sees.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import skilltune as st
from skilltune.models.retry import Endpoint, RetryPolicy
from skilltune.run import Run
from world import TICKET, Call, World, _Refused

FRONT = "---\nname: desk\ndescription: Enters the code of a ticket.\n---\n"
START = f"{FRONT}# Desk\n\nAnswer each ticket with its code.\n"
Json = dict[str, Any]


def small(**settings: Any) -> World:
    """A world in which a step is a second's work."""
    return World(**{"classes": 4, "train": 32, "select": 16, "test": 24, "sloppy": 0.0, **settings})


@dataclass(frozen=True)
class Trained:
    """A finished run: its result and its folder, the journal read from disk."""

    result: st.Result
    folder: Path

    @property
    def versions(self) -> list[str]:
        return [version.hash for version in self.result.versions]

    @property
    def outcome(self) -> tuple[object, ...]:
        """All that two runs of the same settings must agree in."""
        return self.versions, self.result.best.text, self.result.certificate, self.result.exit_code

    def events(self, type: str) -> list[Json]:
        return journal(self.folder, lambda run: [data for _, _, data in run.events(type)])

    @property
    def rollouts(self) -> list[Json]:
        return journal(self.folder, lambda run: [value for _, value, _ in run.memos("rollout")])

    def text(self, name: str) -> str:
        return (self.folder / name).read_bytes().decode()


def journal(folder: Path, look: Callable[[Run], Any]) -> Any:
    run = Run.read(folder)
    try:
        return look(run)
    finally:
        run.close()


async def train(
    world: World, folder: Path, *, name: str = "run", text: str | None = START, **settings: Any
) -> Trained:
    """Train in `folder`/`name`; the skill and the samples are written beside it once."""
    prepare(world, folder, text)
    return await train_at(world.url, folder, name=name, **settings)


def prepare(world: World, folder: Path, text: str | None = START) -> None:
    folder.mkdir(exist_ok=True)
    if not (folder / "samples.jsonl").exists():
        world.write(folder / "samples.jsonl")
    if text is not None and not (folder / "SKILL.md").exists():
        (folder / "SKILL.md").write_bytes(text.encode())


async def train_at(url: str, folder: Path, *, name: str = "run", **settings: Any) -> Trained:
    sections: Json = {"train": {"epochs": 2, "batch_size": 16, "minibatch_size": 4}, "gate": {"screen": 24}}
    for section, values in settings.items():
        merge = isinstance(values, Mapping) and section in sections
        sections[section] = {**sections[section], **values} if merge else values
    sections.setdefault("target", {"workers": 16})
    given = {"skill": folder / "SKILL.md", "env": folder / "samples.jsonl", "run": folder / name} | {
        "target": f"openai@{url}/target",
        "optimizer": f"openai@{url}/optimizer",
    }
    target = sections.pop("target")
    result = await _atrain(**{**given, **sections}, target_section=target)
    folders = [folder / name, *sorted(folder.glob(f"{name}-*"))]
    return Trained(result, folders[-1] if settings.get("fork") else folders[0])
