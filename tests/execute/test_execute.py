"""Jobs in other processes, by an engine of the standard library."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor as Engine
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import fakes
from engines import clustered
from skilltune import Env, Sample, Skill
from skilltune.api import aevaluate
from skilltune.cli.main import app
from skilltune.config import WorkersConfig, make_config
from skilltune.errors import CallConfigError, InfraError, JudgeError, SampleError, UsageError
from skilltune.execute import Elsewhere, describe_load, here, require_equal, result_of
from skilltune.execute import ray as on_ray
from skilltune.execute.ray import SHARED_BYTES, _work, pack, require_answer, unpack
from skilltune.journal.run import Run
from skilltune.report.terminal import Progress
from skilltune.rollout import Rollout, Trajectory
from skilltune.scorers import Scorer
from skilltune.sinks.live import Live as Board
from skilltune.targets.agents.target import Fit, Needs, content_of, run_fit
from skilltune.usage import Usage
from upstream import Asked, Turn, Upstream

pytestmark = pytest.mark.anyio


async def double(number: int) -> int:
    return 2 * number


async def process(_: None) -> int:
    return os.getpid()


async def fail(error: BaseException) -> None:
    raise error


async def vanish(marker: str) -> str:
    """The first call for a marker takes its worker down; the second returns."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(9)
    return "came back"


async def return_lock(_: None) -> object:
    return Lock()


class Odd(Exception):
    """An error that can be pickled, but not read."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)


async def raise_odd(_: None) -> None:
    raise Odd(7, "out of paper")


class Pool(ProcessPoolExecutor):
    """A pool that replaces itself when a worker is lost, as a cluster does."""

    def submit(self, fn, /, *args, **kwargs):
        if getattr(self, "_broken", False):
            self.__init__(1, mp_context=get_context("spawn"))
        return super().submit(fn, *args, **kwargs)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def jobs(pool: Pool) -> Elsewhere:
    return Elsewhere(pool, (BrokenProcessPool,), slots=2)


@pytest.mark.slow
async def test_a_job_runs_in_another_process_and_returns_its_result_or_its_error(jobs: Elsewhere) -> None:
    assert await jobs.run(process, None) != os.getpid()
    assert await asyncio.gather(*(jobs.run(double, n) for n in range(5))) == [0, 2, 4, 6, 8]
    for error in (InfraError("later", retry_after=3.0, usage=Usage(calls=2)), SampleError("no", systemic="all")):
        with pytest.raises(type(error)) as raised:
            await jobs.run(fail, error)
        assert raised.value.__dict__ == error.__dict__
    assert (jobs.counts.sent, jobs.counts.done, jobs.counts.lost) == (8, 8, 0)


@pytest.mark.slow
async def test_a_lost_worker_is_an_infra_error_and_free_jobs_are_sent_again(jobs: Elsewhere, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="the worker of a job was lost"):
        await jobs.run(vanish, str(tmp_path / "one"))
    assert await jobs.run(vanish, str(tmp_path / "two"), resend=1) == "came back"
    assert (jobs.counts.sent, jobs.counts.lost) == (3, 2)


@pytest.mark.slow
async def test_what_cannot_travel_is_named_with_its_job_and_its_kind(jobs: Elsewhere) -> None:
    with pytest.raises(CallConfigError, match=r"return_lock ended on .*, but its result \(lock\) cannot be pickled"):
        await jobs.run(return_lock, None)
    with pytest.raises(CallConfigError, match=r"raise_odd ended on .*, but its error Odd: out of paper cannot be"):
        await jobs.run(raise_odd, None)
    with pytest.raises(CallConfigError, match=r"the job .*\.double cannot be sent to a worker: .*lock"):
        await jobs.run(double, Lock())  # pyright: ignore[reportArgumentType]
    assert await jobs.run(double, 4) == 8
    assert jobs.counts.running == 0


async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def test_slots_in_use_are_counted_and_shown(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        jobs = Elsewhere(threads, (), "ray", slots=2)
        waiting = [asyncio.create_task(jobs.run(wait, 0.05)) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert describe_load(jobs) == "2 of 2 slots on 1 machine"
        cfg = SimpleNamespace(train=SimpleNamespace(epochs=1, batch_size=1), certify=SimpleNamespace(attempts=1))
        splits, budget = SimpleNamespace(train=[0], test=[0]), SimpleNamespace(spent=Usage())
        session: Any = SimpleNamespace(cfg=cfg, splits=splits, budget=budget, executor=jobs)
        assert str(Progress(session)).endswith(" · 2 of 2 slots on 1 machine")
        await asyncio.gather(*waiting)
        jobs.counts.lost, jobs.counts.late = 3, 1
        with Run.open(tmp_path) as run:
            board = Board(run)
            assert board.state()["workers"] == ""  # everything runs here
            board.executor = jobs
            shown = board.state()["workers"]
            board.close()
    assert shown == (
        "0 of 2 slots on 1 machine · 3 jobs lost with a worker and sent again · 1 late request of ended agents refused"
    )


@pytest.mark.slow
async def test_an_agent_on_a_worker_scores_what_it_scores_here(
    jobs: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{fakes.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)

    def answer(asked: Asked) -> Turn:
        return Turn("YES" if b"say YES" in asked.raw else "NO")

    skill = Skill.parse("---\nname: answers\ndescription: Answers.\n---\nAlways say YES.\n")
    env = Env([Sample(id=f"s{i}", input=f"Question {i}?", target="YES") for i in range(3)], root=tmp_path)
    found = []
    for elsewhere in (False, True):
        if elsewhere:
            monkeypatch.setattr(
                "skilltune.build.build_executor", lambda cfg, run, root: replace(jobs, engine=Same(jobs))
            )
        async with Upstream(answer) as server:
            model = f"openai@{server.url}/v1/m"
            target = {"model": "command:script {prompt_file}", "upstream": model, "sandbox": "none"}
            result = await aevaluate(skill, env, target, run=tmp_path / f"run{len(found)}")
            found.append((result.score, result.usage.calls, len(server.asked)))
    assert found[0] == found[1] == (1.0, 3, 3)
    assert jobs.counts.sent == 1 + 3  # the machine is admitted first


async def test_a_machine_that_joined_later_and_differs_runs_no_job(tmp_path: Path) -> None:
    (tmp_path / "agent.sh").write_text("echo YES")
    known = Needs("command", "sh agent.sh", "", "other content", (tmp_path / "agent.sh",), "none", None)
    with pytest.raises(
        CallConfigError, match=r"the machine .* cannot run this agent: its files of `sh agent\.sh` differ"
    ):
        await run_fit(Fit(known, None))  # pyright: ignore[reportArgumentType]
    away = replace(known, content=content_of(known.command, known.programs), gateway=("127.0.0.1", 1))
    with pytest.raises(InfraError, match=r"does not reach the gateway at 127\.0\.0\.1:1 \(.+\)"):  # it may come back
        await run_fit(Fit(away, None))  # pyright: ignore[reportArgumentType]
    data, _ = pack((double, (2,), {}))
    with pytest.raises(CallConfigError, match=r"has skilltune .*, and this run needs 0\.0\.1: install it there"):
        result_of(double, _work("0.0.1", data, {}))


class Same:
    """An engine that outlives the run that closes it."""

    def __init__(self, jobs: Elsewhere) -> None:
        self.submit = jobs.engine.submit

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


@pytest.mark.slow
async def test_the_scorer_tests_runs_on_a_worker(jobs: Elsewhere, tmp_path: Path) -> None:
    score = {"type": "tests", "command": "python -c 'import answer'", "answer": "answer.py", "sandbox": "none"}
    env = Env([Sample(id="s", input="Write a module.")], score, root=tmp_path)
    env.executor = jobs
    answers = {"x = 1": 1.0, "x = ": 0.0}
    for answer, expected in answers.items():
        assert (await env.score(env.samples[0], Rollout("s", "", 0, Trajectory(answer), None))).value == expected
    assert jobs.counts.done == 2
    lost = replace(jobs, engine=Lost())
    env.executor = lost
    with pytest.raises(JudgeError, match="worker"):
        await env.score(env.samples[0], Rollout("s", "", 0, Trajectory("x = 1"), None))
    assert lost.counts.lost == 3


class Lost:
    """An engine without workers."""

    def submit(self, *_: object) -> None:
        raise BrokenProcessPool("none is left")


@settings(max_examples=40)
@given(
    st.recursive(
        st.binary(max_size=40) | st.integers(0, 3).map(lambda n: bytes([n]) * SHARED_BYTES) | st.text(max_size=5),
        lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=3), parts, max_size=4),
    )
)
def test_a_packed_job_is_the_job_and_holds_long_content_once(job: object) -> None:
    data, contents = pack(job)
    assert unpack(data, contents) == job
    assert len(contents) <= 4
    assert all(len(content) >= SHARED_BYTES for content in contents.values())
    assert len(pack([job, job])[1]) == len(contents)


def test_a_closure_does_not_travel() -> None:
    with pytest.raises((AttributeError, TypeError), match="local"):
        pack(lambda: None)


def test_a_machine_with_other_versions_is_refused_by_name() -> None:
    own = here()
    require_equal((own, replace(own, name="b", python=own.python.rpartition(".")[0] + ".99")), "ray")
    for other in (
        replace(own, name="b", skilltune="9.9"),
        replace(own, name="b", skilltune=""),
        replace(own, python="3.8.1"),
    ):
        with pytest.raises(UsageError, match=r"1 of 2 machines .*(9\.9|missing|3\.8\.1)"):
            require_equal((own, other), "ray")


@pytest.mark.parametrize("on", ["slurm", "ray://host", "ray:", "http://host:1"])
def test_an_unknown_engine_is_refused(on: str) -> None:
    with pytest.raises(UsageError, match=r"workers\.on"):
        make_config({"workers": {"on": on}})


@pytest.mark.parametrize("command", ["check", "doctor", "train"])
def test_workers_that_nothing_would_use_are_refused_alike(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = CliRunner().invoke(app, [command, clustered(tmp_path, monkeypatch)])
    assert found.exit_code == 2, found.output
    assert "nothing of this run could run there" in " ".join(found.output.split())


def test_the_scorer_tests_is_enough_to_use_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = 'env.score = {type = "tests", command = "true", answer = "a.py", sandbox = "none"}\n'
    found = CliRunner().invoke(app, ["check", clustered(tmp_path, monkeypatch, more=score)])
    assert "could run there" not in " ".join(found.output.split())


def test_a_scorer_of_a_benchmark_or_plug_in_is_enough_to_use_workers() -> None:
    samples = [Sample(id="s", input="?", target="a")]
    own = Scorer("own", "fingerprint", score_of_nothing, lambda sample: "")
    assert Env(samples, score=own).may_send_jobs
    assert not Env(samples, score="exact").may_send_jobs


def score_of_nothing(sample: Sample, rollout: Any) -> float:
    return 0.0


class Broken(Engine):
    def submit(self, *args: Any, **kwargs: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'remote'")


async def test_an_engines_own_fault_is_not_blamed_on_the_job() -> None:
    with pytest.raises(AttributeError, match="remote"):
        await Elsewhere(Broken(), (), "broken").run(double, 4)


async def test_a_cluster_that_has_ended_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"no Ray cluster answers at 127\.0\.0\.1:1, which `ray start`, see .* names"):
        require_answer("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:2, which RAY_ADDRESS names"):
        require_answer("ray")
    with pytest.raises(UsageError, match=r"no Ray cluster answers at 127\.0\.0\.1:3 "):
        require_answer("ray://127.0.0.1:3")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    require_answer("ray")


def test_an_engine_whose_extra_is_missing_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "SKILL.md").write_text("Answer.")
    (tmp_path / "data.jsonl").write_text("".join(f'{{"input": "{n}", "target": "{n}"}}\n' for n in range(20)))
    (tmp_path / "skilltune.toml").write_text(
        'skill = "SKILL.md"\nenv.samples = "data.jsonl"\nworkers.on = "ray"\n'
        'target.model = "openai@http://127.0.0.1:9/v1/m"\noptimizer.model = "examples"\n'
    )
    found = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert found.exit_code == 2
    assert "skilltune[ray]" in found.output


def test_options_of_a_cluster_without_a_cluster_are_refused() -> None:
    with pytest.raises(UsageError, match=r"workers\.slots is an option of Ray"):
        make_config({"workers": {"slots": 4}})
    assert make_config({"workers": {"on": "ray", "slots": 4}}).workers == WorkersConfig(on="ray", slots=4)


def test_call_config_errors_travel() -> None:
    error = CallConfigError("no CLI", attempts=1)
    data, contents = pack(error)
    assert unpack(data, contents).__dict__ == error.__dict__


@pytest.mark.parametrize(
    ("address", "seconds", "asked"),
    [("ray://head:10001", 2.0, 2), ("ray://head:10001", 40.0, 1), (None, 2.0, 1)],
    ids=["refused at once", "after a time-out", "no client"],
)
def test_a_client_that_is_refused_at_once_connects_once_more(
    address: str | None, seconds: float, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = [0.0], []

    def init(to: str | None, **options: Any) -> None:
        calls.append(to)
        clock[0] += seconds
        raise ConnectionAbortedError("the server ended")

    monkeypatch.setattr(on_ray, "_module", lambda name: SimpleNamespace(init=init))
    monkeypatch.setattr("skilltune.execute.ray.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("skilltune.execute.ray.time.sleep", lambda s: None)
    with pytest.raises(ConnectionAbortedError):
        on_ray._init(address)
    assert calls == [address] * asked


@pytest.mark.parametrize(("processors", "counted"), [((0, 4, 2), [1, 2]), ((0, 0, None), [0, 1, 2])])
def test_a_head_without_processors_is_no_machine_for_jobs(
    processors: tuple[int | None, ...], counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        {"Alive": True, "NodeID": str(at), "NodeManagerAddress": f"10.0.0.{at}", "Resources": {"CPU": n} if n else {}}
        for at, n in enumerate(processors)
    ]
    nodes.append({**nodes[1], "NodeID": "gone", "Alive": False})
    monkeypatch.setattr(on_ray, "_module", lambda name: SimpleNamespace(nodes=lambda: nodes))
    assert on_ray._names() == {f"10.0.0.{at}": str(at) for at in counted}
