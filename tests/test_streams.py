"""The output that reaches a real stdout and stderr, from any writer."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from skilltune import streams
from world import World

NOISE = """
    import atexit, os, sys

    print("while the module is read")
    atexit.register(print, "at the end of the process")

    def score(sample, rollout):
        print("printed", sample.id)
        sys.__stdout__.write("past sys.stdout\\n")
        sys.__stdout__.flush()
        os.write(1, b"to the descriptor\\n")
        os.system("echo from a program")
        return float(rollout.answer.strip() == sample.target)
    """
ROWS = [{"id": f"s{n}", "input": f"Say {n}.", "target": str(n)} for n in range(20)]


@pytest.fixture
def world() -> Iterator[World]:
    with World(classes=2, train=4, select=4, test=4) as world:
        yield world


def skilltune(folder: Path, *args: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skilltune", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, **options)  # type: ignore[call-overload]


def project(folder: Path, world: World, rows: list[dict[str, str]] = ROWS, **env: str) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "SKILL.md").write_text("# Desk\n")
    settings = {"samples": "data.jsonl", "score": "exact", **env}
    (folder / "skilltune.toml").write_text(
        "[env]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        + f'[target]\nmodel = "openai@{world.url}/target"\n[optimizer]\nmodel = "examples"\n[train]\nepochs = 0\n'
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [("train",), ("eval", "skilltune.toml"), ("doctor", "skilltune.toml")])
def test_json_is_json_alone_whatever_a_scorer_writes_and_how(
    tmp_path: Path, world: World, command: tuple[str, ...]
) -> None:
    (tmp_path / "grade.py").write_text(textwrap.dedent(NOISE))
    project(tmp_path, world, score="python:grade.py:score")
    done = skilltune(tmp_path, *command, "--json")
    lines = done.stdout.splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert "while the module is read" in done.stderr
    if command[0] != "doctor":
        assert {"past sys.stdout", "to the descriptor", "from a program"} <= set(done.stderr.splitlines())


@pytest.mark.slow
def test_no_text_from_outside_drives_the_terminal(tmp_path: Path, world: World) -> None:
    """Sample ids, file names and a traceback's words: all that `check` and `train` say."""
    rows = [{**row, "id": f"s{n}\x1b]0;gone\x07\u202e\nfine: no problems"} for n, row in enumerate(ROWS)]
    (tmp_path / "evil\x1b[2J.py").write_text(
        "def score(sample, rollout):\n    raise ValueError('\\x1b[31m\\x9b1m red')\n"
    )
    project(tmp_path, world, rows, score="python:evil\x1b[2J.py:score")
    for command in ("check", "train"):
        done = skilltune(tmp_path, command)
        assert done.returncode == 2
        said = done.stdout + done.stderr
        assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)
        assert r"\x1b" in said
        assert "fine: no problems" not in said.splitlines()


def test_warnings_and_tracebacks_are_shown_too(tmp_path: Path) -> None:
    code = """
        import warnings
        from skilltune import streams

        streams.protect()
        warnings.warn("a\\x1b[2Jb")
        1 / len("\\x9b" * 0)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert r"a\x1b[2Jb" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "\x1b" not in done.stderr


def test_remarks_of_ray_do_not_reach_the_output() -> None:
    ours, users = io.StringIO(), io.StringIO()
    output = streams.Output(ours, users)
    for name in ("ray_listen_error_messages", "another thread"):
        thread = Thread(target=print, args=(name,), kwargs={"file": output}, name=name)
        thread.start()
        thread.join()
    assert (ours.getvalue(), users.getvalue()) == ("another thread\n", "")
