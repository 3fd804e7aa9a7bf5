"""One structured question to the optimizer: its prompt, its schema and its journal entry.

A stage is a question with a fixed answer format (`SCHEMAS`). A prompt file words it; several prompts may share a stage.
Every decision is a pure function of the answers, so a replay from the journal decides the same.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Protocol, TypeVar

from skilltune.config import OptimizerConfig
from skilltune.edits import EDIT_SCHEMA
from skilltune.errors import CallConfigError, CallError, InfraError, InfraStopped, SampleError
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.metering.client import Client
from skilltune.models import Reply, Request, Schema, system, user
from skilltune.models.reading import NoText
from skilltune.models.structured import ask
from skilltune.optimizer import Memory, Step
from skilltune.optimizer.lines import number_lines
from skilltune.optimizer.memory import Pattern
from skilltune.optimizer.render import Part
from skilltune.optimizer.rules import read_text
from skilltune.rollouts.roller import WAITS_S
from skilltune.skill import Skill
from skilltune.usage import Usage
from skilltune.verdict import Rejected

T = TypeVar("T")

RULES = "rules"  # the stage and prompt whose answer is plain text, see `optimizer.rules`
WORDINGS = ("rules_orders", "rules_answer")  # the ends of its request
TRIED = 6  # rejected rules that its request names; each is read by a small model
REDRAW = 1_000_000  # larger than any step number: a first request uses the step number as its draw


def _object(**properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_EDITS = {"type": "array", "items": EDIT_SCHEMA}
_PATTERN = _object(pattern=_TEXT, samples={"type": "array", "items": _TEXT})
SCHEMAS: Mapping[str, dict[str, Any]] = {
    "reflect": _object(diagnosis={"type": "array", "items": _PATTERN}, edits=_EDITS),
    "merge": _object(edits=_EDITS),
    "rank": _object(order={"type": "array", "items": {"type": "integer"}}),
    "learning_rate": _object(edits={"type": "integer"}, reason=_TEXT),
    "rewrite": _object(skill=_TEXT, summary=_TEXT),
    "slow_update": _object(reasoning=_TEXT, guidance=_TEXT),
    "notes": _object(notes=_TEXT),
}
_STAGE_OF = {
    "reflect_failures": "reflect",
    "reflect_successes": "reflect",
    "merge_final": "merge",
    "rewrite_once": "rewrite",
}


@dataclass(frozen=True, slots=True)
class Context:
    """The part that all questions of a step share: the skill and the optimizer's memory."""

    skill: Skill
    memory: Memory
    step: Step


@dataclass(frozen=True, slots=True)
class Brief:
    """One question: the request as a model gets it, and its parts apart for whoever reads files instead."""

    request: Request
    parts: tuple[Part, ...] = ()

    @property
    def stage(self) -> str:
        return RULES if self.request.schema is None else self.request.schema.name

    @property
    def instructions(self) -> str:
        return self.request.messages[0].text


class Answers(Protocol):
    """Answers questions: a model (`ByModel`), an agent in a workspace (`agent.ByAgent`), or a person or agent who reads
    a folder (`handoff.Handoff`)."""

    async def ask(self, brief: Brief, read: Callable[[Any], T]) -> T:
        """Ask once per run, and return `read(answer)`. If `read` raises ValueError, the answerer gets its text.

        Raises `InfraError` if no answer can be read, `Stopped` if no answer came, `CallConfigError` if no answer can
        come.
        """
        ...


@dataclass(slots=True)
class Stages:
    """Asks an optimizer's questions, one at a time."""

    answers: Answers
    run: Run
    cfg: OptimizerConfig

    async def ask(
        self,
        prompt: str,
        context: Context,
        evidence: Sequence[Part],
        read: Callable[[Any], T],
        *,
        limit: int | None = None,
        redraw: int = 0,
        numbered: bool = False,
    ) -> T:
        """Ask a prompt and return `read(answer)`; raises as `Answers.ask`. Parts that rarely change come first, so
        that provider prompt caches hit. `numbered` shows the skill with the numbers of its lines."""
        memory, stage = context.memory, _STAGE_OF.get(prompt, prompt)
        parts = [Part("skill", number_lines(context.skill.body) if numbered else context.skill.body)]
        if numbered:
            parts.append(Part("", load_prompt("lines")))
        if limit is not None:
            parts.append(Part("edit_budget", str(limit)))
        if memory.notes:
            parts.append(Part("notes", memory.notes))
        if memory.unfixed:
            parts.append(Part("unfixed", "\n".join(map(_unfixed, memory.unfixed))))
        if memory.rejected:
            parts.append(Part("rejected", "\n".join(map(_rejected, memory.rejected))))
        parts += evidence
        request = Request(
            messages=(system(load_prompt(prompt)), user("\n\n".join(map(str, parts)))),
            temperature=self.cfg.temperature,
            max_tokens=self.cfg.max_tokens,
            schema=Schema(stage, SCHEMAS[stage]),
            draw=context.step.index + redraw * REDRAW,
        )
        return await self.answers.ask(Brief(request, tuple(parts)), read)

    async def ask_rules(
        self,
        context: Context,
        cases: Sequence[str],
        read: Callable[[str], T],
        *,
        limit: int,
        wording: int,
        redraw: int = 0,
    ) -> T:
        """Ask for plain rules and return `read(text)`; raises as `Answers.ask`.

        A small model is asked, so the request is short, and it is plain text: with tags around its parts, such a model
        repeats the skill. It holds the skill, the latest rejected rules and the failed tasks. Small targets follow an
        order better on some tasks ("Answer with …") and a description on others ("The answer should be …"), so the
        requests ask for either in turn, by the number `wording`, and the gate measures which rules help.
        """
        tried = [entry.edit.text.strip() for entry in context.memory.rejected if entry.edit.text][-TRIED:]
        parts = [f"The rules now:\n{context.skill.body.strip() or 'none'}", *cases]
        if tried:
            parts.append("Rules that were tried and did not help:\n" + "\n".join(tried))
        parts.append(load_prompt(WORDINGS[wording % len(WORDINGS)]).replace("{number}", str(limit)))
        request = Request(
            messages=(system(load_prompt(RULES)), user("\n\n".join(parts))),
            temperature=self.cfg.temperature,
            max_tokens=self.cfg.max_tokens,
            draw=context.step.index + redraw * REDRAW,
        )
        return await self.answers.ask(Brief(request), read)

    async def ask_or_none(
        self,
        prompt: str,
        context: Context,
        evidence: Sequence[Part],
        read: Callable[[Any], T],
        *,
        limit: int | None = None,
        redraw: int = 0,
    ) -> T | None:
        """As `ask`, but None if no answer can be read. The caller continues without it; an event says so."""
        try:
            return await self.ask(prompt, context, evidence, read, limit=limit, redraw=redraw)
        except CallConfigError:
            raise
        except CallError as error:
            stage = _STAGE_OF.get(prompt, prompt)
            self.run.record("fallback", step=context.step.index, stage=stage, reason=str(error))
            return None


@dataclass(slots=True)
class ByModel:
    """Implements `Answers` by a model and the run's journal. An answer that cannot be read is asked for once more."""

    client: Client
    run: Run

    async def ask(self, brief: Brief, read: Callable[[Any], T]) -> T:
        return await ask(self._call, brief.request, read, read_text if brief.request.schema is None else None)

    async def _call(self, request: Request) -> Reply:
        async def pay() -> Paid:
            """The paid answer. A request without any text is journaled too, so that a replay decides the same."""
            try:
                reply = await patiently(self.run, lambda: self.client(request), lambda: self.client.answered)
            except (NoText, SampleError) as none:  # the client has counted its calls
                return Paid({"no_text": str(none)}, Usage())
            return Paid({"text": reply.text, "finish": reply.finish}, reply.usage)

        key = digest("optimizer", self.client.model.fingerprint, asdict(request))
        reply = await self.run.memo(key, "optimizer", pay)
        self.run.notify("optimizer", stage=Brief(request).stage)
        with self.run.reading():
            if "no_text" in reply:
                raise NoText(str(reply["no_text"]))
            if not (isinstance(reply["text"], str) and isinstance(reply["finish"], str)):
                raise TypeError("an answer of the optimizer is not text")
            return Reply(reply["text"], Usage(), reply["finish"])


async def patiently(run: Run, call: Callable[[], Awaitable[T]], answered: Callable[[], bool]) -> T:
    """The result of a call. Waits if the endpoint answered before, then raises `InfraStopped`, because no decision may
    rest on a missing answer."""
    for pause in (*WAITS_S, None):
        try:
            return await call()
        except NoText:
            raise
        except InfraError as error:
            if pause is None or not answered():
                raise InfraStopped(f"the optimizer cannot be reached: {error}") from error
            run.notify("waiting", purpose="optimizer", seconds=pause, why=str(error))
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


@functools.cache
def load_prompt(name: str) -> str:
    """The text of a prompt file. A name without a suffix means NAME.md."""
    file = name if "." in name else f"{name}.md"
    return (resources.files("skilltune.optimizer") / "prompts" / file).read_text(encoding="utf-8").strip()


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _unfixed(pattern: Pattern) -> str:
    return as_json({"pattern": pattern.text, "failing": len(pattern.samples)})


def _rejected(entry: Rejected) -> str:
    edit = entry.edit.to_json()
    return as_json({**{key: edit[key] for key in ("op", "after", "target", "text")}, "verdict": entry.reason})
