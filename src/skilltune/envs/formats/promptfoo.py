"""A promptfoo configuration: prompts × tests, with the assertions that can be computed or read by a judge.

The subset is exact: what is read means what promptfoo means by it, and everything else (other assertions, template
logic, scripts, scenarios, thresholds) is refused with its line. How promptfoo would run (providers, options of the
evaluation, the grader's model) is not read: target and judge are named in skilltune's own configuration.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from skilltune.envs.formats.plain import read_text
from skilltune.envs.formats.rows import Row
from skilltune.errors import UsageError
from skilltune.scorers.reading import as_text, nearest, quote

_HOW_IT_RUNS = (
    "$schema",
    "commandLineOptions",
    "description",
    "env",
    "evaluateOptions",
    "outputPath",
    "providers",
    "sharing",
    "tags",
    "targets",
    "writeLatestResults",
)
_TOP = ("prompts", "tests", "defaultTest")
_TEST = ("assert", "description", "metadata", "provider", "providers", "vars")
_ASSERTION = ("metric", "provider", "type", "value", "weight")
_ASSERTIONS = (
    "contains",
    "contains-all",
    "contains-any",
    "contains-json",
    "equals",
    "icontains",
    "icontains-all",
    "icontains-any",
    "is-json",
    "llm-rubric",
    "regex",
)
_SLOT = re.compile(r"{{-?\s*([\w.]+)\s*-?}}")
_LOGIC = re.compile(r"{[{%#]")


def rows(path: Path) -> Iterator[Row]:
    """A row for each pair of a prompt and a test; a test's list variables give one for each combination.

    With several prompts, the rows of one test form a group, so that they stay in one split.
    """
    config = _mapping(_load(path), str(path))
    _only(config, (*_TOP, *_HOW_IT_RUNS), path, "the configuration")
    prompts = _prompts(config.get("prompts"), path, config.line)
    default = _mapping(config.get("defaultTest") or _Mapping(config.line), f"{path}:{config.line}: defaultTest")
    _only(default, _TEST, path, "defaultTest")
    for test in _tests(config.get("tests"), path, config.line):
        where = f"{test.path}:{test.line}"
        _only(test, _TEST, test.path, "a test")
        set_vars = {**_vars(default, path), **_vars(test, test.path)}
        asserts = [*_asserts(default, path), *_asserts(test, test.path)]
        lists = {name: value if isinstance(value, list) else [value] for name, value in set_vars.items()}
        for values in product(*lists.values()):
            chosen = dict(zip(lists, values, strict=True))
            metadata = {**(default.get("metadata") or {}), **(test.get("metadata") or {}), "vars": chosen}
            if test.get("description"):
                metadata["description"] = test["description"]
            checks = [check for place, item in asserts for check in _checks(item, place, chosen)]
            group = {"group": where} if len(prompts) > 1 else {}
            for prompt in prompts:
                yield where, {"input": _filled(prompt, chosen, where), "checks": checks, "metadata": metadata, **group}


# -- YAML, as promptfoo reads it


class _Mapping(dict):
    """A mapping that knows its line, and its file where that matters."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.path = Path()


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types, as js-yaml has them: `yes`, `1:30` and `2024-01-01` are texts, a key comes only once."""


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


def _construct_int(loader: yaml.SafeLoader, node: Any) -> int:
    text = node.value
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_mapping(loader: yaml.SafeLoader, node: Any) -> Iterator[_Mapping]:
    made = _Mapping(node.start_mark.line + 1)
    yield made
    names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} comes twice", node.start_mark)
    made.update(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _load(path: Path) -> Any:
    try:
        return yaml.load(read_text(path), _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from None


def _mapping(value: Any, where: str) -> _Mapping:
    if not isinstance(value, _Mapping):
        raise UsageError(f"{where}: expected a mapping of names to values, not {quote(str(value))}")
    return value


def _only(mapping: _Mapping, known: tuple[str, ...], path: Path, what: str) -> None:
    for key in mapping:
        if key not in known:
            raise UsageError(f'{path}:{mapping.line}: "{key}" of {what} is not supported{nearest(str(key), known)}')


# -- prompts and their variables


def _prompts(value: Any, path: Path, line: int) -> list[Any]:
    """Each prompt as a text or as chat messages, not filled in yet."""
    listed = value if isinstance(value, list) else [value]
    found = [prompt for item in listed if item is not None for prompt in _prompt(item, path, line)]
    if not found:
        raise UsageError(f"{path}:{line}: no prompts: there is nothing to fill the tests into")
    return found


def _prompt(item: Any, path: Path, line: int) -> list[Any]:
    if isinstance(item, _Mapping):
        line = item.line
        _only(item, ("id", "label", "raw"), path, "a prompt")
        item = item.get("raw", item.get("id"))
    if not isinstance(item, str):
        raise UsageError(f"{path}:{line}: a prompt must be a text or a file, not {quote(str(item))}")
    if not item.startswith("file://"):
        return [_chat(item)]
    file = path.parent / item.removeprefix("file://")
    match file.suffix.lower():
        case ".txt":
            texts = re.split(r"^---[ \t]*$", read_text(file), flags=re.MULTILINE)
            return [_chat(text.strip()) for text in texts if text.strip()]
        case ".md" | ".json":
            return [_chat(read_text(file))]
    raise UsageError(f"{path}:{line}: a prompt from {quote(item)} is not supported: only .txt, .md and .json files are")


def _chat(text: str) -> Any:
    """Chat messages if the prompt is a JSON list of them, else the text."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _tests(value: Any, path: Path, line: int) -> Iterator[_Mapping]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and item.startswith("file://") and item.lower().endswith((".yaml", ".yml")):
            file = path.parent / item.removeprefix("file://")
            loaded = _load(file)
            yield from _tests(loaded if isinstance(loaded, list) else [loaded], file, 1)
        elif isinstance(item, _Mapping):
            item.path = path
            yield item
        else:
            shown = "no tests" if item is None else f"tests from {quote(str(item))} are not supported"
            raise UsageError(f"{path}:{line}: {shown}: write them as a list, here or in a file://….yaml")


def _vars(test: _Mapping, path: Path) -> dict[str, Any]:
    given = test.get("vars")
    if given is None:
        return {}
    for name, value in _mapping(given, f"{path}:{test.line}: vars").items():
        if isinstance(value, str) and value.startswith("file://"):
            raise UsageError(f"{path}:{given.line}: the variable {name!r} from {quote(value)} is not supported")
    return {str(name): value for name, value in given.items()}


def _filled(template: Any, values: Mapping[str, Any], where: str) -> Any:
    """The template with its `{{ name }}` slots filled, in all its texts."""
    if isinstance(template, list):
        return [_filled(item, values, where) for item in template]
    if isinstance(template, Mapping):
        return {key: _filled(item, values, where) for key, item in template.items()}
    if not isinstance(template, str):
        return template

    def fill(slot: re.Match[str]) -> str:
        value: Any = values
        for part in slot[1].split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise UsageError(
                    f"{where}: the test sets no variable for {slot[0]}; it has {', '.join(values) or 'none'}"
                )
            value = value[part]
        return "" if value is None else as_text(value)

    if logic := _LOGIC.search(_SLOT.sub("", template)):
        rest = _SLOT.sub("", template)[logic.start() :]
        raise UsageError(f"{where}: only {{{{ name }}}} is supported of the template language, not {quote(rest[:40])}")
    return _SLOT.sub(fill, template)


# -- assertions


def _asserts(test: _Mapping, path: Path) -> list[tuple[str, _Mapping]]:
    """The assertions of a test, each with its place."""
    listed = test.get("assert") or []
    if not isinstance(listed, list):
        raise UsageError(f"{path}:{test.line}: assert must be a list, not {quote(str(listed))}")
    found = [_mapping(item, f"{path}:{test.line}: assert") for item in listed]
    return [(f"{path}:{item.line}", item) for item in found]


def _checks(assertion: _Mapping, where: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One assertion as our checks; a list because `contains-all` is several."""
    kind = assertion.get("type")
    base = str(kind).removeprefix("not-")
    if base not in _ASSERTIONS or kind == "not-llm-rubric":
        hint = "; say the rubric the other way round" if kind == "not-llm-rubric" else nearest(base, _ASSERTIONS)
        raise UsageError(
            f'{where}: the assertion "{kind}" is not supported{hint}; supported: {", ".join(_ASSERTIONS)}, '
            "and all but llm-rubric with not- before it"
        )
    for key in assertion:
        if key not in _ASSERTION:
            raise UsageError(
                f'{where}: "{key}" of the assertion "{kind}" is not supported{nearest(str(key), _ASSERTION)}'
            )
    value = _filled(assertion.get("value"), values, where)
    if isinstance(value, str) and value.startswith("file://"):
        raise UsageError(f'{where}: the assertion "{kind}" takes its value from a file, which is not supported')
    found = _positive(base, value, where)
    if kind != base:
        found = [{"type": "not", "check": found[0] if len(found) == 1 else {"type": "checks", "checks": found}}]
    weight = assertion.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise UsageError(
            f"{where}: weight must be a number above 0, not {quote(str(weight))}: delete the assertion instead"
        )
    return found if weight == 1 else [{**check, "weight": weight / len(found)} for check in found]


def _positive(kind: str, value: Any, where: str) -> list[dict[str, Any]]:
    ignore = {"ignore_case": True} if kind.startswith("i") and kind != "is-json" else {}
    match kind:
        case "equals":
            exact = isinstance(value, dict | list)
            return [
                {"type": "json", "read": "whole", "target": value}
                if exact
                else {"type": "exact", "target": _text(kind, value, where)}
            ]
        case "contains" | "icontains":
            return [{"type": "contains", "target": _text(kind, value, where), **ignore}]
        case "contains-any" | "icontains-any":
            return [{"type": "contains", "target": _several(kind, value, where), **ignore}]
        case "contains-all" | "icontains-all":
            return [{"type": "contains", "target": text, **ignore} for text in _several(kind, value, where)]
        case "regex":
            return [{"type": "regex", "pattern": _text(kind, value, where)}]
        case "is-json" | "contains-json":
            return [
                {"type": "json", "read": "whole" if kind == "is-json" else "anywhere", "schema": _schema(value, where)}
            ]
        case _:
            return [{"type": "judge", "text": _text(kind, value, where)}]


def _text(kind: str, value: Any, where: str) -> str:
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise UsageError(f'{where}: the assertion "{kind}" needs a text as its value, not {quote(str(value))}')
    return as_text(value)


def _several(kind: str, value: Any, where: str) -> list[str]:
    """A list of texts; a text is one that commas separate."""
    if isinstance(value, str):
        value = [part.strip() for part in next(csv.reader([value], skipinitialspace=True), [])]
    if not isinstance(value, list) or not value:
        raise UsageError(f'{where}: the assertion "{kind}" needs a list of texts as its value')
    return [_text(kind, item, where) for item in value]


def _schema(value: Any, where: str) -> dict[str, Any]:
    """A JSON schema, written as a mapping or as text that holds one; none allows any JSON."""
    if isinstance(value, str) and value.strip():
        value = yaml.load(value, _Loader)  # a SafeLoader
    if value in (None, ""):
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: a JSON schema must be a mapping, not {quote(str(value))}")
    return dict(value)
