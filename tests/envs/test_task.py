"""A target sees a sample through a `Task`: the prompt, the files, the visible columns, and nothing else."""

from __future__ import annotations

import gc
import json
import pickle
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skilltune import Env
from skilltune.build import build_parts
from skilltune.config import make_config
from skilltune.envs import Task
from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.models import Image
from skilltune.rollout import Trajectory, Turn
from skilltune.rollouts.roller import Roller
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets.chat import with_skill
from skilltune.usage import Usage

SECRET = "zq-planted-7141"
NOT_DATA = (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType)


def reachable(start: object) -> Iterator[object]:
    """Everything that a program finds from an object: attributes, items, closures, defaults. Code and the globals of
    modules are left out, because every object of a process leads to those."""
    seen, queue = set[int](), [start]
    while queue:
        found = queue.pop()
        if id(found) in seen or isinstance(found, NOT_DATA):
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, types.FunctionType):
            queue += [*(found.__closure__ or ()), found.__defaults__, found.__kwdefaults__]
        else:
            queue += gc.get_referents(found)


def leaks(start: object) -> list[object]:
    return [
        found
        for found in reachable(start)
        if (isinstance(found, str) and SECRET in found)
        or (isinstance(found, bytes) and SECRET.encode() in found)
        or isinstance(found, Sample | Env)
    ]


def planted(folder: Path, **options: Any) -> Env:
    """Samples that carry the secret wherever a sample can carry one but in its input."""
    (folder / "in.csv").write_text("room,boxes\n4,9\n")
    (folder / "other.txt").write_text(SECRET)
    rows = [
        {
            "id": "s1",
            "input": "How many boxes?",
            "target": f"{SECRET} target",
            "checks": [{"type": "contains", "target": f"{SECRET} check"}],
            "metadata": {"language": "en", "note": f"{SECRET} note", "deep": {"list": [1, {"hint": "open"}]}},
            "files": {"data/in.csv": "in.csv"},
            "group": f"{SECRET} group",
        },
        {"id": "s2", "input": f"{SECRET} other", "target": "t", "files": {"o.txt": "other.txt"}},
    ]
    return Env(rows, root=folder, **options)


def test_pitfall_10_nothing_that_is_reachable_from_a_task_holds_an_answer_a_check_or_another_sample(
    tmp_path: Path,
) -> None:
    env = planted(tmp_path, visible=["language", "deep"])
    task = env.task(env.samples[0])
    assert leaks(env)  # the search finds what is there
    assert leaks(env.messages)
    assert leaks(lambda: env)
    assert not leaks(task)
    assert not leaks(pickle.loads(pickle.dumps(task)))
    assert (task.id, task.files) == ("s1", {"data/in.csv": b"room,boxes\n4,9\n"})
    assert [message.text for message in task.messages] == ["How many boxes?"]
    assert task.metadata == {"language": "en", "deep": {"list": [1, {"hint": "open"}]}}


def test_nothing_is_visible_by_default_and_what_a_target_changes_stays_in_its_task(tmp_path: Path) -> None:
    assert planted(tmp_path).task(planted(tmp_path).samples[0]).metadata == {}
    env = planted(tmp_path, visible=["deep"])
    task: Any = env.task(env.samples[0])
    task.metadata["deep"]["list"].append("mine")
    task.files.clear()
    assert env.task(env.samples[0]).metadata["deep"] == {"list": [1, {"hint": "open"}]}
    assert env.task(env.samples[0]).files
    with pytest.raises(AttributeError):
        task.id = "s2"


def test_the_prompt_of_a_chat_shows_the_files_that_a_workspace_holds(tmp_path: Path) -> None:
    (tmp_path / "plan.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}, {"content": "Read."}]
    env = Env([{"input": turns, "target": "t", "files": {"p.png": "plan.png", "a.txt": "a.txt"}}], root=tmp_path)
    task = env.task(env.samples[0])
    assert task.shown() == env.messages(env.samples[0])
    assert task.shown()[:2] == task.messages[:2]
    assert task.shown()[2].text == 'Read.\n\n<file path="a.txt">\none\ntwo\n</file>'
    assert task.shown()[2].images == (Image(b"\x89PNG", "image/png"),)
    assert with_skill("Rule.", task.shown())[0].text == "Rule."


class Curious:
    """A target that keeps what it is given."""

    fingerprint = "curious"

    def __init__(self) -> None:
        self.given: list[Any] = []

    def guess(self, skill: Skill, task: Task) -> Usage:
        self.given.append((skill, task))
        return Usage(calls=1)

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        self.given.append((skill, task, attempt))
        return Trajectory("9", (Turn("assistant", "9"),))


@pytest.mark.anyio
async def test_pitfall_10_a_target_in_a_run_is_given_tasks_only(tmp_path: Path) -> None:
    env, target = planted(tmp_path), Curious()
    with Run.open(tmp_path / "run") as run:
        await Roller(target, env, run)(Skill("x"), env.samples[:1])
    assert target.given
    assert not leaks(target.given)


# -- what may be visible


def test_a_visible_column_that_no_sample_has_is_refused_with_the_nearest() -> None:
    rows = [{"input": "q", "target": "t", "language": "en"}]
    with pytest.raises(UsageError, match=r'env.visible: no sample has the column "langage" \(did you mean "language"'):
        Env(rows, visible=["langage"])
    for name in ("target", "checks", "split", "id"):
        with pytest.raises(UsageError, match="never shown to a target"):
            Env(rows, visible=[name])


def test_what_is_visible_is_part_of_a_rollouts_key_and_its_order_is_not(tmp_path: Path) -> None:
    rows = [{"id": "a", "input": "q", "target": "t", "language": "en", "unit": "m"}]
    with Run.open(tmp_path) as run:
        visible: list[list[str]] = [[], ["language"], ["language", "unit"], ["unit", "language"]]
        rollers = [Roller(Curious(), Env(rows, visible=names), run) for names in visible]
        keys = [roll.key(Skill("x"), roll.env.samples[0], 0) for roll in rollers]
        answers = [roll.answer_key("x", roll.env.samples[0], 0) for roll in rollers]
    for found in (keys, answers):
        assert len({*found}) == 3
        assert found[2] == found[3]


def test_the_config_names_visible_columns_also_for_an_env_from_python(tmp_path: Path) -> None:
    rows = [{"input": f"q{i}", "target": "t", "language": "en"} for i in range(12)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = f"import skilltune as st\ndef made():\n    return st.Env({str(tmp_path / 'd.jsonl')!r})\n"
    (tmp_path / "env.py").write_text(made)
    for samples in ("d.jsonl", "env.py:made"):
        tree = {
            "env": {"samples": samples, "visible": ["language"]},
            "target": {"model": "openai@http://127.0.0.1:9/v1/m"},
        }
        with Run.open(tmp_path / f"run of {samples}") as run:
            parts = build_parts(make_config(tree), run, tmp_path, skill=Skill("x"))
            assert parts.env.task(parts.env.samples[0]).metadata == {"language": "en"}


# -- files of a sample


@pytest.mark.parametrize("way", ["absolute", "up", "link", "folder link"])
def test_a_file_outside_of_the_samples_folder_is_refused(tmp_path: Path, way: str) -> None:
    home, secret = tmp_path / "home", tmp_path / "out" / "secret.txt"
    for path in (home, secret.parent):
        path.mkdir()
    secret.write_text(SECRET)
    (home / "link.txt").symlink_to(secret)
    (home / "folder").symlink_to(secret.parent)
    named = {
        "absolute": str(secret),
        "up": "../out/secret.txt",
        "link": "link.txt",
        "folder link": "folder/secret.txt",
    }[way]
    row = {"id": "a", "input": "q", "target": "t", "files": {"in.txt": named}}
    with pytest.raises(
        UsageError, match=r'sample "a": .* leads out of .*/home, the folder of the samples: copy the file'
    ):
        Env([row], root=home)


def test_a_link_that_is_changed_after_the_check_is_not_followed_out(tmp_path: Path) -> None:
    home, secret = tmp_path / "home", tmp_path / "secret.txt"
    home.mkdir()
    (home / "in.txt").write_text("fine")
    secret.write_text(SECRET)
    env = Env([{"id": "a", "input": "q", "target": "t", "files": {"in.txt": "in.txt"}}], root=home)
    (home / "in.txt").unlink()
    (home / "in.txt").symlink_to(secret)
    with pytest.raises(UsageError, match="leads out of"):
        env.task(env.samples[0])


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", ".git/hooks/post-commit", "a\0b"])
def test_a_name_that_is_no_path_inside_a_workspace_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in.txt").write_text("x")
    with pytest.raises(UsageError, match=r'sample "a": files: .* is not a path inside a workspace'):
        Env([{"id": "a", "input": "q", "target": "t", "files": {name: "in.txt"}}], root=tmp_path)


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x")
    files = {"a/b/c": "in.txt", "a/b": "in.txt"}
    with pytest.raises(UsageError, match='"a/b" is a file, so "a/b/c" has no place'):
        Env([{"id": "a", "input": "q", "target": "t", "files": files}], root=tmp_path)


def test_the_content_and_the_name_of_a_file_are_part_of_a_rollouts_key(tmp_path: Path) -> None:
    """Also of a file that no message shows."""

    def key(data: bytes, name: str = "in.bin", path: str = "f") -> str:
        (tmp_path / path).write_bytes(data)
        env = Env([{"id": "a", "input": "q", "target": "t", "files": {name: path}}], root=tmp_path)
        return roller(env).key(Skill("x"), env.samples[0], 0)

    with Run.open(tmp_path / "run") as run:

        def roller(env: Env) -> Roller:
            return Roller(Curious(), env, run)

        first = key(b"\0\1\2")
        assert key(b"\0\1\2") == first
        assert len({first, key(b"\0\1\3"), key(b""), key(b"\0\1\2", "other.bin")}) == 4
