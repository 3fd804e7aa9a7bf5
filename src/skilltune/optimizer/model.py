"""The optimizer that is a model: reflect, merge, rank, rewrite, slow update and notes, each one structured call.

With `merge = "rank"` it is SkillOpt's: failures and successes are reflected on apart, their patches merged
hierarchically with failures first, ranked and clipped. With `merge = "pool"` no model decides which edits are good:
every edit whose evidence holds enters a pool, and the gate measures it.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, TypeVar

from skilltune.calls import Client
from skilltune.config import OptimizerConfig, TrainConfig
from skilltune.edits import EDIT_SCHEMA, Edit, Malformed, apply, parse_edits
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraError, InfraStopped
from skilltune.models import Reply, Request, Schema, Usage, system, user
from skilltune.models.structured import ask
from skilltune.optimizer import Memory, Pair, Proposal, Step, join
from skilltune.optimizer.evidence import copied, render_rollout, support, tag, trajectory_tag
from skilltune.roll import WAITS_S, gather
from skilltune.rollout import Rollout
from skilltune.run import Paid, Run, digest
from skilltune.samples import Sample
from skilltune.skill import Skill

T = TypeVar("T")

SLOW_HEADING = "## What experience shows"
REDRAW = 1_000_000  # apart from the number of any step, which is the draw of its first try
SHOWN_SUCCESSES = 2  # successes shown beside the failures of a minibatch, for contrast


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


@dataclass(slots=True)
class ModelOptimizer:
    """Implements `Optimizer` by calls to a chat model; all of them go through the run's journal."""

    client: Client
    run: Run
    env: Env
    cfg: OptimizerConfig
    train: TrainConfig
    samples: Mapping[str, Sample]  # train samples by id: all that this optimizer can ever show
    looks_back: bool = True

    # -- one step

    async def propose(
        self, skill: Skill, rollouts: Sequence[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        scored = [rollout for rollout in rollouts if rollout.score is not None]
        failures = [rollout for rollout in scored if not rollout.score.hard]  # type: ignore[union-attr]
        successes = [rollout for rollout in scored if rollout.score.hard]  # type: ignore[union-attr]
        if self.train.merge == "pool":
            groups = [
                [*part, *nearest(part, successes, self.samples)[:SHOWN_SUCCESSES]]
                for part in _chunks(failures, self.train.minibatch_size)
            ]
            patches = await self._reflect_all("reflect_failures", groups, skill, memory, step, limit)
            proposals = join(edit for patch in patches for edit in patch)
        else:
            parts = [
                ("reflect_failures", _chunks(failures, self.train.minibatch_size)),
                ("reflect_successes", _chunks(successes, self.train.minibatch_size)),
            ]
            bad, good = await gather(
                [self._reflect_all(name, groups, skill, memory, step, limit) for name, groups in parts]
            )
            proposals = await self._merge(skill, bad, good, memory, step, limit)
        if self.train.update == "rewrite" and proposals:
            return await self._rewrite(skill, proposals[:limit], memory, step)
        return proposals

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        """The number that the model names, clamped to what is available; a failed answer keeps the last value."""
        if not proposals:
            return memory.lr or most
        most = min(most, len(proposals))

        def read(data: Any) -> int:
            number = data.get("edits")
            if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
                raise ValueError('"edits" must be a number')
            return int(max(1, min(most, number)))

        evidence = [tag("edit", _json(p.edit.to_json()), index=i) for i, p in enumerate(proposals)]
        try:
            return await self._ask("learning_rate", skill, memory, step, evidence, read, limit=most)
        except CallConfigError:
            raise
        except CallError as error:
            self.run.emit("fallback", step=step.index, stage="learning_rate", reason=str(error))
            return min(memory.lr or self.train.lr, most)

    # -- the end of an epoch

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        def read(data: Any) -> str:
            if not isinstance(data.get("guidance"), str):
                raise ValueError('"guidance" must be a string')
            self._refuse_copies(skill, data["guidance"])
            return data["guidance"].strip()

        guidance = await self._or_none(
            "slow_update", step, self._ask("slow_update", skill, memory, step, self._pairs(pairs), read)
        )
        if not guidance:
            return None
        text = f"{SLOW_HEADING}\n\n{guidance}"
        if memory.slow and memory.slow in skill.body:
            return Edit(op="replace", after=None, target=memory.slow, text=text, why="slow update")
        return Edit(op="add", after=None, target=None, text=text, why="slow update")

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        def read(data: Any) -> str:
            if not isinstance(data.get("notes"), str):
                raise ValueError('"notes" must be a string')
            return data["notes"].strip()

        notes = await self._or_none("notes", step, self._ask("notes", skill, memory, step, self._pairs(pairs), read))
        return memory.notes if notes is None else notes

    # -- reflection

    async def _reflect_all(
        self, prompt: str, groups: Sequence[Sequence[Rollout]], skill: Skill, memory: Memory, step: Step, limit: int
    ) -> list[list[Proposal]]:
        """One call per minibatch, at once. A minibatch whose answer cannot be read is left out and said so. Where
        none can be read the run stops; that is written down, so that resuming it draws the answers anew."""

        async def one(group: Sequence[Rollout], redraw: int) -> list[Proposal] | CallError:
            try:
                return await self._reflect(prompt, group, skill, memory, step, limit, redraw)
            except CallConfigError:
                raise
            except CallError as error:
                return error

        redraw = 0
        while True:
            answers = await gather([one(group, redraw) for group in groups])
            errors = [answer for answer in answers if isinstance(answer, CallError)]
            if not errors or len(errors) < len(answers):
                break
            stop = digest("unread", prompt, step.index, redraw)
            if self.run.recall(stop) is None:
                self.run.fix(stop, functools.partial(str, errors[0]))
                raise InfraStopped(
                    f"the optimizer failed on every minibatch of step {step.index}: {errors[0]}\n"
                    "Run the same command to ask it anew."
                )
            redraw += 1
        for error in errors:
            self.run.emit("fallback", step=step.index, stage="reflect", reason=f"a minibatch is left out: {error}")
        return [answer for answer in answers if not isinstance(answer, CallError)]

    async def _reflect(
        self,
        prompt: str,
        group: Sequence[Rollout],
        skill: Skill,
        memory: Memory,
        step: Step,
        limit: int,
        redraw: int,
    ) -> list[Proposal]:
        shown = [(rollout, self._show(rollout)) for rollout in group]
        quotable: dict[str, str] = {}
        for rollout, text in shown:
            quotable[rollout.sample] = f"{quotable.get(rollout.sample, '')}\n{text}"
        evidence = [trajectory_tag(rollout, text) for rollout, text in shown]
        kept: dict[str, Proposal] = {}
        complaints: list[str] = []

        def read(data: Any) -> list[Proposal]:
            """Collect the edits that hold; complain of the others, which re-asks once, then leave them out. With
            `checks = "record"` an edit that can be read is kept whatever speaks against it, and that is recorded."""
            refused, doubtful = [], []
            for edit in parse_edits(data):
                if isinstance(edit, Malformed):
                    refused.append(f"{edit.raw}: {edit.reason}")
                    continue
                proposal, fault = self._check(edit, quotable, skill, memory)
                if not fault or self.cfg.checks == "record":
                    kept.setdefault(edit.key, proposal)
                if fault:
                    (doubtful if self.cfg.checks == "record" else refused).append(fault)
            if doubtful:
                self.run.emit("doubtful", step=step.index, edits=doubtful)
            if refused:
                self.run.emit("refused", step=step.index, edits=refused)
            if refused and not complaints and self.cfg.checks == "enforce":
                complaints.extend(refused)
                raise ValueError("these edits cannot be used; mend or drop them:\n" + "\n".join(refused))
            return list(kept.values())

        try:
            return await self._ask(prompt, skill, memory, step, evidence, read, limit=limit, redraw=redraw)
        except InfraError:
            if not kept:
                raise
            return list(kept.values())  # the mended answer could not be read; what held of the first one stands

    def _show(self, rollout: Rollout) -> str:
        return render_rollout(
            rollout,
            self.samples[rollout.sample],
            self.env,
            chars=self.cfg.trajectory_chars,
            show_expected=self.cfg.show_expected,
        )

    def _check(self, edit: Edit, shown: Mapping[str, str], skill: Skill, memory: Memory) -> tuple[Proposal, str]:
        """The proposal with the support that holds, and what speaks against it ("" if nothing)."""
        proposal = Proposal(edit, support(edit, shown))
        report = apply(skill, [edit], protect=memory.protected, max_tokens=self.train.max_skill_tokens).reports[0]
        if not proposal.support:
            fault = "no citation holds; quote verbatim from a trajectory above"
        elif not (fault := copied(edit, skill.body, [self.samples[sample] for sample in shown], self.env)):
            fault = report.reason if report.status == "rejected" else ""
        label = json.dumps(edit.text or edit.target, ensure_ascii=False)[:120]
        return proposal, f"{label}: {fault}" if fault else ""

    # -- merge, rank, clip (preset paper) and rewrite

    async def _merge(
        self,
        skill: Skill,
        failures: list[list[Proposal]],
        successes: list[list[Proposal]],
        memory: Memory,
        step: Step,
        limit: int,
    ) -> list[Proposal]:
        """Hierarchically inside each side, then both with failures first; ranked and clipped if over the budget."""
        sides = await gather([self._tree(skill, side, memory, step) for side in (failures, successes)])
        merged = [side for side in sides if side]
        if len(merged) == 2:
            merged = [await self._join(skill, merged, memory, step, prompt="merge_final", names=_SIDES)]
        proposals = merged[0] if merged else []
        if len(proposals) > limit:
            order = await self._rank(skill, proposals, memory, step, limit)
            proposals = [proposals[index] for index in order]
        return proposals[:limit]

    async def _tree(self, skill: Skill, level: list[list[Proposal]], memory: Memory, step: Step) -> list[Proposal]:
        level = [patch for patch in level if patch]
        while len(level) > 1:
            groups = _chunks(level, self.train.merge_batch_size)
            level = await gather([self._join(skill, group, memory, step) for group in groups])
        return level[0] if level else []

    async def _join(
        self,
        skill: Skill,
        patches: Sequence[list[Proposal]],
        memory: Memory,
        step: Step,
        *,
        prompt: str = "merge",
        names: Sequence[str] = (),
    ) -> list[Proposal]:
        """One merge call. Where it fails, the patches are concatenated without exact duplicates, and that is said."""
        if len(patches) == 1:
            return patches[0]
        supported = {sample for patch in patches for proposal in patch for sample in proposal.support}

        def read(data: Any) -> list[Proposal]:
            edits = parse_edits(data)
            good = [edit for edit in edits if isinstance(edit, Edit)]
            if edits and not good:
                raise ValueError("no edit of the answer can be read: " + "; ".join(e.reason for e in edits))  # type: ignore[union-attr]
            return [
                Proposal(edit, tuple(dict.fromkeys(c.sample for c in edit.evidence if c.sample in supported)))
                for edit in good
            ]

        evidence = [
            tag("patch", _json({"edits": [p.edit.to_json() for p in patch]}), id=names[i] if names else f"p{i}")
            for i, patch in enumerate(patches)
        ]
        merged = await self._or_none("merge", step, self._ask(prompt, skill, memory, step, evidence, read))
        return join(proposal for patch in patches for proposal in patch) if merged is None else merged

    async def _rank(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, limit: int
    ) -> list[int]:
        """Indices, best first. Where the call fails, the better supported edits come first, and that is said."""

        def read(data: Any) -> list[int]:
            order = data.get("order")
            if not isinstance(order, list):
                raise ValueError('"order" must be a list of indices')
            known = [i for i in dict.fromkeys(order) if type(i) is int and 0 <= i < len(proposals)]
            if len(known) < min(limit, len(proposals)):
                raise ValueError(f'"order" must hold each index from 0 to {len(proposals) - 1} once')
            return known

        evidence = [tag("edit", _json(p.edit.to_json()), index=i) for i, p in enumerate(proposals)]
        order = await self._or_none("rank", step, self._ask("rank", skill, memory, step, evidence, read, limit=limit))
        if order is None:
            return sorted(range(len(proposals)), key=lambda i: -len(proposals[i].support))
        return order

    async def _rewrite(self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step) -> list[Proposal]:
        def read(data: Any) -> Edit:
            text = data.get("skill")
            if not isinstance(text, str) or not text.strip():
                raise ValueError('"skill" must be the whole new document')
            if skill.frontmatter and text.startswith(skill.frontmatter):
                text = text[len(skill.frontmatter) :]
            self._refuse_copies(skill, text)
            edit = Edit(op="rewrite", after=None, target=None, text=text, why=str(data.get("summary", "")))
            limits = {"protect": memory.protected, "max_tokens": self.train.max_skill_tokens}
            report = apply(skill, [edit], **limits).reports[0]
            if report.status == "rejected":
                raise ValueError(report.reason)
            return edit

        evidence = [tag("edit", _json(p.edit.to_json()), index=i) for i, p in enumerate(proposals)]
        evidence += [f"Keep this section verbatim:\n\n{text}" for text in memory.protected]
        edit = await self._or_none("rewrite", step, self._ask("rewrite", skill, memory, step, evidence, read))
        return [Proposal(edit, tuple(sorted({s for p in proposals for s in p.support})))] if edit else []

    def _refuse_copies(self, skill: Skill, text: str) -> None:
        """Hold prose (guidance, a rewrite) to the rule for edits: it must not copy a train sample or its answer."""
        copy = copied(Edit("add", text=text), skill.body, list(self.samples.values()), self.env)
        if copy and self.cfg.checks == "enforce":
            raise ValueError(f"{copy}; write general guidance instead")

    # -- one call

    async def _ask(
        self,
        prompt: str,
        skill: Skill,
        memory: Memory,
        step: Step,
        evidence: Sequence[str],
        read: Callable[[Any], T],
        *,
        limit: int | None = None,
        redraw: int = 0,
    ) -> T:
        """One structured call, journaled; stable parts first, so that provider prompt caches hit."""
        stage = _STAGES.get(prompt, prompt)
        parts = [tag("skill", skill.body)]
        if limit is not None:
            parts.append(tag("edit_budget", str(limit)))
        if memory.notes:
            parts.append(tag("notes", memory.notes))
        if memory.rejected:
            parts.append(tag("rejected", "\n".join(_json(_rejected(entry)) for entry in memory.rejected)))
        request = Request(
            messages=(system(load_prompt(prompt)), user("\n\n".join([*parts, *evidence]))),
            temperature=self.cfg.temperature,
            max_tokens=self.cfg.max_tokens,
            schema=Schema(stage, SCHEMAS[stage]),
            draw=step.index + redraw * REDRAW,
        )
        return (await ask(self._call, request, read)).value

    async def _call(self, request: Request) -> Reply:
        async def pay() -> Paid:
            reply = await self._patiently(request)
            return Paid({"text": reply.text, "finish": reply.finish}, reply.usage)

        reply = await self.run.once(self._key(request), "optimizer", pay)
        self.run.tell("optimizer", stage=request.schema.name if request.schema else "")
        return Reply(reply["text"], Usage(), reply["finish"])

    async def _patiently(self, request: Request) -> Reply:
        """The client's reply. An endpoint that answered before is waited for; a dead one stops the run, because no
        decision may rest on a call that never came."""
        for pause in (*WAITS_S, None):
            try:
                return await self.client(request)
            except InfraError as error:
                if pause is None or not self.client.answered:
                    raise InfraStopped(f"the optimizer cannot be reached: {error}") from error
                self.run.tell("waiting", purpose="optimizer", seconds=pause, why=str(error))
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _key(self, request: Request) -> str:
        return digest("optimizer", self.client.model.fingerprint, asdict(request))

    async def _or_none(self, stage: str, step: Step, call: Awaitable[T]) -> T | None:
        """The call's value, or None where it failed for good; what happens instead is the caller's, the event ours."""
        try:
            return await call
        except CallConfigError:
            raise
        except CallError as error:
            self.run.emit("fallback", step=step.index, stage=stage, reason=str(error))
            return None

    def _pairs(self, pairs: Sequence[Pair]) -> list[str]:
        shown = []
        for pair in pairs:
            if pair.before.score is None or pair.after.score is None:
                continue
            text = f"{pair.kind}\n\nBefore: {pair.before.answer}\n\nNow:\n{self._show(pair.after)}"
            scores = {"before": f"{pair.before.score.value:.2f}", "after": f"{pair.after.score.value:.2f}"}
            shown.append(tag("pair", text, sample=pair.after.sample, **scores))
        return shown


_STAGES = {"reflect_failures": "reflect", "reflect_successes": "reflect", "merge_final": "merge"}
_SIDES = ("failures", "successes")


@functools.cache
def load_prompt(name: str) -> str:
    return (resources.files("skilltune.optimizer") / "prompts" / f"{name}.md").read_text(encoding="utf-8").strip()


def nearest(failures: Sequence[Rollout], successes: Sequence[Rollout], samples: Mapping[str, Sample]) -> list[Rollout]:
    """The successes in order of likeness to the failures: shared words of the tasks (Jaccard), ties by order."""
    words = set().union(*(samples[rollout.sample].text.lower().split() for rollout in failures))

    def likeness(rollout: Rollout) -> float:
        own = set(samples[rollout.sample].text.lower().split())
        return len(own & words) / (len(own | words) or 1)

    return sorted(successes, key=likeness, reverse=True)


def _rejected(entry: Any) -> dict[str, Any]:
    edit = entry.edit.to_json()
    return {"op": edit["op"], "after": edit["after"], "target": edit["target"], "text": edit["text"]} | {
        "verdict": entry.reason
    }


def _chunks(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
