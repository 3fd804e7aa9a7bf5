"""The Python API, word for word as documented: it runs, sync and async, and a type checker reads it as meant."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import skilltune as st
from skilltune.config import load_config
from skilltune.report.card import inline
from training import START, small
from world import Faults, World

ROOT = Path(__file__).parents[1]
QUICK: dict[str, Any] = {"train": {"epochs": 2, "batch_size": 16}, "gate": {"screen": 24}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    skill = tmp_path / "skills" / "invoice-totals"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text(START.replace("name: desk", "name: invoice-totals"))
    return tmp_path


def test_every_public_name_is_there() -> None:
    for name in st.__all__:
        assert getattr(st, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        st.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_train_as_in_the_documents(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small(seed=1, q=0.9, key="sesame") as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sesame")
        patch.setenv("ANTHROPIC_API_KEY", "sesame")
        world.write(here / "invoices.jsonl")
        result = st.train(
            skill="skills/invoice-totals",
            env=st.Env("invoices.jsonl", score="exact"),
            target={"model": f"openai@{world.url}/target", "key_env": "OPENAI_API_KEY"},
            optimizer={"model": f"anthropic@{world.root}/optimizer", "key_env": "ANTHROPIC_API_KEY"},
            budget="2000 calls",
            **QUICK,
        )
        print(result.certificate)
        assert "unseen samples (95 % CI" in capsys.readouterr().out
        assert result.exit_code == 0
        assert world.true_score(result.best.text) > 0.5
        result.export("claude", to=".")
        assert (here / ".claude/skills/invoice-totals/SKILL.md").read_text() == result.best.text
        asked = dict(world.calls)
        again = st.train(
            skill="skills/invoice-totals",
            env=st.Env("invoices.jsonl", score="exact"),
            target=f"openai@{world.url}/target",
            optimizer=f"anthropic@{world.root}/optimizer",
            budget="2000 calls",
            **QUICK,
        )
        assert (again.best.text, again.certificate) == (result.best.text, result.certificate)
        assert dict(world.calls) == asked


def test_a_result_prints_as_four_lines(here: Path) -> None:
    with small(seed=1, q=0.9) as world:
        env = st.Env(world.write(here / "data.jsonl"))
        models = f"openai@{world.url}/target", f"openai@{world.url}/optimizer"
        result = st.train("skills/invoice-totals", env, *models, run="runs/a", **QUICK)
        claim, proof, cost, file = str(result).splitlines()
        assert claim == "Certified better on the untouched test split."
        assert proof == str(result.certificate)
        assert cost.startswith(f"{sum(world.answered.values()):,} calls, ")
        assert Path(file, "SKILL.md").read_text() == result.best.text
        assert repr(result) == str(result)
        stopped = st.train("skills/invoice-totals", env, *models, budget="20 calls", run="runs/b", **QUICK)
        assert "no certificate" in str(stopped)
        assert len(str(stopped)) < 400


def test_control_arms_and_compaction_are_functions_of_a_finished_run(here: Path) -> None:
    with small(seed=1, q=0.9) as world:
        rows = world.write(here / "data.jsonl")
        models = f"openai@{world.url}/target", f"openai@{world.url}/optimizer"
        plain = st.train("skills/invoice-totals", rows, *models, run="runs/a", **QUICK)
        for gone in ("controls", "compact"):
            given: dict[str, Any] = QUICK | {gone: True}
            with pytest.raises(st.UsageError, match=rf"call st\.{gone}\(result\.folder\)"):
                st.train("skills/invoice-totals", rows, *models, run="runs/b", **given)
        found = st.controls(plain.folder)
        assert [arm.name for arm in found.arms][:2] == ["trained skill", "no skill"]
        assert st.compact("runs/a").start == plain.start


def test_env_is_a_table_a_function_or_an_env_with_a_split(here: Path) -> None:
    with small() as world:
        target = f"openai@{world.url}/target"
        rows = [{"question": sample["input"], "code": sample["target"]} for sample in world.samples()]
        (here / "data.json").write_text(json.dumps(rows))
        table = {"samples": "data.json", "fields": {"input": "question", "target": "code"}, "split": [1, 1, 2]}
        prompted = {**table, "prompt": "Ticket of today.\n{input}"}
        assert st.evaluate("", prompted, target, split="test").total == len(rows) // 2
        assert all(request.user.startswith("Ticket of today.\n") for request in world.requests)

        def desk() -> st.Env:
            return st.Env(rows, fields={"input": "question", "target": "code"})

        for env in (desk, desk(), {"samples": desk}):
            assert st.evaluate("", env, target).total == len(rows)
        assert st.evaluate("", {"samples": desk(), "split": [1, 1, 2]}, target, split="test").total == len(rows) // 2
        asked = len(world.requests)
        with pytest.raises(st.UsageError, match="score and an Env: give them to the Env itself"):
            st.evaluate("", {"samples": desk(), "score": "f1"}, target)
        with pytest.raises(st.UsageError, match="the function must return an Env, not str"):
            st.evaluate("", lambda: "data.json", target)  # type: ignore[arg-type, return-value]
        with pytest.raises(st.UsageError, match=r"env\.promt; did you mean \"prompt\""):
            st.train("skills/invoice-totals", {**table, "promt": "{input}"}, target)
        assert len(world.requests) == asked


@pytest.mark.slow
def test_an_env_made_in_python_trains_as_the_same_samples_by_config(here: Path) -> None:
    with small(seed=1, q=0.9, p=0.1) as world:
        rows = world.write(here / "data.jsonl")
        models = f"openai@{world.url}/target", f"openai@{world.url}/optimizer"
        table = st.train("skills/invoice-totals", rows, *models, run="runs/a", seed=2, **QUICK)
        made = st.train("skills/invoice-totals", st.Env(rows), *models, run="runs/b", seed=2, **QUICK)
    assert (made.versions, made.certificate) == (table.versions, table.certificate)
    assert "made in Python" not in (table.folder / "config.toml").read_text() + (table.folder / "card.md").read_text()


def test_a_run_on_an_env_made_in_python_says_what_its_settings_cannot(here: Path) -> None:
    def same_code(sample: st.Sample, rollout: st.Rollout) -> bool:
        return rollout.answer.strip() == sample.target

    with small(seed=1, q=0.9) as world:
        env = st.Env(world.write(here / "data.jsonl"), score=same_code)
        models = f"openai@{world.url}/target", f"openai@{world.url}/optimizer"
        result = st.train("skills/invoice-totals", env, *models, **QUICK)
    said = f"made in Python: 72 samples, the scorer {env.scorer}, fingerprint {env.fingerprint[:16]}"
    assert said in (result.folder / "config.toml").read_text().splitlines()[0]
    card = (result.folder / "card.md").read_text()
    assert env.scorer.endswith("same_code")
    assert inline(said) in card
    assert "save the settings below" not in card
    assert load_config(result.folder / "config.toml")[0].seed == 42  # the note is a comment


INTERRUPTED = """
import skilltune as st
st.train("skills/invoice-totals", "data.jsonl", "openai@{url}/target", "openai@{url}/optimizer", fork={fork})
"""


@pytest.mark.slow
@pytest.mark.parametrize("fork", [False, True])
def test_ctrl_c_ends_a_call_in_good_order_and_says_how_to_go_on(here: Path, fork: bool) -> None:
    with small(seed=1, q=0.9) as world:
        world.write(here / "data.jsonl")
        models = f"openai@{world.url}/target", f"openai@{world.url}/optimizer"
        if fork:
            st.train("skills/invoice-totals", "data.jsonl", *models, budget="20 calls")
        seen = world.calls["target"]
        world.faults = {"target": Faults(hang=1.0, hang_s=60.0)}
        command = [sys.executable, "-c", INTERRUPTED.format(url=world.url, fork=fork)]
        process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)
        while world.calls["target"] == seen and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=20)
        finally:
            process.kill()
        folder = "runs/invoice-totals-2" if fork else "runs/invoice-totals"
        once = " and without fork" if fork else ""
        assert told.splitlines()[-1] == (
            f"KeyboardInterrupt: interrupted; what was paid is kept: the same call with run='{folder}'{once} goes on"
        )
        assert "asyncio" not in told
        assert told.count("File ") <= 2  # the caller's line and ours
        world.faults = {}
        resumed = st.train("skills/invoice-totals", "data.jsonl", *models, run=folder)
        assert resumed.folder == Path(folder)


FACTORY = """
import skilltune as st

def right(sample, rollout):
    return rollout.answer == sample.target

async def graded(sample, rollout) -> st.Score:
    whole = rollout.answer == sample.target
    return st.Score(float(whole), why="" if whole else "another code", soft=1.0 if whole else 0.2, metrics={"n": 1})

@st.env
def invoices(score: str = "right", extra: int = 0) -> st.Env:
    rows = [{"id": f"s{i}", "input": f"{i} + 1?", "target": str(i + 1)} for i in range(4 + extra)]
    return st.Env(rows, {"right": right, "graded": graded, "float": lambda s, r: 1.0 * right(s, r)}[score])
"""


def test_environments_come_from_files_functions_and_rows(here: Path) -> None:
    (here / "env.py").write_text(FACTORY)
    with World(2, 12, 8, 8) as world:
        rows = [st.Sample(**row) for row in world.samples()]
        target = f"openai@{world.url}/target"
        solved = st.Skill("\n".join(world.rule(k) for k in range(2)))
        by_rows = st.evaluate(solved, st.Env(rows), target, split="test")
        assert (by_rows.score, by_rows.n, by_rows.usage.calls) == (1.0, 8, 8)
        assert str(by_rows).startswith("100.0 % (95 % CI")
        assert st.evaluate("", st.Env(rows), target).score == 0.0
        assert st.evaluate("", "env.py:invoices", target).total == 4


@pytest.mark.anyio
@pytest.mark.parametrize("score", ["right", "graded", "float"])
async def test_scorers_are_sync_or_async_and_return_a_score_a_float_or_a_bool(here: Path, score: str) -> None:
    from skilltune.envs import load_env
    from skilltune.rollout import Trajectory

    (here / "env.py").write_text(FACTORY)
    env = load_env("env.py:invoices", score=score, extra=1)
    assert (env.name, env.args, len(env.samples)) == ("invoices", {"score": score, "extra": 1}, 5)
    sample = env.samples[0]
    values = [await env.score(sample, st.Rollout(sample.id, "", 0, Trajectory(a), None)) for a in ("1", "2")]
    assert [made.value for made in values] == [1.0, 0.0]
    assert all(made.why for made in values)


@pytest.mark.anyio
async def test_inside_an_event_loop_the_async_functions_do_the_same(here: Path) -> None:
    with small(seed=1, q=0.9) as world:
        env = st.Env(world.write(here / "data.jsonl"))
        target, optimizer = f"openai@{world.url}/target", f"openai@{world.url}/optimizer"
        result = await st.atrain("SKILL.md", env, target, optimizer, run="runs/a", **QUICK)
        assert isinstance(result, st.Result)
        assert result.folder == Path("runs/a")
        before, after = [await st.aevaluate(s, env, target, split="test") for s in ("", result.best)]
        assert before.score is not None
        assert after.score is not None
        assert after.score > before.score


def test_an_evaluation_in_the_folder_of_a_training_leaves_its_settings_alone(here: Path) -> None:
    with World(classes=2, train=12, select=10, test=10, q=1.0, sloppy=0.0) as world:
        world.write(here / "data.jsonl")
        target = f"openai@{world.url}/target"
        st.train("S.md", "data.jsonl", target, "examples", run="run", train={"epochs": 1})
        before = {path: path.read_bytes() for path in (here / "run").rglob("*.toml")}
        st.evaluate("", "data.jsonl", target, run="run", split="test")
        assert before
        assert {path: path.read_bytes() for path in (here / "run").rglob("*.toml")} == before
        st.evaluate("", "data.jsonl", target, run="other")
        assert not list((here / "other").rglob("*.toml"))


def test_a_mistake_is_an_error_before_anything_is_spent(here: Path) -> None:
    with pytest.raises(st.UsageError, match=r"train\(\): unknown key train\.epoch; did you mean"):
        st.train("SKILL.md", "data.jsonl", "local/x", train={"epoch": 1})
    with pytest.raises(st.SkilltuneError, match=r"data\.jsonl"):
        st.train("SKILL.md", "data.jsonl", "openai@http://127.0.0.1:1/v1/x")


TYPED = """
from pathlib import Path
from typing import assert_type

import skilltune as st
from skilltune.finish.certify import Certificate

def as_bool(sample: st.Sample, rollout: st.Rollout) -> bool:
    return rollout.answer == sample.target

def as_float(sample: st.Sample, rollout: st.Rollout) -> float:
    return 0.5

async def as_score(sample: st.Sample, rollout: st.Rollout) -> st.Score:
    return st.Score(1.0, why="right", soft=None, metrics={})

def untyped(sample, rollout):
    return 1.0

def as_text(sample: st.Sample, rollout: st.Rollout) -> str:
    return "1"

@st.env
def invoices(year: int, currency: str = "EUR") -> st.Env:
    return st.Env("invoices.jsonl", score=as_score)

envs = [st.Env("a.jsonl", score) for score in (as_bool, as_float, untyped)]
assert_type(invoices(2026), st.Env)
result = st.train(skill="skills/invoice-totals", env=invoices(2026), target="claude-code/sonnet", budget="5 usd")
assert_type(result, st.Result)
assert_type(result.certificate, Certificate | None)
assert_type(result.export("claude", to="."), Path)
assert_type(st.evaluate(st.Skill("x"), "a.jsonl", {"model": "openai/gpt-5.5"}, split="test"), st.Evaluation)

async def inside() -> None:
    assert_type(await st.atrain("SKILL.md", envs[0], "local/smollm2-135m", "examples", train={"epochs": 1}), st.Result)
    assert_type(await st.aevaluate("", envs[0], "local/smollm2-135m"), st.Evaluation)

st.Env("a.jsonl", as_text)  # WRONG
st.evaluate("", "a.jsonl", "openai/x", split="tset")  # WRONG
st.train("SKILL.md", "a.jsonl")  # WRONG
invoices("2026")  # WRONG
"""


@pytest.mark.slow
def test_a_type_checker_reads_the_api_as_meant(tmp_path: Path) -> None:
    source = textwrap.dedent(TYPED)
    (tmp_path / "typed.py").write_text(source)
    settings = {"include": ["typed.py"], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = {item["range"]["start"]["line"]: item["message"] for item in found if item["severity"] == "error"}
    wrong = {number for number, line in enumerate(source.splitlines()) if line.endswith("# WRONG")}
    assert set(errors) == wrong, errors
