"""Benchmarks from the command line and from Python: init, --tasks and --data, plug-ins, a run, the data commands."""

from __future__ import annotations

import importlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from http_server import Answer, Call, Server
from skilltune import benchmarks, plugins
from skilltune.api import aevaluate, atrain
from skilltune.benchmarks.fetch import fetch
from skilltune.cli.main import app
from skilltune.config import load_config
from skilltune.errors import UsageError
from skilltune.preflight.check import check
from skilltune.skill import Skill

pytestmark = pytest.mark.anyio
MODEL = "openai@http://127.0.0.1:9/v1/none"


def skilltune(*args: object) -> Any:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def problems(folder: Path, n: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"question": f"A box holds {i} pens. How many?", "answer": f"It is {i}.\n#### {i}"} for i in range(n))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# -- init


@pytest.mark.parametrize("name", list(benchmarks.BENCHMARKS))
@pytest.mark.parametrize("target", [MODEL, "claude-code/claude-opus-5"])
def test_init_writes_the_released_sizes_and_a_sound_skill(tmp_path: Path, name: str, target: str) -> None:
    found = benchmarks.find(name)
    spec = f"bench:{name}/{found.variants[0]}" if found.required and found.variants else f"bench:{name}"
    if found.variant and found.required:
        pytest.skip("its variants are known only with its extra")
    made = skilltune("init", spec, tmp_path / "my-skill", "--yes", "--target", target)
    assert made.exit_code == 0, made.stderr
    assert (f"skilltune data fetch {name}, then skilltune check" in made.stdout) is bool(found.files)
    cfg, _ = load_config(tmp_path / "my-skill")
    sizes = found.splits if sum(found.splits) else (2, 1, 7)
    assert (cfg.preset, cfg.env.split, cfg.target.model) == ("paper", sizes, target)
    assert benchmarks.parse(cfg.env.samples)[0] == found
    skill = Skill.load(tmp_path / "my-skill")
    assert skill.check() == []
    assert 20 < skill.tokens < 400
    assert found.licence in (tmp_path / "my-skill" / "skilltune.toml").read_text()


async def test_a_fresh_folder_is_ready_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = skilltune("init", "bench:gsm8k", "--yes", "--target", MODEL, "--data", problems(tmp_path / "data", 100))
    assert "next: skilltune check gsm8k" in made.stdout
    found = await check(*load_config(tmp_path / "gsm8k"))
    assert found.problems == []
    assert found.splits is not None
    assert [len(part) for part in (found.splits.train, found.splits.select, found.splits.test)] == [20, 10, 70]
    assert any("counts accuracy" in note for note in found.notes)


def test_init_keeps_a_skill_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text("---\nname: mine\ndescription: Mine.\n---\nDo it.\n")
    assert skilltune("init", "bench:gsm8k", tmp_path, "--yes").exit_code == 0
    assert "Do it." in (tmp_path / "SKILL.md").read_text()
    for args, message in (
        (["bench:gsm8k", tmp_path], "already has skilltune.toml"),
        (["bench:gsm9k"], "did you mean"),
        (["bench:gsm8k", "--score", "exact"], "leave out --score"),
        (["bench:spreadsheetbench", tmp_path / "s", "--target", "no such model"], "no such model"),
        (["bench:gsm8k", "--from", "x.md"], "--from drafts tasks"),
        ([tmp_path / "a", tmp_path / "b"], "belong to a benchmark"),
    ):
        refused = skilltune("init", *args, "--yes")
        assert refused.exit_code == 2
        assert message in refused.stderr


@pytest.mark.parametrize("title", ['a "title"', "title\\n"])
def test_the_settings_of_a_benchmark_reach_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    settings = '[target]\ntools = ["read"]\nmax_turns = 7\n[gate]\npolicy = "race"\n[budget]\ncalls = 5\n'
    own = replace(benchmarks.find("gsm8k"), settings=settings, title=title)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "gsm8k", own)
    for target, tools in ((MODEL, ["read"]), ("codex/gpt-5.5", None)):
        folder = tmp_path / target.partition("/")[0].partition("@")[0]
        assert skilltune("init", "bench:gsm8k", folder, "--yes", "--target", target).exit_code == 0
        tree = tomllib.loads((folder / "skilltune.toml").read_text())
        assert tree["target"].get("tools") == tools  # an agent has tools of its own
        assert tree["target"]["max_turns"] == 7
        assert (tree["gate"]["policy"], tree["budget"]["calls"]) == ("race", 5)


# -- --tasks and --data


def test_tasks_of_a_benchmark_replace_those_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text("Add up.\n")
    (tmp_path / "data.jsonl").write_text("".join(f'{{"input": "{i}", "target": "x"}}\n' for i in range(40)))
    (tmp_path / "skilltune.toml").write_text(
        f'[env]\nsamples = "data.jsonl"\nscore = "f1"\nprompt = "Q: {{input}}"\n[target]\nmodel = "{MODEL}"\n'
        '[optimizer]\nmodel = "examples"\n'
    )
    place = problems(tmp_path / "bench")
    seen = skilltune("check", tmp_path, "--tasks", "bench:gsm8k", "--data", place, "env.limit=20")
    assert seen.exit_code == 0, seen.stderr
    assert "train 4 · select 2 · test 14" in seen.stdout
    assert "A box holds" in seen.stdout
    for args in (["--tasks", "bench:gsm8k", "--data", tmp_path / "none"], ["--tasks", "bench:nothing"]):
        refused = skilltune("check", tmp_path, *args)
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1
    assert "env.data is the place" in skilltune("check", tmp_path, "--data", place).stderr


def test_a_skill_without_a_config_does_the_tasks_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "skill").mkdir()
    (tmp_path / "skill" / "SKILL.md").write_text("---\nname: skill\ndescription: Adds.\n---\nAdd up.\n")
    (tmp_path / "own.jsonl").write_text("".join(f'{{"input": "{i}", "target": "{i}"}}\n' for i in range(40)))
    monkeypatch.chdir(tmp_path)
    models = [f"target.model={MODEL}", "optimizer.model=examples"]
    seen = skilltune("check", "skill", "--tasks", "own.jsonl", *models)
    assert seen.exit_code == 0, seen.stderr
    assert "train 16 · select 12 · test 12" in seen.stdout
    assert "holds neither" in skilltune("check", "skill", *models).stderr
    assert "need a config" in skilltune("doctor", "--tasks", "own.jsonl").stderr


# -- a run


def right(call: Call) -> Answer:
    text = call.body["messages"][-1]["content"]
    return Answer({"choices": [{"message": {"content": f"<answer>{text.split()[3]}</answer>"}}], "usage": {}})


@pytest.mark.slow
async def test_a_run_on_a_benchmark_names_its_metrics_in_the_card(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text("Add up.\n")
    env = {"samples": "bench:gsm8k", "data": str(problems(tmp_path / "data"))}
    async with Server(right) as server:
        found = await atrain(
            tmp_path / "SKILL.md",
            env,
            f"openai@{server.url}/v1/adder",
            "examples",
            run=tmp_path / "run",
            train={"epochs": 1, "batch_size": 8},
        )
        paid = len(server.calls)
        moved = problems(tmp_path / "moved")  # the place of the data may change, its content may not
        again = await atrain(
            tmp_path / "SKILL.md",
            env | {"data": str(moved)},
            f"openai@{server.url}/v1/adder",
            "examples",
            run=tmp_path / "run",
            train={"epochs": 1, "batch_size": 8},
        )
        assert len(server.calls) == paid
    assert again.best.hash == found.best.hash
    card = (tmp_path / "run" / "card.md").read_text()
    assert "bench:gsm8k counts accuracy" in card
    assert "40 of the 1000 samples" in card


async def test_missing_data_stops_before_anything_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLTUNE_DATA", str(tmp_path))
    async with Server(right) as server:
        with pytest.raises(UsageError, match="skilltune data fetch gsm8k"):
            await aevaluate("", "bench:gsm8k", f"openai@{server.url}/v1/adder")
    assert not server.calls


# -- plug-ins

PLUGIN = """
from skilltune.benchmarks import Benchmark, Metric
from skilltune.envs import Env

def make(place, variant, draw):
    return Env(draw([]) or [{"input": f"say {variant} {i}", "target": variant} for i in range(20)])

said = Metric("said", "the word is said")
WORDS = Benchmark("x", "Words", make, (0, 0, 0), "here", "MIT", said, said, variants=("yes", "no"), skill="Say it.")
NOTHING = "nothing"
"""


def test_a_package_registers_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house_words.py").write_text(PLUGIN)
    info = tmp_path / "house_words-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-words\nVersion: 1\n")
    points = "[skilltune.benchmarks]\nwords = house_words:WORDS\nnothing = house_words:NOTHING\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setattr(plugins, "_found", {})
    assert {"words", "nothing"} <= set(benchmarks.names())
    env = benchmarks.load("bench:words/no")
    assert (env.name, env.samples[0].target) == ("words/no", "no")
    with pytest.raises(UsageError, match="is a str, not a Benchmark"):
        benchmarks.load("bench:nothing")
    with pytest.raises(UsageError, match="one of yes, no"):
        benchmarks.load("bench:words/maybe")


# -- data


def test_the_data_commands_tell_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLTUNE_DATA", str(tmp_path))
    listed = json.loads(skilltune("data", "list", "--json").stdout)
    assert {entry["name"] for entry in listed} >= set(benchmarks.BENCHMARKS)
    gsm8k = next(entry for entry in listed if entry["name"] == "gsm8k")
    assert (gsm8k["state"], gsm8k["licence"], gsm8k["bytes"]) == ("missing", "MIT", 4166206 + 749738)
    problems(tmp_path / "gsm8k")
    assert "incomplete (test.jsonl)" in skilltune("data", "list").stdout
    path = skilltune("data", "path", "gsm8k")
    assert (path.stdout.strip(), path.exit_code) == (str(tmp_path / "gsm8k"), 2)
    assert "`skilltune data fetch gsm8k`" in path.stderr
    (tmp_path / "gsm8k" / "test.jsonl").write_text("{}\n")
    assert skilltune("data", "path", "gsm8k").exit_code == 0
    refused = skilltune("data", "fetch", "gsm8k")  # the fixture is not the published file
    assert refused.exit_code == 2
    assert refused.stdout.index("licence: MIT") >= 0
    assert "differs from the file that is meant" in refused.stderr


def test_a_gated_set_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLTUNE_DATA", str(tmp_path))
    listed = skilltune("data", "list").stdout
    assert "the publisher gates questions and answers" in listed
    assert "pip install --no-deps bfcl-eval" in listed, "data that comes with a package"
    assert "HF_TOKEN" in skilltune("data", "path", "officeqa").stderr


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="set SKILLTUNE_DATA"):
        await fetch(benchmarks.find("gsm8k"), tmp_path / "file" / "gsm8k")
