"""The worked examples run: a reader who copies them gets what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from world import World

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_loop_without_abstractions_learns(tmp_path: Path) -> None:
    with World(6, 60, 30, 60, q=0.9, seed=1) as world:
        data = tmp_path / "data.jsonl"
        rows = [{key: sample[key] for key in ("id", "input", "target")} for sample in world.samples()]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = [sys.executable, EXAMPLES / "00_loop.py", data, world.url, "target", "optimizer"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert world.true_score(done.stdout) >= 0.5, done.stderr
        assert "test 0.0" in done.stderr
