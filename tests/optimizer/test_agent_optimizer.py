"""An agent as the optimizer: fake command lines that really talk to the gateway, in front of a scripted model."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from desk import BEGIN, LOOK, call, desk, samples, text_of
from skilltune import Env, Result
from skilltune.api import atrain
from skilltune.config import OptimizerConfig, make_config
from skilltune.errors import BudgetExceeded, InfraError, InfraStopped
from skilltune.gateway.body import texts_of
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.clients import Clients
from skilltune.models import Request, Schema, system, user
from skilltune.optimizer.agent import ByAgent
from skilltune.optimizer.files import ANSWERS, layout
from skilltune.optimizer.render import Part
from skilltune.optimizer.stage import REDRAW, SCHEMAS, Brief, load_prompt
from skilltune.sandbox import probe
from skilltune.targets.makers import make_agent_target
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage
from upstream import Asked, Turn, Upstream

pytestmark = pytest.mark.anyio

AGENTS = {"claude-code": "anthropic@{}/m", "codex": "openai@{}/v1/m", "opencode": "openai@{}/v1/m"}


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{fakes.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)


# -- one question

NOTES = Brief(
    Request((system("Take notes."), user("x")), schema=Schema("notes", SCHEMAS["notes"])), (Part("skill", "# Desk"),)
)


def worker_of(cfg: OptimizerConfig, run: Run, root: Path, limits: Limits | None = None) -> MeteredTarget:
    clients = Clients((cfg,), run, Budget(limits or Limits(), Usage()))
    return make_agent_target(cfg.as_agent(), clients, root, role="optimizer", writable=(ANSWERS,))


@asynccontextmanager
async def asking(
    root: Path, script: Callable[[Asked], Turn], agent: str = "codex", *, limits: Limits | None = None, **options: Any
) -> AsyncIterator[tuple[ByAgent, Upstream]]:
    async with Upstream(script) as server:
        cfg = OptimizerConfig(**{"model": f"{agent}/{AGENTS[agent].format(server.url)}", "sandbox": "none", **options})
        with Run.open(root / "run") as run:
            worker = worker_of(cfg, run, root, limits)
            try:
                yield ByAgent(worker, run), server
            finally:
                await worker.aclose()


def notes(data: Any) -> str:
    if not isinstance(data.get("notes"), str):
        raise ValueError('"notes" must be a string')
    return data["notes"]


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    "said", ['{"notes": "short"}', 'Here it is:\n\n```json\n{"notes": "short"}\n```\nDone.'], ids=["bare", "fenced"]
)
async def test_the_last_message_is_the_answer(agent: str, said: str, tmp_path: Path) -> None:
    async with asking(tmp_path, lambda asked: Turn(said) if asked.results else call(asked, LOOK), agent) as (
        answers,
        server,
    ):
        assert await answers.ask(NOTES, notes) == "short"
        assert await answers.ask(NOTES, notes) == "short", "the journal answers"
        assert len(server.asked) == 2
        assert answers.run.usage.keys() == {"optimizer exchange"}
        assert answers.run.paid("optimizer")[0] == 1
        assert answers.run.paid("optimizer")[1].calls == 2
    seen = text_of(server.asked[1])
    assert "Take notes." in seen
    assert "# Desk" in seen


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_file_is_an_answer_and_counts_before_the_last_message(agent: str, tmp_path: Path) -> None:
    write = """printf '{"notes": "from the file"}' > answer/answer.json"""
    async with asking(tmp_path, lambda asked: Turn("Done: {}") if asked.results else call(asked, write), agent) as (
        answers,
        _,
    ):
        assert await answers.ask(NOTES, notes) == "from the file"


async def test_a_bad_answer_is_asked_again_once_with_the_reason(tmp_path: Path) -> None:
    def script(asked: Asked) -> Turn:
        if not asked.results:
            return call(asked, LOOK)
        return Turn('{"notes": "better"}' if "must be a string" in text_of(asked) else '{"notes": 7}')

    async with asking(tmp_path, script) as (answers, server):
        assert await answers.ask(NOTES, notes) == "better"
        assert await answers.ask(NOTES, notes) == "better"
    assert len(server.asked) == 4
    assert '{"notes": 7}' in text_of(server.asked[3])


async def test_two_bad_answers_are_no_answer(tmp_path: Path) -> None:
    async with asking(tmp_path, lambda asked: Turn("I would rather not.")) as (answers, server):
        for _ in range(2):
            with pytest.raises(InfraError, match="did not answer in the schema of notes twice"):
                await answers.ask(NOTES, notes)
    assert len(server.asked) == 2


async def test_a_limit_without_an_answer_is_said_and_not_asked_again(tmp_path: Path) -> None:
    async with asking(tmp_path, lambda asked: call(asked, f"echo {asked.results}"), max_turns=2) as (answers, server):
        with pytest.raises(InfraError, match=r"ended without an answer: stopped by optimizer\.max_turns = 2"):
            await answers.ask(NOTES, notes)
    assert len(server.asked) == 2


async def test_time_that_ran_out_is_no_answer_and_the_next_life_goes_on_from_there(tmp_path: Path) -> None:
    """Each life gets one call further, because the answered ones are replayed at once."""

    def script(asked: Asked) -> Turn:
        slow = "sleep 1.2" if asked.results == len(server.asked) - 1 else "true"
        return call(asked, slow) if asked.results < 2 else Turn('{"notes": "short"}')

    said = list[str]()
    async with Upstream(script) as server:
        for timeout_s in (1.0, 20.0):
            cfg = OptimizerConfig(model=f"codex/openai@{server.url}/v1/m", sandbox="none", timeout_s=timeout_s)
            with Run.open(tmp_path / "run") as run:
                worker = worker_of(cfg, run, tmp_path)
                try:
                    said.append(await ByAgent(worker, run).ask(NOTES, notes))
                except InfraStopped as stopped:
                    assert "no end within 1 s (optimizer.timeout_s); raise that limit" in str(stopped)
                    assert "optimizer" not in run.usage
                    assert run.paid("optimizer")[1].calls == len(server.asked)
                finally:
                    await worker.aclose()
        assert said == ["short"]
        assert len(server.asked) == 3, "no answered call was paid again"


async def test_time_that_ran_out_after_the_answer_was_written_does_no_harm(tmp_path: Path) -> None:
    write = """printf '{"notes": "written"}' > answer/answer.json; sleep 9"""
    async with asking(tmp_path, lambda asked: call(asked, write), timeout_s=1.0) as (answers, server):
        assert await answers.ask(NOTES, notes) == "written"
        assert await answers.ask(NOTES, notes) == "written"
        assert len(server.asked) == 1


async def test_an_answer_that_cannot_be_read_is_asked_for_anew_with_another_draw(tmp_path: Path) -> None:
    """So a run that stopped because no answer could be read heals when it is started again."""
    said = iter(["No.", "Never.", '{"notes": "at last"}'])
    async with asking(tmp_path, lambda asked: Turn(next(said))) as (answers, _):
        with pytest.raises(InfraError, match="twice"):
            await answers.ask(NOTES, notes)
        assert await answers.ask(replace(NOTES, request=replace(NOTES.request, draw=REDRAW)), notes) == "at last"


@pytest.mark.parametrize("scenario", ["crash", "silent"])
async def test_an_agent_that_fails_gives_no_answer(scenario: str, tmp_path: Path) -> None:
    brief = Brief(NOTES.request, (Part("skill", "x"),))
    async with asking(tmp_path, lambda asked: Turn('{"notes": ""}'), "claude-code") as (answers, _):
        prompt = load_prompt("agent")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("skilltune.optimizer.agent.load_prompt", lambda name: f"{prompt} [{scenario}]")
            patch.setattr("skilltune.optimizer.stage.WAITS_S", ())
            patch.setattr("skilltune.metering.slots.Endpoint.run", _once)
            with pytest.raises(InfraStopped, match="the optimizer cannot be reached: claude-code"):
                await answers.ask(brief, notes)
        assert "optimizer" not in answers.run.usage


async def _once(self: Any, role: str, work: Any, **hooks: Any) -> Any:
    if "on_attempt" in hooks:
        hooks["on_attempt"](0, None)
    return await work()


async def test_the_budget_holds_before_the_agent_starts(tmp_path: Path) -> None:
    async with asking(tmp_path, lambda asked: Turn("{}"), limits=Limits(calls=1)) as (answers, server):
        with pytest.raises(BudgetExceeded):
            await answers.ask(NOTES, notes)
        assert server.asked == []


async def test_a_question_that_was_cut_off_pays_for_what_is_new_only(tmp_path: Path) -> None:
    """Two lives of one run: the first ends after the second of three answers."""

    def script(asked: Asked) -> Turn:
        if asked.results == 2:
            return Turn('{"notes": "short"}')
        return call(asked, f"sleep 0.1; echo {asked.results}")

    async with Upstream(script) as server:
        cfg = OptimizerConfig(model=f"codex/openai@{server.url}/v1/m", sandbox="none")
        for life in (1, 2):
            with Run.open(tmp_path / "run") as run:
                worker = worker_of(cfg, run, tmp_path)
                asked = asyncio.create_task(ByAgent(worker, run).ask(NOTES, notes))
                while life == 1 and len(server.asked) < 2:
                    await asyncio.sleep(0.01)
                if life == 1:
                    await asyncio.sleep(0.05)
                    asked.cancel()
                    await asyncio.gather(asked, return_exceptions=True)
                else:
                    assert await asked == "short"
                await worker.aclose()
        assert len(server.asked) == 3
        with Run.open(tmp_path / "run") as run:
            assert run.paid("optimizer")[1].calls == 3


@pytest.mark.skipif(probe("auto").level == "none", reason="no sandbox holds on this machine")
async def test_the_agent_can_write_its_answer_only_and_sees_neither_project_nor_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    secret = tmp_path / "project" / "samples.jsonl"
    secret.parent.mkdir()
    secret.write_text("EXPECTED")
    tries = [
        "echo changed >> skill.md",
        "echo new > new.md",
        "rm README.md",
        f"cat {secret}",
        "env",
        """printf '{"notes": "written"}' > answer/answer.json""",
        "cat skill.md; ls",
    ]
    script = lambda asked: Turn("{}") if asked.results else call(asked, "; ".join(tries))  # noqa: E731
    async with asking(secret.parent, script, sandbox="auto") as (answers, server):
        assert await answers.ask(NOTES, notes) == "written"
    seen = "\n".join(texts_of([m["content"] for m in server.asked[1].body["messages"] if m["role"] == "tool"]))
    assert "# Desk\n" in seen
    assert "changed" not in seen
    assert {"README.md", "new.md"} & set(seen.splitlines()) == {"README.md"}
    assert "EXPECTED" not in seen
    assert "sk-SECRET" not in seen


# -- a whole training


async def trained(folder: Path, server: Upstream, agent: str, **settings: Any) -> Result:
    (folder / "SKILL.md").write_text("# Desk\n\nAnswer each ticket with its code.\n")
    model = AGENTS[agent].format(server.url)
    return await atrain(
        folder / "SKILL.md",
        Env(samples(60), root=folder),
        {"model": f"openai@{server.url}/v1/m", "workers": 8},
        optimizer={"model": f"{agent}/{model}", "sandbox": "none", "workers": 2},
        run=folder / "run",
        **{"train": {"epochs": 1, "batch_size": 12, "minibatch_size": 6}, "gate": {"screen": 12}, **settings},
    )


PAPER = {
    "preset": "paper",
    "train": {"epochs": 2, "batch_size": 16, "minibatch_size": 3, "schedule": "autonomous", "lr": 1, "lr_min": 1},
    "slow": {"enabled": True, "samples": 6},
}
STAGES = {"default": {"reflect"}, "paper": {"reflect", "merge", "rank", "learning_rate", "slow_update", "notes"}}


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(stage, all files) of each question that an agent was given."""
    found: list[tuple[str, str]] = []

    def seen(brief: Brief, answering: str) -> dict[str, bytes]:
        files = layout(brief, answering)
        found.append((brief.stage, "\n".join(f"{name}\n{data.decode()}" for name, data in files.items())))
        return files

    monkeypatch.setattr("skilltune.optimizer.agent.layout", seen)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "preset"), [("claude-code", "default"), ("codex", "default"), ("codex", "paper")])
async def test_an_agent_trains_a_skill_and_sees_train_samples_only(
    agent: str, preset: str, tmp_path: Path, laid_out: list[tuple[str, str]]
) -> None:
    settings = PAPER if preset == "paper" else {}
    async with Upstream(desk) as server:
        result = await trained(tmp_path, server, agent, **settings)
        asked = len(server.asked)
        again = await trained(tmp_path, server, agent, **settings)
        assert len(server.asked) == asked, "a replay asks nothing"
    assert again.best.text == result.best.text
    assert re.findall(r"[A-Z]{3}-\d", result.best.text)
    assert result.certificate is not None
    assert result.certificate.after > result.certificate.before
    with Run.open(tmp_path / "run") as run:
        assert run.usage["optimizer exchange"].calls == sum(BEGIN in text_of(seen) for seen in server.asked)
        split = run.recall("split")
    assert split is not None
    assert {stage for stage, _ in laid_out} >= STAGES[preset]
    shown = "\n".join(
        [text_of(seen) for seen in server.asked if BEGIN in text_of(seen)] + [text for _, text in laid_out]
    )
    ids = {name: {sample for sample in split[0][name] if sample in shown} for name in ("train", "select", "test")}
    assert (ids["select"], ids["test"]) == (set(), set())
    assert len(ids["train"]) >= 12


# -- settings


async def test_a_limit_in_dollars_needs_a_price_before_anything_is_spent(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text("# Desk\n")
    async with Upstream(desk) as server:
        model = f"openai@{server.url}/v1/m"
        optimizer = {"model": "codex/openai@https://models.invalid/v1/m", "max_usd": 1.0, "sandbox": "none"}
        with pytest.raises(ValueError, match=r"optimizer\.max_usd cannot hold, .* set optimizer\.price"):
            await atrain(tmp_path / "SKILL.md", Env(samples(60), root=tmp_path), model, optimizer, run=tmp_path / "run")
        assert server.asked == []


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"model": "codex/openai/gpt-5.5", "temperature": 0.5}, r"optimizer\.temperature is an option of a chat model"),
        ({"model": "openai/gpt-5.5", "max_turns": 3}, r"optimizer\.max_turns is an option of an agent"),
        ({"model": "handoff:answers", "sandbox": "none"}, r"optimizer\.sandbox is an option of an agent"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config({"target": {"model": "openai/gpt-5.5"}, "optimizer": optimizer})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("codex/openai@http://127.0.0.1:9/v1/m", "there is no command `codex` on the PATH; install it with"),
        ("claude-code/opus", "opus is an alias that moves from model to model"),
        ("acp:goose acp", "cannot be an optimizer in this version; use .*codex/"),
    ],
)
async def test_an_agent_that_cannot_propose_is_refused_before_anything_is_spent(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    if "PATH" in message:
        (tmp_path / "bin" / "codex").unlink()
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    (tmp_path / "SKILL.md").write_text("# Desk\n")
    async with Upstream(desk) as server:
        target = {"model": f"openai@{server.url}/v1/m"}
        with pytest.raises(ValueError, match=message):
            await atrain(tmp_path / "SKILL.md", Env(samples(60), root=tmp_path), target, model, run=tmp_path / "run")
        assert server.asked == []
