"""The last ablation: edits that harm or carry nothing are left out, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from arenas import SELECT, START, TRAIN, Scores, arena
from skilltune.cli.main import app
from skilltune.edits import Edit, apply
from skilltune.finish.compact import compact, left_out
from skilltune.gate.screen import Pool
from skilltune.gate.trials import Trials
from skilltune.history.ledger import read_ledger
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.optimizer import Proposal
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import CompactFigures, Verdict
from training import small, train
from world import Dice, Prompt, World

pytestmark = pytest.mark.anyio
LOCKED = Skill("# Desk\n<!-- skilltune:lock -->\n- kept\n<!-- /skilltune:lock -->\n\n  Odd  spacing stays.  \n")


def rule(name: str, *support: str) -> Proposal:
    return Proposal(Edit("add", text=f"- {name}"), support)


async def ablated(
    score: Scores, *proposals: Proposal, start: Skill = START, seen: bool = True, **cfg: Any
) -> tuple[Skill, Verdict | None, Any]:
    """The skill with these edits, the verdict of its ablation, and the rollouts."""
    place = arena(score, **cfg)
    place.train = [Sample(id=f"t{i}", input="q") for i in range(24)]
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
    return applied.skill, await compact(place, applied.skill, start, [verdict], trials if seen else None), place.roll


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


async def test_lines_that_carry_nothing_are_left_out_and_the_rest_is_byte_identical() -> None:
    _best, verdict, _ = await ablated(solved, *RULES, *NOISE, start=LOCKED)
    assert verdict
    assert verdict.accepted
    kept = apply(LOCKED, [proposal.edit for proposal in RULES]).skill
    assert verdict.skill.text.rstrip() == kept.text.rstrip()
    assert verdict.skill.text.startswith(LOCKED.text.rstrip("\n"))
    assert isinstance(verdict.figures, CompactFigures)
    assert verdict.figures.interims[-1].safe >= 0.9


async def test_the_versions_alone_tell_what_carries_nothing() -> None:
    """Under the strict rule there was no screen, so nothing is known of single edits before the ablation."""
    _best, verdict, _ = await ablated(solved, *RULES, *NOISE, seen=False)
    assert verdict
    assert "- even" in verdict.skill.text
    assert "- odd" in verdict.skill.text


async def test_a_removal_that_select_vetoes_is_not_made() -> None:
    """On train the line carries nothing, on `select` it solves half of the tasks."""

    async def judged(worth: bool) -> Verdict | None:
        place = arena()
        lines: list[str] = []

        def score(text: str, i: int) -> float:
            lines.append(text)
            return float("- even" in text) if i % 2 == 0 else float("- odd" in text)

        rolls: Any = place.roll
        rolls.score = score
        original = type(rolls).__call__

        class Split(type(rolls)):
            async def __call__(self, skill: Skill, samples: Any, **options: Any) -> Any:
                on_select = samples[0].id[0] == "s"
                self.score = lambda text, i: (
                    score(text, i) * float(not (on_select and worth and i % 2 and "- vague" not in text))
                )
                return await original(self, skill, samples, **options)

        place.roll = Split(score)  # type: ignore[assignment]
        trials = Trials()
        trials.set_incumbent(START)
        proposals = (rule("even", "t0", "t2"), rule("odd", "t1", "t3"), rule("vague", "t4", "t5"))
        trials.supports |= {p.edit.key: frozenset(p.support) for p in proposals}
        applied = apply(START, [p.edit for p in proposals])
        trials.note(applied.skill, START, proposals)
        await place.roll(START, TRAIN)
        await place.roll(applied.skill, TRAIN)
        await place.roll(applied.skill, SELECT)
        verdict = Verdict(applied.skill, True, "", None, candidate=applied.skill, reports=applied.reports)
        return await compact(place, applied.skill, START, [verdict], trials)

    harmless, needed = await judged(False), await judged(True)
    assert harmless
    assert "- vague" not in harmless.skill.text
    assert needed
    assert not needed.accepted
    assert "- vague" in needed.skill.text


async def test_nothing_is_paid_if_no_edit_stands_in_the_skill() -> None:
    place = arena()
    assert await compact(place, START, START, [], None) is None
    assert not place.roll.asked  # type: ignore[attr-defined]


def test_a_text_is_tried_on_what_its_removals_claim_and_on_what_fails() -> None:
    pool = Pool.of(START, [*RULES, *NOISE], (), 2000)
    known = [f"t{i}" for i in range(24)]
    plan = left_out(pool, [(0, 1), (2,), (3,)], known, ["t20", "t21"], 12, Random(1))
    assert [len(samples) for samples in plan] == [4, 4, 4]
    assert all({"t20", "t21"}.intersection(samples) for samples in plan)
    assert set(plan[1]).intersection(NOISE[0].support)
    assert all(len(set(samples)) == len(samples) for samples in plan)


# -- in a training


def padding(world: World) -> None:
    """An optimizer that is right, and adds a useless line to everything that it writes."""
    reflect = world.optimizer.reflect

    def padded(prompt: Prompt, dice: Dice) -> dict[str, Any]:
        answer = reflect(prompt, dice)
        for number, edit in enumerate(answer["edits"]):
            useless = f"Keep an eye on {world.names[number % 2]} tickets before moving on."
            if edit["text"] and useless not in prompt.skill:
                answer["edits"].append({**edit, "text": useless})
                break
        return answer

    world.optimizer.stages["reflect"] = padded


async def test_a_training_with_the_ablation_is_shorter_shows_it_and_can_be_recomputed(tmp_path: Path) -> None:
    settings = {"train.compact": True, "gate.policy": "strict"}
    with small(q=1.0, classes=2) as world:
        padding(world)
        plain = await train(world, tmp_path, preset="paper", run="plain")
        short = await train(world, tmp_path, settings, preset="paper", run="short")
        calls = sum(world.calls.values())
        again = await train(world, tmp_path, settings, preset="paper", run="short")
        assert sum(world.calls.values()) == calls
        before, after = (world.true_score(done.result.best.text) for done in (plain, short))
    assert "Keep an eye on" in plain.result.best.text  # the published rule takes whole patches
    assert "Keep an eye on" not in short.result.best.text
    assert after == before == 1.0
    assert again.result.versions == short.result.versions
    assert short.result.versions[: len(plain.result.versions)] == plain.result.versions
    [last] = [v for v in short.verdicts if v["numbers"].get("rule") == "compact"]
    assert last["accepted"]
    assert last["numbers"]["looks"][-1]["safe"] >= 0.9
    assert short.result.best.frontmatter == plain.result.best.frontmatter
    with Run.read(short.folder) as run:
        assert (await recompute(run)).exit_code == 0
        measured = {row["key"]: row["effect"] for row in last["numbers"]["screen"]}
        rules = [rule for rule in read_ledger(run, short.result.best.hash) if rule.key in measured]
        assert all(rule.together is None for rule in rules)
    told = CliRunner().invoke(app, ["show", str(short.folder)]).stdout
    assert "left out" in told
