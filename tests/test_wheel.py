"""The built wheel works, not only the checkout (pitfall 27: a release without its prompt files cannot train)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from world import World

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: first on the path, so that nothing of the checkout is imported."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(out / "site")
    return out / "site"


def run(site: Path, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_wheel_holds_every_prompt_and_the_type_marker(wheel: Path) -> None:
    for folder in ("optimizer/prompts", "models/prompts"):
        names = {path.name for path in (ROOT / "src/skilltune" / folder).iterdir()}
        assert names == {path.name for path in (wheel / "skilltune" / folder).iterdir()}
    assert (wheel / "skilltune/py.typed").is_file()


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_wheel_trains(wheel: Path, tmp_path: Path, preset: str) -> None:
    assert str(wheel) in run(wheel, "-c", "import skilltune; print(skilltune.__file__)", cwd=tmp_path).stdout
    with World(3, 40, 24, 24, q=1.0, seed=3) as world:
        world.write(tmp_path / "data.jsonl")
        config = f"""
            preset = "{preset}"
            [env]
            samples = "data.jsonl"
            [target]
            model = "openai@{world.url}/target"
            [optimizer]
            model = "openai@{world.url}/optimizer"
            [train]
            epochs = 2
            batch_size = 20
        """
        (tmp_path / "skilltune.toml").write_text(config)
        done = run(wheel, "-m", "skilltune.cli", "train", "skilltune.toml", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["type"] == "finish"
        assert world.true_score((tmp_path / "runs" / tmp_path.name / "best_skill.md").read_text()) == 1.0
