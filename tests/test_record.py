"""The reader of a run: its state, the choice at the end, and the command that goes on, after any order of lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skilltune.errors import BudgetExceeded, UsageError
from skilltune.history.record import Judged, Record, Version
from skilltune.journal.run import Paid, Run, exchange_kind
from skilltune.report.html import report
from skilltune.rollouts.further import FINGERPRINTS
from skilltune.skill import Skill
from skilltune.usage import Usage

START, NEXT, OTHER = (Skill(f"# Desk\n{line}") for line in ("", "- a\n", "- b\n"))
CONFIG = {"skill": "SKILL.md", "target": {"model": "x"}}


def begun(run: Run) -> None:
    run.decide("split", lambda: {"train": ["t"], "select": ["s"], "test": []})
    for skill in (START, NEXT, OTHER):
        run.put_blob(skill.hash, skill.text.encode())
    run.record("start", skill=START.hash, score=0.5, score_sd=0.1, select=1)


def judged(run: Run, step: int, skill: Skill, version: int, *, accepted: bool = True, **numbers: Any) -> None:
    run.record(
        "verdict",
        **{"step": step, "epoch": 1, "lr": 4, "version": version, "accepted": accepted, "skill": skill.hash},
        **{"candidate": skill.hash, "reason": "so it is", "score": 0.7, "score_sd": 0.1, "before": 0.5, "after": 0.7},
        **{"differences": {"s": 0.2}, "edits": [], "rejected": [], "numbers": numbers},
    )


def ended(run: Run, best: Skill, stopped: str | None = None, **more: str) -> None:
    done = {"name": "desk", "exit_code": 4 if stopped else 0, "start": START.hash, "best": best.hash, "versions": []}
    run.record("finish", **done, certificate=None, stopped=stopped, **more)


def test_a_stopped_run_names_the_limit_that_it_needs_and_loses_its_finish_when_it_goes_on(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        run.note("command", line="skilltune train c.toml budget.calls=10", folder=str(Path.cwd()))
        begun(run)
        judged(run, 1, NEXT, 1)
        ended(run, NEXT, "the budget is used up", larger="budget.calls=40")
        record = Record.of(run)
        assert (record.stopped, record.state) == ("the budget is used up", "running")  # this process has it open
        assert record.resume == "skilltune train c.toml budget.calls=40"
        assert record.finish is not None
        assert record.best_hash == NEXT.hash
        judged(run, 2, OTHER, 2)
        record = Record.of(run)
        assert (record.finish, record.stopped) == (None, "")
        assert record.best_hash == OTHER.hash
        assert "Not finished" in report(run)
    assert Record.of(Run.read(tmp_path)).state == "stopped"


def test_an_error_of_the_budget_leaves_the_limit_in_the_journal(tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded), Run.open(tmp_path, CONFIG) as run:
        begun(run)
        run.note("command", line="skilltune train", folder=str(Path.cwd()))
        raise BudgetExceeded("no dollars are left", "budget.usd=0.5")
    with Run.read(tmp_path) as run:
        record = Record.of(run)
        assert record.stopped == "no dollars are left"
        assert record.resume == "skilltune train budget.usd=0.5"


def test_a_run_of_an_older_version_that_names_no_limit_is_shown(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        run.note("command", line="skilltune train", folder=str(Path.cwd()))
        begun(run)
        ended(run, START, "raise it with budget.calls=40 and run the same command to go on")
        assert Record.of(run).resume == "skilltune train"


def test_the_rows_say_what_each_verdict_was_about_and_a_choice_is_void_when_the_run_goes_on(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        begun(run)
        judged(run, 1, START, 0, accepted=False)
        judged(run, 1, NEXT, 1)
        run.record("reselection", best=OTHER.hash, reason="rejected once", contenders=[], version=2)
        judged(run, 9, NEXT, 3, rule="compact", looks=[])
        record = Record.of(run)
        kinds = [row.kind if isinstance(row, Judged) else row.number for row in record.rows]
        assert kinds == [0, "step", "slow", 2, "compact"]
        assert [(v.number, v.hash, v.revived) for v in record.versions] == [
            (0, START.hash, False),
            (1, NEXT.hash, False),
            (2, OTHER.hash, True),
            (3, NEXT.hash, False),
        ]
        assert [record.hash_of(name) for name in ("0", "02", "best")] == [START.hash, OTHER.hash, NEXT.hash]
        with pytest.raises(UsageError, match="there are 0, 1, 2, 3 and best"):
            record.hash_of("4")
        judged(run, 2, OTHER, 2)
        record = Record.of(run)
        assert not any(version.revived for version in record.versions)
        assert [row.number for row in record.rows if isinstance(row, Version)] == [0]
        assert len(record.verdicts) == 4


def test_the_spend_of_an_agent_is_that_of_its_exchanges_also_of_attempts_without_a_result(tmp_path: Path) -> None:
    """A rollout that came from another run is no spend of this one."""
    known = {
        "sample": "s",
        "skill": START.hash,
        "attempt": 0,
        "usage": {"calls": 7},
        "score": {"value": 1.0, "why": ""},
    }
    with Run.open(tmp_path, CONFIG) as run:
        begun(run)
        run.decide(FINGERPRINTS, lambda: {"codex/x": "f"})
        paid = [("rollout", "t", 2), ("rollout", "s", 3), ("target codex/x", "s", 1), ("optimizer", "question", 4)]
        for number, (kind, sample, calls) in enumerate(paid):
            value = {"body": {}, "sample": sample}
            run.put(f"e{number}", exchange_kind(kind), Paid(value, Usage(calls, usd=0.5)))
        run.put("r", "rollout", Paid(known, Usage()))  # adopted: its exchanges were paid elsewhere
        run.put("o", "optimizer", Paid({"text": "", "cut": ""}, Usage()))
        run.record_failure(exchange_kind("rollout"), "cut off", Usage(5))
        run.record_failure("optimizer exchange", "busy", Usage(6), estimated=True)
        record = Record.of(run)
        rows = {(row.role, row.phase): row.usage.calls for row in record.spend if row.usage.calls}
        assert rows == {
            ("target", "learning (train)"): 2,
            ("target", "gate (select)"): 3,
            ("further target codex/x", "all"): 1,
            ("optimizer", "all"): 4,
            ("target", "failed attempts"): 5,
            ("optimizer", "attempts without an answer: cost unknown, estimated"): 6,
        }
        assert sum((row.usage for row in record.spend), Usage()) == sum(run.usage.values(), Usage())
