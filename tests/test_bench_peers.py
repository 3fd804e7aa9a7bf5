"""The peers' bench: what it keeps, how it reads a peer's requests, and the curves side by side."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from world import Call
from worlds import FAMILIES


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", Path(__file__).parents[1] / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[f"bench_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers, curves = _load("peers"), _load("curves")
FIGURES = {"score": 0.75, "changed": True, "calls before": 1390, **{f"after {n}": n / 2000 for n in curves.BUDGETS}}


def asked(**changes: Any) -> argparse.Namespace:
    defaults = {"peer": "rewrites", "families": "desk,quarter", "seeds": 2, "first": 0, "workers": "4", "why": ""}
    return argparse.Namespace(**{**defaults, "vary": [], "latency": 0.0, "options": {}, "keep": None, **changes})


def test_kept_runs_are_not_made_again_unless_what_decides_them_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def one(peer: str, workers: int, family: Any, seed: int, latency: float, options: dict[str, Any]) -> Any:
        made.append((family.name, seed))
        return FIGURES

    monkeypatch.setattr(peers, "one", one)
    monkeypatch.setattr(peers, "source", lambda peer: "")
    file = tmp_path / "kept.jsonl"
    rows = [(family.name, figures) for family, _, figures in peers.measured(asked(keep=file))]
    assert rows == [(name, FIGURES) for _ in range(2) for name in ("desk", "quarter")]
    assert made == [("desk", 0), ("quarter", 0), ("desk", 1), ("quarter", 1)]
    with file.open("a") as lines:
        lines.write('{"peer": "rewr')  # a killed process leaves half a line
    made.clear()
    assert len(list(peers.measured(asked(keep=file, seeds=2)))) == 4
    assert made == []
    file.write_text(file.read_text().removesuffix('{"peer": "rewr'))
    for changes in ({"options": {"number": 3}}, {"vary": ["q=0.5"]}, {"workers": "8"}, {"first": 2}):
        made.clear()
        list(peers.measured(asked(keep=file, **changes)))
        assert len(made) == 4


def test_a_merge_keeps_what_each_proposal_adds_and_drops_what_one_deletes() -> None:
    world = peers.DescentWorld(FAMILIES["quarter"])

    def merged(current: str, *proposals: str) -> list[str]:
        listed = "\n".join(f"PROPOSAL {i + 1}\n---\n{text}\n---\n" for i, text in enumerate(proposals))
        request = f"CURRENT\n---\n{current}\n---\n\n{listed}\nDo this:\n1. For each proposal, work out the change."
        return [line for line in world._union(request).splitlines() if line]

    assert merged("a\nb", "a\nb\nc", "a\nb\nd") == ["a", "b", "c", "d"]
    assert merged("a\nb\nc", "a\nc", "a\nb\nc\nd") == ["a", "c", "d"]
    assert merged("", "\na", "\nb", "\na") == ["a", "b"]
    assert merged("a", "a\nb", "a\nb\n- c\n---\nd") == ["a", "b", "- c", "---", "d"]


def test_a_patch_is_made_for_the_skill_and_the_failure_that_the_request_shows() -> None:
    world = peers.DescentWorld(replace(FAMILIES["quarter"], q=1.0, paraphrase=0.0, deletes=0.0))
    ticket = next(iter(world.tickets.values()))
    other = world.rule((ticket.kind + 1) % 12)
    request = (
        f'Current skill document:\n"""\n{other}\n"""\n\nFailed cases:\n[0] Q: {ticket.input}\n    agent: wrong\n'
        "{}\nReturn ONLY a JSON object:\n{{}}\nUse AT MOST 2 edits."
    )

    def edits(rejected: str = "") -> list[Any]:
        body = {"model": "optimizer", "messages": [{"role": "user", "content": request.format(rejected)}]}
        return json.loads(str(world._think(Call.parse("openai", body, None), "#0")))["edits"]

    [edit] = edits()
    assert world.rule(ticket.kind) in edit["content"]
    assert edit["op"] in ("append", "insert_after", "replace")
    [edit] = edits(f"Previous edits this epoch that were REJECTED:\n{world.rule(ticket.kind)}")
    assert world.rule(ticket.kind) not in edit["content"]


def made(who: str, family: str, seed: int, last: float, changed: bool = True) -> Any:
    return curves.Made(who, family, seed, last, changed, 1400, (0.0, 0.25, 0.5, last))


def test_curves_compare_the_families_that_all_sources_have() -> None:
    runs = [made(who, "quarter", seed, 1.0 if who == "a" else 0.5) for who in "ab" for seed in range(2)]
    runs += [made(who, "quarter-never-right", 0, 0.0, changed=who == "b") for who in "ab"]
    runs.append(made("a", "desk", 0, 0.0))  # b has no such run
    text = list(curves.comparison(curves.cells_of(runs)))
    assert text[0] == "1 families: quarter"
    assert text[1].strip() == "never right: quarter-never-right"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[3:]]
    assert rows[0][:2] == ["a", "2"]
    assert rows[0][5:] == ["1.000 (1.000 to 1.000)", "1.00", "1400", "0 of 1"]
    assert rows[1][5:] == ["0.500 (0.500 to 0.500)", "0.50", "1400", "1 of 1"]
    often = [made("a", family, 0, score) for family, score in (("quarter", 1.0), ("quarter-often-wrong", 0.0))]
    assert "| 0.500 (" in list(curves.comparison(curves.cells_of(often)))[-1]
    assert "| 1.000 (" in list(curves.comparison(curves.cells_of(often), right=0.6))[-1]
    assert sum("desk" in line for line in curves.by_family(curves.cells_of(runs))) == 1
    with pytest.raises(SystemExit, match="no family in common"):
        list(curves.comparison(curves.cells_of([made("a", "desk", 0, 1), made("b", "quarter", 0, 1)])))


def test_kept_outcomes_of_both_benches_and_a_written_table_are_read_alike(tmp_path: Path) -> None:
    theirs, ours, table = tmp_path / "theirs.jsonl", tmp_path / "ours.jsonl", tmp_path / "runs.csv"
    key = {"peer": "gepa", "family": "desk", "seed": 3, "settings": "d"}
    theirs.write_text(json.dumps({**key, "figures": FIGURES}) + '\n{"peer": "ge')
    outcome = {"true": 0.75, "changed": False, "target": 1100, "curve": [[0, 0.0], [600, 0.5], [900, 1.0]]}
    task = {"family": {"name": "quarter"}, "seed": 1, "preset": "default"}
    ours.write_text(json.dumps({"key": json.dumps(task), "outcome": outcome}) + "\n")
    runs = [*curves.read(str(theirs)), *curves.read(f"new={ours}"), *curves.read(str(ours))]
    assert runs == [
        curves.Made("gepa", "desk", 3, 0.75, True, 1390, (0.2, 0.35, 0.5, 0.7)),
        curves.Made("new", "quarter", 1, 0.75, False, 1100, (0.0, 0.5, 1.0, 0.75)),
        curves.Made("default", "quarter", 1, 0.75, False, 1100, (0.0, 0.5, 1.0, 0.75)),
    ]
    curves.write(runs, table)
    assert sorted(curves.read(str(table)), key=str) == sorted(runs, key=str)
