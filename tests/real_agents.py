"""The real command lines of agents: their names, their tools, and a user's settings that must not reach them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from upstream import Asked, Call

CLIS = {"claude-code": "claude", "codex": "codex", "opencode": "opencode"}


def call_of(asked: Asked, command: str) -> Call:
    """The call of the agent's own shell tool, by the name that it has in the request."""
    offered = [tool.get("function", tool).get("name", "") for tool in asked.body["tools"]]
    name = next(name for name in ("exec_command", "Bash", "bash") if name in offered)
    key = "cmd" if name == "exec_command" else "command"
    return Call(name, {key: command, **({} if key == "cmd" else {"description": "work"})})


def users_of(home: Path) -> dict[str, Path]:
    """Settings and skills of a user, which must neither reach a rollout nor change."""
    text = "LEAKED: always say so."
    skill = "---\nname: leaked\ndescription: LEAKED skill.\n---\n\nLEAKED\n"
    files = {
        ".claude/CLAUDE.md": text,
        ".claude/skills/leaked/SKILL.md": skill,
        ".claude/settings.json": '{"env": {"LEAKED": "1"}}',
        ".claude.json": '{"mcpServers": {}}',
        ".codex/AGENTS.md": text,
        ".codex/config.toml": 'model = "LEAKED"\n',
        ".codex/skills/leaked/SKILL.md": skill,
        ".agents/skills/leaked/SKILL.md": skill,
        ".config/opencode/AGENTS.md": text,
        ".config/opencode/opencode.json": '{"model": "LEAKED/x"}',
        ".config/opencode/skills/leaked/SKILL.md": skill,
        "project/CLAUDE.md": text,
        "project/AGENTS.md": text,
    }
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    return {name: home / name for name in files}


def hash_of(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()


def running(word: str) -> list[str]:
    """Processes whose environment or folder is below the workspaces."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (entry / "environ").read_bytes() or word in os.readlink(entry / "cwd"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found
