"""Agents inside a run: accounts, replay, training and the reports."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fakes
from skilltune import Env, Sample, Skill
from skilltune.api import aevaluate, atrain
from skilltune.build import build_parts
from skilltune.cli.main import app
from skilltune.config import Config, TargetConfig
from skilltune.errors import CallConfigError, RunError
from skilltune.history.activation import UNPROVEN
from skilltune.history.record import Record
from skilltune.journal.run import Run
from skilltune.report.transfer import transfer_table
from skilltune.rollout import Rollout
from skilltune.rollouts.further import kind_of
from skilltune.targets.agents.target import STREAM_BYTES, make_agent
from skilltune.usage import Usage
from upstream import Asked, Call, Fault, Turn, Upstream

pytestmark = pytest.mark.anyio

FRONT = "---\nname: desk\ndescription: Enters the code of a ticket. Use for every ticket.\n---\n"
KINDS = ("printer", "screen")


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{fakes.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)


def samples(n: int) -> list[Sample]:
    return [
        Sample(id=f"t{i}", input=f"Ticket {i}: the {KINDS[i % 2]} is broken.", target=f"CODE-{KINDS[i % 2].upper()}")
        for i in range(n)
    ]


def desk(asked: Asked) -> Turn:
    """A model that looks at a file first, and knows a code only if the skill says it."""
    if not asked.results:
        return Turn(calls=(Call("Bash", {"command": "ls", "cmd": "ls"}),))
    text = asked.raw.decode()
    kind = next(kind for kind in KINDS if f": the {kind} is" in text)
    code = f"CODE-{kind.upper()}"
    return Turn(code if code in text else "CODE-UNKNOWN")


async def test_an_evaluation_pays_each_exchange_once_and_shows_the_activation(tmp_path: Path) -> None:
    skill = Skill.parse(f"{FRONT}\nThe code of a printer is CODE-PRINTER.\n")
    async with Upstream(desk) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "workers": 4, "sandbox": "none"}
        env = Env(samples(6), root=tmp_path)
        first = await aevaluate(skill, env, target, run=tmp_path / "run")
        asked = len(server.asked)
        again = await aevaluate(skill, env, target, run=tmp_path / "run")
        assert len(server.asked) == asked == 12
    assert (first.score, first.n) == (0.5, 6)
    assert first.scores == again.scores
    assert first.activation == "offered in 6 of 6 rollouts, loaded in 6 (100 %)"
    assert first.usage.calls == 12
    run = Run.read(tmp_path / "run")
    assert run.usage["target exchange"].calls == 12
    assert "rollout" not in run.usage
    run.close()
    shown, table = (CliRunner().invoke(app, [name, str(tmp_path / "run")]) for name in ("show", "table"))
    assert re.search(r"^rollout +12 calls", shown.stdout, re.MULTILINE)
    assert (table.exit_code, "holds no training" in table.stderr, "damaged" in table.stderr) == (2, True, False)


async def test_a_table_of_targets_shows_in_how_many_rollouts_each_agent_loaded_the_skill(tmp_path: Path) -> None:
    skill = Skill.parse(f"{FRONT}\nThe code of a printer is CODE-PRINTER.\n")
    async with Upstream(desk) as server:
        chat = f"openai@{server.url}/v1/m"
        found = await aevaluate(
            skill,
            Env(samples(6), root=tmp_path),
            {"workers": 4, "sandbox": "none", "temperature": 0.0},
            targets=[
                f"codex/{chat}",
                {"model": f"claude-code/{chat}", "activation": "inline"},
                {"model": "command:script {prompt_file}", "upstream": chat},
            ],
            run=tmp_path / "run",
        )
        asked = len(server.asked)
    assert found.exit_code == 0
    for row in found.rows:
        assert row.without is not None
        assert row.skilled is not None
        assert (row.without.mean, row.skilled.mean) == (0.0, 0.5)
        assert (row.skilled.offered, row.skilled.loaded) == (1.0, 1.0)
        assert (row.without.offered, row.without.loaded) == (None, None)
        assert row.skilled.usage.calls == 12
    assert asked == 3 * 2 * 12
    with Run.read(tmp_path / "run") as run:
        for row in found.rows:  # each has an account of its own
            count, paid = run.paid(kind_of(row.target))
            assert (count, paid.calls) == (12, 24)
        assert run.paid("rollout") == (0, Usage())
    table = transfer_table(found)
    assert "100 % (offered 100 %)" in table
    assert table.count("+50.0 (") == 3


async def test_a_key_that_the_user_passes_on_is_in_no_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for rollouts with and without a result. The scorer sees the files as they are stored."""
    monkeypatch.setenv("MY_TOKEN", "PLANTED-12345")
    leak = 'echo "$MY_TOKEN" | tee key.txt'

    def script(asked: Asked) -> Turn | Fault:
        if not asked.results:
            return Turn("PLANTED-12345", (Call("Bash", {"command": leak, "cmd": leak}),))
        return Fault(400, {"error": {"message": "PLANTED-12345 is odd"}}) if b"Ticket 1:" in asked.raw else Turn("ok")

    seen: list[bytes] = []

    def score(sample: Sample, rollout: Rollout) -> float:
        seen.append(rollout.artifact("key.txt"))
        return 1.0

    async with Upstream(script) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "env": ["MY_TOKEN"], "sandbox": "none", "workers": 1}
        with pytest.raises(CallConfigError, match=r"\[key\] is odd"):
            await aevaluate("", Env(samples(3), score, root=tmp_path), target, run=tmp_path / "run")
        assert any(b"PLANTED-12345" in asked.raw for asked in server.asked)
    assert set(seen) == {b"[key]\n"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path.name for path in files if b"PLANTED" in path.read_bytes()] == []


@pytest.mark.parametrize(("change", "refused"), [("program", True), ("option", False), ("nothing", False)])
async def test_a_target_that_changed_is_not_compared_with_its_former_self(
    change: str, refused: bool, tmp_path: Path
) -> None:
    """A run holds one version of each target that `targets` names. Other options make it another target."""
    program = tmp_path / "agent.sh"
    program.write_text("#!/bin/sh\nexec script {prompt_file}\n".replace("{prompt_file}", '"$1"'))
    program.chmod(0o755)
    skill = Skill.parse(f"{FRONT}\nThe code of a printer is CODE-PRINTER.\n")
    async with Upstream(desk) as server:
        target = {"model": f"command:{program} {{prompt_file}}", "upstream": f"openai@{server.url}/v1/m"}

        async def compare(**options: object) -> int:
            targets = [{**target, **options}]
            env = Env(samples(4), root=tmp_path)
            await aevaluate(skill, env, {"sandbox": "none"}, targets=targets, run=tmp_path / "run")
            return len(server.asked)

        asked = await compare()
        if change == "program":
            program.write_text(program.read_text() + "# version 2\n")
        options: dict[str, int] = {"option": {"max_turns": 9}, "nothing": {"workers": 2}}.get(change, {})
        if refused:
            with pytest.raises(RunError, match=r"command:.*agent.sh .* changed since the run in .* measured it"):
                await compare(**options)
        else:
            assert (await compare(**options) == asked) is (change == "nothing")
    with Run.read(tmp_path / "run") as run:
        event = run.events("measured")[0][2]
        assert event["target"] == target["model"]
        assert "the agent is command:" in event["facts"][0]
        total = sum(usage.calls for usage in run.usage.values())
        assert {row.role: row.usage.calls for row in Record.of(run).spend if row.usage.calls} == {
            f"further target {target['model']}": total
        }


@pytest.mark.soak
async def test_an_agent_as_a_further_target_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "SKILL.md").write_text(f"{FRONT}\nAnswer each ticket with its code.\n")
    async with Upstream(desk) as server:
        also = f"codex/openai@{server.url}/v1/m"
        result = await atrain(
            tmp_path / "desk",
            Env(samples(60), root=tmp_path),
            {"model": "command:script {prompt_file}", "upstream": f"openai@{server.url}/v1/m", "sandbox": "none"},
            optimizer="examples",
            run=tmp_path / "run",
            train={"epochs": 1, "batch_size": 8},
            gate={"screen": 12, "also": [also], "also_margin": 0.4},
        )
    assert result.certificate is not None
    (row,) = result.certificate.also
    assert row.target == also
    assert row.harmless
    assert row.after > row.before
    run = Run.read(tmp_path / "run")
    rows = Record.of(run).spend
    spent = {spend.role: spend.usage.calls for spend in rows}
    total = sum(usage.calls for usage in run.usage.values())
    own, other = run.paid("rollout")[1].calls, run.paid(kind_of(also))[1].calls
    run.close()
    assert spent[f"further target {also}"] == other > 0
    assert own > 0
    assert sum(spend.usage.calls for spend in rows) == total  # nothing is shown twice


@pytest.mark.parametrize(("further", "refused"), [("claude-code", True), ("codex", False)])
async def test_an_edit_that_a_further_agent_cannot_load_is_refused_before_it_is_tried(
    further: str, refused: bool, tmp_path: Path
) -> None:
    """Else it would end the run in the middle of a check, and each resume again."""
    model = "openai@http://127.0.0.1:9/v1/m"
    settings = {
        "target": {"model": model},
        "optimizer": {"model": "examples"},
        "gate": {"also": [{"model": f"{further}/{model}", "sandbox": "none"}], "also_margin": 0.4},
    }
    with Run.open(tmp_path / "run") as run:
        env, start = Env(samples(60), root=tmp_path), Skill.parse(f"{FRONT}\nAnswer.\n")
        refuses = build_parts(Config.model_validate(settings), run, tmp_path, env=env, skill=start).arena.refuses
        assert refuses(start) == ""
        assert ('replaces "$ARGUMENTS"' in refuses(Skill.parse(f"{FRONT}\nSay $ARGUMENTS.\n"))) == refused


@pytest.mark.parametrize("tools", [(), ("bash",)])
async def test_equal_samples_work_in_workspaces_of_their_own(tmp_path: Path, tools: tuple[str, ...]) -> None:
    """They run at the same time, and neither may remove the files of the other."""

    def write(asked: Asked) -> Turn:
        command = {"command": "sleep 0.3; cat in.txt > out.txt", "cmd": "sleep 0.3; cat in.txt > out.txt"}
        return Turn("done") if asked.results else Turn(calls=(Call("bash" if tools else "Bash", command),))

    for word in ("ink", "paper", "lamp"):
        (tmp_path / word).write_text(word)
    same = [
        Sample(id=f"{word}{i}", input="Copy it.", files={"in.txt": word}, target={"out.txt": word})
        for word in ("ink", "paper", "lamp")
        for i in range(3)
    ]
    async with Upstream(write) as server:
        model = f"openai@{server.url}/v1/m"
        target = {"model": model, "tools": tools} if tools else {"model": f"codex/{model}"}
        env = Env(same, {"type": "files"}, root=tmp_path)
        found = await aevaluate(Skill.parse(f"{FRONT}\nWork.\n"), env, {**target, "workers": 9, "sandbox": "none"})
    assert (found.score, found.n) == (1.0, 9)


@pytest.mark.slow
async def test_training_against_an_agent(tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    skill = tmp_path / "desk" / "SKILL.md"
    skill.write_text(f"{FRONT}\nAnswer each ticket with its code.\n")
    async with Upstream(desk) as server:
        result = await atrain(
            tmp_path / "desk",
            Env(samples(40), root=tmp_path),
            {"model": "command:script {prompt_file}", "upstream": f"openai@{server.url}/v1/m", "sandbox": "none"},
            optimizer="examples",
            run=tmp_path / "run",
            budget={"calls": 3000},
            train={"epochs": 1, "batch_size": 8},
            gate={"screen": 12},
        )
        asked = len(server.asked)
    assert result.best.text != result.start.text
    assert result.certificate is not None
    assert result.certificate.after > result.certificate.before
    run = Run.read(tmp_path / "run")
    assert run.usage["target exchange"].calls == asked
    run.close()
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run")])
    assert "the skill was  offered in" in shown.output
    assert "The skill was offered in" in (tmp_path / "run" / "card.md").read_text()


async def test_a_skill_that_an_agent_cannot_list_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    async with Upstream(desk) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none"}
        with pytest.raises(ValueError, match="no usable name and description"):
            await aevaluate(Skill.parse("Just text."), Env(samples(6), root=tmp_path), target, run=tmp_path / "run")
        assert server.asked == []


async def test_the_output_of_the_command_line_is_kept_and_can_be_printed(tmp_path: Path) -> None:
    async with Upstream(desk) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none"}
        env = Env(
            [*samples(6)[1:], Sample(id="t0", input="[huge] Ticket 0: the printer is broken.", target="CODE")],
            root=tmp_path,
        )
        await aevaluate(Skill.parse(f"{FRONT}\nAnswer.\n"), env, target, run=tmp_path / "run")
    run = Run.read(tmp_path / "run")
    streams = {value["sample"]: value["stream"] for _, value, _ in run.each_memo("rollout")}
    run.close()
    hash, size = streams["t1"]
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--file", hash[:12]])
    assert (shown.exit_code, len(shown.stdout_bytes)) == (0, size)
    assert b'"type":"turn.completed"' in shown.stdout_bytes.replace(b" ", b"")
    cut = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--file", streams["t0"][0].upper()]).stdout_bytes
    assert STREAM_BYTES < len(cut) < STREAM_BYTES + 100
    assert cut.endswith(b"}\n")
    for unknown, why in (("0123456789ab", "none of"), ("", "rollouts.jsonl")):
        refused = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--file", unknown])
        assert (refused.exit_code, why in refused.stderr) == (2, True), refused.output


@pytest.mark.parametrize(("kind", "usd"), [("claude-code", 0.009), ("codex", 0.001)])
async def test_an_agent_with_its_own_login_works_without_the_gateway(
    kind: str, usd: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing proves that it saw the skill, and nothing says that it was free."""
    skill = Skill.parse(f"{FRONT}\nThe code of a printer is CODE-PRINTER.\n")
    async with Upstream(desk) as server:
        own = {
            "claude-code": ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
            "codex": ("OPENAI_BASE_URL", "CODEX_API_KEY"),
        }
        for name, value in zip(own[kind], (server.url, "own-login"), strict=True):
            monkeypatch.setenv(name, value)
        model = {"claude-code": "claude-code/claude-sonnet-4-5", "codex": "codex/gpt-5"}[kind]
        target = {"model": model, "gateway": False, "env": own[kind], "sandbox": "none"}
        found = await aevaluate(skill, Env(samples(6), root=tmp_path), target, run=tmp_path / "run")
        keys = {asked.headers.get("x-api-key") for asked in server.asked}
    assert (found.score, found.n, len(server.asked)) == (0.5, 6, 12)
    assert keys == {"own-login"}
    assert found.activation == UNPROVEN
    assert found.usage.usd is not None
    assert found.usage.usd > usd
    run = Run.read(tmp_path / "run")
    assert run.usage.keys() == {"rollout"}
    run.close()


def test_what_a_login_of_its_own_cannot_prove_is_said(tmp_path: Path) -> None:
    target = make_agent(TargetConfig(model="codex/gpt-5", gateway=False, sandbox="none"), tmp_path)
    assert any("nothing proves that it saw the skill" in fact for fact in target.facts)
    behind = make_agent(TargetConfig(model="codex/openai@http://127.0.0.1:9/v1/gpt-5", sandbox="none"), tmp_path)
    assert not any("nothing proves" in fact for fact in behind.facts)
    other = make_agent(TargetConfig(model="codex/gpt-5-mini", gateway=False, sandbox="none"), tmp_path)
    mine = make_agent(TargetConfig(model="command:python3 -V", sandbox="none"), tmp_path)
    assert ["target.upstream" in " ".join(made.facts) for made in (target, behind, mine)] == [False, False, True]
    assert len({target.fingerprint, behind.fingerprint, other.fingerprint}) == 3


async def test_training_from_an_empty_skill_needs_its_name_first(tmp_path: Path) -> None:
    async with Upstream(desk) as server:
        target = {"model": f"codex/openai@{server.url}/v1/m", "sandbox": "none"}
        with pytest.raises(ValueError, match="no usable name and description"):
            await atrain(tmp_path / "new", Env(samples(40), root=tmp_path), target, "examples", run=tmp_path / "run")
        assert server.asked == []
