"""A run that is told to end leaves in good order, wherever it is, and goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training import Fated, prepare, small
from world import Call, Faults, World

PATIENCE_S = 50.0  # far less than any of the waits here would last, far more than the end takes
SCORER = """
def score(sample, rollout):
    if rollout.answer.startswith("wrong-"):
        open("computing", "w").close()
        while True:
            pass
    return float(bool(rollout.answer))
"""


def started(folder: Path, world: World, *overrides: str) -> subprocess.Popen[str]:
    prepare(world, folder)
    models = "".join(f'[{role}]\nmodel = "openai@{world.url}/{role}"\n' for role in ("target", "optimizer"))
    (folder / "desk.toml").write_text(f'[env]\nsamples = "samples.jsonl"\n{models}[train]\nepochs = 1\n')
    command = [sys.executable, "-m", "skilltune.cli.main", "train", "desk.toml", "--run", "run", *overrides]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(reached: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not reached() and process.poll() is None:
        time.sleep(0.005)


def ended(process: subprocess.Popen[str]) -> str:
    """The output, after the process ended as an interrupted run must."""
    try:
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 4, err
    assert "Traceback" not in err
    assert "interrupted; run the same command to go on" in err
    return err


WAITS = [
    pytest.param({"target": Faults(hang=1.0, hang_s=120.0)}, 1, id="while calls hang"),
    pytest.param({"optimizer": Faults(hang=1.0, hang_s=120.0)}, 1, id="while the probe hangs"),
    pytest.param({"target": Faults(limit=1.0, retry_after=60.0)}, 1, id="in a pause that the server asked for"),
    pytest.param({"target": Faults(error=1.0)}, 2, id="in back-off"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "reached"), WAITS)
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)],  # test_cli has a short one of each signal
)
def test_a_signal_ends_a_run_wherever_it_waits(
    tmp_path: Path, number: signal.Signals, faults: dict[str, Faults], reached: int
) -> None:
    with small(faults=faults) as world:
        process = started(tmp_path, world)
        role = next(iter(faults))
        until(lambda: world.calls[role] >= reached, process)
        process.send_signal(number)
        ended(process)


@pytest.mark.slow
def test_a_signal_ends_a_run_that_waits_for_an_outage_to_pass(tmp_path: Path) -> None:
    def down(call: Call, sample: str | None) -> str | None:
        return "error" if call.model == "target" and world.asked["reflect", 2] else None

    with Fated(down) as world:
        process = started(tmp_path, world)
        until(lambda: world.asked["reflect", 2], process)
        until(lambda: sum(seen.status == 500 for seen in world.requests) > 20, process)
        process.send_signal(signal.SIGTERM)
        ended(process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_computes_and_never_waits(tmp_path: Path, number: signal.Signals) -> None:
    """A scorer here; a screen that is fitted for long is no different. The journal keeps what was answered."""
    (tmp_path / "mine.py").write_text(SCORER)
    with small() as world:
        process = started(tmp_path, world, "env.score=python:mine.py:score")
        until(lambda: (tmp_path / "computing").exists(), process)
        process.send_signal(number)
        ended(process)


@pytest.mark.slow
@pytest.mark.parametrize("gap_s", [0.0, 0.02, *(pytest.param(gap, marks=pytest.mark.soak) for gap in (0.005, 0.05))])
def test_impatient_signals_change_nothing(tmp_path: Path, gap_s: float) -> None:
    with small(latency=0.02) as world:
        process = started(tmp_path, world, "target.workers=2", "optimizer.workers=2")  # one endpoint, one window
        until(lambda: world.answered["target"] >= 10, process)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            time.sleep(gap_s)
        ended(process)
        answered = world.answered["target"]
        world.latency = 0.0
        resumed = subprocess.run(process.args, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert resumed.returncode in (0, 1, 5), resumed.stderr
        assert "answers came from the journal" in resumed.stdout
        asked = [seen.key for seen in world.requests if seen.role == "target"]
        assert len(asked) - len(set(asked)) <= 2  # the calls that were under way
        assert answered >= 10


@pytest.mark.slow
def test_a_signal_before_anything_was_begun_is_no_verdict(tmp_path: Path) -> None:
    """Exit code 1 would say that nothing better was found."""
    with small(faults={"optimizer": Faults(hang=1.0)}) as world:
        for delay in (0.15, 0.3, 0.45):
            process = started(tmp_path, world)
            time.sleep(delay)
            process.terminate()
            process.communicate(timeout=PATIENCE_S)
            assert process.returncode in (4, -signal.SIGTERM)  # the latter while Python itself starts
