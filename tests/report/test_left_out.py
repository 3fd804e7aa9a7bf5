"""A sample that could not be scored is named with its cause wherever a run is shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from skilltune.api import run_evaluation
from skilltune.build import build_parts
from skilltune.cli.main import app
from skilltune.config import make_config
from skilltune.history.left_out import describe
from skilltune.journal.run import Run
from skilltune.report.terminal import Lines
from training import Fated, quick_retries, small, train, train_at
from world import Call

pytestmark = pytest.mark.anyio


def text_of(samples: dict[str, dict[str, str]]) -> str:
    view = Lines(Console(file=io.StringIO(), width=400))
    view("left out", {"purpose": "select", "skill": "x", "attempt": 0, "samples": samples})
    view("left out", {"purpose": "step 1", "skill": "x", "attempt": 0, "samples": samples})
    file = view.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_line_says_how_many_which_and_why_and_says_it_once() -> None:
    filtered = {"outcome": "sample_error", "why": "`m`: 400: filtered \x1b[2J", "cause": "by the filter"}
    lost = {"outcome": "infra_error", "why": "503 from 10.0.0.1", "cause": "… from …"}
    said = text_of({"t112": filtered, "t9": lost, "t131": filtered})
    assert said == (
        "left out of 'select': 3 samples (t112, t131: refused: by the filter; t9: failed: 503 from 10.0.0.1)\n"
    )


def test_many_samples_are_counted_and_few_named() -> None:
    assert describe({}) == ""
    many = {f"s{i}": {"outcome": "judge_error", "why": "x"} for i in range(8)}
    assert describe(many) == "8 samples (s0, s1, s2, s3, s4 and 3 more: not scored: x)"


@pytest.mark.slow
async def test_train_show_card_and_eval_name_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    with small() as world:
        bad = next(sample["id"] for sample in world.samples() if sample["split"] == "train")

    def fate(call: Call, sample: str | None) -> str | None:
        return "error" if call.model == "target" and sample == bad else None

    with quick_retries(2), Fated(fate) as world:
        settings = {"train.epochs": 1}
        done = await train(world, tmp_path, settings)
        said = f"1 sample ({bad}: failed: "
        assert f"Left out: {said}" in done.read("card.md").replace("\\", "")
        shown = CliRunner().invoke(app, ["show", str(done.folder)])
        assert f"left out       {said}" in shown.output
        data = json.loads(CliRunner().invoke(app, ["show", str(done.folder), "--json"]).output)
        assert data["left_out"][bad]["outcome"] == "infra_error"
        assert "had an error" in data["left_out"][bad]["why"]
        dropped = await train_at(world.url, tmp_path, settings, drop=[bad])
        assert dropped.outcome == done.outcome
        assert f"({bad}: dropped: by --drop)" in CliRunner().invoke(app, ["show", str(done.folder)]).output
        cfg = make_config(
            {
                "skill": "SKILL.md",
                "env": {"samples": "samples.jsonl"},
                "target": {"model": f"openai@{world.url}/target"},
            }
        )
        with Run.open(tmp_path / "other") as run:
            session = build_parts(cfg, run, tmp_path)
            found = await run_evaluation(session, session.skill, "train")
            await session.aclose()
        assert f"left out: {said}" in str(found)
