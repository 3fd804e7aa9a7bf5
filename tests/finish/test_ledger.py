"""Credit: each rule that stands is worth what the world says it is worth, by the journal alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from skilltune.cli.main import app
from skilltune.edits import Edit, Report, apply, inverse
from skilltune.finish.ledger import Rule, Seen, ledger
from skilltune.history.ledger import read_ledger, row
from skilltune.journal.run import Run
from skilltune.skill import Skill
from skilltune.verdict import Screen, ScreenRow, VerdictRecord
from training import START, Trained, small, train
from world import World

TRUTH = 0.25  # in a world of four classes a right rule solves a quarter of all samples


def trained(folder: Path, settings: dict[str, Any] | None = None, **world: Any) -> tuple[Trained, World]:
    with small(**{"q": 1.0, **world}) as there:
        return asyncio.run(train(there, folder, settings)), there


def shown(folder: Path) -> dict[str, Any]:
    told = CliRunner().invoke(app, ["show", str(folder), "--edits", "--json"])
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout)


def applied(edit: Edit, inserted: str, removed: str) -> Report:
    return Report(edit, "applied", inserted=inserted, removed=removed)


def accepted(version: int, skill: str, *edits: Report) -> VerdictRecord:
    """The verdict that made a version, one a step."""
    return VerdictRecord(version, version, True, skill, candidate=skill, reports=edits)


def test_right_rules_get_the_credit_that_they_deserve(tmp_path: Path) -> None:
    done, world = trained(tmp_path)
    rules = shown(done.folder)["edits"]
    assert [rule["text"].strip() for rule in rules]
    assert {rule["text"].strip() for rule in rules} == {world.rule(k) for k in world.held(done.result.best.text)}
    for rule in rules:
        assert rule["low"] <= TRUTH <= rule["high"]
        assert rule["fixed"] >= 1
        assert rule["broken"] == 0
        assert rule["known"] <= 32
        assert rule["why"]
        assert set(rule["evidence"]) <= {t.id for t in world.tickets.values() if t.split == "train"}
        assert rule["text"] in done.result.versions[rule["version"]].text
        assert rule["text"] not in done.result.versions[rule["version"] - 1].text


def test_the_table_holds_every_rule_and_what_was_undone_is_not_in_it(tmp_path: Path) -> None:
    done, _ = trained(tmp_path, p=0.1)
    table = CliRunner().invoke(app, ["show", str(done.folder), "--edits"]).stdout.splitlines()
    rules = shown(done.folder)["edits"]
    start = next(i for i, line in enumerate(table) if line.split()[:2] == ["rule", "since"])
    assert start > 0  # what the figures mean is said above them
    assert len(table) == start + 1 + len(rules)
    for line, rule in zip(table[start + 1 :], rules, strict=True):
        assert f"version {rule['version']}, step {rule['step']}" in line
        counted = f"fixed {rule['fixed']}, broke {rule['broken']} of {rule['known']}"
        assert (counted if rule["known"] else "never seen with and without") in line


def test_a_rule_that_was_taken_back_leaves_nothing_behind() -> None:
    """Its removal is no rule either: what it removes was never in the input."""
    texts = {"start": "# Desk", "lucky": "# Desk\n\n- luck\n\n- good", "best": "# Desk\n\n- good"}

    brought = [applied(Edit("add", text=f"- {name}"), f"\n- {name}\n", "") for name in ("luck", "good")]
    undone = applied(Edit("delete", target="- luck", why="luck"), "", "- luck\n")
    verdicts = [accepted(1, "lucky", *brought), accepted(2, "best", undone)]
    samples = [f"t{i}" for i in range(12)]
    scores = {(text, sample): [float(text == "best")] for text in texts for sample in samples}
    seen = Seen(scores, lambda hash: " ".join(texts[hash].split()))
    [rule] = ledger(verdicts, "start", "best", seen, samples, [])
    assert rule.text.strip() == "- good"
    assert rule.effect > 0.3

    texts |= {"rude": "# Desk\n\nRude.", "start": "# Desk\n\nKind.", "kind": "# Desk\n\nKind.\n"}
    rude = applied(Edit("replace", target="Kind.", text="Rude."), "Rude.", "Kind.")
    kind = applied(Edit("replace", target="Rude.", text="Kind."), "Kind.", "Rude.")
    assert ledger([accepted(1, "rude", rude), accepted(2, "kind", kind)], "start", "kind", seen, samples, []) == []


FRONT = "---\nname: desk\ndescription: Extracts codes. Never give a code.\n---\n"


@pytest.mark.parametrize(
    ("start", "edit", "words"),
    [
        ("Give a code, or none.\n", Edit("replace", target="Give a code, or none.", text="Give a code"), "Give a code"),
        ("Give a code.\n", Edit("replace", target="Give a code.", text="Give a code.\n- Always."), "- Always."),
        (f"{FRONT}Do it.\n", Edit("add", text="Extracts codes."), "Extracts codes."),
        (f"{FRONT}Do it.\nNever give a code.\n", Edit("delete", target="Never give a code."), "− Never give a code."),
        ("Do it.\nBe rude.\n", Edit("replace", target="Be rude.", text=""), "− Be rude."),
        ("Do it.\nBe rude.\n", Edit("replace", target="Do it.\nBe rude.", text="Do it."), "− Be rude."),
        ("Do it.\n\nBe rude.\n", Edit("rewrite", text="Do it.\n"), "− Be rude."),
    ],
)
def test_a_rule_is_where_its_words_stand_in_the_body_and_shows_what_is_new(start: str, edit: Edit, words: str) -> None:
    """Words of the description, or what a shorter text still begins with, are no presence of the rule."""
    skill = Skill(start)
    done = apply(skill, [edit])
    [report] = done.reports
    texts = {"start": skill, "best": done.skill}
    verdict = accepted(1, "best", report)
    samples = [f"t{i}" for i in range(12)]
    scores = {(text, sample): [float(text == "best")] for text in texts for sample in samples}
    seen = Seen(scores, lambda hash: " ".join(texts[hash].body.split()))
    [rule] = ledger([verdict], "start", "best", seen, samples, [])
    assert rule.effect > 0.8
    assert (rule.fixed, rule.known) == (12, 12)
    assert row(rule)[0] == words
    back = inverse(rule.op, rule.removed, rule.text, "")
    assert edit.op == "rewrite" or (back and apply(done.skill, [back]).skill.body.split() == skill.body.split())


def test_a_rule_stands_though_a_later_one_came_between_its_lines() -> None:
    both = applied(Edit("add", text="- a\n- b"), "\n- a\n- b", "")
    later = applied(Edit("add", after="- a", text="- c"), "\n- c", "")
    texts = {"start": "# Desk", "first": "# Desk - a - b", "best": "# Desk - a - c - b"}
    verdicts = [accepted(1, "first", both), accepted(2, "best", later)]
    seen = Seen({(text, "t1"): [1.0] for text in texts}, texts.__getitem__)
    assert len(ledger(verdicts, "start", "best", seen, ["t1"], [])) == 2


def test_a_run_that_accepted_nothing_has_an_empty_ledger(tmp_path: Path) -> None:
    done, _ = trained(tmp_path, q=0.0, harmful=0.0)
    assert done.result.best.text == START
    assert shown(done.folder)["edits"] == []
    assert "contains no edit" in CliRunner().invoke(app, ["show", str(done.folder), "--edits"]).stdout


def test_under_the_published_rule_a_whole_patch_shares_the_credit(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        done = asyncio.run(train(world, tmp_path, preset="paper"))
        rules = shown(done.folder)["edits"]
        gained = world.true_score(done.result.best.text)
        table = CliRunner().invoke(app, ["show", str(done.folder), "--edits"]).stdout
    patches = {tuple(rule["together"]["keys"]): rule["together"] for rule in rules if rule["together"]}
    assert patches  # the strict gate never saw the rules of a patch apart
    assert all(rule["effect"] is None and rule["low"] is None for rule in rules if rule["together"])
    assert sorted(key for keys in patches for key in keys) == sorted(r["key"] for r in rules if r["together"])
    alone = sum(rule["effect"] for rule in rules if not rule["together"])
    assert abs(alone + sum(patch["effect"] for patch in patches.values()) - gained) < 0.25
    for keys, patch in patches.items():
        said = f"{100 * patch['effect']:+.1f} ({100 * patch['low']:+.1f}…{100 * patch['high']:+.1f})"
        assert table.count(f"not separable: {said} for {len(keys)} together") == 1
    assert table.count("not separable") == sum(map(len, patches))


def test_the_screen_tells_the_rules_of_a_patch_apart(tmp_path: Path) -> None:
    done, _ = trained(tmp_path)
    assert all(rule["together"] is None and rule["low"] < rule["effect"] for rule in shown(done.folder)["edits"])


# -- how far the intervals can be trusted

CLASSES, FLIPS = 6, 0.1  # a right rule solves one class of samples; one answer in ten is flipped
TRAIN, SELECT = [f"t{i}" for i in range(60)], [f"s{i}" for i in range(40)]


def simulated(seed: int, credited: tuple[float, float]) -> list[tuple[Rule, float]]:
    """The rules of a run of four steps, each with its true effect. A right rule solves its class, one in three does
    nothing. A screen foretells the share `credited` of an effect, and errs by 3 points; what does nothing came out well
    there, or it were not in the candidate. What scores more on `select` is accepted."""
    draw = Random(seed)
    classes = draw.sample(range(CLASSES), CLASSES)
    texts, held, scores = {"start": "# Desk"}, {"start": frozenset[int]()}, dict[tuple[str, str], list[float]]()
    truths, verdicts, incumbent = dict[str, float](), list[VerdictRecord](), "start"

    def seen(text: str, samples: list[str]) -> float:
        for sample in samples:
            solved = int(sample[1:]) % CLASSES in held[text]
            scores.setdefault((text, sample), []).append(float(solved != (draw.random() < FLIPS)))
        return fmean(scores[text, sample][0] for sample in samples)

    before = seen("start", SELECT)
    for step in range(1, 5):
        seen(incumbent, draw.sample(TRAIN, 20))
        edits, screen, solves = [], [], set(held[incumbent])
        for number in range(3):
            line = f"- rule {step}.{number}"
            edit = Edit("add", text=line)
            right = bool(classes) and draw.random() < 2 / 3
            if right:
                solves.add(classes.pop())
            truths[edit.key] = (1 - 2 * FLIPS) / CLASSES * right
            predicted = draw.uniform(*credited) * truths[edit.key] + draw.gauss(0, 0.03)
            screen.append(ScreenRow(edit.key, line, predicted if right else abs(predicted), 0.03))
            edits.append(applied(edit, line, ""))
        candidate = f"step {step}"
        texts[candidate] = "\n".join([texts[incumbent], *(edit.inserted for edit in edits)])
        held[candidate] = frozenset(solves)
        after = seen(candidate, SELECT)
        kept = after > before
        incumbent, before = (candidate, after) if kept else (incumbent, before)
        tried = {"candidate": candidate, "reports": tuple(edits), "screen": Screen(tuple(screen))}
        verdicts.append(VerdictRecord(step, step, kept, incumbent, **tried))
    evidence = Seen(scores, lambda hash: " ".join(texts[hash].split()))
    rules = ledger(verdicts, "start", incumbent, evidence, TRAIN, SELECT)
    return [(rule, truths[rule.key]) for rule in rules]


@pytest.mark.slow
@pytest.mark.parametrize(("credited", "width"), [((0.1, 0.6), 0.25), ((0.8, 1.2), 0.17)])
def test_an_interval_of_95_percent_holds_the_true_effect_that_often(
    credited: tuple[float, float], width: float
) -> None:
    """Also where screens foretell a part of the effects only; and where they are right, it is not wide for that."""
    found = [pair for seed in range(100) for pair in simulated(seed, credited)]
    assert len(found) > 600
    within = fmean(rule.interval[0] <= truth <= rule.interval[1] for rule, truth in found)
    assert 0.92 < within < 0.995
    assert fmean(rule.interval[1] - rule.interval[0] for rule, _ in found) < width


def test_what_a_repeat_showed_of_the_noise_counts(tmp_path: Path) -> None:
    """As in the gate: of patches that no screen measured all intervals are wider, where the noise is known to be so."""
    done, _ = trained(tmp_path, {"gate.policy": "strict"})
    best = done.result.best.hash
    with Run.open(done.folder) as run:
        before = read_ledger(run, best)
        run.record("calibration", sd=0.5)
        after = read_ledger(run, best)
    assert before
    assert all(noisy.sd > rule.sd for rule, noisy in zip(before, after, strict=True))
