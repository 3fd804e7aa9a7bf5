"""Reasons to end the training: the value of a further step, patience, the target score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skilltune.config import make_config
from skilltune.errors import UsageError
from skilltune.history.record import Record
from skilltune.journal.run import Run
from skilltune.skill import Skill
from skilltune.stopping import Ending, Forecast, Past, Stopping
from skilltune.verdict import Verdict

STEP = 120  # target calls
MISS = Past("a candidate was rejected", 1.0, STEP, False)
HIT = Past("accepted", 1.0, STEP, True)


def failed(share: float, n: int = 200) -> dict[str, bool]:
    """All train tasks, of which this share fails."""
    return {str(i): i < share * n for i in range(n)}


def goes_on(past: Sequence[Past], failing: float, folder: Path, **train: Any) -> bool:
    with Run.open(folder) as run:
        stop = Stopping(run, make_config({"train": train}).train, tasks=200, guess=STEP)
        return not stop.before_step(past, failed(failing), None)


def steps_without_accept(folder: Path, before: Sequence[Past], failing: float, **train: Any) -> int:
    """The number of steps in a row that may fail before the training ends."""
    miss = replace(MISS, failing=failing)
    return next(n for n in range(100) if not goes_on([*before, *[miss] * n], failing, folder / str(n), **train))


def test_an_optimizer_that_is_never_right_is_given_up_early(tmp_path: Path) -> None:
    assert 2 <= steps_without_accept(tmp_path, [], 1.0) <= 4


def test_a_first_miss_is_no_reason_to_end_where_help_would_be_worth_it(tmp_path: Path) -> None:
    """Small effects show in several screens together. With much solved, one miss would end the training otherwise."""
    for failing in (0.05, 0.3):
        assert steps_without_accept(tmp_path / f"{failing}", [], failing) == 3
    assert steps_without_accept(tmp_path / "dear", [], 0.05, call_price=0.05) == 0


def test_an_optimizer_that_was_right_is_not_given_up_while_much_fails(tmp_path: Path) -> None:
    never = steps_without_accept(tmp_path / "never", [], 0.5)
    once = steps_without_accept(tmp_path / "once", [HIT], 0.5)
    past = [Past("accepted", share, STEP, True) for share in (1.0, 0.8, 0.7, 0.6)]
    often = steps_without_accept(tmp_path / "often", past, 0.4)
    assert never < min(once, often)


@pytest.mark.parametrize("past", [[], [HIT], [MISS, HIT, MISS]])
def test_the_less_fails_the_earlier_the_training_ends(tmp_path: Path, past: list[Past]) -> None:
    patient = [steps_without_accept(tmp_path / f"{f}", past, f) for f in (0.02, 0.1, 0.3, 1.0)]
    assert patient == sorted(patient)
    assert not goes_on(past, 0.0, tmp_path / "all is solved")


def test_cheap_steps_are_worth_more_of_them(tmp_path: Path) -> None:
    cheap, dear = (steps_without_accept(tmp_path / str(p), [], 1.0, call_price=p) for p in (0.002, 0.02))
    assert dear < cheap


def test_the_reason_names_the_numbers_and_can_be_read_again(tmp_path: Path) -> None:
    past = [HIT, *[Past("a candidate was rejected", 0.3, 60, False)] * 9]
    with Run.open(tmp_path) as run:
        assert Stopping(run, make_config({"train": {"call_price": 0.1}}).train, 200, STEP).before_step(
            past, failed(0.3), None
        )
        [(_, _, data)] = run.events("stopping")
    ending = Ending.from_json(json.loads(json.dumps(data)))
    assert ending.reason.startswith(
        "30 % of the train tasks still fail, 1 of 10 steps helped: a further step of about 66 calls is expected to gain"
    )
    assert "train.call_price" in ending.reason
    assert ending.forecast is not None
    assert (ending.forecast.hits, ending.forecast.steps) == (1, 10)
    assert f"gain {100 * ending.forecast.gain:.1f} points" in ending.reason
    assert Ending.from_json({"reason": "an older run"}) == Ending("an older run")


def test_the_record_of_a_run_names_why_its_training_ended(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        Stopping(run, make_config({}).train, 200, STEP).before_step([], failed(0.0), None)
        ending = Record.of(run).ending
        assert ending is not None
        assert ending.reason.startswith("0 % of the train tasks still fail")
        assert Record.of(run).to_json()["ending"]["forecast"]["failing"] == 0.0
        run.record("verdict", **Verdict(Skill("a\n"), False, "", None).to_json(), step=2, epoch=1, lr=1, version=0)
        assert Record.of(run).ending is None  # the run went on


def test_patience_is_a_limit_beside_the_value(tmp_path: Path) -> None:
    assert steps_without_accept(tmp_path / "few", [HIT], 1.0, patience=2) == 2
    assert steps_without_accept(tmp_path / "many", [], 1.0, patience=50) <= 4
    assert goes_on([MISS] * 50, 1.0, tmp_path / "never", patience=0)
    assert steps_without_accept(tmp_path / "free", [], 1.0, patience=9, call_price=0) == 9
    assert goes_on([MISS] * 50, 0.0, tmp_path / "no limit", call_price=0)


def test_the_paper_preset_never_ends_early(tmp_path: Path) -> None:
    cfg = make_config({"preset": "paper"}).train
    with Run.open(tmp_path) as run:
        assert not cfg.by_value
        assert not Stopping(run, cfg, 200, STEP).before_step([MISS] * 50, failed(0.0), None)


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(UsageError, match="call_price"):
        make_config({"train": {"call_price": -0.01}})


def test_tasks_that_were_not_seen_count_as_the_seen_ones_do(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        stop = Stopping(run, make_config({}).train, tasks=120, guess=STEP)
        assert stop.failing(failed(0.0, 120)) == 0.0  # every task was seen
        assert stop.failing(failed(1.0, 120)) == 1.0
        assert 0 < stop.failing(failed(0.0, 60)) < stop.failing(failed(0.0, 10)) < 0.05
        assert stop.failing(failed(0.5, 60)) == pytest.approx(0.5)
        assert not stop.before_step([MISS] * 9, {}, None)  # the incumbent did no task yet


def test_a_step_helped_if_its_edits_or_its_slow_update_were_accepted() -> None:
    no, yes = (Verdict(Skill("a\n"), accepted, "", None) for accepted in (False, True))
    assert [Past.of(verdicts, 0.6, 90).accepted for verdicts in ([no], [yes], [no, yes])] == [False, True, True]
    assert Past.of([no, yes], 0.6, 90).outcome == no.outcome


def test_a_step_mended_the_failing_tasks_that_fail_no_more() -> None:
    """The steps after an accept tell what it mended; a step without an accept mended nothing, whatever luck says."""
    half = Forecast.of([Past("", 0.8, STEP, True)], 0.4, STEP)
    assert half.mended == pytest.approx((0.4 + 0.5) / 2)
    assert Forecast.of([Past("", 0.8, STEP, False)], 0.4, STEP).mended == 0.4
    assert Forecast.of([Past("", 0.4, STEP, True)], 0.8, STEP).mended == pytest.approx(0.2)
    later = Forecast.of([Past("", 0.8, STEP, True), Past("", 0.4, STEP, False)], 0.1, STEP)
    assert later.mended == half.mended
