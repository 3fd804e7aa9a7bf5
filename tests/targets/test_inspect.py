"""Inspect tasks as training environments: what is refused, how scores are read, and a training through the gateway."""

from __future__ import annotations

import json
import math
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from skilltune.build import build_env, build_parts
from skilltune.config import make_config
from skilltune.envs.inspect import InspectEnv, number_of, score_of
from skilltune.envs.inspect.process import Workers, ask_once
from skilltune.envs.inspect.worker import _idle
from skilltune.errors import CallConfigError, InfraError, JudgeError, NotGraded, SampleError, UsageError
from skilltune.journal.run import Run
from skilltune.parts import Parts
from skilltune.processes import signal_group
from skilltune.rollout import Artifact, Rollout, Trajectory, Turn
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets.inspect import InspectTarget, witnessed
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage
from training import START, quick_retries, train
from upstream import Call, Fault, Upstream, turns
from upstream import Turn as Said
from world import World

pytestmark = pytest.mark.anyio

TASKS = '''
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, get_model
from inspect_ai.scorer import Score, exact, includes, mean, scorer
from inspect_ai.solver import generate, solver, system_message, use_tools
from inspect_ai.tool import tool

SUMS = [Sample(id=n, input=f"{n} + 1 = ", target=str(n + 1)) for n in range(1, 9)]

@scorer(metrics={"form": [mean()], "sense": [mean()]})
def two():
    async def score(state, target):
        return Score(value={"form": 1.0, "sense": 0.25}, explanation="well formed")
    return score

@solver
def broken():
    async def solve(state, generate):
        raise KeyError("a mistake in the solver")
    return solve

@solver
def hanging():
    async def solve(state, generate):
        import asyncio
        await asyncio.sleep(1e6)
    return solve

@solver
def busy():
    async def solve(state, generate):
        import asyncio
        while True:
            state = await generate(state)
            await asyncio.sleep(0.1)
    return solve

@scorer(metrics=[mean()])
def late():
    async def score(state, target):
        import asyncio
        await asyncio.sleep(1e6)
    return score

@scorer(metrics=[mean()])
def blocking():
    async def score(state, target):
        import time
        time.sleep(1e6)
    return score

@solver
def forgetful():
    async def solve(state, generate):
        state.messages = [m for m in state.messages if m.role != "system"]
        return await generate(state)
    return solve

@tool
def add():
    async def execute(a: int, b: int):
        """Add two numbers.

        Args:
            a: one number
            b: another number
        """
        return str(a + b)
    return execute

@task
def sums():
    return Task(dataset=SUMS, solver=[system_message("Sums {only}"), generate()], scorer=[includes(), two()])
@task
def with_tool():
    return Task(dataset=SUMS, solver=[use_tools(add()), generate()], scorer=exact())
@task
def failing():
    return Task(dataset=SUMS, solver=[generate(), broken()], scorer=exact())
@task
def forgetting():
    return Task(dataset=SUMS, solver=forgetful(), scorer=exact())
@task
def hangs_at_once():
    return Task(dataset=SUMS, solver=[hanging(), generate()], scorer=includes())
@task
def hangs_in_its_own_time():
    return Task(dataset=SUMS, solver=[hanging(), generate()], scorer=includes(), time_limit=2)
@task
def hangs_after_an_answer():
    return Task(dataset=SUMS, solver=[generate(), hanging()], scorer=includes())
@task
def scores_late():
    return Task(dataset=SUMS, scorer=late())
@task
def blocks():
    return Task(dataset=SUMS, scorer=blocking())
@task
def never_ends():
    return Task(dataset=SUMS, solver=busy(), scorer=includes())
@task
def changing():
    import random
    return Task(dataset=[Sample(input=str(random.random()), target="1") for _ in range(8)], scorer=exact())
@task
def unscored():
    return Task(dataset=SUMS)
@task
def repeated():
    return Task(dataset=SUMS, scorer=exact(), epochs=3)
@task
def own_model():
    return Task(dataset=SUMS, scorer=exact(), model_roles={"grader": "mockllm/model"})
@task
def local():
    return Task(dataset=SUMS, scorer=exact(), sandbox="local")
@task
def docker():
    return Task(dataset=SUMS, scorer=exact(), sandbox="docker")
@task
def parameter(level):
    return Task(dataset=SUMS, scorer=exact())
def nothing():
    return None
'''


def config(task: str, url: str = "http://127.0.0.1:9", **env: Any) -> Any:
    return make_config(
        {
            "skill": "SKILL.md",
            "env": {"samples": f"inspect:{task}", **env},
            "target": {"model": f"openai@{url}/v1/m", "workers": 1},
        }
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "SKILL.md").write_text(START)
    return tmp_path


# -- without Inspect


def test_a_missing_package_names_the_extra(project: Path) -> None:
    with (
        patch("skilltune.envs.inspect.process.find_spec", lambda name: None),
        pytest.raises(UsageError, match=r"pip install 'skilltune\[inspect\]'"),
    ):
        build_env(config("tasks.py@sums"), project)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("C", 1.0),
        ("I", 0.0),
        ("P", 0.5),
        ("N", 0.0),
        (True, 1.0),
        (0.25, 0.25),
        (1, 1.0),
        ("0.5", 0.5),
        ("yes", 1.0),
        ("False", 0.0),
        (None, None),
    ],
)
def test_values_of_inspect_as_numbers(value: Any, number: float | None) -> None:
    assert number_of(value) == number


@pytest.mark.parametrize("value", ["good", [1, 0], {"a": 1}, "c"])
def test_a_value_that_is_no_number_is_never_a_score(value: Any) -> None:
    given = number_of(value)
    assert given is not None
    assert math.isnan(given)


def scored(value: Any, key: str = "", **parts: Any) -> Any:
    record = Artifact.of(json.dumps({"scores": {"s": {"value": value, **parts}}}).encode())
    rollout = Rollout("1", "", 0, Trajectory("an answer", stream=record), None)
    return score_of(Sample(id="1", input="x"), rollout, scorer="s", key=key)


def test_a_score_is_read_from_the_evaluation() -> None:
    score = scored("P", explanation="half of it", answer="B")
    assert (score.value, score.hard, score.partial) == (0.5, 0.0, 0.5)
    assert score.why == 's: P (half of it); read as the answer: "B"'
    assert scored({"a": 0, "b": 1}, "b").value == 1
    assert scored({"a": 0.5, "b": 1}).why.startswith("s/a: 0.5"), "the reason names the value that was chosen"


@pytest.mark.parametrize("value", [7, -1, "good", [1, 0], {"a": [1]}])
def test_a_value_outside_of_0_to_1_is_an_error(value: Any) -> None:
    with pytest.raises(JudgeError, match="a number from 0 to 1"):
        scored(value)


def test_no_score_is_no_zero() -> None:
    with pytest.raises(NotGraded, match="gave no score"):
        scored(None)
    with pytest.raises(JudgeError, match="no value"):
        scored({"a": 1}, "b")
    with pytest.raises(NotGraded):
        score_of(Sample(id="1", input="x"), Rollout("1", "", 0, Trajectory("made up"), None), scorer="s", key="")


@pytest.mark.parametrize(
    ("result", "lease", "error", "why"),
    [
        ({"others": ["openai/gpt-5.5"]}, {}, CallConfigError, "called openai/gpt-5.5 itself"),
        ({}, {"exchanges": 0}, CallConfigError, "asked its model nothing"),
        ({"limit": "time"}, {"trouble": InfraError("a slow endpoint")}, InfraError, "a slow endpoint"),
        ({"error": "x"}, {"fault": InfraError("a dead endpoint")}, InfraError, "a dead endpoint"),
        ({"error": "a crash"}, {}, InfraError, "Inspect failed: a crash"),
        ({"limit": "time", "idle": 4.0}, {}, InfraError, "the solver of the Inspect task hung"),
        ({"limit": "time", "idle": 4.0}, {"exchanges": 0}, InfraError, "the solver of the Inspect task hung"),
        ({"limit": "time"}, {"exchanges": 0}, InfraError, "ran out before its model's first answer"),
        ({"limit": "working", "idle": 8.0}, {}, InfraError, r"in the last 8 of its 8 s \(target\.timeout_s\)"),
        (
            {"limit": "time", "limit_s": 2.0, "limit_name": "the task's own time_limit", "idle": 1.0},
            {},
            InfraError,
            r"in the last 1 of its 2 s \(the task's own time_limit\)",
        ),
    ],
)
def test_an_evaluation_that_proves_nothing_is_an_error(
    result: dict[str, Any], lease: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        witnessed(evaluation(**result), seen_lease(**lease), 1.0)


def test_an_endpoint_that_used_up_the_time_is_no_result() -> None:
    hung = evaluation(limit="time")
    with pytest.raises(InfraError, match="waited 5 of its 8 s for one answer"):
        witnessed(hung, seen_lease(exchanges=0), 9.0, waited=5.0)
    own = {**hung, "limit_s": 4.0, "limit_name": "the task's own time_limit"}
    with pytest.raises(InfraError, match=r"waited 3 of its 4 s .*: raise the task's own time_limit"):
        witnessed(own, seen_lease(), 5.0, waited=3.0)
    assert witnessed(hung, seen_lease(), 9.0, waited=3.0).outcome == "agent_limit"
    assert witnessed(evaluation(), seen_lease(), 9.0, waited=5.0).outcome == "ok", "no limit was reached"


@pytest.mark.parametrize(("kind", "idle"), [("model", 2.0), ("tool", 2.0), ("sandbox", 2.0), ("state", 9.0)])
def test_a_solver_that_works_by_itself_in_a_sandbox_does_not_hang(kind: str, idle: float) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    events = [
        SimpleNamespace(event=event, timestamp=start + timedelta(seconds=at), completed=start + timedelta(seconds=end))
        for event, at, end in (("state", 0, 0), (kind, 1, 7), ("sample_limit", 9, 9))
    ]
    assert _idle(events) == idle


def test_the_end_of_an_evaluation_is_told() -> None:
    def ended(**parts: Any) -> Trajectory:
        return witnessed(evaluation(**parts), seen_lease(), 1.0)

    assert ended(limit="message").outcome == "agent_limit"
    assert ended(stop="max_tokens").error == "the answer was cut at max_tokens"
    assert ended(stop="content_filter").outcome == "ok", "a refusal is an answer"


def evaluation(**parts: Any) -> dict[str, Any]:
    return {
        "error": "",
        "others": [],
        "limit": "",
        "limit_s": 8.0,
        "limit_name": "target.timeout_s",
        "idle": 0.0,
        "stop": "stop",
        "answer": "2",
        "messages": [],
        "scores": {},
        **parts,
    }


def seen_lease(**parts: Any) -> Any:
    return SimpleNamespace(**{"fault": None, "trouble": None, "exchanges": 1, "usage": Usage(1, 9, 1), **parts})


@pytest.mark.slow
async def test_a_process_that_gives_no_result_is_ended_in_time(tmp_path: Path) -> None:
    """The process and what it started are gone, and no name of Inspect's is needed for that."""
    alive = tmp_path / "alive"
    code = f"sleep 1e6 & echo $! $$ >{alive}; wait"
    with (
        patch("skilltune.envs.inspect.process.require_inspect", lambda: None),
        patch("skilltune.envs.inspect.process._command", lambda: ["sh", "-c", code]),
    ):
        with pytest.raises(UsageError, match=r"not loaded within 0\.5 s: raise target\.timeout_s, or look for code"):
            ask_once({"do": "load"}, 0.5)
        assert not [pid for pid in alive.read_text().split() if _running(pid)]
        workers = Workers(1)
        with pytest.raises(
            InfraError, match=r"no result within 0\.5 s.* solver, tool or scorer .* blocks it"
        ) as failed:
            await workers.ask({"do": "evaluate"}, 0.5)
        await workers.aclose()
        assert failed.value.systemic, "the same failure of every sample ends the run"
        assert not [pid for pid in alive.read_text().split() if _running(pid)]


@pytest.mark.parametrize("failure", [ProcessLookupError, PermissionError])
def test_a_group_of_processes_that_have_ended_is_no_error(failure: type[OSError]) -> None:
    """macOS refuses a signal to a group whose processes have ended and are not waited for."""
    with patch("os.killpg", side_effect=failure) as kill:
        signal_group(77)
    kill.assert_called_once_with(77, signal.SIGKILL)


def _running(pid: str) -> bool:
    """True if a process lives; one that nobody has waited for yet has ended."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


# -- with Inspect: each start of its process takes seconds


REFUSED = {
    "tasks.py@sum": 'no task "sum"; its tasks are: blocks, changing, docker',
    "tasks.py@": "name one of its tasks, FILE.py@TASK; its tasks are: blocks, changing, docker",
    "other.py@sums": "there is no file",
    "tasks.py@unscored": "no scorer",
    "tasks.py@repeated": "epochs=3",
    "tasks.py@own_model": "models of its own",
    "tasks.py@local": 'sandbox "local"',
    "tasks.py@docker": "needs Docker, and `docker info` fails",
    "tasks.py@parameter": "missing a required argument: 'level'",
    "tasks.py@nothing": "returns a NoneType and no Task",
}


@pytest.mark.slow
async def test_a_task_that_does_not_fit_is_refused_before_anything_is_spent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    (project / "bin").mkdir()
    (project / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    (project / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project / 'bin'}:/usr/bin:/bin")
    workers = Workers(1)
    for named, why in REFUSED.items():
        file, _, task = named.partition("@")
        told = await workers.ask({"do": "load", "file": str(project / file), "task": task}, 120)
        assert why in told.get("unusable", ""), named
    await workers.aclose()
    with pytest.raises(UsageError, match=r"`inspect:tasks\.py@local` in .*sandbox"):
        build_env(config("tasks.py@local"), project)


@pytest.mark.slow
async def test_samples_and_scorers_of_a_task(project: Path) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    env = build_env(config("tasks.py@sums"), project)
    assert isinstance(env, InspectEnv)
    assert [(s.id, s.input, s.target) for s in env.samples[:2]] == [("1", "1 + 1 = ", "2"), ("2", "2 + 1 = ", "3")]
    assert env.scorer == "inspect:includes"
    assert any("includes, two/form, two/sense; includes counts" in note for note in env.notes())
    chosen = build_env(config("tasks.py@sums", score="two/sense"), project)
    assert chosen.scorer == "inspect:two/sense"
    assert chosen.fingerprint != env.fingerprint
    assert await chosen.validate() == []
    (project / "one [of] two.py").write_text(TASKS.partition("@task\ndef with_tool")[0])
    assert build_env(config("one [of] two.py"), project).samples == env.samples, "its only task"
    with pytest.raises(UsageError, match=r'no scorer "tow".*it has: includes, two'):
        build_env(config("tasks.py@sums", score="tow"), project)
    with pytest.raises(UsageError, match=r"env\.prompt"):
        build_env(config("tasks.py@sums", prompt="{input}!"), project)


def parts_of(project: Path, task: str, url: str, **env: Any) -> tuple[Parts, InspectTarget]:
    parts = build_parts(config(task, url, **env), Run.open(project / "run"), project)
    assert isinstance(parts.target, MeteredTarget)
    assert isinstance(parts.target.target, InspectTarget)
    return parts, parts.target.target


@pytest.mark.slow
async def test_one_rollout_calls_tools_and_is_metered_and_replayed(project: Path) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")

    script = turns(Said(calls=(Call("add", {"a": 1, "b": 1}),)), Said("2"))
    async with Upstream(script) as upstream:
        parts, target = parts_of(project, "tasks.py@with_tool", upstream.url)
        skill = Skill.parse("Use {braces} and the tool.")
        task = parts.env.task(parts.env.samples[0])
        done = await parts.target.run(skill, task, 0)
        assert done.answer == "2"
        assert Turn("tool call", "add\na: 1\nb: 1") in done.turns
        assert Turn("tool", "2") in done.turns
        assert not any("braces" in turn.text for turn in done.turns)
        assert upstream.asked[0].body["messages"][0] == {"role": "system", "content": "Use {braces} and the tool."}
        assert (done.usage.calls, done.usage.input_tokens, done.journaled) == (2, 200, True)
        score = await parts.env.score(parts.env.samples[0], Rollout("1", "", 0, done, None))
        assert score.value == 1
        calls = len(upstream.asked)
        assert (await target.run(skill, task, 0)).answer == "2", "a rollout that was killed repeats its questions"
        assert len(upstream.asked) == calls, "and they are answered from the journal"
        await target.run(skill, task, 1)
        assert len(upstream.asked) == 2 * calls, "another attempt asks anew"
        await parts.aclose()
        parts.run.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "fault", "error", "why"),
    [
        ("failing", None, InfraError, "a mistake in the solver"),
        ("forgetting", None, CallConfigError, "nothing was sent to the model: the body of the skill"),
        ("changing", None, CallConfigError, "is another one each time"),
        ("sums", Fault(status=500, body={}), InfraError, "500"),
        ("sums", Fault(status=401, body={}), CallConfigError, "401"),
        ("sums", Fault(status=400, body={"error": {"code": "content_filter"}}), SampleError, "400"),
    ],
)
async def test_a_failure_is_an_error_and_never_a_score(
    project: Path, task: str, fault: Fault | None, error: type[Exception], why: str
) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    with quick_retries(2), patch("skilltune.gateway.lease.GRACE_S", 0.01):
        async with Upstream(lambda asked: fault or Said("2")) as upstream:
            parts, target = parts_of(project, f"tasks.py@{task}", upstream.url)
            try:
                with pytest.raises(error, match=why):
                    await target.run(parts.skill, parts.env.task(parts.env.samples[0]), 0)
            finally:
                await parts.aclose()
                parts.run.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("hangs_at_once", "the solver of the Inspect task hung"),
        ("hangs_in_its_own_time", r"task hung: .* of its 2 s \(the task's own time_limit\)"),
        ("hangs_after_an_answer", r"task hung: .* of its 24 s \(target\.timeout_s\)"),
        ("scores_late", r"Inspect failed: .*limit"),
        ("blocks", "no result within .*scorer of the task blocks it"),
    ],
)
async def test_a_solver_or_scorer_that_hangs_ends_by_the_time_limit_and_is_no_score(
    project: Path, task: str, why: str
) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    with patch("skilltune.targets.inspect.GRACE_S", 60.0 if task != "blocks" else 15.0):
        async with Upstream(lambda asked: Said("2")) as upstream:
            parts, target = parts_of(project, f"tasks.py@{task}", upstream.url)
            # The first answer takes seconds, because the client is imported for it; less than half of the time counts.
            slow = task in ("hangs_after_an_answer", "hangs_in_its_own_time")
            target.timeout_s = 24.0 if slow else 4.0
            try:
                with pytest.raises(InfraError, match=why):
                    await target.run(parts.skill, parts.env.task(parts.env.samples[0]), 0)
            finally:
                await parts.aclose()
                parts.run.close()


@pytest.mark.slow
async def test_at_the_time_limit_a_busy_solver_is_scored_and_a_silent_endpoint_is_not(project: Path) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    async with Upstream(lambda asked: Said("2")) as upstream:
        parts, target = parts_of(project, "tasks.py@never_ends", upstream.url)
        target.timeout_s = 12.0
        done = await target.run(parts.skill, parts.env.task(parts.env.samples[0]), 0)
        assert (done.outcome, done.answer) == ("agent_limit", "2")
        await parts.aclose()
        parts.run.close()
    async with Upstream(lambda asked: Fault(hang=True)) as upstream:
        parts, target = parts_of(project, "tasks.py@sums", upstream.url)
        target.timeout_s = 8.0  # the task itself must have begun by then, also on a busy machine
        with pytest.raises(InfraError, match=r"of its 8 s for one answer of its model"):
            await target.run(parts.skill, parts.env.task(parts.env.samples[0]), 0)
        await parts.aclose()
        parts.run.close()


@pytest.mark.slow
async def test_a_worker_that_is_late_or_dies_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    (tmp_path / "dying.py").write_text("import os, sys\nprint('Goodbye.', file=sys.stderr)\nos._exit(3)\n")
    request = {"do": "load", "file": "/nowhere.py", "task": ""}
    workers = Workers(1)
    with pytest.raises(InfraError, match="no result within"):
        await workers.ask(request, 0.01)
    with pytest.raises(InfraError, match=r"ended early: .*Goodbye\."):
        await workers.ask({**request, "file": str(tmp_path / "dying.py")}, 60)
    assert "no file" in (await workers.ask(request, 60))["unusable"]
    await workers.aclose()


DESK = """
import json
from pathlib import Path
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import exact
from inspect_ai.solver import generate, system_message


@task
def desk():
    rows = map(json.loads, Path("samples.jsonl").read_text().splitlines())
    tickets = [Sample(id=row["id"], input=row["input"], target=row["target"]) for row in rows]
    return Task(dataset=tickets, solver=[system_message("Be brief: {metadata}."), generate()], scorer=exact())
"""


@pytest.mark.slow
async def test_an_inspect_task_is_trained_through_the_gateway(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    with World(classes=2, train=12, select=10, test=12, sloppy=0.0, q=1.0, harmful=0.0) as world:
        (tmp_path / "tasks.py").write_text(DESK)
        settings = {"env.samples": "inspect:tasks.py@desk", "target.workers": 2, "train.epochs": 1}
        settings |= {"train.batch_size": 12, "gate.screen": 12}
        trained = await train(world, tmp_path, settings)
        assert world.true_score(trained.result.best.text) > world.true_score(START)
        assert trained.result.certificate
        systems = {seen.system for seen in world.requests if seen.role == "target"}
        assert all(system.endswith("Be brief: {metadata}.") for system in systems), "one system message, skill first"
        asked = world.calls["target"]
        again = await train(world, tmp_path, settings)
        assert again.versions == trained.versions
        assert world.calls["target"] == asked, "a finished run is replayed for free"
