"""`check` finds faults before a call is paid, and its estimate holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from skilltune.api import run_training
from skilltune.build import build_parts
from skilltune.cli.main import app
from skilltune.config import Config, make_config
from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.preflight.check import Check, check
from skilltune.targets import Target
from skilltune.targets.chat import GUESSED_ANSWER, ChatTarget
from skilltune.usage import Usage
from world import Faults, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def world() -> Iterator[World]:
    with World(classes=3, train=20, select=12, test=12, q=1.0, sloppy=0.0) as world:
        yield world


def config(root: Path, world: World | None, *overrides: str, rows: list[dict[str, Any]] | None = None) -> Config:
    (root / "SKILL.md").write_text("Answer.\n")
    if rows is not None:
        (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif world is not None:
        world.write(root / "data.jsonl")
    url = world.url if world else "http://127.0.0.1:1/v1"
    tree = {
        "env": {"samples": "data.jsonl"},
        "target": {"model": f"openai@{url}/target"},
        "optimizer": {"model": f"openai@{url}/optimizer"},
        "train": {"epochs": 1, "batch_size": 10},
    }
    return make_config(tree, overrides)


def rows(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"s{i}", "input": f"task {i}", "target": f"answer {i}", **more} for i in range(n)]


async def test_a_sound_input_has_no_problems_and_costs_no_call(tmp_path: Path, world: World) -> None:
    found = await check(config(tmp_path, world), tmp_path)
    assert found.problems == []
    assert found.notes == []
    assert (found.samples, found.groups, found.probes) == (44, 0, [])
    assert found.splits is not None
    assert len(found.splits.train) == 20
    assert sum(world.calls.values()) == 0
    assert not (tmp_path / "runs").exists()


def grouped(n: int, groups: int) -> list[dict[str, Any]]:
    """So many select samples in so many groups, and enough of the other splits."""
    splits = ["select"] * n + ["train"] * 20 + ["test"] * 12
    return [
        {**row, "split": split, **({"group": f"g{i % groups}"} if split == "select" and groups else {})}
        for i, (row, split) in enumerate(zip(rows(len(splits)), splits, strict=True))
    ]


@pytest.mark.parametrize(
    ("n", "groups", "settings", "problem", "note"),
    [
        (7, 0, [], "with 7 select samples:", ""),
        (8, 0, [], "", "with 8 select samples: if the first 1 candidates fail"),
        (9, 0, ["gate.passes=2"], "", "if the first 1 candidates fail"),
        (8, 0, ["gate.passes=2"], "at least 9 independent samples", ""),
        (7, 0, ["gate.alpha=0.2"], "", "if the first 1 candidates fail"),
        (40, 5, [], "with 40 select samples in 5 groups", ""),
        (40, 0, [], "", ""),
        (7, 0, ["gate.policy=race"], "", ""),
    ],
)
async def test_an_eprocess_that_can_accept_nothing_is_named(
    tmp_path: Path, n: int, groups: int, settings: list[str], problem: str, note: str
) -> None:
    cfg = config(tmp_path, None, "gate.policy=eprocess", *settings, rows=grouped(n, groups))
    found = await check(cfg, tmp_path)
    said = [text for text in found.problems if "gate.policy=eprocess" in text]
    assert len(said) == bool(problem)
    assert all(problem in text for text in said)
    remarks = [text for text in found.notes if "gate.policy=eprocess" in text]
    assert len(remarks) == bool(note)
    assert all(note in text for text in remarks)


async def test_a_probe_times_one_tiny_call_to_each_role(tmp_path: Path, world: World) -> None:
    found = await check(config(tmp_path, world), tmp_path, probe=True)
    assert [probe.role for probe in found.probes] == ["target", "optimizer"]
    assert all(probe.seconds > 0 and not probe.error for probe in found.probes)
    assert world.calls == {"target": 1, "optimizer": 1}


async def test_a_probe_that_fails_is_a_problem_named_by_role(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.models.retry.RetryPolicy.delay", lambda *_: 0.0)
    world.faults = {"optimizer": Faults(error=1.0)}
    found = await check(config(tmp_path, world), tmp_path, probe=True)
    assert [bool(probe.error) for probe in found.probes] == [False, True]
    assert found.problems[0].startswith("the optimizer does not answer")


async def test_every_problem_is_found_in_one_look(tmp_path: Path) -> None:
    cfg = config(tmp_path, None, "target.model=examples", 'env.score={type = "regex", pattern = "a"}', rows=rows(20))
    (tmp_path / "SKILL.md").write_text("<!-- skilltune:lock -->\nnever closed\n")
    found = await check(cfg, tmp_path)
    text = "\n".join(found.problems)
    assert "never closed" in text
    assert len(found.problems) >= 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([*rows(10), {"id": "s0", "input": "again", "target": "x"}], "s0"),
        (rows(1), "split is empty"),
        ([*rows(10, group="a", split="train"), {**rows(11)[10], "group": "a", "split": "test"}], "at once"),
    ],
)
async def test_samples_that_cannot_be_split_are_a_problem(tmp_path: Path, data: Any, says: str) -> None:
    found = await check(config(tmp_path, None, rows=data), tmp_path)
    assert len(found.problems) == 1
    assert says in found.problems[0]
    assert found.estimate is None


async def test_an_expected_answer_that_does_not_score_1_is_named(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def strict(sample, rollout):\n    return float(rollout.answer == 'answer 3')\n")
    found = await check(config(tmp_path, None, "env.score=python:score.py:strict", rows=rows(12)), tmp_path)
    assert len(found.problems) == 11
    assert '"s0"' in found.problems[0]


async def test_a_scorer_that_an_empty_answer_satisfies_is_named(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def lax(sample, rollout):\n    return 1.0\n")
    found = await check(config(tmp_path, None, "env.score=python:score.py:lax", rows=rows(12)), tmp_path)
    assert len(found.problems) == 12
    assert "empty answer scores 1" in found.problems[0]


async def test_a_skill_that_does_not_exist_yet_is_a_note_not_a_problem(tmp_path: Path, world: World) -> None:
    cfg = config(tmp_path, world, "skill=new.md")
    found = await check(cfg, tmp_path)
    assert found.problems == []
    assert "does not exist yet" in found.notes[0]


@pytest.mark.parametrize(
    ("skill", "says"),
    [
        ("SKIL.md", 'does not exist yet (did you mean "SKILL.md"?)'),
        ("nowhere/SKILL.md", "nor does the folder"),
        ("empty.md", "the skill empty.md is empty"),
    ],
)
async def test_a_skill_without_text_shows_that_its_path_may_be_wrong(
    tmp_path: Path, world: World, skill: str, says: str
) -> None:
    (tmp_path / "empty.md").touch()
    found = await check(config(tmp_path, world, f"skill={skill}"), tmp_path)
    assert found.problems == []
    assert says in found.notes[0]


async def test_a_missing_key_is_found_before_anything_is_spent(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    found = await check(config(tmp_path, world, "optimizer.model=anthropic/claude-opus-5"), tmp_path)
    assert len(found.problems) == 1
    assert "ANTHROPIC_API_KEY" in found.problems[0]
    assert found.splits is not None


async def test_stated_answers_are_tried_with_the_checks(tmp_path: Path) -> None:
    checks = [{"type": "contains", "target": "answer"}]
    data = rows(12, checks=checks)
    assert (await check(config(tmp_path, None, rows=data), tmp_path)).notes == []
    data[3]["target"] = "another"
    (note,) = (await check(config(tmp_path, None, rows=data), tmp_path)).notes
    assert 'of 1 of 12 samples fail their own checks (first: "s3": 0 of 1 checks pass; contains: "answer"' in note
    data[4]["target"] = None
    notes = (await check(config(tmp_path, None, rows=data), tmp_path)).notes
    assert notes[0].startswith("1 of 12 samples could not be tested")


async def test_one_sample_is_shown_as_the_target_gets_it_and_as_it_is_scored(tmp_path: Path, world: World) -> None:
    data = [{"id": f"s{i}", "input": f"task {i}", "target": [f"a{i}", "b"], "hint": f"h{i}"} for i in range(12)]
    found = await check(config(tmp_path, world, 'env.prompt="{hint}: {input}"', rows=data), tmp_path)
    (title, name), *shown = found.preview
    number = re.findall(r"\d+", name)[0]
    assert title == "sample"
    assert {label.strip(): text for label, text in shown} == {
        "system": "Answer.",
        "user": f"h{number}: task {number}",
        "score": f'exact: expects "a{number}" or "b"',
    }
    assert sum(world.calls.values()) == 0


async def test_checks_are_shown_each_with_its_scorer(tmp_path: Path, world: World) -> None:
    checks = [
        {"type": "judge", "text": "Is kind"},
        {"type": "not", "check": {"type": "regex", "pattern": "so+rry"}},
        {"type": "checks", "mode": "any", "checks": [{"type": "length", "max_chars": 9}, {"type": "contains"}]},
    ]
    judge = f'env.score={{judge = "openai@{world.url}/judge"}}'
    found = await check(config(tmp_path, world, judge, rows=rows(12, checks=checks)), tmp_path)
    (score,) = (text for label, text in found.preview if label.strip() == "score")
    first, *others = score.splitlines()
    assert first == "3 checks, all must pass:"
    assert others[0] == f'- judge, read by openai@{world.url}/judge: "Is kind"'
    assert others[1] == "- not regex, pattern = so+rry"
    assert others[2:4] == ["- 2 checks, one is enough:", "  - length, max_chars = 9"]
    assert others[4].startswith('  - contains: expects "answer ')
    assert others[5].startswith("the judge also sees the target as a reference: answer ")


async def test_long_texts_are_cut_and_say_how_much_is_left_out(tmp_path: Path, world: World) -> None:
    cfg = config(tmp_path, world, rows=[{**row, "input": f"{row['id']} " + "x" * 9000} for row in rows(12)])
    (tmp_path / "SKILL.md").write_text("Rule. " * 100)
    shown = {label.strip(): text for label, text in (await check(cfg, tmp_path)).preview}
    assert shown["system"].endswith("… (399 more characters)")
    assert re.search(r"x… \(5,00[34] more characters\)$", shown["user"])


async def test_files_that_a_chat_target_never_sees_are_a_problem(tmp_path: Path, world: World) -> None:
    (tmp_path / "scan.pdf").write_bytes(b"%PDF\xff")
    found = await check(config(tmp_path, world, rows=rows(12, files=["scan.pdf"])), tmp_path)
    (problem,) = found.problems
    assert problem.startswith("12 of 12 samples have files that a chat target never sees (first: sample")


async def test_samples_that_contradict_each_other_are_told(tmp_path: Path, world: World) -> None:
    data = [{"id": f"s{i}", "input": f"task {i // 2}", "target": f"answer {i}", "facts": f"f{i}"} for i in range(12)]
    (problem,) = (await check(config(tmp_path, world, rows=data), tmp_path)).problems
    assert problem.startswith(
        "12 of 12 samples ask the same as another sample but expect another answer (such as s0, s1)"
    )
    assert (await check(config(tmp_path, world, 'env.prompt="{facts} {input}"', rows=data), tmp_path)).problems == []
    noisy = await check(config(tmp_path, world, rows=[*rows(18), {**rows(1)[0], "id": "x", "target": "y"}]), tmp_path)
    assert noisy.problems == []
    assert any(note.startswith("2 of 19 samples ask the same") for note in noisy.notes)


def test_the_command_prints_the_sample_below_the_notes(tmp_path: Path, world: World) -> None:
    config(tmp_path, world, rows=rows(12))
    settings = f'[env]\nsamples = "data.jsonl"\n[target]\nmodel = "openai@{world.url}/target"\n'
    (tmp_path / "skilltune.toml").write_text(settings)
    done = CliRunner().invoke(app, ["check", str(tmp_path / "skilltune.toml"), 'env.prompt="One:\\n{input}"'])
    assert done.exit_code == 0
    assert re.search(r"\nsample    \"s\d+\": the messages to the target", done.stdout)
    assert re.search(r"\n  user    One:\n          task \d+\n  score   exact: expects \"answer \d+\"\n", done.stdout)


async def test_examples_need_an_answer_before_a_call_is_paid(tmp_path: Path, world: World) -> None:
    data = [{**row, "checks": [{"type": "contains", "target": row["target"]}]} for row in rows(20)]
    cfg = config(tmp_path, world, "optimizer.model=examples", rows=data)
    assert (await check(cfg, tmp_path)).problems == []
    cfg = config(tmp_path, world, "optimizer.model=examples", rows=[{**row, "target": None} for row in data])
    (problem,) = (await check(cfg, tmp_path)).problems
    assert "none of the 8 train samples states an answer" in problem
    with pytest.raises(UsageError, match="none of the 8 train samples states an answer"):
        await run_training(cfg, tmp_path, tmp_path / "run")
    assert not sum(world.calls.values())


async def test_a_line_break_that_is_none_is_noted(tmp_path: Path) -> None:
    (note,) = (await check(config(tmp_path, None, r"env.prompt=In: {input}\nOut:", rows=rows(12)), tmp_path)).notes
    assert "no line break" in note
    cfg = config(tmp_path, None, r'env.prompt="In: {input}\nOut:"', rows=rows(12))
    assert (await check(cfg, tmp_path)).notes == []


def test_beside_a_config_no_name_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SKILL.md").write_text("---\nname: front-desk\ndescription: d\n---\nAnswer.\n")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    (tmp_path / "skilltune.toml").write_text('[env]\nsamples = "data.jsonl"\n[optimizer]\nmodel = "examples"\n')
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["check", "target.model=openai@http://127.0.0.1:1/v1/none"])
    assert (found.exit_code, found.stderr) == (0, "")
    assert "; its frontmatter says name: front-desk\n" in found.stdout
    assert "no target: set target.model" in CliRunner().invoke(app, ["train"]).stderr
    refused = CliRunner().invoke(app, ["check", "SKILL.md"])
    assert (refused.exit_code, "is a skill, not a config: give its folder" in refused.stderr) == (2, True)


# -- the estimate


async def looked_at(tmp_path: Path, world: World, *overrides: str) -> Check:
    found = await check(config(tmp_path, world, *overrides), tmp_path)
    assert found.problems == []
    assert found.estimate is not None
    return found


@pytest.mark.parametrize("setting", ["preset=default", "preset=paper", "optimizer.model=examples"])
async def test_a_run_stays_within_its_estimate(tmp_path: Path, world: World, setting: str) -> None:
    overrides = [setting, "target.max_tokens=16", "target.price=[1, 2]", "optimizer.price=[3, 4]", "train.epochs=2"]
    expected = (await looked_at(tmp_path, world, *overrides)).estimate
    assert expected is not None
    await run_training(config(tmp_path, world, *overrides), tmp_path, tmp_path / "run")
    run = Run.read(tmp_path / "run")
    rolled, thought = run.usage["rollout"], run.usage.get("optimizer", Usage())
    run.close()
    assert expected.target_calls[0] <= rolled.calls <= expected.target_calls[1]
    assert expected.optimizer_calls[0] <= thought.calls <= expected.optimizer_calls[1]
    assert expected.tokens[0] <= rolled.tokens + thought.tokens <= expected.tokens[1]
    assert expected.usd is not None
    assert rolled.usd is not None
    assert thought.usd is not None
    assert expected.usd[0] <= rolled.usd + thought.usd <= expected.usd[1]


async def test_a_budget_that_will_not_last_is_remarked_with_the_number_that_will(tmp_path: Path, world: World) -> None:
    overrides = ["target.price=[1, 2]", "optimizer.price=[1, 2]", "target.lookahead=false"]
    assert (await looked_at(tmp_path, world, *overrides)).notes == []
    (told,) = (await looked_at(tmp_path, world, *overrides, "budget.calls=30")).notes
    assert told.startswith("budget.calls=30 is too little for a whole run: with ")
    least, enough = (int(re.findall(pattern, told)[0]) for pattern in (r"shortest takes about (\d+)", r"calls=(\d+)$"))
    (told,) = (await looked_at(tmp_path, world, *overrides, f"budget.calls={least + 1}")).notes
    assert "may not last for a whole run" in told
    assert f"a typical one {enough}" in told
    assert (await looked_at(tmp_path, world, *overrides, f"budget.calls={enough}")).notes == []
    for calls, ends in ((least // 2, False), (enough, True)):
        cfg = config(tmp_path, world, *overrides, f"budget.calls={calls}")
        done = await run_training(cfg, tmp_path, tmp_path / f"run-{calls}")
        assert (done.stopped is None) == ends


@pytest.mark.parametrize("limit", ["tokens", "usd"])
async def test_so_is_one_in_tokens_or_dollars(tmp_path: Path, world: World, limit: str) -> None:
    overrides = ["target.price=[1, 2]", "optimizer.price=[1, 2]"]
    (told,) = (await looked_at(tmp_path, world, *overrides, f"budget.{limit}={1 if limit == 'tokens' else 1e-6}")).notes
    enough = told.rpartition(" ")[2]
    assert enough.startswith(f"budget.{limit}=")
    assert (await looked_at(tmp_path, world, *overrides, enough)).notes == []


async def test_the_plan_and_the_remark_call_the_same_run_typical(tmp_path: Path, world: World) -> None:
    expected = (await looked_at(tmp_path, world, "optimizer.model=examples")).estimate
    assert expected is not None
    (least, most), after = expected.target_calls, expected.after_calls
    assert after == 24  # the certificate: both skills on 12 test samples
    assert expected.typical_calls == round(least + after + 0.4 * (most - after - least))
    (told,) = (await looked_at(tmp_path, world, "optimizer.model=examples", "budget.calls=30")).notes
    typical = int(re.findall(r"a typical one (\d+)", told)[0])
    assert expected.typical_calls <= typical < 1.1 * expected.typical_calls


async def test_no_optimizer_calls_are_estimated_where_no_model_is_asked(tmp_path: Path, world: World) -> None:
    found = await looked_at(tmp_path, world, "optimizer.model=examples")
    assert found.estimate is not None
    assert found.estimate.optimizer_calls == (0, 0)


@pytest.mark.parametrize(("limit", "written"), [("target.max_tokens=700", 700), ("target.workers=1", GUESSED_ANSWER)])
async def test_the_first_guess_of_a_call_is_small_unless_its_answer_may_be_long(
    tmp_path: Path, world: World, limit: str, written: int
) -> None:
    cfg = config(tmp_path, world, limit)
    with Run.open(tmp_path / "run") as run:
        session = build_parts(cfg, run, tmp_path)
        sample = session.splits.test[0]
        guess = session.roll.target.guess(session.skill, session.env.task(sample))
        assert isinstance(session.roll.target, Target)
        await session.aclose()
    assert (guess.calls, guess.output_tokens, guess.usd) == (1, written, 0.0)
    assert guess.input_tokens == (len(sample.text) + len(session.skill.body)) // 4


async def test_one_model_in_two_roles_is_one_object(tmp_path: Path, world: World) -> None:
    """So that an embedded model is loaded once; each role keeps its own account."""
    for optimizer, shared in (("target", True), ("optimizer", False)):
        cfg = config(tmp_path, world, f"optimizer.model=openai@{world.url}/{optimizer}")
        with Run.open(tmp_path / optimizer) as run:
            session = build_parts(cfg, run, tmp_path)
            assert session.optimizer_client is not None
            assert isinstance(session.target, ChatTarget)
            assert (session.optimizer_client.model is session.target.client.model) == shared
            assert (session.target.client.meter.role, session.optimizer_client.meter.role) == ("target", "optimizer")
            await session.aclose()


async def test_own_hardware_is_free_and_an_unknown_price_is_unknown(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    free = (await looked_at(tmp_path, world)).estimate
    assert free is not None
    assert free.usd == (0.0, 0.0)
    unknown = (await looked_at(tmp_path, world, "optimizer.model=openai/never-heard-of")).estimate
    assert unknown is not None
    assert unknown.usd is None


async def test_pitfall_21_a_dollar_budget_without_a_price_is_a_problem(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    cfg = config(tmp_path, world, "optimizer.model=openai/never-heard-of", "budget.usd=1")
    with Run.open(tmp_path / "run") as run, pytest.raises(UsageError, match="price of the optimizer model"):
        build_parts(cfg, run, tmp_path)
    assert any("price" in problem for problem in (await check(cfg, tmp_path)).problems)
