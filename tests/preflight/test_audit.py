"""The audit finds each shortcut that could be learned instead of the task, and passes honest data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from skilltune.config import make_config
from skilltune.envs import Env
from skilltune.preflight.audit import CONSTANTS, FILLERS, Audit, _tail, audit
from skilltune.preflight.check import check
from skilltune.rollout import Rollout
from skilltune.samples import split
from world import Desk

pytestmark = pytest.mark.anyio
REAL = Path(os.environ.get("SKILLTUNE_DATA", "")) / "livemathematicianbench"  # not part of the project
WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "bdgklmnprst"]
Rows = list[dict[str, Any]]


async def audited(rows: Rows, score: Any = "exact") -> Audit:
    env = Env([{"id": f"s{i}", **row} for i, row in enumerate(rows)], score)
    return await audit(env, split(env.samples, seed=1))


def text(draw: Random, n: int) -> str:
    return " ".join(draw.choices(WORDS, k=n))


def quiz(n: int, seed: int = 0, **how: Any) -> Rows:
    """Multiple-choice samples; `how` says what stands in place of the options' texts: right, wrong, decoy."""
    draw, rows = Random(seed), []
    for _ in range(n):
        texts = [how.get("right", lambda draw: text(draw, 6))(draw)]
        texts += [how.get("wrong", lambda draw: text(draw, 6))(draw) for _ in range(3)]
        order = draw.sample(range(4), 4)
        choices = [texts[k] for k in order]
        rows.append({"input": f"Question {text(draw, 8)}?", "target": "ABCD"[order.index(0)]})
        rows[-1]["metadata"] = {"choices": choices, **how.get("metadata", lambda texts: {})(texts)}
    return rows


def only(found: Audit, *says: str) -> None:
    """One note that says all of it, and nothing else."""
    assert found.problems == []
    [note] = found.notes
    assert all(part in note for part in says), note


# -- nothing to find


@pytest.mark.parametrize("seed", range(3))
async def test_honest_samples_give_no_note(seed: int) -> None:
    draw = Random(seed)
    assert await audited([{"input": text(draw, 30), "target": text(draw, 2)} for _ in range(120)], "f1") == Audit()
    assert await audited(quiz(120, seed), "choice") == Audit()
    labels = [{"input": text(draw, 30), "target": draw.choice(["yes", "no", "maybe"])} for _ in range(120)]
    assert await audited(labels) == Audit()


async def test_the_samples_of_the_world_give_no_note() -> None:
    assert await audited([{**s, "id": s["id"]} for s in Desk().samples()]) == Audit()


async def test_two_samples_are_enough_to_be_looked_at() -> None:
    assert (await audited([{"input": "a", "target": "x"}, {"input": "b", "target": "y"}])).problems == []


# -- answers that know nothing


async def test_a_skewed_label_is_measured_against_chance() -> None:
    rows = [{"input": f"case {i} {WORDS[i]}", "target": "yes" if i % 5 else "no"} for i in range(100)]
    only(await audited(rows), 'the answer "yes"', "80 of 100 samples", "by chance: 50 %")


async def test_one_answer_that_solves_everything_is_a_problem() -> None:
    found = await audited([{"input": f"case {i} {WORDS[i]}", "target": "done"} for i in range(30)])
    assert found.problems == ['the answer "done" solves every sample, so there is nothing to learn or certify']


def checked(*checks: dict[str, Any], n: int = 60) -> Rows:
    """Samples without a target, each with these checks."""
    return [{"input": f"case {i} {WORDS[i]}", "checks": list(checks)} for i in range(n)]


CONTAINS = {"type": "contains", "target": "refund"}


@pytest.mark.parametrize(
    ("checks", "answer"),
    [
        ([CONTAINS], "refund"),
        ([{"type": "exact", "target": ["Refund.", "refund"]}], "Refund."),
        ([CONTAINS, {"type": "contains", "target": "14 days"}], "refund\n14 days"),
        ([{"type": "checks", "mode": "any", "checks": [CONTAINS, {"type": "number", "target": 7}]}], "refund\n7"),
        ([{"type": "checks", "mode": "any", "checks": [{"type": "exact", "target": "a"}, CONTAINS]}], "a\nrefund"),
        ([CONTAINS, {"type": "not", "check": {"type": "contains", "target": "sorry"}}], "refund"),
        ([{"type": "regex", "pattern": r"(?i)^\b[Rr]efund \(14 days\)\.$"}], "Refund (14 days)."),
        ([{"type": "regex", "pattern": r"\A(?:granted|denied)\Z"}], "granted"),
        ([{"type": "length", "max_chars": 80}], "OK"),
        ([{"type": "length", "min_chars": 10, "max_chars": 80}], "I cannot answer this."),
        ([{"type": "not", "check": {"type": "contains", "target": "sorry"}}], "OK"),
    ],
)
async def test_one_answer_that_meets_the_checks_of_all_samples_is_a_problem(checks: Rows, answer: str) -> None:
    found = await audited(checked(*checks), {"type": "checks"})
    quoted = f'the answer "{answer}" solves every sample'
    assert found.problems == [f"{quoted}, so there is nothing to learn or certify"]


async def test_a_target_that_is_a_pattern_is_tried_as_text() -> None:
    found = await audited([{"input": f"case {WORDS[i]}", "target": r"^refund\b"} for i in range(30)], "regex")
    assert 'the answer "refund" solves every sample' in found.problems[0]


async def test_an_answer_that_meets_the_checks_of_many_samples_is_noted() -> None:
    other = [{"input": f"else {WORDS[i]}", "checks": [{"type": "exact", "target": WORDS[i]}]} for i in range(20)]
    only(await audited(checked(CONTAINS, n=40) + other), 'the answer "refund" to every task solves 40 of 60')
    only(await audited(checked({"type": "length", "max_chars": 2}, n=40) + other), 'the answer "OK"', "40 of 60")


async def test_checks_that_each_want_something_else_give_no_note() -> None:
    rows = [{"input": f"case {i}", "checks": [{"type": "exact", "target": WORDS[i]}]} for i in range(60)]
    assert await audited(rows) == Audit()
    labels = [
        {"input": f"case {i}", "checks": [{"type": "exact", "target": "yes" if i % 2 else "no"}]} for i in range(60)
    ]
    assert await audited(labels) == Audit()


async def test_only_so_many_answers_are_tried() -> None:
    answers = set()

    def score(sample: Any, rollout: Rollout) -> float:
        answers.add(rollout.answer)
        return 0.0

    rows = [{**row, "checks": [{"type": "contains", "target": WORDS[i]}]} for i, row in enumerate(checked(n=200))]
    env = Env([{"id": f"s{i}", **row, "target": row["input"]} for i, row in enumerate(rows)], score)
    await audit(env, split(env.samples, seed=1))
    assert len(answers - {row["input"] for row in rows}) <= len(FILLERS) + 2 * CONSTANTS + 1  # a list of all


async def test_a_judge_is_not_asked() -> None:
    asked = []

    async def ask(sample: Any, answer: str, lines: Any) -> Any:
        asked.append(answer)

    env = Env(
        [{"id": f"s{i}", **row} for i, row in enumerate(checked(CONTAINS))], {"judge": "openai/j", "rubric": ["Kind"]}
    )
    assert await audit(env.bound(ask, "judge"), split(env.samples, seed=1)) == Audit()
    assert asked == []


async def test_an_answer_that_names_everything_is_found_where_the_scorer_takes_it() -> None:
    rows = [{"input": f"case {i} {WORDS[i]}", "target": f"code {i:03d}"} for i in range(60)]
    only(await audited(rows, "contains"), "a list of all expected answers solves 60 of 60", "exact")
    assert await audited(rows) == Audit()


async def test_an_echo_is_found_where_the_scorer_takes_it() -> None:
    rows = [{"input": f"The code is {WORDS[i]}{WORDS[-i]}, and so?", "target": WORDS[i] + WORDS[-i]} for i in range(60)]
    notes = (await audited(rows, "contains")).notes
    assert any("the input, echoed, solves 60 of 60" in note for note in notes)
    only(await audited(rows), "the expected answer stands in the input of 60 of 60")


async def test_a_scorer_that_fails_is_not_the_audits_business(tmp_path: Path) -> None:
    def broken(sample: Any, rollout: Any) -> float:
        raise RuntimeError("no")

    draw = Random(1)
    assert await audited([{"input": text(draw, 20), "target": f"answer {i}"} for i in range(30)], broken) == Audit()


# -- options


async def test_a_phrase_that_picks_the_right_option_is_named() -> None:
    rows = quiz(60, right=lambda draw: f"{text(draw, 3)} all of the above {text(draw, 2)}") + quiz(60, seed=1)
    only(await audited(rows, "choice"), 'that says "all of the above"', "60 of 60 samples", "by chance: 25 %")


async def test_a_longer_right_option_is_named() -> None:
    rows = quiz(80, right=lambda draw: text(draw, 9))
    only(await audited(rows, "choice"), "with the longest text", "80 of 80 samples")


async def test_a_place_that_is_right_too_often_is_named() -> None:
    rows = quiz(80)
    for row in rows[:60]:  # move the right one to the third place
        choices, right = row["metadata"]["choices"], "ABCD".index(row["target"])
        choices[2], choices[right] = choices[right], choices[2]
        row["target"] = "C"
    found = await audited(rows, "choice")
    assert any("at place 3" in note and "by chance: 25 %" in note for note in found.notes)
    assert any('the answer "C" to every task solves' in note for note in found.notes)


async def test_metadata_that_gives_the_key_away_is_named() -> None:
    rows = quiz(60, metadata=lambda texts: {"sketch": f"We show that {texts[0]} because of the lemma."})
    only(await audited(rows, "choice"), "most like metadata.sketch", "60 of 60 samples")


async def test_metadata_that_holds_the_answer_is_named() -> None:
    draw = Random(3)
    answers = [f"{WORDS[i]} {i}" for i in range(40)]
    rows = [{"input": text(draw, 20), "target": a, "metadata": {"solution": f"So it is {a}."}} for a in answers]
    only(await audited(rows), "stands in metadata.solution of 40 of 40")


@pytest.mark.skipif(not REAL.exists(), reason="SKILLTUNE_DATA does not hold the benchmark")
async def test_the_give_away_of_a_real_benchmark_is_found() -> None:
    """Wherever an option says that one of the remaining ones is correct, it is the key."""
    rows: Rows = []
    for path in sorted(REAL.glob("*.json")):
        for item in json.loads(path.read_text(encoding="utf-8")):
            options = [item["mcq"]["correct_choice"], *item["mcq"]["choices"]]
            texts = [option["text"] for option in options]
            Random(item["no"]).shuffle(texts)
            row = {"input": item["mcq"]["question"], "target": options[0]["text"]}
            rows.append(row | {"metadata": {"choices": texts, "theorem": item["theorem"], "sketch": item["sketch"]}})
    held = sum("remaining options is correct" in text for row in rows for text in row["metadata"]["choices"])
    found = await audited(rows, "choice")
    assert any("remaining options" in note and f"{held} of {held} samples" in note for note in found.notes)


@pytest.mark.skipif(not REAL.exists(), reason="SKILLTUNE_DATA does not hold the benchmark")
async def test_in_the_order_of_the_real_file_the_first_label_is_always_right() -> None:
    items = [item for path in sorted(REAL.glob("*.json")) for item in json.loads(path.read_text(encoding="utf-8"))]
    rows: Rows = [
        {
            "input": item["mcq"]["question"],
            "target": item["mcq"]["correct_choice"]["label"],
            "metadata": {"choices": [item["mcq"]["correct_choice"], *item["mcq"]["choices"]]},
        }
        for item in items
    ]
    assert "solves every sample" in (await audited(rows, "choice")).problems[0]


@pytest.mark.parametrize(
    ("hits", "n", "p", "tail"), [(0, 10, 0.5, 1.0), (10, 10, 0.5, 2**-10), (6, 10, 0.5, 386 / 1024), (1, 10, 0.0, 0.0)]
)
def test_the_binomial_tail_is_exact(hits: int, n: int, p: float, tail: float) -> None:
    assert _tail(hits, n, p) == pytest.approx(tail)


# -- near-duplicates


async def test_the_same_task_in_two_splits_is_named_and_a_group_mends_it() -> None:
    draw = Random(5)
    tasks = [text(draw, 25) for _ in range(40)]
    variants = [{"input": t, "target": f"a{i}"} for i, t in enumerate(tasks)]
    variants += [{"input": f"{t}, please", "target": f"a{i}"} for i, t in enumerate(tasks)]
    note = next(iter((await audited(variants)).notes))
    assert "near-duplicates" in note
    assert " in train and " in note
    assert "group" in note
    for i, row in enumerate(variants):
        row["group"] = f"g{i % 40}"
    assert await audited(variants) == Audit()


SIGNS = [chr(0x4E00 + 7 * i) for i in range(2_000)]
THAI = [chr(0x0E01 + i) for i in range(46)]


@pytest.mark.parametrize(("signs", "thanks"), [(SIGNS, "，谢谢"), (THAI, "ขอบคุณ")])
async def test_near_duplicates_are_found_where_no_spaces_part_words(signs: list[str], thanks: str) -> None:
    draw = Random(7)
    tasks = ["".join(draw.choices(signs, k=30)) for _ in range(30)]
    rows = [{"input": t, "target": f"a{i}"} for i, t in enumerate(tasks)]
    assert await audited(rows) == Audit()
    rows += [{"input": t + thanks, "target": f"a{i}"} for i, t in enumerate(tasks)]
    only(await audited(rows), "pairs of samples in different splits are near-duplicates", "group")


async def test_sums_that_differ_by_a_sign_are_not_equal() -> None:
    rows = [{"input": f"{i} {'+-*/'[k]} {i + 3} = ?", "target": f"x{i}{k}"} for i in range(20) for k in range(4)]
    assert await audited(rows) == Audit()


async def test_equal_words_in_two_splits_are_named() -> None:
    rows = [{"input": f"Say {WORDS[i // 2]}!", "target": f"a{i}"} for i in range(60)]  # the answers differ
    only(await audited(rows), "have the words of a sample in another split")


async def test_a_template_alone_is_no_duplicate() -> None:
    rows = [
        {"input": f"Please add {i * 37 % 1000} and {i * 91 % 997} and tell the sum of both numbers.", "target": f"x{i}"}
        for i in range(200)
    ]
    assert await audited(rows) == Audit()


# -- check


async def test_check_prints_tricks_as_notes_and_refuses_what_cannot_be_trained(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text("Answer.\n")
    tree = {"env": {"samples": "d.jsonl"}, "target": {"model": "openai@http://127.0.0.1:1/v1/m"}}
    for targets, kind in (["yes"] * 50 + ["no"] * 10, "notes"), (["yes"] * 60, "problems"):
        rows = [{"id": f"s{i}", "input": f"case {WORDS[i]}", "target": t} for i, t in enumerate(targets)]
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = await check(make_config(tree), tmp_path)
        assert ['the answer "yes"' in line for line in getattr(found, kind)] == [True]
        assert not found.problems or kind == "problems"
