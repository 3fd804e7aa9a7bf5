"""The journal: paid once, decided once, whatever is concurrent, cancelled, killed, damaged or forked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.config import MAY_DIFFER, make_config, to_toml
from skilltune.envs import Env
from skilltune.errors import CallConfigError, InfraError, RunError, UsageError
from skilltune.models import Usage
from skilltune.roll import Roller
from skilltune.rollout import Rollout, Trajectory
from skilltune.run import FAILED, SCHEMA_VERSION, Paid, Run, digest, flatten, rng, write_atomic
from skilltune.samples import Sample
from skilltune.session import build_session
from skilltune.skill import Skill

pytestmark = pytest.mark.anyio
ONE = Usage(calls=1, input_tokens=10, output_tokens=3, usd=0.25)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run") as run:
        yield run


class Call:
    """A paid call that counts how often it was made, and waits for its gate if it has one."""

    def __init__(self, value: Any = "answer", gate: asyncio.Event | None = None) -> None:
        self.value, self.gate = value, gate
        self.made = self.cancelled = 0

    async def __call__(self) -> Paid:
        self.made += 1
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.value, Exception):
            raise self.value
        return Paid(self.value, ONE)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# -- once


async def test_pitfall_19_a_key_is_paid_once_however_many_callers_ask_at_once(run: Run):
    call = Call({"score": 0.5})
    answers = await asyncio.gather(*(run.once("k", "rollout", call) for _ in range(200)))
    assert answers == [{"score": 0.5}] * 200
    assert call.made == 1
    assert run.usage == {"rollout": ONE}
    assert await run.once("k", "rollout", call) == {"score": 0.5}
    assert call.made == 1


async def test_different_keys_run_at_the_same_time(run: Run):
    gate = asyncio.Event()
    calls = [Call(i, gate) for i in range(20)]
    tasks = [asyncio.create_task(run.once(f"k{i}", "x", call)) for i, call in enumerate(calls)]
    await settle()
    assert [call.made for call in calls] == [1] * 20
    gate.set()
    assert await asyncio.gather(*tasks) == list(range(20))


async def test_pitfall_16_a_failure_is_raised_to_all_and_stored_for_none(run: Run):
    call = Call(InfraError("503"))
    answers = await asyncio.gather(*(run.once("k", "rollout", call) for _ in range(20)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["503"] * 20
    assert call.made == 1
    assert run.recall("k") is None
    assert run.usage == {}
    call.value = "fine"
    assert await run.once("k", "rollout", call) == "fine"
    assert call.made == 2


async def test_a_failure_is_not_handed_to_who_asks_afterwards(run: Run):
    """The next call pays again even when it is made while the failure is being told."""
    call = Call(InfraError("503"))

    async def ask_twice() -> Any:
        try:
            return await run.once("k", "x", call)
        except InfraError:
            call.value = "fine"
            return await run.once("k", "x", call)

    assert await asyncio.gather(*(ask_twice() for _ in range(5))) == ["fine"] * 5
    assert call.made == 2


async def test_cancelling_one_of_two_waiters_leaves_the_call_alone(run: Run):
    call = Call("answer", asyncio.Event())
    first, second = (asyncio.create_task(run.once("k", "x", call)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    assert not second.done()
    assert call.gate is not None
    call.gate.set()
    assert await second == "answer"
    assert (call.made, call.cancelled) == (1, 0)


async def test_pitfall_14_cancelling_the_last_waiter_cancels_the_call(run: Run):
    call = Call("answer", asyncio.Event())
    waiters = [asyncio.create_task(run.once("k", "x", call)) for _ in range(3)]
    await settle()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert all(waiter.cancelled() for waiter in waiters)
    assert (call.made, call.cancelled) == (1, 1)
    assert run.recall("k") is None
    call.gate = None
    assert await run.once("k", "x", call) == "answer"


async def test_who_asks_while_a_cancelled_call_winds_up_gets_an_answer_and_no_cancellation(run: Run):
    winding_up = asyncio.Event()

    async def slow_to_end() -> Paid:
        try:
            await asyncio.sleep(60)
        finally:
            await winding_up.wait()
        raise AssertionError

    first = asyncio.create_task(run.once("k", "x", slow_to_end))
    await settle()
    first.cancel()
    await settle()
    second = asyncio.create_task(run.once("k", "x", Call("fresh")))
    await settle()
    third = asyncio.create_task(run.once("k", "x", Call("unused")))
    winding_up.set()
    await asyncio.gather(first, return_exceptions=True)
    assert await second == "fresh"
    assert await third == "fresh"


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", [], {}])
async def test_pitfall_3_null_and_zero_values_are_remembered(run: Run, value: Any):
    call = Call(value)
    for _ in range(3):
        assert await run.once("k", "x", call) == value
    assert call.made == 1
    assert [run.fix("d", lambda: value), run.fix("d", lambda: "another")] == [value, value]


async def test_pitfall_7_an_answer_with_half_a_surrogate_pair_is_stored_and_not_paid_again(tmp_path: Path):
    text = "half \ud83d and whole 😀"
    calls = [Call({"text": text}) for _ in range(2)]
    for call in calls:
        with Run.open(tmp_path) as run:
            assert await run.once("k", "optimizer", call) == {"text": text}
            run.emit("said", text=text)
            run.write("a.json", json.dumps(text, ensure_ascii=False))
            assert json.loads((tmp_path / "a.json").read_text("utf-8")) == text
            assert run.events("said")[0][2] == {"text": text}
    assert [call.made for call in calls] == [1, 0]


async def test_usage_is_counted_by_kind_over_all_lives_of_a_run(tmp_path: Path):
    for life in range(3):
        with Run.open(tmp_path) as run:
            await run.once(f"target {life}", "rollout", Call())
            await run.once("the same", "optimizer", Call())
            assert run.usage["rollout"].calls == life + 1
            assert run.usage["rollout"].usd == pytest.approx(0.25 * (life + 1))
            assert run.usage["optimizer"] == ONE


async def test_an_unpriced_call_stays_unpriced_after_reopening(tmp_path: Path):
    async def unpriced() -> Paid:
        return Paid(1, Usage(1, 5, 5, usd=None))

    with Run.open(tmp_path) as run:
        await run.once("k", "rollout", unpriced)
    with Run.open(tmp_path) as run:
        assert run.usage["rollout"] == Usage(1, 5, 5, usd=None)


def test_fix_decides_once_over_all_lives(tmp_path: Path):
    for _ in range(2):
        with Run.open(tmp_path) as run:
            assert [run.fix("split", lambda n=n: {"n": n}) for n in range(3)] == [{"n": 0}] * 3


# -- sequences of calls, decisions and crashes

KEYS = st.sampled_from("abcd")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("once"), KEYS, st.booleans()),
        st.tuples(st.just("fix"), KEYS, st.just(True)),
        st.tuples(st.just("crash"), KEYS, st.just(True)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS)
def test_any_order_of_calls_decisions_failures_and_crashes_replays_to_the_same_values(actions):
    """Each key keeps its first value; a function that succeeded never runs again."""
    succeeded: Counter[str] = Counter()
    values: dict[str, int] = {}
    attempts = 0

    async def once(run: Run, key: str, works: bool) -> None:
        async def fn() -> Paid:
            nonlocal attempts
            attempts += 1
            if not works:
                raise InfraError("down")
            succeeded[key] += 1
            return Paid(attempts, ONE)

        before = values.get(key)
        try:
            value = await run.once(key, "x", fn)
        except InfraError:
            assert before is None
            assert not works
            return
        assert value == values.setdefault(key, value)

    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(Path(folder))
        for action, key, works in actions:
            if action == "once":
                asyncio.run(once(run, f"once {key}", works))
            elif action == "fix":
                value = run.fix(f"fix {key}", lambda: len(values))
                assert value == values.setdefault(f"fix {key}", value)
            else:
                run.close()
                run = Run.open(Path(folder))
        assert max(succeeded.values(), default=0) <= 1
        assert sum(usage.calls for usage in run.usage.values()) == len(succeeded)
        run.close()


# -- rollouts in the journal


class Parrot:
    """A target that answers with the skill's last word, but for samples that are down."""

    fingerprint = "parrot"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.down: set[str] = set()

    async def run(self, skill: Skill, sample: Sample, env: Env, attempt: int) -> Trajectory:
        self.asked.append((skill.body.split()[-1], sample.id))
        if sample.id in self.down:
            raise InfraError("down")
        return Trajectory(skill.body.split()[-1], usage=ONE)

    def guess(self, skill: Skill, sample: Sample, env: Env) -> Usage:
        return ONE


ENV = Env([{"id": f"s{i:02}", "input": f"q{i}", "target": "right"} for i in range(20)])


def roller(target: Parrot, run: Run, env: Env = ENV) -> Roller:
    return Roller(target, env, run)


async def test_pitfall_2_rows_of_one_candidate_are_never_counted_for_another(tmp_path: Path):
    """Killed while the good candidate is judged, resumed with a bad one: every sample is rolled anew."""
    good, bad = Skill("Say right"), Skill("Say wrong")
    target = Parrot()
    with Run.open(tmp_path) as run:
        first = await roller(target, run)(good, ENV.samples[:12])
        assert [rollout.answer for rollout in first] == ["right"] * 12
    with Run.open(tmp_path) as run:
        resumed = await roller(target, run)(bad, ENV.samples)
        assert [rollout.score.value for rollout in resumed if rollout.score] == [0.0] * 20
        again = await roller(target, run)(good, ENV.samples)
        assert [rollout.sample for rollout in again] == [sample.id for sample in ENV.samples]
        assert {rollout.answer for rollout in again} == {"right"}
    assert len(target.asked) == len(set(target.asked)) == 40  # and none of them is paid twice


async def test_pitfall_16_a_sample_that_was_down_is_left_out_of_its_batch_and_asked_again_in_the_next(tmp_path: Path):
    skill, target = Skill("Say right"), Parrot()
    target.down = {"s03"}
    for _ in range(2):  # the batch is closed over the same samples, also when it is replayed
        with Run.open(tmp_path) as run:
            rollouts = await roller(target, run)(skill, ENV.samples, purpose="step 1")
            assert [rollout.sample for rollout in rollouts if not rollout.scored] == ["s03"]
        target.down = set()
    assert len(target.asked) == 20
    with Run.open(tmp_path) as run:
        rollouts = await roller(target, run)(skill, ENV.samples, purpose="step 2")
        assert all(rollout.scored for rollout in rollouts)
    assert target.asked[20:] == [("right", "s03")]


async def test_an_answer_whose_scorer_failed_is_scored_later_and_not_paid_again(tmp_path: Path):
    class Judge:
        broken = True

        def __call__(self, sample: Sample, rollout: Rollout) -> bool:
            if self.broken and sample.id == "s03":
                raise OSError("the judge is away")
            return rollout.answer == "right"

    env = Env([sample.model_dump() for sample in ENV.samples], Judge())
    skill, target = Skill("Say right"), Parrot()
    for life in range(2):
        with Run.open(tmp_path) as run:
            rolled = await roller(target, run, env)(skill, env.samples, purpose=f"step {life}")
            assert [r.trajectory.outcome for r in rolled if not r.scored] == ["judge_error"]
            assert run.usage["unscored"] == ONE
    Judge.broken = False
    with Run.open(tmp_path) as run:
        rolled = await roller(target, run, env)(skill, env.samples, purpose="step 2")
        assert [r.score.value for r in rolled if r.score] == [1.0] * 20
        assert rolled[3].trajectory.usage == ONE
        assert sum(run.usage.values(), Usage()).calls == len(target.asked) == 20


async def test_a_target_that_cannot_be_called_names_the_sample(tmp_path: Path):
    class Refused(Parrot):
        async def run(self, skill: Skill, sample: Sample, env: Env, attempt: int) -> Trajectory:
            raise CallConfigError("400: the image is too large")

    with Run.open(tmp_path) as run, pytest.raises(CallConfigError, match="sample s05: 400: the image is too large"):
        await roller(Refused(), run)(Skill("Say right"), ENV.samples[5:6])


# -- events, blobs, files


def test_events_are_kept_once_in_order_and_told_every_time(run: Run):
    heard: list[tuple[str, Any]] = []
    run.listeners.append(lambda type, data: heard.append((type, dict(data))))
    for step in (1, 2, 1):
        run.emit("step", step=step)
    run.emit("other", step=1)
    run.tell("progress", n=1)
    assert [(kind, data["step"]) for _, kind, data in run.events()] == [("step", 1), ("step", 2), ("other", 1)]
    assert [data for *_, data in run.events("step")] == [{"step": 1}, {"step": 2}]
    assert [type for type, _ in heard] == ["step", "step", "step", "other", "progress"]


def test_blobs_are_kept_under_their_hash(run: Run):
    run.keep("h", b"\xff\x00text")
    run.keep("h", b"\xff\x00text")
    assert run.kept("h") == b"\xff\x00text"
    assert run.kept("unknown") is None


def test_pitfall_13_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch):
    path = tmp_path / "deep" / "card.md"
    write_atomic(path, "old")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(OSError, match="No space"):
                write_atomic(path, "new and longer")
        assert path.read_text() == "old"
        assert [file.name for file in path.parent.iterdir()] == ["card.md"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_derived_file_that_cannot_be_written_is_a_run_error(run: Run):
    (run.folder / "card.md").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*card\.md"):
        run.write("card.md", "text")


# -- two processes

HOLDER = textwrap.dedent(
    """
    import asyncio, sys, time
    from pathlib import Path
    from skilltune.models import Usage
    from skilltune.run import Paid, Run
    run = Run.open(Path(sys.argv[1]))
    async def fn():
        return Paid(["paid"], Usage(1))
    asyncio.run(run.once("k", "rollout", fn))
    run.emit("start", n=1)
    print("ready", flush=True)
    time.sleep(60)
    """
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has tmp_path/run open for writing."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_pitfall_13_two_trainers_on_one_folder_and_the_lock_dies_with_its_holder(tmp_path: Path, holder):
    with pytest.raises(RunError, match="another skilltune is writing"):
        Run.open(tmp_path / "run")
    with Run.read(tmp_path / "run") as reader:  # looking is allowed meanwhile
        assert reader.recall("k") == (["paid"],)
        assert reader.events("start")[0][2] == {"n": 1}
        assert reader.usage["rollout"].calls == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Run.open(tmp_path / "run") as run:
        assert run.recall("k") == (["paid"],)
        run.emit("next")


def test_a_reader_sees_what_is_written_while_it_looks(tmp_path: Path):
    with Run.open(tmp_path) as writer, Run.read(tmp_path) as reader:
        assert reader.events() == []
        writer.emit("later", n=1)
        assert [kind for _, kind, _ in reader.events()] == ["later"]


def test_two_openings_in_one_process_are_refused_too(tmp_path: Path):
    with Run.open(tmp_path), pytest.raises(RunError, match="another skilltune"):
        Run.open(tmp_path)
    Run.open(tmp_path).close()


def test_reading_needs_a_run_and_creates_none(tmp_path: Path):
    with pytest.raises(RunError, match=r"no run in .* `skilltune train` creates one"):
        Run.read(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.db").touch()
    with pytest.raises(RunError, match="not begun"):
        Run.read(tmp_path)
    assert (tmp_path / "run.db").stat().st_size == 0


# -- folders that cannot be used


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path):
    Run.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "run.db") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    for open_it in (Run.open, Run.read):
        with pytest.raises(RunError, match="newer skilltune"):
            open_it(tmp_path)
    db = sqlite3.connect(tmp_path / "run.db")
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    db.close()


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 400)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeroed_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)


def _without_tables(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 1")
    db.close()


def _foreign(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE memo (something TEXT)")
    db.close()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_garbage, _truncated, _zeroed_pages, _without_tables, _foreign, _folder])
def test_pitfall_13_a_damaged_journal_is_an_error_with_a_way_out(tmp_path: Path, damage):
    with Run.open(tmp_path) as run:
        for i in range(200):
            run.fix(f"key {i}", lambda: "x" * 200)
    damage(tmp_path / "run.db")

    def use() -> None:
        with Run.open(tmp_path) as run:
            for i in range(200):
                assert run.recall(f"key {i}") == ("x" * 200,)

    with pytest.raises(RunError, match=r"run\.db") as caught:
        use()
    assert "Move the folder away" in str(caught.value) or "cannot write" in str(caught.value)
    with pytest.raises(RunError, match=r"run\.db"):  # the lock was given back: the same error again, not "another …"
        use()


def test_a_damaged_lock_and_a_file_in_place_of_the_folder_are_run_errors(tmp_path: Path):
    (tmp_path / "run").mkdir()
    _garbage(tmp_path / "run" / "lock.db")
    with pytest.raises(RunError, match=r"lock\.db is damaged"):
        Run.open(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot use the run folder"):
        Run.open(tmp_path / "file")


def test_a_full_or_lost_database_is_a_run_error_on_write(run: Run):
    run._db.execute("PRAGMA query_only = ON")
    with pytest.raises(RunError, match="Nothing that was stored is lost"):
        run.emit("event")


# -- the configuration of a run

CONFIG = {"seed": 1, "train": {"lr": 4}, "budget": {"usd": 5.0, "calls": None}, "env": {"fields": {}}}


def config(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(CONFIG)), **changes}


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """A run that has paid for an answer."""
    with Run.open(folder, settings) as run:
        run.put("a key", "rollout", Paid(1, Usage(calls=1)))


def test_a_start_that_failed_before_its_first_answer_binds_nobody(tmp_path: Path):
    with Run.open(tmp_path, config()) as run:
        run.fix("split", lambda: ["a"])
        run.fail("target", "500")
    with Run.open(tmp_path, config(seed=2)) as run:
        assert run.fix("split", lambda: ["b"]) == ["b"]
        assert run.usage[FAILED].calls == 1  # what was billed stays on the bill


def test_a_changed_config_is_refused_with_the_differing_keys_and_their_values(tmp_path: Path):
    begin(tmp_path, config())
    changed = config(seed=2, train={"lr": 5}, budget={"usd": 9.0, "calls": 1}, env={"fields": {"input": "q"}})
    with pytest.raises(RunError) as caught:
        Run.open(tmp_path, changed, may_differ=MAY_DIFFER)
    message = str(caught.value)
    assert "seed: 1 → 2" in message
    assert "train.lr: 4 → 5" in message
    assert 'env.fields.input: null → "q"' in message
    assert "budget" not in message
    assert "--fork" in message
    with Run.open(tmp_path, config()) as run:  # the refusal changed nothing and left no lock
        assert run.config == CONFIG


def test_keys_that_cannot_change_a_result_may_differ(tmp_path: Path):
    base = make_config({"target": {"model": "local/x"}})
    begin(tmp_path, base.to_json())
    allowed = ["budget.usd=9", "target.workers=1", "target.timeout_s=5", "optimizer.workers=2", "optimizer.timeout_s=7"]
    allowed += ["target.price=[1, 2]", "optimizer.price=[3, 4]"]
    again = make_config({"target": {"model": "local/x"}}, allowed)
    Run.open(tmp_path, again.to_json(), may_differ=MAY_DIFFER).close()
    for override in ("target.temperature=0.5", "certify.alpha=0.1", "env.split=[1, 1, 1]", "target.model=local/y"):
        other = make_config({"target": {"model": "local/x"}}, [override])
        with pytest.raises(RunError, match=override.partition("=")[0]):
            Run.open(tmp_path, other.to_json(), may_differ=MAY_DIFFER)


def test_pitfall_22_no_secret_reaches_the_run_folder(tmp_path: Path, monkeypatch):
    secret = "sk-very-secret-0123456789"
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, secret)
    samples = [{"id": f"s{i}", "input": f"q{i}", "target": f"a{i}"} for i in range(10)]
    cfg = make_config(
        {
            "target": {"model": "openai@http://127.0.0.1:9/v1/m"},
            "optimizer": {"model": "anthropic@http://127.0.0.1:9/m"},
        }
    )
    with Run.open(tmp_path / "run", cfg.to_json(), may_differ=MAY_DIFFER) as run:
        session = build_session(cfg, run, tmp_path, env=Env(samples))
        run.emit("start", config=to_toml(cfg), target=session.roll.target.fingerprint)
        asyncio.run(session.aclose())
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert {"run.db", "config.toml"} <= {path.name for path in files}
        assert not any(secret.encode() in path.read_bytes() for path in files)
    with pytest.raises(UsageError, match="must not carry a user") as caught:
        make_config({"target": {"model": f"openai@http://me:{secret}@127.0.0.1/v1/m"}})
    assert secret not in str(caught.value)
    with pytest.raises(UsageError, match=r"unknown key target\.api_key") as caught:
        make_config({"target": {"api_key": secret}})
    assert secret not in str(caught.value)


# -- forks


async def test_a_fork_takes_paid_answers_as_free_ones_and_leaves_decisions(tmp_path: Path):
    with Run.open(tmp_path / "old", config()) as old:
        await old.once("k", "rollout", Call({"score": 1}))
        await old.once("null", "optimizer", Call(None))
        old.fix("split", lambda: ["s1"])
        old.emit("start", n=1)
        with Run.open(tmp_path / "new", config(seed=9)) as new:
            assert new.adopt(old) == 2
            call = Call("paid again")
            assert await new.once("k", "rollout", call) == {"score": 1}
            assert await new.once("null", "optimizer", call) is None
            assert call.made == 0
            assert new.usage == {}
            assert new.fix("split", lambda: ["s2"]) == ["s2"]
            assert new.config == config(seed=9)
            assert new.events() == []
        assert old.usage["rollout"] == ONE
    with Run.open(tmp_path / "new", config(seed=9)) as new:
        assert new.usage == {}


async def test_adopting_never_replaces_an_answer_of_its_own(tmp_path: Path):
    with Run.open(tmp_path / "old") as old, Run.open(tmp_path / "new") as new:
        await old.once("k", "rollout", Call("old"))
        await new.once("k", "rollout", Call("new"))
        new.adopt(old)
        assert new.recall("k") == ("new",)
        assert new.usage["rollout"] == ONE


# -- keys and randomness


def test_keys_and_draws_do_not_depend_on_order_or_hash_seed():
    assert digest({"b": 1, "a": [2, "é\ud800"]}) == digest({"a": [2, "é\ud800"], "b": 1})
    assert len({digest("a", "b"), digest("ab"), digest(["a", "b"]), digest("b", "a"), digest("a", "b", None)}) == 5
    code = "from skilltune.run import digest, rng; print(digest({'x': 1, 'y': 'z'}), rng(3, 'p', 1).random())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{digest({'x': 1, 'y': 'z'})} {rng(3, 'p', 1).random()}\n".encode()}
    assert rng(3, "p", 1).random() != rng(3, "p", 2).random() != rng(4, "p", 2).random()


def test_flatten_names_leaves_by_their_dotted_path():
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": None, "f": {}}) == {"a.b.c": 1, "a.d": [1], "e": None}
