"""The last ablation: edits that harm or carry nothing are left out, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from arenas import START, Given, arena, set_select
from skilltune.cli.main import app
from skilltune.edits import Edit, apply
from skilltune.finish.ablation import Ablation, left_out
from skilltune.gate.screen import Pool
from skilltune.gate.trials import Trials
from skilltune.history.ledger import read_ledger
from skilltune.history.record import Record
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.optimizer import Proposal
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import AblationFigures, Verdict
from training import padding, small, train

pytestmark = pytest.mark.anyio
LOCKED = Skill("# Desk\n<!-- skilltune:lock -->\n- kept\n<!-- /skilltune:lock -->\n\n  Odd  spacing stays.  \n")


def rule(name: str, *support: str) -> Proposal:
    return Proposal(Edit("add", text=f"- {name}"), support)


async def ablated(
    score: Given,
    *proposals: Proposal,
    start: Skill = START,
    seen: bool = True,
    select: Iterable[int] = range(16),
    failing: float = 0.0,
) -> tuple[Skill, Verdict | None, Any]:
    """The skill with these edits, the verdict of its ablation, and the rollouts."""
    place = arena(score)
    place.train = [Sample(id=f"t{i}", input="q") for i in range(24)]
    set_select(place, [Sample(id=f"s{i}", input="q") for i in select])
    trials = Trials()
    trials.set_incumbent(start)
    trials.supports |= {p.edit.key: frozenset(p.support) for p in proposals}
    for proposal in proposals:  # as a screen would
        alone = apply(start, [proposal.edit]).skill
        trials.note(alone, start, [proposal])
        await place.roll(alone, [sample for sample in place.train if sample.id in proposal.support])
    applied = apply(start, [p.edit for p in proposals])
    trials.note(applied.skill, start, proposals)
    verdict = Verdict(applied.skill, True, "", None, candidate=applied.skill, reports=applied.reports)
    await place.roll(start, place.train)
    await place.roll(applied.skill, [*place.train, *place.select])
    known = trials if seen else None
    ablation = await Ablation.of(place, applied.skill, start, [verdict], known, failing=failing)
    known_before, most = dict(place.scores.held), ablation.most_calls if ablation else 0
    ended = await ablation.verdict() if ablation else None
    assert len(place.scores.held) - len(known_before) <= most
    return applied.skill, ended, place.roll


RULES = (rule("even", *(f"t{i}" for i in range(0, 24, 2))), rule("odd", *(f"t{i}" for i in range(1, 24, 2))))
NOISE = (rule("vague", "t8", "t9", "t10"), rule("polite", "t11", "t12", "t13"))


def solved(text: str, i: int) -> float:
    """One rule for the even samples and one for the odd ones; a harmful line breaks a quarter of them."""
    return float(("- even" if i % 2 == 0 else "- odd") in text and not ("- harm" in text and i % 4 == 0))


async def test_a_line_that_harms_some_tasks_only_is_left_out() -> None:
    best, verdict, _ = await ablated(solved, *RULES, rule("harm", "t20", "t16"))
    assert verdict
    assert verdict.accepted
    assert "- harm" in best.text
    assert "- harm" not in verdict.skill.text
    assert {"- even", "- odd"} <= set(verdict.skill.text.splitlines())


async def test_a_line_that_carries_nothing_is_left_out_and_the_rest_is_byte_identical() -> None:
    best, verdict, _ = await ablated(solved, *RULES, *NOISE, start=LOCKED)
    assert verdict
    assert verdict.accepted
    assert verdict.skill.text.startswith(LOCKED.text.rstrip("\n"))
    assert {"- even", "- odd", "- kept"} <= set(verdict.skill.text.splitlines())
    gone = [report.removed.strip() for report in verdict.reports]
    assert gone
    assert set(gone) <= {"- vague", "- polite"}
    rest = [line for line in best.text.splitlines() if line not in gone and line]
    assert [line for line in verdict.skill.text.splitlines() if line] == rest
    assert isinstance(verdict.figures, AblationFigures)
    assert verdict.figures.interims[-1].safe >= 0.9


async def test_the_versions_alone_tell_what_carries_nothing() -> None:
    """Under the strict rule there was no screen, so nothing is known of single edits before the ablation."""
    _best, verdict, _ = await ablated(solved, *RULES, *NOISE, seen=False)
    assert verdict
    assert "- even" in verdict.skill.text
    assert "- odd" in verdict.skill.text


async def test_a_removal_that_select_vetoes_is_not_made() -> None:
    """On train the lines carry nothing, on `select` they solve half of the tasks."""

    def needed(text: str, i: int) -> float:
        return solved(text, i) if i < 24 else float("- vague" in text and "- polite" in text)

    best, verdict, _ = await ablated(needed, *RULES, *NOISE, select=range(24, 40))
    assert verdict
    assert verdict.candidate
    assert not verdict.accepted
    assert verdict.skill == best


async def test_a_removal_whose_calls_fail_on_select_is_not_made() -> None:
    """A failed call is no score. Most calls without the lines fail, and the few that do not are no proof."""

    def failing(text: str, i: int) -> float | None:
        return None if i >= 24 and i % 4 and not ("- vague" in text and "- polite" in text) else solved(text, i)

    best, verdict, _ = await ablated(failing, *RULES, *NOISE, select=range(24, 40))
    assert verdict
    assert verdict.candidate
    assert verdict.skill == best


async def test_nothing_is_paid_if_no_edit_stands_in_the_skill() -> None:
    place = arena()
    assert await Ablation.of(place, START, START, []) is None
    assert not place.roll.asked  # type: ignore[attr-defined]


async def test_a_skill_that_solves_nearly_everything_is_not_ablated() -> None:
    """Nothing can harm much there, and the rollouts are saved."""
    for failing, made in ((0.3, False), (0.2, True)):
        _, verdict, _roll = await ablated(solved, *RULES, rule("harm", "t20", "t16"), failing=failing)
        assert (verdict is not None) == made, failing


def test_a_text_is_tried_on_what_its_removals_claim_and_on_what_fails() -> None:
    pool = Pool.of(START, [*RULES, *NOISE], (), 2000)
    known = [f"t{i}" for i in range(24)]
    plan = left_out(pool, [(0, 1), (2,), (3,)], known, ["t20", "t21"], 12, Random(1))
    assert [len(samples) for samples in plan] == [4, 4, 4]
    assert all({"t20", "t21"}.intersection(samples) for samples in plan)
    assert set(plan[1]).intersection(NOISE[0].support)
    assert all(len(set(samples)) == len(samples) for samples in plan)
    again = left_out(pool, [(0, 1), (2,), (3,)], known, ["t20", "t21"], 12, Random(1), [*plan[:2], known])
    assert not any(set(plan[i]).intersection(again[i]) for i in (0, 1))
    assert not again[2]  # it was tried on all samples


# -- in a training


@pytest.mark.slow
async def test_a_training_ends_with_its_ablation_which_is_shown_and_can_be_recomputed(tmp_path: Path) -> None:
    shown, measured = 0, 0
    settings = {"train.ablation": True, "train.epochs": 1}
    for seed in range(4):
        with small(seed=seed, q=0.6, train=48) as world:
            padding(world)
            trained = await train(world, tmp_path, settings, seed=seed, run=f"run {seed}")
            calls = sum(world.calls.values())
            again = await train(world, tmp_path, settings, seed=seed, run=f"run {seed}")
            assert sum(world.calls.values()) == calls
        assert again.result.versions == trained.result.versions
        assert again.result.best == trained.result.best
        last = [v for v in trained.verdicts if v["numbers"].get("rule") == "ablation"]
        assert last == trained.verdicts[len(trained.verdicts) - len(last) :]  # at the end, if at all
        if not last:
            continue
        shown += 1
        with Run.read(trained.folder) as run:
            assert (await recompute(run)).exit_code == 0
            assert Record.of(run).best_hash == trained.result.best.hash
            rows = {row["key"]: row for row in last[0]["numbers"]["screen"]}
            rules = [rule for rule in read_ledger(run, trained.result.best.hash) if rule.key in rows]
        measured += len(rules)
        assert all(rule.together is None for rule in rules)
        told = CliRunner().invoke(app, ["show", str(trained.folder)]).stdout
        assert "ablation" in told
    assert shown
    assert measured
