"""Preset `paper` is the published method: what is merged, ranked, remembered and scheduled, seen on the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skilltune.envs import Env
from skilltune.optimizer import Memory, Step
from skilltune.optimizer.model import SLOW_HEADING, ModelOptimizer
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from training import START, Fated, events, prepare, small, train, train_at
from world import Dice, Prompt, World, blocks

pytestmark = pytest.mark.anyio
ONE = {"train.epochs": 1, "train.batch_size": 32}


def stages(world: World) -> list[str | None]:
    return [seen.stage for seen in world.requests if seen.role == "optimizer"]


# -- merge and rank


async def test_failures_and_successes_are_reflected_on_apart(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        skill = f"{START}\n{world.rule(0)}\n{world.rule(1)}\n"
        (tmp_path / "SKILL.md").write_text(skill)
        shown = spy(world, "reflect")
        await train(world, tmp_path, {**ONE, "train.minibatch_size": 8}, preset="paper")
    scores = [{trajectory.score for trajectory in prompt.trajectories} for prompt in shown]
    assert sorted(map(tuple, scores)) == [(0.0,), (0.0,), (1.0,), (1.0,)]


def spy(world: World, stage: str) -> list[Prompt]:
    """What the requests of a stage hold, in order of arrival."""
    seen: list[Prompt] = []
    think = world.optimizer.stages[stage]

    def thought(prompt: Prompt, dice: Dice) -> Any:
        seen.append(prompt)
        return think(prompt, dice)

    world.optimizer.stages[stage] = thought
    return seen


async def test_patches_are_merged_in_a_hierarchy_and_none_is_lost(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        merged = spy(world, "merge")
        settings = {**ONE, "train.minibatch_size": 4, "train.merge_batch_size": 3, "train.lr": 16}
        settings |= {"train.lr_min": 16}
        trained = await train(world, tmp_path, settings, preset="paper")
        # 32 failures in minibatches of 4: 8 patches, in groups of 3, 3 and 2, then the three results
        assert stages(world).count("reflect") == 8
        assert sorted(len(list(blocks("patch", prompt.text))) for prompt in merged) == [2, 3, 3, 3]
        assert world.true_score(trained.result.best.text) == 1.0


async def test_the_final_merge_shows_failures_before_successes(tmp_path: Path) -> None:
    with small(q=0.0, harmful=0.0) as world:  # with nothing failed, this optimizer still has something to say
        (tmp_path / "SKILL.md").write_text(f"{START}\n{world.rule(0)}\n{world.rule(1)}\n")
        merged = spy(world, "merge")
        await train(world, tmp_path, {**ONE, "train.minibatch_size": 16}, preset="paper")
    assert [[attributes["id"] for attributes, _ in blocks("patch", prompt.text)] for prompt in merged] == [
        ["failures", "successes"]
    ]


@pytest.mark.parametrize(("rate", "ranked"), [(1, True), (3, True), (16, False)])
async def test_edits_are_ranked_only_where_they_pass_the_budget(tmp_path: Path, rate: int, ranked: bool) -> None:
    with small(q=1.0) as world:
        settings = {**ONE, "train.lr": rate, "train.lr_min": rate, "train.schedule": "constant"}
        trained = await train(world, tmp_path, settings, preset="paper")
        assert stages(world).count("rank") == ranked
    applied = [sum(edit["status"] == "applied" for edit in verdict["edits"]) for verdict in trained.verdicts]
    assert applied == [min(rate, 4)]


async def test_the_best_ranked_edits_are_the_ones_applied(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        world.optimizer.stages["rank"] = lambda prompt, dice: {"order": [i for i, _ in reversed(prompt.edits)]}
        ranked = spy(world, "rank")
        settings = {**ONE, "train.lr": 2, "train.lr_min": 2}
        trained = await train(world, tmp_path, settings, preset="paper")
    wanted = [edit["text"] for _, edit in reversed(ranked[0].edits)][:2]
    assert [edit["text"] for edit in trained.verdicts[0]["edits"] if edit["status"] == "applied"] == wanted


# -- the gate


async def test_the_gate_is_one_pass_and_ties_are_rejected(tmp_path: Path) -> None:
    with small(p=0.2, q=0.5) as world:
        trained = await train(world, tmp_path, {"train.epochs": 3}, preset="paper")
        select = {ticket.id for ticket in world.tickets.values() if ticket.split == "select"}
    rollouts = [r for r in trained.rows("rollouts.jsonl") if r["sample"] in select]
    assert {r["attempt"] for r in rollouts} == {0}
    scores: dict[str, list[float]] = {}
    for rollout in rollouts:
        scores.setdefault(rollout["skill"], []).append(rollout["score"]["value"])
    means = {skill: sum(values) / len(values) for skill, values in scores.items()}
    assert all(len(values) == len(select) for values in scores.values())
    incumbent = trained.versions[0]
    for verdict in trained.verdicts:
        if verdict["candidate"] is None:
            assert not verdict["accepted"]
            continue
        assert verdict["after"] == pytest.approx(means[verdict["candidate"]])
        assert verdict["accepted"] == (means[verdict["candidate"]] > means[incumbent])
        incumbent = verdict["candidate"] if verdict["accepted"] else incumbent
        assert verdict["skill"] == incumbent
    assert incumbent == trained.versions[-1]


def half(sample: Sample, rollout: Rollout) -> Score:
    """1 for the right code; an answer of the right length is worth 0.3, and 0.6 as partial credit."""
    right = rollout.answer == sample.target
    return Score(1.0) if right else Score(0.3, why="no such code", soft=0.6)


@pytest.mark.parametrize(
    ("metric", "wrong"), [("hard", 0.0), ("soft", 0.6), ("score", 0.3), ("mixed", 0.75 * 0 + 0.25 * 0.6)]
)
async def test_the_metric_is_what_the_gate_compares(tmp_path: Path, metric: str, wrong: float) -> None:
    with small(q=1.0) as world:
        prepare(world, tmp_path)
        env = Env(tmp_path / "samples.jsonl", half)
        settings = {**ONE, "gate.metric": metric, "gate.weight": 0.75}
        trained = await train_at(world.url, tmp_path, settings, preset="paper", env=env)
        solved = world.true_score(trained.result.best.text, "select")
    assert events(trained.folder, "start")[0]["score"] == pytest.approx(wrong)
    [verdict] = trained.verdicts
    assert verdict["accepted"]
    assert verdict["after"] == pytest.approx(solved + (1 - solved) * wrong)
    assert trained.result.certificate is not None
    assert trained.result.certificate.before == pytest.approx(wrong)


# -- schedules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [4, 4, 4, 4]), ("linear", [3, 2, 2, 1]), ("cosine", [4, 2, 1, 1])]
)
async def test_the_schedule_sets_the_rate_of_each_step(tmp_path: Path, schedule: str, rates: list[int]) -> None:
    with small(q=0.3, harmful=0.0) as world:
        shown = spy(world, "reflect")
        settings = {"train.schedule": schedule, "train.lr": 4, "train.lr_min": 1, "slow.enabled": False}
        trained = await train(world, tmp_path, settings, preset="paper")
    assert [verdict["lr"] for verdict in trained.verdicts] == rates
    assert {prompt.budget for prompt in shown} == set(rates)  # the optimizer is told, too


async def test_autonomous_asks_the_optimizer_and_clamps_what_it_says(tmp_path: Path) -> None:
    said = iter([99, -3, 2.0, 0])
    with small(q=1.0, classes=8) as world:
        world.optimizer.stages["learning_rate"] = lambda prompt, dice: {"edits": next(said), "reason": ""}
        asked = spy(world, "learning_rate")
        settings = {"train.schedule": "autonomous", "train.lr": 3, "slow.enabled": False}
        trained = await train(world, tmp_path, settings, preset="paper")
    assert [verdict["lr"] for verdict in trained.verdicts] == [3, 1, 2, 1]
    for prompt, verdict in zip(asked, trained.verdicts, strict=True):  # it is told of what it is to choose
        assert prompt.budget == len(prompt.edits) <= 3
        assert {edit["text"] for edit in verdict["edits"]} <= {edit["text"] for _, edit in prompt.edits}
    for verdict in trained.verdicts:
        assert sum(edit["status"] == "applied" for edit in verdict["edits"]) <= verdict["lr"]


async def test_autonomous_keeps_the_last_value_where_the_answer_cannot_be_read(tmp_path: Path) -> None:
    asked = 0

    def second(call: Any, sample: str | None) -> str | None:
        nonlocal asked
        asked += call.stage == "learning_rate"
        return "garbled" if call.stage == "learning_rate" and asked > 1 else None

    with Fated(second, q=1.0, classes=10) as world:  # so many that every step has edits to ask about
        world.optimizer.stages["learning_rate"] = lambda prompt, dice: {"edits": 2, "reason": ""}
        settings = {"train.schedule": "autonomous", "train.lr": 4, "slow.enabled": False}
        trained = await train(world, tmp_path, settings, preset="paper")
    assert [verdict["lr"] for verdict in trained.verdicts] == [2, 2, 2, 2]
    assert [fallback["step"] for fallback in events(trained.folder, "fallback")] == [2, 3, 4]


# -- memory


async def test_the_rejected_edits_are_told_within_an_epoch_and_forgotten_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Step, Memory]] = []
    propose = ModelOptimizer.propose

    async def watched(self: Any, skill: Any, rollouts: Any, memory: Memory, step: Step, limit: int) -> Any:
        told.append((step, memory))
        return await propose(self, skill, rollouts, memory, step, limit)

    monkeypatch.setattr(ModelOptimizer, "propose", watched)
    with small(optimizer_mode="harmful") as world:
        shown = spy(world, "reflect")
        trained = await train(world, tmp_path, {"train.epochs": 2, "train.batch_size": 8}, preset="paper")
    assert [len(memory.rejected) > 0 for _, memory in told] == [not step.starts_epoch for step, _ in told]
    for step, memory in told:
        if not step.starts_epoch:
            before = trained.verdicts[step.index - 2]
            assert {entry["edit"]["text"] for entry in before["rejected"]} <= {e.edit.text for e in memory.rejected}
    assert {bool(prompt.rejected) for prompt in shown} == {True, False}
    reasons = [prompt.rejected for prompt in shown if prompt.rejected]
    assert all("the patch was rejected: given up: not shown to be better" in text for text in reasons)
    assert not [text for text in reasons if "→" in text or "select" in text]  # no score on select is told


async def test_slow_update_and_notes_come_from_the_second_epoch_on(tmp_path: Path) -> None:
    with small(q=1.0, classes=8, latency={"optimizer": 0.02}) as world:
        order: list[str] = []
        for stage in ("reflect", "slow_update", "notes"):
            noted(world, stage, order)
        shown, pairs = spy(world, "reflect"), spy(world, "slow_update")
        world.optimizer.stages["notes"] = lambda prompt, dice: order.append("notes") or {"notes": f"note {len(order)}"}
        settings = {"train.epochs": 3, "train.batch_size": 32, "train.minibatch_size": 32, "train.lr": 1}
        settings |= {"train.lr_min": 1, "slow.samples": 10}
        trained = await train(world, tmp_path, settings, preset="paper")
    assert order[:3] == ["reflect"] * 3  # one, then one for each side
    assert sorted(order[3:5]) == ["notes", "slow_update"]
    asked = {seen.stage: seen for seen in reversed(world.requests)}  # the first of each stage
    assert asked["notes"].began < asked["slow_update"].ended  # at the same time: neither waits for the other
    assert asked["slow_update"].began < asked["notes"].ended
    assert order.count("slow_update") == order.count("notes") == 2
    assert all(len(prompt.pairs) == 10 for prompt in pairs)
    first = order.index("notes")
    for place, prompt in zip([i for i, stage in enumerate(order) if stage == "reflect"], shown, strict=True):
        assert ("<notes>" in prompt.text) == (place > first)
    assert "note " not in trained.result.best.text  # notes are never shipped


def noted(world: World, stage: str, order: list[str]) -> None:
    think = world.optimizer.stages[stage]
    world.optimizer.stages[stage] = lambda prompt, dice: order.append(stage) or think(prompt, dice)


@pytest.mark.slow
async def test_the_slow_update_can_be_turned_off(tmp_path: Path) -> None:
    with small(q=1.0, classes=8) as world:
        settings = {"train.epochs": 3, "train.lr": 1, "train.lr_min": 1, "slow.enabled": False}
        trained = await train(world, tmp_path, settings, preset="paper")
        assert not {"slow_update", "notes"} & set(stages(world))
    assert SLOW_HEADING not in trained.result.best.text


# -- rewrite


async def test_rewrite_goes_through_the_same_gate(tmp_path: Path) -> None:
    lock = "<!-- skilltune:lock -->\nSign with your name.\n<!-- /skilltune:lock -->"
    (tmp_path / "SKILL.md").write_text(f"{START}\n{lock}\n")
    with small(q=1.0) as world:
        trained = await train(world, tmp_path, {"train.update": "rewrite"}, preset="paper")
        assert "rewrite" in stages(world)
        assert world.true_score(trained.result.best.text) > 0.4
    assert lock in trained.result.best.text
    assert trained.result.best.text.startswith(START.split("# Desk")[0])
    for verdict in trained.verdicts:
        assert [edit["op"] for edit in verdict["edits"]] in ([], ["rewrite"])
        assert verdict["accepted"] == (verdict["candidate"] is not None and verdict["after"] > verdict["before"])


async def test_a_rewrite_that_breaks_a_lock_is_asked_again_and_then_dropped(tmp_path: Path) -> None:
    lock = "<!-- skilltune:lock -->\nSign with your name.\n<!-- /skilltune:lock -->"
    (tmp_path / "SKILL.md").write_text(f"{START}\n{lock}\n")
    with Fated(lambda call, sample: None, q=1.0) as world:
        rules = "\n".join(map(world.rule, range(4)))
        world.optimizer.stages["rewrite"] = lambda prompt, dice: {"skill": rules, "summary": "all new"}
        trained = await train(world, tmp_path, {**ONE, "train.update": "rewrite"}, preset="paper")
        assert (world.asked["rewrite", 2], world.asked["rewrite", 4]) == (1, 1)
    assert [fallback["stage"] for fallback in events(trained.folder, "fallback")] == ["rewrite"]
    assert trained.result.exit_code == 1
