"""Export a trained skill to the place where an agent looks for skills.

Agents look for a folder NAME/SKILL.md with name and description in its frontmatter (agentskills.io). A skill with
frontmatter is copied byte for byte. A plain document gets frontmatter only from a name and a description that the user
states: the description decides when an agent loads the skill, so skilltune does not invent one. `Skill.load` leaves out
files that belong to the training (`evals/`, the config, runs).
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
from skilltune.files import write_atomic
from skilltune.frontmatter import BadFrontmatter, read_block
from skilltune.journal.run import Run
from skilltune.skill import MAIN, Skill

# The folder in which each agent looks for a project's skills; docs/export.md cites the sources.
FOLDERS = {
    "claude": ".claude/skills",
    "codex": ".agents/skills",
    "agents": ".agents/skills",
    "copilot": ".github/skills",
    "cursor": ".cursor/skills",
    "antigravity": ".agents/skills",
    "gemini": ".gemini/skills",
    "opencode": ".opencode/skills",
}
KINDS = ("file", *FOLDERS, "plugin")
MANIFEST = ".claude-plugin/plugin.json"

_PATH_PART = re.compile(r"\w[\w.-]*")  # a name becomes a folder; it must not climb out of its parent


def export(
    skill: Skill,
    kind: str,
    to: str | Path | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    force: bool = False,
) -> Path:
    """Write the skill below the folder `to` (None: the current folder), and return its file or folder.

    The kind `file` writes NAME.md, or NAME/ for a skill with files. The name of an agent writes NAME/ into the folder
    where that agent looks for a project's skills (`FOLDERS`). `plugin` writes a Claude Code plugin NAME/.
    `name` and `description` become the frontmatter of a document without one; an agent needs both.

    Raises `UsageError` if another skill is already there (unless `force`), if frontmatter is missing or invalid, and if
    the current folder is the user's home and `to` does not name it.
    """
    if kind not in KINDS:
        raise UsageError(f'cannot export to "{kind}"; known: {", ".join(KINDS)}')
    if to is None and kind != "file" and Path.cwd() == Path.home().resolve():
        raise UsageError(
            "the current folder is your home, from which the agents of all projects would read the skill: name the "
            "project's folder with --out DIR (Python: to=DIR)"
        )
    root = Path(to or ".").expanduser()
    manifest: dict[str, bytes] = {}
    if kind == "file":
        if description is not None:
            raise UsageError("only agents need a description; leave it out to export a file")
        chosen = _safe(name or skill.name)
        path = home = root / (chosen if skill.folder else f"{chosen}.md")
    else:
        skill = _for_agent(skill, name, description)
        path = home = root / FOLDERS.get(kind, "") / skill.name
        if kind == "plugin":
            home = path / "skills" / skill.name
            about = {"name": skill.name, "description": " ".join(_metadata(skill)["description"].split())}
            manifest = {MANIFEST: (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()}
    for place in (home, *(path / name for name in manifest)):
        if not place.resolve().is_relative_to(root.resolve()):
            raise UsageError(
                f"{place} leads through a link to {place.resolve()}, outside of {root}; export there by name"
            )
    if not force and (differing := [*_differing(_content(skill), home), *_differing(manifest, path)]):
        raise UsageError(
            f"{path} exists and differs ({', '.join(differing)}): nothing was written. "
            "Compare them, then export again with --force (Python: force=True), or choose another folder."
        )
    if skill.folder or not home.exists() or home.read_bytes() != _bytes(skill):
        skill.save(home)
    for part, data in manifest.items():
        write_atomic(path / part, data)
    return path


def only_evaluated(run: Run) -> bool:
    """True for the folder of `skilltune eval --run`: it holds answers and nothing of a training."""
    return bool(run.usage) and not run.events("root") and not run.events("start")


def unfinished(run: Run) -> str:
    """The reason why the folder of `run` holds no result, and the way to one."""
    if only_evaluated(run):
        return f"{run.folder} holds answers of `skilltune eval` and no training: name the folder of a training"
    return f"the run in {run.folder} has not finished: run the same `skilltune train` command to go on"


def best_of(run: Run) -> Skill:
    """The skill that a finished run ships. Its text comes from the journal, the other files of a skill folder from
    `best/NAME`. Raises `UsageError` if the run has not finished or lacks the files."""
    finished = run.events("finish")
    if not finished:
        raise UsageError(unfinished(run))
    finish = finished[-1][2]
    text = run.blob(finish["best"])
    if not isinstance(finish["name"], str):
        raise TypeError("the skill's name is not text")
    if text is None:
        raise UsageError(f"the run in {run.folder} no longer holds the text of its best skill")
    config = run.config or {}
    source = Path(config.get("skill", ""))
    folders = sorted(path for path in run.folder.glob("best/*") if (path / MAIN).is_file())
    if folders:
        return Skill.load(folders[0]).with_text(text.decode("utf-8", "surrogatepass"))
    if not source.suffix:
        raise UsageError(f"{run.folder / 'best'} is gone: run the same `skilltune train` command to write it again")
    return Skill(text.decode("utf-8", "surrogatepass"), finish["name"])


def _for_agent(skill: Skill, name: str | None, description: str | None) -> Skill:
    """The skill as a folder with complete frontmatter. Raises `UsageError` if name or description is missing."""
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
        name, description = (str(stated[key]).strip() for key in ("name", "description"))
        text = skill.text
    elif name is None or description is None:
        raise UsageError(
            "the skill has no frontmatter, and an agent finds a skill by its name and description: state both with "
            '--name invoice-totals --description "Reads totals from invoices. Use when …", or export with --to file'
        )
    else:
        bom = "\ufeff" if skill.text.startswith("\ufeff") else ""
        text = f"{bom}{_header(name, description)}\n{skill.text.removeprefix(bom)}"
    # Agents find a skill by these two keys, so both must follow the standard; other keys are not checked.
    if problems := Skill(_header(name, description), name, folder=True).check():
        raise UsageError(" ".join(problems))
    return replace(skill, text=text, name=name, folder=True)


def _header(name: str, description: str) -> str:
    return f"---\nname: {_scalar(name)}\ndescription: {json.dumps(description, ensure_ascii=False)}\n---\n"


def _scalar(text: str) -> str:
    """The text as a YAML scalar, quoted if YAML would read it as another type; `on` and `12` are valid names."""
    try:
        plain = yaml.safe_load(text) == text
    except (yaml.YAMLError, ValueError):
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def _metadata(skill: Skill) -> Mapping[str, Any]:
    try:
        return read_block(skill.frontmatter)
    except BadFrontmatter as error:
        raise UsageError(f"{error} Nothing was written.") from error


def _safe(name: str) -> str:
    if not _PATH_PART.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a folder: use letters, digits and hyphens")
    return name


def _bytes(skill: Skill) -> bytes:
    return skill.text.encode("utf-8", "surrogatepass")


def _content(skill: Skill) -> dict[str, bytes]:
    """The skill's files by path, relative to the place where it is saved; "" is the place itself."""
    return {MAIN: _bytes(skill), **skill.files} if skill.folder else {"": _bytes(skill)}


def _differing(content: Mapping[str, bytes], place: Path) -> list[str]:
    """The files below `place` that exist and differ from `content`."""
    targets = {name: (place / name if name else place, data) for name, data in content.items()}
    return [
        name or place.name
        for name, (target, data) in targets.items()
        if target.exists() and (not target.is_file() or target.read_bytes() != data)
    ]
