"""An agent as the optimizer: it reads a question as files in a read-only workspace, and returns one JSON object.

It is an agent target without a skill. So it has a private home, the sandbox, a token of the gateway in place of a key,
and an account of every exchange. The project and the run's folder are hidden from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from skilltune.envs.task import Task
from skilltune.errors import InfraError, SampleError
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.models import Reply, Request, user
from skilltune.models.reading import NoText
from skilltune.models.structured import ask
from skilltune.optimizer.files import ANSWER, layout
from skilltune.optimizer.handoff import read_object
from skilltune.optimizer.stage import Brief, load_prompt, patiently
from skilltune.rollout import Trajectory
from skilltune.skill import Skill
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage

T = TypeVar("T")


@dataclass(slots=True)
class ByAgent:
    """Implements `Answers` by an agent. An answer that cannot be read is asked for once more, with the reason."""

    worker: MeteredTarget
    run: Run
    answered: bool = False  # True once the agent gave an answer; one that never did is not waited for

    async def ask(self, brief: Brief, read: Callable[[Any], T]) -> T:
        async def call(request: Request) -> Reply:
            return await self._call(replace(brief, request=request))

        return await ask(call, brief.request, read)

    async def _call(self, brief: Brief) -> Reply:
        async def pay() -> Paid:
            """The paid answer. One that ended at a limit of turns or dollars is journaled too, because it would end
            there again."""
            try:
                done = await patiently(self.run, lambda: self._work(brief), lambda: self.answered)
            except SampleError as none:
                return Paid({"no_text": str(none)}, Usage())
            self.answered = True
            cut = done.error if done.outcome == "agent_limit" else ""
            return Paid({"text": answer_of(done), "cut": cut}, Usage() if done.journaled else done.usage)

        key = digest("optimizer", self.worker.fingerprint, load_prompt("agent"), asdict(brief.request))
        reply = await self.run.memo(key, "optimizer", pay)
        self.run.notify("optimizer", stage=brief.stage)
        with self.run.reading():
            if "no_text" in reply:
                raise NoText(str(reply["no_text"]))
            text, cut = reply["text"], reply["cut"]
            if not (isinstance(text, str) and isinstance(cut, str)):
                raise TypeError("an answer of the optimizer is not text")
        try:
            text = json.dumps(read_object(text), ensure_ascii=False)
        except ValueError:  # the reader of answers repairs it or states its fault
            if cut:
                raise InfraError(f"the optimizer ended without an answer: {cut}") from None
        return Reply(text, Usage())

    async def _work(self, brief: Brief) -> Trajectory:
        files = layout(brief, load_prompt("agent_answering"))
        task = Task("question", (user(load_prompt("agent")),), files)
        done = await self.worker.run(Skill(""), task, brief.request.draw)
        if done.timed_out and not _holds_object(answer_of(done)):
            raise InfraError(f"{done.error}; raise that limit, or run again: its answered calls are not paid again")
        return done


def _holds_object(text: str) -> bool:
    try:
        read_object(text)
    except ValueError:
        return False
    return True


def answer_of(done: Trajectory) -> str:
    """The content of the file answer.json, else the agent's last message."""
    for place in (ANSWER, ANSWER.rpartition("/")[2]):  # the second is possible without a sandbox only
        if place in done.artifacts and (text := done.artifacts[place].read().decode("utf-8", "replace").strip()):
            return text
    return done.answer
