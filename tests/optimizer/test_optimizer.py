"""The optimizer that is a model, on answers given by hand: what it refuses, what it keeps, what it asks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from skilltune.config import OptimizerConfig, TrainConfig
from skilltune.edits import Edit
from skilltune.envs import Env
from skilltune.errors import RunError
from skilltune.journal.run import Paid, Run
from skilltune.models import Reply, Request
from skilltune.optimizer import Memory, Pair, Proposal, Step, join
from skilltune.optimizer.model import SLOW_HEADING, ModelOptimizer
from skilltune.optimizer.stage import ByModel
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.skill import Skill
from skilltune.usage import Usage
from training import streamed

pytestmark = pytest.mark.anyio
Checks = Literal["enforce", "record"]
TASK = "Please find the street and the number of the house in which the painter was born."
SKILL = Skill("---\nname: desk\n---\n# Desk\n\nAnswer.\n", "desk")
ENV = Env([{"id": "s1", "input": TASK, "target": "Rosa-Luxemburg-Straße 17, Berlin"}])
STEP = Step(1, 1, tuple(ENV.samples), 4, starts_epoch=True, ends_epoch=False)
COPY = {"op": "add", "text": f"- When asked: {TASK}", "why": "", "evidence": [{"sample": "s1", "quote": "in Hamburg"}]}
RULE = {**COPY, "text": "- Name the street first."}


class Answers:
    """Stands for the client: gives these answers in turn, the last one from then on, and keeps what it was asked."""

    model = SimpleNamespace(fingerprint="by hand")
    answered = True

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[Request]()

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Reply(json.dumps(answer), Usage(calls=1), "stop")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path) as run:
        yield run


def build(run: Run, answers: Answers, checks: Checks = "enforce", **train: Any) -> ModelOptimizer:
    client: Any = answers
    samples = {sample.id: sample for sample in ENV.samples}
    return ModelOptimizer(ByModel(client, run), run, ENV, OptimizerConfig(checks=checks), TrainConfig(**train), samples)


def failure() -> Rollout:
    return Rollout("s1", SKILL.hash, 0, Trajectory("He was born in Hamburg."), Score(0.0))


def told(run: Run, type: str) -> list[Any]:
    return [data for _, _, data in run.events(type)]


# -- the stream


async def test_a_minibatch_is_reflected_on_as_soon_as_it_is_complete(run: Run) -> None:
    """The failures of the first half of the batch are asked about while the second half is still rolling."""
    answers = Answers({"diagnosis": [], "edits": [RULE]})
    asked: list[int] = []

    async def slowly() -> AsyncIterator[Rollout]:
        for attempt in range(4):
            yield replace(failure(), attempt=attempt)
            for _ in range(20):
                await asyncio.sleep(0)
            asked.append(len(answers.asked))

    [proposal] = await build(run, answers, minibatch_size=2).propose(SKILL, slowly(), Memory(), STEP, 4)
    assert asked == [0, 1, 1, 2]
    assert (proposal.support, proposal.among) == (("s1",), len(STEP.batch))


async def test_a_minibatch_that_is_not_full_and_what_was_not_scored_cost_no_failure_its_place(run: Run) -> None:
    answers = Answers({"diagnosis": [], "edits": [RULE]})
    rollouts = [replace(failure(), attempt=attempt) for attempt in range(5)]
    rollouts[1] = replace(rollouts[1], score=None)
    rollouts[3] = replace(rollouts[3], score=Score(1.0))
    await build(run, answers, minibatch_size=2).propose(SKILL, streamed(rollouts), Memory(), STEP, 4)
    shown = [re.findall(r'score="(.*?)" attempt="(\d)"', request.messages[-1].text) for request in answers.asked]
    assert shown == [[("0.00", "0"), ("0.00", "2")], [("0.00", "4"), ("1.00", "3")]]  # a success stands beside


# -- edits whose evidence does not hold


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (COPY, "consecutive words of sample s1"),
        ({**RULE, "text": "- Be brief.", "evidence": []}, "no citation holds"),
        ({**RULE, "text": "- Be kind.", "evidence": [{"sample": "s9", "quote": "Rue"}]}, "there is no sample s9 there"),
        ({**RULE, "op": "replace", "target": "Never said."}, "not found"),
    ],
)
async def test_pitfall_11_enforce_refuses_what_record_keeps_and_writes_down(run: Run, edit: Any, fault: str) -> None:
    answers = Answers({"diagnosis": [], "edits": [RULE, edit]})
    kept = await build(run, answers).propose(SKILL, streamed([failure()]), Memory(), STEP, 4)
    assert [proposal.edit.text for proposal in kept] == [RULE["text"]]
    assert len(answers.asked) == 2  # once again, with what is wrong
    assert fault in answers.asked[1].messages[-1].text
    assert not told(run, "doubtful")

    answers = Answers({"diagnosis": [], "edits": [RULE, edit]})
    another = Skill(f"{SKILL.text}\nBriefly.\n")  # so that it is asked anew
    kept = await build(run, answers, "record").propose(another, streamed([failure()]), Memory(), STEP, 4)
    assert {(p.edit.op, p.edit.text) for p in kept} == {("add", RULE["text"]), (edit["op"], edit["text"])}
    assert len(answers.asked) == 1
    [doubtful] = told(run, "doubtful")
    assert fault in doubtful["edits"][0]


async def test_record_refuses_only_what_cannot_be_read(run: Run) -> None:
    answers = Answers({"diagnosis": [], "edits": [RULE, {"op": "explode"}]})
    kept = await build(run, answers, "record").propose(SKILL, streamed([failure()]), Memory(), STEP, 4)
    assert [proposal.edit.text for proposal in kept] == [RULE["text"]]
    assert "explode" in told(run, "refused")[0]["edits"][0]
    assert not told(run, "doubtful")


# -- prose


@pytest.mark.parametrize("copy", [TASK, "The house is in Rosa-Luxemburg-Straße 17, Berlin."])
async def test_pitfall_11_guidance_must_not_copy_a_train_sample_or_its_answer(run: Run, copy: str) -> None:
    answers = Answers({"reasoning": "", "guidance": copy}, {"reasoning": "", "guidance": "Name the street."})
    edit = await build(run, answers).slow_update(SKILL, [Pair(failure(), failure())], Memory(), STEP)
    assert edit is not None
    assert edit.text == f"{SLOW_HEADING}\n\nName the street."
    assert "sample s1; write general guidance instead" in answers.asked[1].messages[-1].text

    stubborn = Answers({"reasoning": "", "guidance": copy})
    other = Skill(f"{SKILL.text}\nx\n")
    assert await build(run, stubborn).slow_update(other, [], Memory(), STEP) is None
    assert [event["stage"] for event in told(run, "fallback")] == ["slow_update"]
    faithful = await build(run, stubborn, "record").slow_update(other, [], Memory(notes="n"), STEP)
    assert faithful is not None
    assert copy in (faithful.text or "")  # preset `paper` has no such rule


async def test_pitfall_11_a_rewrite_must_not_copy_a_train_sample(run: Run) -> None:
    reflected = {"diagnosis": [], "edits": [RULE]}
    copy, rule = ({"skill": f"# Desk\n\n{text}\n", "summary": ""} for text in (TASK, "Name the street."))
    answers = Answers(reflected, copy, rule)
    [proposal] = await build(run, answers, update="rewrite").propose(SKILL, streamed([failure()]), Memory(), STEP, 4)
    assert (proposal.edit.op, proposal.edit.text, proposal.support) == ("rewrite", rule["skill"], ("s1",))
    assert "write general guidance" in answers.asked[2].messages[-1].text


async def test_pitfall_5_a_rewrite_keeps_the_slow_section(run: Run) -> None:
    slow = f"{SLOW_HEADING}\n\nStreets come first."
    skill, memory = Skill(f"# Desk\n\nAnswer.\n\n{slow}\n"), Memory(slow=slow)
    without, whole = ({"skill": text, "summary": ""} for text in ("# Desk\n\nNew.\n", f"# Desk\n\nNew.\n\n{slow}\n"))
    answers = Answers({"diagnosis": [], "edits": [RULE]}, without, whole)
    optimizer = build(run, answers, update="rewrite")
    [proposal] = await optimizer.propose(skill, streamed([failure()]), memory, STEP, 4)
    assert proposal.edit.text == whole["skill"]
    assert f"Keep this section verbatim:\n\n{slow}" in answers.asked[1].messages[-1].text
    assert "protected" in answers.asked[2].messages[-1].text


# -- merging


def test_the_same_edit_of_several_minibatches_becomes_one_with_their_joint_support() -> None:
    a, b = Edit("add", text="a"), Edit("add", text="b")
    spaced = Edit("add", text=" a\n")
    made = [Proposal(b, ("s1",)), Proposal(a, ("s2",)), Proposal(spaced, ("s3", "s2"))]
    assert join(made) == [Proposal(a, ("s2", "s3")), Proposal(b, ("s1",))]


async def test_a_merged_edit_is_supported_by_what_held_before_and_by_nothing_else(run: Run) -> None:
    merged = {**RULE, "text": "- Both.", "evidence": [*RULE["evidence"], {"sample": "s9", "quote": "never shown"}]}
    one, two = ({"diagnosis": [], "edits": [{**RULE, "text": text}]} for text in ("- One.", "- Two."))
    answers = Answers(one, two, {"edits": [merged]})
    optimizer = build(run, answers, merge="rank", minibatch_size=1)
    twice = streamed([failure(), replace(failure(), attempt=1)])
    [proposal] = await optimizer.propose(SKILL, twice, Memory(), STEP, 4)
    assert len(answers.asked) == 3
    assert (proposal.edit.text, proposal.support) == ("- Both.", ("s1",))


# -- the learning rate


async def test_the_learning_rate_is_asked_of_the_proposals_and_clamped_to_them(run: Run) -> None:
    proposals = [Proposal(Edit("add", text=f"- Rule {i}."), ("s1",)) for i in range(3)]
    for said, most, rate in ((99, 8, 3), (99, 2, 2), (-1, 8, 1), (2, 8, 2)):
        answers = Answers({"edits": said, "reason": ""})
        memory = Memory(notes=f"{said} of {most}")
        assert await build(run, answers).learning_rate(SKILL, proposals, memory, STEP, most) == rate
        assert f"<edit_budget>\n{min(most, 3)}\n" in answers.asked[0].messages[-1].text
        assert "- Rule 2." in answers.asked[0].messages[-1].text


async def test_no_learning_rate_is_asked_of_no_proposals(run: Run) -> None:
    answers = Answers({"edits": 1, "reason": ""})
    optimizer = build(run, answers)
    assert await optimizer.learning_rate(SKILL, [], Memory(), STEP, 4) == 4
    assert await optimizer.learning_rate(SKILL, [], Memory(lr=2), STEP, 4) == 2
    assert not answers.asked


# -- the journal


@pytest.mark.parametrize(
    "odd", [None, 7, [], "text", {}, {"text": 7, "finish": "stop"}, {"text": "{}", "finish": None}]
)
async def test_pitfall_35_an_odd_answer_in_the_journal_is_called_damaged(run: Run, odd: Any) -> None:
    answers = Answers({"edits": 1, "reason": ""})

    async def memo(key: str, kind: str, pay: Any) -> Any:
        run.put(key, kind, Paid(odd, Usage()))
        return await Run.memo(run, key, kind, pay)

    optimizer = build(run, answers)
    by_model: Any = optimizer.answers
    by_model.run = SimpleNamespace(memo=memo, reading=run.reading, notify=run.notify)
    with pytest.raises(RunError, match="is damaged"):
        await optimizer.learning_rate(SKILL, [Proposal(Edit("add", text="- A rule."), ("s1",))], Memory(), STEP, 4)
    assert not answers.asked
