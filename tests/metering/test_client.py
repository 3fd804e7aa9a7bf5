"""A model within a run: the cost and words of its failures, what its endpoint does not know, what it thought."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from http_server import Answer, Call, Server
from skilltune import Env
from skilltune.config import load_config
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.client import LEARNED, Client
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.models import Request, Schema, user
from skilltune.models.openai import OpenAIModel
from skilltune.models.reading import NoText
from skilltune.models.retry import RetryPolicy
from skilltune.optimizer.render import render_rollout
from skilltune.optimizer.stage import Brief, ByModel
from skilltune.preflight.check import check
from skilltune.preflight.doctor import Finding, examine
from skilltune.preflight.probe import probe
from skilltune.rollout import Rollout, Turn, rollout_from_json, rollout_to_json
from skilltune.skill import Skill
from skilltune.targets.chat import ChatTarget
from skilltune.usage import Usage
from training import small, train

pytestmark = pytest.mark.anyio

ENV = Env([{"id": f"s{i}", "input": f"{i} + {i}?", "target": str(2 * i)} for i in range(30)])
SKILL = Skill("---\nname: sums\ndescription: Adds.\n---\n\nAdd the numbers.\n")


def chat(content: Any, finish: str = "stop", **message: Any) -> Answer:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return Answer({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}})


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "delay", lambda *_: 0.0)


def client(server: Server, run: Run, role: str = "target") -> Client:
    model = OpenAIModel(f"openai@{server.url}/v1/m", timeout_s=5)
    return Client(model, Meter(Endpoint(4), Budget(Limits(), Usage()), run, role))


async def test_thinking_is_a_turn_that_nobody_scores_and_the_optimizer_is_not_shown(tmp_path: Path) -> None:
    async with Server(chat("<think>two and two</think>\n4")) as server:
        with Run.open(tmp_path) as run:
            target = ChatTarget(made := client(server, run))
            sample = ENV.samples[2]
            trajectory = await target.run(SKILL, ENV.task(sample), 0)
            await made.aclose()
    assert trajectory.answer == "4"
    assert trajectory.turns == (Turn("user", "2 + 2?"), Turn("thinking", "two and two"), Turn("assistant", "4"))
    rollout = Rollout(
        sample.id, SKILL.hash, 0, trajectory, await ENV.score(sample, Rollout("s2", "", 0, trajectory, None))
    )
    assert rollout.score is not None
    assert rollout.score.value == 1
    assert rollout_from_json(rollout_to_json(rollout)) == rollout
    assert "two and two" not in render_rollout(rollout, sample, ENV, chars=4000, show_expected=True)


async def test_a_cut_answer_names_the_setting_of_its_role_and_each_attempt_is_paid(tmp_path: Path) -> None:
    async with Server(chat(None, "length", reasoning_content="hm")) as server:
        with Run.open(tmp_path) as run:
            made = client(server, run)
            with pytest.raises(NoText, match=r"raise target\.max_tokens") as caught:
                await made(Request((user("2 + 2?"),)))
            await made.aclose()
            assert caught.value.systemic == "answers are cut before any text: raise target.max_tokens"
            assert run.usage["failed attempt"] == Usage(2, 18, 10)
            assert made.meter.budget.spent == Usage(2, 18, 10)


async def test_a_probe_names_the_setting_of_its_role_and_is_counted_apart(tmp_path: Path) -> None:
    async with Server(chat(None, "length", reasoning_content="hm")) as server:
        with Run.open(tmp_path) as run:
            made = client(server, run)
            with pytest.raises(NoText, match=r"raise target\.max_tokens"):
                await probe(made)
            await made.aclose()
            assert {value["role"] for _, value, _ in run.memos("failed attempt")} == {"probe"}


async def test_what_an_endpoint_does_not_know_is_written_down_once_for_all_lives(tmp_path: Path) -> None:
    def picky(call: Call) -> Answer:
        if "temperature" in call.body:
            return Answer({"error": {"message": "invalid temperature: only 1 is allowed"}}, status=400)
        return chat("4")

    found: list[dict[str, Any]] = []
    async with Server(picky) as server:
        for _ in range(2):
            with Run.open(tmp_path) as run:
                made = client(server, run)
                for draw in range(2):
                    await made(Request((user("2 + 2?"),), temperature=0.0, draw=draw))
                await made.aclose()
                found = [data for _, _, data in run.events(LEARNED)]
    assert len(found) == 1
    assert "takes no temperature" in found[0]["what"]


async def test_an_optimizer_without_words_is_asked_once_per_run(tmp_path: Path) -> None:
    request = Request((user("Which edits?"),), schema=Schema("merge", {"type": "object"}))
    async with Server(chat("", "length")) as server:
        for _ in range(2):
            with Run.open(tmp_path) as run:
                made = client(server, run, "optimizer")
                with pytest.raises(NoText, match=r"raise optimizer\.max_tokens"):
                    await ByModel(made, run).ask(Brief(request), lambda data: data)
                await made.aclose()
    assert len(server.calls) == 2  # both attempts of the first life


async def test_the_card_says_what_an_endpoint_does_not_know(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        settings = {"train.epochs": 1, "train.batch_size": 8}
        trained = await train(world, tmp_path, settings)
        with Run.open(trained.folder) as run:
            run.record(LEARNED, model="openai/m", what="the endpoint has no system role")
        await train(world, tmp_path, settings)
    assert "openai/m: the endpoint has no system role" in (trained.folder / "card.md").read_text()


# before anything is spent


def config(folder: Path, server: Server) -> Path:
    (folder / "SKILL.md").write_text(SKILL.text)
    rows = "".join(f'{{"id": "s{i}", "input": "{i} + {i}?", "target": "{2 * i}"}}\n' for i in range(30))
    (folder / "data.jsonl").write_text(
        rows + '{"id": "long", "input": "' + "one more and " * 800 + '?", "target": "9"}\n'
    )
    path = folder / "skilltune.toml"
    models = "".join(f'[{role}]\nmodel = "openai@{server.url}/v1/{role}"\n' for role in ("target", "optimizer"))
    path.write_text(f'[env]\nsamples = "data.jsonl"\nscore = "exact"\n{models}')
    return path


def short_context(call: Call) -> Answer:
    """A server that reads the last 1,024 tokens."""
    told = sum(len(message["content"]) for message in call.body["messages"]) // 4
    choice = {"message": {"content": "4"}, "finish_reason": "stop"}
    return Answer({"choices": [choice], "usage": {"prompt_tokens": min(told, 1024), "completion_tokens": 1}})


def no_system(call: Call) -> Answer:
    if any(message["role"] == "system" for message in call.body["messages"]):
        return Answer({"error": {"message": "System role not supported"}}, status=400)
    return chat("4")


def only_thinks(call: Call) -> Answer:
    return chat(None, reasoning_content="4") if call.body["model"] == "target" else chat("4")


def filtered(call: Call) -> Answer:
    return Answer({"error": {"message": "flagged by moderation"}}, status=403)


@pytest.mark.parametrize(
    ("answer", "level", "says"),
    [
        (short_context, "fail", "the endpoint read 1,024 of about 2,6"),
        (only_thinks, "fail", "reasoning_content"),
        (filtered, "fail", "A content filter refused this request"),
        (no_system, "warn", "no system role"),
    ],
)
async def test_doctor_and_check_find_it(
    tmp_path: Path, answer: Callable[[Call], Answer], level: str, says: str
) -> None:
    async with Server(answer) as server:
        path = config(tmp_path, server)
        found = [f for f in await examine(path) if f.topic == "target" and f.level == level]
        cfg, root = load_config(path)
        checked = await check(cfg, root, probe=True)
    assert [says in finding.text for finding in found] == [True]
    assert isinstance(found[0], Finding)
    assert any(says in text for text in (checked.problems if level == "fail" else checked.notes))


async def test_the_question_to_the_target_is_a_real_one(tmp_path: Path) -> None:
    async with Server(chat("4")) as server:
        await examine(config(tmp_path, server))
    by_role = {call.body["model"]: call.body["messages"] for call in server.calls}
    assert by_role["target"][0]["content"] == SKILL.body
    assert by_role["target"][1]["content"].startswith("one more and one more")
    assert len(by_role["optimizer"]) == 1
