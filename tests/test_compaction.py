"""`skilltune compact`: a finished run's skill without what adds nothing, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from skilltune import Env
from skilltune.api import acompact
from skilltune.cli.main import app
from skilltune.compaction import DONE, FORMER
from skilltune.errors import BudgetExceeded, Paused, RunError, UsageError
from skilltune.history.record import Record
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from training import padding, small, train

pytestmark = pytest.mark.anyio
USELESS = "Keep an eye on"


@pytest.mark.slow
async def test_compact_leaves_out_what_carries_nothing_and_nothing_else(tmp_path: Path) -> None:
    with small(q=1.0, classes=2, train=64) as world:
        padding(world)
        plain = await train(world, tmp_path, preset="paper")
        longer = plain.result
        trained = len(plain.verdicts)
        short = await acompact(plain.folder)
        calls = sum(world.answered.values())
        assert await acompact(plain.folder) == short
        replayed = await train(world, tmp_path, preset="paper")  # the compaction belongs to the run now
        assert sum(world.answered.values()) == calls
        assert replayed.result == short
        before, after = (world.true_score(result.best.text) for result in (longer, short))
    assert USELESS in longer.best.text  # the published rule takes whole patches
    assert USELESS not in short.best.text
    assert after == before == 1.0
    assert short.versions[: len(longer.versions)] == longer.versions
    (last,) = plain.verdicts[trained:]
    assert last["accepted"]
    assert last["numbers"]["rule"] == "compact"
    assert last["numbers"]["margin"] == 0.01  # one point in all
    assert last["numbers"]["looks"][-1]["safe"] >= 0.9
    assert last["numbers"]["screen"]  # the measured effects
    assert longer.certificate is not None
    assert short.certificate is not None
    assert (longer.certificate.look, short.certificate.look) == (1, 2)
    assert short.certificate.after == 1.0
    assert short.exit_code == 0
    assert short.best.frontmatter == longer.best.frontmatter
    assert plain.read("best_skill.md") == short.best.text
    assert "look 2 at these samples" in plain.read("card.md")
    with Run.read(plain.folder) as run:
        again = await recompute(run)
        assert again.exit_code == 0
        assert [d.name for d in again.decisions].count("compact") == 1
    told = CliRunner().invoke(app, ["show", str(plain.folder)]).stdout
    assert "left out" in told


async def test_a_longer_skill_that_is_certified_ships_if_the_shorter_one_is_not(tmp_path: Path) -> None:
    """The second reading of the test split needs half the p."""
    with small(q=1.0, classes=2, train=64, test=10) as world:
        padding(world)
        plain = await train(world, tmp_path, {"certify.alpha": 0.0015}, preset="paper")
        assert plain.result.exit_code == 0
        short = await acompact(plain.folder)
    assert short.best == plain.result.best
    assert short.certificate == plain.result.certificate
    assert len(short.versions) > len(plain.result.versions)
    assert plain.read("best_skill.md") == plain.result.best.text
    with Run.read(plain.folder) as run:
        assert Record.of(run).best_hash == plain.result.best.hash


@pytest.mark.slow
async def test_a_compaction_that_was_stopped_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    with small(q=1.0, classes=2, train=64) as world:
        padding(world)
        plain = await train(world, tmp_path, preset="paper")
        calls = sum(world.answered.values())
        with pytest.raises(BudgetExceeded):
            await acompact(plain.folder, budget={"calls": calls + 40})
        with Run.read(plain.folder) as run:
            record = Record.of(run)
            assert record.state == "finished"
            assert record.best_hash == plain.result.best.hash
            assert (await recompute(run)).exit_code == 0
        again = await train(world, tmp_path, preset="paper")
        assert again.outcome == plain.outcome
        short = await acompact(plain.folder)
    assert USELESS not in short.best.text


@pytest.mark.slow
def test_the_command_says_the_cost_and_the_second_reading_first(tmp_path: Path) -> None:
    with small(q=1.0, classes=2, train=64) as world:
        padding(world)
        plain = asyncio.run(train(world, tmp_path, preset="paper"))
        told = CliRunner().invoke(app, ["compact", str(plain.folder)])
        calls = sum(world.answered.values())
        again = CliRunner().invoke(app, ["compact", str(plain.folder)])
        assert sum(world.answered.values()) == calls
    assert told.exit_code == again.exit_code == 0
    said = [told.stdout.index(text) for text in ("cost      at most", "read once more", "compact · accepted", "look 2")]
    assert said == sorted(said)
    assert "the run is compacted already" in again.stdout
    assert "look 2" in again.stdout


def test_the_plan_counts_every_target_and_is_kept(tmp_path: Path) -> None:
    """Candidate, incumbent and input do `select` on a further target, and the certificate is made there too."""
    with small(q=1.0, classes=2, train=64) as world, small(q=1.0, classes=2, train=64) as other:
        padding(world)
        name = f"openai@{other.url}/target"
        plain = asyncio.run(train(world, tmp_path, {"gate.also": [name], "gate.also_margin": 0.2}, preset="paper"))
        before = world.answered["target"], other.answered["target"]
        told = CliRunner().invoke(app, ["compact", str(plain.folder), "--json"])
        spent = world.answered["target"] - before[0], other.answered["target"] - before[1]
    assert told.exit_code == 0, told.output
    (plan,) = [event for line in told.stdout.splitlines() if (event := json.loads(line))["type"] == "plan"]
    assert USELESS in plain.result.best.text
    assert USELESS not in plain.read("best_skill.md")
    assert 16 + 24 <= spent[1] <= plan["further"][name]
    assert 16 + 24 < spent[0] <= plan["most_calls"]
    with Run.read(plain.folder) as run:
        assert asyncio.run(recompute(run)).exit_code == 0


def test_a_run_made_in_python_needs_its_env(tmp_path: Path) -> None:
    with small(q=1.0, classes=2, train=64) as world:
        rows = world.samples()
        settings = {"env.samples": "", "train.epochs": 1, "gate.screen": 0}
        plain = asyncio.run(train(world, tmp_path, settings, env=Env(rows)))
        with pytest.raises(UsageError, match="with the same Env"):
            asyncio.run(acompact(plain.folder))
        (tmp_path / "SKILL.md").write_text("The trained skill may be at its place by now.")
        (plain.folder / "stop").touch()
        with pytest.raises(Paused, match="stop exists"):
            asyncio.run(acompact(plain.folder, env=Env(rows)))
        (plain.folder / "stop").unlink()
        assert asyncio.run(acompact(plain.folder, env=Env(rows))).start == plain.result.start


@pytest.mark.slow
async def test_compact_costs_nothing_where_every_edit_is_known_to_carry(tmp_path: Path) -> None:
    with small(q=1.0, train=64, select=40) as world:
        plain = await train(world, tmp_path)
        calls = sum(world.calls.values())
        short = await acompact(plain.folder)
        spent = sum(world.calls.values()) - calls
    assert short.best.text == plain.result.best.text
    assert short.certificate == plain.result.certificate
    assert spent <= 80


async def test_a_run_that_an_earlier_version_compacted_is_read_and_nothing_else(tmp_path: Path) -> None:
    """That version dropped one rule after the other, each with a verdict of its own."""
    with small(q=1.0, classes=2, train=64) as world:
        plain = await train(world, tmp_path, {"train.epochs": 1}, preset="paper")
        best = plain.result.best.hash
        figures = {"edit": "abc", "effect": [0.0, 0.01], "margin": 0.01}
        looks = [{"n": 24, "gain": -0.002, "sd": 0.004, "safe": 0.95}]
        said = {"reason": "without a line: it stays", "numbers": {"rule": "compact", "looks": looks, **figures}}
        with Run.open(plain.folder) as run:
            run.record("verdict", step=9, version=1, accepted=False, skill=best, **said)
            run.decide(FORMER, lambda: best)
        calls = sum(world.calls.values())
        for again in (acompact(plain.folder), train(world, tmp_path, {"train.epochs": 1}, preset="paper")):
            with pytest.raises(RunError, match=r"compacted by an earlier skilltune \(\d.*skilltune show"):
                await again
        assert sum(world.calls.values()) == calls
    with Run.read(plain.folder) as run:
        record = Record.of(run)
        assert run.recall(DONE) is None
        with pytest.raises(RunError, match="earlier skilltune"):
            await recompute(run)
    assert record.rows[-1].to_json()["gain"] == -0.002  # type: ignore[union-attr]
    assert record.state == "finished"
    assert record.best_hash == best
    for command in (["show"], ["show", "--edits"], ["report"]):
        told = CliRunner().invoke(app, [*command, str(plain.folder)])
        assert told.exit_code == 0, told.output
    assert "it stays" in CliRunner().invoke(app, ["show", str(plain.folder)]).stdout
