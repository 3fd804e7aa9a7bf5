"""A broken call is never a score: whatever the wire does, a run ends with the same skill or says why it stopped."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Ended

import skilltune as st
from skilltune.cli.main import app
from skilltune.errors import CallConfigError, InfraStopped, UsageError
from skilltune.journal.run import Run
from skilltune.rollout import Rollout, rollout_from_json
from skilltune.usage import Usage
from training import START, Fated, Trained, events, prepare, quick_retries, small, train
from world import Call, Faults, World

pytestmark = pytest.mark.anyio
PRESETS = ("default", "paper")
SHORT = {"target.lookahead": False, "train.epochs": 1}


def mixed(rate: float) -> Faults:
    """All that can befall a call on the wire, equally often, `rate` in all."""
    each = rate / 6
    return Faults(error=each, limit=each, drop=each, truncate=each, malformed=each, no_choices=each, retry_after=0.002)


def journaled(folder: Path) -> list[Rollout]:
    """The rollouts of a run, finished or stopped, as its journal holds them."""
    run = Run.read(folder)
    try:
        return [rollout_from_json(value) for _, value, _ in run.memos("rollout")]
    finally:
        run.close()


def only_answers_count(folder: Path, world: World) -> list[Rollout]:
    """Every score comes from an answer that the target gave in full, and the optimizer was shown nothing else."""
    rollouts, given = journaled(folder), Counter(world.given().values())
    assert all(rollout.outcome == "ok" and rollout.scored for rollout in rollouts)
    assert Counter((rollout.sample, rollout.answer) for rollout in rollouts) <= given
    for sample, text in world.shown():
        assert any(f"Final answer: {answer}" in text for known, answer in given if known == sample)
    return rollouts


def nothing_unpaid_was_scored(trained: Trained, world: World) -> None:
    """As `only_answers_count`, of a run that finished: and no answer was lost."""
    assert len(only_answers_count(trained.folder, world)) == len(world.given())


# -- pitfall 4: errors are not failures of the skill


@pytest.mark.slow
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


WAITS = {"hang": {"target.timeout_s": 0.2, "optimizer.timeout_s": 0.2}}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fault", ["error", "limit", "drop", "truncate", "malformed", "no_choices", "empty", "hang"])
async def test_pitfall_4_enough_retries_and_no_fault_leaves_a_trace(
    tmp_path: Path, fault: str, preset: str, sound: Mapping[str, tuple[object, ...]]
) -> None:
    faults = replace(Faults(retry_after=0.002), **{fault: 0.1 if fault == "hang" else 0.3})
    with quick_retries(20), small(p=0.1, faults=faults) as world:
        trained = await train(world, tmp_path, {**SHORT, **WAITS.get(fault, {})}, preset=preset)
        nothing_unpaid_was_scored(trained, world)
    assert fault in {request.fault for request in world.requests}
    assert trained.outcome == sound[preset]


@pytest.fixture(scope="module")
def sound() -> Mapping[str, tuple[object, ...]]:
    """The result of each preset if nothing fails."""

    def outcome(preset: str) -> tuple[object, ...]:
        with tempfile.TemporaryDirectory() as folder, small(p=0.1) as world:
            return asyncio.run(train(world, Path(folder), SHORT, preset=preset)).outcome

    return {preset: outcome(preset) for preset in PRESETS}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_an_outage_that_passes_is_waited_for(tmp_path: Path, preset: str) -> None:
    """It begins when the first candidates are rolled out: one by one in the screen, a whole split in `paper`."""
    failing, longest = 0, 7 if preset == "default" else 30

    def down(call: Call, sample: str | None) -> str | None:
        nonlocal failing
        if not world.asked["reflect", 2] or call.model != "target" or failing == longest:
            return None
        failing += 1
        return "error"

    with quick_retries(2), Fated(down, q=1.0) as world:
        trained = await train(world, tmp_path, SHORT, preset=preset)
        nothing_unpaid_was_scored(trained, world)
        assert failing == longest
        assert world.true_score(trained.result.best.text) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_a_refusal_is_the_models_own_answer_scored_and_named(tmp_path: Path, preset: str) -> None:
    fault = "refuse"
    with quick_retries(), small(faults={"target": Faults(refuse=0.3)}) as world:
        trained = await train(world, tmp_path, SHORT, preset=preset)
        nothing_unpaid_was_scored(trained, world)
        refused = [rollout for rollout in journaled(trained.folder) if rollout.trajectory.error]
        assert len(refused) == sum(request.fault == fault for request in world.requests if request.role == "target") > 0
        assert {rollout.trajectory.error for rollout in refused} == {"the model refused"}
        assert all(rollout.score is not None and rollout.score.value == 0 for rollout in refused)
        assert any("Note: the model refused" in text for _, text in world.shown())


@pytest.mark.parametrize("preset", PRESETS)
async def test_a_sample_longer_than_the_context_costs_that_sample_and_not_the_run(tmp_path: Path, preset: str) -> None:
    """Retrying cannot help. The failure is no score: neither a 0 nor a reason to stop."""

    def long(call: Call, sample: str | None) -> str | None:
        return "overflow" if call.model == "target" and sample == marked else None

    with Fated(long, q=1.0) as world:
        marked = next(t.id for t in world.tickets.values() if t.split == "select")
        trained = await train(world, tmp_path, SHORT, preset=preset)
        assert world.true_score(trained.result.best.text) > 0.4
        assert marked not in {rollout.sample for rollout in only_answers_count(trained.folder, world)}


def command(folder: Path, world: World, *overrides: str) -> Ended:
    """`skilltune train`, as the command line runs it."""
    prepare(world, folder)
    models = "".join(f'[{role}]\nmodel = "openai@{world.url}/{role}"\n' for role in ("target", "optimizer"))
    (folder / "desk.toml").write_text(f'[env]\nsamples = "samples.jsonl"\n{models}')
    return CliRunner().invoke(app, ["train", str(folder / "desk.toml"), *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("role", ["target", "optimizer"])
@pytest.mark.parametrize(
    ("wrong", "exit_code", "says"),
    [
        ("openai@http://127.0.0.1:{port}/v1/{role}", 3, "is the server running?"),
        ("openai@{url}/no-such-model", 2, "Check that the model `no-such-model` exists there"),
        ("openai@{guarded}/{role}", 2, "No key was sent: OPENAI_API_KEY is for the provider's own host alone"),
        ("openai@{root}/nowhere/v1/{role}", 2, "that the URL is right"),
    ],
)
def test_what_is_wrong_with_a_model_is_found_before_anything_is_spent_on_the_target(
    tmp_path: Path, role: str, wrong: str, exit_code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer may be down (3: the same command may succeed later); all else is mended first."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-this-one")
    with quick_retries(), small() as world, World(1, 1, 1, 1, key="right") as guarded:
        model = wrong.format(port=free_port(), role=role, url=world.url, root=world.root, guarded=guarded.url)
        ended = command(tmp_path, world, f"{role}.model={model}")
        assert ended.exit_code == exit_code, ended.output
        assert says in ended.stderr
        assert "sk-not-this-one" not in ended.output
        assert not world.answered["target"]
        assert command(tmp_path, world, "train.epochs=1").exit_code in (0, 1, 5)  # mended: nothing binds it


@pytest.mark.slow
async def test_the_probe_of_the_optimizer_is_paid_once_and_only_where_it_is_another_model(tmp_path: Path) -> None:
    def probes(world: World) -> int:
        return sum("ready" in request.user and request.role == "optimizer" for request in world.requests)

    with small(q=1.0) as world:
        trained = await train(world, tmp_path, SHORT)
        await train(world, tmp_path, SHORT)
        assert probes(world) == 1
        run = Run.read(trained.folder)
        assert run.usage["probe"].calls == 1
        run.close()
        assert [seen.role for seen in sorted(world.requests, key=lambda seen: seen.began)][:2] == [
            "optimizer",
            "target",
        ]
    with small(q=1.0) as world:
        (tmp_path / "one").mkdir()
        with pytest.raises(InfraStopped):  # this world's target cannot reflect, but it is asked for nothing else
            await train(world, tmp_path / "one", {**SHORT, "optimizer.model": f"openai@{world.url}/target"})
        assert not any("ready" in request.user for request in world.requests)
    with small() as world:
        (tmp_path / "none").mkdir()
        await train(world, tmp_path / "none", {**SHORT, "optimizer.model": "examples"})
        assert not world.calls["optimizer"]


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert not world.calls["target"]


@pytest.mark.slow
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


RAISING = """
def score(sample, rollout):
    right = rollout.answer == sample.target
    if {raises}:
        raise KeyError("total")
    return float(right)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("raises", "calls"), [("not right", 3), ("not right and sample.id[-1] in '0123'", 16)])
async def test_a_scorer_that_raises_is_named_with_its_line_and_mending_it_pays_for_no_answer_again(
    tmp_path: Path, raises: str, calls: int
) -> None:
    """Also where it raised on some answers only, and the others had a score already."""
    file = tmp_path / "mine.py"
    settings = {**SHORT, "env.score": "python:mine.py:score"}
    with small(q=1.0) as world:
        file.write_text(RAISING.format(raises=raises))
        began = time.monotonic()
        with pytest.raises(InfraStopped) as stopped:
            await train(world, tmp_path, settings)
        assert time.monotonic() - began < 10  # it would raise the same after every pause
        told = str(stopped.value)
        assert f"KeyError: 'total' ({file}:5)" in told
        assert 'scorer python:mine.py:score failed on sample "t-' in told
        assert "fix the scorer and run the same command" in told
        assert stopped.value.exit_code == 3
        paid = [seen.sample for seen in world.requests if seen.role == "target"]
        assert len(paid) == len(set(paid)) == calls
        file.write_text(RAISING.format(raises="False"))
        done = await train(world, tmp_path, settings)
        assert done.result.exit_code == 0
        asked = [(seen.sample, seen.key) for seen in world.requests if seen.role == "target"]
        assert len(asked) == len(set(asked))
        assert sum(usage.calls for usage in usage_of(done.folder).values()) == sum(world.answered.values())
        file.write_text(RAISING.format(raises="False") + "# changed\n".replace("#", "    pass  #"))
        with pytest.raises(UsageError, match="the scorer or the prompt changed"):  # decisions rest on it by now
            await train(world, tmp_path, settings)


@pytest.mark.slow
async def test_a_scorer_mended_after_the_first_decision_takes_a_fork_that_pays_for_no_answer_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.py"
    settings = {**SHORT, "env.score": "python:mine.py:score"}
    with small(q=1.0) as world:
        file.write_text(RAISING.format(raises="right and sample.split == 'select' and rollout.trajectory.turns"))
        with pytest.raises(InfraStopped, match="fix the scorer"):
            await train(world, tmp_path, settings)
        assert events(tmp_path / "run", "start")
        paid = {(seen.sample, seen.key) for seen in world.requests if seen.role == "target"}
        file.write_text(RAISING.format(raises="False"))
        with pytest.raises(UsageError, match="--fork"):
            await train(world, tmp_path, settings)
        done = await train(world, tmp_path, settings, fork=True)
        assert done.result.exit_code == 0
        asked = [(seen.sample, seen.key) for seen in world.requests if seen.role == "target"]
        assert len(paid) > 40  # before it, in the screen, and in the race that stopped
        assert len(asked) == len(set(asked))


def usage_of(folder: Path) -> Mapping[str, Usage]:
    with Run.read(folder) as run:
        return run.usage


@pytest.mark.parametrize("role", ["target", "optimizer"])
async def test_pitfall_4_a_wrong_key_stops_at_once(tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-this-one")
    with small() as world, World(1, 1, 1, 1, key="right") as guarded:
        with pytest.raises(CallConfigError) as stopped:
            keyed = {f"{role}.model": f"openai@{guarded.url}/{role}", f"{role}.key_env": "OPENAI_API_KEY"}
            await train(world, tmp_path, keyed)
        assert stopped.value.exit_code == 3
        assert "The key is read from OPENAI_API_KEY, which is set, but not accepted here" in str(stopped.value)
        assert "sk-not-this-one" not in str(stopped.value)
        assert len(guarded.requests) <= (16 if role == "target" else 1)  # the calls in flight, none again
        assert not world.calls["target"]
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
        assert not asked[200] or role == "target"  # the optimizer's probe
    assert not (tmp_path / "run" / "best_skill.md").exists()


async def test_a_key_that_is_mended_resumes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = {**SHORT, "target.key_env": "OPENAI_API_KEY"}  # the optimizer at the same endpoint takes it over
    with small(q=1.0, key="right") as world:
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(CallConfigError):
            await train(world, tmp_path, keyed)
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        trained = await train(world, tmp_path, keyed)
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


@pytest.mark.slow
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
        trained = await train(world, tmp_path, {**SHORT, "optimizer.form": "edits"})
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
        keyed = {"target.key_env": "ANTHROPIC_API_KEY"}
        trained = await train(world, tmp_path, {**SHORT, **models, **keyed})
        assert world.true_score(trained.result.best.text) > 0.4
        assert {seen.api for seen in world.requests} == {"anthropic"}
