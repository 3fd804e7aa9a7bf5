"""metrics.jsonl contains the metrics of a run as rows. It is written during the run, so a killed run has it too.

Rows are read from the journal, which stores each event once. So the number, time and costs of a row are the same in
every process of the run.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skilltune.files import write_atomic
from skilltune.finish.records import Finish, Start
from skilltune.journal.run import Run
from skilltune.usage import Usage
from skilltune.verdict import VerdictRecord

FILE_NAME = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of metrics.jsonl, as sent to every sink.

    `number` counts the rows of a run from 0. It is the x axis, because a step and its slow update share their `step`.
    `t` is the time when it first happened (seconds since the epoch). Null means unknown or not measured, never 0.

    start    step, version (both 0); score, score_sd: estimate of the input skill on `select`
    verdict  step, epoch, lr (edits allowed), version (of the incumbent after the verdict), accepted, reason; score,
             score_sd: the gate's estimate of the incumbent on `select` (selected for being high, so not a proof);
             gain: the candidate's over the incumbent; p_better: P(the candidate is better); edits: number applied
    finish   exit_code, stopped (reason or null), best (hash), file (path in the run folder), certificate (null, or all
             fields of `Certificate` and its gain)

    All rows have calls, tokens and usd: costs of the run so far, over all its processes (usd is null if a price is
    unknown).
    """

    number: int
    t: float
    event: str
    figures: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"row": self.number, "t": self.t, "event": self.event, **self.figures}

    @property
    def numbers(self) -> dict[str, float]:
        """The numeric figures (true is 1). Those of the certificate are named "certificate/NAME"."""
        nested = {f"certificate/{name}": value for name, value in (self.figures.get("certificate") or {}).items()}
        return {name: float(v) for name, v in {**self.figures, **nested}.items() if isinstance(v, int | float)}


class Rows:
    """The rows of a run. `past` are the rows in the journal when it was opened; `hear` returns the later ones."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._event = 0  # id of the last event that was read
        self._count = 0
        payments, spent = deque(run.payments()), Usage()

        def paid_by(t: float) -> Usage:
            nonlocal spent
            while payments and payments[0][0] <= t:
                spent = spent + payments.popleft()[1]
            return spent

        self.past = self._read(paid_by)

    def hear(self, type: str) -> list[Row]:
        """The rows recorded since the last call, given the type of the event that was just emitted.

        There is at most one, and none if a replay repeats an event, because the journal does not record it again.
        """
        if type not in _FIGURES:
            return []
        return self._read(lambda _: sum(self._run.usage.values(), Usage()))

    def _read(self, paid_by: Callable[[float], Usage]) -> list[Row]:
        rows: list[Row] = []
        for id, t, type, data in self._run.events_after(self._event):
            self._event = id
            if type in _FIGURES:
                spent = paid_by(t)
                paid = {"calls": spent.calls, "tokens": spent.tokens, "usd": spent.usd}
                with self._run.reading():
                    figures = _FIGURES[type](data, self._run.folder)
                rows.append(Row(self._count, t, type, {**figures, **paid}))
                self._count += 1
        return rows


class Metrics:
    """The sink that is always on: metrics.jsonl, rewritten as a whole for every row."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._text = ""

    def log(self, rows: Sequence[Row]) -> None:
        self._text += "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
        write_atomic(self._path, self._text)

    def close(self) -> None:
        """Nothing to do: every row is already on disk."""


def _start(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    start = Start.from_json(data)
    return {"step": 0, "version": 0, "score": start.score, "score_sd": start.score_sd}


def _verdict(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`gain` is the estimate of the rule or, if the rule makes none, the difference of the means."""
    verdict = VerdictRecord.from_json(data)
    estimate, before, after = verdict.figures.estimate, verdict.before, verdict.after
    difference = None if before is None or after is None else after - before
    return {
        "step": verdict.step,
        "epoch": verdict.epoch,
        "lr": verdict.lr,
        "version": verdict.version,
        "accepted": verdict.accepted,
        "score": verdict.score,
        "score_sd": verdict.score_sd,
        "gain": difference if estimate.gain is None else estimate.gain,
        "p_better": estimate.better,
        "edits": len(verdict.applied),
        "reason": verdict.reason,
    }


def _finish(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    end = Finish.from_json(data)
    as_folder = f"best/{end.name}"
    return {
        "exit_code": end.exit_code,
        "stopped": end.stopped or None,
        "best": end.best,
        "file": as_folder if (folder / as_folder).is_dir() else "best_skill.md",
        "certificate": end.certificate and {**end.certificate.to_json(), "gain": end.certificate.gain},
    }


_FIGURES: dict[str, Callable[[Mapping[str, Any], Path], dict[str, Any]]] = {
    "start": _start,
    "verdict": _verdict,
    "finish": _finish,
}
