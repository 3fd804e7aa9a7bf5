"""A broken call is never a score: whatever the wire does, a run ends with the same skill or says why it stopped."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import skilltune as st
from skilltune.errors import CallConfigError, InfraStopped, UsageError
from training import START, Fated, Trained, events, quick_retries, small, train
from world import Call, Faults, World

pytestmark = pytest.mark.anyio
PRESETS = ("default", "paper")
SHORT = {"train.epochs": 1}


def mixed(rate: float) -> Faults:
    """All that can befall a call on the wire, equally often, `rate` in all."""
    each = rate / 6
    return Faults(error=each, limit=each, drop=each, truncate=each, malformed=each, no_choices=each, retry_after=0.002)


def nothing_unpaid_was_scored(trained: Trained, world: World) -> None:
    """Every stored rollout is an answer that the target really gave."""
    answered = Counter(s.sample for s in world.requests if s.role == "target" and s.status == 200 and s.fault is None)
    rollouts = trained.rows("rollouts.jsonl")
    assert rollouts
    assert all(rollout["outcome"] == "ok" and rollout["answer"] for rollout in rollouts)
    assert Counter(rollout["sample"] for rollout in rollouts) == answered


# -- pitfall 4: errors are not failures of the skill


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rate", [0.05, 0.3])
async def test_pitfall_4_faults_on_the_wire_change_nothing(tmp_path: Path, preset: str, rate: float) -> None:
    settings = {"train.epochs": 2 if preset == "paper" else 1}
    outcomes = []
    for name, faults in (("sound", Faults()), ("faulty", mixed(rate))):
        (tmp_path / name).mkdir()
        with quick_retries(20), small(p=0.1, faults=faults) as world:
            trained = await train(world, tmp_path / name, settings, preset=preset)
            nothing_unpaid_was_scored(trained, world)
        outcomes.append(trained.outcome)
        seen = {request.fault for request in world.requests}
    assert len(seen - {None}) >= 3
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("fault", ["error", "limit", "drop", "truncate", "malformed", "no_choices"])
async def test_pitfall_4_what_is_never_answered_is_never_scored(tmp_path: Path, fault: str) -> None:
    """Few retries and many faults: the run finishes over what was answered, or stops and says why."""
    faults = {"target": replace(Faults(retry_after=0.002), **{fault: 0.25})}
    with quick_retries(2), small(q=0.9, faults=faults) as world:
        try:
            trained = await train(world, tmp_path, SHORT)
        except InfraStopped as stop:
            assert "Nothing was counted as a wrong answer" in str(stop)
            assert stop.exit_code == 3
            world.faults = Faults()
            trained = await train(world, tmp_path, SHORT)
        nothing_unpaid_was_scored(trained, world)
        assert trained.result.exit_code == 0
        assert world.true_score(trained.result.best.text) > 0.4


@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_4_an_outage_stops_the_run_and_the_same_command_goes_on(tmp_path: Path, preset: str) -> None:
    (tmp_path / "sound").mkdir()
    with quick_retries(2), small() as world:
        sound = await train(world, tmp_path / "sound", SHORT, preset=preset)
        total = sum(world.calls.values())
    calls = 0

    def down(call: Call, sample: str | None) -> str | None:
        nonlocal calls
        calls += 1
        return "error" if total // 2 < calls < 2 * total else None

    with quick_retries(2), Fated(down) as world:
        with pytest.raises(InfraStopped) as stopped:
            await train(world, tmp_path, SHORT, preset=preset)
        assert "500" in str(stopped.value)
        assert "the server had an error" in str(stopped.value)
        assert sum(world.calls.values()) < 2 * total  # it gave up instead of hammering on
        calls = 2 * total
        resumed = await train(world, tmp_path, SHORT, preset=preset)
        nothing_unpaid_was_scored(resumed, world)
    assert resumed.outcome == sound.outcome


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("dead", ["target", "optimizer"])
async def test_pitfall_4_a_dead_endpoint_ends_the_run_soon(tmp_path: Path, dead: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    began = time.monotonic()
    retries = nullcontext() if dead == "target" else quick_retries()  # once with the retries of real life
    with retries, small() as world, pytest.raises(InfraStopped) as stopped:
        await train(world, tmp_path, {f"{dead}.model": f"openai@{url}/{dead}"})
    assert time.monotonic() - began < 10
    assert stopped.value.exit_code == 3
    assert url.removesuffix("/v1") in str(stopped.value)
    assert "onnect" in str(stopped.value)
    assert not (tmp_path / "run" / "best_skill.md").exists()
    assert not events(tmp_path / "run", "verdict")
    assert bool(world.calls["target"]) == (dead == "optimizer")


async def test_a_refused_connection_is_no_call_of_the_budget_and_a_mended_url_goes_on(tmp_path: Path) -> None:
    with small() as world:
        dead = f"openai@http://127.0.0.1:{free_port()}/v1/target"
        with quick_retries(), pytest.raises(InfraStopped):
            await train(world, tmp_path, {**SHORT, "target.model": dead, "budget.calls": 120})
        mended = await train(world, tmp_path, SHORT)
        assert mended.result.best.text


async def test_a_scorer_that_cannot_work_is_found_before_anything_is_paid(tmp_path: Path) -> None:
    with small() as world:
        samples = tmp_path / "data.jsonl"
        world.write(samples)
        broken = st.Env(samples, score=lambda sample, rollout: sample.metadata["oops"])
        with pytest.raises(UsageError, match="oops"):
            await st.atrain(tmp_path / "SKILL.md", broken, f"openai@{world.url}/target", run=tmp_path / "run")
        assert not world.calls["target"]
        mended = st.Env(samples, score="exact")
        result = await st.atrain(
            tmp_path / "SKILL.md", mended, f"openai@{world.url}/target", f"openai@{world.url}/optimizer",
            run=tmp_path / "run", train={"epochs": 1, "batch_size": 8}, gate={"screen": 12, "texts": 4},
        )  # fmt: skip
        assert result.folder == tmp_path / "run"


@pytest.mark.parametrize("role", ["target", "optimizer"])
async def test_pitfall_4_a_wrong_key_stops_at_once(tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-this-one")
    with small() as world, World(1, 1, 1, 1, key="right") as guarded:
        with pytest.raises(CallConfigError) as stopped:
            await train(world, tmp_path, {f"{role}.model": f"openai@{guarded.url}/{role}"})
        assert stopped.value.exit_code == 3
        assert "OPENAI_API_KEY" in str(stopped.value)
        assert "sk-not-this-one" not in str(stopped.value)
        assert len(guarded.requests) == 0 or len(guarded.requests) <= 16  # the calls in flight, none again
    assert not (tmp_path / "run" / "best_skill.md").exists()
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"sk-not-this-one" not in path.read_bytes()


@pytest.mark.parametrize("role", ["target", "optimizer"])
async def test_pitfall_4_an_unknown_model_stops_at_once(tmp_path: Path, role: str) -> None:
    with small() as world:
        with pytest.raises(CallConfigError, match="no-such-model") as stopped:
            await train(world, tmp_path, {f"{role}.model": f"openai@{world.url}/no-such-model"})
        assert stopped.value.exit_code == 3
        asked = Counter(seen.status for seen in world.requests)
        assert asked[404] <= 16
    assert not (tmp_path / "run" / "best_skill.md").exists()


async def test_a_key_that_is_mended_resumes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small(q=1.0, key="right") as world:
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(CallConfigError):
            await train(world, tmp_path, SHORT)
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        trained = await train(world, tmp_path, SHORT)
    assert trained.result.exit_code == 0


@pytest.mark.parametrize("role", ["target", "optimizer"])
async def test_pitfall_21_dollars_without_a_price_are_refused_before_anything_is_spent(
    tmp_path: Path, role: str
) -> None:
    unpriced = f"openai@http://skilltune.invalid/v1/{role}"
    with small() as world:
        with pytest.raises(UsageError, match=f"price of the {role} model is unknown"):
            await train(world, tmp_path, {"budget.usd": 1.0, f"{role}.model": unpriced})
        models = {name: f"openai@{world.url}/{name}" for name in ("target", "optimizer")} | {role: unpriced}
        paths = tmp_path / "SKILL.md", tmp_path / "samples.jsonl"
        with pytest.raises(UsageError, match=f"price of the {role} model is unknown"):
            await st.atrain(*paths, models["target"], models["optimizer"], budget="1 usd", run=tmp_path / "another")
        assert not world.calls


# -- pitfall 7: an answer that cannot be read is not an opinion


def garble(*stages: str):
    return lambda call, sample: "garbled" if call.stage in stages else None


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("merge", {}),
        ("rank", {"train.lr": 1, "train.lr_min": 1}),
        ("rewrite", {"train.update": "rewrite"}),
        ("learning_rate", {"train.schedule": "autonomous"}),
        ("slow_update", {"train.lr": 1, "train.lr_min": 1, "train.batch_size": 32}),
        ("notes", {"train.lr": 1, "train.lr_min": 1, "train.batch_size": 32}),
    ],
)
async def test_pitfall_7_a_garbled_stage_is_asked_again_once_and_named(
    tmp_path: Path, stage: str, settings: Mapping[str, object]
) -> None:
    with Fated(garble(stage), q=1.0) as world:
        trained = await train(world, tmp_path, dict(settings), preset="paper")
        assert world.asked[stage, 2] == world.asked[stage, 4] > 0
        assert {turns for name, turns in world.asked if name == stage} == {2, 4}
    fallbacks = events(trained.folder, "fallback")
    assert fallbacks
    assert {fallback["stage"] for fallback in fallbacks} == {stage}
    assert all("twice" in fallback["reason"] for fallback in fallbacks)
    if stage == "rank":  # not the first ones: the best supported
        assert any(verdict["accepted"] for verdict in trained.verdicts)
    if stage == "learning_rate":  # the last value, which is the configured one; never 0
        assert {verdict["lr"] for verdict in trained.verdicts} == {4}


@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_7_an_unreadable_minibatch_is_left_out_and_named(tmp_path: Path, preset: str) -> None:
    """A part of the reflections cannot be read; the others stand."""

    def spoilt(call: Call, sample: str | None) -> str | None:
        return "garbled" if call.stage == "reflect" and marked in call.user else None

    with Fated(spoilt, q=1.0) as world:
        marked = next(t.id for t in world.tickets.values() if t.split == "train")
        trained = await train(world, tmp_path, SHORT, preset=preset)
        assert world.true_score(trained.result.best.text) > 0
    fallbacks = events(trained.folder, "fallback")
    assert {fallback["stage"] for fallback in fallbacks} == {"reflect"}
    assert all("left out" in fallback["reason"] for fallback in fallbacks)


@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_7_an_optimizer_that_cannot_be_read_stops_the_run_but_not_every_resume(
    tmp_path: Path, preset: str
) -> None:
    with Fated(garble("reflect"), q=1.0) as world:
        with pytest.raises(InfraStopped, match="optimizer"):
            await train(world, tmp_path, SHORT, preset=preset)
        calls = world.calls.copy()
        with pytest.raises(InfraStopped, match="optimizer"):  # still broken: stopped again, for as little
            await train(world, tmp_path, SHORT, preset=preset)
        assert world.calls["target"] == calls["target"]
        world.fate = lambda call, sample: None
        trained = await train(world, tmp_path, SHORT, preset=preset)
        assert world.true_score(trained.result.best.text) > 0
        calls = world.calls.copy()
        again = await train(world, tmp_path, SHORT, preset=preset)
        assert world.calls == calls
    assert again.outcome == trained.outcome


async def test_a_misquoted_edit_is_refused_and_the_reason_recorded(tmp_path: Path) -> None:
    with small(q=1.0, misquote=1.0) as world:
        trained = await train(world, tmp_path, SHORT)
        assert world.calls["optimizer"] > 0
    assert trained.result.best.text == START
    refused = [reason for event in events(trained.folder, "refused") for reason in event["edits"]]
    assert refused
    assert all("no citation holds" in reason for reason in refused)


async def test_an_endpoint_without_structured_output_trains_as_well(tmp_path: Path) -> None:
    with small(q=1.0, structured=False) as world:
        trained = await train(world, tmp_path, SHORT)
        assert world.true_score(trained.result.best.text) > 0.4


async def test_the_anthropic_dialect_trains_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "right")
    with small(q=1.0, key="right") as world:
        models = {f"{role}.model": f"anthropic@{world.root}/{role}" for role in ("target", "optimizer")}
        trained = await train(world, tmp_path, {**SHORT, **models})
        assert world.true_score(trained.result.best.text) > 0.4
        assert {seen.api for seen in world.requests} == {"anthropic"}
