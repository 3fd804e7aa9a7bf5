"""The real command lines of agents, in the sandbox and behind the gateway, in front of a scripted model."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certificates import certificate
from desk import BEGIN, desk, samples, text_of
from real_agents import CLIS, call_of
from skilltune import Env
from skilltune.api import atrain
from skilltune.config import OptimizerConfig, TargetConfig
from skilltune.envs.task import Task
from skilltune.errors import InfraError
from skilltune.execute import Here
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.clients import Clients
from skilltune.models import Request, Schema, system, user
from skilltune.optimizer.agent import ByAgent
from skilltune.optimizer.files import ANSWERS
from skilltune.optimizer.render import Part
from skilltune.optimizer.stage import SCHEMAS, Brief
from skilltune.skill import Skill
from skilltune.targets.agents.target import AgentTarget, make_agent
from skilltune.targets.makers import make_agent_target
from skilltune.usage import Usage
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
async def test_an_agent_trusts_a_gateway_with_a_certificate_of_its_own(kind: str, home: Path) -> None:
    tls = certificate(home.parents[1])
    async with Upstream(script) as server:
        target = agent(kind, server.url, home)
        target.executor = Here(tls=tls)
        trajectory = await roll(target)
        await target.aclose()
    assert (trajectory.outcome, trajectory.answer) == ("ok", "The answer is 42."), trajectory.error


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


@pytest.mark.parametrize("kind", CLIS)
@pytest.mark.parametrize("by_file", [False, True], ids=["message", "file"])
async def test_an_agent_answers_as_the_optimizer(kind: str, by_file: bool, home: Path) -> None:
    """It reads the files of a question, cannot change them, and answers; no foreign settings are in its requests."""
    said = {"notes": "Numbers help."}
    look = "cat README.md skill.md; echo x >> skill.md; echo y > more.md; ls"
    write = f"printf '%s' '{json.dumps(said)}' > answer/answer.json"

    def mind(asked: Asked) -> Turn:
        if not asked.body.get("tools"):
            return Turn("A title")
        if asked.results < 2:
            return Turn("I read.", calls=(call_of(asked, (look, write if by_file else "true")[asked.results]),))
        return Turn("Done." if by_file else json.dumps(said))

    request = Request((system("Take notes."), user("x")), schema=Schema("notes", SCHEMAS["notes"]))
    brief = Brief(request, (Part("skill", "# Desk: SKILLTEXT"),))
    async with Upstream(mind) as server:
        model = f"anthropic@{server.url}/m" if kind == "claude-code" else f"openai@{server.url}/v1/m"
        cfg = OptimizerConfig(model=f"{kind}/{model}")
        with Run.open(home / "run") as run:
            clients = Clients((cfg,), run, Budget(Limits(), Usage()))
            worker = make_agent_target(cfg.as_agent(), clients, home, role="optimizer", writable=(ANSWERS,))
            answers = ByAgent(worker, run)
            assert await answers.ask(brief, lambda data: data["notes"]) == said["notes"]
            assert await answers.ask(brief, lambda data: data["notes"]) == said["notes"]
            await worker.aclose()
            assert run.paid("optimizer")[1].calls == len(server.asked) == 3
        shutil.rmtree(home / "run")
    seen = server.asked[2].raw.decode()
    assert "LEAKED" not in seen
    assert "SKILLTEXT" in seen
    assert "more.md\\n" not in seen.replace("> more.md", "")


@pytest.mark.parametrize("kind", ["claude-code", "codex"])
async def test_an_agent_trains_a_skill(
    kind: str, home: Path, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """From the start skill to a certificate: a chat model does the tasks, the agent proposes the rules."""
    (tmp_path / "SKILL.md").write_text("# Desk\n\nAnswer each ticket with its code.\n")
    async with Upstream(desk) as server:
        model = f"anthropic@{server.url}/m" if kind == "claude-code" else f"openai@{server.url}/v1/m"
        result = await atrain(
            tmp_path / "SKILL.md",
            Env(samples(60), root=tmp_path),
            {"model": f"openai@{server.url}/v1/m", "workers": 8},
            optimizer={"model": f"{kind}/{model}", "workers": 2},
            run=tmp_path / "run",
            train={"epochs": 1, "batch_size": 12, "minibatch_size": 6},
            gate={"screen": 12},
        )
    assert {"PRN-1", "SCR-2"} <= set(re.findall(r"[A-Z]{3}-\d", result.best.text))
    assert result.certificate is not None
    assert result.certificate.after > result.certificate.before
    asked = [seen for seen in server.asked if BEGIN in text_of(seen)]
    assert not any("LEAKED" in text_of(seen) for seen in asked)
    record_testsuite_property(f"{kind} as the optimizer", f"{len(asked)} requests")


EXAMPLES = {"claude-code.toml": "claude-opus-5", "codex.toml": "gpt-5.5", "opencode.toml": ""}


@pytest.mark.parametrize("name", EXAMPLES)
async def test_an_example_of_the_documentation_works(name: str, home: Path, tmp_path: Path) -> None:
    """The config as it is printed, with the scripted model in place of the vendor's: the agent uses the skill."""
    page = (Path(__file__).parents[3] / "docs" / "agents.md").read_text(encoding="utf-8")
    found = re.search(rf'```toml title="{re.escape(name)}"\n(.*?)```', page, re.DOTALL)
    assert found is not None
    skill = tmp_path / "skills" / "invoice-totals"
    skill.mkdir(parents=True)
    rules = "- The code of a printer is PRN-1.\n- The code of a screen is SCR-2.\n"
    (skill / "SKILL.md").write_text(f"---\nname: invoice-totals\ndescription: Enters codes.\n---\n\n{rules}")
    rows = [{"id": s.id, "input": s.input, "target": s.target} for s in samples(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with Upstream(desk) as server:
        dialect = f"anthropic@{server.url}/m" if name == "claude-code.toml" else f"openai@{server.url}/v1/m"
        text = found[1].replace("http://127.0.0.1:8000", server.url)
        if vendor := EXAMPLES[name]:
            text = text.replace(f"/{vendor}", f"/{dialect}").replace("usd = 20.0", "calls = 200")
            text = re.sub(r"^max_usd.*\n", "", text, flags=re.MULTILINE)  # a scripted model has no price
        (tmp_path / "skilltune.toml").write_text(text)
        program = [sys.executable, "-m", "skilltune.cli.main"]
        config = str(tmp_path / "skilltune.toml")
        checked = await asyncio.to_thread(subprocess.run, [*program, "check", config], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        scoring = [*program, "eval", config, "--only", "with", "--json"]
        scored = await asyncio.to_thread(subprocess.run, scoring, capture_output=True, text=True)
        assert scored.returncode == 0, scored.stdout + scored.stderr
    assert '"score": 1.0' in scored.stdout, scored.stdout
