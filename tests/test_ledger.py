"""Credit: each rule that stands is worth what the world says it is worth, by the journal alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from skilltune.cli import app
from skilltune.edits import Edit
from skilltune.gate.credit import Seen, ledger
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

    def applied(edit: Edit, inserted: str, removed: str) -> dict[str, Any]:
        return {**edit.to_json(), "status": "applied", "inserted": inserted, "removed": removed}

    def accepted(version: int, skill: str, *edits: dict[str, Any]) -> dict[str, Any]:
        at = {"step": version, "version": version, "skill": skill, "candidate": skill, "accepted": True}
        return {**at, "edits": list(edits), "numbers": {}}

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


def test_a_run_that_accepted_nothing_has_an_empty_ledger(tmp_path: Path) -> None:
    done, _ = trained(tmp_path, q=0.0, harmful=0.0)
    assert done.result.best.text == START
    assert shown(done.folder)["edits"] == []
    assert "no edit stands" in CliRunner().invoke(app, ["show", str(done.folder), "--edits"]).stdout


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
