"""The control arms: measured after the certificate, at the budget of the training, and never chosen by."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from skilltune.cli.main import app
from skilltune.finish.controls import TRAINED, shuffled
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.skill import Skill
from skilltune.usage import counted
from training import START, events, prepare, small, train

pytestmark = pytest.mark.anyio
QUIET = {"target.lookahead": False}  # no call that is not needed blurs the counts
ON = {"certify.controls": True, **QUIET}


@pytest.mark.slow
async def test_the_arms_come_after_the_certificate_and_change_nothing(tmp_path: Path) -> None:
    with small(q=0.8) as world:
        plain = await train(world, tmp_path, QUIET, run="plain")
        trained = sum(s.role == "target" for s in world.requests) - 48
        seen = len(world.requests)
        done = await train(world, tmp_path, ON, run="controls")
        asked = world.requests[seen:]
        truth = {split: world.true_score(done.result.best.text, split) for split in ("select", "test")}
    assert done.outcome == plain.outcome
    found = done.result.controls
    assert found is not None
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
    asked_once = Counter(s.stage for s in asked if s.role == "optimizer")
    assert asked_once["rewrite"] == rewrites
    test = {ticket.id for ticket in world.tickets.values() if ticket.split == "test"}
    hidden = {ticket.id for ticket in world.tickets.values() if ticket.split != "train"}
    first = next(i for i, s in enumerate(asked) if s.stage == "rewrite")
    certificate = [i for i, s in enumerate(asked) if s.sample in test][:48]
    assert max(certificate) < first
    assert not [name for name in hidden if world.optimizer_saw(name)]

    assert done.result.training == plain.result.spent  # what a point gained took does not count the arms
    assert done.result.spent.calls > done.result.training.calls
    points = 100 * done.result.certificate.gain if done.result.certificate else 0.0
    per_point = counted(round(plain.result.spent.calls / points))
    figure = f"| training and certificate, per point gained | {per_point} |"
    assert figure in plain.read("card.md")
    assert figure in done.read("card.md")
    assert "Cost of making it: " in done.read("card.md")
    assert "| one rewrite |" in done.read("card.md")
    shown = CliRunner().invoke(app, ["show", str(done.folder)]).stdout
    assert "shuffled words" in shown
    with Run.read(done.folder) as run:
        assert (await recompute(run)).exit_code == 0


@pytest.mark.slow
async def test_a_finished_run_gets_its_arms_later_and_pays_only_for_them(tmp_path: Path) -> None:
    with small(q=0.8) as world:
        plain = await train(world, tmp_path, QUIET)
        calls = [sum(world.answered.values())]
        done = await train(world, tmp_path, ON)
        calls.append(sum(world.answered.values()))
        again = await train(world, tmp_path, ON)
        calls.append(sum(world.answered.values()))
    assert done.outcome == plain.outcome
    assert done.result.controls is not None
    made = sum(arm.cost.calls - 16 for arm in done.result.controls.arms if "rewrite" in arm.name)
    assert calls[1] - calls[0] <= made + 4 * 24
    assert calls[2] == calls[1]
    assert again.result.controls == done.result.controls
    assert again.result.training == done.result.training == plain.result.spent


@pytest.mark.slow
async def test_without_a_model_that_can_rewrite_these_arms_are_missing(tmp_path: Path) -> None:
    with small(q=0.8) as world:
        done = await train(world, tmp_path, {**ON, "optimizer.model": "examples"})
    if done.result.certificate is not None:
        assert done.result.controls is not None
        assert [name for name in done.result.controls.missing if "rewrite" in name] == list(
            done.result.controls.missing
        )
        assert len(done.result.controls.missing) == 2


@pytest.mark.slow
async def test_nothing_accepted_nothing_compared(tmp_path: Path) -> None:
    with small(q=0.0, harmful=0.0) as world:
        done = await train(world, tmp_path, ON)
    assert done.result.exit_code == 1
    assert done.result.controls is None
    assert events(done.folder, "controls") == []
    assert "Not measured: the best skill is the input" in done.read("card.md")


@pytest.mark.slow
async def test_the_budget_keeps_the_cost_of_the_arms_back(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        done = await train(world, tmp_path, ON, budget="420 calls")
        spent = sum(world.calls.values())
    assert spent <= 420
    assert done.result.certificate is not None
    assert done.result.controls is not None
    assert not done.result.controls.missing


async def test_a_budget_too_small_for_the_arms_is_refused_before_the_first_rollout(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        done = await train(world, tmp_path, ON, budget="140 calls")
        assert world.calls["target"] == 0
    assert done.result.exit_code == 4


@pytest.mark.slow
def test_the_option_of_the_command(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        prepare(world, tmp_path)
        (tmp_path / "skilltune.toml").write_text(
            f'skill = "SKILL.md"\n[env]\nsamples = "samples.jsonl"\n[target]\nmodel = "openai@{world.url}/target"\n'
            f'[optimizer]\nmodel = "openai@{world.url}/optimizer"\n'
            "[train]\nepochs = 1\nbatch_size = 16\nminibatch_size = 4\n[gate]\nscreen = 24\n"
        )
        ended = CliRunner().invoke(app, ["train", str(tmp_path / "skilltune.toml"), "--controls", "--json"])
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    (controls,) = [event for event in told if event["type"] == "controls"]
    assert [arm["name"] for arm in controls["arms"]][:2] == [TRAINED, "no skill"]
    assert told.index(controls) > max(i for i, event in enumerate(told) if event["type"] == "verdict")


def test_shuffled_words_keep_length_lines_and_frontmatter() -> None:
    skill = Skill(f"{START}\n- one  two three\n- four\n")
    placebo = shuffled(skill, 1)
    assert placebo.text != skill.text
    assert placebo.frontmatter == skill.frontmatter
    assert sorted(placebo.body.split()) == sorted(skill.body.split())
    assert placebo.body.count("\n") == skill.body.count("\n")
    assert len(placebo.body) == len(skill.body)
    assert shuffled(skill, 1) == placebo
