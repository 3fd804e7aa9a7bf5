"""The YAML block at the top of a SKILL.md: its values, and its problems with line and remedy.

The file may come from anywhere, so reading it must be cheap. Size, depth and aliases are counted on the stream of YAML
events before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import yaml

MOST_CHARS = 65_536
MOST_DEPTH = 20
MOST_NAMED = 10  # unknown keys in one message
MOST_ALIASES = 10  # each can double the expanded size of the block
ALIKE = 0.75  # cutoff of similarity between a misspelt key and the intended one: "modle" and "model"

# The fields and limits on which the validators of the Agent Skills standard agree (agentskills.io/specification).
STANDARD = frozenset({"name", "description", "license", "allowed-tools", "metadata", "compatibility"})
LONGEST = {"name": 64, "description": 1024, "compatibility": 500}
# Keys beyond the standard that an agent documents, for skills or for related files (commands, subagents, rules,
# prompts). Other agents ignore them.
DOCUMENTED = {
    "Claude Code": (
        "agent argument-hint arguments background color context disable-model-invocation disallowed-tools "
        "disallowedTools effort hooks initialPrompt isolation maxTurns mcpServers memory model paths "
        "permissionMode shell skills tools user-invocable version when_to_use"
    ),
    "Claude": "dependencies",
    "Copilot": "agents applyTo excludeAgent handoffs infer mcp-servers target",
    "Cursor": "alwaysApply globs",
    "Codex": "short-description",
    "OpenCode": "permission subtask",
}
READERS = {key: agent for agent, keys in DOCUMENTED.items() for key in keys.split()}

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_KEY = re.compile(r"([A-Za-z_][\w.-]*)[ \t]*:(?=[ \t]|$)")
_BOM = "\ufeff"
_INVISIBLE = re.compile(r"[\s\ufeff\u200b-\u200f\u2060]+")
_LIST_OF_LINES = "The frontmatter must be a list of 'key: value' lines."


class BadFrontmatter(ValueError):
    """A block that is not YAML, or too expensive to read. The message is a sentence with the line and the remedy."""


def read_block(frontmatter: str) -> dict[str, Any]:
    """The values of a block, given with its two '---' lines; {} for "". Raises `BadFrontmatter`."""
    return _build(_inside(frontmatter)) if frontmatter else {}


def find_problems(frontmatter: str, body: str, folder: str | None) -> list[str]:
    """Everything that must be fixed, one sentence each. `folder` is the name of a skill folder, or None for a document.

    A document needs no frontmatter, but a malformed block would be trained as text.
    """
    if not frontmatter:
        if misplaced := _misplaced(body):
            return [misplaced]
        missing = "SKILL.md has no frontmatter: begin it with a '---' line, name, description and another '---' line."
        return [missing] if folder is not None else []
    try:
        data = read_block(frontmatter)
    except BadFrontmatter as error:
        return [str(error)]
    return [*_unknown_keys(data), *_unmet(data, folder)] if folder is not None else []


def find_notes(frontmatter: str) -> list[str]:
    """Remarks on permitted things: keys that only some agents read, and a byte order mark."""
    found = []
    try:
        keys = [key for key in read_block(frontmatter) if key in READERS]
    except BadFrontmatter:
        keys = []
    if keys:
        named = ", ".join(f"{key} ({READERS[key]})" for key in keys)
        found.append(f"the frontmatter has keys beyond the standard, which other agents ignore: {named}")
    if frontmatter.startswith(_BOM):
        found.append(
            "the file begins with a byte order mark, behind which some agents find no frontmatter: save it as UTF-8 "
            "without BOM"
        )
    return found


def _unknown_keys(data: Mapping[Any, Any]) -> Iterator[str]:
    """Report unknown keys: one sentence for each misspelt key, and one for all others."""
    known, own = [*STANDARD, *READERS], list[str]()
    for key in [key for key in data if key not in STANDARD and key not in READERS]:
        said = str(key)[:80]
        near = get_close_matches(said.replace("_", "-"), known, n=1, cutoff=ALIKE) if len(own) < MOST_NAMED else []
        if near:
            yield f"The frontmatter has the unknown key {said!r}: did you mean {near[0]}?"
        else:
            own.append(said)
    if own:
        named = ", ".join(map(repr, own[:MOST_NAMED])) + (", …" if len(own) > MOST_NAMED else "")
        keys = "key" if len(own) == 1 else f"{len(own):,} keys"
        yield f"The frontmatter has the unknown {keys} {named}: keys of your own belong under metadata."


def _unmet(data: Mapping[Any, Any], folder: str | None) -> Iterator[str]:
    """The values that break a rule of the standard."""
    for key, longest in LONGEST.items():
        value = data.get(key)
        if key not in data and key == "compatibility":
            continue
        if not isinstance(value, str) or not value.strip():
            yield f"The frontmatter needs a {key} that is a non-empty text."
        elif len(value.strip()) > longest:
            yield f"The {key} has {len(value.strip())} characters, more than the {longest} allowed."
    if "metadata" in data and not isinstance(data["metadata"], dict):
        yield "The metadata must be a mapping."
    if isinstance(name := data.get("name"), str) and name.strip():
        if not _NAME.fullmatch(name.strip()):
            yield f"The name {name[:80]!r} may hold only lowercase letters and digits, joined by single hyphens."
        if name.strip() != folder:
            yield f"The name {name[:80]!r} must be the folder's name, {folder!r}."


# -- a block that is not where it belongs


def _misplaced(text: str) -> str:
    """The problem with a block that agents do not find because it begins too late or is never closed, else ""."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if _INVISIBLE.sub("", line)), len(lines))
    opening = _INVISIBLE.sub("", lines[first]) if first < len(lines) else ""
    inside = next((line for line in lines[first + 1 :] if line.strip() and not line.lstrip().startswith("#")), "")
    if opening != "---" or not _KEY.match(inside.strip()):
        return ""
    if first:
        return (
            f"The frontmatter begins in line {first + 1}, but agents look for it in line 1: delete the empty lines "
            "above it."
        )
    if lines[0].removeprefix(_BOM).rstrip() != "---":
        return "Line 1 holds blanks or invisible characters before '---', so agents find no frontmatter: delete them."
    last = first
    for number, line in enumerate(lines[first + 1 :], first + 1):
        if set(line.strip()) == {"-"} and len(line.strip()) >= 2 and not line.lstrip().startswith("- "):
            return (
                f"The frontmatter that begins in line 1 is never closed: line {number + 1} must be '---' and nothing "
                "else, without blanks before it."
            )
        if line.startswith("#") or not (line.strip() and (line[0] in " \t-" or _KEY.match(line))):
            break
        last = number
    return f"The frontmatter that begins in line 1 is never closed: put a line '---' after line {last + 1}."


# -- YAML


def _inside(frontmatter: str) -> str:
    """The lines between the fences, after an empty first line, so that YAML's line numbers match the file's."""
    lines = frontmatter.removeprefix(_BOM).splitlines(keepends=True)
    return "\n" + "".join(lines[1:-1])


def _build(block: str) -> dict[str, Any]:
    if len(block) > MOST_CHARS:
        raise BadFrontmatter(
            f"The frontmatter has {len(block):,} characters, more than the {MOST_CHARS:,} that are read: move text "
            "into the body."
        )
    try:
        _count(block)
        root = yaml.compose(block, yaml.SafeLoader)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise BadFrontmatter(_LIST_OF_LINES)
        _refuse_duplicates(root)
        return yaml.safe_load(block)
    except BadFrontmatter:
        raise
    except yaml.MarkedYAMLError as error:
        raise BadFrontmatter(_explain(error, block.splitlines())) from error
    except yaml.reader.ReaderError as error:
        line = block.count("\n", 0, error.position) + 1
        raise BadFrontmatter(
            f"The frontmatter is not valid YAML: line {line} holds a control character (U+{error.character:04X}): "
            "delete it."
        ) from error
    # PyYAML raises various errors of its conversions: an impossible date, `!!bool maybe`, a number of 5,000 digits
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as e:
        said = " ".join(str(e).split())[:200] or type(e).__name__
        raise BadFrontmatter(f"The frontmatter is not valid YAML ({said}): put the value in quotes.") from e


def _count(block: str) -> None:
    depth = aliases = 0
    for event in yaml.parse(block, yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > MOST_DEPTH:
            raise BadFrontmatter(f"The frontmatter is nested more than {MOST_DEPTH} levels deep in line {line}.")
        if aliases > MOST_ALIASES:
            raise BadFrontmatter(
                f"The frontmatter has more than {MOST_ALIASES} YAML aliases (*name, line {line}): write the values out."
            )


def _refuse_duplicates(root: yaml.Node) -> None:
    waiting, known = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in known:  # an alias, which may contain itself
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
            _refuse_duplicate(node)


def _refuse_duplicate(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise BadFrontmatter(
                f"The frontmatter has the key {key.value[:80]!r} twice, in line {seen[key.value]} and in line {line}: "
                "delete one."
            )
        seen[key.value if isinstance(key, yaml.ScalarNode) else f"node {id(key)}"] = line


def _explain(error: yaml.MarkedYAMLError, lines: list[str]) -> str:
    """Explain PyYAML's error to the author of the file."""
    mark, said = error.problem_mark or error.context_mark, error.problem or "unreadable"
    number = mark.line if mark else 0
    line = lines[number] if number < len(lines) else ""
    where = f"The frontmatter is not valid YAML: line {number + 1}"
    key = next((found[1] for text in reversed(lines[: number + 1]) if (found := _KEY.match(text))), "")
    quoted = f"put the value of {key} in quotes" if key else "put the value in quotes"
    if "\\t" in said or "tab character" in said or line[: len(line) - len(line.lstrip())].count("\t"):
        return f"{where} is indented by a tab: use blanks."
    if "mapping values are not allowed" in said:
        return f'{where} holds a second ": ": {quoted} ({key or "key"}: "…").'
    if "could not find expected ':'" in said:
        return f"{where} is not a 'key: value' line. Does the closing '---' line stand above it?"
    if "scanning a quoted scalar" in (error.context or ""):
        opened = error.context_mark.line + 1 if error.context_mark else number + 1
        return f"The frontmatter is not valid YAML: the quote that opens in line {opened} is never closed."
    return f"{where}: {said}. If the value is plain text, {quoted}."
