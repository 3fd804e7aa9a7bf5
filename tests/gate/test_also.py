"""`gate.also`: a rule that helps the target and harms a further one is accepted without it and rejected with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skilltune import UsageError
from skilltune.finish.reserve import estimate_elsewhere
from skilltune.gate.also import fewest
from skilltune.gate.blocks import harmful
from skilltune.gate.priors import ELSEWHERE
from skilltune.history.record import Record
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from training import prepare, small, train, train_at
from world import World, uniform

pytestmark = pytest.mark.anyio
SIZE = {"classes": 3, "train": 30, "select": 24, "test": 60, "q": 1.0, "sloppy": 0.0}


class Spoiled(World):
    """A target that solves everything, but not the classes in `spoils` once the skill holds their rule."""

    def __init__(self, spoils: frozenset[int], **settings: Any) -> None:
        super().__init__(**{**SIZE, **settings})
        self.spoils = spoils

    def solves(self, skill: str) -> frozenset[int]:
        return frozenset(range(self.classes)) - (self.held(skill) & self.spoils)


def further(world: World) -> str:
    return f"openai@{world.url}/target"


@pytest.mark.parametrize("policy", ["race", "eprocess", "strict"])
async def test_a_rule_that_harms_a_further_target_is_accepted_without_it_and_rejected_with_it(
    tmp_path: Path, policy: str
) -> None:
    settings = {"gate.policy": policy, "train.epochs": 1, "gate.screen": 16}
    with small(**SIZE) as world, Spoiled(frozenset(range(3))) as other:
        prepare(world, tmp_path)
        alone = await train_at(world.url, tmp_path, settings, run="alone")
        assert alone.result.best.text != alone.result.start.text
        assert not other.calls
        both = await train_at(world.url, tmp_path, {**settings, "gate.also": [further(other)]}, run="both")
    assert both.result.best.text == both.result.start.text
    assert both.result.exit_code == 1
    vetoed = [verdict for verdict in both.verdicts if verdict.get("elsewhere")]
    assert vetoed
    assert not any(verdict["accepted"] for verdict in both.verdicts)
    assert all(f"vetoed by {further(other)}" in verdict["reason"] for verdict in vetoed)
    with Run.read(both.folder) as run:
        record = Record.of(run)
        assert {v.vetoed_by for v in record.verdicts} <= {"", further(other)}
        assert (await recompute(run)).exit_code == 0


async def test_only_the_guilty_edit_of_a_team_is_refused_and_the_certificate_has_a_line_per_further_target(
    tmp_path: Path,
) -> None:
    with small(**SIZE) as world, Spoiled(frozenset({0})) as one, Spoiled(frozenset()) as two:
        also = {"gate.also": [further(two), further(one)], "gate.also_margin": 0.15, "train.epochs": 1}
        trained = await train(world, tmp_path, also)
        calls = one.calls["target"], two.calls["target"]
        held = world.held(trained.result.best.text)
        again = await train(world, tmp_path, also)
        assert again.outcome == trained.outcome
        assert (one.calls["target"], two.calls["target"]) == calls  # nothing is paid twice
        assert 0 not in held
        assert held
    proof = trained.result.certificate
    assert proof is not None
    assert proof.certified
    assert [row.target for row in proof.also] == [further(two), further(one)]
    assert all(row.harmless and row.before == row.after == 1.0 and row.n == 60 for row in proof.also)
    for name in ("card.md", "report.html"):
        assert str(one.port) in trained.read(name)
        assert "no loss above 15 points" in trained.read(name)
    with Run.read(trained.folder) as run:
        record = Record.of(run)
        assert record.certificate == proof
        assert json.loads(json.dumps(record.to_json()))["certificate"]["also"][1]["harmless"]
        assert (await recompute(run)).exit_code == 0
        assert run.usage[f"target {further(one)}"].calls == calls[0] - 1  # one was the probe


async def test_the_certificate_is_withheld_if_a_further_target_loses_on_test(tmp_path: Path) -> None:
    """The harm shows on test samples only, so that no check on `select` can see it."""

    class OnTest(Spoiled):
        def value(self, skill: str, ticket: Any) -> float:
            return 1.0 if ticket.split != "test" else super().value(skill, ticket)

    with small(**SIZE) as world, OnTest(frozenset(range(3))) as other:
        trained = await train(world, tmp_path, {"gate.also": [further(other)], "train.epochs": 1})
    proof = trained.result.certificate
    assert proof is not None
    assert proof.gain > 0
    assert not proof.certified
    assert trained.result.exit_code == 5
    assert f"loss above 5 points on {further(other)}" in proof.reason


async def test_small_losses_do_not_add_up_over_the_versions(tmp_path: Path) -> None:
    """Each rule loses less than the margin, all of them together lose more."""

    class Slow(Spoiled):
        def value(self, skill: str, ticket: Any) -> float:
            return float(uniform(ticket.id) >= 0.12 * len(self.held(skill)))

    with small(**SIZE) as world, Slow(frozenset()) as other:
        gate = {"gate.also": [further(other)], "gate.also_margin": 0.3, "train.lr": 1, "train.lr_min": 1}
        trained = await train(world, tmp_path, {**gate, "train.patience": 0})
    held = len(world.held(trained.result.best.text))
    vetoed = [check for v in trained.verdicts for check in v.get("elsewhere", ()) if check["vetoed"]]
    assert 1 <= held < 3
    assert vetoed
    assert vetoed[-1]["against"] == "input"


async def test_a_further_target_that_fails_stops_the_run_which_goes_on_later(tmp_path: Path) -> None:
    from skilltune.errors import InfraStopped
    from training import quick_retries
    from world import Faults

    with small(**SIZE) as world, Spoiled(frozenset()) as other, quick_retries(2):
        also = {"gate.also": [further(other)], "train.epochs": 1}
        sound = await train_at(world.url, _prepared(world, tmp_path), also, run="sound")
        other.faults = Faults(error=1.0)
        with pytest.raises(InfraStopped, match="further target"):
            await train(world, tmp_path, also)
        other.faults = Faults()
        resumed = await train(world, tmp_path, also)
        assert resumed.versions == sound.versions


def _prepared(world: World, folder: Path) -> Path:
    prepare(world, folder)
    return folder


async def test_the_budget_and_the_estimate_include_the_further_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skilltune.build import build_parts
    from skilltune.config import make_config
    from skilltune.finish.reserve import hold_back
    from skilltune.preflight.estimate import estimate

    with small(**SIZE) as world, Spoiled(frozenset()) as other:
        prepare(world, tmp_path)
        tree = {
            "target": {"model": further(world)},
            "env": {"samples": "samples.jsonl"},
            "gate": {"also": [further(other)]},
            "budget": {"calls": 10_000},
        }
        cfg = make_config(tree)
        with Run.open(tmp_path / "run", cfg.to_json()) as run:
            parts = build_parts(cfg, run, tmp_path)
            hold_back(parts)
            assert parts.budget.held.calls == 2 * 2 * 60
            expected = estimate(parts)
            assert expected.further_calls == estimate_elsewhere(cfg, parts.splits)
            assert expected.further_calls[0] == 2 * 60
            await parts.aclose()
        tree["budget"] = {"usd": 1.0}
        tree["gate"] = {"also": [{"model": "openai/nobody-knows", "key_env": "SOME_KEY"}]}
        monkeypatch.setenv("SOME_KEY", "k")
        with Run.open(tmp_path / "run2") as run, pytest.raises(UsageError, match="further target openai/nobody-knows"):
            build_parts(make_config(tree), run, tmp_path)


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("openai@http://127.0.0.1:9/v1/target", "named twice"),
        ("opnai/x", "names no model or agent"),
        ([{"model": "codex/x", "temperature": 1}], "temperature is an option of a chat model"),
        ([{"model": "openai/x", "pric": [1, 2]}], 'did you mean "price"'),
        ([{"price": [1, 2]}], "needs a name"),
    ],
)
def test_a_wrong_further_target_is_an_error_of_the_configuration(also: Any, said: str) -> None:
    from skilltune.config import make_config

    with pytest.raises(UsageError, match=said):
        make_config({"target": {"model": "openai@http://127.0.0.1:9/v1/target"}, "gate": {"also": also}})


async def test_too_few_select_samples_for_the_margin_are_an_error_before_anything_is_spent(tmp_path: Path) -> None:
    with small(**{**SIZE, "select": 9}) as world, Spoiled(frozenset()) as other:
        with pytest.raises(UsageError, match=r"15 are needed.*gate\.also_margin=0\.08"):
            await train(world, tmp_path, {"gate.also": [further(other)]})
        assert not world.calls
        assert not other.calls


def test_a_further_target_takes_over_the_options_of_its_kind_but_no_key_and_no_price() -> None:
    from skilltune.config import make_config, to_toml

    target = {"model": "openai/a", "temperature": 0.5, "key_env": "A_KEY", "price": (1, 2), "workers": 3}
    cfg = make_config({"target": target, "gate": {"also": 'openai/b, codex/c, "command:./x.sh a,b"'}})
    chat, codex, command = cfg.also
    assert (chat.temperature, chat.key_env, chat.price, chat.workers) == (0.5, None, None, 3)
    assert (codex.temperature, codex.workers) == (None, 3)
    assert command.model == "command:./x.sh a,b"
    import tomllib

    assert make_config(tomllib.loads(to_toml(cfg))) == cfg


def test_the_fewest_samples_are_those_with_which_no_change_passes() -> None:
    for margin in (0.01, 0.05, 0.2, 0.9):
        n = fewest(margin)
        assert harmful([0.0] * n, margin) <= ELSEWHERE < harmful([0.0] * (n - 1), margin)
