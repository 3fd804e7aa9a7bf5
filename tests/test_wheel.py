"""The built wheel works, not only the checkout: a release without its prompt files cannot train.

The wheel and the source archive are built once. What they hold is compared with the checkout; then each is installed
into an empty environment, with its dependencies from the registry, and trains: the archive with this Python, the wheel
with the oldest and the newest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import which
from tempfile import TemporaryDirectory

import pytest

from installing import clean, install
from world import World

ROOT = Path(__file__).parents[1]
OLDEST, *BETWEEN, NEWEST = "3.11", "3.12", "3.13"
MOST_PACKAGES = 32  # what `pip install skilltune` brings along
MOST_MB = 100  # installed, without byte code; numpy is 57 of them, regex 4
SLOWEST_HELP_S = 3.0  # of the processor; the aim is 0.5; the bound only catches an SDK that is imported at start


@dataclass(frozen=True)
class Dist:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True, capture_output=True)
    return Dist(*out.glob("*.whl"), *out.glob("*.tar.gz"))


def held(dist: Dist) -> set[str]:
    """The files of the package in the wheel, relative to it."""
    with zipfile.ZipFile(dist.wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    return {str(name.relative_to("skilltune")) for name in names if name.parts[0] == "skilltune"}


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_prompts_and_templates_and_the_type_marker(dist: Dist) -> None:
    source = ROOT / "src" / "skilltune"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert held(dist) == {name for name in files if "__pycache__" not in name}
    assert "py.typed" in files
    assert {Path(name).suffix for name in files} >= {".md", ".css", ".js", ".html", ".toml", ".jsonl"}


def test_the_wheel_names_its_command_its_licence_and_the_python_that_it_needs(dist: Dist) -> None:
    with zipfile.ZipFile(dist.wheel) as archive:
        info = {PurePosixPath(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        metadata, points = (archive.read(info[name]).decode() for name in ("METADATA", "entry_points.txt"))
    assert "skilltune = skilltune.cli.main:main" in points
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert "LICENSE" in info


@pytest.mark.slow
def test_the_source_archive_gives_the_same_wheel(dist: Dist, tmp_path: Path) -> None:
    with tarfile.open(dist.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "out"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (again,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(dist.wheel) as one, zipfile.ZipFile(again) as two:
        assert {name: one.read(name) for name in one.namelist()} == {name: two.read(name) for name in two.namelist()}


def interpreter(version: str) -> str | None:
    """A Python of that version on this machine: this one, one on the path, or one of pyenv's or uv's."""
    homes = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    homes += [Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python"))]
    found = [sys.executable, which(f"python{version}")]
    found += [str(path) for home in homes for path in sorted(home.glob(f"*{version}.*/bin/python{version}"))]
    return next((python for python in found if python and _version(python) == version), None)


def _version(python: str) -> str:
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Installed:
    """An environment that holds skilltune and what that needs, and nothing else."""

    home: Path

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        program = self.home / "bin" / command[0]
        return subprocess.run(
            [program, *command[1:]], cwd=cwd, env=clean(), capture_output=True, text=True, timeout=300
        )


HERE = "{}.{}".format(*sys.version_info)
CASES = [
    (HERE, "sdist"),  # it gives the same wheel, so this Python needs no second environment
    *((version, "wheel") for version in (OLDEST, NEWEST) if version != HERE),
    *(pytest.param((version, "wheel"), marks=pytest.mark.soak) for version in BETWEEN if version != HERE),
]


@pytest.fixture(params=CASES, ids="-".join)
def installed(request: pytest.FixtureRequest, dist: Dist) -> Iterator[Installed]:
    version, kind = request.param
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    with TemporaryDirectory(prefix="skilltune-wheel-") as home:  # pytest's own folder is kept for three runs
        subprocess.run([python, "-m", "venv", "--without-pip", home], check=True, capture_output=True)
        archive = dist.sdist if kind == "sdist" else dist.wheel
        install("--no-compile", archive, python=Path(home, "bin", "python"))  # byte code is half of the time
        yield Installed(Path(home))


def children_s() -> float:
    """Processor time of the processes that were started here and have ended; a busy machine adds little to it."""
    return sum(os.times()[2:4])


@pytest.mark.slow
def test_an_installed_skilltune_is_small_starts_fast_and_trains(
    installed: Installed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import skilltune, sys; print(skilltune.__file__, skilltune.__version__, sys.version.split()[0])"
    where, version, python = installed.run("python", "-c", code, cwd=tmp_path).stdout.split()
    assert Path(where).is_relative_to(installed.home)
    assert installed.run("skilltune", "--version", cwd=tmp_path).stdout == f"skilltune {version}\n"

    with World(3, 40, 24, 24, q=1.0, seed=3) as world:
        world.write(tmp_path / "data.jsonl")
        config = f"""
            skill = "SKILL.md"
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
        done = installed.run("skilltune", "check", "skilltune.toml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        done = installed.run(
            "skilltune", "train", "skilltune.toml", "preset=paper", "--json", "--run", "run", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["type"] == "finish"
        assert world.true_score((tmp_path / "run" / "best_skill.md").read_text()) == 1.0
    done = installed.run("skilltune", "report", "run", "-o", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<style" in (tmp_path / "report.html").read_text()
    done = installed.run("skilltune", "init", "new", "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    seconds = []
    for _ in range(3):
        began = children_s()
        done = installed.run("skilltune", "--help", cwd=tmp_path)
        seconds.append(children_s() - began)
        assert "skilltune train" in done.stdout
    site = Path(where).parents[1]
    files = [file for file in site.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    number = len([*site.glob("*.dist-info")]) - 1  # without skilltune itself
    with capsys.disabled():
        print(f"\nPython {python}: {number} packages, {megabytes:.0f} MB, --help in {min(seconds):.2f} s")
    assert number <= MOST_PACKAGES
    assert megabytes <= MOST_MB
    assert min(seconds) <= SLOWEST_HELP_S
