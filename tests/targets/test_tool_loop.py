"""A chat model with tools: the loop, what the tools refuse, and what a failure costs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from skilltune import Env, Sample, benchmarks
from skilltune.config import TargetConfig
from skilltune.envs.task import Task
from skilltune.errors import BudgetExceeded, InfraError
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.clients import Clients
from skilltune.models import ToolCall, user
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.targets.makers import MAKERS
from skilltune.targets.tools import (
    GUESSED_CALLS,
    TOOLS,
    ToolsTarget,
    arguments,
)
from skilltune.usage import Usage
from skilltune.workspace.tools import ToolError, glob, grep, read_file, write_file
from upstream import Asked, Call, Fault, Turn, Upstream, turns

pytestmark = pytest.mark.anyio
SKILL = Skill.parse("MARKER: say forty-two.")
EVERY = tuple(TOOLS)


class Bench:
    """A tools target in front of a scripted model, with its run and budget."""

    def __init__(self, folder: Path, url: str, **options: Any) -> None:
        model = options.pop("model", f"openai@{url}/v1/m")
        env = options.pop("env", None) or Env([Sample(id="s", input="x", target="x")])
        cfg = TargetConfig(**{"model": model, "tools": EVERY, "sandbox": "none", **options})
        self.run = Run.open(folder / "run")
        self.budget = Budget(Limits(), Usage(), lambda: 0.0)
        made = MAKERS["openai"](cfg, Clients((cfg,), self.run, self.budget), folder, env)
        assert isinstance(made, ToolsTarget)
        self.target = made

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.target.aclose()
        self.run.close()


def task(**files: bytes) -> Task:
    return Task("s", (user("Do it."),), {name.replace("__", "."): data for name, data in files.items()})


@pytest.mark.parametrize("form", ["openai@{}/v1/m", "anthropic@{}/m"])
async def test_the_model_works_with_tools_and_then_answers(form: str, tmp_path: Path) -> None:
    script = turns(
        Turn("I look.", (Call("read", {"path": "in.txt"}), Call("bash", {"command": "echo $((6*7)) > out.txt"}))),
        Turn("never, because the first turn has two results"),
        Turn(calls=(Call("python", {"code": "print(open('out.txt').read())"}),)),
        Turn("The answer is 42."),
    )
    async with Upstream(script) as server, Bench(tmp_path, server.url, model=form.format(server.url)) as bench:
        assert isinstance(bench.target, Target)
        trajectory = await bench.target.run(SKILL, task(in__txt=b"six times seven"), 0)
    assert (trajectory.answer, trajectory.outcome, trajectory.usage.calls) == ("The answer is 42.", "ok", 3)
    assert [t.text for t in trajectory.turns if t.role == "tool"] == ["six times seven", "(no output)", "42"]
    assert "MARKER" in server.asked[0].raw.decode()
    assert "Files in the current folder: in.txt" in server.asked[0].raw.decode()
    assert {path: file.read() for path, file in trajectory.artifacts.items()} == {"out.txt": b"42\n"}
    assert "+42" in trajectory.diff
    assert bench.budget.spent.calls == 3


async def test_a_limit_of_requests_ends_the_work(tmp_path: Path) -> None:
    forever = turns(Turn("So far: 1.", (Call("bash", {"command": "true"}),)))
    async with Upstream(forever) as server, Bench(tmp_path, server.url, max_turns=3) as bench:
        trajectory = await bench.target.run(SKILL, task(), 0)
    assert (trajectory.outcome, trajectory.answer, len(server.asked)) == ("agent_limit", "So far: 1.", 3)
    assert "target.max_turns" in trajectory.error


async def test_a_failed_call_is_repeated_where_the_loop_stands(tmp_path: Path) -> None:
    script = turns(Turn(calls=(Call("bash", {"command": "echo x >> log; wc -l < log"}),)), Turn("done"))
    faults = None, Fault(503, {"error": {"message": "busy"}})
    async with Upstream(script, *faults) as server, Bench(tmp_path, server.url) as bench:
        trajectory = await bench.target.run(SKILL, task(), 0)
    assert [t.text for t in trajectory.turns if t.role == "tool"] == ["1"]  # the command ran once
    assert (trajectory.usage.calls, len(server.asked)) == (2, 3)


async def test_a_failed_call_of_unknown_cost_is_estimated_as_one_call(tmp_path: Path) -> None:
    """Not as a whole rollout, whose mean is known after the first ones."""
    script = turns(*[Turn(calls=(Call("bash", {"command": "true"}),))] * 9, Turn("done"))
    faults = [None] * 12 + [Fault(200, raw=b"<html>")]
    async with Upstream(script, *faults) as server, Bench(tmp_path, server.url) as bench:
        for attempt in (0, 1):
            await bench.target.run(SKILL, task(), attempt)
        ((_, value, lost),) = bench.run.memos("failed attempt")
        assert (value["estimated"], lost.calls, len(server.asked)) == (True, 1, 21)
        assert bench.budget.spent.calls == 21


async def test_a_rollout_that_fails_for_good_costs_what_was_answered(tmp_path: Path) -> None:
    script = turns(Turn(calls=(Call("bash", {"command": "true"}),)))
    empty = Fault(200, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "usage": {}})
    async with Upstream(script, None, *[empty] * 50) as server, Bench(tmp_path, server.url) as bench:
        with pytest.raises(InfraError):
            await bench.target.run(SKILL, task(), 0)
        assert bench.budget.spent.input_tokens >= 100
        assert sum(bench.run.usage.values(), Usage()).calls == bench.budget.spent.calls == len(server.asked)


async def test_a_rollout_that_the_budget_ends_costs_what_was_answered(tmp_path: Path) -> None:
    """The failed call may not be repeated, because its rollout no longer fits the budget."""
    script = turns(Turn(calls=(Call("bash", {"command": "true"}),)))
    busy = Fault(503, {"error": {"message": "busy"}})
    async with Upstream(script, None, None, busy) as server, Bench(tmp_path, server.url) as bench:
        bench.budget.limits = Limits(calls=GUESSED_CALLS)
        with pytest.raises(BudgetExceeded):
            await bench.target.run(SKILL, task(), 0)
        assert sum(bench.run.usage.values(), Usage()).calls == bench.budget.spent.calls == len(server.asked) == 3


async def test_a_cancelled_rollout_costs_what_was_answered(tmp_path: Path) -> None:
    script = turns(Turn(calls=(Call("bash", {"command": "sleep 30"}),)))
    async with Upstream(script) as server, Bench(tmp_path, server.url) as bench:
        rolling = asyncio.create_task(bench.target.run(SKILL, task(), 0))
        while not server.asked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        rolling.cancel()
        await asyncio.wait([rolling])
        assert bench.run.usage["target exchange"].calls == bench.budget.spent.calls == 1


@pytest.mark.parametrize("ending", ["killed", pytest.param("failed", marks=pytest.mark.soak), "another output"])
async def test_a_rollout_that_starts_again_is_answered_from_the_journal(ending: str, tmp_path: Path) -> None:
    """As far as its tools print the same; what differs is asked anew."""
    command = "date +%s%N" if ending == "another output" else "echo same"
    script = turns(*[Turn(f"step {n}", (Call("bash", {"command": command}),)) for n in range(3)], Turn("done"))
    lost = Fault(200, {"choices": []})
    faults = [None, None, *([lost] * 20 if ending == "failed" else [])]
    async with Upstream(script, *faults) as server:
        async with Bench(tmp_path, server.url) as bench:
            rolling = asyncio.create_task(bench.target.run(SKILL, task(a=b"1"), 0))
            while len(server.asked) < 3:
                await asyncio.sleep(0.005)
            if ending != "failed":
                rolling.cancel()
            await asyncio.gather(rolling, return_exceptions=True)
            answered = bench.run.usage["target exchange"].calls
        server._faults.clear()
        before = len(server.asked)
        async with Bench(tmp_path, server.url) as bench:
            done = await bench.target.run(SKILL, task(a=b"1"), 0)
            new = len(server.asked) - before
            assert (done.answer, done.usage.calls, done.journaled) == ("done", 4, True)
            assert new == (3 if ending == "another output" else 4 - answered)
            assert bench.budget.spent.calls == new, "replayed answers cost this process nothing"
            assert bench.run.usage["target exchange"].calls == answered + new
            assert {value["sample"] for _, value, _ in bench.run.memos("target exchange")} == {"s"}
            other = await bench.target.run(SKILL, task(a=b"1"), 1)
            assert (other.usage.calls, len(server.asked)) == (4, before + new + 4), "another attempt is a new rollout"


@pytest.mark.slow
async def test_the_tools_are_in_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("PLANTED")
    steal = f"cat {tmp_path}/answers.txt; echo x > {tmp_path}/left.txt; cat in.txt"

    def script(asked: Asked) -> Turn:
        return Turn("done") if asked.results else Turn(calls=(Call("bash", {"command": steal}),))

    async with Upstream(script) as server, Bench(tmp_path, server.url, sandbox="auto") as bench:
        if bench.target.sandbox.level == "none":
            pytest.skip("no sandbox holds here")
        await bench.target.run(SKILL, task(in__txt=b"mine"), 0)
    assert b"PLANTED" not in server.asked[-1].raw
    assert b"mine" in server.asked[-1].raw
    assert not (tmp_path / "left.txt").exists()


async def test_samples_beside_installed_programs_are_hidden_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, programs = tmp_path / "prefix" / "lib" / "set", tmp_path / "prefix" / "bin"
    for folder in (data, programs, tmp_path / "project"):
        folder.mkdir(parents=True)
    (data / "train.jsonl").write_text('{"question": "PLANTED", "answer": "#### 1"}')
    (data.parent / "library.txt").write_text("a library")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    steal = f"cat {data}/train.jsonl {data.parent}/library.txt"

    def script(asked: Asked) -> Turn:
        return Turn("done") if asked.results else Turn(calls=(Call("bash", {"command": steal}),))

    env = benchmarks.load("bench:gsm8k", data)
    async with (
        Upstream(script) as server,
        Bench(tmp_path / "project", server.url, sandbox="auto", env=env) as bench,
    ):
        if bench.target.sandbox.level == "none":
            pytest.skip("no sandbox holds here")
        await bench.target.run(SKILL, task(), 0)
    assert b"a library" in server.asked[-1].raw
    assert b"PLANTED" not in server.asked[-1].raw


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (ToolCall("1", "rm", "{}"), "there is no tool rm"),
        (ToolCall("1", "bash", "{oops"), "not JSON"),
        (ToolCall("1", "bash", "[]"), "needs the arguments command"),
        (ToolCall("1", "write", '{"path": "a"}'), "needs the arguments path, content"),
        (ToolCall("1", "read", "[" * 100_000), "not JSON"),
    ],
)
def test_a_wrong_call_is_explained_to_the_model(call: ToolCall, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        arguments(call, TOOLS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (Call("bash", {"command": "echo \0"}), "is a NUL"),
        (Call("bash", {"command": "echo \ud83d"}), "half a surrogate pair"),
        (Call("python", {"code": f"x = '{'é' * 70_000}'"}), "at most 100,000"),
        (Call("grep", {"pattern": "(" * 5_000}), "no regular expression"),
        (Call("glob", {"pattern": "/".join(["**"] * 2_000)}), "in.txt"),
        (Call("glob", {"pattern": "\ud83d"}), "nothing found"),
        (Call("write", {"path": "\ud83d", "content": "x"}), "is no path"),
    ],
)
async def test_no_argument_of_a_model_ends_the_rollout(call: Call, words: str, tmp_path: Path) -> None:
    async with Upstream(turns(Turn(calls=(call,)), Turn("fine"))) as server, Bench(tmp_path, server.url) as bench:
        trajectory = await bench.target.run(SKILL, task(in__txt=b"x"), 0)
    assert (trajectory.answer, trajectory.outcome) == ("fine", "ok")
    (said,) = [turn.text for turn in trajectory.turns if turn.role == "tool"]
    assert words in said


def test_arguments_of_other_types_become_text() -> None:
    assert arguments(ToolCall("1", "write", '{"path": "a", "content": {"b": 1}}'), TOOLS)["content"] == '{"b": 1}'
    assert arguments(ToolCall("1", "grep", '{"pattern": "a"}'), TOOLS) == {"pattern": "a"}


def test_the_tools_never_leave_the_workspace(tmp_path: Path) -> None:
    root = tmp_path / "work"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("PLANTED")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    outside = str(tmp_path / "secret.txt")
    for name in ("../secret.txt", "link.txt", "folder/secret.txt", outside, "pipe", "a\0b", "x" * 999):
        with pytest.raises(ToolError):
            read_file(root, name)
    for name in ("../new.txt", "folder/new.txt", "link.txt", "pipe", "."):
        with pytest.raises(ToolError):
            write_file(root, name, "x")
    assert (tmp_path / "secret.txt").read_text() == "PLANTED"
    assert grep(root, "PLANTED", "") == "nothing found"
    for pattern in ("**/*", "folder/*", "*/*", "f*/**/*", "**"):
        assert "secret" not in glob(root, pattern)
    for pattern in ("/etc/*", "../*", "folder/../../*", ""):
        with pytest.raises(ToolError):
            glob(root, pattern)


def test_glob_and_grep_find_what_is_there(tmp_path: Path) -> None:
    write_file(tmp_path, "a/b.txt", "one\ntwo")
    write_file(tmp_path, "c.csv", "two")
    assert glob(tmp_path, "**/*.txt") == glob(tmp_path, "a/*") == glob(tmp_path, "./*/b.???") == "a/b.txt"
    assert glob(tmp_path, "**/*") == glob(tmp_path, "**") == "a/b.txt\nc.csv"
    assert glob(tmp_path, "*") == glob(tmp_path, "[a-d].csv") == "c.csv"
    assert grep(tmp_path, "tw.", "") == "a/b.txt:2:two\nc.csv:1:two"
    assert grep(tmp_path, "tw.", "a") == "a/b.txt:2:two"
    with pytest.raises(ToolError, match="regular expression"):
        grep(tmp_path, "(", "")


def test_a_pattern_of_many_wildcards_is_matched_at_once(tmp_path: Path) -> None:
    deep = "/".join(["a"] * 40) + "/b"
    write_file(tmp_path, deep, "x")
    assert glob(tmp_path, "**/a/" * 20 + "c") == "nothing found"
    assert glob(tmp_path, "**/a/" * 20 + "**/b") == glob(tmp_path, "a/**/**/b/**") == deep
    assert glob(tmp_path, "/".join(["a"] * 39) + "/**/b/b") == "nothing found"


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        ("^two", [2]),
        ("three$", [2]),
        ("^$", [3]),
        (r"\Afive", [5]),
        (r"e\Z", [1, 2, 5]),
        ("(?i)ONE", [1]),
        (r"e\s", []),
    ],
)
def test_a_pattern_is_about_a_line_whatever_ends_it(pattern: str, lines: list[int], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo three\r\n\r\nfour 4\nfive")
    found = grep(tmp_path, pattern, "")
    assert [int(line.split(":")[1]) for line in found.splitlines() if ":" in line] == lines
