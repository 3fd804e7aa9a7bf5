"""Reads YAML like promptfoo's parser: core types of YAML 1.2, the line of every mapping, and a limit on expansion.

A few hundred bytes of aliases can stand for billions of values. Values are counted before any of them is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from skilltune.envs.formats.text import read_text
from skilltune.errors import UsageError

DEEPEST = 100  # levels of nesting
MOST_VALUES = 2_000_000  # values of one document, with aliases expanded


class Lined(dict):
    """A mapping that knows its line, and its file if that matters."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.path = Path()


def load(path: Path) -> Any:
    """The value of a whole file. Raises UsageError that names file and line."""
    return parse(read_text(path), str(path))


def parse(text: str, where: str) -> Any:
    """The value of a text. `where` precedes the line in the message of a UsageError."""
    try:
        return loaded(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UsageError(f"{where}: YAML nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where}: not valid YAML: {error}") from None


def loaded(text: str) -> Any:
    """The value of a text. Raises YAMLError, ValueError or RecursionError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := _expanded(node, {}, 0)) > MOST_VALUES:
            problem = f"its aliases stand for {count:.3g} values, more than {MOST_VALUES:,}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Reads `yes`, `1:30` and `2024-01-01` as texts, and refuses duplicate keys."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _expanded(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The number of values that a node expands to. `known` has the counted nodes, with 0 for open ones."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.constructor.ConstructorError(None, None, "an alias that holds itself", node.start_mark)
        return known[id(node)]
    if depth > DEEPEST:
        raise yaml.constructor.ConstructorError(None, None, f"nested more than {DEEPEST} levels deep", node.start_mark)
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.ScalarNode):
        count += len(node.value) // 100  # a long text that is repeated is a bomb too
    elif isinstance(node, yaml.MappingNode):
        count += sum(_expanded(key, known, depth + 1) + _expanded(value, known, depth + 1) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_expanded(item, known, depth + 1) for item in node.value)
    known[id(node)] = count
    return count


def _construct_int(loader: yaml.SafeLoader, node: Any) -> int:
    text = node.value
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_mapping(loader: yaml.SafeLoader, node: Any) -> Iterator[Lined]:
    made = Lined(node.start_mark.line + 1)
    yield made
    names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    if len(set(map(str, names))) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} comes twice", node.start_mark)
    made.update(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
