"""The optimizer without a model: worked examples from train failures that apply cleanly, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.edits import Edit, apply
from skilltune.envs import Env
from skilltune.optimizer import Memory, Optimizer, Proposal, Step
from skilltune.optimizer.examples import CHARS, REMOVALS, ExamplesOptimizer, describe_format
from skilltune.optimizer.memory import MAX_REJECTED
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.skill import Skill
from skilltune.verdict import Rejected
from training import events, small, streamed, train

pytestmark = pytest.mark.anyio
START = Skill("---\nname: sums\n---\n# Sums\n\nAnswer with the number.\n", "sums")
WORDS = ["red", "green", "blue", "black", "white", "brown", "grey", "pink", "violet", "yellow", "orange", "beige"]


def colours(n: int = 12) -> list[dict[str, Any]]:
    """Tasks whose answers share no shape."""
    return [{"id": f"s{i}", "input": f"Item {i}: what colour?", "target": WORDS[i] + "!" * i} for i in range(n)]


def build(rows: Iterable[dict[str, Any]], *, pool: int = 12, seed: int = 1, **env: Any) -> ExamplesOptimizer:
    made = Env(rows, **env)
    return ExamplesOptimizer(made, {sample.id: sample for sample in made.samples}, pool, seed)


def rolled(optimizer: ExamplesOptimizer, failed: Iterable[str] | None = None) -> list[Rollout]:
    """One rollout of every sample; those named failed, all if none are."""
    names = set(optimizer.samples if failed is None else failed)
    return [Rollout(name, "h", 0, Trajectory("?"), Score(0.0 if name in names else 1.0)) for name in optimizer.samples]


def step(index: int = 1) -> Step:
    return Step(index, 1, (), 4, starts_epoch=index == 1, ends_epoch=False)


async def propose(
    optimizer: ExamplesOptimizer,
    skill: Skill = START,
    failed: Iterable[str] | None = None,
    *,
    index: int = 1,
    memory: Memory | None = None,
    limit: int = 4,
) -> list[Proposal]:
    return await optimizer.propose(skill, streamed(rolled(optimizer, failed)), memory or Memory(), step(index), limit)


def holding(optimizer: ExamplesOptimizer, *names: str, skill: Skill = START) -> Skill:
    """The skill with the examples of these samples added, as the gate adds them."""
    edits = [Edit("add", text=optimizer.example(optimizer.samples[name])) for name in names]
    applied = apply(skill, edits)
    assert [report.status for report in applied.reports] == ["applied"] * len(names)
    return applied.skill


def kinds(proposals: Iterable[Proposal]) -> list[str]:
    return [proposal.edit.op for proposal in proposals]


def test_it_is_an_optimizer():
    assert isinstance(build(colours()), Optimizer)


# -- examples


async def test_pitfall_10_examples_come_from_failed_train_samples_and_from_nothing_else():
    optimizer = build(colours())
    proposals = await propose(optimizer, failed=["s3", "s7", "s9"])
    assert {proposal.support for proposal in proposals} == {("s3",), ("s7",), ("s9",)}
    for proposal in proposals:
        sample = optimizer.samples[proposal.support[0]]
        assert proposal.edit.op == "add"
        assert proposal.edit.text == f"{sample.text}\n{sample.target}"
        assert proposal.edit.evidence[0].quote in sample.text
    stranger = Rollout("a test sample", "h", 0, Trajectory("?"), Score(0.0))
    with pytest.raises(KeyError):
        await optimizer.propose(START, streamed([stranger]), Memory(), step(), 4)


async def test_solved_and_unscored_rollouts_give_no_example():
    optimizer = build(colours())
    assert await propose(optimizer, failed=[]) == []
    unscored = [Rollout(name, "h", 0, Trajectory("", outcome="infra_error"), None) for name in optimizer.samples]
    assert await optimizer.propose(START, streamed(unscored), Memory(), step(), 4) == []


async def test_pitfall_9_no_more_is_proposed_than_the_pool_holds():
    for pool, limit in ((5, 4), (1, 1), (3, 4), (50, 4)):
        proposals = await propose(build(colours(), pool=pool), limit=limit)
        assert len(proposals) == min(12, max(pool, limit))
        skill = apply(START, [proposal.edit for proposal in proposals], limit=limit)
        assert sum(report.status == "applied" for report in skill.reports) == min(limit, len(proposals))


async def test_the_same_seed_and_step_propose_the_same_and_others_do_not():
    def texts(proposals: list[Proposal]) -> list[str | None]:
        return [proposal.edit.text for proposal in proposals]

    first = texts(await propose(build(colours(), pool=6)))
    assert texts(await propose(build(colours(), pool=6))) == first
    assert texts(await propose(build(colours(), pool=6), index=2)) != first
    assert texts(await propose(build(colours(), pool=6, seed=2))) != first


async def test_what_was_rejected_is_not_proposed_again():
    optimizer = build(colours())
    gone = (await propose(optimizer))[:4]
    memory = Memory().remember([Rejected(proposal.edit, "no") for proposal in gone], START.body)
    again = await propose(optimizer, memory=memory)
    assert len(again) == 8
    assert not {proposal.edit.key for proposal in again} & {proposal.edit.key for proposal in gone}


async def test_rejected_removals_do_not_cost_examples_their_place():
    optimizer = build(colours(), pool=4)
    skill = holding(optimizer, "s0", "s1")
    others = [p for p in await propose(build(colours(), pool=99), skill) if p.edit.op != "add"]
    assert len(others) == 3
    memory = Memory(rejected=tuple(Rejected(proposal.edit, "no") for proposal in others))
    proposals = await propose(optimizer, skill, failed=["s2", "s3", "s4"], memory=memory)
    assert {proposal.support for proposal in proposals} == {("s2",), ("s3",), ("s4",)}


async def test_a_sample_of_which_no_answer_is_known_gives_no_example():
    rows = [{"id": f"s{i}", "input": f"q{i}", "target": "[ab]"} for i in range(5)]
    optimizer = build(rows, score="regex")
    assert optimizer.env.expected(optimizer.env.samples[0]) == ""
    assert await propose(optimizer) == []


async def test_the_output_that_an_eval_expects_is_its_answer_whatever_its_checks_look_at():
    checks = [{"type": "contains", "target": "refund"}]
    rows = [
        {"id": f"s{i}", "prompt": f"Order {i}?", "expected_output": f"{i}: refund.", "checks": checks} for i in "ab"
    ]
    proposals = await propose(build(rows))
    assert sorted(p.edit.text or "" for p in proposals if p.edit.op == "add") == [
        "Order a?\na: refund.",
        "Order b?\nb: refund.",
    ]


async def test_samples_with_the_same_text_are_one_example():
    rows = [{"id": f"s{i}", "input": "Say it:", "target": "the same thing"} for i in range(6)]
    optimizer = build(rows)
    assert len([p for p in await propose(optimizer) if p.edit.op == "add"]) == 1
    removals = await propose(optimizer, holding(optimizer, "s0"), failed=[])
    assert kinds(removals) == ["delete"]


async def test_a_long_sample_is_no_example():
    rows = [*colours(3), {"id": "long", "input": "x" * CHARS, "target": "y"}]
    assert ("long",) not in [proposal.support for proposal in await propose(build(rows))]


def test_an_example_is_written_in_the_form_in_which_the_target_is_asked():
    optimizer = build([{"id": "a", "input": "2+2", "target": 4}], prompt="Compute {input} =\nResult:")
    assert optimizer.example(optimizer.env.samples[0]) == "Compute 2+2 =\nResult: 4"
    chat = {"id": "c", "input": [{"role": "system", "content": "Be brief."}, {"content": "2+2?"}], "target": "4"}
    optimizer = build([chat])
    assert optimizer.example(optimizer.env.samples[0]) == "Be brief.\n\n2+2?\n4"


# -- what the skill holds already


async def test_nothing_that_stands_in_the_skill_is_proposed_again():
    optimizer = build(colours(), pool=20)
    skill = holding(optimizer, "s0", "s5")
    added = [proposal.support for proposal in await propose(optimizer, skill) if proposal.edit.op == "add"]
    assert len(added) == 10
    assert ("s0",) not in added
    assert ("s5",) not in added


async def test_pitfall_6_removals_and_exchanges_apply_cleanly_and_touch_nothing_else():
    optimizer = build(colours())
    skill = holding(optimizer, "s2", "s4", "s6")
    seen = set()
    for index in range(1, 30):
        proposals = [p for p in await propose(optimizer, skill, failed=[], index=index) if p.edit.op != "add"]
        assert kinds(proposals).count("delete") == REMOVALS
        assert kinds(proposals).count("replace") == 1
        for proposal in proposals:
            applied = apply(skill, [proposal.edit])
            assert applied.reports[0].status == "applied"
            assert applied.reports[0].match == "exact"
            left = [
                name for name in ("s2", "s4", "s6") if optimizer.example(optimizer.samples[name]) in applied.skill.body
            ]
            assert len(left) == (2 if proposal.edit.op == "delete" else 3)
            assert applied.skill.text.startswith(START.text.rstrip("\n"))
            order = sorted(left, key=lambda name: applied.skill.body.index(optimizer.example(optimizer.samples[name])))
            seen.add((proposal.edit.op, *order))
    assert seen == {
        ("delete", "s2", "s4"), ("delete", "s2", "s6"), ("delete", "s4", "s6"),
        ("replace", "s4", "s2", "s6"), ("replace", "s2", "s6", "s4"),
    }  # fmt: skip


async def test_examples_that_are_not_neighbours_are_not_exchanged():
    optimizer = build(colours())
    skill = holding(optimizer, "s2")
    skill = holding(optimizer, "s4", skill=skill.with_text(skill.text + "\nA rule in between.\n"))
    assert "replace" not in kinds(await propose(optimizer, skill, failed=[]))


async def test_an_example_within_a_longer_one_is_neither_removed_nor_thought_present():
    rows = [
        {"id": "short", "input": "4 mod 3:", "target": "1"},
        {"id": "long", "input": "34 mod 3:", "target": "1"},
        {"id": "more", "input": "34 mod 3: 1 and 5 mod 2:", "target": "1"},
    ]
    optimizer = build(rows)
    skill = holding(optimizer, "more")
    proposals = await propose(optimizer, skill)
    assert [p.edit.target for p in proposals if p.edit.op == "delete"] == ["34 mod 3: 1 and 5 mod 2: 1"]
    assert {p.edit.text for p in proposals if p.edit.op == "add" and p.edit.evidence} == {"4 mod 3: 1", "34 mod 3: 1"}


# -- the format line


async def test_one_line_on_the_shape_that_all_answers_share():
    rows = [{"id": f"s{i}", "input": f"q{i}", "target": f"{10 + i}.50 EUR"} for i in range(5)]
    optimizer = build(rows)
    line = "Answer with nothing but <digits>.<digits> <word>."
    first = (await propose(optimizer, failed=["s1", "s2"]))[0]
    assert (first.edit.text, first.support) == (line, ("s1", "s2"))
    skill = apply(START, [first.edit]).skill
    assert line not in [proposal.edit.text for proposal in await propose(optimizer, skill)]
    assert line not in [proposal.edit.text for proposal in await propose(optimizer, failed=[])]  # nothing failed
    mixed = build([*rows, {"id": "odd", "input": "q", "target": "unknown"}])
    assert all(proposal.edit.evidence for proposal in await propose(mixed))


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (["12.50", "3.99", "100.00"], "Answer with nothing but <digits>.<digits>."),
        (["2024-01-31", "1999-12-01", "2000-02-02"], "Answer with nothing but <digits>-<digits>-<digits>."),
        (["{a: 1}", "{bc: 22}", "{d: 3}"], "Answer with nothing but {<word>: <digits>}."),
        (["Total: 3 apples", "Total: one", "Total: x-y"], 'Begin the answer with "Total:".'),
        (["12", "3", "100"], ""),  # any number: the task says so
        (["red", "green", "blue"], ""),
        (["12.50", "3.99"], ""),  # two are no pattern
        (["12.50", "3.99", "none"], ""),
        ([], ""),
    ],
)
def test_a_format_is_described_only_if_all_answers_share_it(answers, line):
    assert describe_format(answers) == line


def test_pitfall_11_an_answer_that_all_samples_share_is_not_taught_as_a_format():
    assert describe_format(["positive"] * 5) == describe_format(["12 EUR"] * 5) == ""


# -- odd texts


@settings(max_examples=80, deadline=None)
@given(
    st.text(st.sampled_from("a{}%s\\1 \n\r\t\"'<!->#—é😀`*|"), min_size=1, max_size=40).filter(str.strip),
    st.text(st.sampled_from('b{}%d\\0 \n\r\t"<>é😀`'), min_size=1, max_size=20).filter(str.strip),
    st.sampled_from(["\n", "\r\n"]),
)
async def test_pitfall_18_braces_newlines_and_line_ends_survive_and_the_example_is_found_again(asked, answer, newline):
    optimizer = build([{"id": "s", "input": asked, "target": answer}, *colours(2)])
    start = START.with_text(START.text.replace("\n", newline))
    [proposal] = await propose(optimizer, start, failed=["s"])
    applied = apply(start, [proposal.edit])
    assert applied.reports[0].status == "applied", applied.reports[0].reason
    text = applied.skill.text.replace("\r\n", "\n")
    for part in (asked, answer):
        assert part.replace("\r\n", "\n").replace("\r", "\n").strip() in text
    assert [p.edit.op for p in await propose(optimizer, applied.skill, failed=["s"])] == ["delete"]
    [removal] = await propose(optimizer, applied.skill, failed=["s"])
    removed = apply(applied.skill, [removal.edit])
    assert removed.changed
    assert removed.skill.text.split() == start.text.split()


# -- its other duties, and memory


async def test_it_has_no_reason_to_apply_fewer_edits_than_it_may():
    optimizer = build(colours(4))
    proposals = await propose(optimizer)
    for most in (1, 2, 9):
        assert await optimizer.learning_rate(START, proposals, Memory(), step(), most) == most


async def test_it_writes_no_guidance_and_leaves_notes_alone():
    optimizer = build(colours(4))
    assert await optimizer.slow_update(START, [], Memory(), step()) is None
    assert await optimizer.notes(START, [], Memory(notes="kept"), step()) == "kept"


async def test_no_rollouts_are_paid_for_the_slow_update_that_it_cannot_write(tmp_path: Path) -> None:
    with small() as world:
        trained = await train(world, tmp_path, {"optimizer.model": "examples", "train.epochs": 2, "gate.screen": 0})
    assert len(trained.versions) == 1  # the end of an epoch would say at least that nothing changed
    assert not events(trained.folder, "slow")


def test_a_rejection_expires_with_the_text_that_it_was_about():
    anchored = Rejected(Edit("replace", target="old line", text="new"), "no")
    free = Rejected(Edit("add", text="at the end"), "no")
    memory = Memory().remember([anchored, free], "# Skill\nold line\n")
    assert memory.rejected == (anchored, free)
    assert memory.remember([], "# Skill\nanother line\n").rejected == (free,)
    assert memory.new_epoch().rejected == ()


def test_the_same_rejection_is_kept_once_and_the_oldest_go_first():
    entries = [Rejected(Edit("add", text=f"rule {i}"), "no") for i in range(MAX_REJECTED + 5)]
    memory = Memory(notes="n", slow="s", lr=3).remember([*entries, Rejected(Edit("add", text="rule 28"), "again")], "")
    assert len(memory.rejected) == MAX_REJECTED
    assert [entry.edit.text for entry in memory.rejected] == [f"rule {i}" for i in range(5, MAX_REJECTED + 5)]
    assert memory.rejected[-1].reason == "again"
    assert (memory.notes, memory.slow, memory.lr, memory.protected) == ("n", "s", 3, ("s",))
