"""The optimizer that is a model: it reflects on rollouts, and its prose is held to the same rules as its edits.

With `merge = "rank"` it is SkillOpt's: failures and successes are reflected on apart, their patches merged
hierarchically with failures first, ranked and clipped. With `merge = "pool"` no model decides which edits are good:
every edit whose evidence holds enters a pool, and the gate measures it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skilltune.calls import Client
from skilltune.config import OptimizerConfig, TrainConfig
from skilltune.edits import Edit, Malformed, Report, apply, parse_edits
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraError, InfraStopped
from skilltune.optimizer import Memory, Pair, Proposal, Step, join
from skilltune.optimizer.evidence import copied, render_rollout, support, tag, trajectory_tag
from skilltune.optimizer.merge import merge, numbered
from skilltune.optimizer.stage import Context, Stages
from skilltune.roll import gather
from skilltune.rollout import Rollout
from skilltune.run import Run, digest
from skilltune.samples import Sample
from skilltune.skill import Skill

SLOW_HEADING = "## What experience shows"
SHOWN_SUCCESSES = 2  # successes shown beside the failures of a minibatch, for contrast


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

    @property
    def stages(self) -> Stages:
        return Stages(self.client, self.run, self.cfg)

    # -- one step

    async def propose(
        self, skill: Skill, rollouts: Sequence[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        context = Context(skill, memory, step)
        failures = [rollout for rollout in rollouts if rollout.score is not None and not rollout.score.hard]
        successes = [rollout for rollout in rollouts if rollout.score is not None and rollout.score.hard]
        bad_groups, good_groups = self._minibatches(failures), self._minibatches(successes)
        if self.train.merge == "pool":
            shown = [[*group, *nearest(group, successes, self.samples)[:SHOWN_SUCCESSES]] for group in bad_groups]
            patches = await self._reflect_all("reflect_failures", shown, context, limit)
            proposals = join(proposal for patch in patches for proposal in patch)
        else:
            parts = (("reflect_failures", bad_groups), ("reflect_successes", good_groups))
            bad, good = await gather([self._reflect_all(name, groups, context, limit) for name, groups in parts])
            proposals = await merge(self.stages, context, bad, good, self.train.merge_batch_size, limit)
        if self.train.update == "rewrite" and proposals:
            return await self._rewrite(context, proposals[:limit])
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

        context = Context(skill, memory, step)
        named = await self.stages.ask_or_none("learning_rate", context, numbered(proposals), read, limit=most)
        return named or min(memory.lr or self.train.lr, most)

    # -- the end of an epoch

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        def read(data: Any) -> str:
            guidance = _text(data, "guidance")
            self._refuse_copies(skill, guidance)
            return guidance

        context = Context(skill, memory, step)
        guidance = await self.stages.ask_or_none("slow_update", context, self._show_pairs(pairs), read)
        if not guidance:
            return None
        text = f"{SLOW_HEADING}\n\n{guidance}"
        if memory.slow and memory.slow in skill.body:
            return Edit("replace", target=memory.slow, text=text, why="slow update")
        return Edit("add", text=text, why="slow update")

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        read = functools.partial(_text, name="notes")
        context = Context(skill, memory, step)
        notes = await self.stages.ask_or_none("notes", context, self._show_pairs(pairs), read)
        return memory.notes if notes is None else notes

    # -- reflection

    async def _reflect_all(
        self, prompt: str, groups: Sequence[Sequence[Rollout]], context: Context, limit: int
    ) -> list[list[Proposal]]:
        """One call per minibatch, at once. A minibatch whose answer cannot be read is left out and said so. Where
        none can be read the run stops; that is written down, so that resuming it draws the answers anew."""

        async def one(group: Sequence[Rollout], redraw: int) -> list[Proposal] | CallError:
            try:
                return await self._reflect(prompt, group, context, limit, redraw)
            except CallConfigError:
                raise
            except CallError as error:
                return error

        step, redraw = context.step.index, 0
        while True:
            answers = await gather([one(group, redraw) for group in groups])
            errors = [answer for answer in answers if isinstance(answer, CallError)]
            if not errors or len(errors) < len(answers):
                break
            stop = digest("unread", prompt, step, redraw)
            if self.run.recall(stop) is None:
                self.run.fix(stop, functools.partial(str, errors[0]))
                raise InfraStopped(
                    f"the optimizer failed on every minibatch of step {step}: {errors[0]}\n"
                    "Run the same command to ask it anew."
                )
            redraw += 1
        for error in errors:
            self.run.emit("fallback", step=step, stage="reflect", reason=f"a minibatch is left out: {error}")
        return [answer for answer in answers if not isinstance(answer, CallError)]

    async def _reflect(
        self, prompt: str, group: Sequence[Rollout], context: Context, limit: int, redraw: int
    ) -> list[Proposal]:
        shown = [(rollout, self._show(rollout)) for rollout in group]
        quotable: dict[str, str] = {}
        for rollout, text in shown:
            quotable[rollout.sample] = f"{quotable.get(rollout.sample, '')}\n{text}"
        evidence = [trajectory_tag(rollout, text) for rollout, text in shown]
        enforce, step = self.cfg.checks == "enforce", context.step.index
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
                proposal, fault = self._check(edit, quotable, context)
                if not fault or not enforce:
                    kept.setdefault(edit.key, proposal)
                if fault:
                    (refused if enforce else doubtful).append(fault)
            if doubtful:
                self.run.emit("doubtful", step=step, edits=doubtful)
            if refused:
                self.run.emit("refused", step=step, edits=refused)
            if refused and enforce and not complaints:
                complaints.extend(refused)
                raise ValueError("these edits cannot be used; mend or drop them:\n" + "\n".join(refused))
            return list(kept.values())

        try:
            return await self.stages.ask(prompt, context, evidence, read, limit=limit, redraw=redraw)
        except InfraError:
            if not kept:
                raise
            return list(kept.values())  # the mended answer could not be read; what held of the first one stands

    def _check(self, edit: Edit, shown: Mapping[str, str], context: Context) -> tuple[Proposal, str]:
        """The proposal with the support that holds, and what speaks against it ("" if nothing)."""
        proposal = Proposal(edit, support(edit, shown))
        report = self._try(edit, context)
        if not proposal.support:
            fault = "no citation holds; quote verbatim from a trajectory above"
        elif not (fault := copied(edit, context.skill.body, [self.samples[sample] for sample in shown], self.env)):
            fault = report.reason if report.status == "rejected" else ""
        label = json.dumps(edit.text or edit.target, ensure_ascii=False)[:120]
        return proposal, f"{label}: {fault}" if fault else ""

    # -- prose

    async def _rewrite(self, context: Context, proposals: Sequence[Proposal]) -> list[Proposal]:
        """The suggestions carried out in a whole new body, as one edit; none where no answer can be used."""
        skill = context.skill

        def read(data: Any) -> Edit:
            if not _text(data, "skill"):
                raise ValueError('"skill" must be the whole new document')
            text = data["skill"]
            if skill.frontmatter and text.startswith(skill.frontmatter):
                text = text[len(skill.frontmatter) :]
            self._refuse_copies(skill, text)
            edit = Edit("rewrite", text=text, why=str(data.get("summary", "")))
            report = self._try(edit, context)
            if report.status == "rejected":
                raise ValueError(report.reason)
            return edit

        evidence = numbered(proposals)
        evidence += [f"Keep this section verbatim:\n\n{text}" for text in context.memory.protected]
        edit = await self.stages.ask_or_none("rewrite", context, evidence, read)
        return [Proposal(edit, tuple(sorted({s for p in proposals for s in p.support})))] if edit else []

    def _try(self, edit: Edit, context: Context) -> Report:
        """What would become of an edit, were it applied alone."""
        limits = {"protect": context.memory.protected, "max_tokens": self.train.max_skill_tokens}
        return apply(context.skill, [edit], **limits).reports[0]

    def _refuse_copies(self, skill: Skill, text: str) -> None:
        """Hold prose (guidance, a rewrite) to the rule for edits: it must not copy a train sample or its answer."""
        copy = copied(Edit("add", text=text), skill.body, list(self.samples.values()), self.env)
        if copy and self.cfg.checks == "enforce":
            raise ValueError(f"{copy}; write general guidance instead")

    # -- what is shown

    def _show(self, rollout: Rollout) -> str:
        return render_rollout(
            rollout,
            self.samples[rollout.sample],
            self.env,
            chars=self.cfg.trajectory_chars,
            show_expected=self.cfg.show_expected,
        )

    def _show_pairs(self, pairs: Sequence[Pair]) -> list[str]:
        shown = []
        for pair in pairs:
            if pair.before.score is None or pair.after.score is None:
                continue
            text = f"{pair.kind}\n\nBefore: {pair.before.answer}\n\nNow:\n{self._show(pair.after)}"
            scores = {"before": f"{pair.before.score.value:.2f}", "after": f"{pair.after.score.value:.2f}"}
            shown.append(tag("pair", text, sample=pair.after.sample, **scores))
        return shown

    def _minibatches(self, rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
        size = self.train.minibatch_size
        return [list(rollouts[start : start + size]) for start in range(0, len(rollouts), size)]


def nearest(failures: Sequence[Rollout], successes: Sequence[Rollout], samples: Mapping[str, Sample]) -> list[Rollout]:
    """The successes in order of likeness to the failures: shared words of the tasks (Jaccard), ties by order."""
    words = set().union(*(samples[rollout.sample].text.lower().split() for rollout in failures))

    def likeness(rollout: Rollout) -> float:
        own = set(samples[rollout.sample].text.lower().split())
        return len(own & words) / (len(own | words) or 1)

    return sorted(successes, key=likeness, reverse=True)


def _text(data: Any, name: str) -> str:
    """A string field of an answer, stripped."""
    if not isinstance(data.get(name), str):
        raise ValueError(f'"{name}" must be a string')
    return data[name].strip()
