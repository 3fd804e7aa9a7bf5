"""A config whose workers run on an engine that only looks installed: for what is refused before any job."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

CHAT = '{model = "openai@http://127.0.0.1:9/v1/m"}'


def clustered(
    folder: Path, patch: pytest.MonkeyPatch, workers: str = '{on = "ray"}', target: str = CHAT, more: str = ""
) -> str:
    """The folder of a config with these tables, and with more lines at its end."""
    engine = ModuleType("ray")
    engine.__spec__ = ModuleSpec("ray", None)
    patch.setitem(sys.modules, "ray", engine)
    (folder / "SKILL.md").write_text("Answer.")
    (folder / "data.jsonl").write_text("".join(f'{{"input": "{n}", "target": "{n}"}}\n' for n in range(20)))
    (folder / "skilltune.toml").write_text(
        f'skill = "SKILL.md"\nenv.samples = "data.jsonl"\noptimizer.model = "examples"\n'
        f"workers = {workers}\ntarget = {target}\n{more}"
    )
    return str(folder)
