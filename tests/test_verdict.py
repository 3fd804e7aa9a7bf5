"""Verdicts in the journal: every rule's figures come back as they were; what has another shape stays readable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.config import GateConfig
from skilltune.edits import Citation, Edit, Report
from skilltune.history.lines import explained
from skilltune.skill import Skill
from skilltune.verdict import (
    FAILED,
    AblationFigures,
    BettingInterim,
    DropInterim,
    EProcessFigures,
    Estimate,
    Figures,
    Interim,
    OwnFigures,
    RaceFigures,
    Rejected,
    Screen,
    ScreenRow,
    StrictFigures,
    Verdict,
    VerdictRecord,
    figures_from_json,
)

START = Skill("# Desk\n")
FIRST = Interim(8, (0.5, 0.1), (0.6, 0.1), 0.05, 0.04, 0.8, 0.2)
LAST = Interim(16, (0.5, 0.1), (0.75, 0.1), 0.15, 0.05, 0.97, 0.1)
RULES: dict[str, tuple[Figures, Estimate]] = {
    "race": (RaceFigures("accepted", (0.1, 0.05), (FIRST, LAST), 1, 0.9, 0.001), Estimate(0.15, 0.05, 0.97)),
    "strict": (StrictFigures(0.5, None, 12), Estimate()),
    "eprocess": (
        EProcessFigures("given up", 2, 0.01, 100.0, (BettingInterim(8, 0, 8, 0.25, 1.5, 2.0, 0.4),)),
        Estimate(gain=0.25),
    ),
    "compact": (
        AblationFigures(("abc",), (0.001, 0.002), 0.01, (DropInterim(24, -0.002, 0.004, 0.95),), "compact"),
        Estimate(-0.002, 0.004),
    ),
    "ablation": (
        AblationFigures(("abc", "def"), (0.001, 0.002), 0.01, (DropInterim(24, -0.002, 0.004, 0.95),)),
        Estimate(-0.002, 0.004),
    ),
    "mine": (OwnFigures({"rule": "mine", "gain": 0.2, "vote": ["yes", "no"]}), Estimate(gain=0.2)),
    "": (OwnFigures(), Estimate()),
}  # fmt: skip
SCREEN = Screen((ScreenRow("a", "- a", 0.1, 0.02), ScreenRow("b", None, 0.0, 0.0), ScreenRow("c", "- c", 0, 1)), (0, 1))


@pytest.mark.parametrize("rule", RULES)
def test_the_figures_of_a_rule_come_back_from_the_journal(rule: str) -> None:
    figures, estimate = RULES[rule]
    said = json.loads(json.dumps(figures.to_json()))
    assert figures_from_json(said) == (figures, None)
    assert figures_from_json({**said, **json.loads(json.dumps(SCREEN.to_json()))}) == (figures, SCREEN)
    assert (figures.rule, figures.estimate) == (rule, estimate)


@pytest.mark.parametrize("rule", ["race", "strict", "eprocess", "compact", "ablation"])
def test_figures_of_another_shape_stay_a_mapping(rule: str) -> None:
    """Another version of skilltune may have written them: each lacks a key, or has no interim analysis."""
    said = json.loads(json.dumps(RULES[rule][0].to_json()))
    for broken in [{k: v for k, v in said.items() if k != key} for key in said if key not in ("rule", "price")]:
        assert figures_from_json(broken) == (OwnFigures(broken), None)
        assert figures_from_json(broken)[0].rule == rule
    if "looks" in said:
        for looks in ([], [{}], 3, None):
            assert figures_from_json({**said, "looks": looks}) == (OwnFigures({**said, "looks": looks}), None)
    verdict = VerdictRecord(1, 0, False, "hash", reason="as it was said", figures=OwnFigures({"rule": rule}))
    assert explained(verdict, GateConfig()) == "as it was said"


@pytest.mark.parametrize("screen", [None, 3, "abc", [3], [{"text": "- a"}], [{"key": "a", "effect": 0.1}]])
def test_a_screen_of_another_shape_stays_in_the_gates_own_mapping(screen: Any) -> None:
    numbers = {"rule": "mine", "screen": screen, "chosen": [0]}
    assert figures_from_json(numbers) == (OwnFigures(numbers), None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["rule", "looks", "screen", "chosen", "prior", "decision", "gain", "n", "before"])


@given(st.dictionaries(KEYS, JSON | st.sampled_from(["race", "strict", "eprocess", "compact", "ablation"])))
def test_any_mapping_can_be_read(numbers: dict[str, Any]) -> None:
    figures, screen = figures_from_json(numbers)
    assert isinstance(figures.estimate, Estimate)
    assert {**figures.to_json(), **(screen.to_json() if screen else {})}.keys() >= numbers.keys() - {"chosen"}


def test_a_verdict_is_read_as_it_was_made() -> None:
    edit = Edit("add", after="# Desk", text="- a", why="it helps", evidence=(Citation("t1", "42"),))
    report = Report(edit, "applied", match="exact", start=7, removed="", inserted="- a\n", overlaps=(0,))
    over = Report(Edit("delete", target="x"), "rejected", reason="not found")
    new = START.with_text("# Desk\n- a\n")
    verdict = Verdict(
        new,
        True,
        "better",
        0.75,
        0.1,
        candidate=new,
        before=0.5,
        after=0.75,
        differences={"s1": 1.0},
        reports=(report, over),
        rejected=(Rejected(over.edit, "not found"),),
        numbers=RULES["race"][0],
        screen=SCREEN,
    )
    data = json.loads(json.dumps(verdict.to_json()))
    read = VerdictRecord.from_json({**data, "step": 3, "epoch": 2, "lr": 4, "version": 1})
    assert (read.step, read.epoch, read.lr, read.version) == (3, 2, 4, 1)
    assert (read.skill, read.candidate, read.accepted) == (new.hash, new.hash, True)
    assert (read.before, read.after, dict(read.differences)) == (0.5, 0.75, {"s1": 1.0})
    assert [r.to_json() for r in read.reports] == [report.to_json(), over.to_json()]
    assert [r.edit for r in read.applied] == [edit]
    assert (read.rejected, read.figures, read.screen) == (verdict.rejected, verdict.figures, SCREEN)
    assert list(data["numbers"]) == [*RULES["race"][0].to_json(), "screen", "chosen"]
    assert not read.compacts


def test_a_plug_in_gate_may_give_any_mapping() -> None:
    verdict = Verdict(START, False, "voted down", None, numbers={"rule": "vote", "better": 0.4})
    assert verdict.figures.estimate.better == 0.4
    assert verdict.to_json()["numbers"] == {"rule": "vote", "better": 0.4}


def test_a_screen_tells_the_edits_that_were_raced_from_the_others() -> None:
    assert SCREEN.measured
    assert [SCREEN.row(key) is not None for key in "abcd"] == [True, False, True, False]
    assert [SCREEN.raced(key) for key in "ac"] == [f"raced with others: {FAILED}", ""]
    assert Screen(SCREEN.rows, (2,)).raced("c") == f"raced: {FAILED}"
    assert not Screen(SCREEN.rows[1:2]).measured
