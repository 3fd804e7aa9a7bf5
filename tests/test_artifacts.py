"""Files that a target leaves behind are kept in the journal, given to scorers, and shown to the optimizer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skilltune import Env, Score
from skilltune.envs import Task
from skilltune.errors import InfraStopped, MissingArtifact, NotGraded, RunError
from skilltune.journal.run import Run
from skilltune.optimizer.render import render_rollout
from skilltune.rollout import Artifact, Rollout, Trajectory, Turn, rollout_from_json, rollout_to_json
from skilltune.rollouts.roller import Roller
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.usage import Usage

pytestmark = pytest.mark.anyio
SKILL = Skill("Write it.")
ROWS = [{"id": f"s{i}", "input": f"q{i}", "target": f"line {i}"} for i in range(3)]


class Writer:
    """A target that writes files and says nothing."""

    fingerprint = "writer"

    def __init__(self, files: Callable[[Task], dict[str, bytes]], diff: str = "") -> None:
        self.files, self.diff, self.runs = files, diff, 0

    def guess(self, skill: Skill, task: Task) -> Usage:
        return Usage(calls=1)

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        self.runs += 1
        files = {path: Artifact.of(data) for path, data in self.files(task).items()}
        return Trajectory("", (Turn("assistant", "done"),), usage=Usage(calls=3), artifacts=files, diff=self.diff)


def lines(task: Task) -> dict[str, bytes]:
    return {"out.txt": task.id.replace("s", "line ").encode(), "log/raw.bin": b"\0\xff"}


def reads(sample: Sample, rollout: Rollout) -> Score:
    return Score(float(rollout.artifact("out.txt").decode() == sample.target), "as read")


async def test_a_scorer_in_its_own_thread_reads_files_and_a_resumed_run_has_them(tmp_path: Path) -> None:
    env, target, stored = Env(ROWS, reads), Writer(lines, "+line"), ""
    for _ in range(2):
        with Run.open(tmp_path) as run:
            rollouts = await Roller(target, env, run)(SKILL, env.samples)
            assert [rollout.score and rollout.score.value for rollout in rollouts] == [1, 1, 1]
            assert rollouts[1].artifact("out.txt") == b"line 1"
            assert rollouts[1].artifact("log/raw.bin") == b"\0\xff"
            assert rollouts[1].artifacts["log/raw.bin"].data is None  # read from the journal when it is asked for
            assert rollouts[1].trajectory.diff == "+line"
            assert run.usage["rollout"].calls == 9
            stored = json.dumps([value for _, value in run.answers("rollout")])
    assert target.runs == 3
    assert "log/raw.bin" in stored
    assert "line 1" not in stored.replace('"+line"', "")  # the content is a blob


async def test_a_file_that_the_target_did_not_write_scores_0_and_an_error_of_the_scorer_never_does(
    tmp_path: Path,
) -> None:
    def picky(sample: Sample, rollout: Rollout) -> float:
        if sample.id == "s2":
            raise LookupError("the scorer's own mistake")
        return float(rollout.artifact("report.md") == b"x")

    env = Env(ROWS, picky)
    with Run.open(tmp_path) as run:
        roll = Roller(Writer(lines), env, run)
        found = await roll(SKILL, env.samples[:2])
        assert [(r.score and r.score.value, r.outcome) for r in found] == [(0.0, "ok")] * 2
        assert found[0].score is not None
        assert found[0].score.why == 'the target wrote no file "report.md"; it wrote out.txt, log/raw.bin'
        with pytest.raises(InfraStopped, match="the scorer's own mistake"):
            await roll(SKILL, env.samples[2:])
    with pytest.raises(MissingArtifact, match="it wrote none"):
        Rollout("s", "", 0, Trajectory(""), None).artifact("a")


async def test_what_cannot_be_graded_is_left_out_and_is_no_score(tmp_path: Path) -> None:
    def grader(sample: Sample, rollout: Rollout) -> float:
        if sample.id == "s7":
            raise NotGraded("the expected workbook is torn")
        return 1.0

    many = [{"id": f"s{i}", "input": f"q{i}", "target": "t"} for i in range(20)]
    env, target = Env(many, grader), Writer(lines)
    with Run.open(tmp_path) as run:
        rollouts = await Roller(target, env, run)(SKILL, env.samples)
        (left_out,) = [data["samples"] for _, _, data in run.events("left out")]
    assert [rollout.sample for rollout in rollouts if not rollout.scored] == ["s7"]
    assert rollouts[7].outcome == "not_graded"
    assert left_out["s7"]["why"] == "the expected workbook is torn"
    assert target.runs == 20


async def test_a_repaired_scorer_reads_the_files_of_stored_answers(tmp_path: Path) -> None:
    def broken(sample: Sample, rollout: Rollout) -> float:
        raise ValueError("broken")

    target = Writer(lines)
    with Run.open(tmp_path) as run, pytest.raises(InfraStopped):
        env = Env(ROWS, broken)
        await Roller(target, env, run)(SKILL, env.samples)
    paid = target.runs
    with Run.open(tmp_path) as run:
        env = Env(ROWS, reads)
        rollouts = await Roller(target, env, run)(SKILL, env.samples[:paid])
    assert all(rollout.score and rollout.score.hard for rollout in rollouts)
    assert target.runs == paid


async def test_a_fork_has_the_files_of_the_answers_that_it_adopts(tmp_path: Path) -> None:
    env, target = Env(ROWS, reads), Writer(lines)
    with Run.open(tmp_path / "old") as old, Run.open(tmp_path / "new") as new:
        await Roller(target, env, old)(SKILL, env.samples)
        new.adopt(old)
        (rollout, *_) = await Roller(target, env, new)(SKILL, env.samples)
        assert new.blob("samples") is None
    with Run.open(tmp_path / "new") as new:
        (rollout, *_) = await Roller(target, env, new)(SKILL, env.samples)
        assert rollout.artifact("out.txt") == b"line 0"
    assert target.runs == 3


async def test_a_damaged_journal_is_an_error_and_never_a_score(tmp_path: Path) -> None:
    env, target = Env(ROWS, reads), Writer(lines)
    with Run.open(tmp_path) as run:
        (rollout, *_) = await Roller(target, env, run)(SKILL, env.samples)
        run._db.execute("DELETE FROM blob WHERE hash LIKE 'artifact:%'")
        with pytest.raises(RunError, match="no longer holds the content"):
            rollout.artifact("out.txt")


def test_a_rollout_survives_its_json_and_one_without_files_looks_as_it_did() -> None:
    plain = Rollout("s", "h", 0, Trajectory("x"), Score(1.0))
    assert not {"artifacts", "diff"} & rollout_to_json(plain).keys()
    files = {"a/b.txt": Artifact.of(b"one"), "empty": Artifact.of(b"")}
    rollout = replace(plain, trajectory=replace(plain.trajectory, artifacts=files, diff="-x"))
    blobs = {file.key: file.data for file in files.values()}
    read = rollout_from_json(json.loads(json.dumps(rollout_to_json(rollout))), blobs.get)
    assert read == rollout
    assert (read.artifact("a/b.txt"), read.artifact("empty")) == (b"one", b"")
    assert pickle.loads(pickle.dumps(rollout)) == rollout
    with pytest.raises(TypeError):
        rollout_from_json({**rollout_to_json(plain), "diff": 3})


def test_the_optimizer_is_shown_the_changed_files_within_its_room() -> None:
    (sample,) = Env([{"id": "s", "input": "q", "target": "t"}]).samples
    env = Env([sample])
    plain = Rollout("s", "h", 0, Trajectory("x", (Turn("user", "q"),)), Score(0.0, "no"))
    assert "Changed files" not in render_rollout(plain, sample, env, chars=4000, show_expected=True)
    files = {f"out/{i}.csv": Artifact.of(b"x" * i) for i in range(30)}
    diff = "\n".join(f"+row {i}" for i in range(5_000))
    rollout = replace(plain, trajectory=replace(plain.trajectory, artifacts=files, diff=diff))
    text = render_rollout(rollout, sample, env, chars=4000, show_expected=True)
    assert "Changed files: out/0.csv (0 bytes), out/1.csv (1 bytes)" in text
    assert "and 10 more" in text
    assert "+row 0\n" in text
    assert "+row 4999" in text
    assert "Scorer: no" in text
    assert len(text) < 4400
    long = replace(plain, trajectory=replace(plain.trajectory, artifacts={"x" * 9_000: Artifact.of(b"")}))
    assert len(render_rollout(long, sample, env, chars=2000, show_expected=True)) < 2400


async def test_a_diff_without_end_is_cut(tmp_path: Path) -> None:
    env = Env(ROWS, lambda sample, rollout: 1.0)
    with Run.open(tmp_path) as run:
        (rollout,) = await Roller(Writer(lines, "x" * 1_000_000), env, run)(SKILL, env.samples[:1])
    assert len(rollout.trajectory.diff) < 100_010


def test_a_score_of_the_answer_alone_gives_0_to_a_target_that_only_wrote_files() -> None:
    """Text scorers read the answer; checks look at each of their parts."""
    import asyncio

    wrote: Any = Rollout("s", "h", 0, Trajectory("", artifacts={"a": Artifact.of(b"x")}), None)
    (sample,) = Env([{"id": "s", "input": "q", "target": "t"}]).samples
    assert asyncio.run(Env([sample]).score(sample, wrote)).value == 0
