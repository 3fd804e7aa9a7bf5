"""The command line, run as a user runs it, against the simulated world."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from skilltune.api import run_training
from skilltune.cli.main import app
from skilltune.config import load_config
from skilltune.journal.run import Run
from skilltune.report.terminal import Lines, Live, Progress, changed_lines, columns, difference, stdout
from skilltune.text import visible
from skilltune.usage import Usage, describe_usage
from world import Faults, World

pytestmark = pytest.mark.anyio
SKILL = "# Desk\n\nAnswer the ticket.\n"


@dataclass
class Desk:
    """A folder with a skill, samples and a config, and the world that answers."""

    root: Path
    world: World
    paid: dict[str, int] = field(default_factory=dict)  # calls of the training that made `finished`, by model

    def __post_init__(self) -> None:
        self.world.write(self.root / "data.jsonl")
        (self.root / "SKILL.md").write_text(SKILL)
        (self.root / "desk.toml").write_text(
            f'[env]\nsamples = "data.jsonl"\n[target]\nmodel = "openai@{self.world.url}/target"\n'
            f'[optimizer]\nmodel = "openai@{self.world.url}/optimizer"\n[train]\nepochs = 1\nbatch_size = 15\n'
        )

    @property
    def config(self) -> str:
        return str(self.root / "desk.toml")

    @property
    def run(self) -> str:
        return str(self.root / "runs" / self.root.name)

    @property
    def calls(self) -> int:
        return sum(self.world.calls.values())


def skilltune(*args: object) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("skilltune.models.retry.RetryPolicy.delay", lambda *_: 0.0)


def make_world(**settings: Any) -> World:
    return World(**{"classes": 3, "train": 30, "select": 20, "test": 30, "q": 1.0, "sloppy": 0.0, **settings})


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with make_world() as world:
        yield Desk(tmp_path, world)


@pytest.fixture
def trained(desk: Desk) -> Desk:
    assert skilltune("train", desk.config).exit_code == 0
    return desk


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A finished run, shared by tests that only look at it."""
    with make_world() as world:
        desk = Desk(tmp_path_factory.mktemp("desk"), world)
        assert skilltune("train", desk.config).exit_code == 0
        desk.paid = dict(world.calls)  # commands of the tests call models too
        yield desk


@pytest.mark.slow
@pytest.mark.parametrize(("skill", "written"), [("new.md", "new.md"), ("skills/new", "skills/new/SKILL.md")])
def test_a_training_from_nothing_says_so_and_its_skill_can_be_adopted(desk: Desk, skill: str, written: str) -> None:
    trained = skilltune("train", desk.config, f"skill={skill}", "--run", desk.run)
    assert trained.exit_code == 0
    assert f"the skill {skill} does not exist or is empty: training starts from nothing" in trained.stdout
    adopted = skilltune("adopt", desk.run)
    assert adopted.exit_code == 0, adopted.stderr
    assert (desk.root / written).read_text().strip()
    assert "is the trained skill already" in skilltune("adopt", desk.run).stderr


# -- help and wrong usage


def test_help_imports_nothing_heavy_so_that_it_is_fast() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from skilltune.cli.main import app\n"
        "for args in ([], ['train'], ['eval'], ['check'], ['show'], ['diff'], ['export']):\n"
        "    assert CliRunner().invoke(app, [*args, '--help']).exit_code == 0\n"
        "print(*sorted({'aiohttp', 'certifi', 'rich', 'sqlite3', 'skilltune.api'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_help_of_train_teaches_examples_and_exit_codes() -> None:
    text = skilltune("train", "--help").stdout
    assert "skilltune train skilltune.toml" in text
    for meaning in ("nothing better found", "nothing spent", "resumable", "not certified"):
        assert meaning in text


def test_version() -> None:
    assert re.fullmatch(r"skilltune \d+\.\d+\.\d+\n", skilltune("--version").stdout)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "x.toml", "--frok"], "--fork"),
        (["export", "runs/x", "--to", "clod"], "claude"),
        (["train", "nowhere.toml"], "cannot read the config nowhere.toml"),
        (["show", "nowhere"], "no run in nowhere"),
        (["eval", "nowhere.toml", "--skill", "nowhere.md"], "there is no skill at nowhere.md"),
    ],
)
def test_wrong_usage_is_one_clear_message(args: list[str], says: str) -> None:
    result = skilltune(*args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_misspelt_key_names_the_nearest_and_nothing_is_called(desk: Desk) -> None:
    result = skilltune("train", desk.config, "train.epoch=2")
    assert result.exit_code == 2
    assert 'unknown key train.epoch; did you mean "epochs"?' in result.stderr
    assert desk.calls == 0
    assert not Path(desk.run).exists()


@pytest.mark.parametrize("error", [ZeroDivisionError("of sk-secret-0123"), RecursionError(), MemoryError()])
def test_an_error_of_our_own_is_exit_70_and_the_run_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setenv("DESK_KEY", "sk-secret-0123")
    with monkeypatch.context() as patched:
        patched.setattr("skilltune.rollouts.roller.Roller.cancel_prefetch", lambda *_, **__: broken_now(error))
        ended = skilltune("train", desk.config, "target.key_env=DESK_KEY")
    assert ended.exit_code == 70
    assert f"a bug in skilltune, not your mistake ({type(error).__name__}" in ended.stderr
    assert "Traceback" not in ended.output
    (crash,) = Path(desk.run).glob("crash-*.txt")
    assert str(crash) in ended.stderr
    assert "broken_now" in crash.read_text()
    assert "sk-secret" not in crash.read_text() + ended.output
    assert crash.stat().st_mode & 0o077 == 0
    assert "resume with: skilltune train" in ended.stderr
    assert skilltune("train", desk.config).exit_code == 0


def broken_now(error: Exception) -> None:
    raise error


def test_an_error_of_our_own_where_there_is_no_run_leaves_its_traceback_in_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("skilltune.journal.run.Run.read", lambda folder: broken_now(KeyError("x")))
    ended = skilltune("show", tmp_path)
    assert ended.exit_code == 70
    (crash,) = tmp_path.glob("skilltune-crash-*.txt")
    assert "KeyError" in crash.read_text()
    assert "goes on" not in ended.stderr


def test_a_full_disk_is_no_error_of_our_own(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/there")
    monkeypatch.setattr("skilltune.api.write_results", lambda *_: broken_now(full))
    ended = skilltune("train", desk.config)
    assert ended.exit_code == 3
    assert "No space left on device (/there): free some space" in ended.stderr
    assert not list(Path(desk.run).glob("crash*"))


# -- train


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_train_prints_plan_verdicts_diff_certificate_and_cost(desk: Desk, preset: str) -> None:
    result = skilltune("train", desk.config, f"preset={preset}")
    assert result.exit_code == 0, result.stderr
    out = result.stdout
    assert "\x1b" not in out
    order = [
        "paired samples see a gain",
        "of the target",
        "start · the input scores 0.0 %",
        "step 1 of 2 · accepted: ",
        *([" points estimated, ", " tasks looked at · 1 version"] if preset == "default" else ["→"]),
        "step 2 of 2",
    ]
    order += ["the skill: ", "  +" + desk.world.rule(0), "skilltune diff ", "Certified better", "unseen samples"]
    order += ["\nrollout   ", "best_skill.md", "0: a better skill"]
    places = [out.index(part) for part in order]
    assert places == sorted(places)
    assert "P(better)" not in out
    assert out[out.index("the skill: ") :].count("\n") <= 30
    assert desk.world.true_score(Path(desk.run, "best_skill.md").read_text()) == 1.0


def test_resuming_a_finished_run_pays_nothing_and_says_so(trained: Desk) -> None:
    before = trained.calls
    result = skilltune("train", trained.config)
    assert result.exit_code == 0
    assert trained.calls == before
    assert f"{before:,} answers came from the journal; 0 calls were new" in result.stdout


def test_another_config_is_refused_with_the_keys_unless_forked(trained: Desk) -> None:
    refused = skilltune("train", trained.config, "seed=7")
    assert refused.exit_code == 2
    assert "seed: 42 → 7" in refused.stderr
    forked = skilltune("train", trained.config, "train.lr=3", "--fork")
    assert forked.exit_code == 0
    assert "rollouts can be reused; of " in forked.stdout
    assert Path(f"{trained.run}-2", "best_skill.md").is_file()


def test_json_is_one_event_per_line_and_nothing_else(desk: Desk) -> None:
    result = skilltune("train", desk.config, "--json")
    assert result.exit_code == 0
    events = [json.loads(text) for text in result.stdout.splitlines()]
    types = [event["type"] for event in events]
    assert types[0] == "plan"
    assert types[-1] == "finish"
    assert {"start", "rollout", "optimizer", "verdict"} <= set(types)
    assert events[0]["samples"] == {"train": 30, "select": 20, "test": 30}
    assert events[-1]["certificate"]["certified"]
    assert result.stderr == ""


def test_json_reports_an_error_as_an_event_too(desk: Desk) -> None:
    result = skilltune("train", desk.config, "--json", "train.lr_min=9")
    assert result.exit_code == 2
    event = json.loads(result.stdout)
    assert (event["type"], event["exit_code"]) == ("error", 2)
    assert "lr_min" in event["message"]


def test_useless_edits_end_with_exit_1_and_the_input_unchanged(tmp_path: Path) -> None:
    with make_world(optimizer_mode="useless") as world:
        desk = Desk(tmp_path, world)
        result = skilltune("train", desk.config)
        assert result.exit_code == 1
        assert "the input is shipped unchanged" in result.stdout
        assert "no certificate: the best skill is the input" in result.stdout
        assert Path(desk.run, "best_skill.md").read_text() == SKILL


def test_a_test_split_too_small_to_certify_ends_with_exit_5(tmp_path: Path) -> None:
    with make_world(test=4) as world:
        result = skilltune("train", Desk(tmp_path, world).config)
        assert result.exit_code == 5
        assert "not certified" in result.stdout


def test_without_a_test_split_an_accepted_skill_is_exit_0_and_no_certificate(tmp_path: Path) -> None:
    with make_world(test=0) as world:
        result = skilltune("train", Desk(tmp_path, world).config)
        assert result.exit_code == 0
        assert "no certificate: there is no test split" in result.stdout


def test_the_budget_stops_before_the_call_with_exit_4_and_a_larger_one_goes_on(desk: Desk) -> None:
    stopped = skilltune("train", desk.config, "budget.calls=90")
    assert stopped.exit_code == 4
    assert "raise it with budget.calls" in stopped.stdout
    paid = desk.calls
    assert 0 < paid <= 90
    resumed = skilltune("train", desk.config, "budget.calls=900")
    assert resumed.exit_code == 0
    assert f"{paid} answers came from the journal" in resumed.stdout


def test_a_dead_provider_is_exit_3_never_a_score(tmp_path: Path) -> None:
    with make_world(faults={"target": Faults(outage=(0, 1e9))}) as world:
        desk = Desk(tmp_path, world)
        result = skilltune("train", desk.config)
        assert result.exit_code == 3
        assert "3 of 3 samples failed in the same way" in result.stderr
        assert "Run the same command to go on" in result.stderr
        world.faults = Faults()
        assert skilltune("train", desk.config).exit_code == 0


def test_a_wrong_key_is_exit_2_while_nothing_was_spent_and_3_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_world(key="right") as world:
        desk, keyed = Desk(tmp_path, world), "target.key_env=OPENAI_API_KEY"
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
        result = skilltune("train", desk.config, keyed)
        assert result.exit_code == 2
        assert "wrong-key" not in result.stderr + result.stdout
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        assert skilltune("train", desk.config, keyed, "budget.calls=90").exit_code == 4
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
        assert skilltune("train", desk.config, keyed).exit_code == 3


def test_a_dollar_budget_with_an_unknown_price_is_refused_before_a_call(desk: Desk) -> None:
    result = skilltune("train", desk.config, "budget.usd=1", "optimizer.model=openai/some-unknown-model")
    assert result.exit_code == 2
    assert desk.calls == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_4_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    with make_world(latency=0.05) as world:
        desk = Desk(tmp_path, world)
        command = [sys.executable, "-m", "skilltune.cli.main", "train", desk.config, "target.workers=2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while world.answered["target"] < 30 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 4, err
        assert "interrupted; run the same command to go on" in err
        assert "Traceback" not in err
        assert "start · the input scores" in out
        world.latency = 0.0
        resumed = skilltune("train", desk.config, "target.workers=2")
        assert resumed.exit_code == 0
        found = re.search(r"(\d+) answers came from the journal", resumed.stdout)
        assert found
        assert int(found[1]) >= 28


@pytest.mark.slow
def test_sigterm_ends_a_background_job_whose_sigint_is_ignored(tmp_path: Path) -> None:
    with make_world(latency=0.05) as world:
        desk = Desk(tmp_path, world)
        command = [sys.executable, "-m", "skilltune.cli.main", "train", desk.config, "target.workers=2"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None,
        )
        while world.answered["target"] < 10 and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(timeout=60) == 4


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_goes_away_is_an_interrupt_not_a_verdict(tmp_path: Path, flags: list[str]) -> None:
    with make_world(latency=0.02) as world:
        desk = Desk(tmp_path, world)
        command = [sys.executable, "-m", "skilltune.cli.main", "train", desk.config, *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=60) == 4, err
        assert "Traceback" not in err


# -- eval, check, show, diff, export


def test_eval_reuses_the_run_and_shows_both_sides_and_the_difference(finished: Desk) -> None:
    before = finished.calls
    best = Path(finished.run, "best_skill.md")
    result = skilltune("eval", finished.config, "--skill", best, "--run", finished.run)
    assert result.exit_code == 0
    assert "with the skill     100.0 %" in result.stdout
    assert "difference: +100.0 points" in result.stdout
    assert "tokens, $0" in result.stdout
    assert finished.calls == before + 30  # only the side without a skill was new


def test_eval_json_of_one_side(desk: Desk) -> None:
    result = skilltune("eval", desk.config, "--split", "select", "--only", "with", "--attempts", 2, "--json")
    data = json.loads(result.stdout)
    assert (data["with"]["score"], data["with"]["n"], data["with"]["usage"]["calls"]) == (0.0, 20, 40)
    assert "without" not in data
    assert data["difference"] is None
    assert desk.calls == 40


def test_eval_of_an_empty_split_is_exit_2(tmp_path: Path) -> None:
    with make_world(test=0) as world:
        result = skilltune("eval", Desk(tmp_path, world).config)
        assert result.exit_code == 2
        assert "the split 'test' is empty" in result.stderr


def test_check_calls_no_model_unless_asked(desk: Desk) -> None:
    result = skilltune("check", desk.config)
    assert result.exit_code == 0
    assert desk.calls == 0
    assert "train 30 · select 20 · test 30" in result.stdout
    assert "fine" in result.stdout
    assert "answered in" in skilltune("check", desk.config, "--probe").stdout
    assert desk.world.calls == {"target": 1, "optimizer": 1}


def test_check_calls_a_set_that_can_prove_nothing_too_small_and_not_fine(desk: Desk) -> None:
    data = desk.root / "data.jsonl"
    rows = data.read_text().splitlines()
    few = [next(row for row in rows if f'"split": "{split}"' in row) for split in ("train", "select", "test")]
    data.write_text("\n".join(few) + "\n")
    result = skilltune("check", desk.config)
    assert result.exit_code == 0
    assert "too few to certify" in result.stdout
    assert "fine" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("sound, but too few samples: select has 1 of the 5")


def test_check_names_every_problem_with_exit_2(desk: Desk) -> None:
    result = skilltune("check", desk.config, "target.model=examples", "train.max_skill_tokens=3")
    assert result.exit_code == 2
    assert result.stderr.count("problem: ") == 2


def test_a_limit_below_the_input_is_refused_alike_by_check_and_train_with_one_that_would_do(desk: Desk) -> None:
    (desk.root / "SKILL.md").write_text(SKILL + "Be kind to the writer of the ticket.\n" * 300)  # about 2,800 tokens
    assert skilltune("check", desk.config).exit_code == 0
    checked = skilltune("check", desk.config, "train.max_skill_tokens=2000")
    trained = skilltune("train", desk.config, "train.max_skill_tokens=2000")
    assert (checked.exit_code, trained.exit_code, desk.calls) == (2, 2, 0)
    room = re.search(r"set train\.max_skill_tokens=(\d+)", trained.stderr)
    assert room is not None
    assert room[0] in checked.stderr
    assert skilltune("check", desk.config, room[0].removeprefix("set ")).exit_code == 0
    assert skilltune("check", desk.config, "train.max_skill_tokens=2000", "train.epochs=0").exit_code == 0


def test_a_skill_beyond_the_usual_limit_has_room_to_learn(desk: Desk) -> None:
    (desk.root / "SKILL.md").write_text(SKILL + "Be kind to the writer of the ticket.\n" * 300)
    assert skilltune("train", desk.config).exit_code == 0
    with Run.read(Path(desk.run)) as run:
        assert any(data["accepted"] for _, _, data in run.events("verdict"))


def test_show_lists_verdicts_certificate_cost_and_files(finished: Desk) -> None:
    text = skilltune("show", finished.run).stdout
    assert "version 1" in text
    assert "nothing was proposed" in text
    assert "unseen samples" in text
    assert "best_skill.md" in text
    data = json.loads(skilltune("show", finished.run, "--json").stdout)
    assert data["finished"]
    assert [row["version"] for row in data["verdicts"]] == [0, 1, 1]
    assert data["usage"]["optimizer"]["calls"] + 1 == finished.paid["optimizer"]  # and the probe


@pytest.mark.slow
def test_show_works_while_a_run_is_being_written(desk: Desk) -> None:
    desk.world.latency = 0.03
    command = [sys.executable, "-m", "skilltune.cli.main", "train", desk.config]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while desk.world.answered["target"] < 40 and process.poll() is None:
            time.sleep(0.01)
        result = skilltune("show", desk.run)
        assert result.exit_code == 0
        assert "the input" in result.stdout
        assert f"running        process {process.pid} writes to it" in result.stdout
        assert json.loads(skilltune("show", desk.run, "--json").stdout)["pid"] == process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def test_diff_of_versions(finished: Desk) -> None:
    assert "+" + finished.world.rule(1) in skilltune("diff", finished.run).stdout
    assert skilltune("diff", finished.run, 0, 1).stdout.startswith("--- version 0")
    assert skilltune("diff", finished.run, 1, "best").stdout == "version 1 and best are the same\n"
    wrong = skilltune("diff", finished.run, 0, 9)
    assert wrong.exit_code == 2
    assert "there are 0, 1 and best" in wrong.stderr


def test_export_from_a_run(finished: Desk, tmp_path: Path) -> None:
    out = tmp_path / "project"
    plain = skilltune("export", finished.run, "--to", "file", "--out", out)
    assert plain.exit_code == 0
    assert (out / f"{finished.root.name}.md").read_text() == Path(finished.run, "best_skill.md").read_text()
    refused = skilltune("export", finished.run, "--to", "claude", "--out", out)
    assert refused.exit_code == 2
    assert "--name" in refused.stderr
    done = skilltune(
        "export", finished.run, "--to", "claude", "--out", out, "--name", "desk", "--description", "Codes."
    )
    assert done.exit_code == 0
    assert (out / ".claude/skills/desk/SKILL.md").read_text().startswith("---\nname: desk\n")


@pytest.mark.parametrize(
    "odd",
    [
        """UPDATE event SET json = '{"accepted":true}' WHERE type = 'verdict'""",
        """UPDATE event SET json = '[]' WHERE type = 'start'""",
        """UPDATE event SET json = json_set(json, '$.edits', 7) WHERE type = 'verdict'""",
        """UPDATE event SET json = json_set(json, '$.best', json('{}'), '$.name', 5) WHERE type = 'finish'""",
        """UPDATE event SET json = json_set(json, '$.certificate', json('{"n":"many"}')) WHERE type = 'finish'""",
        "UPDATE event SET json = '" + "[" * 20_000 + "' WHERE type = 'finish'",
        "UPDATE blob SET data = 'text and no bytes'",
        "UPDATE memo SET value = '5' WHERE kind = 'rollout'",
        "UPDATE memo SET value = '\"s\"' WHERE key IN ('config', 'split', 'pins')",
        "DROP TABLE blob",
        "DELETE FROM blob",
    ],
)
def test_a_journal_of_another_shape_is_damaged_for_whoever_reads_it(finished: Desk, tmp_path: Path, odd: str) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "run" / "run.db", isolation_level=None)) as db:
        db.execute(odd)
    refused = []
    for command in ("show", "show --json", "show --edits", "show --recompute", "diff", "report"):
        name, *flags = command.split()
        refused.append(skilltune(name, tmp_path / "run", *flags))
    for kind in ("file", "skill-creator"):
        refused.append(skilltune("export", tmp_path / "run", "--to", kind, "--out", tmp_path / kind))
    refused.append(skilltune("train", finished.config, "--run", tmp_path / "run"))  # a traceback would be raised
    said = [done.stderr for done in refused if done.exit_code == 2]
    assert said
    ways_out = "damaged|no longer holds|lacking|another configuration|can be used only with it"
    assert [text for text in said if not re.search(ways_out, text)] == []


def test_export_refuses_the_home_folder_unless_named(finished: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    home = finished.root / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    result = skilltune("export", finished.run, "--to", "codex", "--name", "desk", "--description", "Codes.")
    assert result.exit_code == 2
    assert "home" in result.stderr
    assert not list(home.iterdir())


def test_export_and_show_of_an_unfinished_run(desk: Desk) -> None:
    desk.world.faults = Faults(outage=(0, 1e9))
    assert skilltune("train", desk.config).exit_code == 3
    result = skilltune("export", desk.run, "--to", "file", "--out", desk.root)
    assert result.exit_code == 2
    assert "has not finished" in result.stderr
    shown = skilltune("show", desk.run).stdout
    assert "stopped        the optimizer cannot be reached" in shown
    assert f"resume with    skilltune train {desk.config}\n" in shown
    desk.world.faults = Faults()
    assert skilltune("train", desk.config).exit_code == 0
    assert "\nfinished\n" in skilltune("show", desk.run).stdout
    with pytest.raises(KeyboardInterrupt), Run.open(Path(desk.run)):  # a replay that is interrupted takes nothing back
        raise KeyboardInterrupt
    assert json.loads(skilltune("show", desk.run, "--json").stdout)["state"] == "finished"


def test_show_of_a_stopped_run_says_why_and_how_to_go_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert skilltune("train", desk.config, "budget.calls=100", "--run", desk.root / "other run").exit_code == 4
    data = json.loads(skilltune("show", desk.root / "other run", "--json").stdout)
    assert (data["state"], data["pid"]) == ("stopped", None)
    assert "budget" in data["stopped"]
    enough = re.search(r"budget\.calls=(\d+)", data["resume"])
    assert enough
    line = shlex.join(["skilltune", "train", desk.config, enough[0], "--run", str(desk.root / "other run")])
    assert data["resume"] == line
    assert f"raise it with {enough[0]} and run" in data["stopped"]
    monkeypatch.chdir(desk.root)
    assert "   (in " in skilltune("show", desk.root / "other run").stdout
    assert skilltune(*shlex.split(line)[1:]).exit_code == 0  # the budget that was named is enough


def test_a_fork_says_how_it_is_resumed_when_it_begins_and_when_it_stops(trained: Desk) -> None:
    command = f"skilltune train {trained.config} train.lr=3 budget.calls=10 --run {trained.run}-2"
    forked = skilltune("train", trained.config, "train.lr=3", "budget.calls=10", "--fork")
    assert forked.exit_code in (3, 4), forked.stdout
    assert f"--fork again would begin another fork; to resume this one:\n  {command}\n" in forked.stdout
    said = forked.stdout.partition("forked from")[2].partition(command)[2] + forked.stderr
    larger = re.search(re.escape(command).replace("=10", r"=\d+"), said)
    assert larger
    resumed = skilltune(*larger[0].split()[1:])
    assert resumed.exit_code == 0, resumed.stderr
    assert not Path(f"{trained.run}-3").exists()


ENOUGH = [["check"], ["eval"], ["show"], ["show", "--edits"], ["show", "--recompute"], ["diff"], ["doctor"], ["init"]]


@pytest.mark.slow
@pytest.mark.parametrize("args", ENOUGH)
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(finished: Desk, args: list[str], tmp_path: Path) -> None:
    of_run, plain = args[0] in ("show", "diff"), args[0] == "init"
    given = [tmp_path / "s", "--yes"] if plain else [finished.run] if of_run else [finished.config]
    read, write = os.pipe()
    os.close(read)  # before a byte is written: every write fails, the last flush of a small output included
    program = [sys.executable, "-m", "skilltune.cli.main", args[0], *map(str, given), *args[1:]]
    ended = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_help_may_be_read_in_part() -> None:
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "skilltune.cli.main", "train", "--help"]
    ended = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.stderr == ""


def test_the_ledger_says_what_its_figures_are(finished: Desk) -> None:
    first = skilltune("show", finished.run, "--edits").stdout.splitlines()[0]
    assert first.startswith("Points that each rule of the best skill adds")


# -- the terminal


def test_what_was_stopped_on_purpose_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    for exit_code, word in ((2, "error"), (3, "error"), (4, "stopped")):
        Lines(stdout()).failed("it waits for an answer", exit_code)
        assert capsys.readouterr().err == f"{word}: it waits for an answer\n"


def test_the_end_of_a_training_names_the_report(finished: Desk) -> None:
    again = skilltune("train", finished.config).stdout
    assert f"next           skilltune show {finished.run}; skilltune report {finished.run}\n" in again


@pytest.mark.parametrize(("calls", "said"), [(0, "0 calls"), (1, "1 call"), (1234, "1,234 calls")])
def test_one_call_is_a_call(calls: int, said: str) -> None:
    assert describe_usage(Usage(calls)).startswith(f"{said}, ")


async def test_the_live_view_shows_step_score_and_cost_and_leaves_the_lines(desk: Desk) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, highlight=False, markup=False, soft_wrap=True)
    desk.world.latency = 0.01
    cfg, root = load_config(Path(desk.config))
    statuses: list[str] = []
    with Live(console) as view:

        def watch(type: str, data: Any) -> None:
            shown = Console(file=io.StringIO(), width=160)
            with shown.capture() as captured:
                shown.print(view.status())
            statuses.append(captured.get())

        result = await run_training(cfg, root, listeners=[view, watch], ready=view.ready)
    view.finished(result)
    assert "select: not measured yet" in statuses[0]
    assert any("scoring the input" in text and "left" in text for text in statuses[:5])
    assert any("step 1 of 2" in text and "select about 0 ± 5 %" in text for text in statuses)
    assert any("finishing" in text and "1 version" in text and "left" in text for text in statuses)
    assert "step 1 of 2 · accepted: " in out.getvalue()
    assert "\x1b[" in out.getvalue()


async def test_the_status_never_wraps_where_it_is_redrawn(desk: Desk) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=50, soft_wrap=True)
    cfg, root = load_config(Path(desk.config))
    view = Live(console)
    widths: list[int] = []

    def watch(type: str, data: Any) -> None:
        view("waiting", {"seconds": 2.0, "purpose": "target", "why": "a long reason " * 20})
        widths.extend(sum(part.cell_length for part in row) for row in console.render_lines(view.status(), pad=False))

    with view:
        await run_training(cfg, root, listeners=[view, watch], ready=view.ready)
    assert max(widths) == 49


def test_time_left_follows_the_estimate_and_then_the_pace_of_the_steps() -> None:
    budget = SimpleNamespace(spent=Usage())
    cfg = SimpleNamespace(train=SimpleNamespace(epochs=1, batch_size=10), certify=SimpleNamespace(attempts=1))
    splits = SimpleNamespace(train=[0] * 40, test=[0] * 10)
    now = [0.0]
    session: Any = SimpleNamespace(cfg=cfg, splits=splits, budget=budget)
    progress = Progress(session, clock=lambda: now[0], typical=100)
    assert progress.seconds_left() is None
    budget.spent, now[0] = Usage(calls=10), 5.0
    assert progress.seconds_left() == pytest.approx(90 / 2)
    assert progress.phase == "scoring the input"
    budget.spent, now[0] = Usage(calls=20), 20.0
    progress.hear("start", {"score": 0.5, "score_sd": 0.1, "select": 20})
    budget.spent, now[0] = Usage(calls=60), 60.0
    progress.hear("verdict", {"step": 1, "score": 0.5, "score_sd": 0.1, "accepted": False})
    assert progress.seconds_left() == pytest.approx(3 * 40 + 20)
    assert progress.phase == "step 2 of 4"
    progress.hear("stopping", {"reason": "nothing is left to learn"})  # only the certificate is still to come
    assert progress.seconds_left() == pytest.approx(20)
    assert progress.phase == "finishing"


def test_time_left_counts_what_earlier_lives_of_a_run_paid() -> None:
    budget = SimpleNamespace(spent=Usage(calls=60))
    cfg = SimpleNamespace(train=SimpleNamespace(epochs=1, batch_size=10), certify=SimpleNamespace(attempts=1))
    now = [0.0]
    session: Any = SimpleNamespace(cfg=cfg, splits=SimpleNamespace(train=[0] * 40, test=[0] * 10), budget=budget)
    progress = Progress(session, clock=lambda: now[0], typical=100)
    budget.spent, now[0] = Usage(calls=70), 10.0
    assert progress.seconds_left() == pytest.approx(30)
    budget.spent, now[0] = Usage(calls=95), 35.0  # more than expected: the certificate is still to come
    assert progress.seconds_left() == pytest.approx(20)


def test_the_end_of_a_training_shows_a_few_changed_lines() -> None:
    few = changed_lines("a\nb", "a\n\nc\n\x1b[2J", "skilltune diff RUN").plain
    assert few.splitlines() == ["  -b", "  +c", "  +\\x1b[2J", "  the whole difference: skilltune diff RUN"]
    many = changed_lines("", "\n".join(["x" * 300, *map(str, range(40))]), "skilltune diff RUN").plain.splitlines()
    assert len(many) == 10
    assert many[0].endswith("x…")
    assert many[-1] == "  … 32 more changed lines: skilltune diff RUN"
    assert "  --- a ---" in changed_lines("-- a ---", "b", "").plain  # a line of the skill is no header


def test_a_skill_cannot_drive_the_terminal() -> None:
    assert visible("a\x1b[2Jb\r\nc\rd\te") == "a\\x1b[2Jb\nc\\x0dd\te"
    assert "\x1b" not in difference("a", "a\n\x1b]0;gone\x07", ("old", "new")).plain


def test_a_long_skill_shows_only_what_changed_and_a_short_one_everything() -> None:
    long = [f"line {i}" for i in range(200)]
    changed = [*long[:100], "new", *long[100:]]
    assert difference("\n".join(long), "\n".join(changed), ("a", "b")).plain.count("\n") == 9
    assert "line 0" in difference("\n".join(long[:30]), "\n".join([*long[:30], "new"]), ("a", "b")).plain


def test_columns_line_up_with_wide_characters() -> None:
    assert columns(("a", "b"), [("日本", "x"), ("y", "z")]) == "a     b\n日本  x\ny     z"


def test_markup_in_a_skill_is_text(desk: Desk) -> None:
    (desk.root / "SKILL.md").write_text("# [bold]Desk[/nonsense]\n")
    result = skilltune("train", desk.config)
    assert result.exit_code == 0
    assert " # [bold]Desk[/nonsense]" in skilltune("diff", desk.run).stdout


@pytest.mark.slow
def test_stdout_that_cannot_encode_does_not_crash(desk: Desk) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "skilltune.cli.main", "check", desk.config]
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
