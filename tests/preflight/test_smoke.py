"""`doctor` and `check` on a config with an agent: what is said before anything is spent, and the smoke rollout."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import fakes
from skilltune.config import load_config
from skilltune.preflight.check import check
from skilltune.preflight.doctor import Finding, examine
from skilltune.report.terminal import estimate_rows
from upstream import Asked, Call, Fault, Turn, Upstream

pytestmark = pytest.mark.anyio

FRONT = "---\nname: desk\ndescription: Enters the code of a ticket.\n---\n"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{fakes.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)


def project(folder: Path, target: dict[str, Any], *, body: str = "Answer.\n", front: str = FRONT) -> Path:
    folder = folder / "project"
    folder.mkdir(exist_ok=True)
    (folder / "SKILL.md").write_text(f"{front}\n{body}" if body else "")
    rows = [{"input": f"Ticket {i} of the desk.", "target": f"CODE-{i}"} for i in range(40)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{key} = {json.dumps(value)}" for key, value in target.items()]
    text = ["skill = 'SKILL.md'", "[env]", "samples = 'samples.jsonl'", "[optimizer]", "model = 'examples'"]
    (folder / "skilltune.toml").write_text("\n".join([*text, "[target]", *lines]) + "\n")
    return folder / "skilltune.toml"


def worker(asked: Asked) -> Turn:
    return Turn("ready") if asked.results else Turn(calls=(Call("Bash", {"command": "ls", "cmd": "ls"}),))


def named(findings: list[Finding], topic: str) -> list[Finding]:
    return [finding for finding in findings if finding.topic == topic]


@pytest.mark.parametrize("kind", ["codex", "claude-code", "opencode"])
async def test_doctor_proves_by_one_rollout_that_the_skill_is_seen(kind: str, tmp_path: Path) -> None:
    said: list[str] = []
    async with Upstream(worker) as server:
        target = {"model": f"{kind}/openai@{server.url}/v1/m", "sandbox": "none"}
        found = await examine(
            project(tmp_path, target), announce=lambda text: said.append(f"{len(server.asked)}: {text}")
        )
        assert len(server.asked) == 2
        assert all(b"Ticket" not in asked.raw for asked in server.asked)
    facts, answered = named(found, "target")
    version = {"codex": "0.171.0", "claude-code": "2.1.332", "opencode": "1.18.33"}[kind]
    assert f"the agent is {kind} {version}, in" in facts.text
    assert "sandbox none" in facts.text
    assert answered.text.endswith("2 calls of its model; the skill was offered and loaded")
    assert len(said) == 1
    assert said[0].startswith("0: probe: one rollout of ")
    assert not [finding for finding in found if finding.level == "fail"]
    program = {"claude-code": "claude"}.get(kind, kind)
    assert version in named(found, program)[0].text


async def test_a_skill_that_is_only_listed_is_said_to_be_offered(tmp_path: Path) -> None:
    async with Upstream(worker) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none", "activation": "native"}
        found = await examine(project(tmp_path, target))
    assert named(found, "target")[-1].text.endswith("the skill was offered, and it did not load it")


@pytest.mark.parametrize(
    ("faults", "options", "words"),
    [
        ([Fault(401, {"error": {"message": "no such key"}})], {}, "no such key"),
        ([], {"max_turns": 1}, "did not finish a short task: stopped by target.max_turns = 1"),
    ],
)
async def test_an_agent_that_cannot_work_fails(
    faults: list[Fault | None], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    async with Upstream(worker, *faults) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none", "max_wait_s": 0.1, **options}
        found = await examine(project(tmp_path, target))
    (failed,) = [finding for finding in found if finding.level == "fail"]
    assert failed.topic == "target"
    assert words in failed.text


async def test_an_agent_that_takes_too_long_itself_fails(tmp_path: Path) -> None:
    def slow(asked: Asked) -> Turn:
        return (
            Turn("done") if asked.results else Turn(calls=(Call("Bash", {"command": "sleep 30", "cmd": "sleep 30"}),))
        )

    async with Upstream(slow) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none", "timeout_s": 2.0}
        found = await examine(project(tmp_path, target))
    (failed,) = [finding for finding in found if finding.level == "fail"]
    assert "did not finish a short task: no end within 2 s" in failed.text


async def test_an_answer_that_hangs_once_is_asked_again(tmp_path: Path) -> None:
    """The endpoint used up the time, not the agent, so the rollout is repeated like any failed call."""
    async with Upstream(worker, None, Fault(hang=True)) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none", "timeout_s": 2.0}
        found = await examine(project(tmp_path, target))
    assert not [finding for finding in found if finding.level == "fail"]


async def test_a_missing_agent_and_a_missing_key_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    (tmp_path / "bin/claude").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = await examine(project(tmp_path, {"model": "claude-code/claude-opus-5", "sandbox": "none"}))
    failed = {finding.topic: finding.text for finding in found if finding.level == "fail"}
    assert "ANTHROPIC_API_KEY is not set; the target needs it" in failed["key"]
    assert "targets claude-code/… need it: install it with `npm install" in named(found, "claude")[0].text
    assert "config" in failed


async def test_check_probes_an_agent_too(tmp_path: Path) -> None:
    said: list[str] = []
    async with Upstream(worker) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none"}
        found = await check(*load_config(project(tmp_path, target)), probe=True, announce=said.append)
        assert len(server.asked) == 2
    assert found.problems == []
    assert found.probes[0].note == "2 calls of its model; the skill was offered and loaded"
    assert len(said) == 1
    assert any(note.startswith("the agent is codex 0.171.0, in sandbox none") for note in found.notes)


@pytest.mark.parametrize(
    ("options", "calls"), [({}, 8), ({"max_turns": 3}, 3), ({"tools": ["bash"], "max_turns": 2}, 2)]
)
async def test_the_estimate_counts_several_calls_for_each_rollout(
    options: dict[str, Any], calls: int, tmp_path: Path
) -> None:
    model = "openai@http://127.0.0.1:9/v1/m"
    target = {"model": model if "tools" in options else f"codex/{model}", "sandbox": "none", "price": [1.0, 5.0]}
    found = await check(*load_config(project(tmp_path, target | options), ["budget.calls=100"]))
    assert found.estimate is not None
    (least, most), per = found.estimate.target_calls, found.estimate.per_rollout
    assert per == calls
    assert found.estimate.typical_calls == calls * found.estimate.typical_rollouts
    assert least < found.estimate.typical_rollouts < most
    rows = dict(estimate_rows(found.estimate))
    assert re.match(r"[\d,]+ to [\d,]+ rollouts of the target", rows["calls"])
    assert f"a rollout counts as {calls} calls of its model" in rows["calls"]
    (short,) = [note for note in found.notes if "budget.calls=100" in note]
    assert "is too little for a whole run" in short
    assert found.estimate.usd is not None
    if "tools" not in options:
        assert found.estimate.usd[0] == pytest.approx(least * (calls * 20_000 + 4_000 * 5) / 1e6, rel=0.3)


async def test_the_body_that_an_agent_would_rewrite_is_a_problem_of_the_check(tmp_path: Path) -> None:
    target = {"model": "claude-code/anthropic@http://127.0.0.1:9/m", "sandbox": "none"}
    found = await check(*load_config(project(tmp_path, target, body="The task is $ARGUMENTS.\n")))
    assert [problem for problem in found.problems if 'claude-code replaces "$ARGUMENTS"' in problem]


@pytest.mark.parametrize(("activation", "said"), [("forced", "loads this skill"), ("native", "name and description")])
async def test_the_preview_shows_an_agent_its_task_and_no_message_that_it_never_gets(
    activation: str, said: str, tmp_path: Path
) -> None:
    target = {"model": "codex/openai@http://127.0.0.1:9/v1/m", "sandbox": "none", "activation": activation}
    found = await check(*load_config(project(tmp_path, target)))
    rows = {label.strip(): text for label, text in found.preview}
    assert list(rows) == ["sample", "skill", "task", "score"]
    assert said in rows["skill"]
    assert rows["skill"].endswith(f"(activation={activation}):\nAnswer.")
    assert re.fullmatch(r"Ticket \d+ of the desk\.", rows["task"])


async def test_the_preview_of_a_model_with_tools_names_the_files_and_does_not_show_them(tmp_path: Path) -> None:
    path = project(tmp_path, {"model": "openai@http://127.0.0.1:9/v1/m", "tools": ["read"], "sandbox": "none"})
    (path.parent / "note.txt").write_text("buy milk")
    rows = [{"input": f"Copy it, {i}.", "target": "x", "files": {"note.txt": "note.txt"}} for i in range(9)]
    (path.parent / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = dict((await check(*load_config(path))).preview)["  user"]
    assert shown.endswith("Files in the current folder: note.txt")
    assert "buy milk" not in shown


async def test_an_endpoint_that_always_fails_is_said_within_seconds(tmp_path: Path) -> None:
    """The gateway retries a call, and the rollout is repeated: both together must not take minutes."""
    async with Upstream(worker, *[Fault(500, {"error": {"message": "oops"}})] * 400) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none"}
        found = await examine(project(tmp_path, target))
        assert len(server.asked) <= 10
    (failed,) = [finding for finding in found if finding.level == "fail"]
    assert "oops" in failed.text


async def test_further_targets_are_probed_with_the_others(tmp_path: Path) -> None:
    """An agent by a rollout, a chat model by a call; a failure names the section to fix."""

    def script(asked: Asked) -> Turn | Fault:
        if asked.body["model"] == "gone":
            return Fault(404, {"error": {"message": "no such model"}})
        return worker(asked) if asked.body.get("tools") else Turn("ready")

    async with Upstream(script) as server:
        base = f"openai@{server.url}/v1"
        also = json.dumps([f"claude-code/{base}/m", f"{base}/n", f"{base}/gone"])
        path = project(tmp_path, {"model": f"{base}/m", "sandbox": "none"})
        text = path.read_text() + f"[gate]\nalso = {also}\nalso_margin = 0.5\n"
        path.write_text(text.replace('sandbox = "none"\n', ""))
        said: list[str] = []
        found = named(await examine(path, announce=said.append), "further target")
        checked = await check(*load_config(path), probe=True)
    texts = [finding.text for finding in found]
    assert texts[0].startswith("the agent is claude-code 2.1.332")
    assert [finding.level for finding in found[1:]] == ["ok", "ok", "fail"]
    assert "the skill was offered and loaded" in texts[1]
    assert "gate.also" in found[3].fix
    assert len(said) == 1
    assert [probe.role for probe in checked.probes] == ["target", *["further target"] * 3]
    assert len([problem for problem in checked.problems if "no such model" in problem]) == 1
    assert any(note.startswith(f"claude-code/{base}/m: the agent is claude-code") for note in checked.notes)
