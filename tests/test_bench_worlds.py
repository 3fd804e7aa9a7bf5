"""The bench over the families: its curve, its overrides, and the outcomes that it keeps."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from skilltune.gate import priors
from worlds import FAMILIES


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_worlds", Path(__file__).parents[1] / "bench" / "worlds.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["bench_worlds"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = _load()
SMALL = replace(FAMILIES["quarter"], name="small", kinds=4, train=40, select=20, test=20)


def task(seed: int = 0, family: Any = SMALL, settings: str = "{}", constants: str = "{}", certify: bool = False) -> Any:
    return bench.Task(family, seed, "default", settings, constants, certify)


def outcome() -> Any:
    curve = ((0, 0.0), (300, 0.5), (700, 1.0))
    return bench.Outcome(
        0.75, 0.0, True, accepted=2, steps=5, target=900, optimizer=9, seconds=1.0, reason="", curve=curve
    )


def test_the_curve_is_the_incumbents_until_the_end_and_what_ships_afterwards() -> None:
    made = [outcome().after(calls) for calls in (0, 299, 300, 699, 700, 899, 900, 5000)]
    assert made == [0, 0, 0.5, 0.5, 1, 1, 0.75, 0.75]


def test_constants_change_in_every_module_that_imported_them_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    home, other, namesake = ModuleType("home"), ModuleType("other"), ModuleType("namesake")
    home.__dict__["BAR"] = other.__dict__["BAR"] = old = 0.123
    namesake.__dict__["BAR"] = 0.456
    for module in (home, other, namesake):
        monkeypatch.setitem(sys.modules, f"skilltune.{module.__name__}", module)
    with pytest.raises(RuntimeError), bench.constants({"home.BAR": 0.5, "gate.priors.SHRINK": 0.1}):
        assert (home.BAR, other.BAR, namesake.BAR, priors.SHRINK) == (0.5, 0.5, 0.456, 0.1)
        raise RuntimeError
    assert (old, old, 0.456) == (home.BAR, other.BAR, namesake.BAR)
    assert priors.SHRINK != 0.1
    with pytest.raises(SystemExit, match="no constant NOPE"), bench.constants({"gate.priors.NOPE": 1}):
        pass


def test_settings_and_families_are_read_from_the_command_line() -> None:
    values = bench.assigned(["train.patience=8", "train.compact=true", "gate.policy=strict", "env.split=[1,1,1]"])
    assert bench.tree_of(values) == {
        "train": {"patience": 8, "compact": True},
        "gate": {"policy": "strict"},
        "env": {"split": [1, 1, 1]},
    }
    with pytest.raises(SystemExit, match="write NAME=VALUE"):
        bench.assigned(["train.patience"])
    [family] = bench.chosen("quarter", {"q": 0}, "")
    assert family == replace(FAMILIES["quarter"], q=0)
    for names, vary, message in (("nope", {}, "no family 'nope'"), ("desk", {"qq": 0}, "no such parameter")):
        with pytest.raises(SystemExit, match=message):
            bench.chosen(names, vary, "")


def test_kept_outcomes_are_found_again_by_all_that_decides_them(tmp_path: Path) -> None:
    file, made = tmp_path / "keep.jsonl", outcome()
    first = task()
    file.write_text(json.dumps({"key": first.key, "outcome": asdict(made)}) + '\n{"key": "half a li')
    assert dict(bench._kept(file)) == {first.key: made}
    others = [task(seed=1), task(settings='{"train": {}}'), task(constants='{"a": 1}'), task(certify=True)]
    others.append(task(family=replace(SMALL, p=0.2)))
    assert len({first.key, *(other.key for other in others)}) == 6


def test_an_interval_holds_the_mean_and_shrinks_with_the_spread() -> None:
    mean, low, high = bench.bootstrap([[0.0, 1.0, 1.0, 1.0], [0.5, 0.5]])
    assert low < mean == 0.625 < high
    assert bench.bootstrap([[0.5, 0.5], [1.0]]) == (0.75, 0.75, 0.75)


@pytest.mark.slow
def test_a_run_is_measured_the_same_way_twice() -> None:
    one, two = (bench.run(task()) for _ in range(2))
    assert replace(one, seconds=0) == replace(two, seconds=0)
    assert one.changed
    assert one.accepted == len(one.curve) - 1 > 0
    assert one.start == one.curve[0][1] == 0 < one.true <= 1
    assert [made for made, _ in one.curve] == sorted({made for made, _ in one.curve})
    assert one.curve[-1][0] <= one.target
    assert one.reason
    never = bench.run(task(family=replace(SMALL, q=0.0), settings='{"train": {"patience": 1}}'))
    assert not never.changed
    assert never.true == 0
