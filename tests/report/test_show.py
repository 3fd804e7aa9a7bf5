"""A run looked at: what each row is, its figures as numbers, what stood in for a failed answer, how to go on."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from skilltune import __version__
from skilltune.cli.main import app
from skilltune.errors import BudgetExceeded
from skilltune.history.record import affordable
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.report.terminal import line, print_costs
from skilltune.usage import Usage
from training import Fated, events, prepare, small, train

pytestmark = pytest.mark.anyio


def show(*arguments: str | Path) -> str:
    told = CliRunner().invoke(app, ["show", *map(str, arguments)])
    assert told.exit_code == 0, told.output
    return told.stdout


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [
        (["target exchange", "probe"], ["probe          3 calls", "rollout        3 calls"]),
        (["optimizer exchange", "rollout"], ["optimizer      3 calls", "rollout        3 calls"]),
        (["optimizer exchange", "optimizer"], ["optimizer      6 calls"]),
        (["a kind with a long name"], ["a kind with a long name 3 calls"]),
    ],
)
def test_the_calls_of_an_agent_are_a_cost_of_its_role(kinds: list[str], rows: list[str]) -> None:
    console = Console(record=True, width=100)
    print_costs(dict.fromkeys(kinds, Usage(calls=3)), 0, console)
    assert [line.partition(",")[0].rstrip() for line in console.export_text().splitlines()] == rows


@pytest.mark.slow
async def test_a_slow_update_is_told_from_the_step_whose_number_it_has(tmp_path: Path) -> None:
    with small(q=1.0, classes=6) as world:
        settings = {"train.epochs": 3, "train.batch_size": 32, "train.lr": 1, "train.lr_min": 1}
        done = await train(world, tmp_path, settings)
    steps = [verdict["step"] for verdict in done.verdicts]
    twice = [n for n in steps if steps.count(n) == 2]
    assert twice
    rows: list[dict[str, Any]] = json.loads(show(done.folder, "--json"))["verdicts"][1:]
    assert [row["kind"] for row in rows if row["step"] == twice[0]] == ["step", "slow"]
    assert {row["kind"] for row in rows if row["step"] not in twice} == {"step"}
    table = [text for text in show(done.folder).splitlines() if text.startswith((f"{twice[0]} ", f"{twice[0]}, "))]
    assert [text.startswith(f"{twice[0]}, slow update ") for text in table] == [False, True]


@pytest.mark.slow
def test_a_run_of_a_version_with_other_options_is_shown_but_not_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small(q=1.0, train=24) as world:
        done = asyncio.run(train(world, tmp_path))
    with Run.read(done.folder) as run:
        kept = run.config or {}
    monkeypatch.setattr(Run, "config", {**kept, "gate": {**kept["gate"], "momentum": 0.9}})
    assert "P(better)" in show(done.folder)  # the reasons that were recorded
    for option in ("--edits", "--recompute"):
        told = CliRunner().invoke(app, ["show", str(done.folder), option])
        assert told.exit_code == 2
        assert "made by another version of skilltune" in told.stderr
        assert "unknown key gate.momentum" in told.stderr


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "paper"])
async def test_the_figures_of_a_verdict_are_numbers(tmp_path: Path, preset: str) -> None:
    with small(q=0.9) as world:
        done = await train(world, tmp_path, preset=preset)
    rows = json.loads(show(done.folder, "--json"))["verdicts"][1:]
    (accepted, verdict), *_ = [(r, v) for r, v in zip(rows, done.verdicts, strict=True) if v["accepted"]]
    assert (accepted["before"], accepted["after"]) == (verdict["before"], verdict["after"])
    assert accepted["n"] == len(verdict["differences"]) > 0
    if preset == "paper":  # the strict rule believes nothing
        assert (accepted["gain"], accepted["sd"], accepted["p_better"]) == (None, None, None)
    else:
        assert accepted["p_better"] >= 0.75
        assert 0 < accepted["sd"] < accepted["gain"] < 1
    assert all(row.keys() == accepted.keys() for row in rows)


async def test_the_line_of_a_failed_merge_says_what_was_used_instead(tmp_path: Path) -> None:
    with Fated(lambda call, _: "garbled" if call.stage == "merge" else None, q=0.9) as world:
        done = await train(world, tmp_path, {"train.epochs": 1}, preset="paper")
    (failed, *_) = [event for event in events(done.folder, "fallback") if event["stage"] == "merge"]
    said = line("fallback", failed, 2)
    assert said is not None
    assert "of merge twice: " in said.plain
    assert said.plain.endswith("; the patches are joined as they are, equal edits once")


@pytest.mark.parametrize(
    ("limits", "cost", "larger"),
    [
        (Limits(calls=120), Usage(121), "budget.calls=240"),
        (Limits(tokens=2_000_000), Usage(1, 3_000_000), "budget.tokens=4000000"),
        (Limits(usd=0.25), Usage(1, usd=0.5), "budget.usd=0.5"),
    ],
)
def test_the_command_that_resumes_names_a_larger_budget(limits: Limits, cost: Usage, larger: str) -> None:
    with pytest.raises(BudgetExceeded) as stopped:
        Budget(limits, Usage()).check(cost)
    name = larger.partition("=")[0]
    written = f"skilltune train c.toml {name}=1 --run 'my run'"
    assert stopped.value.larger == larger
    assert f"raise it with {larger} " in str(stopped.value)
    assert affordable(written, larger) == written.replace(f"{name}=1", larger)
    assert affordable("skilltune train c.toml", larger) == f"skilltune train c.toml {larger}"
    assert affordable(f"skilltune train c.toml {name}=1", "") == f"skilltune train c.toml {name}=1"


@pytest.mark.slow
def test_the_suggested_command_goes_on(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        prepare(world, tmp_path)
        config = tmp_path / "skilltune.toml"
        config.write_text(
            f'skill = "SKILL.md"\nenv.samples = "samples.jsonl"\ntarget.model = "openai@{world.url}/target"\n'
            f'optimizer.model = "openai@{world.url}/optimizer"\nbudget.calls = 90\ntrain.epochs = 1\n'
        )
        stopped = CliRunner().invoke(app, ["train", str(config), "--run", str(tmp_path / "run")])
        assert stopped.exit_code == 4
        (resume,) = [row for row in stopped.stdout.splitlines() if row.startswith("resume with")]
        words = shlex.split(resume.removeprefix("resume with"))
        assert words[:-1] == ["skilltune", "train", str(config), "--run", str(tmp_path / "run")]
        assert words[-1].startswith("budget.calls=")
        assert " ".join(words) in show(tmp_path / "run")
        spent = world.calls["target"]
        assert CliRunner().invoke(app, words[1:]).exit_code in (0, 1, 5)  # the budget that was named is enough
        assert world.calls["target"] > spent


def test_python_m_skilltune_is_the_command_line() -> None:
    command = [sys.executable, "-m", "skilltune", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"skilltune {__version__}\n")
