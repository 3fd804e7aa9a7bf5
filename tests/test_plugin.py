"""Plug-ins: the example package is built, installed and trained with; whatever can be wrong with one is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from installing import install
from skilltune import Env, plugins
from skilltune.api import run_training
from skilltune.build import build_parts
from skilltune.config import TargetConfig, make_config
from skilltune.errors import BudgetExceeded, CallConfigError, InfraError, InfraStopped, UsageError
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.parts import Parts
from skilltune.rollout import Rollout, Trajectory
from skilltune.samples import Sample
from skilltune.scorers import build, evaluate
from skilltune.skill import Skill
from skilltune.targets.metered import MeteredTarget
from skilltune.targets.plugin import load_target
from skilltune.usage import Usage
from training import START, small
from world import Faults, World

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[1]


# -- the example


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples/plugin is installed in."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(ROOT / "examples" / "plugin", folder / "source")
    install("--no-deps", "--no-build-isolation", "--no-index", "--target", folder / "site", source)
    return folder / "site"


def skilltune(site: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "skilltune.cli.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def prepare(world: World, folder: Path) -> None:
    """Samples, a skill, a config that names the three plug-ins, and the world's rules with as many useless ones."""
    world.write(folder / "data.jsonl")
    (folder / "SKILL.md").write_text(START)
    rules = [rule for k in range(world.classes) for rule in (world.rule(k), f"Mind the tone of letter {k}.")]
    (folder / "rules.txt").write_text("\n".join(rules) + "\n")
    config = f"""
        skill = "SKILL.md"
        [env]
        samples = "data.jsonl"
        score = {{type = "code", letters = 3}}
        [target]
        model = "plugin:desk/{world.url}/chat/completions"
        [optimizer]
        model = "plugin:rules/rules.txt"
        [train]
        epochs = 2
        batch_size = 16
    """
    (folder / "skilltune.toml").write_text(config)


@pytest.mark.slow
def test_the_example_trains_and_running_it_again_costs_nothing(site: Path, tmp_path: Path) -> None:
    with small(seed=2) as world:
        prepare(world, tmp_path)
        done = skilltune(site, tmp_path, "train", "skilltune.toml", "--json", "--run", "run")
        assert done.returncode == 0, done.stderr
        assert world.true_score((tmp_path / "run" / "best_skill.md").read_text()) > 0.7
        asked = world.calls["target"]
        usage = Run.read(tmp_path / "run").usage["rollout"]
        assert usage.calls == asked == sum(world.calls.values())
        assert usage.input_tokens > asked
        again = skilltune(site, tmp_path, "train", "skilltune.toml", "--json", "--run", "run")
        assert again.returncode == 0, again.stderr
        assert world.calls["target"] == asked


@pytest.mark.slow
def test_the_example_finds_its_rules_beside_the_config_and_says_when_there_are_none(site: Path, tmp_path: Path) -> None:
    with small(seed=2) as world:
        home, other = tmp_path / "home", tmp_path / "other"
        home.mkdir()
        other.mkdir()
        prepare(world, home)
        quick = ("train.epochs=1", "--run", tmp_path / "run")
        done = skilltune(site, other, "train", home / "skilltune.toml", *quick)
        assert done.returncode == 0, done.stderr
        asked = sum(world.calls.values())
        (home / "rules.txt").unlink()
        done = skilltune(site, other, "train", home / "skilltune.toml", "--run", tmp_path / "other run")
        assert done.returncode == 2
        (said,) = done.stderr.splitlines()
        assert 'the optimizer plug-in "rules" of skilltune-house 0.1.0 could not be made: FileNotFoundError: ' in said
        assert str(home / "rules.txt") in said
        assert sum(world.calls.values()) == asked


@pytest.mark.slow
def test_the_example_keeps_the_budget_and_survives_faults(site: Path, tmp_path: Path) -> None:
    with small(seed=2, faults=Faults(error=0.1, drop=0.1)) as world:
        prepare(world, tmp_path)
        done = skilltune(site, tmp_path, "train", "skilltune.toml", "budget.calls=60", "--run", "run")
        assert done.returncode == 4, done.stdout + done.stderr
        assert world.calls["target"] <= 60
        world.faults = Faults()
        done = skilltune(site, tmp_path, "train", "skilltune.toml", "--run", "run")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_check_estimates_and_probes_a_plug_in(site: Path, tmp_path: Path) -> None:
    with small() as world:
        prepare(world, tmp_path)
        done = skilltune(site, tmp_path, "check", "skilltune.toml", "--probe")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "plugin:desk/" in done.stdout
        assert world.calls["target"] == 1


@pytest.mark.slow
def test_the_example_honours_its_contracts(site: Path, tmp_path: Path) -> None:
    with small() as world:
        prepare(world, tmp_path)
        code = f"""
from pathlib import Path
from types import SimpleNamespace

from skilltune import Env
from skilltune.config import TargetConfig
from skilltune.testing import check_optimizer, check_scorer, check_target
from house import Desk, Rules, code

env = Env("data.jsonl", code)
check_target(Desk("{world.url}/chat/completions", TargetConfig()), env)
check_scorer({{"type": "code", "letters": 2}}, env.samples)
check_optimizer(Rules(Path("rules.txt").resolve(), SimpleNamespace(root="")), env)
"""
        path = os.pathsep.join([str(site), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("target.model=plugin:dsk/x", 'no target plug-in "dsk" is installed; installed: desk'),
        ("optimizer.model=plugin:desk", 'no optimizer plug-in "desk" is installed; installed: rules'),
        ("env.score=cod", 'unknown scorer "cod" (did you mean "code"'),
        ("env.score=code:x", 'scorer "code": letters = "x"'),
        ("env.score={type='code', leters=3}", 'scorer "code" has no option "leters" (did you mean "letters"'),
        ("target.api=responses", "has no responses API"),
    ],
)
def test_pitfall_26_a_wrong_name_or_option_is_an_error_before_anything_is_spent(
    site: Path, tmp_path: Path, setting: str, message: str
) -> None:
    with small() as world:
        prepare(world, tmp_path)
        done = skilltune(site, tmp_path, "train", "skilltune.toml", setting)
        assert done.returncode == 2
        assert message in done.stderr
        assert not world.calls


# -- what can be wrong with a plug-in


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put packages on the path: their metadata and their one module, as an installer would."""
    monkeypatch.setattr(plugins, "_found", {})

    def put(kind: plugins.Kind, name: str, source: str, package: str = "pack", version: str = "1.0") -> None:
        site = tmp_path / "sites" / package
        info = site / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        module = f"{package}_{abs(hash(tmp_path))}"
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{plugins.group(kind)}]\n{name} = {module}:it\n")
        monkeypatch.syspath_prepend(site)

    return put


TARGET = """
import asyncio
from skilltune.usage import Usage
from skilltune.rollout import Trajectory, Turn

class it:
    fingerprint = "it"
    closed = False
    def __init__(self, rest, cfg):
        self.rest = rest
    def guess(self, skill, task):
        return Usage(1, 10, 10)
    async def run(self, skill, task, attempt):
        if self.rest == "slow":
            await asyncio.sleep(60)
        if self.rest == "broken":
            raise KeyError("colour")
        if self.rest == "nothing":
            return None
        if self.rest == "bytes":
            return Trajectory("4", artifacts={"out.txt": b"4"})
        return Trajectory("4", (Turn("assistant", "4"),), usage=Usage(0, 100, 10))
    async def aclose(self):
        self.closed = True
"""
ENV = Env([{"id": f"s{i}", "input": f"{i} + 1?", "target": "4"} for i in range(12)])


def session(folder: Path, usd: float | None = None, **target: Any) -> Parts:
    tree = {"target": {"workers": 1, **target}, "optimizer": {"model": "examples"}, "budget": {"usd": usd}}
    return build_parts(make_config(tree), Run.open(folder), folder, env=ENV, skill=Skill(""))


async def test_a_target_is_timed_priced_counted_and_closed(register: Any, tmp_path: Path) -> None:
    register("target", "t", TARGET)
    made = session(tmp_path / "run", model="plugin:t/fast", price=(2.0, 5.0))
    (rollout,) = await made.roll(Skill("x"), ENV.samples[:1])
    assert rollout.trajectory.usage.calls == 1
    assert rollout.trajectory.usage.usd == pytest.approx((100 * 2 + 10 * 5) / 1e6)
    assert made.budget.spent == rollout.trajectory.usage
    await made.aclose()
    assert isinstance(made.target, MeteredTarget)
    assert made.target.target.target.closed  # pyright: ignore[reportAttributeAccessIssue]
    slow = load_target(TargetConfig(model="plugin:t/slow", timeout_s=0.01))
    with pytest.raises(InfraError, match=r"no result within 0\.01 s \(target\.timeout_s\)"):
        await slow.run(Skill("x"), ENV.task(ENV.samples[0]), 0)


@pytest.mark.parametrize(
    ("rest", "message"), [("broken", "KeyError: 'colour'"), ("nothing", "must return a Traj"), ("bytes", "Artifact.of")]
)
async def test_pitfall_4_a_plug_in_that_fails_stops_the_run_and_is_never_a_score(
    register: Any, tmp_path: Path, rest: str, message: str
) -> None:
    register("target", "t", TARGET)
    made = session(tmp_path / "run", model=f"plugin:t/{rest}")
    with pytest.raises(CallConfigError, match=message):
        await made.roll(Skill("x"), ENV.samples)
    assert not made.roll.seen


@pytest.mark.parametrize(
    ("guess", "message"),
    [("1 / 0", "ZeroDivisionError"), ("None", "must return a Usage"), ("7", "must return a Usage")],
)
def test_a_guess_that_fails_names_the_plug_in_before_anything_is_spent(
    register: Any, tmp_path: Path, guess: str, message: str
) -> None:
    register("target", "t", TARGET.replace("Usage(1, 10, 10)", guess))
    with pytest.raises(CallConfigError, match=f"plugin:t/x: `guess` .*{message}"):
        session(tmp_path / "run", model="plugin:t/x")


MANY_CALLS = """
from skilltune.errors import InfraError, SampleError
from skilltune.rollout import Trajectory
from skilltune.usage import Usage

class it:
    fingerprint = "it"
    failures = 1
    def __init__(self, rest, cfg):
        self.rest = rest
    def guess(self, skill, task):
        return Usage(4, 400, 40)
    async def run(self, skill, task, attempt):
        self.failures -= 1
        if self.failures >= 0 and self.rest == "drops":
            raise InfraError("dropped after two calls", usage=Usage(2, 200, 20))
        if self.rest == "refused":
            raise SampleError("too long, seen in the third call", usage=Usage(3, 300, 30))
        return Trajectory("4", usage=Usage(12, 1200, 120))
"""


async def test_a_rollout_of_many_calls_is_one_unit_and_what_a_failed_one_cost_is_counted(
    register: Any, tmp_path: Path
) -> None:
    register("target", "t", MANY_CALLS)
    made = session(tmp_path / "fine", model="plugin:t/fine")
    assert made.budget.estimate("target", Usage(4, 400, 40)) == Usage(4, 400, 40)
    await made.roll(Skill("x"), ENV.samples)
    assert (made.budget.units("target"), made.budget.spent.calls) == (12, 144)
    assert made.budget.estimate("target", Usage(4, 400, 40)).calls == 12  # learnt from the rollouts
    made = session(tmp_path / "drops", model="plugin:t/drops")
    await made.roll(Skill("x"), ENV.samples[:1])
    assert made.budget.spent.calls == 14
    assert made.run.usage["failed attempt"].calls == 2
    made = session(tmp_path / "refused", model="plugin:t/refused")
    with pytest.raises(InfraStopped, match="too long"):
        await made.roll(Skill("x"), ENV.samples)
    assert made.budget.spent.calls == made.run.usage["failed attempt"].calls == 36


async def test_a_budget_in_calls_stops_before_a_rollout_that_would_pass_it(register: Any, tmp_path: Path) -> None:
    register("target", "t", MANY_CALLS)
    tree = {"target": {"model": "plugin:t/x", "workers": 4}, "optimizer": {"model": "examples"}}
    tree["budget"] = {"calls": 100}
    made = build_parts(make_config(tree), Run.open(tmp_path / "run"), tmp_path, env=ENV, skill=Skill(""))
    for sample in ENV.samples[:6]:
        await made.roll(Skill("x"), [sample])
    with pytest.raises(BudgetExceeded):
        await made.roll(Skill("x"), ENV.samples[6:])
    assert made.budget.spent.calls == 96  # eight rollouts of twelve calls; a ninth would be 108


async def test_a_budget_in_dollars_needs_a_price(register: Any, tmp_path: Path) -> None:
    register("target", "t", TARGET.replace("Usage(1, 10, 10)", "Usage(1, 10, 10, usd=None)"))
    with pytest.raises(UsageError, match="price of the target model is unknown"):
        session(tmp_path / "run", model="plugin:t", usd=1)
    made = session(tmp_path / "two", model="plugin:t", price=(1e5, 0.0), usd=10.5)
    await made.roll(Skill("x"), ENV.samples[:1])  # a dollar by its guess, ten in truth
    with pytest.raises(BudgetExceeded):
        await made.roll(Skill("x"), ENV.samples[1:2])
    assert made.budget.spent.calls == 1


def test_another_version_of_the_package_is_another_target(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("target", "t", TARGET)
    one = load_target(TargetConfig(model="plugin:t/a")).fingerprint
    assert one != load_target(TargetConfig(model="plugin:t/b")).fingerprint
    info = tmp_path / "sites/pack/pack-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1.1\n")
    info.rename(info.with_name("pack-1.1.dist-info"))
    monkeypatch.setattr(plugins, "_found", {})
    assert one != load_target(TargetConfig(model="plugin:t/a")).fingerprint


def test_what_is_no_plug_in_is_refused(register: Any) -> None:
    register("target", "t", "def it(rest, cfg): return 3")
    register("sink", "gone", "import nowhere", package="gone")
    register("gate", "twice", "it = 1", package="one")
    register("gate", "twice", "it = 2", package="two")
    with pytest.raises(UsageError, match=r'plug-in "t" of pack 1\.0 made a int, which lacks a member'):
        load_target(TargetConfig(model="plugin:t"))
    with pytest.raises(UsageError, match=r"gone 1\.0 cannot be imported .*No module named 'nowhere'"):
        plugins.find("sink", "gone")
    with pytest.raises(UsageError, match=r"claimed by one 1\.0 .* and two 1\.0"):
        plugins.find("gate", "twice")
    assert plugins.find("gate", "other") is None
    assert plugins.names("sink") == ["gone"]


@pytest.mark.parametrize("kind", ["target", "optimizer", "gate"])
def test_a_plug_in_that_cannot_be_made_is_one_line_that_names_it(register: Any, tmp_path: Path, kind: Any) -> None:
    register(kind, "bad", "def it(*given): raise KeyError('colour')")
    register(kind, "says", "from skilltune import UsageError\ndef it(*given): raise UsageError('mend me')", "other")
    name = "{}" if kind == "gate" else "plugin:{}"
    tree = {"target": {"model": "openai@http://127.0.0.1:9/v1/m"}, "optimizer": {"model": "examples"}}
    for entry, said in (
        ("bad", rf"^the {kind} plug-in \"bad\" of pack 1\.0 .*: KeyError: 'colour'$"),
        ("says", "^mend me$"),
    ):
        wanted = {"policy" if kind == "gate" else "model": name.format(entry)}
        with pytest.raises(UsageError, match=said):
            build_parts(
                make_config({**tree, kind: wanted}), Run.open(tmp_path / entry), tmp_path, env=ENV, skill=Skill("")
            )


async def test_scorers_go_by_bare_name_and_ours_come_first(register: Any) -> None:
    register(
        "scorer",
        "near",
        "def it(sample, rollout, *, by: int = 1): return abs(int(rollout.answer) - sample.target) <= by",
    )
    register("scorer", "exact", "def it(sample, rollout): return 0.0", package="rude")
    sample = Sample(id="s1", input="?", target=4)

    async def value(spec: Any, answer: str) -> float:
        return (await evaluate(build(spec), sample, Rollout("s1", "", 0, Trajectory(answer), None))).value

    assert [await value(spec, "6") for spec in ("near", "near:2", {"type": "near", "target": 7})] == [0, 1, 1]
    assert await value({"type": "checks", "checks": [{"type": "not", "check": {"type": "near"}}]}, "9") == 1
    assert await value("exact", "4") == 1
    prints = [build(spec).fingerprint for spec in ("near", "near:2", {"type": "near", "target": 7})]
    assert len(set(prints)) == 3


# -- what an optimizer is given

OPTIMIZER = """
from skilltune.edits import Edit
from skilltune.models import Request, user
from skilltune.optimizer import Optimizer, Proposal
from skilltune.journal.run import Paid; from skilltune.journal.keys import digest
seen = []

class it(Optimizer):
    def __init__(self, rest, material):
        self.material = material
        seen.append(material)
    async def propose(self, skill, rollouts, memory, step, limit):
        request = Request((user("Which code does ticket t-0001 get?"),))
        async def ask():
            reply = await self.material.client(request)
            return Paid(reply.text, reply.usage)
        said = await self.material.run.memo(digest("it", skill.hash, step.index), "propose", ask)
        assert set(self.material.samples) >= {r.sample async for r in rollouts}
        return [Proposal(Edit("add", text=f"Say {said}."))]
"""


async def test_an_optimizer_sees_train_samples_only_and_calls_its_model_within_the_budget(
    register: Any, tmp_path: Path
) -> None:
    register("optimizer", "o", OPTIMIZER)
    with small() as world:
        tree = {
            "target": {"model": f"openai@{world.url}/target"},
            "optimizer": {"model": f"plugin:o/openai@{world.url}/judge", "workers": 3},
            "train": {"epochs": 1, "batch_size": 16},
        }
        env = Env(world.write(tmp_path / "data.jsonl"))
        result = await run_training(make_config(tree), tmp_path, tmp_path / "run", env=env)
        assert world.calls["judge"] == 3  # the probe, and one a step
        assert Run.read(result.folder).usage["propose"].calls == 2
    plugin = plugins.find("optimizer", "o")
    assert plugin is not None
    material = sys.modules[plugin.value.__module__].seen[-1]
    train = {sample.id for sample in env.samples if sample.split == "train"}
    assert {sample.id for sample in material.env.samples} == set(material.samples) == train
    assert len(env.samples) > len(train)


HASTY = """
from skilltune.edits import Edit
from skilltune.optimizer import Optimizer, Proposal

class it(Optimizer):
    def __init__(self, rest, material):
        self.reads = int(rest)
    async def propose(self, skill, rollouts, memory, step, limit):
        shown = []
        if self.reads:
            async for rollout in rollouts:
                shown.append(rollout.sample)
                if len(shown) == self.reads:
                    break
        return [Proposal(Edit("add", text="{}"), tuple(shown))]
"""


@pytest.mark.parametrize("reads", [0, 3])
async def test_an_optimizer_that_does_not_read_all_of_a_batch_leaves_it_to_the_gate(
    register: Any, tmp_path: Path, reads: int
) -> None:
    with small(classes=1, p=0.0) as world:
        register("optimizer", "o", HASTY.format(world.rule(0)))
        tree = {
            "target": {"model": f"openai@{world.url}/target"},
            "optimizer": {"model": f"plugin:o/{reads}"},
            "train": {"epochs": 1, "batch_size": 16},
        }
        env = Env(world.write(tmp_path / "data.jsonl"))
        result = await run_training(make_config(tree), tmp_path, tmp_path / "run", env=env)
        assert world.true_score(result.best.text) == 1
        asked = world.calls["target"]
        await run_training(make_config(tree), tmp_path, tmp_path / "run", env=env)
        assert world.calls["target"] == asked  # what was left unread is in the journal like all else
    with Run.read(result.folder) as journal:
        assert (await recompute(journal)).exit_code == 0


async def test_a_check_of_an_installed_scorer_is_read_from_a_sample_file(register: Any, tmp_path: Path) -> None:
    register(
        "scorer", "shout", "def it(sample, rollout, *, loud: int = 1):\n    return rollout.answer.count('!') >= loud\n"
    )
    row = {"id": "s1", "input": "?", "checks": [{"type": "shout", "loud": 2}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    env = Env(tmp_path / "data.jsonl")
    (sample,) = env.samples
    scores = [await env.score(sample, Rollout("s1", "", 0, Trajectory(text), None)) for text in ("Hey!", "Hey!!")]
    assert [score.value for score in scores] == [0.0, 1.0]
    for key, value in (
        ("expectations", [{"type": "shout"}]),
        ("checks", [{"type": "not", "check": {"type": "shout"}}]),
    ):
        (tmp_path / "data.jsonl").write_text(json.dumps({"id": "s1", "input": "?", key: value}) + "\n")
        assert Env(tmp_path / "data.jsonl").samples[0].checks == tuple(value)
    (tmp_path / "data.jsonl").write_text(json.dumps({**row, "checks": [{"type": "shouts"}]}) + "\n")
    with pytest.raises(UsageError, match=r'"shouts" is not supported \(did you mean "shout"\?\); .*judge, shout'):
        Env(tmp_path / "data.jsonl")


def test_a_name_is_searched_for_once_in_a_large_file(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(**chosen: str) -> Any:
        asked.append(chosen.get("name", ""))
        return entry_points(**chosen)

    monkeypatch.setattr(plugins, "entry_points", counted)
    rows = [{"input": "?", "expectations": [{"type": "similar", "text": f"Says {i}"}]} for i in range(200)]
    assert len(Env(rows, {"judge": "openai/x"}).samples) == 200
    assert asked == ["similar"]
