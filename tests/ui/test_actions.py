"""The actions of the live page on real trainings: start, watch, pause, kill, resume, export, adopt, review."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from serving import Client, serving, until
from skilltune.cli.main import app
from skilltune.journal.run import Run
from training import DEFAULTS, START, small, train
from world import World

Json = dict[str, Any]


@pytest.fixture
def world() -> Iterator[World]:
    with small(q=0.9) as made:
        yield made


def order(world: World, **more: Any) -> Json:
    return {
        "skill": "SKILL.md",
        "tasks": "samples.jsonl",
        "target": f"openai@{world.url}/target",
        "optimizer": f"openai@{world.url}/optimizer",
        "epochs": 1,
        "batch_size": 16,
        **more,
    }


def project(folder: Path, world: World) -> Path:
    world.write(folder / "samples.jsonl")
    (folder / "SKILL.md").write_text(START)
    (folder / "runs").mkdir()
    return folder


def action(client: Client, id: str, name: str) -> Json:
    found: list[Json] = client.get(f"/api/runs/{id}/actions").json["actions"]
    return next(each for each in found if each["name"] == name)


@pytest.mark.slow
def test_a_run_that_is_out_of_budget_goes_on_with_a_larger_one_and_is_paused(tmp_path: Path, world: World) -> None:
    settings = {"train.epochs": 1, "train.batch_size": 8}
    stopped = asyncio.run(train(world, tmp_path, settings, preset="paper", budget={"calls": 130}))
    assert "130 calls" in str(stopped.result.stopped)
    tables = f"target.model=openai@{world.url}/target optimizer.model=openai@{world.url}/optimizer target.workers=16"
    given = " ".join(f"{key}={value}" for key, value in {**DEFAULTS, **settings}.items())
    (tmp_path / "skilltune.toml").write_text('preset="paper"\n[env]\nsamples="samples.jsonl"\n[budget]\ncalls=130\n')
    with Run.open(stopped.folder) as run:
        run.note("command", line=f"skilltune train skilltune.toml {tables} {given} --run run", folder=str(tmp_path))
    world.latency = 0.5
    moved = stopped.folder.rename(tmp_path / "moved")
    with serving(tmp_path, project=tmp_path) as page:
        raised = action(page, "moved", "budget")
        assert raised["enabled"]
        assert "Limits: 130 calls" in raised["effect"]
        for wrong in ({"calls": 130}, {"calls": 12.5}, {"usd": 5}, {"calls": "1000"}, {"calls": 200, "usd": 1}, {}):
            refused = page.post("/api/runs/moved/budget", wrong)
            assert (refused.status, refused.json["error"][:7]) == (400, "budget:"), wrong
        assert page.post("/api/runs/moved/budget", {"calls": 5000}).json == {"ok": True}
        assert not action(page, "moved", "budget")["enabled"]
        assert page.post("/api/runs/moved/pause").json == {"ok": True}
        world.latency = 0.0
        assert "asked for already" in action(page, "moved", "pause")["why_not"]
        with page.events("/api/runs/moved/events") as events:
            assert "stop exists" in until(events, "stopped")[-1].data["stopped"]
        assert "Limits: 5,000 calls" in action(page, "moved", "resume")["effect"]
    assert not stopped.folder.exists()
    assert (moved / "train.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_start_that_fails_says_why_and_leaves_no_run_behind(tmp_path: Path, world: World) -> None:
    root = project(tmp_path, world)
    (root / "data.jsonl").write_text('{"id": "1", "input": "a", "target": "b"}\n')
    with serving(root / "runs", project=root) as page:
        refused = page.post("/api/start", order(world, tasks="data.jsonl"))
        assert refused.status == 400
        assert "split is empty" in refused.json["error"]
        assert list((root / "runs").iterdir()) == []
        good = page.post("/api/check", order(world)).json
        assert good["fine"]
        assert good["rows"][0][0] == "calls"  # first of all, because it is read on a phone too
        assert good["rows"][0][1].startswith("32 to 320 of the target")
        assert dict(page.post("/api/check", order(world, budget={"calls": 50, "usd": 2})).json["rows"])["limit"] == (
            "2 usd, 50 calls"
        )
        checked = page.post("/api/check", order(world, tasks="data.jsonl")).json
        assert not checked["fine"]
        assert "split is empty" in checked["problems"][0]


WRONG_ORDERS = {
    "a path above": {"skill": "../SKILL.md"},
    "an absolute path": {"tasks": "/etc/passwd"},
    "a link out": {"tasks": "link.jsonl"},
    "a hidden file": {"tasks": ".secrets.jsonl"},
    "a null byte": {"tasks": "a\0b"},
    "a command": {"target": "command:touch hacked"},
    "an agent by its command": {"target": "acp:touch hacked"},
    "a folder": {"optimizer": "handoff:/tmp/x"},
    "a plug-in": {"target": "plugin:x"},
    "code": {"score": "python:score.py:fn"},
    "code as tasks": {"tasks": "env.py:make"},
    "an unknown field": {"key_env": "HOME"},
    "a wrong type": {"epochs": "2"},
    "a name that climbs": {"run": "../x"},
    "a budget without end": {"budget": {"usd": 1e400}},
    "an unknown limit": {"budget": {"eur": 1}},
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "project"
    (root / "runs").mkdir(parents=True)
    (outside / "SKILL.md").write_text(START)
    (outside / "other.jsonl").write_text('{"id": "1", "input": "secret", "target": "b"}\n')
    (root / "SKILL.md").write_text(START)
    (root / ".secrets.jsonl").write_text("{}")
    (root / "env.py").write_text("raise SystemExit(3)")
    (root / "samples.jsonl").write_text('{"id": "1", "input": "a", "target": "b"}\n')
    (root / "link.jsonl").symlink_to(outside / "other.jsonl")
    with serving(root / "runs", project=root) as page:
        yield page, root


@pytest.mark.parametrize("what", WRONG_ORDERS)
def test_the_page_can_name_data_of_the_project_and_nothing_else(fresh: tuple[Client, Path], what: str) -> None:
    page, root = fresh
    given = {"skill": "SKILL.md", "tasks": "samples.jsonl", "target": "local/x", "optimizer": "examples"}
    for path in ("/api/check", "/api/start"):
        refused = page.post(path, {**given, **WRONG_ORDERS[what]})
        assert refused.status == 400, refused.body
        assert set(refused.json) == {"error", "fix"}
        assert b"secret" not in refused.body.replace(b".secrets.jsonl", b"")
    assert list((root / "runs").iterdir()) == []


def test_the_form_offers_skills_and_tasks_of_the_project(fresh: tuple[Client, Path]) -> None:
    page, _ = fresh
    offered = page.get("/api/actions").json
    assert offered["skills"] == [{"path": ".", "config": False}]
    assert offered["tasks"] == ["samples.jsonl"]
    assert [each["name"] for each in offered["actions"]] == ["check", "start"]


def test_resume_shows_what_it_runs_and_runs_nothing_outside_of_the_project(tmp_path: Path) -> None:
    root, outside = tmp_path / "project", tmp_path / "outside"
    outside.mkdir()
    (root / "link").parent.mkdir()
    (root / "link").symlink_to(outside)
    for name, folder in (("in", root), ("out", outside), ("link", root / "link"), ("up", root / "..")):
        with Run.open(root / "runs" / name, {}) as run:
            run.note("command", line="skilltune train a.toml x=\u202e\x1b[2J<b>", folder=str(folder))
    with serving(root / "runs", project=root) as page:
        shown = action(page, "in", "resume")
        assert shown["enabled"]
        assert f"Runs `skilltune train a.toml x=\\u202e\\x1b[2J<b>` in {root}." in shown["effect"]
        for name in ("out", "link", "up"):
            refused = page.post(f"/api/runs/{name}/resume")
            assert (refused.status, "outside of" in refused.json["error"]) == (409, True), name
            assert not (root / "runs" / name / "train.log").exists()


def test_drafts_are_reviewed_one_by_one_and_other_lines_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "drafts" / "samples.jsonl"
    file.parent.mkdir()
    kept = '{"id":"own",  "input": "1+1",   "target": "2"}\n'
    drafts = [
        {"id": f"d{i}", "input": f"q{i}</script>", "target": "x", "metadata": {"reviewed": False}} for i in range(3)
    ]
    file.write_text(kept + "".join(json.dumps(draft) + "\n" for draft in drafts) + '{"id": "e", "reviewed": false}')
    with serving(tmp_path, project=tmp_path) as page:
        (listed,) = page.get("/api/drafts").json["files"]
        assert listed == {"file": "drafts/samples.jsonl", "drafts": 4, "samples": 5}
        answered = page.get("/api/drafts/drafts/samples.jsonl")
        assert b"</script>" not in answered.body
        rows = {row["id"]: row for row in answered.json["samples"]}
        place = "/api/drafts/drafts/samples.jsonl"

        def decide(id: str, decision: str, **more: Any) -> Any:
            return page.post(place, {"id": id, "digest": rows[id]["digest"], "decision": decision, **more})

        assert decide("d0", "keep").json == {"ok": True, "left": 3}
        assert decide("d1", "edit", sample={"target": "y", "id": "other"}).json == {"ok": True, "left": 2}
        assert decide("d2", "delete").json == {"ok": True, "left": 1}
        assert decide("d2", "keep").status == 409  # another tab decided meanwhile
        assert decide("e", "edit", sample={"input": ""}).status == 400
        assert decide("e", "burn").status == 400
        for outside in ("..%2Fx.jsonl", "/etc/passwd", "%2e%2e/%2e%2e/etc/passwd"):
            assert page.get(f"/api/drafts/{outside}").status in (400, 404)
    lines = file.read_text().splitlines(keepends=True)
    assert lines[0] == kept
    assert [json.loads(line) for line in lines[1:3]] == [
        {**drafts[0], "metadata": {"reviewed": True}},
        {**drafts[1], "target": "y", "metadata": {"reviewed": True}},
    ]
    assert lines[3:] == ['{"id": "e", "reviewed": false}']


@pytest.mark.slow
def test_a_skill_that_changed_since_the_training_is_not_overwritten(tmp_path: Path, world: World) -> None:
    asyncio.run(train(world, tmp_path, {"train.epochs": 1}))
    changed = START + "\nWritten meanwhile.\n"
    (tmp_path / "SKILL.md").write_text(changed)
    with serving(tmp_path, project=tmp_path) as page:
        adopt = action(page, "run", "adopt")
        assert not adopt["enabled"]
        assert "has changed since the training" in adopt["why_not"]
        assert page.post("/api/runs/run/adopt").status == 409
        resume = action(page, "run", "resume")
        assert resume["why_not"] == "the run has finished"
    refused = CliRunner().invoke(app, ["adopt", str(tmp_path / "run")])
    assert (refused.exit_code, "has changed since" in refused.output) == (2, True)
    assert (tmp_path / "SKILL.md").read_text() == changed
    (tmp_path / "SKILL.md").write_text(START)
    (tmp_path / "SKILL.md").chmod(0o640)
    assert CliRunner().invoke(app, ["adopt", str(tmp_path / "run")]).output == f"wrote {tmp_path / 'SKILL.md'}\n"
    assert (tmp_path / "SKILL.md").read_bytes() == (tmp_path / "run" / "best_skill.md").read_bytes()
    assert (tmp_path / "SKILL.md").stat().st_mode & 0o777 == 0o640
    assert "trained skill already" in CliRunner().invoke(app, ["adopt", str(tmp_path / "run")]).output
