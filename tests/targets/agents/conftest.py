from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from real_agents import CLIS, hash_of, running, users_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A user's home with settings of all agents, and the command lines on the PATH."""
    programs = Path(str(request.config.getoption("--agents"))).resolve()
    missing = [name for name in CLIS.values() if not (programs / name).exists()]
    if missing:
        pytest.skip(f"{programs} has no {', '.join(missing)}")
    (tmp_path / "tmp").mkdir()
    search = [str(path.parent) for path in programs.parent.glob("@openai/codex-*/vendor/*/codex-path/rg")]  # opencode's
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), *search, os.environ["PATH"]]))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    users_of(tmp_path / "user")
    before = hash_of(tmp_path / "user")
    yield tmp_path / "user" / "project"
    assert hash_of(tmp_path / "user") == before
    assert not running(str(tmp_path / "tmp"))
