"""A scorer that prints, closes its output or changes the folder does not disturb a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skilltune.journal.run import Paid, Run
from skilltune.usage import Usage
from training import prepare, small

RUDE = """
import os, sys
print("while importing")
def score(sample, rollout):
    print("while scoring")
    {rude}
    return float(rollout.answer == sample.target)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rude", ["sys.stdout.close()", "sys.stderr.close()", 'os.chdir("/")', "sys.stdout.write('x')"])
def test_a_rude_scorer_disturbs_neither_our_output_nor_the_run(tmp_path: Path, rude: str) -> None:
    (tmp_path / "mine.py").write_text(RUDE.format(rude=rude))
    with small(q=0.9) as world:
        prepare(world, tmp_path)
        (tmp_path / "c.toml").write_text(
            'skill = "SKILL.md"\ntrain.epochs = 1\n[env]\nsamples = "samples.jsonl"\nscore = "python:mine.py:score"\n'
            f'[target]\nmodel = "openai@{world.url}/target"\n[optimizer]\nmodel = "openai@{world.url}/optimizer"\n'
        )
        command = [sys.executable, "-m", "skilltune", "train", "c.toml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1, 5), done.stderr
    assert "while" not in done.stdout
    assert "while importing" in done.stderr
    assert "while scoring" in done.stderr
    assert f"exit           {done.returncode}: " in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "card.md").is_file()
    assert json.loads((run / "versions" / "0000" / "verdict.json").read_text())["version"] == 0


def test_a_run_writes_to_its_folder_wherever_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Run.open(Path("here")) as run:
        os.chdir("/")
        run.write("card.md", "#")
        run.put("key", "kind", Paid(1, Usage()))
    assert (tmp_path / "here" / "card.md").read_text() == "#"
