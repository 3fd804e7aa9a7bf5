"""An optimizer that asks a model to reflect on rollouts. Its prose must pass the same checks as its edits.

`merge = "rank"` follows SkillOpt: it reflects on failures and successes apart, merges the patches hierarchically with
failures first, ranks the edits and clips them. With `merge = "pool"` no model decides which edits are good: every edit
with sound evidence enters a pool, and the gate measures it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import AsyncIterable, AsyncIterator, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from skilltune.aio import run_all
from skilltune.config import OptimizerConfig, TrainConfig
from skilltune.edits import Edit, Malformed, Report, apply
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, CutShort, InfraError, InfraStopped
from skilltune.journal.keys import digest
from skilltune.journal.run import Run
from skilltune.optimizer import Memory, Pair, Proposal, Step, join
from skilltune.optimizer.lines import number_lines, read_edits
from skilltune.optimizer.memory import Pattern, outcome, still_unfixed
from skilltune.optimizer.merge import merge, numbered
from skilltune.optimizer.render import Part, copied, render_case, render_rollout, support, trajectory_part
from skilltune.optimizer.rules import read_rules
from skilltune.optimizer.stage import Answers, Context, Stages, load_prompt
from skilltune.rollout import Rollout
from skilltune.samples import Sample
from skilltune.skill import Skill

FAILURES, SUCCESSES = "reflect_failures", "reflect_successes"  # prompts
SLOW_HEADING = "## What experience shows"
PATTERN_CHARS = 200  # longest failure pattern; the rest is cut
SHOWN_SUCCESSES = 2  # shown with the failures of a minibatch, for contrast
CASES = 4  # failures of a minibatch that a question for plain rules shows; a small model reads slowly
CASE_CHARS = 1200  # characters of such a failure
FEWEST_MADE = 4  # proposals after which `auto` may give up the form of edits

Form = Literal["edits", "lines", "rules"]
"""Edits; edits of a skill whose lines are numbered; plain rules (`optimizer.rules`)."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The proposals of one form: the number made, the number that passed every check, and the number that named a place
    which the skill does not have. An answer that was cut before it could be read is one proposal."""

    made: int = 0
    usable: int = 0
    misplaced: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.made + other.made, self.usable + other.usable, self.misplaced + other.misplaced)


@dataclass(frozen=True, slots=True)
class Reflection:
    """The result of one reflection: proposed edits, patterns found in the failures, and a tally for each form."""

    proposals: list[Proposal]
    patterns: tuple[Pattern, ...] = ()
    tallies: Mapping[Form, Tally] = field(default_factory=dict)


@dataclass(slots=True)
class ModelOptimizer:
    """Implements `Optimizer` by asking questions, which a chat model, an agent or a handoff folder answers."""

    answers: Answers
    run: Run
    env: Env
    cfg: OptimizerConfig
    train: TrainConfig
    samples: Mapping[str, Sample]  # train samples by id; no others can be shown
    looks_back: bool = True
    unfixed: tuple[Pattern, ...] = ()
    made: list[Proposal] = field(default_factory=list)  # proposals that the skill does not contain yet
    form: Form = "edits"  # of the last step
    edited: Tally = Tally()  # all proposals so far that were edits

    @property
    def stages(self) -> Stages:
        return Stages(self.answers, self.run, self.cfg)

    # -- one step

    async def propose(
        self, skill: Skill, rollouts: AsyncIterable[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        self._choose_form(step)
        context, seen = self._context(skill, memory, step), list[Rollout]()
        reflected = await self._reflect_all(_collecting(rollouts, seen), context, limit)
        self._count([answer for answers in reflected.values() for answer in answers], step)
        patches = {prompt: [answer.proposals for answer in answers] for prompt, answers in reflected.items()}
        if self.cfg.patterns:
            found = [pattern for answer in reflected[FAILURES] for pattern in answer.patterns]
            self.unfixed = still_unfixed(self.unfixed, found, _solved_samples(seen))
        if self.train.merge == "pool":
            proposals = join(proposal for patch in patches[FAILURES] for proposal in patch)
            proposals = [replace(proposal, among=len(step.batch)) for proposal in proposals]
            if self.cfg.patterns:
                proposals = [p for p in proposals if outcome(skill.body, p.edit) not in memory.judged]
                self.made += proposals
        else:
            size = self.train.merge_batch_size
            proposals = await merge(self.stages, context, patches[FAILURES], patches[SUCCESSES], size, limit)
        if self.train.update == "rewrite" and proposals:
            return await self._rewrite(context, proposals[:limit])
        return proposals

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        """The number that the model names, clamped to 1…`most`. If its answer cannot be read, the last value stays."""
        if not proposals:
            return memory.lr or most
        most = min(most, len(proposals))

        def read(data: Any) -> int:
            number = data.get("edits")
            if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
                raise ValueError('"edits" must be a number')
            return int(max(1, min(most, number)))

        context = self._context(skill, memory, step)
        named = await self.stages.ask_or_none("learning_rate", context, numbered(proposals), read, limit=most)
        return named or min(memory.lr or self.train.lr, most)

    # -- the end of an epoch

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        def read(data: Any) -> str:
            guidance = _text(data, "guidance")
            self._refuse_copies(skill, guidance)
            return guidance

        context = self._context(skill, memory, step)
        guidance = await self.stages.ask_or_none("slow_update", context, self._show_pairs(pairs), read)
        if not guidance:
            return None
        text = f"{SLOW_HEADING}\n\n{guidance}"
        if memory.slow and memory.slow in skill.body:
            return Edit("replace", target=memory.slow, text=text, why="slow update")
        return Edit("add", text=text, why="slow update")

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        read = functools.partial(_text, name="notes")
        context = self._context(skill, memory, step)
        notes = await self.stages.ask_or_none("notes", context, self._show_pairs(pairs), read)
        return memory.notes if notes is None else notes

    # -- the form of proposals

    def _choose_form(self, step: Step) -> None:
        """Choose the form of the step's proposals from those of the earlier steps, once per run."""
        if self.cfg.form == "rules":
            self.form = "rules"
            return
        before, edited = self.form, self.edited
        poor = edited.made >= FEWEST_MADE and 2 * edited.usable < edited.made
        wanted = "rules" if before == "rules" or (poor and self.cfg.form == "auto") else before
        if wanted == "edits" and edited.misplaced:
            wanted = "lines"
        chosen = self.run.decide(digest("form", step.index), lambda: wanted)
        with self.run.reading():
            forms: dict[str, Form] = {"edits": "edits", "lines": "lines", "rules": "rules"}
            self.form = forms[chosen]
        if self.form != before:
            reason = f"{edited.usable} of {edited.made} proposed edits could be used, {edited.misplaced} had no place"
            self.run.record("form", step=step.index, form=self.form, reason=reason)

    def _count(self, answers: Sequence[Reflection], step: Step) -> None:
        """Add up the proposals of a step, and record the share that can be used."""
        total: dict[Form, Tally] = {}
        for answer in answers:
            for form, tally in answer.tallies.items():
                total[form] = total.get(form, Tally()) + tally
        for form, tally in total.items():
            if form != "rules":
                self.edited += tally
            if tally.made:
                self.run.record("proposals", step=step.index, form=form, made=tally.made, usable=tally.usable)

    # -- reflection

    async def _reflect_all(
        self, rollouts: AsyncIterable[Rollout], context: Context, limit: int
    ) -> dict[str, list[Reflection]]:
        """The reflections by prompt. Each minibatch takes one call, made as soon as the minibatch is complete.

        A minibatch is left out, with an event, if its answer cannot be read. If no answer to a prompt can be read, the
        run stops; the journal notes it, so that a resumed run asks for new answers.
        """
        step = context.step.index
        redraws = {prompt: self._redraws(prompt, step) for prompt in (FAILURES, SUCCESSES)}

        async def one(number: int, prompt: str, group: Sequence[Rollout]) -> tuple[str, Reflection | CallError]:
            try:
                return prompt, await self._reflect(prompt, group, context, limit, redraws[prompt], number)
            except CallConfigError:
                raise
            except CallError as error:
                return prompt, error

        # They begin at the step, so that a step of one minibatch gets another number than the step before.
        numbers = {prompt: itertools.count(step) for prompt in redraws}
        minibatches = self._minibatches(rollouts)
        answers = await run_all(one(next(numbers[prompt]), prompt, group) async for prompt, group in minibatches)
        reflected: dict[str, list[Reflection]] = {}
        for prompt, redraw in redraws.items():
            mine = [answer for asked, answer in answers if asked == prompt]
            errors = [answer for answer in mine if isinstance(answer, CallError)]
            if errors and len(errors) == len(mine):
                self.run.decide(_unreadable_key(prompt, step, redraw), functools.partial(str, errors[0]))
                may_help = self.cfg.form == "auto" and self.form != "rules"
                other = " A model that cannot write JSON needs optimizer.form=rules." if may_help else ""
                raise InfraStopped(
                    f"the optimizer failed on every minibatch of step {step}: {errors[0]}\n"
                    f"Run the same command to ask again.{other}"
                )
            for error in errors:
                self.run.record("fallback", step=step, stage="reflect", reason=f"a minibatch is left out: {error}")
            reflected[prompt] = [answer for answer in mine if not isinstance(answer, CallError)]
        return reflected

    def _redraws(self, prompt: str, step: int) -> int:
        """The number of earlier attempts of the step in which no answer could be read."""
        return next(n for n in itertools.count() if self.run.recall(_unreadable_key(prompt, step, n)) is None)

    async def _minibatches(self, rollouts: AsyncIterable[Rollout]) -> AsyncIterator[tuple[str, list[Rollout]]]:
        """Yield (prompt, rollouts to show) for each minibatch of failures or successes as soon as it is complete.

        For a pool, each minibatch of failures also shows the nearest successes so far, and no minibatch of successes
        is made.
        """
        parts: dict[str, list[Rollout]] = {FAILURES: [], SUCCESSES: []}
        successes: list[Rollout] = []
        pool = self.train.merge == "pool"

        def shown(part: list[Rollout]) -> list[Rollout]:
            return [*part, *nearest(part, successes, self.samples)[:SHOWN_SUCCESSES]] if pool else part

        async for rollout in rollouts:
            if rollout.score is None:
                continue
            prompt = SUCCESSES if rollout.score.hard else FAILURES
            if prompt == SUCCESSES:
                successes.append(rollout)
                if pool:
                    continue
            parts[prompt].append(rollout)
            if len(parts[prompt]) == self.train.minibatch_size:
                yield prompt, shown(parts[prompt])
                parts[prompt] = []
        for prompt, part in parts.items():
            if part:
                yield prompt, shown(part)

    async def _reflect(
        self, prompt: str, group: Sequence[Rollout], context: Context, limit: int, redraw: int, number: int
    ) -> Reflection:
        """The reflection on a minibatch. With `form = "auto"`, a minibatch of failures without any usable edit is asked
        about once more, for plain rules. `number` chooses the wording of a question for rules."""
        if self.form == "rules":
            if prompt == SUCCESSES:
                return Reflection([])
            return await self._reflect_by_rules(group, context, limit, redraw, number)
        may_fall_back = self.cfg.form == "auto" and prompt == FAILURES
        try:
            found = await self._reflect_by_edits(prompt, group, context, limit, redraw)
        except CutShort:
            if not may_fall_back:
                raise
            found = Reflection([], (), {self.form: Tally(made=1)})
        if not may_fall_back or found.proposals or not found.tallies[self.form].made:
            return found
        try:
            rules = await self._reflect_by_rules(group, context, limit, redraw, number)
        except CallConfigError:
            raise
        except CallError:
            return found
        return Reflection(rules.proposals, found.patterns, {**found.tallies, **rules.tallies})

    async def _reflect_by_edits(
        self, prompt: str, group: Sequence[Rollout], context: Context, limit: int, redraw: int
    ) -> Reflection:
        shown = [(rollout, self._show(rollout)) for rollout in group]
        quotable: dict[str, str] = {}
        for rollout, text in shown:
            quotable[rollout.sample] = f"{quotable.get(rollout.sample, '')}\n{text}"
        evidence = [trajectory_part(rollout, text) for rollout, text in shown]
        enforce, step, form = self.cfg.checks == "enforce", context.step.index, self.form
        kept: dict[str, Proposal] = {}
        made, usable, misplaced = set[str](), set[str](), set[str]()
        complaints: list[str] = []
        patterns: list[Pattern] = []
        failing = {rollout.sample for rollout in group if rollout.score is not None and not rollout.score.hard}

        def read(data: Any) -> Reflection:
            """Keep the edits that pass their checks. Raise ValueError once for the others, which asks again; the
            second time leave them out. With `checks = "record"` failed checks are recorded and the edits kept."""
            patterns[:] = _patterns(data, failing)
            refused, doubtful = [], []
            for edit in read_edits(data, context.skill.body, numbered=form == "lines" or bool(misplaced)):
                if isinstance(edit, Malformed):
                    made.add(edit.raw)
                    refused.append(f"{edit.raw}: {edit.reason}")
                    continue
                proposal, fault = self._check(edit, quotable, context)
                made.add(edit.key)
                if not fault:
                    usable.add(edit.key)
                elif enforce and (edit.target or edit.after) and self._try(edit, context).status == "rejected":
                    misplaced.add(edit.key)
                if not fault or not enforce:
                    kept.setdefault(edit.key, proposal)
                if fault:
                    (refused if enforce else doubtful).append(fault)
            if doubtful:
                self.run.record("doubtful", step=step, edits=doubtful)
            if refused:
                self.run.record("refused", step=step, edits=refused)
            if refused and enforce and not complaints:
                complaints.extend(refused)
                by_number = ["", load_prompt("lines"), number_lines(context.skill.body)]
                said = [*refused, *(by_number if misplaced and form == "edits" else ())]
                raise ValueError("these edits cannot be used; mend or drop them:\n" + "\n".join(said))
            return reflection()

        def reflection() -> Reflection:
            tally = Tally(len(made), len(usable), len(misplaced))
            return Reflection(list(kept.values()), tuple(patterns), {form: tally})

        try:
            numbered = form == "lines"
            return await self.stages.ask(prompt, context, evidence, read, limit=limit, redraw=redraw, numbered=numbered)
        except InfraError:
            if not kept:
                raise
            return reflection()  # the second answer could not be read; the good edits of the first are kept

    async def _reflect_by_rules(
        self, group: Sequence[Rollout], context: Context, limit: int, redraw: int, number: int
    ) -> Reflection:
        """Rules for the failures of a minibatch, as additions that rest on all of them. An answer without any usable
        rule is asked for once more, with the reasons."""
        failed = [rollout for rollout in group if rollout.score is not None and not rollout.score.hard]
        samples = dict.fromkeys(rollout.sample for rollout in failed)
        body, known = context.skill.body, [self.samples[rollout.sample] for rollout in group]
        cases = [self._show_case(rollout) for rollout in failed[:CASES]]
        kept: dict[str, Proposal] = {}
        made, complaints = set[str](), list[str]()

        def read(text: str) -> Reflection:
            refused = []
            for rule in read_rules(text, body, samples)[:limit]:
                fault = rule.fault
                if rule.edit is not None:
                    fault = copied(rule.edit, body, known, self.env)
                    report = self._try(rule.edit, context)
                    fault = fault or (report.reason if report.status == "rejected" else "")
                made.add(rule.line)
                if fault or rule.edit is None:
                    refused.append(f"{json.dumps(rule.line, ensure_ascii=False)[:120]}: {fault}")
                else:
                    kept.setdefault(rule.edit.key, Proposal(rule.edit, rule.samples or tuple(samples)))
            if refused:
                self.run.record("refused", step=context.step.index, edits=refused)
            if not kept and not complaints:
                complaints.append("asked again")
                raise ValueError("no rule can be used:\n" + "\n".join(refused or ["there is none"]))
            return Reflection(list(kept.values()), (), {"rules": Tally(len(made), len(kept))})

        return await self.stages.ask_rules(context, cases, read, limit=limit, redraw=redraw, wording=number)

    def _check(self, edit: Edit, shown: Mapping[str, str], context: Context) -> tuple[Proposal, str]:
        """The proposal with its verified support, and the reason why it fails a check ("" if it passes all)."""
        proposal = Proposal(edit, support(edit, shown))
        report = self._try(edit, context)
        if not proposal.support:
            fault = "no citation holds; quote verbatim from a trajectory above"
            if unknown := sorted({cited.sample for cited in edit.evidence}.difference(shown)):
                fault += f"; there is no sample {', '.join(unknown)[:120]} there"
        elif not (fault := copied(edit, context.skill.body, [self.samples[sample] for sample in shown], self.env)):
            fault = report.reason if report.status == "rejected" else ""
        label = json.dumps(edit.text or edit.target, ensure_ascii=False)[:120]
        return proposal, f"{label}: {fault}" if fault else ""

    def _context(self, skill: Skill, memory: Memory, step: Step) -> Context:
        """The context of a question. Its patterns leave out each one with a sample that an edit in the skill answers.

        If such an edit did not help, its samples fail again and are diagnosed again.
        """
        taken = [p for p in self.made if p.edit.text and p.edit.text.strip() in skill.body]
        self.made = [p for p in self.made if p not in taken]
        answered = {sample for p in taken for sample in p.support}
        self.unfixed = tuple(pattern for pattern in self.unfixed if answered.isdisjoint(pattern.samples))
        return Context(skill, replace(memory, unfixed=self.unfixed), step)

    # -- prose

    async def _rewrite(self, context: Context, proposals: Sequence[Proposal]) -> list[Proposal]:
        """One edit that rewrites the whole body to carry out the proposals; empty if no answer can be used."""
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
        evidence += [Part("", f"Keep this section verbatim:\n\n{text}") for text in context.memory.protected]
        edit = await self.stages.ask_or_none("rewrite", context, evidence, read)
        return [Proposal(edit, tuple(sorted({s for p in proposals for s in p.support})))] if edit else []

    def _try(self, edit: Edit, context: Context) -> Report:
        """The report of applying the edit alone; the skill stays as it is."""
        limits = {"protect": context.memory.protected, "max_tokens": self.train.max_skill_tokens}
        return apply(context.skill, [edit], **limits).reports[0]

    def _refuse_copies(self, skill: Skill, text: str) -> None:
        """Raise ValueError if prose (guidance or a rewrite) copies a train sample or its answer, like for edits."""
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
            show_rubric=self.cfg.show_rubric,
        )

    def _show_case(self, rollout: Rollout) -> str:
        return render_case(
            rollout,
            self.samples[rollout.sample],
            self.env,
            chars=min(CASE_CHARS, self.cfg.trajectory_chars),
            show_expected=self.cfg.show_expected,
            show_rubric=self.cfg.show_rubric,
        )

    def _show_pairs(self, pairs: Sequence[Pair]) -> list[Part]:
        shown = []
        for pair in pairs:
            if pair.before.score is None or pair.after.score is None:
                continue
            text = f"{pair.kind}\n\nBefore: {pair.before.answer}\n\nNow:\n{self._show(pair.after)}"
            scores = {"before": f"{pair.before.score.value:.2f}", "after": f"{pair.after.score.value:.2f}"}
            shown.append(Part.of("pair", text, sample=pair.after.sample, **scores))
        return shown


def nearest(failures: Sequence[Rollout], successes: Sequence[Rollout], samples: Mapping[str, Sample]) -> list[Rollout]:
    """The successes, most similar to the failures first: Jaccard index of the tasks' words; ties keep their order."""
    words = set().union(*(samples[rollout.sample].text.lower().split() for rollout in failures))

    def likeness(rollout: Rollout) -> float:
        own = set(samples[rollout.sample].text.lower().split())
        return len(own & words) / (len(own | words) or 1)

    return sorted(successes, key=likeness, reverse=True)


def _unreadable_key(prompt: str, step: int, redraw: int) -> str:
    """The journal key that notes that no minibatch's answer could be read."""
    return digest("unread", prompt, step, redraw)


async def _collecting(rollouts: AsyncIterable[Rollout], seen: list[Rollout]) -> AsyncIterator[Rollout]:
    async for rollout in rollouts:
        seen.append(rollout)
        yield rollout


def _solved_samples(rollouts: Sequence[Rollout]) -> set[str]:
    """The samples that no attempt failed."""
    scored = [(rollout.sample, rollout.score.hard) for rollout in rollouts if rollout.score is not None]
    return {sample for sample, _ in scored} - {sample for sample, hard in scored if not hard}


def _patterns(data: Any, failing: Container[str]) -> list[Pattern]:
    """The patterns in an answer. A pattern is left out if it cannot be read, or if it names no failure in `failing`."""
    entries = data.get("diagnosis") if isinstance(data, Mapping) else None
    patterns = []
    for entry in entries if isinstance(entries, list) else ():
        text, samples = (entry.get("pattern"), entry.get("samples")) if isinstance(entry, Mapping) else (None, None)
        if isinstance(text, str) and isinstance(samples, list):
            named = tuple(s for s in samples if isinstance(s, str) and s in failing)
            if text.strip() and named:
                patterns.append(Pattern(" ".join(text.split())[:PATTERN_CHARS], named))
    return patterns


def _text(data: Any, name: str) -> str:
    """A string field of an answer, stripped."""
    if not isinstance(data.get(name), str):
        raise ValueError(f'"{name}" must be a string')
    return data[name].strip()
