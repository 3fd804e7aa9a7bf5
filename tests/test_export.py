"""What an agent gets: the trained skill and nothing of ours, where it looks for it and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from skilltune.errors import UsageError
from skilltune.export import FOLDERS, KINDS, best_of, export
from skilltune.run import Run
from skilltune.skill import Skill

FRONTMATTER = "\ufeff---\r\nname: invoice-totals\r\n# kept\r\ndescription:  'Reads totals.'\r\nversion: 3\r\n---\r\n"
AGENTS = tuple(FOLDERS)


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
        (Skill("---\nname: ../../etc\ndescription: x\n---\ntext"), {}, "cannot name a folder"),
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
    with pytest.raises(UsageError, match="for an agent only"):
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
    document = path / "SKILL.md" if path.is_dir() else path
    assert document.read_bytes() == skill.text.encode()
    export(changed, kind, tmp_path, force=True)
    assert document.read_bytes() == changed.text.encode()


def test_a_differing_file_of_the_folder_is_protected_and_foreign_files_stay(tmp_path: Path) -> None:
    path = export(folder_skill(), "claude", tmp_path)
    (path / "data.bin").write_bytes(b"mine")
    (path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"different: data\.bin"):
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
    run.keep(best.hash, best.text.encode())
    run.emit("finish", name=best.name, best=best.hash)
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
