"""`skilltune doctor`: each line says how it is, and how to mend what is wrong; no key is ever shown."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from skilltune.cli.main import app
from skilltune.models.retry import RetryPolicy
from skilltune.sandbox import describe, probe
from training import prepare, small
from world import Faults, World

SECRET = "sk-planted-0123456789"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(RetryPolicy, "delay", lambda *_: 0.0)
    with small() as world:
        yield world


def doctor(*args: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, args)])


def found(*args: object) -> dict[str, dict[str, Any]]:
    """The findings by topic; the last one of a topic stands."""
    data = json.loads(doctor(*args, "--json").stdout)
    assert data["ok"] == all(finding["level"] != "fail" for finding in data["findings"])
    return {finding["topic"]: finding for finding in data["findings"]}


def config(folder: Path, world: World, **models: str) -> Path:
    prepare(world, folder)
    named = {role: models.get(role, f"openai@{world.url}/{role}") for role in ("target", "optimizer")}
    tables = "".join(f'[{role}]\nmodel = "{model}"\n' for role, model in named.items())
    path = folder / "desk.toml"
    path.write_text(f'[env]\nsamples = "samples.jsonl"\n{tables}')
    return path


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_a_config_the_machine_is_looked_at_and_no_model_called() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    for topic in ("skilltune", "python", "sqlite", "git", "claude", "key", "code", "sandbox", "disk", "clock"):
        assert any(line.split()[1] == topic for line in result.stdout.splitlines()[:-1] if line[0] != " "), topic
    assert result.stdout.splitlines()[-1] == "fine: nothing fails"


def test_each_role_answers_one_tiny_call(tmp_path: Path, world: World) -> None:
    findings = found(config(tmp_path, world))
    assert findings["target"]["level"] == findings["optimizer"]["level"] == "ok"
    assert "answered in" in findings["optimizer"]["text"]
    assert world.calls == {"target": 1, "optimizer": 1}
    assert not (tmp_path / "runs").exists()


def test_a_model_in_both_roles_is_called_once(tmp_path: Path, world: World) -> None:
    assert "target and optimizer" in found(config(tmp_path, world, optimizer=f"openai@{world.url}/target"))
    assert world.calls == {"target": 1}


def test_a_judge_gives_a_verdict_and_one_that_only_talks_fails(tmp_path: Path, world: World) -> None:
    path = config(tmp_path, world)
    judge = f'env.score={{judge = "openai@{world.url}/judge", rubric = ["It is kind"]}}'
    findings = found(path, judge)
    assert findings["judge"]["level"] == findings["judge's verdict"]["level"] == "ok"
    assert world.calls["judge"] == 2
    world.faults = {"judge": Faults(garbled=1.0)}
    finding = found(path, judge)["judge's verdict"]
    assert finding["level"] == "fail"
    assert "gave no verdict" in finding["text"]
    assert "judge.max_tokens" in finding["fix"]
    world.faults = {"judge": Faults(error=1.0)}
    findings = found(path, judge)
    assert "env.score" in findings["judge"]["fix"]
    assert "judge's verdict" not in findings


def test_what_does_not_answer_fails_with_the_way_to_mend_it(tmp_path: Path, world: World) -> None:
    world.faults = {"optimizer": Faults(error=1.0)}
    result = doctor(config(tmp_path, world, target=f"openai@{world.url}/no-such-model"))
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("fail")]
    assert [lines[i].split()[1] for i in failed] == ["target", "optimizer"]
    assert "Check that the model `no-such-model` exists there" in result.stdout
    assert all("→ " in "".join(lines[i + 1 : i + 3]) for i in failed)
    assert lines[-1] == f"2 of {sum(line[:4].strip() in ('ok', 'warn', 'fail') for line in lines)} fail"


def test_a_config_that_cannot_be_read_is_a_finding_among_others(tmp_path: Path, world: World) -> None:
    path = config(tmp_path, world)
    path.write_text(path.read_text() + "[trian]\nepochs = 2\n")
    findings = found(path)
    assert "trian" in findings["config"]["text"]
    assert findings["disk"]["level"] == "ok"
    assert not world.calls


def test_keys_are_named_as_set_or_not_and_never_shown(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"target": "openai/gpt-5.5", "optimizer": f"anthropic@{world.root}/optimizer"}
    missing = doctor(config(tmp_path, world, **models))
    assert missing.exit_code == 2
    assert "OPENAI_API_KEY is not set; the target needs it" in missing.stdout
    assert "the optimizer's server gets no key; if it needs one, set optimizer.key_env" in missing.stdout
    monkeypatch.setenv("DESK_KEY", SECRET)
    result = doctor(config(tmp_path, world, target=f"anthropic@{world.root}/target"), "target.key_env=DESK_KEY")
    assert "DESK_KEY is set (for the target)" in result.stdout
    assert SECRET not in result.output
    plain = doctor(config(tmp_path, world, target="openai@http://gpu-box/v1/m"), "target.key_env=DESK_KEY")
    assert "over plain http" in plain.stdout


def test_a_scorer_of_ones_own_is_a_warning_and_the_truth(tmp_path: Path, world: World) -> None:
    (tmp_path / "mine.py").write_text("def score(sample, rollout):\n    return rollout.answer == sample.target\n")
    finding = found(config(tmp_path, world), "env.score=python:mine.py:score")["code"]
    assert finding["level"] == "warn"
    assert "unconfined" in finding["text"]
    assert found(tmp_path / "desk.toml")["code"]["level"] == "ok"


def test_what_the_sandbox_holds_is_one_line(tmp_path: Path, world: World) -> None:
    finding = found(config(tmp_path, world))["sandbox"]
    assert finding["text"] == f"agents and the scorer tests: {describe(probe())}"
    assert finding["level"] == ("warn" if probe().level == "none" else "ok")


def test_a_full_disk_fails_and_a_fuller_one_warns(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    for free_mb, level in ((50, "fail"), (500, "warn"), (5000, "ok")):
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _, free=free_mb: usage(0, 0, free * 2**20))
            finding = found(config(tmp_path, world))["disk"]
        assert finding["level"] == level
        assert bool(finding["fix"]) == (level != "ok")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc/self")
    assert "cannot write to" in found()["disk"]["text"]


def test_programs_say_their_version_and_inherit_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "WANDB_API_KEY", "SOME_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program(tmp_path, "claude", f'env > "{tmp_path}/seen"; echo "1.2.3 (Claude Code)"')
    program(tmp_path, "codex", "echo broken >&2; exit 3")
    findings = found()
    assert findings["claude"]["text"].startswith("1.2.3 (Claude Code)")
    assert (findings["codex"]["level"], findings["codex"]["fix"]) == ("warn", "try `codex --version`")
    assert "ended with 3: broken" in findings["codex"]["text"]
    assert SECRET not in (tmp_path / "seen").read_text()


def test_a_terminal_that_cannot_show_the_signs_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner(charset="ascii").invoke(app, ["doctor", "--json"])
    terminal = json.loads(result.stdout)["findings"][-1]
    assert terminal["level"] == "warn"
    assert "PYTHONUTF8=1" in terminal["fix"]


def test_the_help_teaches() -> None:
    text = doctor("--help").stdout
    assert "skilltune doctor skilltune.toml" in text
    assert "Exit code 0" in text
