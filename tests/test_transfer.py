"""`eval --targets`: one skill on several targets, with and without it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import skilltune as st
from skilltune.cli.main import app
from skilltune.stats import difference_interval, paired
from training import FRONT, quick_retries
from world import Faults, World

SIZE: dict[str, Any] = {"classes": 3, "train": 12, "select": 12, "test": 30}


class Contrary(World):
    """A target that solves a class unless the skill holds its rule."""

    def solves(self, skill: str) -> frozenset[int]:
        return frozenset(range(self.classes)) - self.held(skill)


def skilltune(*args: object) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def worlds() -> Iterator[tuple[World, World]]:
    with World(**SIZE) as world, Contrary(**SIZE) as other, quick_retries(2):
        yield world, other


def desk(folder: Path, world: World) -> Path:
    """A folder with samples and a skill that holds two of three rules; the config names no target."""
    world.write(folder / "data.jsonl")
    (folder / "SKILL.md").write_text(f"{FRONT}# Desk\n\n{world.rule(0)}\n{world.rule(1)}\n")
    (folder / "desk.toml").write_text('[env]\nsamples = "data.jsonl"\n[target]\nworkers = 4\n')
    return folder / "desk.toml"


def name(world: World) -> str:
    return f"openai@{world.url}/target"


def test_one_table_shows_that_a_skill_helps_one_target_and_harms_another(
    tmp_path: Path, worlds: tuple[World, World]
) -> None:
    world, other = worlds
    config, run = desk(tmp_path, world), tmp_path / "run"
    targets = f"{name(world)},{name(other)}"
    result = skilltune("eval", config, "--targets", targets, "--run", run, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    good, bad = data["targets"]
    assert [row["target"] for row in data["targets"]] == [name(world), name(other)]
    assert (good["without"]["mean"], good["with"]["mean"]) == (0.0, pytest.approx(2 / 3))
    assert (bad["without"]["mean"], bad["with"]["mean"]) == (1.0, pytest.approx(1 / 3))
    assert (good["before"], good["after"]) == (0.0, pytest.approx(2 / 3))
    before, after = [0.0] * 30, [1.0] * 20 + [0.0] * 10
    low, high = difference_interval(before, after)
    expected = pytest.approx((2 / 3, low, high, paired(before, after).p))
    assert (good["gain"], good["low"], good["high"], good["p"]) == expected
    assert (bad["gain"], bad["low"], bad["high"]) == pytest.approx((-2 / 3, -high, -low))  # a loss is shown as such
    assert good["with"]["tokens"] > good["without"]["tokens"] > 0
    assert good["with"]["loaded"] is None  # a chat model loads nothing
    paid = world.calls["target"], other.calls["target"]
    assert paid == (61, 61)  # both sides, and one call that tried the key

    shown = skilltune("eval", config, "--targets", targets, "--run", run)
    assert (world.calls["target"], other.calls["target"]) == paid  # nothing is paid twice
    assert "+66.7 (" in shown.stdout
    assert "-66.7 (" in shown.stdout
    table = skilltune("table", run, "--format", "csv")
    rows = {row["target"]: row for row in csv.DictReader(io.StringIO(table.stdout))}
    assert {target: float(row["after"]) for target, row in rows.items()} == {
        name(world): pytest.approx(2 / 3),
        name(other): pytest.approx(1 / 3),
    }
    assert {row["certified"] for row in rows.values()} == {""}
    text = skilltune("table", run).stdout
    assert "targets compared by `eval --targets`" in text
    assert "not certified" not in text
    assert "0.0 (0.0…" in shown.stdout
    shown = skilltune("show", run).stdout
    assert "no training" in shown
    assert "stopped" not in shown
    for command in (("export", run, "--to", "file"), ("compact", run), ("controls", run), ("adopt", run)):
        assert "answers of `skilltune eval` and no training" in skilltune(*command).stderr


def test_a_skill_with_targets_and_samples_needs_no_config(
    tmp_path: Path, worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths start at the current folder. A config that is named must exist."""
    world, _ = worlds
    desk(tmp_path, world)
    (tmp_path / "desk.toml").unlink()
    (tmp_path / "sub").mkdir()
    (tmp_path / "SKILL.md").rename(tmp_path / "sub" / "SKILL.md")
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--skill", "sub/SKILL.md", "--targets", name(world)]
    result = skilltune(*arguments, "env.samples=data.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["targets"][0]["gain"] == pytest.approx(2 / 3)
    lacking = skilltune(*arguments)
    assert (lacking.exit_code, "env.samples" in lacking.stderr) == (2, True)
    neither = skilltune("eval", "--targets", name(world))
    assert (neither.exit_code, "holds neither skilltune.toml nor" in neither.stderr) == (2, True)
    gone = skilltune("eval", "gone.toml", "--skill", "sub/SKILL.md", "--targets", name(world))
    assert (gone.exit_code, "cannot read the config gone.toml" in gone.stderr) == (2, True)


def test_both_sides_of_a_target_share_its_slots_at_the_same_time(tmp_path: Path, worlds: tuple[World, World]) -> None:
    world, _ = worlds
    world.latency = 0.002
    assert skilltune("eval", desk(tmp_path, world), "--targets", name(world)).exit_code == 0
    sides = [bool(world.held(seen.system)) for seen in world.requests if seen.sample]
    assert len(sides) == 60
    for start in range(0, 60, 15):  # each quarter of the calls has both sides
        assert 4 <= sum(sides[start : start + 15]) <= 11


def test_a_target_that_fails_is_a_row_with_its_reason_and_is_paid_for_later(
    tmp_path: Path, worlds: tuple[World, World]
) -> None:
    world, other = worlds
    config, run = desk(tmp_path, world), tmp_path / "run"
    targets = f"{name(other)},{name(world)}"
    other.faults = Faults(error=1.0)
    result = skilltune("eval", config, "--targets", targets, "--run", run, "--json")
    assert result.exit_code == 3
    failed, sound = json.loads(result.stdout)["targets"]
    assert "server had an error" in failed["reason"]
    assert failed["gain"] is failed["without"] is failed["with"] is None
    assert sound["gain"] == pytest.approx(2 / 3)
    table = skilltune("eval", config, "--targets", targets, "--run", run)
    assert table.exit_code == 3
    assert "no figures, see below" in table.stdout
    assert "has no figures: " in skilltune("table", run).stdout
    assert "the same command pays only for the rest" in table.stderr
    other.faults, before = Faults(), world.calls["target"]
    result = skilltune("eval", config, "--targets", targets, "--run", run, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["targets"][0]["gain"] == pytest.approx(-2 / 3)
    assert world.calls["target"] == before


def test_the_budget_covers_all_targets(tmp_path: Path, worlds: tuple[World, World]) -> None:
    world, other = worlds
    targets = f"{name(world)},{name(other)}"
    result = skilltune("eval", desk(tmp_path, world), "budget.calls=80", "--targets", targets, "--json")
    assert result.exit_code == 4
    first, second = json.loads(result.stdout)["targets"]
    assert first["n"] == 30
    assert "the budget of 80 calls" in second["reason"]
    assert world.calls["target"] + other.calls["target"] <= 80


@pytest.mark.parametrize(
    ("targets", "options", "said"),
    [
        ("{good},opnai/x", (), "names no model or agent"),
        ("{good},openai/gpt-5.5", (), "OPENAI_API_KEY"),
        ("{good},{good}", (), "named twice"),
        (" , ", (), "name at least one"),
        ("{good},handoff:there", (), "cannot be a target"),
        ("{good}", ("--only", "with"), "leave one of the two out"),
        ("{good}", ("target.timeout=3",), "unknown key"),
    ],
)
def test_wrong_names_and_missing_keys_are_errors_before_anything_is_spent(
    tmp_path: Path, worlds: tuple[World, World], targets: str, options: tuple[str, ...], said: str
) -> None:
    world, _ = worlds
    result = skilltune("eval", desk(tmp_path, world), *options, "--targets", targets.format(good=name(world)))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not world.calls


def test_a_wrong_key_of_one_target_is_found_before_another_one_is_paid(tmp_path: Path) -> None:
    with World(**SIZE) as world, World(**SIZE, key="right") as locked:
        result = skilltune("eval", desk(tmp_path, world), "--targets", f"{name(world)},{name(locked)}")
        assert result.exit_code == 2
        assert "401" in result.stderr or "key" in result.stderr
        assert world.calls["target"] <= 1  # the call that tried it


def test_python_takes_tables_with_options_of_their_own(tmp_path: Path, worlds: tuple[World, World]) -> None:
    world, other = worlds
    desk(tmp_path, world)
    found = st.evaluate(
        tmp_path / "SKILL.md",
        tmp_path / "data.jsonl",
        {"workers": 4},
        targets=[name(world), {"model": name(other), "temperature": 0.0}],
        split="test",
    )
    assert isinstance(found, st.Transfers)
    assert [row.comparison.gain for row in found.rows if row.comparison] == pytest.approx([2 / 3, -2 / 3])
    assert found.exit_code == 0
    assert {seen.temperature for seen in other.requests if seen.sample} == {0.0}
    assert {seen.temperature for seen in world.requests if seen.sample} == {None}


@pytest.mark.parametrize(
    ("target", "targets", "said"),
    [
        (None, None, "name a target"),
        ({}, [], "name at least one"),
        ({}, "openai/x", "a list of names"),
        ("openai/x", ["openai/y"], "a list of names"),
    ],
)
def test_python_names_what_is_wrong_with_its_targets(tmp_path: Path, target: Any, targets: Any, said: str) -> None:
    world = World(**SIZE)
    desk(tmp_path, world)
    with pytest.raises(st.UsageError, match=said):
        st.evaluate(tmp_path / "SKILL.md", tmp_path / "data.jsonl", target, targets=targets)


def test_an_empty_skill_has_nothing_to_compare(tmp_path: Path, worlds: tuple[World, World]) -> None:
    world, _ = worlds
    desk(tmp_path, world)
    with pytest.raises(st.UsageError, match="the skill is empty"):
        st.evaluate("", tmp_path / "data.jsonl", targets=[name(world)])
    assert not world.calls
