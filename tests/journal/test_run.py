"""The journal: paid once, decided once, whatever is concurrent, cancelled, killed, damaged or forked."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from skilltune.build import build_parts, write_config
from skilltune.cli.main import app
from skilltune.config import MAY_DIFFER, make_config, to_toml
from skilltune.envs import Env, Task
from skilltune.errors import CallConfigError, InfraError, RunError, UsageError
from skilltune.files import write_atomic
from skilltune.journal.keys import digest, rng
from skilltune.journal.run import ELAPSED, FAILED, REFRESH_S, Paid, Run, flatten
from skilltune.journal.sqlite import SCHEMA_VERSION
from skilltune.report.files import save_best
from skilltune.rollout import Rollout, Trajectory
from skilltune.rollouts import roller as roll
from skilltune.rollouts.roller import Roller
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.usage import Usage
from training import prepare, small
from world import World

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
    answers = await asyncio.gather(*(run.memo("k", "rollout", call) for _ in range(200)))
    assert answers == [{"score": 0.5}] * 200
    assert call.made == 1
    assert run.usage == {"rollout": ONE}
    assert await run.memo("k", "rollout", call) == {"score": 0.5}
    assert call.made == 1


async def test_different_keys_run_at_the_same_time(run: Run):
    gate = asyncio.Event()
    calls = [Call(i, gate) for i in range(20)]
    tasks = [asyncio.create_task(run.memo(f"k{i}", "x", call)) for i, call in enumerate(calls)]
    await settle()
    assert [call.made for call in calls] == [1] * 20
    gate.set()
    assert await asyncio.gather(*tasks) == list(range(20))


async def test_pitfall_16_a_failure_is_raised_to_all_and_stored_for_none(run: Run):
    call = Call(InfraError("503"))
    answers = await asyncio.gather(*(run.memo("k", "rollout", call) for _ in range(20)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["503"] * 20
    assert call.made == 1
    assert run.recall("k") is None
    assert run.usage == {}
    call.value = "fine"
    assert await run.memo("k", "rollout", call) == "fine"
    assert call.made == 2


async def test_a_failure_is_not_handed_to_who_asks_afterwards(run: Run):
    """The next call pays again even when it is made while the failure is being told."""
    call = Call(InfraError("503"))

    async def ask_twice() -> Any:
        try:
            return await run.memo("k", "x", call)
        except InfraError:
            call.value = "fine"
            return await run.memo("k", "x", call)

    assert await asyncio.gather(*(ask_twice() for _ in range(5))) == ["fine"] * 5
    assert call.made == 2


async def test_cancelling_one_of_two_waiters_leaves_the_call_alone(run: Run):
    call = Call("answer", asyncio.Event())
    first, second = (asyncio.create_task(run.memo("k", "x", call)) for _ in range(2))
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
    waiters = [asyncio.create_task(run.memo("k", "x", call)) for _ in range(3)]
    await settle()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert all(waiter.cancelled() for waiter in waiters)
    assert (call.made, call.cancelled) == (1, 1)
    assert run.recall("k") is None
    call.gate = None
    assert await run.memo("k", "x", call) == "answer"


async def test_who_asks_while_a_cancelled_call_winds_up_gets_an_answer_and_no_cancellation(run: Run):
    winding_up = asyncio.Event()

    async def slow_to_end() -> Paid:
        try:
            await asyncio.sleep(60)
        finally:
            await winding_up.wait()
        raise AssertionError

    first = asyncio.create_task(run.memo("k", "x", slow_to_end))
    await settle()
    first.cancel()
    await settle()
    second = asyncio.create_task(run.memo("k", "x", Call("fresh")))
    await settle()
    third = asyncio.create_task(run.memo("k", "x", Call("unused")))
    winding_up.set()
    await asyncio.gather(first, return_exceptions=True)
    assert await second == "fresh"
    assert await third == "fresh"


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", [], {}])
async def test_pitfall_3_null_and_zero_values_are_remembered(run: Run, value: Any):
    call = Call(value)
    for _ in range(3):
        assert await run.memo("k", "x", call) == value
    assert call.made == 1
    assert [run.decide("d", lambda: value), run.decide("d", lambda: "another")] == [value, value]


async def test_pitfall_7_an_answer_with_half_a_surrogate_pair_is_stored_and_not_paid_again(tmp_path: Path):
    text = "half \ud83d and whole 😀"
    calls = [Call({"text": text}) for _ in range(2)]
    for call in calls:
        with Run.open(tmp_path) as run:
            assert await run.memo("k", "optimizer", call) == {"text": text}
            run.record("said", text=text)
            run.write("a.json", json.dumps(text, ensure_ascii=False))
            assert json.loads((tmp_path / "a.json").read_text("utf-8")) == text
            assert run.events("said")[0][2] == {"text": text}
    assert [call.made for call in calls] == [1, 0]


async def test_usage_is_counted_by_kind_over_all_lives_of_a_run(tmp_path: Path):
    for life in range(3):
        with Run.open(tmp_path) as run:
            await run.memo(f"target {life}", "rollout", Call())
            await run.memo("the same", "optimizer", Call())
            assert run.usage["rollout"].calls == life + 1
            assert run.usage["rollout"].usd == pytest.approx(0.25 * (life + 1))
            assert run.usage["optimizer"] == ONE


async def test_an_unpriced_call_stays_unpriced_after_reopening(tmp_path: Path):
    async def unpriced() -> Paid:
        return Paid(1, Usage(1, 5, 5, usd=None))

    with Run.open(tmp_path) as run:
        await run.memo("k", "rollout", unpriced)
    with Run.open(tmp_path) as run:
        assert run.usage["rollout"] == Usage(1, 5, 5, usd=None)


COUNT = st.integers(0, 10**7)
USAGES = st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, usd=st.none() | st.floats(0, 1e4))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["rollout", "optimizer"]), USAGES), max_size=12))
def test_the_totals_that_a_reopened_run_reads_are_those_that_it_counted(paid: list[tuple[str, Usage]]):
    with tempfile.TemporaryDirectory() as folder:
        with Run.open(Path(folder)) as run:
            for i, (kind, usage) in enumerate(paid):
                run.put(f"k{i}", kind, Paid(None, usage))
            counted = dict(run.usage)
        with Run.open(Path(folder)) as run:
            assert run.usage.keys() == counted.keys()
            for kind, usage in run.usage.items():
                for name, number in usage.to_json().items():
                    expected = getattr(counted[kind], name)
                    assert number is expected is None or number == pytest.approx(expected)


def test_fix_decides_once_over_all_lives(tmp_path: Path):
    for _ in range(2):
        with Run.open(tmp_path) as run:
            assert [run.decide("split", lambda n=n: {"n": n}) for n in range(3)] == [{"n": 0}] * 3


# -- clocks


class Clocks(SimpleNamespace):
    """In place of the module `time`: both clocks stand where a test puts them."""

    wall = 1e9
    mono = 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks(time_ns=time.time_ns)
    monkeypatch.setattr("skilltune.journal.run.time", clocks)
    return clocks


def test_answers_come_back_in_the_order_in_which_they_were_stored_whatever_the_clock_did(tmp_path: Path, clocks):
    stored: list[str] = []
    for life in range(3):
        with Run.open(tmp_path / "run") as run:
            for i, jump in enumerate((0, 1, 1, 3600, -7200, 1e8, -2e8, 0)):
                clocks.wall += jump
                stored.append(f"{9 - life}{7 - i}")  # neither time nor key tells the order
                run.put(stored[-1], "rollout", Paid(len(stored), ONE))
                run.record("said", n=len(stored))
            assert [key for key, *_ in run.memos("rollout")] == stored
            assert [data["n"] for *_, data in run.events("said")] == list(range(1, len(stored) + 1))
            times = [t for pair in zip(run.payments(), run.events("said"), strict=True) for t, *_ in pair]
            assert times == sorted(times)  # each answer before the event that followed it
    clocks.wall = 0.0
    with Run.read(tmp_path / "run") as old, Run.open(tmp_path / "fork") as fork:
        fork.put("own", "rollout", Paid(0, ONE))
        fork.adopt(old)
        fork.put("later", "rollout", Paid(0, ONE))
        assert [key for key, *_ in fork.memos("rollout")] == ["own", *stored, "later"]


def test_minutes_count_over_all_lives_of_a_run_and_not_by_a_clock_that_is_set(tmp_path: Path, clocks):
    for life in range(3):
        clocks.mono = 1000.0 - 300 * life  # another boot, maybe
        with Run.open(tmp_path) as run:
            assert run.elapsed_s == 10 * life
            clocks.wall += (-1) ** life * 1e7
            clocks.mono += 4
            assert run.elapsed_s == 10 * life + 4
            with Run.read(tmp_path) as reader:
                assert reader.elapsed_s == 10 * life  # as it was recorded; looking on takes no time
                clocks.mono += 6
                assert reader.elapsed_s == 10 * life
        clocks.mono += 500
        assert run.elapsed_s == 10 * (life + 1)


def test_a_killed_process_forgets_no_more_than_its_last_seconds(tmp_path: Path, clocks):
    code = f"""
        import os, sys, types
        from pathlib import Path
        import skilltune.journal.run
        from skilltune.usage import Usage
        now = 100.0
        skilltune.journal.run.time = types.SimpleNamespace(time=lambda: 1e9, monotonic=lambda: now)
        run = skilltune.journal.run.Run.open(Path(sys.argv[1]))
        for now in (101.0, 100.0 + {REFRESH_S}, 110.0, 111.0):
            run.put(f"answer at {{now}}", "rollout", skilltune.journal.run.Paid(1, Usage(1)))
        os.kill(os.getpid(), {signal.SIGKILL:d})
        """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    with Run.open(tmp_path) as run:
        assert run.elapsed_s == 10.0
        assert run.usage["rollout"].calls == 4


def test_the_time_that_a_run_took_is_no_answer_and_stays_with_it(tmp_path: Path, clocks):
    with Run.open(tmp_path / "old", {"seed": 1}):
        clocks.mono += 60
    with Run.open(tmp_path / "old", {"seed": 2}) as old:  # nothing was answered: the old configuration binds nobody
        assert old.elapsed_s == 60
        assert old.usage == {}
        old.put("k", "rollout", Paid(1, ONE))
        with Run.open(tmp_path / "new", {"seed": 3}) as new:
            assert new.adopt(old) == 1
            assert new.elapsed_s == 0
            assert [key for key, *_ in new.memos(ELAPSED)] == [ELAPSED]


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
            value = await run.memo(key, "x", fn)
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
                value = run.decide(f"fix {key}", lambda: len(values))
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

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        self.asked.append((skill.body.split()[-1], task.id))
        if task.id in self.down:
            raise InfraError("down")
        return Trajectory(skill.body.split()[-1], usage=ONE)

    def guess(self, skill: Skill, task: Task) -> Usage:
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


async def test_pitfall_16_a_sample_that_was_down_is_left_out_of_its_batch_and_asked_again_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(roll, "WAITS_S", (0.0, 0.0))
    skill, target = Skill("Say right"), Parrot()
    target.down = {"s03"}
    for _ in range(2):  # the batch is closed over the same samples, also when it is replayed
        with Run.open(tmp_path) as run:
            rollouts = await roller(target, run)(skill, ENV.samples, purpose="step 1")
            assert [rollout.sample for rollout in rollouts if not rollout.scored] == ["s03"]
        target.down = set()
    assert target.asked.count(("right", "s03")) == 3  # and again after each wait, but not when it is replayed
    assert len(target.asked) == 22
    with Run.open(tmp_path) as run:
        rollouts = await roller(target, run)(skill, ENV.samples, purpose="step 2")
        assert all(rollout.scored for rollout in rollouts)
    assert target.asked[22:] == [("right", "s03")]


@pytest.mark.slow
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
        async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
            raise CallConfigError("400: the image is too large")

    with Run.open(tmp_path) as run, pytest.raises(CallConfigError, match="sample s05: 400: the image is too large"):
        await roller(Refused(), run)(Skill("Say right"), ENV.samples[5:6])


# -- events, blobs, files


def test_events_are_kept_in_order_and_told_every_time(run: Run):
    heard: list[tuple[str, Any]] = []
    run.listeners.append(lambda type, data: heard.append((type, dict(data))))
    for step in (1, 2, 1):
        run.record("step", step=step)
    run.record("other", step=1)
    run.notify("progress", n=1)
    assert [(kind, data["step"]) for _, kind, data in run.events()] == [
        ("step", 1),
        ("step", 2),
        ("step", 1),
        ("other", 1),
    ]
    assert [data for *_, data in run.events("step")] == [{"step": 1}, {"step": 2}, {"step": 1}]
    assert [type for type, _ in heard] == ["step", "step", "step", "other", "progress"]


def lives(folder: Path, *lives: str) -> str:
    """The events that a journal holds after lives that emitted these: a letter is an event, S and V are milestones."""
    for events in lives:
        with Run.open(folder) as run:
            for name in events:
                run.record({"S": "start", "V": "verdict", "W": "verdict"}.get(name, "other"), name=name)
    with Run.read(folder) as run:
        return "".join(data["name"] for _, _, data in run.events())


@pytest.mark.parametrize(
    ("emitted", "kept"),
    [
        (["ABA"], "ABA"),
        (["AAB", "AAB", "AABA"], "AABA"),
        (["SVF", "SVF"], "SVF"),
        (["SVF", "SVWF"], "SVFWF"),  # stopped, and gone on to another end that says the same
        (["SVF", "SVWF", "SVWF", "SVWF"], "SVFWF"),
        (["SabV", "SbaVcd", "SabVdc"], "SabVcd"),  # calls under way at once end in any order
        (["SaV", "SV", "SaVb"], "SaVb"),  # what only one life met
        (["S", "SV", "SVV", "SVV"], "SVV"),
        (["", "A", ""], "A"),
    ],
)
def test_what_happens_again_is_an_event_and_what_a_replay_repeats_is_not(tmp_path: Path, emitted: list[str], kept: str):
    assert lives(tmp_path, *emitted) == kept


@settings(max_examples=50, deadline=None)
@given(st.text("SVWab", max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_a_run_killed_anywhere_holds_each_event_as_often_as_it_happened(events: str, kills: list[int]):
    with tempfile.TemporaryDirectory() as folder:
        assert lives(Path(folder), *(events[:kill] for kill in kills), events) == events


def test_an_event_of_a_life_is_recorded_where_it_differs_from_the_last_one(tmp_path: Path):
    for line in ("one", "one", "two", "one"):
        with Run.open(tmp_path) as run:
            run.note("command", line=line)
            run.record("start")
    with Run.read(tmp_path) as run:
        assert [data.get("line", type) for _, type, data in run.events()] == ["one", "start", "two", "one"]


def test_a_journal_of_the_first_schema_is_read_and_goes_on(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "run.db", isolation_level=None)) as db:
        db.executescript("""
            CREATE TABLE memo (key TEXT PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL, usage TEXT NOT NULL,
                               t REAL NOT NULL) WITHOUT ROWID;
            CREATE TABLE event (id INTEGER PRIMARY KEY, t REAL NOT NULL, type TEXT NOT NULL, json TEXT NOT NULL,
                                UNIQUE (type, json));
            CREATE TABLE blob (hash TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
            INSERT INTO memo VALUES ('k', 'rollout', '1', '{"calls":1}', 5.0);
            INSERT INTO event VALUES (1, 6.0, 'other', '{"name":"A"}'), (2, 7.0, 'other', '{"name":"B"}');
            PRAGMA user_version = 1;
            """)
    with Run.read(tmp_path) as run:
        assert [data["name"] for _, _, data in run.events()] == ["A", "B"]
    assert lives(tmp_path, "ABA", "ABA") == "ABA"
    with Run.open(tmp_path) as run:
        assert run.recall("k") == (1,)
        assert run.usage == {"rollout": Usage(calls=1)}


def test_blobs_are_kept_under_their_hash(run: Run):
    run.put_blob("h", b"\xff\x00text")
    run.put_blob("h", b"\xff\x00text")
    assert run.blob("h") == b"\xff\x00text"
    assert run.blob("unknown") is None


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


def test_what_a_killed_process_left_of_a_file_is_gone_with_the_next_write(tmp_path: Path):
    code = """
        import os, sys
        from pathlib import Path
        from skilltune.files import write_atomic
        os.replace = lambda *_: os.kill(os.getpid(), 9)
        write_atomic(Path(sys.argv[1]), "never seen")
        """
    write_atomic(tmp_path / "card.md", "old")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "card.md")])
    assert (tmp_path / "card.md").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_atomic(tmp_path / "card.md", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"card.md": "new"}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_run_is_readable_by_its_owner_only_and_an_exported_skill_by_all(tmp_path: Path):
    before = os.umask(0o022)
    try:
        with Run.open(tmp_path / "runs" / "desk", config()) as run:
            run.put("k", "rollout", Paid("what a customer wrote", ONE))
            run.write("versions/0001/verdict.json", "{}")
            (run.folder / "card.md").write_text("as an older version left it")
            run.write("card.md", "text")
            with Run.read(run.folder):
                files = {path.name: mode(path) for path in run.folder.rglob("*") if path.is_file()}
        Skill("# Desk\n").save(tmp_path / "SKILL.md")
    finally:
        os.umask(before)
    journal = {"run.db", "run.db-wal", "run.db-shm", "lock.db"}
    assert files.keys() == {".gitignore", "verdict.json", "card.md"} | journal
    assert (tmp_path / "runs" / "desk" / ".gitignore").read_text() == "*\n"
    assert set(files.values()) == {0o600}
    assert mode(tmp_path / "runs" / "desk") == 0o700
    assert mode(tmp_path / "SKILL.md") == 0o644


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o750)
    with Run.open(tmp_path / "shared") as run:
        assert (mode(run.folder), mode(run.folder / "run.db")) == (0o750, 0o600)
        assert not (run.folder / ".gitignore").exists()  # what else is there is not ours to hide


def test_a_derived_file_that_cannot_be_written_is_a_run_error(run: Run):
    (run.folder / "card.md").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*card\.md"):
        run.write("card.md", "text")


# -- two processes

HOLDER = textwrap.dedent(
    """
    import asyncio, sys, time
    from pathlib import Path
    from skilltune.usage import Usage
    from skilltune.journal.run import Paid, Run
    run = Run.open(Path(sys.argv[1]))
    async def fn():
        return Paid(["paid"], Usage(1))
    asyncio.run(run.memo("k", "rollout", fn))
    run.record("start", n=1)
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
    assert (tmp_path / "run" / "run.db-wal").stat().st_size > 0  # what it paid for lies there, and is not lost
    with Run.open(tmp_path / "run") as run:
        assert run.recall("k") == (["paid"],)
        run.record("next")


def test_a_reader_sees_what_is_written_while_it_looks(tmp_path: Path):
    with Run.open(tmp_path) as writer, Run.read(tmp_path) as reader:
        assert reader.events() == []
        writer.record("later", n=1)
        assert [kind for _, kind, _ in reader.events()] == ["later"]


def test_whoever_looks_if_a_run_is_under_way_keeps_nobody_from_beginning_it(tmp_path: Path):
    Run.open(tmp_path).close()
    over = threading.Event()

    def look() -> None:
        with Run.read(tmp_path) as reader:
            while not over.is_set():
                assert reader.writer in (None, os.getpid())

    watching = threading.Thread(target=look)
    watching.start()
    try:
        for _ in range(10):
            Run.open(tmp_path).close()
    finally:
        over.set()
        watching.join()


def test_two_openings_in_one_process_are_refused_too(tmp_path: Path):
    with Run.open(tmp_path), pytest.raises(RunError, match="another skilltune"):
        Run.open(tmp_path)
    Run.open(tmp_path).close()


@pytest.mark.parametrize("times", [1, 3])
def test_reading_a_killed_run_leaves_its_database_and_its_log_as_the_kill_left_them(tmp_path: Path, holder, times: int):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("run.db", "run.db-wal")}
    for _ in range(times):
        with Run.read(tmp_path / "run") as reader:
            assert reader.recall("k") == (["paid"],)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


def test_a_reader_that_has_the_run_open_does_not_keep_the_end_of_the_run_in_the_log(tmp_path: Path):
    with Run.open(tmp_path) as writer:
        writer.put("early", "rollout", Paid(1, ONE))
        with Run.read(tmp_path) as reader:
            reader.recall("early")
            writer.put("late", "rollout", Paid(2, ONE))
            writer.close()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "run.db", tmp_path / "copy")  # as if only this file were sent to somebody
    with Run.read(tmp_path / "copy") as copy:
        assert copy.recall("late") == (2,)


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


def _change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def _without_tables(path: Path) -> None:
    path.unlink()
    _change(path, "PRAGMA user_version = 1")


def _foreign(path: Path) -> None:
    path.unlink()
    _change(path, "CREATE TABLE memo (something TEXT)")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _half_an_answer(path: Path) -> None:
    _change(path, "UPDATE memo SET value = substr(value, 1, 9) WHERE key = 'key 77'")


def _no_text(path: Path) -> None:
    _change(path, "UPDATE memo SET value = CAST(x'22ff22' AS TEXT) WHERE key = 'key 77'")


def _no_costs(path: Path) -> None:
    _change(path, "UPDATE memo SET usage = '{' WHERE key = 'key 77'")


def _odd(column: str, value: str) -> Callable[[Path], None]:
    return lambda path: _change(path, f"UPDATE memo SET {column} = {value} WHERE key = 'key 77'")


DAMAGES = [
    _garbage,
    _truncated,
    _zeroed_pages,
    _without_tables,
    _foreign,
    _folder,
    _half_an_answer,
    _no_text,
    _no_costs,
    _odd("usage", "5"),
    _odd("usage", "'[1]'"),
    _odd("usage", """'{"calls":9223372036854775807}'"""),
    _odd("usage", """'{"input_tokens":-1}'"""),
    _odd("usage", """'{"usd":"much"}'"""),
    _odd("usage", """'{"usd":1e308}'"""),
    _odd("usage", """'{"calls":1.5}'"""),
    _odd("value", "x'00ff'"),
    _odd("value", f"'{'[' * 50_000}'"),
    _odd("t", "'yesterday'"),
    _odd("t", "9e999"),
    lambda path: _change(path, "DROP TABLE event"),
    lambda path: _change(path, "INSERT INTO event VALUES (1, 'noon', 'start', '{}')"),
    lambda path: _change(path, "INSERT INTO event VALUES (1, 9e999, 'start', '{}')"),
    lambda path: _change(path, "UPDATE memo SET value = '\"soon\"' WHERE key = 'elapsed'"),
]
WAYS_OUT = "Move the folder away|use another run folder|restore write access"


def fill(folder: Path) -> None:
    with Run.open(folder) as run:
        for i in range(200):
            run.decide(f"key {i}", lambda: "x" * 200)


def use(open_it: Callable[[Path], Run], folder: Path) -> None:
    with open_it(folder) as run:
        for i in range(200):
            assert run.recall(f"key {i}") == ("x" * 200,)
        assert len(run.memos("fix")) == 200


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("open_it", [Run.open, Run.read])
def test_pitfall_13_a_damaged_journal_is_an_error_with_a_way_out(tmp_path: Path, damage, open_it):
    fill(tmp_path)
    damage(tmp_path / "run.db")
    for _ in range(2):  # the lock was given back: the same error again, not "another skilltune"
        with pytest.raises(RunError, match=r"run\.db") as caught:
            use(open_it, tmp_path)
        assert re.search(WAYS_OUT, str(caught.value)) or "no run in" in str(caught.value)


def test_pitfall_13_flipped_pages_are_found_at_the_latest_when_they_are_read(tmp_path: Path):
    fill(tmp_path)
    path = tmp_path / "run.db"
    sound, found = path.read_bytes(), 0
    size = int.from_bytes(sound[16:18], "big")
    for start in range(size, len(sound), size):
        flipped = bytes(byte ^ 0xFF for byte in sound[start : start + size])
        path.write_bytes(sound[:start] + flipped + sound[start + size :])
        for open_it in (Run.read, Run.open):
            try:
                use(open_it, tmp_path)
            except RunError as error:
                assert "is damaged" in str(error)
                assert "Move the folder away" in str(error)
                found += 1
        for name in ("run.db-wal", "run.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
    assert found >= len(sound) // size  # the pages of blobs and events were not read
    path.write_bytes(sound)
    use(Run.open, tmp_path)


def test_a_write_that_meets_damage_does_not_blame_the_disk(run: Run):
    run._db.execute("DROP TABLE event")
    with pytest.raises(RunError, match="is damaged"):
        run.record("event")


@pytest.mark.parametrize("left", ["best_skill.md", "card.md", "versions/0000/verdict.json", "metrics.jsonl"])
@pytest.mark.parametrize("empty", [True, False])
def test_files_of_a_run_whose_journal_is_lost_are_not_written_over(tmp_path: Path, left: str, empty: bool):
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("what was paid for")
    if empty:
        (tmp_path / "run.db").touch()
    for open_it in (Run.open, Run.read) if empty else (Run.open,):
        with pytest.raises(RunError, match="its journal is lost") as caught:
            open_it(tmp_path)
        assert left in str(caught.value)
    assert (tmp_path / left).read_text() == "what was paid for"


def test_an_empty_journal_is_a_run_that_has_not_begun(tmp_path: Path):
    (tmp_path / "run.db").touch()
    (tmp_path / "run.db-wal").write_bytes(b"of a journal that was deleted" * 300)
    with Run.open(tmp_path, config()) as run:
        run.put("k", "rollout", Paid(1, ONE))
    with Run.open(tmp_path, config()) as run:
        assert run.recall("k") == (1,)


@pytest.mark.parametrize("left", ["whole", "torn", "with a wrong index"])
def test_a_write_ahead_log_that_was_left_over_is_taken_in_as_far_as_it_is_whole(tmp_path: Path, left: str):
    with Run.open(tmp_path / "old") as run:
        for i in range(100):
            run.put(f"k{i}", "rollout", Paid("x" * 300, ONE))
        shutil.copytree(run.folder, tmp_path / "run")
    log = tmp_path / "run" / "run.db-wal"
    if left == "torn":
        log.write_bytes(log.read_bytes()[: log.stat().st_size // 2 + 100])
    elif left == "with a wrong index":
        (tmp_path / "run" / "run.db-shm").write_bytes(os.urandom(32768))
    with Run.open(tmp_path / "run") as run:
        kept = [key for key, *_ in run.memos("rollout")]
        assert kept == [f"k{i}" for i in range(len(kept))]
        assert len(kept) == 100 if left != "torn" else 10 < len(kept) < 90
        run.put("next", "rollout", Paid(1, ONE))
        assert run.usage["rollout"].calls == len(kept) + 1


def test_a_lock_file_that_was_left_over_locks_nobody_out(tmp_path: Path):
    for rest in (b"", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504)):  # with the journal of an earlier version
        (tmp_path / "lock.db").write_bytes(b"")
        (tmp_path / "lock.db-journal").write_bytes(rest)
        Run.open(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} >= {"lock.db", "run.db"}


def test_a_damaged_lock_and_a_file_in_place_of_the_folder_are_run_errors(tmp_path: Path):
    (tmp_path / "run").mkdir()
    _garbage(tmp_path / "run" / "lock.db")
    with pytest.raises(RunError, match=r"lock\.db is damaged"):
        Run.open(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot use the run folder"):
        Run.open(tmp_path / "file")


def pay_until_refused(run: Run) -> tuple[int, str]:
    """(answers stored, the refusal of the next one)."""
    for i in range(10_000):
        try:
            run.put(f"k{i}", "rollout", Paid("x" * 3000, ONE))
        except RunError as error:
            return i, str(error)
    raise AssertionError("it was never full")


def test_a_full_database_loses_nothing_and_goes_on_where_there_is_room(tmp_path: Path):
    with Run.open(tmp_path) as run:
        run._db.execute("PRAGMA max_page_count = 20")
        stored, refusal = pay_until_refused(run)
        assert stored > 10
        assert "run.db: database or disk is full. Nothing that was stored is lost: free some space" in refusal
        assert run.recall(f"k{stored}") is None
        assert run.usage["rollout"].calls == stored
        run._db.execute("PRAGMA max_page_count = 2000")
        run.put("k", "rollout", Paid("there is room", ONE))
    with Run.open(tmp_path) as run:
        assert len(run.memos("rollout")) == run.usage["rollout"].calls == stored + 1


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for little."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("only root may mount")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk_loses_nothing_takes_no_new_run_and_can_be_looked_at(full: Path):
    with Run.open(full / "run", config()) as run:
        stored, refusal = pay_until_refused(run)
        assert "free some space" in refusal
        with pytest.raises(RunError, match=r"cannot write .*card\.md: No space left .* run the same command again"):
            run.write("card.md", "x" * 400_000)
        assert not list(run.folder.glob("*card*"))
    with Run.read(full / "run") as reader:
        assert reader.usage["rollout"].calls == stored > 3
    with (full / "rest").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1000))
    with pytest.raises(RunError, match=r"[Ff]ree some space|disk is neither full"):
        Run.open(full / "another", config())
    subprocess.run(["mount", "-o", "remount,size=4m", full], check=True)
    with Run.open(full / "run", config()) as run:
        assert [key for key, *_ in run.memos("rollout")] == [f"k{i}" for i in range(stored)]
        run.put("k", "rollout", Paid("there is room", ONE))


def skilltune_train(folder: Path, run: Path) -> Result:
    return CliRunner().invoke(app, ["train", str(folder / "desk.toml"), "--run", str(run)])


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Path]]:
    """A world, and the folder of a training in it."""
    folder = tmp_path_factory.mktemp("desk")
    with small(q=1.0) as world:
        prepare(world, folder)
        (folder / "desk.toml").write_text(
            f'[env]\nsamples = "samples.jsonl"\n[target]\nmodel = "openai@{world.url}/target"\n'
            f'[optimizer]\nmodel = "openai@{world.url}/optimizer"\n[train]\nepochs = 1\nbatch_size = 16\n'
        )
        yield world, folder


def test_a_disk_that_fills_up_stops_the_training_resumably_and_the_same_command_goes_on(full: Path, desk):
    world, folder = desk
    stopped = skilltune_train(folder, full / "run")
    assert stopped.exit_code == 3
    assert "free some space" in stopped.stderr
    with Run.read(full / "run") as reader:
        kept = reader.usage["rollout"].calls
        assert 0 < kept < sum(world.calls.values())
    before = sum(world.calls.values())
    subprocess.run(["mount", "-o", "remount,size=16m", full], check=True)
    assert skilltune_train(folder, full / "run").exit_code == 0
    with Run.read(full / "run") as reader:
        paid = sum((usage for kind, usage in reader.usage.items()), Usage()).calls
        assert sum(world.calls.values()) - before <= paid - kept


def test_a_run_that_cannot_be_written_is_refused_before_a_call_is_made(desk):
    world, folder = desk
    with Run.open(folder / "run"):
        refused = skilltune_train(folder, folder / "run")
        assert (refused.exit_code, sum(world.calls.values())) == (2, 0)
        assert "another skilltune is writing to it" in refused.stderr
    _garbage(folder / "run" / "run.db")
    refused = skilltune_train(folder, folder / "run")
    assert (refused.exit_code, sum(world.calls.values())) == (2, 0)
    assert "Move the folder away" in refused.stderr


def test_a_database_that_another_program_holds_is_an_error_that_says_so(run: Run):
    with closing(sqlite3.connect(run.folder / "run.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run._db.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(RunError, match=r"is locked.* end the other program"):
            run.record("event")
    run.record("event")


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user that this process acts as: for root, who may write anywhere, that is somebody else."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    nobody = 65534
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, nobody, nobody)
        os.seteuid(nobody)
        try:
            if not os.path.isdir(name):
                pytest.skip("the folder of temporary files is closed to others")
            yield Path(name)
        finally:
            os.seteuid(0)


READ_ONLY = {
    "folder": {"": 0o500},
    "database": {"run.db": 0o400},
    "lock": {"lock.db": 0o400},
    "all": {"run.db": 0o400, "lock.db": 0o400, "": 0o500},
}


@pytest.mark.parametrize("what", READ_ONLY)
def test_a_read_only_run_can_be_looked_at_and_is_refused_for_writing_before_anything_is_paid(mine: Path, what: str):
    begin(mine / "run #1", config())
    for name, bits in READ_ONLY[what].items():
        (mine / "run #1" / name).chmod(bits)
    for _ in range(2):
        with Run.read(mine / "run #1") as reader:
            assert reader.recall("a key") == (1,)
            assert reader.config == CONFIG
        with pytest.raises(RunError, match=r"cannot (write|create).*(restore write access|make the folder writable)"):
            Run.open(mine / "run #1", config())
    for name in reversed(READ_ONLY[what]):
        (mine / "run #1" / name).chmod(0o700)
    with Run.open(mine / "run #1", config()) as run:
        assert run.recall("a key") == (1,)
        run.put("next", "rollout", Paid(1, ONE))


def test_a_read_only_run_whose_log_was_not_taken_in_is_never_shown_without_it(mine: Path):
    with Run.open(mine / "old") as run:
        run.put("a key", "rollout", Paid(1, ONE))
        shutil.copytree(run.folder, mine / "run")
    (mine / "run" / "run.db-shm").unlink()
    (mine / "run").chmod(0o500)
    with pytest.raises(RunError, match=r"cannot read .* restore write access"):
        Run.read(mine / "run")
    (mine / "run").chmod(0o700)
    with Run.read(mine / "run") as reader:
        assert reader.recall("a key") == (1,)


def test_a_run_that_nobody_may_create_is_refused(mine: Path):
    (mine / "closed").mkdir(mode=0o500)
    with pytest.raises(RunError, match=r"cannot use the run folder .*Permission denied\. Choose another"):
        Run.open(mine / "closed" / "run", config())
    with pytest.raises(RunError, match=r"cannot create .*lock\.db: Permission denied"):
        Run.open(mine / "closed", config())


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
        run.decide("split", lambda: ["a"])
        run.record_failure("target", "500")
    with Run.open(tmp_path, config(seed=2)) as run:
        assert run.decide("split", lambda: ["b"]) == ["b"]
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
        session = build_parts(cfg, run, tmp_path, env=Env(samples))
        write_config(session)
        run.record("start", config=to_toml(cfg), target=session.roll.target.fingerprint)
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
        await old.memo("k", "rollout", Call({"score": 1}))
        await old.memo("null", "optimizer", Call(None))
        old.decide("split", lambda: ["s1"])
        old.record("start", n=1)
        with Run.open(tmp_path / "new", config(seed=9)) as new:
            assert new.adopt(old) == 2
            call = Call("paid again")
            assert await new.memo("k", "rollout", call) == {"score": 1}
            assert await new.memo("null", "optimizer", call) is None
            assert call.made == 0
            assert new.usage == {}
            assert new.decide("split", lambda: ["s2"]) == ["s2"]
            assert new.config == config(seed=9)
            assert new.events() == []
        assert old.usage["rollout"] == ONE
    with Run.open(tmp_path / "new", config(seed=9)) as new:
        assert new.usage == {}


async def test_adopting_never_replaces_an_answer_of_its_own(tmp_path: Path):
    with Run.open(tmp_path / "old") as old, Run.open(tmp_path / "new") as new:
        await old.memo("k", "rollout", Call("old"))
        await new.memo("k", "rollout", Call("new"))
        new.adopt(old)
        assert new.recall("k") == ("new",)
        assert new.usage["rollout"] == ONE


# -- keys and randomness


def test_keys_and_draws_do_not_depend_on_order_or_hash_seed():
    assert digest({"b": 1, "a": [2, "é\ud800"]}) == digest({"a": [2, "é\ud800"], "b": 1})
    assert len({digest("a", "b"), digest("ab"), digest(["a", "b"]), digest("b", "a"), digest("a", "b", None)}) == 5
    code = "from skilltune.journal.keys import digest, rng; print(digest({'x': 1, 'y': 'z'}), rng(3, 'p', 1).random())"
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


def test_a_kill_while_the_best_skill_is_written_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(tmp_path) as run:
        save_best(run, Skill("# Old\n"))

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(RunError, match=r"cannot write .*best_skill\.md.*Nothing that was paid is lost"):
            save_best(run, Skill("# New\n"))
        assert (tmp_path / "best_skill.md").read_bytes() == b"# Old\n"
        monkeypatch.undo()
        (tmp_path / ".best_skill.md.tmp").write_bytes(b"# Ne")  # as a killed process leaves it
        save_best(run, Skill("# New\r\n"))
        assert (tmp_path / "best_skill.md").read_bytes() == b"# New\r\n"
        assert not list(tmp_path.glob(".best_skill*"))
