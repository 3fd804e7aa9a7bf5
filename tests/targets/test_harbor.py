"""Harbor tasks as training environments, with a command line that writes what Harbor 0.26 writes. No container runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from skilltune.build import build_env, build_parts
from skilltune.config import make_config
from skilltune.envs.harbor import score_of
from skilltune.errors import CallConfigError, CallError, InfraError, JudgeError, NotGraded, UsageError
from skilltune.journal.run import Run
from skilltune.rollout import Artifact, Rollout, Score, Trajectory, Turn
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets.harbor import HarborTarget, Trial, read_trial, trajectory_of
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage

pytestmark = pytest.mark.anyio

HARBOR = """#!{python}
import json, os, pathlib, sys, time
if "--version" in sys.argv:
    sys.exit(print("0.26.0"))
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
task = pathlib.Path(given["--path"])
if task.name == "slow":
    pathlib.Path(os.environ["HOME"], "started").touch()
    time.sleep(60)
if task.name == "dead":
    sys.exit("Docker daemon is not running.")
trial = pathlib.Path(given["--jobs-dir"], given["--job-name"], f"{{task.name}}__x1")
(trial / "agent").mkdir(parents=True)
skill = pathlib.Path(given["--skill"]).joinpath("SKILL.md").read_text() if "--skill" in given else ""
(trial.parent / "result.json").write_text(json.dumps({{"stats": {{"evals": {{"mean": 0.0}}}}}}))
(trial / "result.json").write_text(json.dumps({{
    "trial_name": trial.name,
    "agent_result": {{"n_input_tokens": 1000, "n_cache_tokens": 400, "n_output_tokens": 50, "cost_usd": 0.25}},
    "verifier_result": {{"rewards": {{"reward": float("the rule" in skill)}}}},
    "exception_info": None,
    "config": os.environ.get("ANTHROPIC_API_KEY"),
}}))
(trial / "agent" / "trajectory.json").write_text(json.dumps({{"steps": [
    {{"source": "system", "message": "You are an agent."}},
    {{"source": "user", "message": (task / "instruction.md").read_text()}},
    {{"source": "agent", "message": "Looking.", "tool_calls": [{{"function_name": "ls", "arguments": {{"path": "/"}}}}],
     "observation": {{"results": [{{"content": "bin"}}]}}}},
    {{"source": "agent", "message": json.dumps([sys.argv[1:], sorted(os.environ)])}},
]}}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks, a skill, and the commands `harbor` and `docker`."""
    for name, text in (("harbor", HARBOR.format(python=sys.executable)), ("docker", "#!/bin/sh\nexit 0\n")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for number in range(8):
        task = tmp_path / "tasks" / f"task-{number}"
        task.mkdir(parents=True)
        (task / "task.toml").write_text('schema_version = "1.4"\n')
        (task / "instruction.md").write_text(f"Do task {number}.\n")
    (tmp_path / "SKILL.md").write_text("---\nname: desk\ndescription: Does tasks.\n---\nDo it.\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-secret-key")
    monkeypatch.setenv("OTHER_TOKEN", "another-secret")
    return tmp_path


def config(**target: Any) -> Any:
    given = {"model": "claude-code/claude-opus-5", "gateway": False, "env": ["ANTHROPIC_API_KEY"], **target}
    return make_config({"skill": "SKILL.md", "env": {"samples": "harbor:tasks"}, "target": given})


def rename(project: Path, name: str) -> None:
    (project / "tasks" / "task-0").rename(project / "tasks" / name)


@pytest.mark.parametrize(
    ("break_it", "options", "why"),
    [
        (lambda at: (at / "bin" / "harbor").unlink(), {}, "no command `harbor` on the PATH"),
        (lambda at: (at / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n"), {}, "`docker info` fails"),
        (lambda at: (at / "tasks").rename(at / "moved"), {}, "there is no folder"),
        (lambda at: [path.unlink() for path in at.glob("tasks/*/task.toml")], {}, r"holds a task\.toml"),
        (lambda at: (at / "tasks" / "task-3" / "instruction.md").unlink(), {}, r"task-3 has no instruction\.md"),
        (None, {"model": "openai/gpt-5.5", "gateway": True, "env": []}, "name claude-code/MODEL or codex/MODEL"),
        (None, {"gateway": True}, r"target\.gateway=false"),
        (None, {"sandbox": "none"}, r"target\.sandbox"),
        (None, {"env": ["NO_SUCH_KEY"]}, "NO_SUCH_KEY, which is not set"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_spent(
    project: Path, break_it: Any, options: dict[str, Any], why: str
) -> None:
    if break_it is not None:
        break_it(project)
    with Run.open(project / "run") as run, pytest.raises(UsageError, match=why):
        build_parts(config(**options), run, project)


def test_a_changed_file_of_a_task_is_another_sample(project: Path) -> None:
    before = build_env(config(), project)
    assert [sample.id for sample in before.samples] == [f"task-{number}" for number in range(8)]
    assert before.samples[1].input == "Do task 1."
    (project / "tasks" / "task-1" / "tests").mkdir()
    (project / "tasks" / "task-1" / "tests" / "test.sh").write_text("exit 0\n")
    after = build_env(config(), project)
    assert [a == b for a, b in zip(before.samples, after.samples, strict=True)] == [True, False, *[True] * 6]


@pytest.mark.slow
async def test_a_trial_is_run_with_the_skill_and_read(project: Path) -> None:
    with Run.open(project / "run") as run:
        parts = build_parts(config(), run, project)
        task = parts.env.task(parts.env.samples[0])
        skill = Skill.parse("---\nname: desk\ndescription: Does tasks.\n---\nFollow the rule in {braces}.\n")
        done = await parts.target.run(skill, task, 0)
        arguments, environment = json.loads(done.answer)
        assert arguments[:5] == ["run", "--path", str(project / "tasks" / "task-0"), "--agent", "claude-code"]
        assert arguments[5:7] == ["--model", "anthropic/claude-opus-5"]
        assert "ANTHROPIC_API_KEY" in environment
        assert "OTHER_TOKEN" not in environment
        assert done.stream is not None
        assert b"a-secret-key" not in done.stream.read()
        assert done.turns[:4] == (
            Turn("user", "Do task 0.\n"),
            Turn("assistant", "Looking."),
            Turn("tool call", "ls\npath: /"),
            Turn("tool", "bin"),
        )
        assert done.usage == Usage(1, 1000, 50, 400, usd=0.25)
        score = await parts.env.score(parts.env.samples[0], Rollout("task-0", "", 0, done, None))
        assert score == Score(1.0, "reward: 1")
        without = await parts.target.run(Skill.parse("---\nname: desk\ndescription: None.\n---\n"), task, 0)
        assert "--skill" not in json.loads(without.answer)[0]
        assert (await parts.env.score(parts.env.samples[0], Rollout("task-0", "", 0, without, None))).value == 0


@pytest.mark.slow
async def test_no_result_and_no_end_are_errors(project: Path) -> None:
    rename(project, "dead")
    (project / "tasks" / "task-1").rename(project / "tasks" / "slow")
    with Run.open(project / "run") as run:
        parts = build_parts(config(timeout_s=1.0), run, project)
        assert isinstance(parts.target, MeteredTarget)
        target = parts.target.target
        assert isinstance(target, HarborTarget)
        tasks = {sample.id: parts.env.task(sample) for sample in parts.env.samples}
        with pytest.raises(InfraError, match="no result of the trial: Docker daemon is not running"):
            await target.run(parts.skill, tasks["dead"], 0)
        began = time.monotonic()
        with pytest.raises(InfraError, match="no result within 1 s"):
            await target.run(parts.skill, tasks["slow"], 0)
        assert (project / "started").exists()
        assert time.monotonic() - began < 30, "Harbor was ended"


# -- results of trials


def failed(kind: str, rewards: Any = None, **more: Any) -> Trial:
    found = {"exception_type": kind, "exception_message": "it failed"}
    cost = {"n_input_tokens": 10, "n_output_tokens": 1, "cost_usd": 0.5}
    verified = {"rewards": rewards} if rewards else None
    result = {"trial_name": "t", "agent_result": cost, "verifier_result": verified, "exception_info": found}
    return Trial({**result, **more}, ())


@pytest.mark.parametrize(
    ("trial", "error"),
    [
        (failed("AgentAuthenticationError"), CallConfigError),
        (failed("ModelNotFoundError", {"reward": 1}), CallConfigError),
        (failed("ApiRateLimitError", {"reward": 0}), InfraError),
        (failed("EnvironmentStartTimeoutError"), InfraError),
        (failed("SomethingNew", {"reward": 1}), InfraError),
        (failed("NonZeroAgentExitCodeError", {"reward": 0}), InfraError),
        (failed("AgentTimeoutError"), InfraError),
        (failed("VerifierTimeoutError"), JudgeError),
        (failed("RewardFileNotFoundError"), JudgeError),
    ],
)
def test_an_exception_of_a_trial_is_never_a_score(trial: Trial, error: type[CallError]) -> None:
    with pytest.raises(error, match="it failed") as caught:
        trajectory_of(trial, 1.0)
    assert caught.value.usage == Usage(1, 10, 1, usd=0.5), "its cost is known"


def test_an_exception_of_a_step_counts_too() -> None:
    step = {"step_name": "b", "agent_result": {"n_input_tokens": 7, "n_output_tokens": 2}, "exception_info": None}
    broken = failed("ApiOverloadedError").result["exception_info"]
    trial = Trial({"step_results": [step, {**step, "exception_info": broken}]}, ())
    with pytest.raises(InfraError, match="ApiOverloadedError") as caught:
        trajectory_of(trial, 1.0)
    assert caught.value.usage == Usage(1, 14, 4, usd=None), "a price that is not reported is unknown, not 0"


@pytest.mark.parametrize(("kind", "outcome"), [("AgentTimeoutError", "agent_limit"), ("AgentSafetyRefusalError", "ok")])
def test_a_limit_that_was_verified_is_scored(kind: str, outcome: str) -> None:
    done = trajectory_of(failed(kind, {"reward": 0.5}), 1.0)
    assert (done.outcome, done.error) == (outcome, kind)
    assert scored({"reward": 0.5}).value == 0.5


def scored(rewards: Any, reward: str = "") -> Score:
    record = Artifact.of(json.dumps({"verifier_result": {"rewards": rewards}}).encode())
    rollout = Rollout("t", "", 0, Trajectory("", stream=record), None)
    return score_of(Sample(id="t", input="x"), rollout, reward=reward)


def test_rewards_as_scores() -> None:
    assert scored({"reward": 1}).hard == 1
    assert scored({"speed": 0.25}).value == 0.25, "the only reward"
    assert scored({"speed": 0.25, "reward": 1}).metrics == {"speed": 0.25}
    assert scored({"speed": 0.25, "style": 1}, "style").value == 1


@pytest.mark.parametrize(
    ("rewards", "reward", "why"),
    [
        ({"speed": 0.25, "style": 1}, "", "name one of them in env.score"),
        ({"reward": 1}, "rewrad", "name one of them"),
        ({"reward": 3}, "", "a number from 0 to 1"),
        ({"reward": "good"}, "", "a number from 0 to 1"),
        (None, "", "no reward"),
    ],
)
def test_rewards_that_are_no_score(rewards: Any, reward: str, why: str) -> None:
    with pytest.raises(JudgeError, match=why):
        scored(rewards, reward)


def test_an_answer_without_a_trial_is_not_graded() -> None:
    with pytest.raises(NotGraded):
        score_of(Sample(id="t", input="x"), Rollout("t", "", 0, Trajectory("made up"), None), reward="")


def test_a_damaged_trajectory_and_a_damaged_result_are_survived(tmp_path: Path) -> None:
    trial = tmp_path / "job" / "t__1"
    (trial / "agent").mkdir(parents=True)
    (trial / "agent" / "trajectory.json").write_text("{")
    (trial / "result.json").write_text('{"trial_name": "t__1"')
    with pytest.raises(InfraError, match=r"no result of the trial: it printed nothing"):
        read_trial(tmp_path, b"")
    (trial / "result.json").write_text('{"trial_name": "t__1"}')
    assert read_trial(tmp_path, b"") == Trial({"trial_name": "t__1"}, ())
