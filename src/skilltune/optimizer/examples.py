"""An optimizer without a model: it proposes worked examples from train failures, and changes to earlier examples.

Small models ignore rules and follow examples, and copying an example needs no key. So training works offline, and a
paid optimizer has a baseline to beat. It proposes to add an example from a failed train sample, to remove an example,
to exchange two neighbours, and to add one line on the format that all expected answers share. Examples have the form of
the target's prompt. The gate measures which proposals help.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

from skilltune.edits import Citation, Edit
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.journal.keys import rng
from skilltune.optimizer import Memory, Pair, Proposal, Step
from skilltune.rollout import Rollout
from skilltune.samples import Sample
from skilltune.skill import Skill

REMOVALS = 2  # most removals proposed per step, so that most of the pool are new examples
CHARS = 1200  # longest example


@dataclass(slots=True)
class ExamplesOptimizer:
    """Implements `Optimizer`. `samples` are the train samples by id; it copies from no others."""

    env: Env
    samples: Mapping[str, Sample]
    pool: int
    seed: int
    looks_back: bool = False

    async def propose(
        self, skill: Skill, rollouts: AsyncIterable[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        """Up to `pool` edits: the format line, removals, one exchange, and new examples from failures for the rest."""
        seen = [rollout async for rollout in rollouts]
        draw = rng(self.seed, "examples", step.index)
        body = skill.body.replace("\r\n", "\n")
        places = {text: _place(body, text) for sample in self.samples.values() if (text := self.example(sample))}
        present = sorted((text for text in places if places[text] >= 0), key=lambda text: places[text])

        others = [*self._format(body, seen), *self._removals(present, draw), *self._exchange(body, present, draw)]
        failed = [r.sample for r in seen if r.score is not None and not r.score.hard]
        draw.shuffle(failed)
        new = {self.example(self.samples[sample]): self.samples[sample] for sample in dict.fromkeys(failed)}
        fresh = [self._add(sample) for text, sample in new.items() if text and places[text] < 0 and len(text) <= CHARS]
        tried = {entry.edit.key for entry in memory.rejected}
        others, fresh = ([p for p in part if p.edit.key not in tried] for part in (others, fresh))
        return [replace(p, among=len(step.batch)) for p in _mixed(others, fresh, max(self.pool, limit))]

    def example(self, sample: Sample) -> str:
        """The sample in the form of the target's prompt, followed by its answer; "" if it states no answer."""
        expected = self.env.stated(sample)
        asked = self.env.asked(sample).rstrip()
        joint = " " if asked.endswith(":") else "\n"
        text = re.sub(r"\r\n?", "\n", f"{asked}{joint}{expected}")
        return text.strip("\n").rstrip() if expected else ""  # as an edit inserts it

    def _add(self, sample: Sample) -> Proposal:
        why = f"a worked example of train sample {sample.id}, which failed"
        evidence = (Citation(sample.id, sample.text[:80]),)
        return Proposal(Edit("add", text=self.example(sample), why=why, evidence=evidence), (sample.id,))

    def _removals(self, present: Sequence[str], draw: Random) -> list[Proposal]:
        chosen = draw.sample(present, min(REMOVALS, len(present)))
        return [Proposal(Edit("delete", target=text, why="does this example still help?")) for text in chosen]

    def _exchange(self, body: str, present: Sequence[str], draw: Random) -> list[Proposal]:
        """Exchange two neighbouring examples, because small models follow the last one most."""
        pairs = [
            (target, f"{second}{between}{first}")
            for first, second in pairwise(present)
            for between in (body[_place(body, first) + len(first) : _place(body, second)],)
            for target in (f"{first}{between}{second}",)
            if between and not between.strip()
        ]
        if not pairs:
            return []
        target, text = draw.choice(pairs)
        return [Proposal(Edit("replace", target=target, text=text, why="the other order of two examples"))]

    def _format(self, body: str, rollouts: Sequence[Rollout]) -> list[Proposal]:
        """One line on the shape of this batch's expected answers, if all share one."""
        answers = [self.env.stated(self.samples[r.sample]) for r in rollouts]
        line = describe_format([answer for answer in answers if answer])
        failed = tuple(r.sample for r in rollouts if r.score is not None and not r.score.hard)
        if not line or line in body or not failed:
            return []
        return [Proposal(Edit("add", text=line, why="the shape that all expected answers share"), failed)]

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        """Always the maximum: without a model there is no reason for less."""
        return most

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        return None

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        return memory.notes


def require_answers(env: Env, train: Sequence[Sample]) -> None:
    """Raise UsageError if no train sample states an answer, because there would be nothing to propose."""
    if not any(env.stated(sample) for sample in train):
        raise UsageError(
            f"optimizer.model=examples copies worked examples, but none of the {len(train)} train samples states an "
            "answer: give them a `target` (in an eval, `expected_output`), or name a model as optimizer.model"
        )


def describe_format(answers: Sequence[str]) -> str:
    """A rule for the shape that all answers share, such as <digits>-<digits>, or for their common beginning.

    "" if they share none, if there are fewer than three, or if all are equal, because the rule would be the answer.
    """
    if len(answers) < 3 or len(set(answers)) == 1:
        return ""
    shapes = {re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", answer)) for answer in answers}
    if len(shapes) == 1 and (shape := shapes.pop()) not in {"a", "0"}:
        readable = shape.replace("0", "<digits>").replace("a", "<word>")
        return f"Answer with nothing but {readable}."
    prefix = answers[0]
    for answer in answers:
        while not answer.startswith(prefix):
            prefix = prefix[:-1]
    return f'Begin the answer with "{prefix.strip()}".' if len(prefix.strip()) >= 3 else ""


def _place(body: str, text: str) -> int:
    """The offset of the text in the body if it fills whole lines there, else -1."""
    found = re.search(rf"^{re.escape(text)}[ \t]*$", body, re.MULTILINE)
    return found.start() if found else -1


def _mixed(others: list[Proposal], fresh: list[Proposal], most: int) -> list[Proposal]:
    """At most `most` proposals: others for up to a third of them, then new examples."""
    return [*others[: max(1, most // 3)], *fresh][:most]
