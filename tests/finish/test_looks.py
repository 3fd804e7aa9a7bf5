"""Who has read the same test samples before: the run itself, its forks, and the runs that they come from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from skilltune.finish.looks import earlier_looks, note_fork
from skilltune.journal.run import Paid, Run
from skilltune.rollouts.inputs import TEST
from skilltune.usage import Usage

SAMPLES = ["a", "b", "c"]


def look(run: Run, best: str, samples: Sequence[str] = SAMPLES) -> int:
    """The number of a look, as a session counts it."""
    run.decide(TEST, lambda: dict(zip(samples, samples, strict=True)))
    run.record("certify", best=best)
    return 1 + earlier_looks(run, best, samples)


def begin(folder: Path, source: Path | None = None) -> Run:
    run = Run.open(folder, {"seed": folder.name})
    run.put("answer", "rollout", Paid("yes", Usage(calls=1)))  # a run that paid nothing remembers nothing
    if source is not None:
        with Run.read(source) as old:
            note_fork(run, old)
    return run


def test_each_version_that_a_run_certifies_is_a_look(tmp_path: Path) -> None:
    with begin(tmp_path / "runs/desk") as run:
        assert [look(run, best) for best in ("one", "two", "one", "two", "three")] == [1, 2, 1, 2, 3]


def test_forks_count_the_looks_of_the_whole_family(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    with begin(home / "desk") as run:
        assert look(run, "one") == 1
    with begin(home / "desk-2", home / "desk") as run:
        assert look(run, "one") == 2  # the same skill too: its answers may be others
        assert look(run, "two") == 3
    with begin(home / "desk-3", home / "desk") as run:  # a second fork of the same run
        assert look(run, "one") == 4
    with begin(home / "desk-2-2", home / "desk-2") as run:  # a fork of a fork
        assert look(run, "one") == 5
    with begin(home / "desk") as run:  # the first run goes on: its fourth relative has read what it reads
        assert look(run, "one") == 1  # decided when it looked first
        assert look(run, "four") == 6


def test_a_number_once_given_stays(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    with begin(home / "desk") as run:
        look(run, "one")
    with begin(home / "desk-2", home / "desk") as run:
        assert look(run, "one") == 2
    with begin(home / "desk-3", home / "desk") as run:
        assert look(run, "one") == 3
    with begin(home / "desk-2") as run:
        assert look(run, "one") == 2


@pytest.mark.parametrize("elsewhere", ["moved", "deleted"])
def test_a_fork_remembers_the_looks_of_a_run_that_is_gone(tmp_path: Path, elsewhere: str) -> None:
    with begin(tmp_path / "runs/desk") as run:
        look(run, "one")
    with begin(tmp_path / "other/place", tmp_path / "runs/desk") as fork:
        if elsewhere == "moved":
            (tmp_path / "runs/desk").rename(tmp_path / "desk")
        else:
            shutil.rmtree(tmp_path / "runs/desk")
        assert look(fork, "two") == 2


def test_a_look_of_the_source_after_the_fork_began_counts(tmp_path: Path) -> None:
    with begin(tmp_path / "runs/desk") as run:
        pass
    with begin(tmp_path / "other/place", tmp_path / "runs/desk") as fork:
        with begin(tmp_path / "runs/desk") as run:
            assert look(run, "one") == 1
        assert look(fork, "one") == 2


def test_other_samples_and_strangers_do_not_count(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    with begin(home / "desk") as run:
        look(run, "one")
    with begin(home / "desk-2") as stranger:  # no fork: another run of the user, whatever its name
        assert look(stranger, "two") == 1
    with begin(home / "desk-3", home / "desk") as fork:
        assert look(fork, "one", ["x", "y"]) == 1
    with begin(home / "desk-4", home / "desk") as fork:
        assert look(fork, "one", ["x", "c"]) == 3  # it shares c with the first run, x with the third


def test_a_damaged_neighbour_tells_nothing(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    (home / "broken").mkdir(parents=True)
    (home / "broken/run.db").write_bytes(b"no database")
    with begin(home / "desk") as run:
        assert look(run, "one") == 1
