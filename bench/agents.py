"""Cost of a rollout over the bare command line of an agent: CPU seconds and wall seconds.

Bare means: the same command line in a prepared folder, directly at the model, without gateway, sandbox, git and
journal. The model server answers at once and runs in a process of its own. Bare runs and rollouts take turns, so that
the load of the machine meets both alike. CPU counts all processes of the agent, and for a rollout also ours.
`python bench/agents.py --programs FOLDER` needs the command lines in FOLDER (`make test-agents` installs them into
.agents/node_modules/.bin) and prints the table of `bench/agents.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real_agents import CLIS, call_of
from skilltune.config import TargetConfig
from skilltune.envs.task import Task
from skilltune.journal.run import Run
from skilltune.models import user
from skilltune.skill import Skill
from skilltune.targets.agents import AGENTS, AgentJob
from skilltune.targets.agents.target import AgentTarget, make_agent, named_skill, version_of
from skilltune.workspace import close_workspace, open_workspace
from upstream import Asked, Turn, Upstream

SKILL = Skill.parse("---\nname: demo\ndescription: How to answer.\n---\n\nThe answer is 42.\n")
PROMPT = "What is the answer?"
FILES = {"in.txt": b"given\n"}
AT_ONCE = (1, 4, 8)
ROUNDS = {1: 5, 4: 2, 8: 1}  # measurements of each side


def script(asked: Asked) -> Turn:
    """One tool call, then the answer."""
    if not asked.body.get("tools"):
        return Turn("A title")
    if not asked.results:
        return Turn("I begin.", calls=(call_of(asked, "echo done > out.txt; cat out.txt"),))
    return Turn("The answer is 42.")


async def serve() -> None:
    async with Upstream(script) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


@dataclass(frozen=True)
class Cost:
    """CPU seconds per run, and wall seconds of all runs at once."""

    cpu_s: float
    wall_s: float


def model_of(kind: str, url: str) -> str:
    return f"{kind}/anthropic@{url}/m" if kind == "claude-code" else f"{kind}/openai@{url}/v1/m"


async def measured(work: Callable[[int], Awaitable[None]], at_once: int, *, ours: bool) -> Cost:
    """The cost of so many runs at once. `ours` counts this process too."""

    def cpu() -> float:
        used = [resource.getrusage(resource.RUSAGE_CHILDREN)]
        used += [resource.getrusage(resource.RUSAGE_SELF)] if ours else []
        return sum(part.ru_utime + part.ru_stime for part in used)

    before, began = cpu(), time.monotonic()
    await asyncio.gather(*(work(number) for number in range(at_once)))
    return Cost((cpu() - before) / at_once, time.monotonic() - began)


async def bare(kind: str, url: str, folder: Path, at_once: int) -> Cost:
    """The command line by itself. Home, skill and files are prepared before the clock starts."""
    agent, skill = AGENTS[kind], named_skill(SKILL, "forced", kind)
    ready = []
    for number in range(at_once):
        job = AgentJob(
            kind, CLIS[kind], PROMPT, skill, "forced", FILES, url, "key", "m", 600.0, "none", folder, f"bare {number}"
        )
        ws = open_workspace(folder, job.key, FILES)
        agent.install(job, ws)
        ready.append((ws, agent.command(job, ws)))

    async def run(number: int) -> None:
        command = ready[number][1]
        process = await asyncio.create_subprocess_exec(
            *command.argv, cwd=command.cwd, env=dict(command.env), stdin=-1, stdout=-1, stderr=-1
        )
        out, err = await process.communicate(command.stdin)
        assert process.returncode == 0, (out + err).decode()[-2000:]

    cost = await measured(run, at_once, ours=False)
    for ws, _ in ready:
        assert (ws.work / "out.txt").read_text() == "done\n"
        close_workspace(ws)
    return cost


async def rollouts(target: AgentTarget, at_once: int, attempt: int) -> Cost:
    async def run(number: int) -> None:
        found = await target.run(SKILL, Task(f"s{number}", (user(PROMPT),), FILES), attempt)
        assert (found.outcome, found.answer) == ("ok", "The answer is 42."), found.error

    return await measured(run, at_once, ours=True)


async def compare(kind: str, url: str, at_once: int, sandbox: str) -> str:
    """One row of the table."""
    sides: tuple[list[Cost], list[Cost]] = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Run.open(folder / "run") as run:
            cfg = TargetConfig(model=model_of(kind, url), sandbox=sandbox, timeout_s=600.0)
            target = make_agent(cfg, folder, run=run)
            await rollouts(target, 1, 0)  # warm: the gateway listens, files are in the cache
            for round in range(ROUNDS[at_once]):
                sides[0].append(await bare(kind, url, folder / "bare", at_once))
                sides[1].append(await rollouts(target, at_once, 1 + round))
            await target.aclose()
    cpu = [statistics.median(cost.cpu_s for cost in side) for side in sides]
    wall = [statistics.median(cost.wall_s for cost in side) for side in sides]
    more = f"{cpu[1] - cpu[0]:+.2f} | {wall[0]:.1f} | {wall[1]:.1f} | {100 * (wall[1] / wall[0] - 1):+.0f} %"
    level = target.sandbox.level
    return f"| {kind} | {level} | {at_once} | {cpu[0]:.2f} | {cpu[1]:.2f} | {more} | {os.getloadavg()[0]:.0f} |"


async def main(kinds: list[str], url: str) -> None:
    print("; ".join(f"{kind}: {version_of(CLIS[kind])}" for kind in kinds), "\n")
    print("| agent | sandbox | at once | CPU s bare | CPU s rollout | more CPU s | wall s bare | wall s rollout | more "
          "wall | load |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in kinds:
        for at_once in AT_ONCE:
            for sandbox in ("auto", "none") if at_once == 1 else ("auto",):
                print(await compare(kind, url, at_once, sandbox), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, default=Path(".agents/node_modules/.bin"), help="the command lines")
    parser.add_argument("--serve", action="store_true", help="be the model server")
    parser.add_argument("kinds", nargs="*", default=["codex", "claude-code"], help="agents")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    else:
        os.environ["PATH"] = os.pathsep.join([str(options.programs.resolve()), os.environ["PATH"]])
        with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                asyncio.run(main(options.kinds, server.stdout.readline().strip()))
            finally:
                server.terminate()
