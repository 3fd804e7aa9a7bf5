"""The firewall for benchmarks and for environments with tools: marks that are planted in their data are searched for in
every byte that an optimizer or a target is sent, under each form of proposals."""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from http_server import Answer, Call, Server
from skilltune import Env, Rollout, Sample, Score
from skilltune.api import run_training
from skilltune.config import make_config
from skilltune.envs import Task
from skilltune.envs.tools import Corpus, Tools
from skilltune.models import Tool
from skilltune.parts import Parts
from skilltune.workspace.tools import text_tool
from training import START, events

pytestmark = pytest.mark.anyio
N, SIZES = 36, [16, 10, 10]  # samples, and those of train, select and test
RULE = "Open each answer with the word heron."
MARK = re.compile(r"asked(\d{3})mark")
FORMS = {  # the form, and the bodies of the optimizer's answers
    "edits": {"optimizer.form": "edits"},
    "lines": {"optimizer.form": "edits"},
    "rules": {"optimizer.form": "rules"},
}


def asked(i: int) -> str:
    """The mark in the question of a sample."""
    return f"asked{i:03d}mark"


def answer(i: int) -> str:
    """The mark that is the expected answer of a sample, or stands in it."""
    return f"{731_000_000 + 7919 * i}"


def never(i: int) -> str:
    """The mark in a part of the sample that nobody may see."""
    return f"never{i:03d}mark"


@dataclass
class Desk:
    """Both models behind one server. The target is right if its system message holds the rule, and calls the first tool
    that it is offered once before it answers. The optimizer proposes the rule and cites what it was shown."""

    form: str
    right: Callable[[int], str] = answer
    call: Mapping[str, str] = field(default_factory=dict)  # arguments of the target's tool call
    sent: dict[str, list[str]] = field(default_factory=lambda: {"target": [], "optimizer": []})
    of: Counter[int] = field(default_factory=Counter)  # requests of the target, by sample

    def __call__(self, call: Call) -> Answer:
        body = call.body
        role = "optimizer" if "optimizer" in body["model"] else "target"
        self.sent[role].append("\n".join(strings(body)))
        said = self.target(body) if role == "target" else {"content": self.optimizer(body)}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **said}}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        return Answer({"id": "1", "model": body["model"], "choices": [choice], "usage": usage})

    def target(self, body: Any) -> dict[str, Any]:
        system = "".join(part["content"] for part in body["messages"] if part["role"] == "system")
        number = int(MARK.findall("\n".join(strings(body["messages"])))[0])
        self.of[number] += 1
        if body.get("tools") and not any(part["role"] == "tool" for part in body["messages"]):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(self.call)}
            return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
        knows = RULE in system
        return {
            "content": f"heron <answer>{self.right(number)}</answer>" if knows else f"I give up on {asked(number)}."
        }

    def optimizer(self, body: Any) -> str:
        text = "\n".join(part["content"] for part in body["messages"])
        form = body.get("response_format")
        if form is None:
            return RULE
        fields = form["json_schema"]["schema"]["properties"]
        if "edits" not in fields or "diagnosis" not in fields:
            empty = {"string": "", "array": [], "number": 1, "integer": 1}
            return json.dumps({name: empty[kind["type"]] for name, kind in fields.items()})
        shown = dict.fromkeys(re.findall(r'<trajectory sample="([^"]+)"', text))
        quotes = {name: found[0] for name in shown if (found := self.quote(text, name))}
        evidence = [{"sample": name, "quote": quote} for name, quote in quotes.items()]
        edit = {"op": "add", "after": None, "target": None, "text": f"- {RULE}", "why": "", "evidence": evidence}
        astray = {**edit, "op": "replace", "target": "Nobody wrote this line."} if self.form == "lines" else None
        return json.dumps({"diagnosis": [], "edits": [one for one in (astray, edit) if one]})

    @staticmethod
    def quote(text: str, name: str) -> list[str]:
        body = text.partition(f'<trajectory sample="{name}"')[2].partition("</trajectory>")[0]
        return re.findall(r"I give up on asked\d{3}mark\.", body)


def strings(value: Any) -> Iterator[str]:
    """Every text in a request, keys included, and the content of every image."""
    if isinstance(value, str):
        yield value
        if value.startswith("data:image"):
            yield base64.b64decode(value.partition(",")[2]).decode("latin-1")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from strings(inner)


# -- the data of each environment, with its marks


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k(folder: Path) -> dict[str, Any]:
    rows = [{"question": f"{asked(i)}?", "answer": f"{never(i)}\n#### {answer(i)}"} for i in range(N)]
    lines(folder / "data" / "train.jsonl", rows)
    return {"env.samples": "bench:gsm8k", "env.data": "data"}


def searchqa(folder: Path) -> dict[str, Any]:
    rows = [
        {"id": f"name{i:03d}mark", "question": f"{asked(i)}?", "context": "[DOC] nothing", "answers": [answer(i)]}
        for i in range(N)
    ]
    lines(folder / "data" / "train.jsonl", rows)
    return {"env.samples": "bench:searchqa", "env.data": "data"}


def bbh(folder: Path) -> dict[str, Any]:
    rows = [{"input": f"{asked(i)}?", "target": answer(i), "note": never(i)} for i in range(N)]
    (folder / "data").mkdir()
    (folder / "data" / "navigate.json").write_text(json.dumps({"canary": "", "examples": rows}))
    return {"env.samples": "bench:bbh/navigate", "env.data": "data"}


def livemath(folder: Path) -> dict[str, Any]:
    """The options are shown, so the right one is no secret; theorem and sketch are."""
    rows = [
        {
            "month": "m",
            "no": i,
            "theorem": never(i),
            "sketch": never(i),
            "mcq": {
                "question": f"{asked(i)}?",
                "correct_choice": {"label": "A", "text": f"right of {i:03d}"},
                "choices": [{"label": label, "text": f"{label} of {i:03d}"} for label in "BCDE"],
            },
        }
        for i in range(N)
    ]
    (folder / "data").mkdir()
    (folder / "data" / "qa_1_final.json").write_text(json.dumps(rows))
    return {"env.samples": "bench:livemath", "env.data": "data"}


def bfcl(folder: Path) -> dict[str, Any]:
    function = {"name": "note", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}}
    function["parameters"] = {"type": "dict", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    items = [
        {
            "id": f"simple_python_{i}",
            "question": [[{"role": "user", "content": f"{asked(i)}?"}]],
            "function": [function],
        }
        for i in range(N)
    ]
    truths = [{"id": f"simple_python_{i}", "ground_truth": [{"note": {"n": [int(answer(i))]}}]} for i in range(N)]
    lines(folder / "data" / "BFCL_v4_simple_python.json", items)
    lines(folder / "data" / "possible_answer" / "BFCL_v4_simple_python.json", truths)
    return {"env.samples": "bench:bfcl/simple_python", "env.data": "data"}


def docvqa(folder: Path) -> dict[str, Any]:
    """Each page is an image that holds the mark of its sample."""
    rows = [
        {"questionId": i, "question": f"{asked(i)}?", "answers": [answer(i)], "image": f"{i}.png"} for i in range(N)
    ]
    (folder / "data").mkdir()
    for i in range(N):
        (folder / "data" / f"{i}.png").write_bytes(picture(f"page{i:03d}mark"))
    (folder / "data" / "val.json").write_text(json.dumps({"data": rows}))
    return {"env.samples": "bench:docvqa", "env.data": "data"}


def picture(text: str) -> bytes:
    """A PNG image of one grey dot with a comment."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = (
        (b"IHDR", head),
        (b"tEXt", b"Comment\0" + text.encode()),
        (b"IDAT", zlib.compress(b"\0\x80")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def officeqa(folder: Path) -> dict[str, Any]:
    """The answers stand in a file beside the documents, for which the target greps."""
    (folder / "data" / "corpus").mkdir(parents=True)
    (folder / "data" / "corpus" / "report.txt").write_text("A report without a figure. mark\n")
    with (folder / "data" / "officeqa_full.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["uid", "question", "answer", "difficulty", "notes"])
        table.writerows([f"name{i:03d}mark", f"{asked(i)}?", answer(i), "easy", never(i)] for i in range(N))
    return {"env.samples": "bench:officeqa", "env.data": "data", "target.max_turns": 3}


def rows_of() -> list[dict[str, Any]]:
    return [
        {"id": f"name{i:03d}mark", "input": f"{asked(i)}?", "target": answer(i), "metadata": {"note": never(i)}}
        for i in range(N)
    ]


def documents(folder: Path) -> Env:
    (folder / "corpus").mkdir()
    (folder / "corpus" / "page.txt").write_text("A page. mark\n")
    lines(folder / "answers.jsonl", rows_of())
    return Env(rows_of(), "contains", root=folder, tools=Corpus(folder / "corpus"))


class Game(Tools):
    """A tool with a secret of its own for each task, which it never tells."""

    def __init__(self, task: Task) -> None:
        self.number = int(MARK.findall(task.messages[-1].text)[0])

    @property
    def offered(self) -> tuple[Tool, ...]:
        return (text_tool("look", "Look around.", pattern="a place", path="optional: another"),)

    @property
    def opening(self) -> str:
        return f"The room of {asked(self.number)}."

    async def call(self, name: str, given: Mapping[str, str]) -> str:
        return "Nothing is here."

    def left(self) -> Mapping[str, bytes]:
        return {"state.json": answer(self.number).encode()}


class Games:
    fingerprint = "games"

    def __call__(self, task: Task) -> Game:
        return Game(task)


def won(sample: Sample, rollout: Rollout) -> Score:
    """Reads a file that the tools left, as the scorer of a game does."""
    number = rollout.artifact("state.json").decode()
    return Score(float(number in rollout.answer), "not won" if number not in rollout.answer else "won")


def game(folder: Path) -> Env:
    return Env(rows_of(), won, root=folder, tools=Games())


@dataclass(frozen=True)
class Kind:
    """An environment: how it is made, and the answers that are right. `call` holds the arguments of the tool call."""

    make: Callable[[Path], dict[str, Any] | Env]
    right: Callable[[int], str] = answer
    call: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "gsm8k": Kind(gsm8k),
    "searchqa": Kind(searchqa),
    "bbh": Kind(bbh),
    "livemath": Kind(livemath, lambda i: f"right of {i:03d}"),
    "bfcl": Kind(bfcl, lambda i: f"[note(n={answer(i)})]"),
    "docvqa": Kind(docvqa),
    "officeqa": Kind(
        officeqa, lambda i: f"</answer><FINAL_ANSWER>{answer(i)}</FINAL_ANSWER>", {"pattern": "**/*mark*"}
    ),
    "documents": Kind(documents, call={"pattern": "mark", "path": ".."}),
    "game": Kind(game, call={"pattern": "mark"}),
}


@dataclass(frozen=True)
class Trained:
    """A finished run: what was sent, the numbers of the samples of each split, and the folder of the run."""

    desk: Desk
    split: Mapping[str, Sequence[int]]
    folder: Path
    rules: bool  # the rule was accepted


async def trained_on(kind: Kind, form: str, folder: Path) -> Trained:
    (folder / "SKILL.md").write_text(START)
    made, desk = kind.make(folder), Desk(form, kind.right, kind.call)
    given = {
        **FORMS[form],
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.minibatch_size": 4,
        "train.call_price": 0.0,
        "slow.enabled": True,
        "slow.samples": 8,
        "gate.screen": 12,
        "env.split": SIZES,
        **(made if isinstance(made, dict) else {}),
    }
    kept: list[Parts] = []
    async with Server(desk) as server:
        tree: dict[str, Any] = {"skill": "SKILL.md", "env": {}}
        for key, value in given.items():
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
        for role in ("target", "optimizer"):
            tree.setdefault(role, {})["model"] = f"openai@{server.url}/v1/{role}"
        env = made if isinstance(made, Env) else None
        result = await run_training(make_config(tree), folder, folder / "run", env=env, ready=kept.append)
    split = {
        name: [int(MARK.findall(sample.text)[0]) for sample in getattr(kept[0].splits, name)]
        for name in ("train", "select", "test")
    }
    return Trained(desk, split, folder / "run", RULE in result.best.text)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_no_mark_of_select_and_test_reaches_an_optimizer_and_no_answer_a_target(
    tmp_path: Path, kind: str, form: str
) -> None:
    done = await trained_on(KINDS[kind], form, tmp_path)
    optimizer, target = ("\n".join(done.desk.sent[role]) for role in ("optimizer", "target"))

    # The run has power: the rule was accepted, so candidates were tried on select, and the search finds what was shown.
    assert done.rules
    assert all(done.desk.of[i] for split in done.split.values() for i in split)
    assert {name: len(numbers) for name, numbers in done.split.items()} == dict(zip(done.split, SIZES, strict=True))
    assert any(asked(i) in optimizer for i in done.split["train"])
    if kind != "livemath":  # its right option is shown to all
        assert any(answer(i) in optimizer or kind == "game" for i in done.split["train"])
    changed = [event["form"] for event in events(done.folder, "form")]
    assert changed == (["lines"] if form == "lines" else [])

    for i in (*done.split["select"], *done.split["test"]):
        for mark in (asked(i), answer(i), f"name{i:03d}mark", f"page{i:03d}mark", f"right of {i:03d}"):
            assert mark not in optimizer, (mark, i)
    for i in range(N):
        assert never(i) not in optimizer
        assert never(i) not in target
        assert answer(i) not in target, "no target sees an expected answer"
    for request in done.desk.sent["target"]:
        assert len(set(MARK.findall(request))) == 1, "a target sees one sample"


def test_the_search_finds_marks_wherever_a_request_holds_them() -> None:
    image = "data:image/png;base64," + base64.b64encode(picture("page001mark")).decode()
    body = {"messages": [{"content": [{"image_url": {"url": image}}]}], "tools": [{"asked001mark": [never(2)]}]}
    found = "\n".join(strings(body))
    assert all(mark in found for mark in ("page001mark", asked(1), never(2)))
