"""A workspace is fresh, and its result is read without trusting what is in it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune import workspace
from skilltune.errors import UsageError
from skilltune.workspace import (
    Workspace,
    changes,
    checked_files,
    close_workspace,
    close_workspaces,
    open_workspace,
    require_space,
)

FILES = {"a.txt": b"one\ntwo\n", "data/b.csv": b"1,2\n", "data/c.bin": bytes(range(256))}


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path / "ws", "target:skill:s1:0", FILES)


def git(space: Workspace, *arguments: str) -> str:
    run = subprocess.run(("git", *arguments), cwd=space.work, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_a_workspace_holds_the_files_in_a_first_commit(space: Workspace) -> None:
    assert {
        str(p.relative_to(space.work)) for p in space.work.rglob("*") if p.is_file() and ".git" not in p.parts
    } == set(FILES)
    assert git(space, "status", "--porcelain") == ""
    assert git(space, "log", "--format=%an %s") == "skilltune Start"
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in (space.root, space.work, space.home, space.tmp))
    assert os.listdir(space.home) == []
    none = changes(space)
    assert (none.files, none.deleted, none.skipped, none.diff) == ({}, (), (), "")


def test_the_path_and_the_commit_depend_only_on_the_key_and_the_files(tmp_path: Path) -> None:
    first = open_workspace(tmp_path, "k", FILES)
    commit = git(first, "rev-parse", "HEAD")
    again = open_workspace(tmp_path, "k", FILES)
    assert (again.root, git(again, "rev-parse", "HEAD")) == (first.root, commit)
    assert open_workspace(tmp_path, "k2", FILES).root != first.root
    assert len(first.root.name) == 13


def test_remains_of_an_earlier_attempt_are_removed(tmp_path: Path) -> None:
    first = open_workspace(tmp_path, "k", FILES)
    for folder in (first.work, first.home, first.tmp):
        (folder / "left").write_text("x")
    again = open_workspace(tmp_path, "k", {})
    assert not any((folder / "left").exists() for folder in (again.work, again.home, again.tmp))
    assert changes(again).files == {}


def test_the_users_git_configuration_does_not_leak_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, marker = tmp_path / "home", tmp_path / "ran"
    (home / "hooks").mkdir(parents=True)
    (home / "template/hooks").mkdir(parents=True)
    for folder in (home / "hooks", home / "template/hooks"):
        (folder / "pre-commit").write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
        (folder / "pre-commit").chmod(0o755)
    (home / "ignore").write_text("*.txt\n")
    (home / ".gitconfig").write_text(
        f"[user]\nname = The User\nemail = u@example.org\n"
        f"[core]\nhooksPath = {home}/hooks\nexcludesFile = {home}/ignore\n"
        f"autocrlf = true\n[init]\ntemplateDir = {home}/template\ndefaultBranch = other\n[commit]\ngpgsign = true\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    space = open_workspace(tmp_path / "ws", "k", FILES)
    monkeypatch.delenv("GIT_DIR")
    assert git(space, "log", "--format=%an|%cn|%D") == "skilltune|skilltune|HEAD -> main"
    assert git(space, "ls-files").split() == sorted(FILES)
    assert not marker.exists()
    assert os.listdir(space.work / ".git/hooks" if (space.work / ".git/hooks").exists() else space.home) == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "", ".", "a\\b", "x\0y", ".git/config", "sub/.GIT/hooks/x", "a/.."]
)
def test_a_file_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="of a sample"):
        open_workspace(tmp_path / "ws", "k", {name: b""})
    assert not (tmp_path / "ws").exists()


def test_files_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='"a" of a sample is a file, and the folder of "a/b"'):
        checked_files({"a/b": b"", "a": b""})
    with pytest.raises(UsageError, match="twice"):
        checked_files({"a": b"", "./a": b""})


# -- changes


def test_changes_are_files_deletions_and_a_diff(space: Workspace) -> None:
    (space.work / "a.txt").write_bytes(b"one\n2\n")
    (space.work / "data/c.bin").write_bytes(bytes(256))
    (space.work / "data/b.csv").unlink()
    (space.work / "new/deep").mkdir(parents=True)
    (space.work / "new/deep/n.md").write_text("# N\n")
    found = changes(space)
    assert found.files == {"a.txt": b"one\n2\n", "data/c.bin": bytes(256), "new/deep/n.md": b"# N\n"}
    assert (found.deleted, found.skipped) == (("data/b.csv",), ())
    for line in (
        "-two",
        "+2",
        "-1,2",
        "+# N",
        "--- a/a.txt",
        "+++ b/new/deep/n.md",
        "Binary files a/data/c.bin and b/data/c.bin differ",
    ):
        assert line in found.diff.splitlines()
    assert str(space.root) not in found.diff


@pytest.mark.parametrize("way", ["removed", "corrupt", "committed", "hooks", "a file", "a link"])
def test_an_agents_git_is_not_trusted(space: Workspace, tmp_path: Path, way: str) -> None:
    ran = tmp_path / "ran"
    (space.work / "a.txt").write_text("changed\n")
    (space.work / ".gitignore").write_text("*\n")
    (space.work / ".gitattributes").write_text("* diff=evil filter=evil -diff\n")
    if way in ("removed", "a file", "a link"):
        shutil.rmtree(space.work / ".git")
    if way == "a file":
        (space.work / ".git").write_text("gitdir: /etc\n")
    if way == "a link":
        (space.work / ".git").symlink_to(tmp_path)
    if way == "corrupt":
        (space.work / ".git/HEAD").write_bytes(b"\0garbage")
        (space.work / ".git/index").write_bytes(b"\0")
    if way == "committed":
        git(space, "-c", "user.name=a", "-c", "user.email=b", "commit", "-aqm", "x")
    if way == "hooks":
        (space.work / ".git/config").write_text(
            f'[core]\nfsmonitor = touch {ran}\n[diff]\nexternal = touch {ran}\n[diff "evil"]\ntextconv = touch {ran}\n'
        )
    found = changes(space)
    assert found.files.keys() == {"a.txt", ".gitignore", ".gitattributes"}
    assert "+changed" in found.diff
    assert not ran.exists()


def test_links_and_special_files_are_neither_followed_nor_read(space: Workspace, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "s.txt").write_text("SECRET")
    (space.work / "file-link").symlink_to(secret / "s.txt")
    (space.work / "folder-link").symlink_to(secret)
    (space.work / "loop").symlink_to(".")
    (space.work / "a.txt").unlink()
    (space.work / "a.txt").symlink_to(secret / "s.txt")
    shutil.rmtree(space.work / "data")
    (space.work / "data").symlink_to(secret)
    os.mkfifo(space.work / "fifo")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.path.relpath(space.work / "sock"))
    began = time.monotonic()
    found = changes(space)
    sock.close()
    assert time.monotonic() - began < 60
    assert found.files == {}
    assert found.deleted == tuple(sorted(FILES))
    assert {reason.partition(":")[0] for reason in found.skipped} == {
        "a.txt",
        "data",
        "fifo",
        "file-link",
        "folder-link",
        "loop",
        "sock",
    }
    assert "SECRET" not in found.diff


def test_a_workspace_replaced_by_a_link_is_not_followed(space: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(space.work)
    space.work.symlink_to("/etc")
    found = changes(space)
    assert (found.files, found.deleted) == ({}, tuple(FILES))
    assert "replaced" in found.skipped[0]
    close_workspace(space)
    assert not space.root.exists()


def test_a_sparse_file_of_ten_gigabytes_is_not_read(space: Workspace) -> None:
    for name in ("a.txt", "new.bin"):
        with open(space.work / name, "wb") as file:
            file.truncate(10_000_000_000)
    (space.work / "small").write_text("kept")
    began = time.process_time()
    found = changes(space)
    assert time.process_time() - began < 2
    assert found.files == {"small": b"kept"}
    assert (found.deleted, found.lost) == ((), ("a.txt",))
    assert all("10.0 GB" in reason for reason in found.skipped)
    assert len(found.skipped) == 2


def test_number_and_size_are_bounded_and_changed_files_come_first(space: Workspace) -> None:
    for number in range(300):
        (space.work / f"{number:03}").write_bytes(b"x" * 100)
    (space.work / "data/b.csv").write_text("changed")
    found = changes(space, most_files=10)
    assert len(found.files) == 10
    assert "data/b.csv" in found.files
    assert found.skipped[-1] == "and 191 more"
    assert sum(map(len, changes(space, most_bytes=1000).files.values())) <= 1000


def test_the_diff_is_bounded(space: Workspace) -> None:
    (space.work / "long").write_text("".join(f"line {number}\n" for number in range(100_000)))
    found = changes(space, most_diff=5000)
    assert len(found.diff) < 5200
    assert found.diff.endswith("cut]\n")


def test_folders_of_tools_are_no_result_unless_they_were_there(tmp_path: Path) -> None:
    space = open_workspace(tmp_path, "k", {"node_modules/x.js": b"1"})
    (space.work / "node_modules/x.js").write_text("2")
    (space.work / "__pycache__").mkdir()
    (space.work / "__pycache__/m.pyc").write_text("x")
    found = changes(space)
    assert found.files == {"node_modules/x.js": b"2"}
    assert found.skipped == ("__pycache__/: the folder of a tool; it is not read",)


def test_odd_names_and_modes(space: Workspace) -> None:
    (space.work / "with\nnewline").write_text("n")
    (space.work / "--option").write_text("o")
    (space.work / "umläut").write_text("u")
    with open(os.fsencode(space.work) + b"/\xff", "w") as file:
        file.write("?")
    (space.work / "closed").mkdir()
    (space.work / "closed/in").write_text("i")
    (space.work / "closed/in").chmod(0)
    (space.work / "closed").chmod(0)
    found = changes(space)
    assert found.files.keys() == {"with\nnewline", "--option", "umläut", "closed/in"}
    assert len(found.skipped) == 1
    assert "not UTF-8" in found.skipped[0]


def test_many_entries_end_in_bounded_time(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MOST_ENTRIES", 50)
    for number in range(100):
        (space.work / f"f{number:03}").touch()
    found = changes(space)
    assert any("more than 50" in reason for reason in found.skipped)
    assert len(found.files) <= 51


@pytest.mark.slow
def test_a_very_deep_tree_is_bounded_and_removed(space: Workspace) -> None:
    here = os.getcwd()
    try:
        os.chdir(space.work)
        for _ in range(1500):
            os.mkdir("deep")
            os.chdir("deep")
    finally:
        os.chdir(here)
    assert changes(space).files == {}
    close_workspace(space)
    assert not space.root.exists()


# -- clean-up and space


def test_close_removes_whatever_was_left_and_follows_no_link(space: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("k")
    (space.work / "link").symlink_to(outside)
    (space.work / "x/y/z").mkdir(parents=True)
    (space.work / "x/y/z/f").touch()
    for folder in ("x/y/z", "x/y", "x"):
        (space.work / folder).chmod(0)
    close_workspace(space)
    assert not space.root.exists()
    assert (outside / "keep").exists()
    close_workspace(space)


def test_remains_of_a_killed_process_are_removed_and_nothing_else(space: Workspace) -> None:
    parent = space.root.parent
    (parent / "notes").mkdir()
    (parent / "w0123").mkdir()
    close_workspaces(parent)
    assert sorted(os.listdir(parent)) == ["notes", "w0123"]
    close_workspaces(parent / "missing")


def test_a_full_disk_is_said_before_anything_is_spent(tmp_path: Path) -> None:
    require_space(tmp_path / "not/yet/there", 1000)
    with pytest.raises(UsageError, match=r"are free, and the workspaces need 1000000000\.2 GB"):
        require_space(tmp_path, 10**18)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be created"):
        open_workspace(tmp_path / "file/ws", "k", {})


def test_a_missing_git_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="install git"):
        open_workspace(tmp_path / "ws", "k", {})


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=12), st.binary(max_size=8), max_size=6))
def test_any_names_are_refused_or_come_back(files: dict[str, bytes]) -> None:
    try:
        checked = checked_files(files)
    except UsageError:
        return
    assert sorted(checked.values()) == sorted(files.values())
    assert checked_files(checked) == checked
