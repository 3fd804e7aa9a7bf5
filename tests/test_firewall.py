"""Pitfalls 10, 11 and 40: no optimizer sees samples or scores of `select` and `test`, and nothing that decides a score
reaches the skill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from skilltune import Env
from skilltune.edits import Edit
from skilltune.gate.eprocess import EProcess
from skilltune.gate.race import Race
from skilltune.optimizer.render import COPIED_ANSWER, COPIED_PATTERN, copied
from skilltune.skill import Skill
from skilltune.verdict import Interim
from training import START, Trained, events, small, train_at
from world import TICKET, Call, Dice, Prompt, Ticket, World, uniform

pytestmark = pytest.mark.anyio
Rows = list[dict[str, Any]]

EVERYTHING = {"train.epochs": 3, "slow.enabled": True, "slow.samples": 12, "train.schedule": "autonomous"}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper"},
    "rewrite": {"train.update": "rewrite", "train.merge": "rank"},
    "eprocess": {"gate.policy": "eprocess"},
    "hidden": {"optimizer.show_expected": False},
    "lines": {"optimizer.form": "edits"},
    "rules": {"optimizer.form": "rules"},
    "weak": {"optimizer.form": "auto"},  # edits that cite nothing, then rules
    "weak hidden": {"optimizer.form": "auto", "optimizer.show_expected": False},
}
CHANGED = {"lines": ["lines"], "weak": ["rules"], "weak hidden": ["rules"]}  # forms that a run changes to; else none


@pytest.fixture
def world() -> Iterator[World]:
    with small(q=0.6, classes=6, sloppy=0.3) as world:
        yield world


def pattern(sample: dict[str, Any]) -> str:
    return f"^{sample['target'][:4]}[a-f\\d]{{2,9}}{sample['target'][-6:]}$"


def checked(world: World) -> Rows:
    """The samples with checks of their own instead of a target; a scorer's reason quotes them."""
    return [
        {
            "id": s["id"],
            "input": s["input"],
            "split": s["split"],
            "checks": [{"type": "regex", "pattern": pattern(s)}, {"type": "contains", "target": s["target"]}],
            "metadata": {"example": s["target"], "hint": f"remark on {s['target']}"},
        }
        for s in world.samples()
    ]


def unfit(world: World, setting: str) -> None:
    """Make the world's optimizer such that a setting takes its form of proposals."""
    if setting.startswith("weak"):
        world.optimizer.misquote = 1.0
    if setting != "lines":
        return
    reflect = world.optimizer.reflect

    def astray(prompt: Prompt, dice: Dice) -> dict[str, Any]:
        """The edits of the world, after one for a line that the skill does not have."""
        answer = reflect(prompt, dice)
        cited = [edit["evidence"] for edit in answer["edits"]][:1]
        return {**answer, "edits": [{**ASTRAY, "evidence": evidence} for evidence in cited] + answer["edits"]}

    world.optimizer.stages["reflect"] = astray


ASTRAY = {"op": "replace", "after": None, "target": "Nobody wrote this line.", "text": "- Nobody wrote it.", "why": ""}


async def trained_on(world: World, folder: Path, rows: Rows, **settings: Any) -> Trained:
    (folder / "SKILL.md").write_text(START)
    preset = {"preset": settings.pop("preset")} if "preset" in settings else {}
    return await train_at(world.url, folder, {**EVERYTHING, **settings}, env=Env(rows), **preset)


# -- 10: what the optimizer sees


@pytest.mark.slow
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "weak hidden"])
@pytest.mark.parametrize("kind", ["targets", "checks"])
async def test_pitfall_10_nothing_of_select_and_test_is_in_any_request(
    tmp_path: Path, world: World, setting: str, kind: str
) -> None:
    rows = world.samples() if kind == "targets" else checked(world)
    unfit(world, setting)
    trained = await trained_on(world, tmp_path, rows, **SETTINGS[setting])
    requests = [seen for seen in world.requests if seen.role == "optimizer"]
    asks = "rules" if setting == "rules" else "reflect"
    assert {asks, "learning_rate"} <= {seen.stage for seen in requests}
    assert ("rules" in {seen.stage for seen in requests}) == (setting in ("rules", "weak"))
    assert [event["form"] for event in events(trained.folder, "form")] == CHANGED.get(setting, [])
    if setting == "lines":
        assert world.optimizer_saw("1| # Desk")

    def seen(sample: dict[str, Any]) -> list[str]:
        """The parts of the sample that a request contained: id, input, answer, checks."""
        parts = [sample["id"], sample["input"], sample["target"], pattern(sample)]
        return [part for part in parts if world.optimizer_saw(part)]

    by_split = {split: [s for s in world.samples() if s["split"] == split] for split in ("train", "select", "test")}
    assert [part for split in ("select", "test") for sample in by_split[split] for part in seen(sample)] == []
    found = [len(seen(sample)) for sample in by_split["train"]]
    # The search can find: id and input of most train samples. A request for rules shows a few failures without ids.
    least, most = (1, 1 / 4) if asks == "rules" else (2, 1 / 2)
    assert sum(n >= least for n in found) > len(found) * most
    if kind == "checks" and "hidden" not in setting:
        assert any(world.optimizer_saw(pattern(sample)) for sample in by_split["train"])  # by the reason that quotes it


@pytest.mark.slow
async def test_pitfall_10_metadata_is_shown_to_nobody(tmp_path: Path, world: World) -> None:
    await trained_on(world, tmp_path, checked(world))
    assert not any(world.optimizer_saw(f"remark on {sample['target']}") for sample in world.samples())
    assert not any("remark on" in seen.user + seen.system for seen in world.requests)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["hidden", "weak hidden"])
async def test_pitfall_10_a_hidden_answer_is_hidden_in_the_checks_reason_too(
    tmp_path: Path, world: World, setting: str
) -> None:
    unfit(world, setting)
    await trained_on(world, tmp_path, checked(world), **SETTINGS[setting])
    wrong = {seen.answer for seen in world.requests if seen.role == "target"}
    for sample in world.samples():
        assert not world.optimizer_saw(pattern(sample))
        assert sample["target"] in wrong or not world.optimizer_saw(sample["target"])  # but where it was the answer


# -- 40: what the optimizer learns from scores on `select`

SEED = 4
View = Callable[[World, Ticket, str], bool]  # (world, select ticket, system message) → is it solved?


class Viewed(World):
    """A small world whose select tickets are solved as a view has it; all other tickets are solved as ever."""

    def __init__(self, view: View, port: int = 0) -> None:
        super().__init__(classes=4, train=24, select=24, test=12, q=0.6, p=0.05, sloppy=0.3, seed=SEED, port=port)
        self.view = view

    def _solve(self, call: Call, draw: str) -> str:
        tickets = [self.tickets[name] for name in TICKET.findall(call.user)]
        if not tickets or tickets[-1].split != "select":
            return super()._solve(call, draw)
        call.sample = tickets[-1].id
        return tickets[-1].target if self.view(self, tickets[-1], call.system) else "wrong"


def plain(world: World, ticket: Ticket, system: str) -> bool:
    return ticket.kind in world.solves(system)


def easier(world: World, ticket: Ticket, system: str) -> bool:
    """More than half is solved from the start."""
    return plain(world, ticket, system) or uniform("easy", ticket.id) < 0.6


def erratic(world: World, ticket: Ticket, system: str) -> bool:
    return uniform("erratic", ticket.id, world.held(system)) < 0.5


@contextmanager
def decided_by_truth(failure: float) -> Iterator[None]:
    """The race and the e-process accept what holds a further rule and nothing harmful, whatever `select` says. In a
    race, P(better) of all else is `failure`."""
    look, play, desk = Race._look, EProcess._play, Viewed(plain)

    def better(incumbent: Skill, candidate: Skill) -> bool:
        return len(desk.solves(candidate.text)) > len(desk.solves(incumbent.text))

    def looked(self: Race, incumbent: Skill, candidate: Skill, *rest: Any) -> Interim:
        seen = look(self, incumbent, candidate, *rest)
        return replace(seen, better=0.99 if better(incumbent, candidate) else failure, harm=0.0)

    async def played(self: EProcess, incumbent: Skill, candidate: Skill, *rest: Any) -> Any:
        looks, _, left = await play(self, incumbent, candidate, *rest)
        return looks, better(incumbent, candidate), left

    with patch.object(Race, "_look", looked), patch.object(EProcess, "_play", played):
        yield


@dataclass(frozen=True)
class Told(Trained):
    """A finished run with the port of its world and all that the optimizer was asked, sorted."""

    port: int
    asked: list[str]


async def told(folder: Path, policy: str, view: View, port: int = 0) -> Told:
    """Train under a view. A run's keys depend on the port, so two runs that are to be compared need the same one."""
    folder.mkdir()
    (folder / "SKILL.md").write_text(START)
    settings = {"train.batch_size": 12, "slow.samples": 6, "gate.screen": 16, "gate.policy": policy}
    with Viewed(view, port) as world:
        trained = await train_at(world.url, folder, {**EVERYTHING, **settings}, env=Env(world.samples()))
        return Told(trained.result, trained.folder, world.port, sorted(world._optimizer_texts))


def differ_on_select_only(one: Told, other: Told) -> None:
    """Both runs have the same decisions, of either kind, and ask the optimizer the same."""
    accepted = [verdict["accepted"] for verdict in one.verdicts]
    assert accepted == [verdict["accepted"] for verdict in other.verdicts]
    assert set(accepted) == {True, False}
    assert [verdict["score"] for verdict in one.verdicts] != [verdict["score"] for verdict in other.verdicts]
    assert len(one.asked) > 5
    assert one.asked == other.asked
    assert one.versions == other.versions
    for of in ("rejected", "screen"):  # what would be told at the next step, and what it rests on
        assert [v.get(of, v["numbers"].get(of)) for v in one.verdicts] == [
            v.get(of, v["numbers"].get(of)) for v in other.verdicts
        ]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["race", "strict"])
async def test_pitfall_40_scores_on_select_change_no_request_unless_they_change_a_decision(
    tmp_path: Path, policy: str
) -> None:
    with decided_by_truth(0.1):  # so that no decision changes
        one = await told(tmp_path / "one", policy, plain)
        other = await told(tmp_path / "other", policy, easier, one.port)
    differ_on_select_only(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "ends"), [("race", "undecided"), ("eprocess", "given up")])
async def test_pitfall_40_the_optimizer_cannot_tell_in_which_way_a_candidate_failed(
    tmp_path: Path, policy: str, ends: str
) -> None:
    with decided_by_truth(0.1):
        one = await told(tmp_path / "one", policy, erratic)
    with decided_by_truth(0.5):
        other = await told(tmp_path / "other", policy, plain, one.port)
    differ_on_select_only(one, other)
    decisions = [{verdict["numbers"].get("decision") for verdict in run.verdicts} for run in (one, other)]
    assert [found - {None} for found in decisions] == [{"accepted", "given up"}, {"accepted", ends}]


# -- 11: what an edit may hold

PATTERN = r"^INV-\d{4}\b"
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}, "currency": {"enum": ["EUR", "USD"]}}}
PHRASE = "the quarterly figures were restated"
CHECKED: Rows = [
    {"id": "p", "input": "Book it.", "checks": [{"type": "regex", "pattern": PATTERN}]},
    {"id": "c", "input": "Say why.", "checks": [{"type": "contains", "target": PHRASE, "ignore_case": True}]},
    {"id": "j", "input": "As JSON.", "checks": [{"type": "json", "schema": SCHEMA}], "target": '{"total": 12.5}'},
]
ENV = Env(CHECKED)


def copies(text: str, body: str = "", env: Env = ENV) -> str:
    return copied(Edit("add", text=text), body, env.samples, env)


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        (f"- Begin with something that matches `{PATTERN}`.", "p"),
        ("- Write INV and the number, ^inv-\\D{4}\\B to be exact.", "p"),  # in any case
        (f"- Say that {PHRASE}.", "c"),
        ("- Mention that The Quarterly\n  Figures were   RESTATED.", "c"),
        ('- Use {"type":"object","properties":{"total":{"type":"number"},"currency":{"enum":["EUR","USD"]}}}', "j"),
        ('- Here: {"total": {"type": "number"}, "currency": {"enum": ["EUR", "USD"]}}', "j"),  # a part of it
    ],
)
def test_pitfall_11_an_edit_that_copies_a_check_is_refused_with_the_reason(text: str, sample: str) -> None:
    assert copies(text) == f"it copies a check of sample {sample}"


@pytest.mark.parametrize(
    "text",
    [
        "- Begin with the number of the invoice, four digits after INV-.",
        "- Say whether figures were restated, and for which quarter.",
        "- Answer with a JSON object that has total and currency, EUR or USD.",
        '- Give "total" as {"type": "number"}.',
    ],
)
def test_a_rule_in_words_of_its_own_is_none(text: str) -> None:
    assert copies(text) == ""


def test_what_most_samples_demand_is_a_rule_and_no_secret() -> None:
    heading = "## Summary of the findings"
    assert len(heading) >= COPIED_ANSWER
    check = {"type": "contains", "target": heading}
    rows = [{"id": f"s{i}", "input": f"Report {i}.", "checks": [check] if i else []} for i in range(4)]
    rows[0]["target"] = "x"
    assert copies(f"- Write a section {heading}.", env=Env(rows)) == ""
    assert "a check of sample s3" in copies(f"- Write a section {heading}.", env=Env([rows[0], *rows[3:]]))
    labels = [{"id": f"s{i}", "input": f"Case {i}.", "target": "not enough information"} for i in range(3)]
    assert copies("- If in doubt say: not enough information.", env=Env(labels)) == ""


def test_pitfall_11_a_pattern_that_all_samples_share_is_refused_all_the_same() -> None:
    assert len(PATTERN) >= COPIED_PATTERN
    rows = [{**CHECKED[0], "id": f"s{i}", "input": f"Book {i}."} for i in range(5)]
    assert copies(f"- Match {PATTERN}", env=Env(rows)) == "it copies a check of sample s0"


def test_pitfall_11_patterns_that_are_targets_are_checks() -> None:
    env = Env([{"id": "a", "input": "Book it.", "target": PATTERN}], "regex")
    assert copies(f"- Match {PATTERN}", env=env) == "it copies a check of sample a"
    assert copies("- Write INV and four digits.", env=env) == ""


def test_pitfall_11_a_part_of_a_long_answer_is_a_copy_as_well() -> None:
    answer = "It was restated because the lease of the northern warehouse had been booked twice in one year."
    env = Env([{"id": "a", "input": "Why?", "target": answer}])
    assert "words of the expected answer of sample a" in copies(
        "- Say: the lease of the northern warehouse had been booked twice", env=env
    )
    assert copies("- Name the lease that was booked twice.", env=env) == ""


def test_every_accepted_answer_counts_not_only_the_first() -> None:
    env = Env([{"id": "a", "input": "Where?", "target": ["Berlin", "Rosa-Luxemburg-Straße 17"]}])
    assert copies("- It is Rosa-Luxemburg-Straße 17.", env=env) == "it copies the expected answer of sample a"


def test_what_the_skill_says_already_may_stay() -> None:
    assert copies(f"- Match {PATTERN}", body=f"# Desk\n\nMatch {PATTERN}\n") == ""


async def test_pitfall_11_a_copying_optimizer_gets_nothing_into_the_skill(tmp_path: Path, world: World) -> None:
    """An optimizer that writes the pattern of a train sample into its edits is told why they are refused."""
    patterns = {s["id"]: pattern(s) for s in world.samples()}
    place = world.optimizer._place

    def copying(prompt: Any, text: str, support: Any, dice: Any) -> Any:
        return place(prompt, f"{text} It matches {patterns[support[0].sample]}.", support, dice)

    world.optimizer._place = copying  # type: ignore[method-assign]
    trained = await trained_on(world, tmp_path, checked(world))
    assert not [text for text in patterns.values() if text in trained.result.best.text]
    assert world.optimizer_saw("it copies a check of sample")
