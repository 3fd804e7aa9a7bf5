"""live.json says what a running process does at this moment: its step, its phase, its calls and the race.

It is written at most once a second by a thread of its own, and only if it differs. It is removed at the end of the run.
A file that a killed process left is out of date, so a reader asks the journal first if a process writes to the run. A
failed write is ignored, because the file only serves to be shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Event, Thread
from typing import Any

from skilltune.execute import HERE, Executor, describe_load
from skilltune.files import write_atomic
from skilltune.journal.run import Run

FILE_NAME = "live.json"
EVERY_S = 1.0
MOST_CALLS = 64  # calls that the file names; `calls` counts all
VERSION_CHARS = 8  # of the hash of a skill
_ENDING = {"stopping": "choosing", "reselection": "choosing", "certify": "certificate", "finish": "finished"}


class Live:
    """Listens to a run and writes live.json until it is closed.

    step, steps  the present step (0 before the first) and the number of steps of the schedule
    phase        baseline, batch, screen, race, slow update, choosing, certificate
    in_flight    calls that were sent and have no answer yet, the oldest first: role, sample, version, since
    calls        the number of those calls
    workers      machines and slots in use, lost and late jobs, as one line; "" if everything runs here
    race         the last interim analysis of the race under way, or null: look, n, p_better, gain, sd
    at           the time of writing
    """

    def __init__(self, run: Run) -> None:
        self.executor: Executor = HERE
        self._run = run
        self._path = run.place / FILE_NAME
        self._step = self._steps = 0
        self._phase = "baseline"
        self._race: Mapping[str, Any] | None = None
        self._closed = Event()
        self._thread = Thread(target=self._work, name="live.json", daemon=True)
        self._thread.start()

    def hear(self, type: str, data: Mapping[str, Any]) -> None:
        """Take in an event of the run."""
        if type == "step":
            self._step, self._steps, self._phase = data["step"], data["steps"], "batch"
        elif type == "phase":
            self._phase = data["name"]
        elif type == "interim":
            self._race = data
        elif type == "verdict":
            self._race = None
        elif type in _ENDING:
            self._phase = _ENDING[type]

    def close(self) -> None:
        """Stop writing and remove the file."""
        self._closed.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        calls = self._run.under_way.calls
        return {
            "step": self._step,
            "steps": self._steps,
            "phase": self._phase,
            "in_flight": [
                {"role": c.role, "sample": c.sample, "version": c.version[:VERSION_CHARS], "since": round(c.since, 3)}
                for c in calls[:MOST_CALLS]
            ],
            "calls": len(calls),
            "workers": describe_load(self.executor),
            "race": self._race,
        }

    def _work(self) -> None:
        written: dict[str, Any] | None = None
        while not self._closed.wait(EVERY_S):
            if (state := self.state()) != written:
                written = state
                text = json.dumps({**state, "at": round(time.time(), 3)}, ensure_ascii=False)
                with suppress(OSError):
                    write_atomic(self._path, text, durable=False)
