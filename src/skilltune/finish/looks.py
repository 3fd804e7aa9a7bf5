"""Readings of the same test samples by runs that belong together: a run, its forks, and theirs.

A fork is a second chance on the same test split, as is a run that goes on after its certificate. Two chances at full
level are more likely to meet luck than one, so the certificate counts the readings of all of them (its looks).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from skilltune.errors import RunError
from skilltune.journal.run import Run
from skilltune.parts import Parts
from skilltune.rollouts.inputs import TEST, pin_test
from skilltune.skill import Skill

ORIGIN = "forked from"  # key of a decision: the first run of the family, the folder of the source, its looks so far

Looks = dict[str, list[str]]
"""The hashes of the test samples that were read, by the name of the look."""


def look_at_test(s: Parts, best: Skill) -> int:
    """The number of this look at the test split, which it records. It is 1 unless this run certified another version
    before, or runs that it shares its answers with read some of these samples. Each later look is held to a stricter
    level, because two tries are two chances to be lucky."""
    if best.text == s.skill.text or not s.splits.test:
        return 1
    pin_test(s.run, s.roll, s.splits.test)
    contents = [s.roll.content(sample) for sample in s.splits.test]
    s.run.record("certify", best=best.hash)
    return 1 + earlier_looks(s.run, best.hash, contents)


def note_fork(fork: Run, source: Run) -> None:
    """Write down in a new fork where it comes from, and the looks that it takes over."""
    fork.decide(
        ORIGIN,
        lambda: {
            "family": _family(source),
            "folder": str(source.folder.resolve()),
            "looks": _looks(source) | _of_relatives(source, [source.folder]),
        },
    )


def earlier_looks(run: Run, best: str, contents: Sequence[str]) -> int:
    """The number of times that samples of these hashes were read before this run reads them for `best`.

    Reads for other skills in this run count, and those of every other run of its family that stands beside it or beside
    the run from which it was forked. Decided once for each skill.
    """

    def count() -> list[str]:
        origin = run.recall(ORIGIN)
        folders = [run.folder, *([Path(origin[0]["folder"])] if origin else [])]
        others = _inherited(run) | _of_relatives(run, folders)
        ours = f"{run.began!r} "  # relatives took over looks of this run too, which are counted apart
        read = {name for name, samples in others.items() if not set(samples).isdisjoint(contents)}
        return sorted(name for name in read if not name.startswith(ours))

    elsewhere: list[str] = run.decide(f"looks elsewhere before {best}", count)
    own = list(dict.fromkeys(data["best"] for _, _, data in run.events("certify")))
    return len(elsewhere) + (own.index(best) if best in own else 0)


def _family(run: Run) -> str:
    """A name that a run shares with its forks only."""
    origin = run.recall(ORIGIN)
    return origin[0]["family"] if origin else repr(run.began)


def _inherited(run: Run) -> Looks:
    origin = run.recall(ORIGIN)
    return origin[0]["looks"] if origin else {}


def _looks(run: Run) -> Looks:
    """The looks of a run and those that it took over."""
    test: Any = run.recall(TEST)
    samples = list(test[0].values()) if test else []
    own = {f"{run.began!r} {data['best']}": samples for _, _, data in run.events("certify")}
    return _inherited(run) | own


def _of_relatives(run: Run, folders: Sequence[Path]) -> Looks:
    """The looks of all runs of the family in the folders that hold these folders, but the run itself."""
    found: Looks = {}
    for parent in {folder.resolve().parent for folder in folders}:
        for path in sorted(parent.glob("*/run.db")):
            with suppress(RunError), closing(Run.read(path.parent)) as relative:  # a damaged run tells nothing
                if relative.began != run.began and _family(relative) == _family(run):
                    found |= _looks(relative)
    return found
