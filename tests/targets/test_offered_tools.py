"""Tools that an environment offers: every loop works with them, or refuses before anything is spent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from skilltune import Env, Rollout, Sample, Score, aevaluate
from skilltune.build import build_parts
from skilltune.config import make_config
from skilltune.envs import Task, as_env
from skilltune.envs.tools import LINES, Corpus, Documents, Tools, read_lines
from skilltune.errors import InfraError, UsageError
from skilltune.execute import Elsewhere
from skilltune.journal.run import Run
from skilltune.models import Tool, user
from skilltune.sandbox import Command
from skilltune.skill import Skill
from skilltune.targets.agents import AGENTS
from skilltune.targets.agents.job import AgentJob, policy
from skilltune.targets.agents.target import AgentTarget
from skilltune.targets.metered import MeteredTarget
from skilltune.targets.text_calls import call_in, explained
from skilltune.targets.tools import ToolsTarget
from skilltune.workspace import open_workspace
from skilltune.workspace.tools import ToolError, text_tool
from upstream import Asked, Call, Fault, Turn, Upstream, turns

pytestmark = pytest.mark.anyio
SKILL = Skill.parse("Count to three.")
COUNT = text_tool("count", "Add to the counter.", step="a number")


class Counter(Tools):
    """A game: it is over at three. "break" is a fault of its own."""

    decides = True
    alive = 0  # open counters of all rollouts

    def __init__(self, task: Task) -> None:
        self.total = 0

    @property
    def offered(self) -> tuple[Tool, ...]:
        return (COUNT,)

    @property
    def over(self) -> bool:
        return self.total >= 3

    async def __aenter__(self) -> Counter:
        Counter.alive += 1
        return self

    async def __aexit__(self, *failure: object) -> None:
        Counter.alive -= 1

    async def call(self, name: str, given: Mapping[str, str]) -> str:
        if given["step"] == "break":
            raise RuntimeError("the engine is gone")
        if not given["step"].isdecimal():
            raise ToolError(f"{given['step']} is no number")
        self.total += int(given["step"])
        return f"the counter is at {self.total}"

    def left(self) -> Mapping[str, bytes]:
        return {"counter.txt": str(self.total).encode()}


def counted(sample: Sample, rollout: Rollout) -> Score:
    total = int(rollout.artifact("counter.txt"))
    return Score(float(total == 3), f"it is at {total}")


def game(**options: Any) -> Env:
    rows = [{"id": str(n), "input": f"Game {n}: count to three."} for n in range(12)]
    return Env(rows, counted, tools=Counter, **options)


class Bench:
    """The target of a run over an environment, in front of a scripted model."""

    def __init__(self, folder: Path, url: str, env: Env | None = None, **options: Any) -> None:
        target = {"model": f"openai@{url}/v1/m", **options}
        cfg = make_config({"target": target, "optimizer": {"model": f"openai@{url}/v1/m"}})
        self.env, self.run = env or game(), Run.open(folder / "run")
        try:
            self.parts = build_parts(cfg, self.run, folder, env=self.env, skill=SKILL)
        except BaseException:
            self.run.close()
            raise
        self.target = self.parts.target

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.parts.aclose()
        self.run.close()

    async def roll(self, attempt: int = 0) -> Any:
        return await self.target.run(SKILL, self.env.task(self.env.samples[0]), attempt)


def count(step: object) -> Turn:
    return Turn(calls=(Call("count", {"step": str(step)}),))


async def test_the_loop_offers_them_beside_its_own_and_each_rollout_has_its_own_state(tmp_path: Path) -> None:
    cheat = Call("bash", {"command": "echo 99 > counter.txt; echo made > own.txt"})
    script = turns(Turn(calls=(cheat,)), count(1), count("x"), count(2), Turn("never: the game is over"))
    async with (
        Upstream(script) as server,
        Bench(tmp_path, server.url, tools=["bash"], sandbox="none", max_turns=9) as bench,
    ):
        first, second = await asyncio.gather(bench.roll(0), bench.roll(1))
    offered = [tool["function"]["name"] for tool in server.asked[0].body["tools"]]
    assert offered == ["bash", "count"]
    for done in (first, second):
        assert done.outcome == "ok"
        said = [turn.text for turn in done.turns if turn.role == "tool"]
        assert said[1:] == ["the counter is at 1", "[error]\nx is no number", "the counter is at 3"]
        left = {path: file.read() for path, file in done.artifacts.items()}
        assert left == {"counter.txt": b"3", "own.txt": b"made\n"}  # the environment's file counts
    assert (Counter.alive, len(server.asked)) == (0, 8)


async def test_a_fault_of_the_environment_is_no_observation_and_its_cost_is_counted(tmp_path: Path) -> None:
    async with Upstream(turns(count(1), count("break"))) as server, Bench(tmp_path, server.url) as bench:
        with pytest.raises(InfraError, match=r'sample "0": the environment\'s tool count failed: .*engine is gone'):
            await bench.roll()
        assert len(server.asked) == 2  # nothing is asked again in a game that is lost
        assert sum(usage.calls for usage in bench.run.usage.values()) == bench.parts.budget.spent.calls == 2
        assert Counter.alive == 0


async def test_a_failed_call_goes_on_in_the_same_game(tmp_path: Path) -> None:
    busy = Fault(503, {"error": {"message": "busy"}})
    async with Upstream(turns(count(1), count(2)), None, busy) as server, Bench(tmp_path, server.url) as bench:
        done = await bench.roll()
    assert [turn.text for turn in done.turns if turn.role == "tool"] == ["the counter is at 1", "the counter is at 3"]


async def test_a_model_without_function_calling_acts_in_its_text(tmp_path: Path) -> None:
    def script(asked: Asked) -> Turn:
        said = [
            "I shall count.",
            "<think><action>9</action>?</think><action>1</action> observed: 3",
            "<ACTION>2</ACTION>",
        ]
        return Turn(said[sum(message["role"] == "assistant" for message in asked.body["messages"])])

    async with Upstream(script) as server, Bench(tmp_path, server.url, tool_calls="text") as bench:
        assert isinstance(bench.target, ToolsTarget)
        done = await bench.roll()
    assert all("tools" not in asked.body for asked in server.asked)
    assert "<action>" in server.asked[0].body["messages"][-1]["content"]
    assert "was no action" in server.asked[1].body["messages"][-1]["content"]
    assert server.asked[2].body["messages"][-1]["content"] == "<observation>\nthe counter is at 1\n</observation>"
    assert (done.outcome, done.artifacts["counter.txt"].read()) == ("ok", b"3")


async def test_the_rollouts_of_a_run_are_scored_by_what_the_tools_left(tmp_path: Path) -> None:
    def script(asked: Asked) -> Turn:
        return count(3 if "Game 0" in asked.raw.decode() else 2) if asked.results < 2 else Turn("I give up.")

    async with Upstream(script) as server, Bench(tmp_path, server.url, max_turns=2) as bench:
        rollouts = await bench.parts.roll(SKILL, bench.env.samples[:2])
    assert [rollout.score.value for rollout in rollouts if rollout.score] == [1.0, 0.0]


def test_a_target_that_would_use_one_state_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"target\.hedge"):
        Bench(tmp_path, "http://127.0.0.1:1", hedge=True)


# -- agents


def agent_of(folder: Path, script: str) -> dict[str, Any]:
    """The options of a target that runs a shell script as the agent."""
    file = folder / "agent.sh"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {"model": f"command:{file} {{prompt_file}}", "activation": "inline"}


async def test_an_agent_works_with_them_by_commands(tmp_path: Path) -> None:
    work = 'cat "$1"; sh ./count 1; sh ./count x; echo 99 > counter.txt; sh ./count "2"; rm -f counter.txt'
    async with Bench(tmp_path, "http://127.0.0.1:1", **agent_of(tmp_path, work)) as bench:
        first, second = await asyncio.gather(bench.roll(0), bench.roll(1))
    for done in (first, second):
        assert "- `sh ./count '…'` Add to the counter. In the quotes: a number" in done.answer
        assert done.answer.endswith("the counter is at 1\n[error]\nx is no number\nthe counter is at 3")
        assert {path: file.read() for path, file in done.artifacts.items()} == {"counter.txt": b"3"}
    assert Counter.alive == 0


async def test_a_fault_of_the_environment_ends_the_agent_without_a_score(tmp_path: Path) -> None:
    work = agent_of(tmp_path, "sh ./count break; sleep 60")
    async with Bench(tmp_path, "http://127.0.0.1:1", **work) as bench:
        with pytest.raises(InfraError, match="the engine is gone"):
            assert isinstance(bench.target, MeteredTarget)
            await bench.target.target.run(SKILL, bench.env.task(bench.env.samples[0]), 0)
    assert Counter.alive == 0


async def test_an_agent_may_not_read_the_samples_and_its_tools_stay_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, project = tmp_path / "data" / "corpus", tmp_path / "project"
    documents.mkdir(parents=True)
    project.mkdir()
    env = Env([{"input": f"{n}?", "target": "1"} for n in range(12)], root=documents.parent, tools=Corpus(documents))
    async with Bench(project, "http://127.0.0.1:1", env, **agent_of(project, "true")) as bench:
        assert isinstance(bench.target, MeteredTarget)
        agent = bench.target.target
        assert isinstance(agent, AgentTarget)
        assert documents.parent in agent.hidden
    workers = Elsewhere(ThreadPoolExecutor(1), (), "ray")
    monkeypatch.setattr("skilltune.build.build_executor", lambda cfg, run, root: workers)
    with pytest.raises(UsageError, match=r"workers\.on=ray: the tools of this environment \(glob, …\)"):
        Bench(project, "http://127.0.0.1:1", env, **agent_of(project, "true"))
    assert workers.counts.sent == 0


async def test_an_agent_cannot_reach_out_of_its_workspace_by_the_folder_of_the_calls(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("PLANTED")
    (tmp_path / "elsewhere").mkdir()
    steps = (
        f"ln -s {tmp_path}/answers.txt .calls/count.1.in",  # a link is read as an empty call
        "mkdir .calls/count.0.in; mkfifo .calls/count.2.in",
        "until [ -f .calls/count.1.out ] && [ -f .calls/count.2.out ]; do sleep 0.02; done",
        "cat .calls/*.out; rm -r .calls",
        f"ln -s {tmp_path}/elsewhere .calls; echo 3 > {tmp_path}/elsewhere/count.3.in; sleep 0.2; echo end",
    )
    async with Bench(tmp_path, "http://127.0.0.1:1", **agent_of(tmp_path, "\n".join(steps)), sandbox="none") as bench:
        done = await bench.roll()
    assert "PLANTED" not in done.answer
    assert done.answer.count(" is no number") == 2
    assert done.artifacts["counter.txt"].read() == b"0"
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["count.3.in"]


def test_two_tools_of_one_name_and_options_without_tools_are_refused(tmp_path: Path) -> None:
    rows = [{"id": str(n), "input": f"{n}", "target": "1"} for n in range(12)]
    with pytest.raises(UsageError, match="a tool glob of its own"):
        Bench(tmp_path, "http://127.0.0.1:1", Env(rows, tools=Corpus(tmp_path)), tools=["glob"], sandbox="none")
    for option in ({"max_turns": 3}, {"tool_calls": "text"}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} is an option of an agent, or"):
            Bench(tmp_path, "http://127.0.0.1:1", Env(rows), **option)


# -- documents


async def test_documents_are_read_by_tools_and_an_agent_reads_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "bulletins"
    (folder / "1970").mkdir(parents=True)
    (folder / "1970/a.txt").write_text("".join(f"line {n}\n" for n in range(1, 1001)))
    (tmp_path / "answers.txt").write_text("PLANTED")
    async with Documents(folder) as documents:
        assert await documents.call("glob", {"pattern": "**/*.txt"}) == "1970/a.txt"
        assert await documents.call("grep", {"pattern": "line 99$"}) == "1970/a.txt:99:line 99"
        text = await documents.call("read", {"path": "1970/a.txt", "start": "601"})
        assert text.splitlines()[0] == "line 601"
        assert text.endswith("[lines 601-1000 of 1,000]")
        for path in ("../answers.txt", "nothing.txt"):
            with pytest.raises(ToolError):
                await documents.call("read", {"path": path})
    for start in ("-1", "0", "9" * 5_000, "٣", ""):
        with pytest.raises(ToolError, match="number of a line"):
            read_lines(folder, "1970/a.txt", start)
    assert len(read_lines(folder, "1970/a.txt", "1").splitlines()) == LINES + 1
    (folder / "wide.txt").write_text(f"{'x' * 999}\n" * 50)
    assert read_lines(folder, "wide.txt", "21").endswith("[lines 21-38 of 50]")  # what a model is shown at once
    env = Env([{"input": "?", "target": "1"}], tools=Corpus(folder))
    known = env.fingerprint
    (folder / "1970/a.txt").write_text("changed")
    assert Env([{"input": "?", "target": "1"}], tools=Corpus(folder)).fingerprint != known
    assert known != Env([{"input": "?", "target": "1"}]).fingerprint
    job = AgentJob(
        "command", "true", "p", None, "inline", {}, "", "", "", 1.0, "none", tmp_path, "k",
        hidden=(tmp_path,), shown=(folder,),
    )  # fmt: skip
    workspace = open_workspace(tmp_path / "w", "k", {})
    allowed = policy(job, workspace, Command(("true",), workspace.work, {}))
    assert folder in (allowed.read or ())
    assert folder in allowed.shown
    assert folder not in allowed.write
    assert str(folder) in AGENTS["claude-code"].command(job, workspace).argv  # else it asks before it reads there
    AGENTS["opencode"].install(replace(job, url="http://127.0.0.1:1/t", model="m"), workspace)
    rules = json.loads((workspace.home / "opencode.json").read_text())["permission"]["external_directory"]
    assert list(rules.items()) == [("*", "deny"), (f"{folder}/*", "allow")]


async def test_an_agent_is_told_the_folder_of_the_documents(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("forty-two")
    options = agent_of(tmp_path, f'cat "$1"; cat {folder}/a.txt')
    rows = [{"id": str(n), "input": f"Question {n}", "target": "42"} for n in range(12)]
    async with Bench(tmp_path, "http://127.0.0.1:1", Env(rows, tools=Corpus(folder)), **options) as bench:
        done = await bench.roll()
    assert f"The documents are in the folder {folder}" in done.answer
    assert done.answer.endswith("forty-two")


# -- environments that are no Env


class Sums:
    """An environment with the members of the protocol and nothing else."""

    fingerprint = "sums 1"

    def __init__(self) -> None:
        self.samples = [Sample(id=str(n), input=f"{n} + 1 = ?") for n in range(12)]

    def task(self, sample: Sample) -> Task:
        return Task(sample.id, (user(f"Work out: {sample.text}"),))

    def tools(self, task: Task) -> Tools | None:
        return None

    async def score(self, sample: Sample, rollout: Rollout) -> Score:
        return Score(float(rollout.answer == str(int(sample.id) + 1)), "the sum")


async def test_any_object_with_the_members_of_an_environment_can_be_used(tmp_path: Path) -> None:
    def script(asked: Asked) -> Turn:
        return Turn("3" if "Work out: 2 + 1" in asked.raw.decode() else "5")

    (tmp_path / "SKILL.md").write_text("Add.\n")
    async with Upstream(script) as server:
        done = await aevaluate(tmp_path / "SKILL.md", Sums(), f"openai@{server.url}/v1/m", run=tmp_path / "run")
    assert {sample for sample, score in done.scores.items() if score} == {"2", "4"}
    made = as_env(Sums(), "x")
    assert made.messages(made.samples[0]) == made.task(made.samples[0]).messages
    with pytest.raises(UsageError, match="must return an Env, not int without samples"):
        as_env(3, "make()")


# -- calls in text


TWO = (text_tool("read", "Read.", path="its path"), text_tool("list", "List.", folder="optional: the folder"))


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('<action>{"tool": "read", "path": "a"}</action>', "read", {"path": "a"}),
        ('<action>\n{"tool": "list"}', "list", {}),
        ("<action>read a</action>", "read a", {}),
        ('<action>["read"]</action>', '["read"]', {}),
    ],
)
def test_an_action_names_its_tool_if_there_are_several(text: str, name: str, arguments: dict[str, str]) -> None:
    (call,) = call_in(text, TWO)
    assert (call.name, json.loads(call.arguments)) == (name, arguments)
    assert all(tool.name in explained(TWO) for tool in TWO)


PIECES = ["<", "/", "{", "}", '"', " a", "<action>", "</action>", "</think>", '{"tool": ']


@examples(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_no_text_breaks_the_reading_of_calls(text: str) -> None:
    for offered in (TWO, (COUNT,)):
        for call in call_in(text, offered):
            assert isinstance(json.loads(call.arguments), dict)
    assert bool(call_in(text, (COUNT,))) == ("<action>" in text)
