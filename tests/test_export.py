"""What an agent gets: the trained skill and nothing of ours, where it looks for it and nowhere else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from skilltune.errors import UsageError
from skilltune.export import FOLDERS, KINDS, MANIFEST, best_of, export
from skilltune.journal.run import Run
from skilltune.skill import Skill

FRONTMATTER = "\ufeff---\r\nname: invoice-totals\r\n# kept\r\ndescription:  'Reads totals.'\r\nversion: 3\r\n---\r\n"
AGENTS = tuple(FOLDERS)
STANDARD = "---\nname: invoice-totals\ndescription: Reads totals. Use for invoices.\nmetadata:\n  version: '3'\n---\n"


def standard_problems(folder: Path) -> list[str]:
    """What agentskills.io/specification forbids, written from its text and apart from our own checks."""
    raw = (folder / "SKILL.md").read_text("utf-8")
    found = re.match(r"---\n(.*?)\n---\n", raw, re.DOTALL)
    if not found:
        return ["no frontmatter"]
    meta = yaml.safe_load(found[1])
    problems = [f"unknown field {key}" for key in meta.keys() - STANDARD_FIELDS]
    name, description = meta.get("name"), meta.get("description")
    if not isinstance(name, str) or not 1 <= len(name) <= 64:
        problems.append("name: 1 to 64 characters")
    elif set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-") or "--" in name or name[0] == "-" or name[-1] == "-":
        problems.append("name: lower-case letters, digits, single hyphens inside")
    if name != unicodedata.normalize("NFKC", folder.name):
        problems.append("name: not the folder's")
    if not isinstance(description, str) or not description.strip() or len(description) > 1024:
        problems.append("description: 1 to 1,024 characters")
    if "compatibility" in meta and not (
        isinstance(meta["compatibility"], str) and 1 <= len(meta["compatibility"]) <= 500
    ):
        problems.append("compatibility: 1 to 500 characters")
    if not all(isinstance(part, str) for pair in meta.get("metadata", {}).items() for part in pair):
        problems.append("metadata: text to text")
    return problems


STANDARD_FIELDS = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}


def standard_folder(root: Path) -> Path:
    """A skill that keeps to the standard, with what it is trained with beside it."""
    files = {
        "SKILL.md": (STANDARD + "# Totals\n\nTrained.\n").encode(),
        "references/a.md": b"more",
        "references/evals/notes.md": b"not at the top: part of the skill",
        "scripts/run.sh": b"#!/bin/sh\n",
        "evals/evals.json": b'{"evals": [{"expected_output": "secret"}]}',
        "evals/files/a.txt": b"secret",
        "samples.jsonl": b"secret",
        "skilltune.toml": b"seed = 1 # secret\n",
        "skilltune-paper.toml": b"# secret\n",
        "runs/a/run.db": b"secret",
        "elsewhere/run.db": b"secret",
        ".env": b"KEY=secret",
        ".venv/bin/activate": b"secret",
    }
    for name, data in files.items():
        path = root / "invoice-totals" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "invoice-totals"


KEPT = {"references/a.md", "references/evals/notes.md", "scripts/run.sh"}


def place(root: Path, kind: str, name: str = "invoice-totals") -> Path:
    """Where the skill's own folder is, below the exported root."""
    return root / name / "skills" / name if kind == "plugin" else root / FOLDERS[kind] / name


def folder_skill() -> Skill:
    files = {"scripts/run.sh": b"#!/bin/sh\necho {hi}\n", "data.bin": bytes(range(256))}
    return Skill(FRONTMATTER + "# Totals\r\n\r\nTrained {line}.", "invoice-totals", files, folder=True)


@pytest.mark.parametrize(("kind", "place"), [*FOLDERS.items(), ("file", "")])
def test_a_folder_skill_arrives_byte_for_byte(tmp_path: Path, kind: str, place: str) -> None:
    skill = folder_skill()
    path = export(skill, kind, tmp_path)
    assert path == tmp_path / place / "invoice-totals"
    assert (path / "SKILL.md").read_bytes() == skill.text.encode()
    assert (path / "data.bin").read_bytes() == bytes(range(256))
    assert (path / "scripts/run.sh").stat().st_mode & 0o100
    assert Skill.load(path) == skill


def test_a_document_becomes_a_file_of_its_name(tmp_path: Path) -> None:
    path = export(Skill("Be {brief}.", "rules"), "file", tmp_path)
    assert path == tmp_path / "rules.md"
    assert path.read_bytes() == b"Be {brief}."
    assert export(Skill("Be {brief}.", "rules"), "file", tmp_path, name="house") == tmp_path / "house.md"


@pytest.mark.parametrize("kind", AGENTS)
def test_a_document_without_frontmatter_needs_name_and_description(tmp_path: Path, kind: str) -> None:
    for name, description in ((None, None), ("rules", None), (None, "House rules.")):
        with pytest.raises(UsageError, match=r"--name .* --description"):
            export(Skill("Be brief."), kind, tmp_path, name=name, description=description)
    assert not list(tmp_path.iterdir())


def test_stated_name_and_description_become_valid_frontmatter(tmp_path: Path) -> None:
    description = 'House: "rules" for #1 — use {always}.\nEven here: é'
    path = export(Skill("# Rules\n"), "agents", tmp_path, name="house-rules", description=description)
    made = Skill.load(path)
    assert path == tmp_path / ".agents/skills/house-rules"
    assert made.check() == []
    assert yaml.safe_load(made.frontmatter.strip()[3:-3]) == {"name": "house-rules", "description": description}
    assert made.body == "\n# Rules\n"


def test_the_folder_is_named_after_the_frontmatter_which_agents_require(tmp_path: Path) -> None:
    document = Skill(FRONTMATTER + "text", "SKILL")
    assert export(document, "claude", tmp_path) == tmp_path / ".claude/skills/invoice-totals"


@pytest.mark.parametrize(
    ("skill", "stated", "says"),
    [
        (Skill(FRONTMATTER + "text"), {"name": "other", "description": "x"}, "change them there"),
        (Skill("---\nname: rules\n---\ntext"), {}, "lacks description"),
        (Skill("---\nname: [\n---\ntext"), {}, "not valid YAML"),
        (Skill("---\nname: ../../etc\ndescription: x\n---\ntext"), {}, "lowercase letters"),
        (Skill("---\nname: Invoice_Totals\ndescription: x\n---\ntext"), {}, "lowercase letters"),
        (Skill(f"---\nname: {'a' * 65}\ndescription: x\n---\ntext"), {}, "65 characters"),
        (Skill(f"---\nname: rules\ndescription: {'x' * 1025}\n---\ntext"), {}, "1025 characters"),
        (Skill("text"), {"name": "../up", "description": "x"}, "lowercase letters"),
        (Skill("text"), {"name": "Two Words", "description": "x"}, "lowercase letters"),
        (Skill("text"), {"name": "rules", "description": " "}, "description"),
    ],
)
def test_what_no_agent_could_read_is_refused(tmp_path: Path, skill: Skill, stated: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        export(skill, "claude", tmp_path / "project", **stated)
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_and_an_ignored_option_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=", ".join(KINDS)):
        export(Skill("x"), "clod", tmp_path)
    with pytest.raises(UsageError, match="only agents need"):
        export(Skill("x"), "file", tmp_path, description="x")
    with pytest.raises(UsageError, match="cannot name a folder"):
        export(Skill("x", "../up"), "file", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_differing_skill_is_not_overwritten_unless_forced(tmp_path: Path, kind: str) -> None:
    skill = folder_skill() if kind != "file" else Skill("one", "rules")
    path = export(skill, kind, tmp_path)
    assert export(skill, kind, tmp_path) == path
    changed = skill.with_text(skill.text + "\nmore")
    with pytest.raises(UsageError, match="--force"):
        export(changed, kind, tmp_path)
    document = path if kind == "file" and path.is_file() else path / "SKILL.md"
    if kind == "plugin":
        document = path / "skills/invoice-totals/SKILL.md"
    assert document.read_bytes() == skill.text.encode()
    export(changed, kind, tmp_path, force=True)
    assert document.read_bytes() == changed.text.encode()


def test_a_differing_file_of_the_folder_is_protected_and_foreign_files_stay(tmp_path: Path) -> None:
    path = export(folder_skill(), "claude", tmp_path)
    (path / "data.bin").write_bytes(b"mine")
    (path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"differs \(data\.bin\)"):
        export(folder_skill(), "claude", tmp_path)
    export(folder_skill(), "claude", tmp_path, force=True)
    assert (path / "mine.txt").read_text() == "mine"


def test_a_link_to_the_users_own_configuration_is_not_followed(tmp_path: Path) -> None:
    home, project = tmp_path / "home/.claude", tmp_path / "project"
    home.mkdir(parents=True)
    project.mkdir()
    (project / ".claude").symlink_to(home)
    with pytest.raises(UsageError, match="through a link"):
        export(folder_skill(), "claude", project, force=True)
    assert not list(home.iterdir())


def a_run(folder: Path, best: Skill, config_skill: str) -> Run:
    run = Run.open(folder, {"skill": config_skill})
    run.put_blob(best.hash, best.text.encode())
    run.record("finish", name=best.name, best=best.hash)
    return run


def test_best_of_a_document_comes_from_the_journal(tmp_path: Path) -> None:
    skill = Skill("trained", "rules")
    with a_run(tmp_path / "invoices", skill, "skills/rules.md") as run:
        assert best_of(run) == skill


def test_best_of_a_folder_has_its_files_and_says_so_where_they_are_gone(tmp_path: Path) -> None:
    skill = folder_skill()
    with a_run(tmp_path / "run", skill, "skills/invoice-totals") as run:
        with pytest.raises(UsageError, match="run the same"):
            best_of(run)
        skill.save(run.folder / "best/invoice-totals")
        (run.folder / "best/invoice-totals/SKILL.md").write_text("stale")
        assert best_of(run) == skill


def test_best_of_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", {}) as run, pytest.raises(UsageError, match="has not finished"):
        best_of(run)


# -- the agents' own places and the standard


@pytest.mark.parametrize("kind", [*FOLDERS, "plugin", "file"])
@pytest.mark.parametrize("named", ["", "SKILL.md"])
def test_what_is_exported_is_the_skill_and_not_what_it_was_trained_with(tmp_path: Path, kind: str, named: str) -> None:
    source = standard_folder(tmp_path / "source")
    skill = Skill.load(source / named)
    root = tmp_path / "to"
    path = export(skill, kind, root)
    home = path if kind == "file" else place(root, kind)
    assert standard_problems(home) == []
    written = {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert written == {name: (source / name).read_bytes() for name in {"SKILL.md", *KEPT}}
    assert not any(b"secret" in path.read_bytes() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", [*FOLDERS, "plugin"])
@pytest.mark.parametrize("name", ["a", "on", "12", "a" * 64, "1e3", "invoice-totals-2"])
def test_stated_names_pass_the_standard(tmp_path: Path, kind: str, name: str) -> None:
    export(Skill("# Rules\n"), kind, tmp_path, name=name, description="Rules: use for 'all' #1.")
    assert standard_problems(place(tmp_path, kind, name)) == []


@given(name=st.text(alphabet="ab9-_.A é", max_size=8), description=st.text(max_size=40))
def test_what_is_exported_passes_the_standard_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, description: str
) -> None:
    root = tmp_path_factory.mktemp("x")
    try:
        export(Skill("# Rules\n"), "agents", root, name=name, description=description)
    except UsageError:
        assert not list(root.rglob("SKILL.md"))
    else:
        assert standard_problems(root / ".agents/skills" / name) == []


def test_the_published_validator_agrees(tmp_path: Path) -> None:
    """The reference library of the standard (`pip install skills-ref`); its command is named after the site."""
    validator = shutil.which("skills-ref") or shutil.which("agentskills")
    if validator is None:
        pytest.skip("the standard's own validator is not installed: pip install skills-ref")
    for kind in (*FOLDERS, "plugin"):
        export(Skill.load(standard_folder(tmp_path / "source")), kind, tmp_path / kind)
        found = subprocess.run([validator, "validate", place(tmp_path / kind, kind)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_a_plugin_is_a_manifest_beside_the_skill(tmp_path: Path) -> None:
    path = export(Skill.load(standard_folder(tmp_path / "source")), "plugin", tmp_path)
    assert path == tmp_path / "invoice-totals"
    assert sorted(entry.name for entry in path.iterdir()) == [".claude-plugin", "skills"]
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest == {"name": "invoice-totals", "description": "Reads totals. Use for invoices."}
    (path / MANIFEST).write_text('{"name": "mine"}')
    with pytest.raises(UsageError, match=r"plugin\.json"):
        export(Skill.load(standard_folder(tmp_path / "source")), "plugin", tmp_path)
    export(Skill.load(standard_folder(tmp_path / "source")), "plugin", tmp_path, force=True)
    assert json.loads((path / MANIFEST).read_text()) == manifest


@pytest.mark.parametrize("kind", [*FOLDERS, "plugin"])
def test_nothing_goes_into_the_home_folder_unasked(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="your home"):
        export(Skill.load(standard_folder(tmp_path / "source")), kind)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert export(Skill.load(standard_folder(tmp_path / "source")), kind, tmp_path).exists()  # asked by name
