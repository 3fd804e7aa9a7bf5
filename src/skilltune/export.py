"""Put a trained skill where an agent finds it, changing nothing but the trained lines.

Agents look for a folder NAME/SKILL.md whose frontmatter says name and description (agentskills.io). A skill that has
frontmatter is copied byte for byte; one that was a plain document gets it only from a name and a description that
the user states, because a description decides when an agent loads the skill and is nothing to make up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from skilltune.errors import UsageError
from skilltune.run import Run
from skilltune.skill import MAIN, Skill

FOLDERS = {"claude": ".claude/skills", "codex": ".codex/skills", "agents": ".agents/skills"}
KINDS = ("file", *FOLDERS)

_PATH_PART = re.compile(r"\w[\w.-]*")  # a name becomes a folder; it must not climb out of its parent


def export(
    skill: Skill,
    kind: str,
    to: str | Path = ".",
    *,
    name: str | None = None,
    description: str | None = None,
    force: bool = False,
) -> Path:
    """Write the skill below the folder `to` and return the file or folder that holds it.

    `file` gives NAME.md (NAME/ for a skill with files), `claude`, `codex` and `agents` the project folder that the
    agent reads: `.claude/skills/NAME/`, `.codex/skills/NAME/`, `.agents/skills/NAME/`. `name` and `description`
    become the frontmatter of a document that has none; an agent needs both. What is already there and differs is
    kept unless `force`; the same bytes are left alone. Raises `UsageError`.
    """
    if kind not in KINDS:
        raise UsageError(f'cannot export to "{kind}"; known: {", ".join(KINDS)}')
    root = Path(to).expanduser()
    if kind == "file":
        if description is not None:
            raise UsageError("a description is written for an agent only; leave it out to export a file")
        chosen = _safe(name or skill.name)
        path = root / (chosen if skill.folder else f"{chosen}.md")
    else:
        skill = _for_agent(skill, name, description)
        path = root / FOLDERS[kind] / skill.name
    if not path.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{path} leads through a link to {path.resolve()}, outside of {root}; export there by name")
    if not force and (differing := _differing(skill, path)):
        raise UsageError(
            f"{path} already holds another skill (different: {', '.join(differing)}): nothing was written. "
            "Compare them, then export again with --force (Python: force=True), or choose another folder."
        )
    if skill.folder or not path.exists() or path.read_bytes() != _bytes(skill):
        skill.save(path)
    return path


def best_of(run: Run) -> Skill:
    """The skill that a finished run ships, from its journal; a folder's other files from its `best/NAME`."""
    finished = run.events("finish")
    if not finished:
        raise UsageError(f"the run in {run.folder} has not finished: run the same `skilltune train` command to go on")
    text = run.kept(finished[-1][2]["best"])
    if text is None:
        raise UsageError(f"the run in {run.folder} no longer holds the text of its best skill")
    config = run.config or {}
    source = Path(config.get("skill", ""))
    folders = sorted(path for path in run.folder.glob("best/*") if (path / MAIN).is_file())
    if folders:
        return Skill.load(folders[0]).with_text(text.decode("utf-8", "surrogatepass"))
    if not source.suffix:
        raise UsageError(f"{run.folder / 'best'} is gone: run the same `skilltune train` command to write it again")
    return Skill(text.decode("utf-8", "surrogatepass"), finished[-1][2]["name"])


def _for_agent(skill: Skill, name: str | None, description: str | None) -> Skill:
    """The skill as a folder NAME with SKILL.md, its frontmatter complete."""
    if skill.frontmatter:
        if name is not None or description is not None:
            raise UsageError("the skill's own frontmatter states name and description: change them there")
        stated = _metadata(skill)
        missing = [key for key in ("name", "description") if not str(stated.get(key) or "").strip()]
        if missing:
            raise UsageError(
                f"the skill's frontmatter lacks {' and '.join(missing)}, which every agent needs: add them to the "
                "skill that was trained, or to the exported copy of `--to file`"
            )
        return replace(skill, name=_safe(str(stated["name"]).strip()), folder=True)
    if name is None or description is None:
        raise UsageError(
            "the skill has no frontmatter, and an agent finds a skill by its name and description: state both with "
            '--name invoice-totals --description "Reads totals from invoices. Use when …", or export with --to file'
        )
    header = f"---\nname: {name}\ndescription: {json.dumps(description, ensure_ascii=False)}\n---\n"
    bom = "\ufeff" if skill.text.startswith("\ufeff") else ""
    made = replace(skill, text=f"{bom}{header}\n{skill.text.removeprefix(bom)}", name=name, folder=True)
    if problems := made.check():
        raise UsageError(" ".join(problems))
    return made


def _metadata(skill: Skill) -> Mapping[str, Any]:
    block = skill.frontmatter.removeprefix("\ufeff").strip()[3:-3]
    try:
        data = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"the skill's frontmatter is not valid YAML: {' '.join(str(error).split())}") from error
    return data if isinstance(data, Mapping) else {}


def _safe(name: str) -> str:
    if not _PATH_PART.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a folder: use letters, digits and hyphens")
    return name


def _bytes(skill: Skill) -> bytes:
    return skill.text.encode("utf-8", "surrogatepass")


def _differing(skill: Skill, path: Path) -> list[str]:
    """The files that are there with other content than they would be given."""
    content = {MAIN: _bytes(skill), **skill.files} if skill.folder else {"": _bytes(skill)}
    targets = {name: (path / name if name else path, data) for name, data in content.items()}
    return [
        name or path.name
        for name, (target, data) in targets.items()
        if target.exists() and (not target.is_file() or target.read_bytes() != data)
    ]
