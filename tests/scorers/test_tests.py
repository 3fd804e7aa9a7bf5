"""The scorer `tests` runs a command over what a target left, and never takes a grader that did not run for a 0."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import venv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune import sandbox as sandbox_module
from skilltune.envs import Env
from skilltune.errors import JudgeError, NotGraded, UsageError
from skilltune.rollout import Artifact, Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.sandbox import Command, Limits, Policy, probe
from skilltune.scorers import build, evaluate
from skilltune.scorers.tests import _installation, laid_over, share_passed, wanted

pytestmark = pytest.mark.anyio
PYTHON = sys.executable
SAMPLE = Sample(id="s1", input="Write add(a, b).", target="def add(a, b):\n    return a + b\n")
GOOD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\n"
BAD = "```python\ndef add(a, b):\n    return a - b\n```"
HIDDEN = """
import unittest
from solution import add
class T(unittest.TestCase):
    def test_zero(self): self.assertEqual(add(2, 0), 2)
    def test_two(self): self.assertEqual(add(1, 1), 2)
"""

needs_sandbox = pytest.mark.skipif(probe().level == "none", reason="no sandbox holds here")


def rollout(answer: str) -> Rollout:
    return Rollout("s1", "", 0, Trajectory(answer), None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals/test_add.py").write_text(HIDDEN)
    (tmp_path / "samples.jsonl").write_text("SECRET")
    return tmp_path


def spec(command: str = "", **more: Any) -> dict[str, Any]:
    base = {"type": "tests", "command": command or f"{PYTHON} -m unittest -v", "answer": "solution.py"}
    return {**base, "files": {"test_add.py": "evals/test_add.py"}, "show": [sys.prefix, sys.base_prefix], **more}


async def graded(root: Path, text: str, **more: Any) -> Score:
    return await evaluate(build(spec(**more), root), SAMPLE, rollout(text))


@needs_sandbox
async def test_code_in_an_answer_is_tested(root: Path) -> None:
    good, bad = await graded(root, GOOD), await graded(root, BAD)
    assert (good.value, good.why) == (1.0, "the tests pass, 2 of 2 tests pass")
    assert (bad.value, bad.soft) == (0.0, 0.5)
    assert "1 of 2 tests pass" in bad.why
    assert "AssertionError: 0 != 2" in bad.why
    assert "skilltune-" not in bad.why
    assert (await graded(root, BAD)).why == bad.why


@needs_sandbox
async def test_the_check_of_an_env_tries_the_expected_answer(root: Path) -> None:
    env = Env([SAMPLE], spec(), root=root)
    assert await env.validate() == []
    wrong = Env([SAMPLE.model_copy(update={"target": BAD})], spec(), root=root)
    assert "its expected answer scores 0" in (await wrong.validate())[0]
    missing = Env([SAMPLE], spec(command=f"{PYTHON} -m no_such_module"), root=root)
    assert 'Python has no module "no_such_module"' in (await missing.validate())[0]


@needs_sandbox
@pytest.mark.parametrize("command", ["no-such-runner", f"{PYTHON} -m no_such_module", "/opt/no/such"])
async def test_a_grader_that_cannot_start_gives_no_score(root: Path, command: str) -> None:
    with pytest.raises(NotGraded, match="the tests did not run") as caught:
        await graded(root, GOOD, command=command)
    assert caught.value.outcome == "not_graded"
    assert isinstance(caught.value, JudgeError)


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os._exit(0)", "before they printed a summary"),
        ("import sys; sys.exit(0)", "before they printed a summary|exit code"),
        ("while True: pass", "passed a limit"),
        ("import os\nwhile True: os.fork()", "passed a limit"),
        ("x = []\nwhile True: x.append(bytearray(1_000_000) * 3)", "passed a limit|exit code"),
        (
            "import os; os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)",
            "Operation not permitted|No such process|exit code",
        ),
        ("raise SystemError('x' * 1_000_000)", "exit code"),
        ("syntax error", "exit code"),
        ("import sys, os; os.write(2, b'x: No module named unittest'); os._exit(1)", "exit code 1"),
        ("import os; os.write(2, b'skilltune cannot confine the command'); os._exit(126)", "exit code 126"),
        ("import os; os.write(2, b'bwrap: no'); os._exit(1)", "exit code 1"),
        ("import time, os\nif os.fork() == 0: time.sleep(60)", "exit code 1"),
    ],
)
async def test_hostile_code_scores_0(root: Path, code: str, why: str) -> None:
    score = await graded(root, f"```\n{code}\n```", timeout_s=3, memory_mb=300, processes=20)
    assert score.value == 0
    assert re.search(why, score.why), score.why
    assert len(score.why) < 2000


@needs_sandbox
async def test_code_sees_no_samples_no_keys_and_no_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    code = f"""
        import os, socket
        found = [key for key in os.environ if "KEY" in key]
        for attempt in (lambda: open({str(root / "samples.jsonl")!r}).read(), lambda: os.listdir({str(root)!r}),
                        lambda: open({str(root / "planted")!r}, "w"), 
                        lambda: socket.create_connection(("127.0.0.1", 22)),
                        lambda: os.listdir(os.path.dirname({str(root)!r}) + "/" + os.path.basename({str(root)!r}))):
            try:
                found += [attempt()] if attempt() else []
            except OSError:
                pass
        assert not found, found
        def add(a, b): return a + b
    """
    score = await graded(root, f"```\n{textwrap.dedent(code)}\n```")
    assert score.value == 1, score.why
    assert not (root / "planted").exists()


@needs_sandbox
async def test_a_hidden_file_replaces_what_the_target_wrote(root: Path) -> None:
    """An answer cannot be the test itself."""
    score = await graded(root, "```\nprint('Ran 9 tests in 0.1s')\n```", answer="test_add.py")
    assert score.value == 0
    assert "No module named 'solution'" in score.why


@needs_sandbox
async def test_a_script_can_be_the_command(root: Path) -> None:
    (root / "evals/run.sh").write_text("#!/bin/sh\ngrep -q add solution.py\n")
    hidden = build(spec("./run.sh", files={"run.sh": "evals/run.sh"}), root)
    assert (await evaluate(hidden, SAMPLE, rollout(GOOD))).value == 1
    assert (await evaluate(hidden, SAMPLE, rollout("no"))).value == 0
    own = build(spec("./main.sh", answer="main.sh", files={}), root)
    assert (await evaluate(own, SAMPLE, rollout("```\n#!/bin/sh\nexit 0\n```"))).value == 1
    missing = build(spec("./main.sh", files={}), root)
    score = await evaluate(missing, SAMPLE, rollout("x"))
    assert (score.value, score.why) == (0, "the target left no ./main.sh, which the tests run")


@needs_sandbox
async def test_the_files_of_a_sample_are_in_the_copy(root: Path) -> None:
    (root / "data.csv").write_text("1,2\n")
    sample = SAMPLE.model_copy(update={"files": {"in/data.csv": "data.csv"}})
    scorer = build(spec(command="cat in/data.csv solution.py", files={}), root)
    assert (await evaluate(scorer, sample, rollout("x"))).value == 1


def test_the_levels_that_scorers_ask_for_are_known(root: Path) -> None:
    plain = Env([Sample(id="1", input="x", target="x")], root=root)
    mixed = Env(
        [
            Sample(id="1", input="x", checks=({"type": "not", "check": spec(sandbox="none")},)),
            Sample(id="2", input="x"),
        ],
        {"type": "tests", "command": "true", "sandbox": "none"},
        root=root,
    )
    assert plain.sandboxes == []
    assert mixed.sandboxes == ["none"]
    assert list(wanted("tests:pytest -q")) == ["auto"]
    assert list(wanted({"type": "checks", "checks": [{"type": "tests", "sandbox": "bwrap"}, {"type": "exact"}]})) == [
        "bwrap"
    ]


@needs_sandbox
async def test_the_files_that_a_target_left_are_tested(root: Path) -> None:
    (root / "old.py").write_text("def add(a, b): return 0\n")
    sample = SAMPLE.model_copy(update={"files": {"solution.py": "old.py"}})
    scorer = build(spec(answer=""), root)
    for code, value in ((b"def add(a, b): return a + b\n", 1.0), (b"def add(a, b): return a\n", 0.0)):
        left = {"solution.py": code, "../outside": b"x", "a\\b": b"x", "test_add.py": b"print('Ran 1 test in 0.1s')"}
        trajectory = Trajectory("", artifacts={name: Artifact.of(data) for name, data in left.items()})
        assert (await evaluate(scorer, sample, Rollout("s1", "", 0, trajectory, None))).value == value
    assert (await evaluate(scorer, sample, rollout("I could not."))).value == 0


@needs_sandbox
async def test_a_file_that_the_target_deleted_is_not_in_the_copy(root: Path) -> None:
    """Neither one in a folder, nor one whose name is not written in the shortest way."""
    for name in ("old.txt", "sub/old.txt", "kept.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    given = Sample(
        id="s1", input="Tidy up.", files={"./old.txt": "old.txt", "sub/old.txt": "sub/old.txt", "k": "kept.txt"}
    )
    scorer = build({"type": "tests", "command": "sh -c 'ls *; exit 1'"}, root)
    tidy = Rollout("s1", "", 0, Trajectory("", deleted=("old.txt", "sub/old.txt")), None)
    assert (await evaluate(scorer, given, tidy)).why.endswith(": k")
    nothing = Rollout("s1", "", 0, Trajectory("done"), None)
    assert "left neither" in (await evaluate(scorer, given, nothing)).why


@needs_sandbox
async def test_a_shell_script_may_start_the_python_of_skilltune_in_a_hidden_home(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "executable", str(home / "venv/bin/python"))
    scored = await graded(root, GOOD, command=f"sh -c '{sys.executable} -m unittest -v'", show=[])
    assert scored.why == "the tests pass, 2 of 2 tests pass"


@pytest.mark.parametrize(("place", "whole"), [("project/bin", False), ("project/tools/bin", True), ("bin", False)])
def test_a_program_of_the_project_does_not_show_the_project(place: str, whole: bool, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    hidden = [(tmp_path / "project").resolve()]
    assert set(_installation("run", str(folder), hidden)) == {folder.parent if whole else folder}


def test_files_are_laid_over_others() -> None:
    base = {"a": b"1", "b/c": b"2", "d/e/f": b"3"}
    assert laid_over(base, {"a/x": b"4", "b": b"5"}) == {"d/e/f": b"3", "a/x": b"4", "b": b"5"}
    assert laid_over(base, {"/x": b"", "../x": b"", "": b"", "x/../../y": b"", ".git/config": b""}) == base
    assert laid_over(base, {"d/e/g": b"6", "a": b"7"}) == {**base, "a": b"7", "d/e/g": b"6"}


async def test_an_empty_answer_scores_0(root: Path) -> None:
    score = await graded(root, " \n", sandbox="none")
    assert (score.value, score.why) == (0.0, "the target left neither an answer nor files")


def test_a_folder_of_tests_is_part_of_the_fingerprint(root: Path) -> None:
    given = spec(files={"hidden": "evals"}, sandbox="none")
    before = build(given, root).fingerprint
    assert build(given, root).fingerprint == before
    assert build(given | {"timeout_s": 5}, root).fingerprint != before
    (root / "evals/more.py").write_text("")
    assert build(given, root).fingerprint != before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"command": ""}, "command"),
        ({"command": "   "}, "the command is empty"),
        ({"command": "x 'y"}, "cannot be read"),
        ({"files": {"t.py": "evals/none.py"}}, "there is no file evals/none.py"),
        ({"files": {"t.py": "../../etc/passwd"}}, "leads out of"),
        ({"files": {"../t.py": "evals/test_add.py"}}, "leads out of its workspace"),
        ({"answer": "/etc/x"}, "leads out of its workspace"),
        ({"timeout": 3}, 'no option "timeout" .did you mean "timeout_s"'),
        ({"sandbox": "jail"}, "sandbox"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_bad_options_are_named(root: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build({**spec(sandbox="none"), **changed}, root)


def test_code_of_a_model_is_not_run_unconfined_in_silence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.scorers.tests.probe", lambda wanted: sandbox_module.NONE)
    with pytest.raises(UsageError, match="install bubblewrap"):
        build(spec(), root)
    assert build(spec(sandbox="none"), root).name == "tests"


@pytest.mark.parametrize(
    ("output", "share"),
    [
        ("===== 1 failed, 2 passed in 0.12s =====", (2, 3)),
        ("3 passed in 0.01s", (3, 3)),
        ("1 failed, 2 passed, 1 skipped, 1 error, 1 warning in 61.20s (0:01:01)", (2, 4)),
        ("no tests ran in 0.01s", None),
        ("5 skipped in 0.1s", (0, 0)),
        ("1 passed in 0.1s\nnoise\n1 failed in 0.2s", (0, 1)),
        ("Ran 4 tests in 0.001s\n\nOK", (4, 4)),
        ("Ran 4 tests in 0.001s\n\nFAILED (failures=1, errors=2, skipped=1)", (1, 4)),
        ("1..3\nok 1 - a\nnot ok 2\nok 3 # SKIP x", (1, 2)),
        ("1..4\nok 1\nok 2\n", (2, 4)),
        ("TAP version 13\nok 1\nok 2 # TODO\n1..2", (1, 1)),
        ("all good", None),
        ("ok", None),
    ],
)
def test_summaries_are_read(output: str, share: tuple[int, int] | None) -> None:
    assert share_passed(output) == share


@given(st.text(alphabet="ok not123.#\n=pased,inRFAILED()", max_size=80))
def test_any_output_gives_a_share_or_none(output: str) -> None:
    share = share_passed(output)
    assert share is None or 0 <= share[0] <= share[1]


async def test_a_users_scorer_can_run_code_in_the_sandbox(tmp_path: Path) -> None:
    """It is awaited in an event loop of a thread, where asyncio has to wait for processes too."""

    async def prints_target(sample: Sample, rollout: Rollout) -> bool:
        command = Command(("/bin/sh", "-c", rollout.answer), tmp_path, {"PATH": os.defpath})
        ended = await probe().run(command, Policy(write=(tmp_path,)), Limits(10, processes=20))
        return ended.stdout == b"42\n"

    for answer, value in (("echo $((6 * 7))", 1.0), ("echo 41", 0.0)):
        assert (await evaluate(build(prints_target), SAMPLE, rollout(answer))).value == value
