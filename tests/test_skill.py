import hashlib
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.build import load_skill
from skilltune.config import make_config
from skilltune.errors import UsageError
from skilltune.skill import Skill

FRONT = "---\nname: totals\ndescription: Adds {amounts} up.\n---\n"


def folder(root: Path, text: str = FRONT + "# Totals\n", name: str = "totals") -> Path:
    path = root / name
    path.mkdir()
    (path / "SKILL.md").write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "frontmatter"),
    [
        ("", ""),
        ("# A\n", ""),
        ("\ufeff# A\n", ""),
        (FRONT + "# A\n", FRONT),
        ("\ufeff" + FRONT + "# A", "\ufeff" + FRONT),
        ("---\r\nname: x\r\n---\r\nbody\r\n", "---\r\nname: x\r\n---\r\n"),
        ("---\nname: x\n---", "---\nname: x\n---"),
        ("---\n---\nbody", "---\n---\n"),
        ("---\na: 1\n--- \nbody\n---\nrest", "---\na: 1\n--- \n"),
        ("---\nnever closed\n", ""),
        ("---\na: '\n ---\n'\n----\n", ""),
        ("\n---\na: 1\n---\n", ""),
    ],
)
def test_frontmatter_is_a_view_of_the_text(text: str, frontmatter: str) -> None:
    skill = Skill.parse(text)
    assert skill.frontmatter == frontmatter
    assert skill.frontmatter + skill.body == text


@given(st.text())
def test_frontmatter_and_body_always_make_the_text(text: str) -> None:
    for document in (text, "---\n" + text, "\ufeff---\r\n" + text + "\r\n---\r\n" + text):
        skill = Skill.parse(document)
        assert skill.frontmatter + skill.body == document
        assert skill.with_text(skill.frontmatter + "x").body == "x"
        assert skill.with_text(document) == skill


@pytest.mark.slow
@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8")), st.dictionaries(st.sampled_from(["a/b.txt", "c.bin"]), st.binary()))
def test_saved_and_loaded_again_every_byte_is_the_same(text: str, files: dict[str, bytes]) -> None:
    """Pitfall 18: braces, CRLF, BOM, emoji, no final newline."""
    with tempfile.TemporaryDirectory() as root:
        document = Path(root) / "notes.md"
        Skill.parse(text).save(document)
        assert document.read_bytes() == text.encode()
        assert Skill.load(document) == Skill(text, "notes")
        skill = Skill(text, "totals", files, folder=True)
        skill.save(Path(root) / "totals")
        assert Skill.load(Path(root) / "totals") == skill
        assert not list(Path(root).rglob("*.tmp"))


def test_frontmatter_keeps_order_and_comments(tmp_path: Path) -> None:
    text = "---\n# ours\nname:   totals\nallowed-tools: [b, a]\ndescription: >\n  {x}\n---\r\nBody\r\n"
    path = folder(tmp_path, text)
    old = Skill.load(path)
    old.with_text(f"{old.frontmatter}Other\r\n").save(path)
    assert (path / "SKILL.md").read_bytes().decode() == text.replace("Body", "Other")


def test_missing_path_and_empty_file_are_empty_skills_that_save_creates(tmp_path: Path) -> None:
    new = Skill.load(tmp_path / "deep" / "totals")
    assert (new.text, new.name, new.folder) == ("", "totals", True)
    new.with_text(f"{new.frontmatter}# T\n").save(tmp_path / "deep" / "totals")
    assert (tmp_path / "deep" / "totals" / "SKILL.md").read_text() == "# T\n"
    document = Skill.load(tmp_path / "best_skill.md")
    assert (document.text, document.name, document.folder) == ("", "best_skill", False)
    (tmp_path / "empty.md").touch()
    assert Skill.load(tmp_path / "empty.md").text == ""
    assert Skill.load(folder(tmp_path, "", "void")).text == ""


@pytest.mark.parametrize(
    ("text", "beside", "files"),
    [
        ("# Totals\n", "scripts/a.py", True),
        ("# Totals\n", "references/deep/a.md", True),
        ("See [forms](./forms.md).\n", "forms.md", True),
        ("Look into data/ first.\n", "data/a.csv", True),
        ("# Totals\n", "README.md", False),  # a project with a SKILL.md in it must not ship with it
        ("Write README.mdx files, be data/driven.\n", "README.md", False),
        ("The runs/ and evals/ are ours.\n", "evals/evals.json", False),
    ],
)
def test_a_skill_md_means_its_folder_where_the_files_beside_it_belong_to_it(
    tmp_path: Path, text: str, beside: str, files: bool
) -> None:
    path = folder(tmp_path, FRONT + text)
    (path / beside).parent.mkdir(parents=True, exist_ok=True)
    (path / beside).write_text("more")
    skill = Skill.load(path / "SKILL.md")
    assert skill == (Skill.load(path) if files else Skill(FRONT + text, path.name))
    assert list(skill.files) == [beside] * files


@pytest.mark.parametrize("named", [".", "SKILL.md"])
@pytest.mark.parametrize("samples", ["tasks.jsonl", "env.py:tasks", "hf:tasks/@train"])
def test_what_the_config_names_is_set_apart(tmp_path: Path, named: str, samples: str) -> None:
    path = folder(tmp_path)
    mine = {"tasks.jsonl": "tasks.jsonl", "env.py:tasks": "env.py", "hf:tasks/@train": "tasks/a.parquet"}[samples]
    for name in ("scripts/a.py", mine, "grade.py", "answers/1.json"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    env = {"samples": samples, "score": "python:grade.py:fn"}
    cfg = make_config({"skill": named, "env": env, "optimizer": {"model": "handoff:answers"}})
    assert list(load_skill(cfg, path).files) == ["scripts/a.py"]


def test_a_document_called_skill_md_is_named_after_its_folder(tmp_path: Path) -> None:
    assert Skill.load(folder(tmp_path) / "SKILL.md").name == "totals"


def test_folder_without_skill_md_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UsageError, match=r"No SKILL\.md.*readme\.txt"):
        Skill.load(tmp_path)


def test_text_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match=r"a\.md is not UTF-8 \(byte 0\)"):
        Skill.load(tmp_path / "a.md")


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "inner.txt").write_text("in")
    (path / "alias.txt").symlink_to("inner.txt")
    assert Skill.load(path).files == {"inner.txt": b"in", "alias.txt": b"in"}
    (tmp_path / "secret").write_text("out")
    (path / "leak.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=r"leak\.txt is a link out of"):
        Skill.load(path)


def test_linked_folders_cannot_loop(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "self").symlink_to(path)
    with pytest.raises(UsageError, match="linked folder"):
        Skill.load(path)


def test_a_whole_project_is_not_read_into_memory(tmp_path: Path) -> None:
    path = folder(tmp_path)
    with (path / "weights.bin").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UsageError, match="more than 64 MiB"):
        Skill.load(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", ".", "", "link/evil"])
def test_file_names_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Pitfall 17."""
    root = tmp_path / "totals"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="outside"):
        Skill("", "totals", {"a.txt": b"", name: b"x"}, folder=True).save(root)
    assert not (root / "a.txt").exists()
    assert not (tmp_path / "evil").exists()


def test_scripts_stay_executable_and_other_files_stay(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "run.sh").write_bytes(b"#!/bin/sh\n")
    (path / "plain.txt").write_bytes(b"text")
    (path / "plain.txt").chmod(0o640)
    skill = Skill.load(path)
    (path / "theirs.log").touch()
    skill.save(path)
    assert (path / "theirs.log").exists()
    assert stat.S_IMODE((path / "plain.txt").stat().st_mode) == 0o640
    skill.save(tmp_path / "copy")
    assert os.access(tmp_path / "copy" / "run.sh", os.X_OK)
    assert not (tmp_path / "copy" / "plain.txt").stat().st_mode & stat.S_IXUSR


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 13."""
    path = tmp_path / "a.md"
    path.write_text("old")

    def broken(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        Skill.parse("new").save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.md"]


def test_saving_to_the_wrong_kind_of_place_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is a folder"):
        Skill.parse("x").save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="it is a file"):
        Skill("x", folder=True).save(tmp_path / "file")
    with pytest.raises(UsageError, match="not Unicode"):
        Skill.parse("\ud800").save(tmp_path / "a.md")


def test_hash_is_of_content_only() -> None:
    skill = Skill("a", "one", {"x": b"1", "y": b"2"}, folder=True)
    assert len(skill.hash) == 16
    assert int(skill.hash, 16) >= 0
    assert skill.hash == Skill("a", "two", {"y": b"2", "x": b"1"}).hash
    others = [("b", {"x": b"1", "y": b"2"}), ("a", {"x": b"1"}), ("a", {"x": b"1y2"}), ("a", {"x1": b"", "y": b"2"})]
    assert len({skill.hash, *(Skill(text, files=files).hash for text, files in others)}) == 5
    assert Skill.parse("a\n").hash != Skill.parse("a\r\n").hash
    assert Skill.parse("").hash == hashlib.sha256(b"0 0 ").hexdigest()[:16]  # stable across versions: it keys journals
    assert hash(skill) == hash(Skill("a", "one", {"x": b"1", "y": b"2"}, folder=True))


def test_tool_leftovers_do_not_change_the_hash(tmp_path: Path) -> None:
    path = folder(tmp_path)
    before = Skill.load(path).hash
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "a.pyc").touch()
    assert Skill.load(path).hash == before


def test_sizes_are_of_the_body() -> None:
    skill = Skill.parse(FRONT + "12345678é")
    assert skill.chars == 9
    assert skill.tokens == 3
    assert Skill.parse("").tokens == 0


def test_locked_regions_are_offsets_with_their_markers() -> None:
    lock = "<!-- skilltune:lock -->keep<!-- /skilltune:lock -->"
    text = f"a\n{lock}\nb\n{lock}"
    assert [text[start:end] for start, end in Skill.parse(text).locked] == [lock, lock]
    open_end = "a <!--skilltune:lock--> rest"
    assert Skill.parse(open_end).locked == ((2, len(open_end)),)
    assert Skill.parse("<!-- /skilltune:lock --> a").locked == ()


def problems(tmp_path: Path, frontmatter: str, name: str = "totals") -> str:
    return "\n".join(Skill.load(folder(tmp_path, f"---\n{frontmatter}\n---\nbody\n", name)).check())


@pytest.mark.parametrize(
    ("frontmatter", "said"),
    [
        ("description: x", "needs a name"),
        ("name: totals", "needs a description"),
        ("name: totals\ndescription: '  '", "needs a description"),
        ("name: 12\ndescription: x", "needs a name"),
        ("name: totals\ndescription: x\nlast-seen: 1", "unknown key 'last-seen'"),
        ("name: totals\ndescription: " + "x" * 1025, "description has 1025 characters"),
        ("name: other\ndescription: x", "must be the folder's name, 'totals'"),
        ("name: totals\ndescription: a: b", "not valid YAML"),
        ("name: totals\ndescription: x\nmetadata: 3", "metadata must be a mapping"),
        ("name: totals\ndescription: x\ncompatibility: " + "x" * 501, "compatibility has 501"),
        ("just text", "must be a list of"),
        ("a: 2024-99-99", "not valid YAML"),
    ],
)
def test_check_names_what_the_standard_refuses(tmp_path: Path, frontmatter: str, said: str) -> None:
    assert said in problems(tmp_path, frontmatter)


@pytest.mark.parametrize("name", ["-a", "a-", "a--b", "Aa", "a_b", "a b", "x" * 65])
def test_check_refuses_names(tmp_path: Path, name: str) -> None:
    said = problems(tmp_path, f"name: {name}\ndescription: x", name)
    assert "more than the 64" in said if len(name) > 64 else "lowercase letters and digits" in said


def test_check_accepts_what_the_standard_allows(tmp_path: Path) -> None:
    full = "name: t-2\ndescription: x\nlicense: MIT\nallowed-tools: Read\nmetadata:\n  a: b\ncompatibility: any"
    assert problems(tmp_path, full, "t-2") == ""
    assert Skill("\ufeff" + FRONT, "totals", folder=True).frontmatter == "\ufeff" + FRONT
    assert Skill("\ufeff" + FRONT, "totals", folder=True).check() == []


def test_check_reports_an_open_lock_and_asks_documents_for_no_metadata() -> None:
    assert Skill.parse("plain document").check() == []
    assert "no frontmatter" in Skill("x", folder=True).check()[0]
    (said,) = Skill.parse("a\n<!-- skilltune:lock -->\n" + "x" * 400).check()
    assert "line 2 is never closed" in said
