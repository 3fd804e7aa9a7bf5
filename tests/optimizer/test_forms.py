"""The forms of proposals: edits that name a line by its number, plain rules, and the choice between them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from skilltune.cli.main import app
from skilltune.config import OptimizerConfig, TrainConfig, make_config
from skilltune.edits import Edit, Malformed, apply
from skilltune.envs import Env
from skilltune.errors import CutShort, InfraStopped, UsageError
from skilltune.history.usable import Share, describe_proposals, usable_proposals
from skilltune.journal.run import Run
from skilltune.models import Reply, Request, Schema, user
from skilltune.models.structured import ask
from skilltune.optimizer import Memory, Proposal, Step
from skilltune.optimizer.lines import number_lines, read_edits
from skilltune.optimizer.model import ModelOptimizer
from skilltune.optimizer.rules import read_rules, read_text
from skilltune.optimizer.stage import ByModel
from skilltune.report.terminal import line
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.skill import Skill
from skilltune.usage import Usage
from skilltune.verdict import Rejected
from training import events, small, streamed, train

pytestmark = pytest.mark.anyio
BODY = "# Desk\n\n- Be kind.\n- Answer.\n- Be kind. Always.\n"
GOLD = "Rosa-Luxemburg-Straße 17, Berlin"
TASK = "Please find the street and the number of the house in which the painter was born."
ENV = Env([{"id": f"s{i}", "input": f"{TASK} No. {i}.", "target": f"{GOLD} {i}"} for i in range(8)])
SKILL = Skill(f"---\nname: desk\n---\n{BODY}", "desk")
MISQUOTED = {"op": "add", "text": "- Be brief.", "why": "", "evidence": [{"sample": "s0", "quote": "never said"}]}
GOOD = {**MISQUOTED, "evidence": [{"sample": "s0", "quote": "in Hamburg"}]}
ASTRAY = {**GOOD, "op": "replace", "target": "Be polite."}


# -- lines by number


def edited(data: Any, body: str = BODY, **options: Any) -> str:
    """The body after the edits, or the reason why the first of them cannot be used."""
    edits = read_edits({"edits": data}, body, **options)
    if isinstance(edits[0], Malformed):
        return edits[0].reason
    applied = apply(Skill(body), [edit for edit in edits if isinstance(edit, Edit)])
    return applied.skill.text if applied.changed else applied.reports[0].reason


@pytest.mark.parametrize("place", [4, "line 4", "L4", "Line 4:", "4| - Answer.", "- Answer."])
def test_a_line_may_be_named_by_number_or_quoted(place: Any) -> None:
    assert edited([{"op": "replace", "target": place, "text": "- Reply."}]) == BODY.replace("Answer", "Reply")
    assert edited([{"op": "add", "after": place, "text": "- Reply."}]) == BODY.replace("Answer.", "Answer.\n- Reply.")
    assert edited([{"op": "delete", "target": place}]) == BODY.replace("- Answer.\n", "")


def test_blank_lines_before_the_text_count_as_an_editor_counts_them() -> None:
    body = f"\n\n{BODY}"
    assert number_lines(body).startswith("3| # Desk\n4|\n5| - Be kind.")
    assert edited([{"op": "delete", "target": "line 6"}], body) == body.replace("- Answer.\n", "")


def test_a_line_that_is_not_unique_is_still_the_one_that_its_number_names() -> None:
    """`- Be kind.` is also the beginning of the last line."""
    assert edited([{"op": "replace", "target": 3, "text": "- Be fair."}]).splitlines()[2] == "- Be fair."
    assert edited([{"op": "delete", "target": 3}]) == "# Desk\n\n- Answer.\n- Be kind. Always.\n"
    assert edited([{"op": "add", "after": 3, "text": "- Smile."}]).splitlines()[2:4] == ["- Be kind.", "- Smile."]


def test_a_bare_number_in_a_text_is_a_line_only_if_the_lines_were_numbered() -> None:
    bare = [{"op": "replace", "target": "4", "text": "4| - Reply."}]
    assert "not found" in edited(bare)
    assert edited(bare, numbered=True) == BODY.replace("Answer", "Reply")
    assert edited([{"op": "replace", "target": "4", "text": "5"}], "Take 4 of them.") == "Take 5 of them."
    assert edited([{"op": "replace", "target": "line 4", "text": "row 4"}], "See line 4.\n") == "See row 4.\n"


def test_a_skill_with_numbered_lines_of_its_own_keeps_them() -> None:
    table = "1| one\n2| two\n"
    assert (
        edited([{"op": "replace", "target": "2| two", "text": "2| deux"}], table, numbered=True) == "1| one\n2| deux\n"
    )
    assert edited([{"op": "replace", "target": 1, "text": "1| un"}], table, numbered=True) == "1| un\n2| two\n"


@pytest.mark.parametrize(
    ("place", "reason"), [(0, "no line 0"), (9, "has 5 lines"), (-1, "no line -1"), (2, "line 2 is blank")]
)
def test_a_number_without_a_line_is_refused_with_the_reason(place: int, reason: str) -> None:
    assert reason in edited([{"op": "replace", "target": place, "text": "x"}])


def test_the_other_faults_of_a_numbered_edit_are_still_found() -> None:
    assert "add needs text" in edited([{"op": "add", "after": 3, "text": None}])
    assert "target must be a text" in edited([{"op": "replace", "target": True, "text": "x"}])
    assert edited([{"op": "delete", "target": 3, "text": ""}]).count("Be kind") == 1
    assert "edits must be a list" in edited("all of them")


@given(st.lists(st.sampled_from(["a", "- a", "- a b", "", "b"]), min_size=1, max_size=7), st.data())
def test_a_numbered_edit_changes_that_line_and_no_other(lines: list[str], data: st.DataObject) -> None:
    body = "\n".join(["# x", *lines, "- end"])
    shown = number_lines(body).splitlines()
    at = data.draw(st.sampled_from([i for i, line in enumerate(body.split("\n")) if line.strip()]))
    assert shown[at].startswith(f"{at + 1}| ")
    for op in ("replace", "delete", "add"):
        name = "after" if op == "add" else "target"
        after = edited([{"op": op, name: at + 1, "text": None if op == "delete" else "- new"}], body)
        wanted = body.split("\n")
        wanted[at : at + 1] = {"replace": ["- new"], "delete": [], "add": [wanted[at], "- new"]}[op]
        assert [line for line in after.split("\n") if line.strip()] == [line for line in wanted if line.strip()]


# -- plain rules


def test_rules_are_read_from_whatever_list_a_model_writes() -> None:
    text = (
        "Here are the rules:\n```\n## Rules\n1. Write the street first.\n2) **Give the number** last.\n\n"
        "- Rule 3: Leave out the town. [s1, s2]\n* Write the street first.\nBerlin\nAnswer.\n• Keep [x] as it is.\n```"
    )
    rules = read_rules(text, BODY, {"s1", "s2"})
    assert [(rule.edit.text, rule.samples) for rule in rules if rule.edit] == [
        ("- Write the street first.", ()),
        ("- Give the number last.", ()),
        ("- Leave out the town.", ("s1", "s2")),
        ("- Keep [x] as it is.", ()),
    ]
    assert [(rule.line, rule.fault) for rule in rules if not rule.edit] == [
        ("Berlin", "a rule has at least 3 words"),
        ("Answer.", "a rule has at least 3 words"),
    ]
    (said,) = read_rules("- Be kind. Always.", f"{BODY}- Be kind. Always.\n", ())
    assert said.fault in ("the skill says that already", "a rule has at least 3 words")
    (long,) = read_rules("word " * 200, BODY, ())
    assert "at most" in long.fault


def test_a_rule_that_the_token_limit_cut_is_left_out() -> None:
    assert read_text(Reply("<think>hm</think>One rule.\nAnother ru", Usage(), "length")) == "One rule."
    assert read_text(Reply("One rule.\nAnother rule.", Usage(), "stop")) == "One rule.\nAnother rule."
    with pytest.raises(ValueError, match="refused"):
        read_text(Reply("No.", Usage(), "refusal"))


@given(st.text(max_size=300))
def test_any_text_is_read_as_rules_without_an_error(text: str) -> None:
    for rule in read_rules(text, BODY, {"s1"}):
        assert (rule.edit is None) == bool(rule.fault)


# -- the choice of the form


class Answers:
    """Stands for the client: answers by stage, the last one from then on. A text is an answer as it is."""

    model = SimpleNamespace(fingerprint="by hand")
    answered = True

    def __init__(self, edits: list[Any], rules: list[str] | None = None, finish: Any = "stop") -> None:
        self.left, self.finish, self.asked = {True: edits, False: rules or ["- Give the street first."]}, finish, []

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        left = self.left[request.schema is not None]
        answer = left.pop(0) if len(left) > 1 else left[0]
        text = answer if isinstance(answer, str) else json.dumps({"diagnosis": [], "edits": answer})
        return Reply(text, Usage(calls=1), self.finish)

    @property
    def forms(self) -> list[str]:
        return ["edits" if request.schema else "rules" for request in self.asked]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path) as run:
        yield run


def build(run: Run, answers: Any, size: int = 4, **cfg: Any) -> ModelOptimizer:
    samples = {sample.id: sample for sample in ENV.samples}
    train = TrainConfig(minibatch_size=size)
    return ModelOptimizer(ByModel(answers, run), run, ENV, OptimizerConfig(**cfg), train, samples)


async def propose(optimizer: ModelOptimizer, step: int = 1, skill: Skill = SKILL, **memory: Any) -> list[Proposal]:
    failures = [Rollout(s.id, skill.hash, 0, Trajectory("He was born in Hamburg."), Score(0.0)) for s in ENV.samples]
    when = Step(step, 1, tuple(ENV.samples), 4, starts_epoch=step == 1, ends_epoch=False)
    return await optimizer.propose(skill, streamed(failures), Memory(**memory), when, 4)


def told(run: Run, type: str) -> list[Any]:
    return [data for _, _, data in run.events(type)]


async def test_rules_become_additions_that_rest_on_the_failures_of_their_minibatch(run: Run) -> None:
    answers = Answers([], ["1. Give the street first.\n2. Leave out the town. [s1]", f"The answer is {GOLD} 5."])
    kept = await propose(build(run, answers, form="rules"))
    assert answers.forms == ["rules"] * 3  # a copied answer is refused, and asked again once
    assert [(p.edit.op, p.edit.text, p.support) for p in kept] == [
        ("add", "- Give the street first.", ("s0", "s1", "s2", "s3")),
        ("add", "- Leave out the town.", ("s1",)),
    ]
    assert "it copies the expected answer of sample s5" in told(run, "refused")[0]["edits"][0]
    assert told(run, "proposals") == [{"step": 1, "form": "rules", "made": 3, "usable": 2}]
    assert usable_proposals(run) == {"rules": Share(3, 2)}
    assert describe_proposals(usable_proposals(run)) == "2 of 3 (67 %) usable: plain rules 2 of 3 (67 %)"


async def test_the_request_for_rules_is_short_and_names_what_was_tried(run: Run) -> None:
    answers = Answers([])
    tried = Rejected(Edit("add", text="- Shout the name."), "no gain")
    await propose(build(run, answers, form="rules", show_expected=False), rejected=(tried,))
    text = answers.asked[0].messages[-1].text
    assert "did not help:\n- Shout the name.\n\n" in text
    assert GOLD not in text  # hidden
    assert len(text) < 1500
    assert '"op"' not in f"{text}{answers.asked[0].messages[0].text}"


async def test_requests_for_rules_ask_for_orders_and_for_descriptions_in_turn(run: Run) -> None:
    answers = Answers([])
    optimizer = build(run, answers, form="rules")
    for step in (1, 2):
        await propose(optimizer, step)
    ends = [request.messages[-1].text.rpartition("such as ")[2] for request in answers.asked]
    order, description = '"Answer with ... in the form ...".', '"The answer should be ...".'
    assert (set(ends[:2]), set(ends[2:])) == ({order, description}, {order, description})
    one = build(run, alone := Answers([]), size=8, form="rules")
    for step in (3, 4):
        await propose(one, step)
    assert [request.messages[-1].text.endswith(order) for request in alone.asked] == [False, True]


async def test_auto_asks_a_minibatch_without_a_usable_edit_for_rules_and_then_only_for_rules(run: Run) -> None:
    answers = Answers([[MISQUOTED, {"op": "explode"}]])
    weak = build(run, answers)
    kept = await propose(weak)
    assert sorted(answers.forms) == [*["edits"] * 4, *["rules"] * 2]
    assert [proposal.edit.text for proposal in kept] == ["- Give the street first."]
    assert told(run, "proposals") == [
        {"step": 1, "form": "edits", "made": 4, "usable": 0},
        {"step": 1, "form": "rules", "made": 2, "usable": 2},
    ]
    answers.asked.clear()
    await propose(weak, 2)
    assert answers.forms == ["rules"] * 2
    assert [(event["form"], event["reason"][:6]) for event in told(run, "form")] == [("rules", "0 of 4")]

    again = build(run, Answers([[GOOD]]))  # a new process: the decision of the journal stands
    await propose(again, 2)
    assert again.form == "rules"


async def test_a_strong_optimizer_is_asked_for_edits_alone(run: Run) -> None:
    strong = Answers([[GOOD]])
    optimizer = build(run, strong, 8)
    for step in (1, 2, 3):
        await propose(optimizer, step)
    assert set(strong.forms) == {"edits"}
    assert "1| # Desk" not in strong.asked[-1].messages[-1].text
    assert not told(run, "form")
    assert describe_proposals(usable_proposals(run)) == "3 of 3 (100 %) usable"


async def test_an_edit_astray_brings_the_numbers_of_the_lines(run: Run) -> None:
    answers = Answers([[GOOD, ASTRAY], [GOOD, {**ASTRAY, "target": "4"}], [GOOD]])
    optimizer = build(run, answers, 8, form="edits")
    kept = await propose(optimizer)
    assert "4| - Answer." in answers.asked[1].messages[-1].text
    assert {proposal.edit.target for proposal in kept} == {None, "- Answer."}
    await propose(optimizer, 2)
    assert "4| - Answer." in answers.asked[-1].messages[-1].text.partition("</skill>")[0]
    assert [event["form"] for event in told(run, "form")] == ["lines"]


async def test_form_edits_never_asks_for_rules(run: Run) -> None:
    answers = Answers([[MISQUOTED]])
    optimizer = build(run, answers, form="edits")
    assert await propose(optimizer) == await propose(optimizer, 2) == []
    assert set(answers.forms) == {"edits"}


async def test_edits_that_the_token_limit_cuts_bring_rules_and_unreadable_ones_stop_the_run(run: Run) -> None:
    cut = Answers(['{"diagnosis": [{"pattern"'], finish="length")
    assert [p.edit.text for p in await propose(build(run, cut))] == ["- Give the street first."]
    assert sorted(cut.forms) == [*["edits"] * 4, *["rules"] * 2]
    other = Skill(f"{SKILL.text}\nBriefly.\n")
    with pytest.raises(InfraStopped, match="failed on every minibatch"):
        await propose(build(run, Answers(["Nothing comes to mind."])), 2, other)
    request = Request((user("?"),), schema=Schema("reflect", {}))
    with pytest.raises(CutShort):
        await ask(cut, request, lambda data: data)


@pytest.mark.parametrize("model", ["examples", "handoff:answers", "claude-code/opus", "plugin:mine"])
def test_rules_are_a_form_for_chat_models(model: str) -> None:
    with pytest.raises(UsageError, match="form for chat models"):
        make_config({"skill": "s.md", "optimizer": {"model": model, "form": "rules"}})


# -- in the world


@pytest.mark.slow
async def test_an_optimizer_that_always_misquotes_learns_by_rules(tmp_path: Path) -> None:
    settings = {"train.epochs": 2, "gate.screen": 16}
    with small(q=1.0, misquote=1.0) as world:
        trained = await train(world, tmp_path, settings)
        assert world.true_score(trained.result.best.text) > 0.4
        calls = world.calls.copy()
        again = await train(world, tmp_path, settings)
        assert world.calls == calls
        seen = {s["split"] for s in world.samples() if world.optimizer_saw(s["input"])}
    assert seen == {"train"}
    assert again.outcome == trained.outcome
    assert [event["form"] for event in events(trained.folder, "form")] == ["rules"]
    shown = CliRunner().invoke(app, ["show", str(trained.folder)]).stdout
    assert re.search(r"^proposals +\d+ of \d+ \(\d+ %\) usable: edits 0 of \d+ \(0 %\), plain rules ", shown, re.M)
    assert "proposals of the optimizer" in trained.read("card.md")
    said = [line("proposals", event, 2) for event in events(trained.folder, "proposals")]
    assert next(text.plain for text in said if text and "0 of" in text.plain).endswith("(0 %), edits")
