"""Agents as targets: fake command lines that really talk to the gateway, in front of a scripted model."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from skilltune.config import TargetConfig
from skilltune.envs.task import Task
from skilltune.errors import CallConfigError, CallError, InfraError, UsageError
from skilltune.journal.run import Run
from skilltune.models import Image, Message, system, user
from skilltune.sandbox import Command, Limits, Policy, probe
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.targets.agents import AGENTS, AgentJob, run_job
from skilltune.targets.agents.job import readable, reading
from skilltune.targets.agents.target import AgentTarget, make_agent, named_skill, prompt_of
from skilltune.usage import Usage
from skilltune.workspace import Workspace
from upstream import Asked, Call, Fault, Turn, Upstream

pytestmark = pytest.mark.anyio

SKILL = Skill.parse("---\nname: demo\ndescription: How to answer.\n---\n\nMARKER: answer with forty-two.\n")
CLIS = ("claude-code", "codex", "opencode")
ALL = (*CLIS, "acp", "command")


def script(asked: Asked) -> Turn:
    """One tool call, then an answer that depends on the skill."""
    command = "echo done > out.txt; cat out.txt"
    if not asked.results:
        return Turn(calls=(Call("Bash", {"command": command, "cmd": command}),))
    return Turn("ANSWER 42" if "MARKER" in asked.raw.decode() else "no idea")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all fakes, on the PATH."""
    folder = fakes.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def config(agent: str, url: str, **options: Any) -> TargetConfig:
    model = f"openai@{url}/v1/m"
    if agent in CLIS:
        options["model"] = f"{agent}/{options.pop('upstream', model)}"
    else:
        options = {"model": f"{agent}:{'acp' if agent == 'acp' else 'script'}", "upstream": model, **options}
    return TargetConfig(**{"sandbox": "none", **options})


@asynccontextmanager
async def target_of(
    agent: str, root: Path, *faults: Fault | None, run: Run | None = None, **options: Any
) -> AsyncIterator[tuple[AgentTarget, Upstream]]:
    async with Upstream(options.pop("script", script), *faults) as server:
        target = make_agent(config(agent, server.url, **options), root, run=run)
        try:
            yield target, server
        finally:
            await target.aclose()


def task(text: str = "What is the answer?") -> Task:
    return Task("s1", (user(text),))


async def failure(agent: str, root: Path, text: str, *faults: Fault | None, **options: Any) -> CallError:
    async with target_of(agent, root, *faults, **options) as (target, _):
        with pytest.raises(CallError) as caught:
            await target.run(SKILL, task(text), 0)
    return caught.value


def alive(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if word.encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


# -- a rollout


@pytest.mark.parametrize("agent", ALL)
@pytest.mark.parametrize("activation", ["forced", "native", "inline"])
async def test_a_rollout_sees_the_skill_as_the_mode_promises(
    agent: str, activation: str, programs: Path, tmp_path: Path
) -> None:
    if (agent, activation) == ("command", "native"):
        pytest.skip("a command of unknown kind has no listing")
    async with target_of(agent, tmp_path, activation=activation) as (target, server):
        assert isinstance(target, Target)
        trajectory = await target.run(SKILL, task(), 0)
    assert trajectory.outcome == "ok"
    assert trajectory.skill_offered
    assert trajectory.skill_loaded is (activation != "native")
    assert trajectory.answer == ("no idea" if activation == "native" else "ANSWER 42")
    assert [turn.text for turn in trajectory.turns if turn.role == "tool"] == ["done\n"]
    assert {path: file.read() for path, file in trajectory.artifacts.items()} == {"out.txt": b"done\n"}
    assert (trajectory.usage.calls, len(server.asked)) == (2, 2)
    assert not alive(str(tmp_path / "tmp"))


@pytest.mark.parametrize("agent", ALL)
async def test_without_a_skill_nothing_is_installed(agent: str, programs: Path, tmp_path: Path) -> None:
    async with target_of(agent, tmp_path) as (target, server):
        trajectory = await target.run(Skill(""), task(), 0)
    assert trajectory.answer == "no idea"
    assert not any("demo" in asked.raw.decode() for asked in server.asked)


@pytest.mark.parametrize(("agent", "upstream"), [("claude-code", "anthropic@{}/m"), ("codex", "openai@{}/v1/m")])
async def test_an_agent_works_with_a_model_of_its_own_and_of_another_dialect(
    agent: str, upstream: str, programs: Path, tmp_path: Path
) -> None:
    async with Upstream(script) as server:
        cfg = config(agent, server.url, upstream=upstream.format(server.url))
        target = make_agent(cfg, tmp_path)
        assert (await target.run(SKILL, task(), 0)).answer == "ANSWER 42"
        await target.aclose()


# -- how a rollout ends


@pytest.mark.parametrize(
    ("agent", "scenario"),
    [
        *(("claude-code", scenario) for scenario in ("garbage", "huge", "survivor")),
        ("codex", "garbage"),
        ("acp", "huge"),
    ],
)
async def test_noise_does_not_change_the_result(agent: str, scenario: str, programs: Path, tmp_path: Path) -> None:
    async with target_of(agent, tmp_path) as (target, _):
        trajectory = await target.run(SKILL, task(f"[{scenario}] go"), 0)
    assert (trajectory.answer, trajectory.outcome) == ("ANSWER 42", "ok")
    assert not alive(str(tmp_path / "tmp"))


@pytest.mark.parametrize("agent", ["claude-code", "acp"])
async def test_a_denied_tool_is_shown(agent: str, programs: Path, tmp_path: Path) -> None:
    async with target_of(agent, tmp_path) as (target, _):
        trajectory = await target.run(SKILL, task("[denied] go"), 0)
    assert (trajectory.outcome, trajectory.error) == ("ok", "denied to the agent: Write")


@pytest.mark.parametrize("agent", ["claude-code", "acp"])
async def test_a_limit_of_the_agent_s_own_is_a_limit(agent: str, programs: Path, tmp_path: Path) -> None:
    async with target_of(agent, tmp_path) as (target, _):
        trajectory = await target.run(SKILL, task("[max-turns] go"), 0)
    assert trajectory.outcome == "agent_limit"
    assert "its limit of turns" in trajectory.error


@pytest.mark.parametrize("agent", ALL)
async def test_the_gateway_holds_the_limit_of_turns(agent: str, programs: Path, tmp_path: Path) -> None:
    def forever(asked: Asked) -> Turn:
        call = Call("Bash", {"command": "true", "cmd": "true"})
        return Turn("So far so good." if asked.results else "", calls=(call,))

    async with target_of(agent, tmp_path, script=forever, max_turns=3) as (target, server):
        trajectory = await target.run(SKILL, task(), 0)
    assert (trajectory.outcome, trajectory.answer) == ("agent_limit", "So far so good.")
    assert "target.max_turns = 3" in trajectory.error
    assert len(server.asked) == 3


@pytest.mark.slow
@pytest.mark.parametrize("agent", ALL)
async def test_a_rollout_that_hangs_is_ended_with_its_children(agent: str, programs: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    error = await failure(agent, tmp_path, "[hang] go", timeout_s=1.0)
    assert isinstance(error, InfraError)  # its model was never asked, so there is nothing to score
    assert "had no answer of its model" in str(error)
    assert time.monotonic() - began < 20
    assert not alive(str(tmp_path / "tmp"))


@pytest.mark.slow
async def test_a_rollout_out_of_time_is_scored_as_it_stands(programs: Path, tmp_path: Path) -> None:
    def slow(asked: Asked) -> Turn:
        return Turn("I begin.", calls=(Call("Bash", {"command": "echo 1 > out.txt; sleep 60", "cmd": "sleep 60"}),))

    async with target_of("claude-code", tmp_path, script=slow, timeout_s=2.0) as (target, _):
        trajectory = await target.run(SKILL, task(), 0)
    assert (trajectory.outcome, trajectory.answer) == ("agent_limit", "I begin.")
    assert "target.timeout_s" in trajectory.error


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("silent", "ended without a result"),
        ("crash", "ended without a result.*something broke"),
        ("wordless", "had no answer of its model"),
        ("lies", "reports the answer 'I have no idea.'"),
    ],
)
@pytest.mark.parametrize("agent", CLIS)
async def test_an_end_without_proof_is_no_result(
    agent: str, scenario: str, message: str, programs: Path, tmp_path: Path
) -> None:
    if (agent, scenario) == ("opencode", "crash"):
        message = "something broke"
    error = await failure(agent, tmp_path, f"[{scenario}] go")
    assert isinstance(error, InfraError)
    assert error.systemic
    assert re.search(message, str(error), re.DOTALL), error


@pytest.mark.parametrize("agent", CLIS)
async def test_the_model_s_fault_is_told_and_not_the_agent_s(agent: str, programs: Path, tmp_path: Path) -> None:
    body = {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}
    error = await failure(agent, tmp_path, "go", Fault(401, body))
    assert isinstance(error, CallConfigError)
    assert "Incorrect API key provided" in str(error)


@pytest.mark.parametrize(
    ("agent", "name", "kind", "words"),
    [
        ("claude-code", "api-error", CallConfigError, "model is unknown"),
        ("claude-code", "wrong-key", CallConfigError, "check the key"),
        ("codex", "api-error", CallConfigError, "model is unknown"),
        ("codex", "wrong-key", CallConfigError, "check the key"),
        ("codex", "no-connection", InfraError, "error sending request"),
        ("opencode", "api-error", CallConfigError, "model is unknown"),
        ("acp", "wrong-key", CallConfigError, "asks for a login"),
    ],
)
async def test_an_error_shaped_as_a_success_is_an_error(
    agent: str, name: str, kind: type[CallError], words: str, programs: Path, tmp_path: Path
) -> None:
    """The agent reports a failed call of its own, of which the gateway knows nothing."""
    error = await failure(agent, tmp_path, f"[{name}] go")
    assert isinstance(error, kind)
    assert words in str(error)


# -- proof of the skill


@pytest.mark.parametrize("agent", CLIS)
@pytest.mark.parametrize(("scenario", "words"), [("bare", "is not in the agent's first request"), ("foreign", "anoth")])
async def test_nothing_is_sent_if_the_skill_is_not_there(
    agent: str, scenario: str, words: str, programs: Path, tmp_path: Path
) -> None:
    async with target_of(agent, tmp_path) as (target, server):
        with pytest.raises(CallConfigError, match=words):
            await target.run(SKILL, task(f"[{scenario}] go"), 0)
        assert server.asked == []


async def test_a_command_that_ignores_the_skill_is_found_out(programs: Path, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.sh"
    deaf.write_text("#!/bin/sh\necho hello | script\n")
    deaf.chmod(0o755)
    async with target_of("command", tmp_path, model="command:./deaf.sh") as (target, server):
        with pytest.raises(CallConfigError, match="is not in the agent's first request"):
            await target.run(SKILL, task(), 0)
        assert server.asked == []


# -- secrets and files


@pytest.mark.parametrize("agent", ALL)
async def test_the_environment_is_a_list_of_what_is_allowed(
    agent: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-real")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setenv("MY_SETTING", "given")
    monkeypatch.setenv("OTHER_SECRET", "hidden")

    def spying(asked: Asked) -> Turn:
        command = "cat spied.json"
        if not asked.results:
            return Turn(calls=(Call("Bash", {"command": command, "cmd": command}),))
        return Turn("ANSWER 42")

    async with target_of(agent, tmp_path, script=spying, env=("MY_SETTING",)) as (target, _):
        trajectory = await target.run(SKILL, task("[spy] go"), 0)
    (seen,) = [json.loads(turn.text) for turn in trajectory.turns if turn.role == "tool"]
    assert seen.pop("MY_SETTING") == "given"
    assert seen["HOME"].startswith(str(tmp_path))
    assert not {"sk-real", "hidden"} & {*seen.values()}


@pytest.mark.parametrize("agent", ["codex", "acp", "command"])
async def test_a_key_that_the_user_passes_on_is_stored_nowhere(
    agent: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent prints it, writes it to files, in base64 too, and its model repeats it."""
    monkeypatch.setenv("GITHUB_PAT", 'ghp "PLANTED" 1')
    monkeypatch.setenv("DATABASE_URL", "postgres://me:PLANTED-22@db/x")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Grace Hopper")
    names = ("GITHUB_PAT", "DATABASE_URL", "GIT_AUTHOR_NAME")
    command = (
        'echo "$GITHUB_PAT"; echo "$DATABASE_URL" > url.txt; printf "x%s" "$GITHUB_PAT" | base64 > b64.txt; '
        'printf "%s %s" "$GITHUB_PAT" "$GIT_AUTHOR_NAME" > keys.bin'
    )

    def leaking(asked: Asked) -> Turn:
        if asked.results:
            return Turn('ANSWER 42, with ghp "PLANTED" 1')
        return Turn('I print ghp "PLANTED" 1.', (Call("Bash", {"command": command, "cmd": command}),))

    with Run.open(tmp_path / "run") as run:
        async with target_of(agent, tmp_path, script=leaking, env=names, run=run) as (target, server):
            done = await target.run(SKILL, task(), 0)
        assert b"PLANTED" in server.asked[-1].raw, "the agent itself works with the value"
        left = {path: file.read() for path, file in done.artifacts.items()}
        assert left["url.txt"] == b"postgres://me:[key]@db/x\n"
        assert left["keys.bin"] == b"[key] Grace Hopper"
        assert done.answer.startswith("ANSWER 42, with [key]")
        stored = repr((done.turns, done.diff, done.error, left)) + done.diff
        stored += repr([value for _, value, _ in run.memos("target exchange")])
        assert done.stream is not None
        stored += done.stream.read().decode()
    assert "PLANTED" not in stored
    assert b"PLANTED" not in base64.b64decode(left["b64.txt"].replace(b"[key]", b""), validate=False)


async def test_a_failure_shows_no_key_that_the_user_passes_on(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-PLANTED")
    (programs / "script").write_text('#!/bin/sh\necho "cannot log in with $MY_API_KEY" >&2\nexit 3\n')
    (programs / "script").chmod(0o755)
    async with target_of("command", tmp_path, env=("MY_API_KEY",)) as (target, _):
        with pytest.raises(CallError, match=r"cannot log in with \[key\]"):
            await target.run(Skill(""), task(), 0)


async def test_files_that_the_agent_deleted_are_named(programs: Path, tmp_path: Path) -> None:
    def tidy(asked: Asked) -> Turn:
        command = "rm old.txt; mkdir sub; mv kept.txt sub/"
        return Turn("Done.") if asked.results else Turn("", (Call("Bash", {"command": command, "cmd": command}),))

    async with target_of("codex", tmp_path, script=tidy) as (target, _):
        given = {"old.txt": b"1", "kept.txt": b"2", "same.txt": b"3"}
        done = await target.run(Skill(""), Task("s1", (user("Tidy up."),), given), 0)
    assert (done.deleted, list(done.artifacts)) == (("kept.txt", "old.txt"), ["sub/kept.txt"])


@pytest.mark.slow
@pytest.mark.parametrize("agent", ALL)
async def test_an_agent_in_the_sandbox_cannot_read_the_answers(agent: str, programs: Path, tmp_path: Path) -> None:
    (tmp_path / "project" / "evals").mkdir(parents=True)
    secret = tmp_path / "project" / "evals" / "evals.json"
    secret.write_text("PLANTED")
    outside = tmp_path / "project" / "outside.txt"

    def thief(asked: Asked) -> Turn:
        command = f"cat {secret}; echo x > {outside}; cat given.txt"
        if not asked.results:
            return Turn(calls=(Call("Bash", {"command": command, "cmd": command}),))
        return Turn("ANSWER 42")

    options: dict[str, Any] = {"script": thief, "sandbox": "auto"}
    async with target_of(agent, tmp_path / "project", **options) as (target, server):
        if target.sandbox.level == "none":
            pytest.skip("no sandbox holds here")
        trajectory = await target.run(SKILL, Task("s1", (user("go"),), {"given.txt": b"from the sample"}), 0)
    assert trajectory.answer == "ANSWER 42"
    assert b"PLANTED" not in server.asked[-1].raw
    assert b"from the sample" in server.asked[-1].raw
    assert not outside.exists()


# -- before anything is spent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "claude-code/sonnet"}, "alias"),
        ({"model": "codex/gpt-5.5", "env": ("NOT_SET_ANYWHERE",)}, "NOT_SET_ANYWHERE"),
        ({"model": "command:./missing.sh {prompt_file}"}, "there is no command `./missing.sh`"),
        ({"model": "command:'open"}, "close the quote"),
        ({"model": "acp:no-such-agent --acp"}, "there is no command `no-such-agent`"),
        ({"model": "codex/gpt-5.5", "sandbox": "moat"}, "moat"),
        ({"model": "codex/gpt-5.5", "key_env": "NOT_SET_KEY"}, "NOT_SET_KEY"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    options: dict[str, Any], words: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(UsageError, match=words):
        make_agent(TargetConfig(**options), tmp_path)


def test_a_missing_program_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for agent in CLIS:
        with pytest.raises(UsageError, match="npm install -g"):
            make_agent(TargetConfig(model=f"{agent}/openai@http://127.0.0.1:1/v1/m"), tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "plugin:echo", "max_turns": 3}, "max_turns"),
        ({"model": "codex/gpt-5.5", "tool_calls": "text"}, "tool_calls"),
        ({"model": "openai/gpt-5.5", "activation": "native"}, "needs an agent"),
        ({"model": "codex/gpt-5.5", "temperature": 0.0}, "temperature"),
        ({"model": "codex/gpt-5.5", "hedge": True}, "hedge"),
        ({"model": "codex/gpt-5.5", "tools": ("bash",)}, "tools"),
        ({"model": "local/smollm2-135m", "tools": ("bash",), "tool_calls": "native"}, "needs an endpoint"),
        ({"model": "codex/gpt-5.5", "upstream": "openai/gpt-5.5"}, "upstream"),
        ({"model": "acp:goose acp", "max_usd": 1.0}, "target.upstream"),
        ({"model": "acp:goose acp", "upstream": "local/smollm2-135m"}, "openai or anthropic"),
        ({"model": "openai/gpt-5.5", "env": ("A",)}, "env"),
        ({"model": "openai/gpt-5.5", "gateway": False}, "gateway"),
        ({"model": "opencode/openai/gpt-5.5", "gateway": False}, "gateway is an option of claude-code and codex"),
        ({"model": "command:./x", "gateway": False}, "gateway"),
        ({"model": "codex/gpt-5.5", "gateway": False, "max_turns": 3}, "leave them out, or leave gateway out"),
        ({"model": "codex/gpt-5.5", "gateway": False, "key_env": "K"}, "no URL and no key_env"),
        ({"model": "codex/openai@http://127.0.0.1:8000/v1/m", "gateway": False}, "no URL and no key_env"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TargetConfig(**options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Just text.", "name and description"),
        ("---\nname: demo\n---\n\nText.", "no usable description"),
        ("---\nname: My Skill\ndescription: d\n---\n\nText.", "no usable name"),
        ("---\nname: [\n---\n\nText.", "frontmatter|line"),
    ],
)
def test_a_skill_that_cannot_be_listed_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        named_skill(Skill.parse(text, "my-skill"), "forced", "codex")


@pytest.mark.parametrize(
    ("agent", "mode", "text", "found"),
    [
        ("claude-code", "forced", "The task is $ARGUMENTS.", "$ARGUMENTS"),
        ("claude-code", "native", "First $ARGUMENTS[0].", "$ARGUMENTS"),
        ("claude-code", "native", "Today is !`date`.", "!`date`"),
        ("claude-code", "forced", "Run\n\n```!\ndate\n```\n", "```!"),
        ("claude-code", "forced", "See ${CLAUDE_SKILL_DIR}/x.", "${CLAUDE_SKILL_DIR}"),
        ("claude-code", "forced", r"A lamp costs \$5.", "\\$"),
        ("opencode", "forced", "A lamp costs $5.", "$5"),
        ("opencode", "forced", "Today is !`date`.", "!`date`"),
    ],
)
def test_a_body_that_the_agent_would_rewrite_is_refused(agent: str, mode: Any, text: str, found: str) -> None:
    skill = Skill.parse(f"---\nname: demo\ndescription: d\n---\n\n{text}\n")
    with pytest.raises(UsageError, match=re.escape(f'{agent} replaces "{found}" in the body')):
        named_skill(skill, mode, agent)
    assert named_skill(skill, "inline", agent).body == skill.body
    assert named_skill(skill, "forced", "codex").body == skill.body


@pytest.mark.parametrize(
    "text", ["A lamp costs $5, `awk '{print $1}'`.", "wow!`x` and $HOME, $(date), ${X}", "^a$ `!` $ 1"]
)
@pytest.mark.parametrize("mode", ["forced", "native"])
def test_claude_code_gets_a_body_that_it_does_not_rewrite(text: str, mode: Any, tmp_path: Path) -> None:
    """In `forced`, $1 would be a word of the task, and \\$1 arrives as $1."""
    skill = named_skill(Skill.parse(f"---\nname: demo\ndescription: for $1\n---\n\n{text}\n"), mode, "claude-code")
    ws = Workspace(tmp_path, tmp_path, tmp_path, tmp_path, {})
    job = AgentJob("claude-code", "claude", "do it", skill, mode, {}, "", "", "m", 9.0, "none", tmp_path, "k")
    AGENTS["claude-code"].install(job, ws)
    written = (tmp_path / "skill/.claude/skills/demo/SKILL.md").read_text()
    assert written.replace("\\$", "$") == skill.files["SKILL.md"].decode()
    assert ("\\$" in written) == (mode == "forced" and bool(re.search(r"\$\d", text)))


def test_inline_needs_neither_name_nor_description() -> None:
    assert named_skill(Skill.parse("Just text.", "my skill"), "inline", "codex").body == "Just text."


async def test_a_cancelled_rollout_counts_the_exchanges_that_are_paid(programs: Path, tmp_path: Path) -> None:
    (programs / "script").write_text(
        "#!/bin/sh\n"
        f"{sys.executable} -c 'import os, urllib.request as u; u.urlopen(u.Request("
        'os.environ["OPENAI_BASE_URL"] + "/chat/completions", b"{\\"model\\": \\"m\\", \\"messages\\": [{'
        '\\"role\\": \\"user\\", \\"content\\": \\"x\\"}]}"))\'; sleep 30\n'
    )
    (programs / "script").chmod(0o755)
    with Run.open(tmp_path / "run") as run:
        counted: list[Usage] = []
        async with target_of("command", tmp_path, run=run) as (target, _):
            target.spend = counted.append
            rolling = asyncio.create_task(target.run(Skill(""), task(), 0))
            while "target exchange" not in run.usage:
                assert not rolling.done(), rolling.result()
                await asyncio.sleep(0.02)
            rolling.cancel()
            await asyncio.wait([rolling])
        assert rolling.cancelled()
        assert [usage.calls for usage in counted] == [1]


async def test_time_that_runs_out_while_a_failed_call_is_tried_again_is_no_result(
    programs: Path, tmp_path: Path
) -> None:
    ask = (
        f"{sys.executable} -c 'import os, urllib.request as u; u.urlopen(u.Request("
        'os.environ["OPENAI_BASE_URL"] + "/chat/completions", b"{\\"model\\": \\"m\\", \\"messages\\": [{'
        '\\"role\\": \\"user\\", \\"content\\": \\"x\\"}]}"))\'\n'
    )
    (programs / "script").write_text(f"#!/bin/sh\n{ask}echo half an answer\n{ask}")
    (programs / "script").chmod(0o755)
    busy = Fault(503, {"error": {"message": "busy"}}, {"Retry-After": "20"})
    async with target_of("command", tmp_path, None, *[busy] * 9, timeout_s=1.5) as (target, server):
        with pytest.raises(InfraError, match="busy"):
            await target.run(Skill(""), task(), 0)
        assert len(server.asked) > 1


async def test_time_that_one_hanging_call_used_up_is_no_result_and_the_call_is_counted(
    programs: Path, tmp_path: Path
) -> None:
    ask = (
        f"{sys.executable} -c 'import os, urllib.request as u; u.urlopen(u.Request("
        'os.environ["OPENAI_BASE_URL"] + "/chat/completions", b"{\\"model\\": \\"m\\", \\"messages\\": [{'
        '\\"role\\": \\"user\\", \\"content\\": \\"x\\"}]}"))\'\n'
    )
    (programs / "script").write_text(f"#!/bin/sh\n{ask}echo half an answer\n{ask}")
    (programs / "script").chmod(0o755)
    with Run.open(tmp_path / "run") as run:
        counted: list[Usage] = []
        async with target_of("command", tmp_path, None, Fault(hang=True), timeout_s=4.0, run=run) as (
            target,
            server,
        ):
            target.spend = counted.append
            with pytest.raises(InfraError, match=r"of its 4 s for one answer of its model: raise target\.timeout_s"):
                await target.run(Skill(""), task(), 0)
            assert len(server.asked) == 2
        assert [usage.calls for usage in counted] == [2]
        assert sum(usage.calls for usage in run.usage.values()) == 2


# -- identity


def test_the_fingerprint_covers_what_changes_the_behaviour(programs: Path, tmp_path: Path) -> None:
    def made(agent: str = "codex", **options: Any) -> str:
        return make_agent(config(agent, "http://127.0.0.1:1", **options), tmp_path).fingerprint

    (programs / "script").write_text("#!/bin/sh\n")
    before = made("command")
    prints = [made(), made("claude-code"), made(activation="native"), made(max_turns=3), before]
    (programs / "script").write_text("#!/bin/sh\necho other\n")
    prints.append(made("command"))
    assert len(set(prints)) == len(prints)
    assert made() == made(timeout_s=5.0, workers=3)


async def test_a_job_is_plain_data_and_needs_nothing_else(programs: Path, tmp_path: Path) -> None:
    job = AgentJob(
        agent="command",
        command="sh -c 'cat {prompt_file}; echo changed > new.txt'",
        prompt="the task",
        skill=None,
        activation="forced",
        files={"a.txt": b"1"},
        url="",
        token="",
        model="",
        timeout_s=20.0,
        sandbox="none",
        parent=tmp_path / "w",
        key="k",
    )
    job = replace(job, command=job.command.replace("sh", "/bin/sh", 1))
    result = pickle.loads(pickle.dumps(await run_job(pickle.loads(pickle.dumps(job)))))
    assert result.end.answer == "the task"
    assert result.changes.files == {"new.txt": b"changed\n"}
    assert list((tmp_path / "w").iterdir()) == []


async def test_a_key_that_the_user_passes_on_is_not_kept_with_the_output(tmp_path: Path) -> None:
    job = AgentJob(
        agent="command",
        command="/bin/sh -c 'echo $MY_API_KEY $REGION; echo $MY_API_KEY $db_password >&2'",
        prompt="",
        skill=None,
        activation="forced",
        files={},
        url="",
        token="",
        model="",
        timeout_s=20.0,
        sandbox="none",
        parent=tmp_path / "w",
        key="k",
        env={"MY_API_KEY": "sk-PLANTED", "db_password": "hunter-two", "REGION": "eu-central-1"},
    )
    result = await run_job(job)
    assert result.end.answer == "[key] eu-central-1"
    assert (result.stream, result.stderr) == (b"[key] eu-central-1\n", b"[key] [key]\n")
    with pytest.raises(InfraError) as failed:
        await run_job(replace(job, command="/bin/sh -c 'echo $MY_API_KEY >&2; exit 3'"))
    assert "PLANTED" not in str(failed.value)


def test_a_conversation_is_written_out_and_images_become_files() -> None:
    image = Image(b"png", "image/png")
    text, files = prompt_of((system("Rules."), user("One?"), Message("assistant", "Yes."), user("Two?", (image,))))
    assert text.startswith("Rules.\n\nUser: One?\n\nAssistant: Yes.\n\nUser: Two?")
    assert files == {"attached/image-1.png": b"png"}
    assert prompt_of((user("/etc is full"),)) == ("/etc is full", {})


def test_every_agent_has_what_the_protocol_asks() -> None:
    assert {"claude-code", "codex", "opencode", "acp", "command"} == set(AGENTS)
    assert all(agent.needs and agent.dialect for agent in AGENTS.values())


def test_a_program_behind_a_link_can_be_read_with_its_neighbours(tmp_path: Path) -> None:
    """As npm installs it. The client of an `acp:` agent is the command, so its program is no word of the command."""
    package = tmp_path / "node_modules" / "agent" / "bin"
    package.mkdir(parents=True)
    (package / "agent").write_text("#!/bin/sh\n")
    (tmp_path / "node_modules" / ".bin").mkdir()
    link = tmp_path / "node_modules" / ".bin" / "agent"
    link.symlink_to(package / "agent")
    command = Command(("python3", "client.py"), tmp_path, {"PATH": "/usr/bin"})
    assert tmp_path / "node_modules" in readable(command, (link,))
    assert tmp_path / "node_modules" not in readable(command)


@pytest.mark.parametrize("manager", [".pyenv", "share/mise"])
def test_the_programs_behind_the_shims_of_a_version_manager_can_be_read(manager: str, tmp_path: Path) -> None:
    (tmp_path / manager / "shims").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    command = Command(("x",), tmp_path, {"PATH": f"{tmp_path / manager / 'shims'}:{tmp_path / 'bin'}"})
    assert tmp_path / manager in readable(command)
    assert tmp_path not in readable(command)


@pytest.mark.parametrize(
    ("sign", "shown"), [("", False), ("pyvenv.cfg", True), ("lib/node_modules/x", True), ("package.json", False)]
)
@pytest.mark.parametrize("place", ["", "tools/"])
def test_libraries_of_the_project_are_shown_if_they_belong_to_an_installation(
    place: str, sign: str, shown: bool, tmp_path: Path
) -> None:
    """Otherwise `lib` and `share` beside a `bin` of the PATH are folders of the project, such as its answers."""
    prefix = tmp_path / place
    for folder in ("bin", "lib", "share"):
        (prefix / folder).mkdir(parents=True, exist_ok=True)
    if sign:
        (prefix / sign).parent.mkdir(parents=True, exist_ok=True)
        (prefix / sign).write_text("")
    command = Command(("x",), tmp_path, {"PATH": f"{prefix}/bin"})
    found = {path.name for path in readable(command, hidden=(tmp_path,)) if path.is_relative_to(tmp_path)}
    assert found == ({"bin", "lib", "share"} if shown else {"bin"})
    assert {path.name for path in readable(command) if path.is_relative_to(tmp_path)} == {"bin", "lib", "share"}


@pytest.mark.parametrize("level", ["bwrap", "landlock"])
async def test_a_program_of_the_project_can_be_read_and_the_project_cannot(level: str, tmp_path: Path) -> None:
    """Also if the PATH names the project itself, or one of its folders."""
    try:
        sandbox = probe(level)
    except UsageError as error:
        pytest.skip(str(error))
    for folder in ("project/bin", "work"):
        (tmp_path / folder).mkdir(parents=True)
    project, root = tmp_path / "project", tmp_path / "work"
    for name in ("answers.txt", "agent.sh", "bin/tool.sh"):
        (project / name).write_text(f"echo {name.upper()}")
    ws = Workspace(root, root, root, root)
    script = "; ".join(f"cat {project}/{name}; echo" for name in ("answers.txt", "agent.sh", "bin/tool.sh"))
    path = f"{project}{os.pathsep}{project}/bin{os.pathsep}{os.environ['PATH']}"
    command = Command(("/bin/sh", "-c", script), root, {"PATH": path})
    hides = Policy((root,), hidden=(project,), connect=())
    rights = reading(hides, ws, readable(command, (project / "agent.sh",)))
    printed = (await sandbox.run(command, rights, Limits(20))).stdout.decode()
    assert printed.split("\n") == ["", "echo AGENT.SH", "echo BIN/TOOL.SH", ""]


@pytest.mark.parametrize("level", ["bwrap", "landlock"])
async def test_a_workspace_inside_a_hidden_folder_can_be_read_where_it_cannot_be_written(
    level: str, tmp_path: Path
) -> None:
    try:
        sandbox = probe(level)
    except UsageError as error:
        pytest.skip(str(error))
    root = tmp_path / "project" / "work"
    (root / "answer").mkdir(parents=True)
    (root / "README.md").write_text("the question")
    (tmp_path / "project" / "answers.txt").write_text("hidden")
    script = "cat README.md; cat ../answers.txt; echo x > README.md; echo ok > answer/a; cat answer/a"
    command = Command(("/bin/sh", "-c", script), root, {"PATH": os.environ["PATH"]})
    confined = Policy((root / "answer",), hidden=(tmp_path / "project",), connect=())
    rights = reading(confined, Workspace(root, root, root, root), readable(command))
    assert (await sandbox.run(command, rights, Limits(20))).stdout.decode() == "the questionok\n"
    assert (root / "README.md").read_text() == "the question"
