"""The real command lines of agents, in the sandbox and behind the gateway, in front of a scripted model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from real_agents import CLIS, call_of
from skilltune.config import TargetConfig
from skilltune.envs.task import Task
from skilltune.errors import InfraError
from skilltune.journal.run import Run
from skilltune.models import user
from skilltune.skill import Skill
from skilltune.targets.agents.target import AgentTarget, make_agent
from upstream import Asked, Call, Turn, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

SKILL = Skill.parse("---\nname: demo\ndescription: SKILLDESC how to answer.\n---\n\nSKILLBODY: answer with 42.\n")
SHELL = "echo done > out.txt; cat out.txt"


def script(asked: Asked) -> Turn:
    if not asked.body.get("tools"):
        return Turn("A title")
    if not asked.results:
        return Turn("I begin.", calls=(call_of(asked, SHELL),))
    return Turn("The answer is 42." if b"SKILLBODY" in asked.raw else "No idea.")


def agent(kind: str, url: str, root: Path, *, run: Run | None = None, dialect: str = "", **options: Any) -> AgentTarget:
    forms = {"chat": f"openai@{url}/v1/m", "messages": f"anthropic@{url}/m"}
    model = forms[dialect or ("messages" if kind == "claude-code" else "chat")]
    return make_agent(TargetConfig(model=f"{kind}/{model}", **options), root, run=run)


async def roll(target: AgentTarget, text: str = "What is the answer?", attempt: int = 0) -> Any:
    return await target.run(SKILL, Task("s1", (user(text),), {"in.txt": b"given\n"}), attempt)


@pytest.mark.parametrize("kind", CLIS)
@pytest.mark.parametrize("activation", ["forced", "native", "inline"])
async def test_the_skill_is_seen_and_nothing_else(kind: str, activation: str, home: Path) -> None:
    async with Upstream(script) as server:
        target = agent(kind, server.url, home, activation=activation)
        trajectory = await roll(target)
        await target.aclose()
    assert trajectory.outcome == "ok", trajectory.error
    assert trajectory.answer == ("No idea." if activation == "native" else "The answer is 42.")
    assert {path: file.read() for path, file in trajectory.artifacts.items()} == {"out.txt": b"done\n"}
    assert (trajectory.skill_offered, trajectory.skill_loaded) == (True, activation != "native")
    first = server.asked[0].raw.decode()
    assert "LEAKED" not in first
    assert ("SKILLBODY" in first, "SKILLDESC" in first) == (activation != "native", activation != "inline")


@pytest.mark.parametrize("activation", ["forced", "native", "inline"])
async def test_claude_code_reads_dollars_as_they_stand(activation: str, home: Path) -> None:
    """`/NAME TASK` would put words of the task in place of $0, $1, …"""

    def loading(asked: Asked) -> Turn:
        if activation == "native" and not asked.results:
            return Turn(calls=(Call("Skill", {"skill": "demo"}),))
        return Turn("Done.")

    text = SKILL.text + "A lamp costs $1 or $12.50, US$3; `awk '{print $0, $2}'`, wow!`x`, $HOME.\n"
    async with Upstream(loading) as server:
        target = agent("claude-code", server.url, home, activation=activation)
        trajectory = await target.run(Skill.parse(text), Task("s1", (user("one two three four"),)), 0)
        await target.aclose()
    assert (trajectory.outcome, trajectory.skill_loaded) == ("ok", True)


@pytest.mark.parametrize("kind", CLIS)
async def test_a_model_that_loads_the_skill_is_seen(kind: str, home: Path) -> None:
    """`native`: the model reads the skill by the agent's own means."""

    def loading(asked: Asked) -> Turn:
        offered = [tool.get("function", tool).get("name", "") for tool in asked.body["tools"]]
        if asked.results:
            return Turn("The answer is 42." if b"SKILLBODY" in asked.raw else "No idea.")
        if "exec_command" in offered:
            return Turn(calls=(call_of(asked, "cat $CODEX_HOME/skills/demo/SKILL.md"),))
        return Turn(
            calls=(Call("Skill", {"skill": "demo"}) if "Skill" in offered else Call("skill", {"name": "demo"}),)
        )

    async with Upstream(loading) as server:
        target = agent(kind, server.url, home, activation="native")
        trajectory = await roll(target)
        await target.aclose()
    assert (trajectory.skill_loaded, trajectory.answer) == (True, "The answer is 42."), trajectory.turns


@pytest.mark.parametrize("kind", ["claude-code", "codex"])
@pytest.mark.parametrize("dialect", ["chat", "messages"])
async def test_an_agent_works_in_its_own_and_in_another_dialect(kind: str, dialect: str, home: Path) -> None:
    async with Upstream(script) as server:
        target = agent(kind, server.url, home, dialect=dialect)
        trajectory = await roll(target)
        await target.aclose()
    assert (trajectory.outcome, trajectory.answer) == ("ok", "The answer is 42.")
    assert [turn.text for turn in trajectory.turns if turn.role == "tool"]


@pytest.mark.parametrize("kind", CLIS)
async def test_a_time_out_leaves_no_process(kind: str, home: Path) -> None:
    def stuck(asked: Asked) -> Turn:
        return Turn("I wait.", calls=(call_of(asked, "(setsid sleep 600 &); sleep 600"),))

    began = time.monotonic()
    async with Upstream(stuck) as server:
        target = agent(kind, server.url, home, timeout_s=30.0 if kind == "opencode" else 12.0)
        trajectory = await roll(target)
        await target.aclose()
    assert (trajectory.outcome, trajectory.answer) == ("agent_limit", "I wait.")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("kind", ["claude-code", "codex"])
async def test_eight_at_once_all_start(kind: str, home: Path) -> None:
    async with Upstream(script) as server:
        target = agent(kind, server.url, home, timeout_s=120.0)
        results = await asyncio.gather(*(roll(target, attempt=n) for n in range(8)), return_exceptions=True)
        await target.aclose()
    assert [getattr(result, "answer", result) for result in results] == ["The answer is 42."] * 8


@pytest.mark.parametrize("kind", CLIS)
async def test_a_limit_of_turns_ends_the_work(kind: str, home: Path) -> None:
    def forever(asked: Asked) -> Turn:
        return Turn(f"Step {asked.results}.", calls=(call_of(asked, f"echo {asked.results}"),))

    async with Upstream(forever) as server:
        target = agent(kind, server.url, home, max_turns=3)
        trajectory = await roll(target)
        await target.aclose()
    assert (trajectory.outcome, trajectory.answer) == ("agent_limit", "Step 2.")
    assert len(server.asked) == 3


@pytest.mark.parametrize("kind", CLIS)
async def test_a_killed_rollout_pays_only_for_what_is_new(
    kind: str, home: Path, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Two lives of one run: the first is ended while the agent works on the third of five answers."""

    def long(asked: Asked) -> Turn:
        if asked.results == 4:
            return Turn("The answer is 42.")
        return Turn(f"Step {asked.results}.", calls=(call_of(asked, f"sleep 1; echo {asked.results}"),))

    async with Upstream(long) as server:
        with Run.open(tmp_path / "run") as run:
            target = agent(kind, server.url, home, run=run)
            first = asyncio.create_task(roll(target))
            while len(server.asked) < 3:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.4)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await target.aclose()
        before = len(server.asked)
        with Run.open(tmp_path / "run") as run:
            target = agent(kind, server.url, home, run=run)
            trajectory = await roll(target)
            await target.aclose()
            assert run.usage["target exchange"].calls == len(server.asked)
    again = len(server.asked) - before
    record_testsuite_property(f"{kind} replayed", f"{5 - again} of {before} paid exchanges")
    assert (trajectory.answer, trajectory.usage.calls) == ("The answer is 42.", 5)
    assert again == 5 - before


async def test_an_endpoint_that_is_away_is_no_score(home: Path) -> None:
    target = agent("codex", "http://127.0.0.1:9", home, timeout_s=20.0)
    with pytest.raises(InfraError):
        await roll(target)
    await target.aclose()
