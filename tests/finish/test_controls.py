"""The control arms: measured on a finished run, at the budget of the training, and never chosen by."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from skilltune.api import acontrols, finished_run, run_controls
from skilltune.cli.main import app
from skilltune.errors import BudgetExceeded, UsageError
from skilltune.finish.controls import TRAINED, shuffled
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.skill import Skill
from skilltune.usage import counted
from training import START, events, small, train

pytestmark = pytest.mark.anyio
QUIET = {"target.lookahead": False}  # no call that is not needed blurs the counts


@pytest.mark.slow
async def test_the_arms_cost_the_training_again_and_change_nothing(tmp_path: Path) -> None:
    with small(q=0.8) as world:
        done = await train(world, tmp_path, QUIET)
        trained = sum(s.role == "target" for s in world.requests) - 48
        seen = len(world.requests)
        found = await acontrols(done.folder)
        asked = world.requests[seen:]
        calls = sum(world.answered.values())
        again = await acontrols(done.folder)
        replayed = await train(world, tmp_path, QUIET)
        assert sum(world.answered.values()) == calls
        truth = {split: world.true_score(done.result.best.text, split) for split in ("select", "test")}
    assert again == found
    assert replayed.outcome == done.outcome
    assert not found.missing
    rewrites = max(1, round(trained / 16))
    arms = {arm.name: arm for arm in found.arms}
    assert list(arms) == [
        TRAINED,
        "no skill",
        "start skill",
        "one rewrite",
        f"best of {rewrites} rewrites",
        "shuffled words",
    ]
    assert all(arm.n == 24 for arm in found.arms)
    assert arms[TRAINED].score == truth["test"]
    assert arms[TRAINED].difference == 0
    assert arms["no skill"].score == arms["start skill"].score == arms["shuffled words"].score == 0
    assert arms["no skill"].difference == -truth["test"]
    assert arms["no skill"].difference_high < 0
    assert arms[TRAINED].cost.calls == trained + sum(s.stage is not None for s in world.requests[:seen])
    assert arms["no skill"].cost.calls == 0
    assert arms["one rewrite"].cost.calls == 16 + 1  # the first batch, one call
    assert arms[f"best of {rewrites} rewrites"].cost.calls <= 16 + rewrites + 16 * rewrites
    made = sum(arm.cost.calls - 16 for arm in found.arms if "rewrite" in arm.name)
    assert len(asked) <= made + 4 * 24
    assert Counter(s.stage for s in asked if s.role == "optimizer")["rewrite"] == rewrites
    hidden = {ticket.id for ticket in world.tickets.values() if ticket.split != "train"}
    assert not [name for name in hidden if world.optimizer_saw(name)]

    points = 100 * done.result.certificate.gain if done.result.certificate else 0.0
    per_point = counted(round(done.result.spent.calls / points))  # the arms do not count
    card = done.read("card.md")
    assert f"| training and certificate, per point gained | {per_point} |" in card
    assert "Cost of making it: " in card
    assert "| one rewrite |" in card
    shown = CliRunner().invoke(app, ["show", str(done.folder)]).stdout
    assert "shuffled words" in shown
    with Run.read(done.folder) as run:
        assert (await recompute(run)).exit_code == 0


@pytest.mark.slow
async def test_without_a_model_that_can_rewrite_these_arms_are_missing(tmp_path: Path) -> None:
    with small(q=0.8) as world:
        done = await train(world, tmp_path, QUIET)
        async with finished_run(done.folder) as (session, result):
            found = await run_controls(replace(session, optimizer_client=None), result)
    assert [name for name in found.missing if "rewrite" in name] == list(found.missing)
    assert len(found.missing) == 2


async def test_nothing_accepted_nothing_compared(tmp_path: Path) -> None:
    with small(q=0.0, harmful=0.0) as world:
        done = await train(world, tmp_path, {**QUIET, "train.epochs": 1, "gate.screen": 0})
        calls = sum(world.calls.values())
        with pytest.raises(UsageError, match="no certificate"):
            await acontrols(done.folder)
        assert sum(world.calls.values()) == calls
    assert done.result.exit_code == 1
    assert events(done.folder, "controls") == []


@pytest.mark.slow
async def test_a_budget_that_is_used_up_stops_the_arms_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        done = await train(world, tmp_path, QUIET)
        paid = done.result.spent.calls
        with pytest.raises(BudgetExceeded, match=r"raise it with budget\.calls=") as stop:
            await acontrols(done.folder, budget={"calls": paid + 30})
        assert sum(world.calls.values()) <= paid + 30
        assert events(done.folder, "controls") == []
        shown = CliRunner().invoke(app, ["show", str(done.folder), "--json"]).stdout
        assert json.loads(shown)["state"] == "finished"  # the training stands
        found = await acontrols(done.folder, budget=f"{stop.value.larger.partition('=')[2]} calls")
    assert not found.missing


@pytest.mark.slow
def test_the_command_says_the_cost_first_and_refuses_what_has_not_finished(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "desk"
    with small(q=0.9) as world:
        world.write(tmp_path / "samples.jsonl")
        (tmp_path / "SKILL.md").write_text(START)
        (tmp_path / "skilltune.toml").write_text(
            f'skill = "SKILL.md"\n[env]\nsamples = "samples.jsonl"\n[target]\nmodel = "openai@{world.url}/target"\n'
            f'[optimizer]\nmodel = "openai@{world.url}/optimizer"\n'
            "[train]\nepochs = 1\nbatch_size = 16\nminibatch_size = 4\n[gate]\nscreen = 24\n"
        )
        training = ["train", str(tmp_path / "skilltune.toml"), "--run", str(run)]
        stopped = CliRunner().invoke(app, [*training, "budget.calls=60"])
        assert stopped.exit_code == 4
        refused = CliRunner().invoke(app, ["controls", str(run)])
        assert refused.exit_code == 2
        assert "has not finished; finish it first: skilltune train" in refused.stderr
        assert CliRunner().invoke(app, [*training, "budget.calls=4000"]).exit_code == 0
        with Run.open(run):
            refused = CliRunner().invoke(app, ["controls", str(run)])
            assert refused.exit_code == 2
            assert "is under way" in refused.stderr
        refused = CliRunner().invoke(app, ["controls", str(run), "train.epochs=3"])
        assert refused.exit_code == 2
        assert "train.epochs" in refused.stderr
        told = CliRunner().invoke(app, ["controls", str(run), "budget.calls=4000"])
        assert told.exit_code == 0
        ended = CliRunner().invoke(app, ["controls", str(run), "--json"])
    assert told.stdout.index("cost      at most") < told.stdout.index("measuring · no skill")
    assert "shuffled words" in told.stdout
    heard = [json.loads(line) for line in ended.stdout.splitlines()]
    assert heard[0]["type"] == "plan"
    assert heard[0]["most_calls"]["target"] >= 96
    (controls,) = [event for event in heard if event["type"] == "controls"]
    assert [arm["name"] for arm in controls["arms"]][:2] == [TRAINED, "no skill"]


def test_shuffled_words_keep_length_lines_and_frontmatter() -> None:
    skill = Skill(f"{START}\n- one  two three\n- four\n")
    placebo = shuffled(skill, 1)
    assert placebo.text != skill.text
    assert placebo.frontmatter == skill.frontmatter
    assert sorted(placebo.body.split()) == sorted(skill.body.split())
    assert placebo.body.count("\n") == skill.body.count("\n")
    assert len(placebo.body) == len(skill.body)
    assert shuffled(skill, 1) == placebo
