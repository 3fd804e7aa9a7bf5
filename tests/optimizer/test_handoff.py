"""The optimizer as a folder: questions as files, answers as files, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from answering import answer
from skilltune.cli.main import app
from skilltune.config import make_config
from skilltune.edits import Edit, parse_edits
from skilltune.errors import Unanswered, UsageError
from skilltune.journal.run import FAILED, Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.models import Request, Schema, system, user
from skilltune.optimizer.answer import answer_by, doubts, open_questions
from skilltune.optimizer.handoff import POLL_S, SETTLED_S, Handoff, Question, in_use, questions, read_answer
from skilltune.optimizer.stage import SCHEMAS, Brief, load_prompt
from skilltune.preflight.check import check
from skilltune.scorers.json import violations
from skilltune.usage import Usage
from training import Trained, events, prepare, small, train
from world import World

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = {"optimizer.model": "handoff:answers", "train.epochs": 2}
RANK = '{"order": [1, 0]}'


def command(folder: Path, *flags: str) -> str:
    return shlex.join([sys.executable, str(HERE / "answering.py"), str(folder), *flags])


def cli(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, args)], input=stdin)


@contextmanager
def process(*args: object) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-m", "skilltune.cli.main", *map(str, args)]
    started = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def config(world: World, folder: Path, **optimizer: Any) -> Path:
    """A config whose optimizer is the folder `answers`, with its skill and samples."""
    prepare(world, folder)
    lines = [
        'skill = "SKILL.md"',
        '[env]\nsamples = "samples.jsonl"',
        f'[target]\nmodel = "openai@{world.url}/target"\nworkers = 16',
        '[optimizer]\nmodel = "handoff:answers"',
        *(f"{key} = {json.dumps(value)}" for key, value in optimizer.items()),
        "[train]\nepochs = 2\nbatch_size = 16\nminibatch_size = 4",
        "[gate]\nscreen = 24",
    ]
    path = folder / "skilltune.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


async def until(met: Any, seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.01)


async def trained_by(world: World, folder: Path, *flags: str, **settings: Any) -> Trained:
    """Train while a loop answers, both in this process."""
    loop = asyncio.create_task(answer_by(folder / "answers", command(folder, *flags), idle=30, say=lambda text: None))
    try:
        return await train(world, folder, {**SETTINGS, **settings})
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


def asked(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


# -- end to end


@pytest.mark.slow
async def test_a_program_that_reads_files_trains_a_skill(tmp_path: Path) -> None:
    with small() as world:
        done = await trained_by(world, tmp_path)
        assert done.result.exit_code == 0
        assert world.true_score(done.result.best.text) > 0.7
        assert world.calls.keys() == {"target"}
        before = len(asked(tmp_path))
        again = await train(world, tmp_path, SETTINGS)
        assert again.outcome == done.outcome
        assert len(asked(tmp_path)) == before, "a replay asks nothing"
    assert questions(tmp_path / "answers") == []
    assert len(list((tmp_path / "answers" / "done").glob("*.answer.json"))) == before
    assert not in_use(tmp_path / "answers")
    assert {Path(row["cwd"]).name.startswith("skilltune-answer-") for row in asked(tmp_path)} == {True}


@pytest.mark.slow
def test_train_in_one_process_answer_in_another_killed_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    outcomes = []
    with small() as world:
        for folder, kills in ((tmp_path / "undisturbed", 0), (tmp_path, 2)):
            path = config(world, folder)
            with process("answer", folder / "answers", "--loop", command(folder), "--idle", 20) as loop:
                for n in range(1, kills + 1):
                    with process("train", path) as run:
                        done = folder / "answers" / "done"
                        deadline = time.monotonic() + 60
                        while len(list(done.glob("*.md"))) < 2 * n and run.poll() is None:
                            assert time.monotonic() < deadline
                            time.sleep(0.005)
                        assert run.poll() is None, "it ended before it was killed"
                        run.send_signal(signal.SIGKILL)
                ended = cli("train", path)
                assert ended.exit_code == 0, ended.stdout + ended.stderr
                assert loop.poll() is None
                loop.send_signal(signal.SIGTERM)
                assert loop.wait(60) == 4
            with Run.open(next((folder / "runs").iterdir())) as run:
                outcomes.append([data["skill"] for _, _, data in run.events("verdict")])
            assert open_questions(folder / "answers") == []
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
def test_without_waiting_the_run_ends_resumable_until_all_is_answered(tmp_path: Path) -> None:
    with small() as world:
        path = config(world, tmp_path, wait=False)
        codes = []
        while not codes or codes[-1] == 4:
            ended = cli("train", path, "--json")
            codes.append(ended.exit_code)
            if codes[-1] == 4:
                assert json.loads(ended.stdout.splitlines()[-1])["exit_code"] == 4
                assert "skilltune answer" in ended.stderr
                looped = cli("answer", tmp_path / "answers", "--loop", command(tmp_path), "--idle", 0)
                assert looped.exit_code == 0, looped.stderr
        assert codes[-1] == 0
        assert len(codes) > 2
        assert not any(seen.sample and world.tickets[seen.sample].split == "test" for seen in world.requests[:80])


async def test_an_unanswered_question_certifies_nothing(tmp_path: Path) -> None:
    with small() as world:
        with pytest.raises(Unanswered, match=r"0001-reflect-\w{8}\.md waits for an answer"):
            await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
        split = {ticket.split for ticket in world.tickets.values() if ticket.id in {s.sample for s in world.requests}}
        assert "test" not in split
        open_now = open_questions(tmp_path / "answers")
        assert len(open_now) > 1, "all minibatches of a step are asked at once"
        with pytest.raises(Unanswered):
            await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
        assert open_questions(tmp_path / "answers") == open_now, "the same questions keep their names"


@pytest.mark.slow
async def test_bad_answers_are_moved_aside_with_a_reason_that_the_next_try_is_told(tmp_path: Path) -> None:
    with small() as world:
        done = await trained_by(world, tmp_path, "--bad")
        assert done.result.exit_code == 0
        replayed = await train(world, tmp_path, SETTINGS)
        assert replayed.outcome == done.outcome
        assert replayed.verdicts == done.verdicts
    folder = tmp_path / "answers" / "done"
    first = sorted(folder.glob("0001-*.refused-*.txt"))
    assert first[0].read_text() == "the answer holds no JSON object\n"
    assert "no citation holds" in first[1].read_text()
    told = [row["question"] for row in asked(tmp_path) if row["refused"] == 2]
    assert told
    assert all("no JSON object" in text and "no citation holds" in text for text in told if "diagnosis" in text)
    with Run.open(done.folder) as run:
        assert FAILED not in run.usage
        assert run.usage["optimizer"].calls == len(list(folder.glob("*.answer.json")))


async def test_answers_that_come_while_no_run_is_there_are_found(tmp_path: Path) -> None:
    with small() as world:
        with pytest.raises(Unanswered):
            await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
        first, second, *rest = open_questions(tmp_path / "answers")
        for question in (first, *rest):
            question.hand_in(json.dumps(answer(question.text())))
        second.file.with_suffix(".answer.md").write_text(
            f"My answer:\n```json\n{json.dumps(answer(second.text()))}\n```\n"
        )
        with pytest.raises(Unanswered):
            await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
        assert not {first, second, *rest} & set(questions(tmp_path / "answers"))
        assert (tmp_path / "answers" / ".gitignore").read_text() == "*\n"


@pytest.mark.slow
async def test_an_answer_that_is_still_being_written_is_not_refused(tmp_path: Path) -> None:
    with small() as world:
        run = asyncio.create_task(train(world, tmp_path, SETTINGS))
        try:
            await until(lambda: questions(tmp_path / "answers"))
            question = open_questions(tmp_path / "answers")[0]
            text = json.dumps(answer(question.text()))
            with question.file.with_suffix(".answer.json").open("w") as file:
                file.write(text[: len(text) // 2].rstrip('"}]'))
                file.flush()
                await asyncio.sleep(SETTLED_S + 4 * POLL_S)
                assert question.file.exists()
                assert "is not a whole JSON object" in question.refusals[0]
                file.write(text[len(text[: len(text) // 2].rstrip('"}]')) :])
            await until(lambda: not question.file.exists())
            assert not list((tmp_path / "answers").glob("**/*refused*"))
        finally:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run
        assert not in_use(tmp_path / "answers")


@pytest.mark.slow
async def test_two_loops_share_the_questions(tmp_path: Path) -> None:
    with small() as world:
        with pytest.raises(Unanswered):
            await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
        count = len(open_questions(tmp_path / "answers"))
        loops = [answer_by(tmp_path / "answers", command(tmp_path), idle=0, say=lambda text: None) for _ in range(2)]
        assert sum(await asyncio.gather(*loops)) == count == len(asked(tmp_path))


# -- the command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001-rank-0a1b2c3d.md").write_text("# A question\n\n## What to do\n\nRank.\n")
    (tmp_path / "0002-notes-0a1b2c3d.md").write_text("# Another\n\n## What to do\n\nNote.\n")
    (tmp_path / "README.md").write_text("not a question")
    return tmp_path


def test_the_command_lists_prints_and_files(folder: Path) -> None:
    listed = cli("answer", folder)
    assert [word for word in listed.stdout.split() if word[0] == "0"][:1] == ["0001-rank-0a1b2c3d"]
    assert "0002-notes-0a1b2c3d" in listed.stdout
    assert cli("answer", folder, "--next").stdout == (folder / "0001-rank-0a1b2c3d.md").read_text()
    (folder / "a.json").write_text(RANK)
    assert cli("answer", folder, "1", "--file", folder / "a.json").stdout == "answered 0001-rank-0a1b2c3d\n"
    assert json.loads((folder / "0001-rank-0a1b2c3d.answer.json").read_text()) == {"order": [1, 0]}
    assert cli("answer", folder, "0002-notes-0a1b2c3d", stdin='So: {"notes": "x"}').exit_code == 0
    nothing = cli("answer", folder, "--next")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "no run uses it" in cli("answer", folder).stdout


def test_a_question_and_what_is_said_of_it_cannot_drive_the_terminal(folder: Path) -> None:
    file = folder / "0001-rank-0a1b2c3d.md"
    file.write_text(file.read_text() + "\nAn answer: \x1b]0;gone\x07\x9b2J\u202e\n")
    (folder / "0001-rank-0a1b2c3d.refused-1.txt").write_text("not \x1b[31musable\n")
    for args in ([], ["--next"], ["1", "--file", folder / "no\x1b[2J.json"]):
        done = cli("answer", folder, *args)
        said = done.stdout + done.stderr
        assert not set(said) & {*map(chr, range(32)), "\x9b", "\u202e"} - {"\n"}
        assert "\\x1b" in said


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["1"], "[1, 0]", "holds no JSON object"),
        (["1"], '{"order": [', "is not a whole JSON object: Expecting value: line 1 column 12"),
        (["1"], '{"order": []', "is not a whole JSON object"),
        (["1"], 'First:\n```json\n{"order": []}\n```\nNo:\n```json\n{"order": [', "the last fenced block"),
        (["1"], '{"order": ' + 10**5 * "[", "is nested too deeply"),
        (["1"], '{"order": "first"}', 'rank.order should be array, is "first"'),
        (["1"], '{"order": [1], "why": "so"}', "rank.why is not allowed"),
        (["9"], RANK, 'no open question "9"; open are: 0001-rank-0a1b2c3d, 0002-notes-0a1b2c3d'),
        (["1", "--next"], RANK, "give one of NAME"),
        (["--file", "x"], "", "give one of NAME"),
        (["1", "--file", "nowhere"], "", "cannot read the answer"),
    ],
)
def test_an_answer_that_cannot_be_used_is_said_at_once(folder: Path, args: list[str], stdin: str, message: str) -> None:
    ended = cli("answer", folder, *args, stdin=stdin)
    assert (ended.exit_code, message in ended.stderr) == (2, True), ended.stderr
    assert len(open_questions(folder)) == 2


def test_an_answer_that_no_run_has_used_can_be_replaced(folder: Path) -> None:
    file = folder / "0001-rank-0a1b2c3d.answer.json"
    assert cli("answer", folder, "1", stdin=RANK).stdout == "answered 0001-rank-0a1b2c3d\n"
    again = cli("answer", folder, "1", stdin='{"order": [0]}')
    assert again.stdout == "answered 0001-rank-0a1b2c3d; it replaces an answer that no run had used\n"
    assert json.loads(file.read_text()) == {"order": [0]}
    file.with_suffix(".md").write_text("later")
    assert cli("answer", folder, "1", stdin=RANK).exit_code == 0
    assert not file.with_suffix(".md").exists()
    questions(folder)[0].file_away()
    used = cli("answer", folder, "1", stdin=RANK)
    assert (used.exit_code, '"1" (it is answered, and the answer used)' in used.stderr) == (2, True)


def test_a_broken_answer_by_hand_is_listed_with_its_fault_and_can_be_replaced(folder: Path) -> None:
    for broken, fault in (('{"order": [1,', "is not a whole JSON object"), ('{"order": 1}', "rank.order should be")):
        (folder / "0001-rank-0a1b2c3d.answer.json").write_text(broken)
        listed = cli("answer", folder).stdout
        assert "0001-rank-0a1b2c3d.answer.json: the answer" in listed
        assert fault in " ".join(cli("answer", folder, "--next").stdout.split())
        assert cli("answer", folder, "1", stdin=RANK).stdout == "answered 0001-rank-0a1b2c3d\n"
        assert "0001" not in cli("answer", folder).stdout


def test_an_answer_to_no_question_is_named(folder: Path) -> None:
    (folder / "0001.answer.json").write_text(RANK)
    listed = cli("answer", folder)
    assert listed.stderr.startswith("note: 0001.answer.json: it answers no open question")
    assert "0001-rank-0a1b2c3d" in listed.stdout


def test_a_folder_that_no_run_has_used_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    for more in ([], ["--next"], ["1"], ["--loop", "true", "--idle", 0]):
        ended = cli("answer", tmp_path, *more, stdin=RANK)
        assert (ended.exit_code, "holds no questions" in ended.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_a_command_that_fails_or_cannot_be_used_ends_the_loop(folder: Path) -> None:
    failed = cli("answer", folder, "--loop", "exit 7")
    assert (failed.exit_code, "exit code 7; 0001-rank-0a1b2c3d stays open" in failed.stderr) == (2, True)
    talks = cli("answer", folder, "--loop", "echo hello")
    assert talks.exit_code == 2
    assert "3 answers of the command to 0001-rank-0a1b2c3d could not be used" in talks.stderr
    assert len(open_questions(folder)[0].refusals) == 3
    shown = cli("answer", folder, "--next").stdout
    assert shown.count("could not be used\n\nthe answer holds no JSON object") == 3


async def test_pitfall_14_a_loop_that_ends_takes_all_its_processes_with_it(folder: Path) -> None:
    mark = folder / "pid"
    text = f"sh -c 'echo $$ > {shlex.quote(str(mark))}; sleep 600' & wait"
    loop = asyncio.create_task(answer_by(folder, text, idle=0, say=lambda text: None))
    await until(lambda: mark.exists() and mark.read_text().strip())
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop
    await until(lambda: not alive(int(mark.read_text())))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] != "Z"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    ended = cli("answer", tmp_path / "nowhere")
    assert (ended.exit_code, f"there is no folder {tmp_path / 'nowhere'}. A run" in ended.stderr) == (2, True)


# -- one question


@asynccontextmanager
async def asking(folder: Path, **settings: Any) -> AsyncIterator[tuple[asyncio.Task[str], list[str], Path]]:
    """A life of a run that asks for notes: the answer to come, and what it tells of its folder."""
    told: list[str] = []
    request = Request((system("Take notes."), user("x")), schema=Schema("notes", SCHEMAS["notes"]))
    with Run.open(folder / "run") as run:
        run.listeners.append(lambda type, data: told.append(data["refused"]) if type == "handoff" else None)
        handoff = Handoff(folder / "answers", run, Budget(Limits(), Usage()), **settings)
        handoff.open()
        task = asyncio.create_task(handoff.ask(Brief(request), lambda data: data["notes"]))
        try:
            yield task, told, folder / "answers"
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Unanswered):
                await task
            handoff.close()


@pytest.mark.slow
async def test_half_an_answer_is_waited_for_and_a_stray_one_told_of_once(tmp_path: Path) -> None:
    async with asking(tmp_path) as (task, told, folder):
        await until(lambda: told == [""])
        question = questions(folder)[0]
        (folder / "0009-notes.answer.json").write_text('{"notes": "x"}')
        half = question.file.with_suffix(".answer.json")
        half.write_text('{"notes": "a"')
        await until(lambda: len(told) == 3)
        await asyncio.sleep(3 * POLL_S)
        assert len(told) == 3
        assert any(text.startswith(f"{half.name}: the answer is not a whole JSON object") for text in told)
        assert any(text.startswith("0009-notes.answer.json: it answers no open question") for text in told)
        half.write_text('{"notes": "a"}')
        assert await asyncio.wait_for(task, 60) == "a"
        assert not list(folder.glob("**/*refused*"))


async def test_a_question_is_answered_in_its_folder_as_an_agent_does(tmp_path: Path) -> None:
    async with asking(tmp_path, wait=False) as (task, _, folder):
        with pytest.raises(Unanswered):
            await task
    (question,) = questions(folder)
    assert "Take notes." in (question.as_files / "README.md").read_text()
    place = question.as_files / "answer" / "answer.json"
    place.write_text('{"notes": 7}')
    assert question.refusals[0].startswith(f"{question.name}/answer/answer.json: the answer does not fit the schema")
    question.refuse(place.read_text(), "a number")
    assert not place.exists()
    assert "a number" in (question.as_files / "refused.md").read_text()
    place.write_text('{"notes": "b"}')
    async with asking(tmp_path, wait=False) as (task, _, _):
        assert await task == "b"
    assert questions(folder) == []
    assert (folder / "done" / question.name / "answer" / "answer.json").is_file()
    assert not question.as_files.exists()


@pytest.mark.parametrize("answered", [False, True])
async def test_an_open_question_of_an_older_version_keeps_working(answered: bool, tmp_path: Path) -> None:
    async with asking(tmp_path, wait=False) as (task, _, folder):
        with pytest.raises(Unanswered):
            await task
    (question,) = questions(folder)
    shutil.rmtree(question.as_files)  # older versions wrote the file only
    if answered:
        question.hand_in('{"notes": "b"}')
        async with asking(tmp_path, wait=False) as (task, _, _):
            assert await task == "b"
        return
    async with asking(tmp_path, wait=False) as (task, _, _):
        with pytest.raises(Unanswered):
            await task
    assert questions(folder) == [question]
    assert (question.as_files / "README.md").is_file()


async def test_a_run_that_does_not_wait_takes_no_half_answer_and_says_why(tmp_path: Path) -> None:
    async with asking(tmp_path, wait=False) as (task, _, folder):
        with pytest.raises(Unanswered):
            await task
    question = questions(folder)[0]
    question.file.with_suffix(".answer.json").write_text('{"notes": "a"')
    async with asking(tmp_path, wait=False) as (task, told, _):
        with pytest.raises(Unanswered, match=r"\.answer\.json: the answer is not a whole JSON object"):
            await task
        assert told == [""]
    question.hand_in('{"notes": "b"}')
    async with asking(tmp_path, wait=False) as (task, told, _):
        assert await task == "b"
        assert told == [], "it waits for nothing"


async def test_a_refusal_leaves_an_answer_that_came_meanwhile(folder: Path) -> None:
    question = questions(folder)[0]
    question.hand_in(RANK)
    question.refuse('{"order": []}', "older")
    assert question.answer is not None
    question.refuse(question.answer.read_text(), "this one")
    assert (question.answer, question.refusals) == (None, ["older", "this one"])


@pytest.mark.slow
async def test_the_second_answer_counts_as_the_second_in_another_life_of_the_run(tmp_path: Path) -> None:
    settings = {**SETTINGS, "optimizer.wait": False}
    with small() as world:
        with pytest.raises(Unanswered):
            await train(world, tmp_path, settings)
        question = next(q for q in open_questions(tmp_path / "answers") if answer(q.text())["edits"])
        said = answer(question.text())
        bad = {**said["edits"][0], "text": "Be bold.", "evidence": [{"sample": "t-0000", "quote": "of thin air"}]}
        text = json.dumps({**said, "edits": [*said["edits"], bad]})
        for seen in (1, 1):
            question.hand_in(text)
            with pytest.raises(Unanswered):
                await train(world, tmp_path, settings)
            assert len(list((tmp_path / "answers").glob(f"**/{question.name}.refused-*.txt"))) == seen
        assert not question.file.exists(), "the edits that hold are taken"
        await trained_by(world, tmp_path)
        again = await train(world, tmp_path, SETTINGS)
    said_by = [
        event for event in events(again.folder, "refused") if "of thin air" in str(event) or "Be bold" in str(event)
    ]
    assert len(said_by) == 2, "one for each answer, however many lives of the run read it"


@pytest.mark.slow
async def test_the_command_notes_what_does_not_stand_in_the_question(tmp_path: Path) -> None:
    with small() as world, pytest.raises(Unanswered):
        await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
    question = next(q for q in open_questions(tmp_path / "answers") if answer(q.text())["edits"])
    said = answer(question.text())
    assert doubts(question.text(), said) == []
    first = said["edits"][0]
    shown = first["evidence"][0]["sample"]
    said["edits"] = [
        {**first, "evidence": [{"sample": shown, "quote": "of thin air"}]},
        {**first, "evidence": [{"sample": "nobody", "quote": "x"}]},
        {**first, "op": "replace", "after": None, "target": "Never said."},
        {**first, "op": "replace", "after": None, "target": None},
    ]
    filed = cli("answer", tmp_path / "answers", question.name, stdin=json.dumps(said))
    notes = filed.stderr.splitlines()
    assert filed.exit_code == 0
    assert notes[0] == "note: edit 1: the trajectory that it names contains none of its quotes"
    assert notes[1] == 'note: edit 2: the question shows no sample "nobody"'
    assert notes[2].startswith("note: edit 3: not found: the text it names (`target` or `after`) is not in the skill")
    assert notes[3] == "note: edit 4: replace needs target"
    assert "optimizer.checks" in notes[4]


def test_a_word_that_is_not_among_the_allowed_is_named_plainly() -> None:
    edit = {"op": "remove", "after": None, "target": "x", "text": None, "why": "", "evidence": []}
    with pytest.raises(ValueError, match=r'op should be "add" or "replace" or "delete", is "remove"'):
        read_answer(json.dumps({"edits": [edit]}), "merge")


# -- the files


@pytest.mark.parametrize("stage", SCHEMAS)
def test_the_example_in_a_question_is_a_good_answer(stage: str) -> None:
    example = json.loads(load_prompt("examples.json"))[stage]
    assert list(violations(example, SCHEMAS[stage], stage)) == []
    edits = example.get("edits")
    assert all(isinstance(edit, Edit) for edit in parse_edits(edits if isinstance(edits, list) else None))


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())),
    st.sampled_from(["{}", "```json\n{}\n```", "Well:\n\n```\n{}\n```\nBye.", "It is {}.", "\ufeff {} "]),
)
def test_an_answer_is_found_in_whatever_surrounds_it(notes: dict[str, Any], around: str) -> None:
    data = {"notes": json.dumps(notes)}
    text = around.replace("{}", json.dumps(data, indent=1)).lstrip("\ufeff")
    assert read_answer(text, "notes") == data


@given(st.text(), st.sampled_from(sorted(SCHEMAS)))
def test_any_text_is_an_answer_or_refused_in_words(text: str, stage: str) -> None:
    try:
        read_answer(text, stage)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    ["```\n{" * 20_000, "```json\n{\n" * 20_000 + "```", "x ```" + "\n" * 100_000, "`" * 100_000, '{"a":' * 50_000],
)
def test_an_answer_made_to_hold_us_up_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="answer"):
        read_answer(text, "rank")
    assert time.process_time() - began < 2


async def test_a_question_holds_all_that_its_answer_needs_and_nothing_of_select_and_test(tmp_path: Path) -> None:
    with small() as world:
        with pytest.raises(Unanswered):
            await train(world, tmp_path, {**SETTINGS, "optimizer.wait": False})
        texts = [question.text() for question in open_questions(tmp_path / "answers")]
        hidden = [ticket for ticket in world.tickets.values() if ticket.split != "train"]
        assert not any(ticket.id in text or ticket.target in text for ticket in hidden for text in texts)
    for text in texts:
        heads = [line for line in text.splitlines() if line.startswith("## ")]
        assert heads[:5] == [
            "## How to answer",
            "## What to do",
            "## Schema of the answer",
            "## Example of an answer",
            "## The request",
        ]
        assert text.count("<trajectory ") >= 1
        assert (tmp_path / "answers").stat().st_mode & 0o077 == 0
    for question in open_questions(tmp_path / "answers"):
        files = {path.name: path.read_text() for path in question.as_files.glob("**/*") if path.is_file()}
        assert {"README.md", "skill.md", "schema.json", "example.json"} <= files.keys()
        shown = [line for line in files["README.md"].splitlines() if line.startswith("- `samples/")]
        assert len(shown) == question.text().count("<trajectory ")
        assert not any(ticket.id in text or ticket.target in text for ticket in hidden for text in files.values())
    assert "--file" not in Question(tmp_path / "answers", open_questions(tmp_path / "answers")[0].name).prompt()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"optimizer": {"model": "handoff:answers", "temperature": 0.5}},
            "optimizer.temperature is an option of models",
        ),
        ({"optimizer": {"model": "examples", "wait": False}}, "optimizer.wait=false needs optimizer.model=handoff"),
        ({"target": {"model": "handoff:answers"}}, "cannot be a target"),
        ({"optimizer": {"model": "handoff:skill/answers"}, "skill": "skill"}, "inside the skill's own folder"),
        ({"optimizer": {"model": "handoff:skill/answers"}, "skill": "skill/SKILL.md"}, "inside the skill's own folder"),
    ],
)
async def test_settings_that_nobody_would_look_at_are_refused(tmp_path: Path, tree: Any, message: str) -> None:
    with small() as world:
        prepare(world, tmp_path)
        (tmp_path / "skill").mkdir()
        (tmp_path / "skill" / "SKILL.md").write_text((tmp_path / "SKILL.md").read_text())
        (tmp_path / "skill" / "references").mkdir()
        (tmp_path / "skill" / "references" / "codes.md").write_text("None.\n")
        base = {
            "skill": "SKILL.md",
            "env": {"samples": "samples.jsonl"},
            "target": {"model": f"openai@{world.url}/target"},
        }
        found = await check(make_config({**base, **tree}), tmp_path)
        assert any(message in problem for problem in found.problems), found.problems
        assert not (tmp_path / "answers").exists()


async def test_a_check_counts_the_questions_and_makes_no_folder(tmp_path: Path) -> None:
    with small() as world:
        prepare(world, tmp_path)
        tree = {
            "skill": "SKILL.md",
            "env": {"samples": "samples.jsonl"},
            "target": {"model": f"openai@{world.url}/target"},
            "optimizer": {"model": "handoff:answers"},
        }
        found = await check(make_config(tree), tmp_path)
        assert found.problems == []
        assert found.estimate is not None
        assert found.estimate.optimizer_calls[1] > 0
        assert not (tmp_path / "answers").exists()


def test_a_folder_that_cannot_be_used_is_the_users_to_mend(tmp_path: Path) -> None:
    with small() as world:
        (tmp_path / "answers").write_text("a file")
        ended = cli("train", config(world, tmp_path))
        assert (ended.exit_code, "cannot use the folder" in ended.stderr) == (2, True)
        assert not world.calls


def test_a_missing_question_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Question(tmp_path, "0001-rank-0a1b2c3d").text()


@pytest.mark.parametrize("piece", ["x```\n{", "```\n{", "```\n", "```json\n{}\n"])
def test_an_odd_answer_is_read_in_linear_time(piece: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=r"JSON|schema|closed|nested"):
        read_answer(piece * 40_000, "merge")
    assert time.process_time() - began < 3
