"""The optimizer's memory: a tried edit is kept as long as the text it touched, a failure until it is repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.edits import Edit, apply
from skilltune.optimizer import Memory
from skilltune.optimizer.memory import MAX_PATTERNS, MAX_REJECTED, Pattern, outcome, still_unfixed
from skilltune.optimizer.model import _patterns
from skilltune.skill import Skill
from skilltune.verdict import Rejected
from training import Trained, small, train
from world import World, blocks

pytestmark = pytest.mark.anyio
BODY = "# Desk\n\nBe brief.\nSay why.\n"


def rejected(**edit: Any) -> Rejected:
    return Rejected(Edit(**edit), "measured effect -2.0 ± 1.0 points")


# -- rejected edits


@pytest.mark.parametrize(
    "edit",
    [
        {"op": "replace", "target": "Be brief.", "text": "Be long."},
        {"op": "delete", "target": "Be  brief."},  # anchors are compared up to white space
        {"op": "add", "after": "Be brief.", "text": "- rule"},
    ],
)
def test_a_rejection_expires_with_the_part_that_it_touched(edit: dict[str, Any]) -> None:
    memory = Memory().remember([rejected(**edit)], BODY)
    elsewhere = BODY.replace("Say why.", "Say how.")
    there = BODY.replace("Be brief.", "Be short.")
    assert memory.remember([], elsewhere).rejected == memory.rejected
    assert memory.remember([], there).rejected == ()


def test_a_rejection_keeps_its_measured_effect_and_the_newest_word_counts() -> None:
    edit = Edit("add", text="- rule")
    memory = Memory().remember([Rejected(edit, "first")], BODY).remember([Rejected(edit, "second")], BODY)
    assert memory.rejected == (Rejected(edit, "second"),)
    assert memory.remember([], "# Another\n").rejected == memory.rejected  # it hangs on nothing
    assert memory.new_epoch().rejected == ()
    many = [rejected(op="add", text=f"- rule {i}") for i in range(MAX_REJECTED + 5)]
    assert memory.remember(many, BODY).rejected == tuple(many[5:])


# -- texts that were judged


def test_a_text_that_was_judged_is_known_whatever_edit_leads_to_it() -> None:
    candidate = apply(Skill(f"---\nname: desk\ndescription: d\n---\n{BODY}"), [Edit("add", text="- rule")]).skill
    memory = Memory().remember([rejected(op="add", text="- weak")], BODY, candidate).new_epoch()
    assert outcome(BODY, Edit("add", text="- rule")) in memory.judged
    assert outcome(BODY, Edit("replace", target="Say why.", text="Say why.\n\n- rule")) in memory.judged
    assert outcome(BODY, Edit("add", text="- other")) not in memory.judged
    assert outcome(BODY, Edit("add", text="- weak")) not in memory.judged  # seen in a screen only: it may come again
    assert outcome(BODY + "\nMore.\n", Edit("add", text="- rule")) not in memory.judged  # another text
    assert memory.remember([], BODY).judged == memory.judged
    assert outcome(candidate.body, Edit("delete", target="- gone")) == ""  # which the gate rejects, with the reason


# -- failure patterns

names = st.sampled_from("abcdef")
patterns = st.lists(
    st.builds(Pattern, st.sampled_from(["p", "q", "r", "s"]), st.lists(names, min_size=1, unique=True).map(tuple)),
    max_size=6,
)


@pytest.mark.slow
@given(patterns, patterns, st.sets(names))
def test_patterns_share_out_what_still_fails(known: list[Pattern], found: list[Pattern], fixed: set[str]) -> None:
    left = still_unfixed(known, found, fixed)
    samples = [sample for pattern in left for sample in pattern.samples]
    every = {sample for pattern in (*known, *found) for sample in pattern.samples}
    assert sorted(samples) == sorted(every - fixed)  # each once
    assert len({pattern.text for pattern in left}) == len(left)
    assert [len(p.samples) for p in left] == sorted((len(p.samples) for p in left), reverse=True)
    newest = {sample: pattern.text for pattern in found for sample in pattern.samples}
    assert all(newest.get(sample, pattern.text) == pattern.text for pattern in left for sample in pattern.samples)


def test_the_list_is_short() -> None:
    found = [Pattern(f"p{i}", tuple(f"s{i}-{j}" for j in range(1 + i % 3))) for i in range(3 * MAX_PATTERNS)]
    left = still_unfixed((), found, ())
    assert len(left) == MAX_PATTERNS
    assert {len(pattern.samples) for pattern in left} == {3}


# -- in a run


def unfixed(world: World, texts: list[str]) -> list[dict[str, int]]:
    """The unfixed failures that each reflection was shown: failing samples by class."""
    told = []
    for text in texts:
        lines = [line for _, body in blocks("unfixed", text) for line in body.strip().splitlines()]
        told.append({entry["pattern"].split()[0]: entry["failing"] for entry in map(json.loads, lines)})
    return told


def reflections(world: World) -> list[str]:
    return [text for text in world._optimizer_texts if '"diagnosis"' in text or "<trajectory" in text]


async def run(world: World, folder: Path, **settings: Any) -> Trained:
    return await train(world, folder, {"train.epochs": 3, "train.patience": 0, **settings})


@pytest.mark.slow
async def test_patterns_survive_epochs_until_their_rule_is_in_the_skill(tmp_path: Path) -> None:
    with small(classes=6, q=0.6) as world:
        trained = await run(world, tmp_path)
        requests = reflections(world)
        told = unfixed(world, requests)
        held = [{world.names[k] for k in world.held(body)} for text in requests for _, body in blocks("skill", text)]
    epochs = [verdict["epoch"] for verdict in trained.verdicts]
    assert told[0] == {}  # nothing is known before the first step
    assert sum(map(bool, told)) > len(told) * epochs.count(1) / len(epochs)  # and it outlives an epoch
    assert any(held)
    assert not [names for mended, names in zip(held, told, strict=True) if mended & names.keys()]


@pytest.mark.slow
async def test_patterns_are_shown_after_the_notes_and_before_the_rejected(tmp_path: Path) -> None:
    with small(classes=6, q=0.4) as world:
        await run(world, tmp_path)
        texts = [text for text in reflections(world) if "<unfixed>\n" in text]
    assert texts
    for text in texts:
        places = [text.find(f"<{name}>\n") for name in ("skill", "edit_budget", "notes", "unfixed", "rejected")]
        places = [place for place in [*places, text.find("<trajectory ")] if place >= 0]
        assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"optimizer.patterns": False}, {"preset": "paper"}])
async def test_the_memory_can_be_left_out_and_preset_paper_has_none(tmp_path: Path, settings: dict[str, Any]) -> None:
    preset = {"preset": settings["preset"]} if "preset" in settings else {}
    with small(classes=6, q=0.4) as world:
        await train(world, tmp_path, {"train.epochs": 3, **({} if preset else settings)}, **preset)
        assert not world.optimizer_saw("<unfixed>\n")


def test_an_edit_at_the_end_expires_when_the_skill_has_grown():
    appended, anchored = rejected(op="add", text="- weak"), rejected(op="replace", target=BODY.split("\n")[0], text="x")
    memory = Memory().remember([appended, anchored], BODY)
    assert memory.remember([], BODY).rejected == (appended, anchored)
    assert memory.remember([], BODY, grown=True).rejected == (anchored,)
    late = rejected(op="add", text="- late")
    assert memory.remember([late], BODY, grown=True, shrunk=True).rejected == (late,)


async def test_rejected_edits_are_remembered_where_every_step_is_an_epoch(tmp_path: Path) -> None:
    """With few tasks a batch is all of them: a memory of one epoch would be none."""
    shown = {}
    for patterns in (True, False):
        with small(classes=6, train=12, optimizer_mode="useless") as world:
            settings = {"train.epochs": 3, "gate.screen": 0, "optimizer.patterns": patterns}
            await train(world, tmp_path, settings, run=f"{patterns}")
            shown[patterns] = world.optimizer_saw("<rejected>\n")
    assert shown == {True: True, False: False}


async def test_no_text_is_raced_twice(tmp_path: Path) -> None:
    """An optimizer that says the same again and again is not paid for again. Without a screen each edit is raced."""
    raced: dict[bool, list[str]] = {}
    for patterns in (True, False):
        with small(classes=1, q=0.0, optimizer_mode="useless") as world:
            world.optimizer._bad = lambda *_, name=world.names[0], **__: f"Take care with {name} tickets."
            (tmp_path / str(patterns)).mkdir()
            trained = await run(world, tmp_path / str(patterns), **{"optimizer.patterns": patterns, "gate.screen": 0})
            raced[patterns] = [v["candidate"] for v in trained.verdicts if v["candidate"]]
    assert len(raced[False]) > len(set(raced[False]))
    assert len(raced[True]) == len(set(raced[True])) == 1


@pytest.mark.parametrize(
    "diagnosis",
    [
        None,
        "x",
        [None, 3, "x"],
        [{"pattern": 3, "samples": ["a"]}],
        [{"pattern": "p"}, {"samples": ["a"]}],
        [{"pattern": "p", "samples": "a"}, {"pattern": " ", "samples": ["a"]}],
        [{"pattern": "p", "samples": ["z", 4]}],  # neither was shown
    ],
)
def test_a_diagnosis_that_cannot_be_read_is_left_out(diagnosis: Any) -> None:
    assert _patterns({"diagnosis": diagnosis}, {"a", "b"}) == []


def test_a_diagnosis_names_failures_that_were_shown() -> None:
    entry = {"pattern": "tables\n are misread", "samples": ["a", "z"]}
    assert _patterns({"diagnosis": [entry]}, {"a", "b"}) == [Pattern("tables are misread", ("a",))]
    assert _patterns({}, {"a"}) == _patterns([], {"a"}) == []


@pytest.mark.slow
async def test_a_resumed_run_remembers_the_same(tmp_path: Path) -> None:
    with small(classes=6, q=0.4) as world:
        first = await run(world, tmp_path)
        calls = dict(world.calls)
        again = await run(world, tmp_path)
        assert dict(world.calls) == calls
    assert again.outcome == first.outcome
