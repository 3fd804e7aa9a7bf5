"""Reads a promptfoo configuration: prompts × tests, with assertions that can be computed or read by a judge.

Supported parts have exactly promptfoo's meaning. Everything else (other assertions, template logic, scripts, scenarios,
thresholds) is refused with its line. Settings of promptfoo's own run (providers, evaluation options, the grader's
model) are ignored, because target and judge are named in skilltune's configuration.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from skilltune.envs.formats import assertions, yaml12
from skilltune.envs.formats.rows import Row
from skilltune.envs.formats.tables import records
from skilltune.envs.formats.text import read_text
from skilltune.envs.formats.yaml12 import Lined
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
_PROMPT_FILES = (".txt", ".md", ".markdown", ".j2", ".json", ".jsonl", ".yaml", ".yml")
_PROGRAMS = (".cjs", ".js", ".mjs", ".py", ".ts", ".sh", ".rb", ".go")  # promptfoo executes them
_TEST_FILES = (".csv", ".json", ".jsonl", ".yaml", ".yml")
MOST_ROWS = 20_000  # rows of one configuration: prompts × tests × combinations of list variables
_SLOT = re.compile(r"{{-?\s*([\w.]+)\s*-?}}")
_LOGIC = re.compile(r"{[{%#]")


def rows(path: Path) -> Iterator[Row]:
    """Yield a row for each pair of a prompt and a test. List variables of a test give one row per combination.

    With several prompts, the rows of one test form a group, so that they stay in one split. Combinations are counted
    before they are built.
    """
    config = _mapping(yaml12.load(path), str(path))
    _only(config, (*_TOP, *_HOW_IT_RUNS), path, "the configuration")
    prompts = _prompts(config.get("prompts"), path, config.line)
    default = _mapping(config.get("defaultTest") or Lined(config.line), f"{path}:{config.line}: defaultTest")
    _only(default, _TEST, path, "defaultTest")
    made = 0
    for test in _tests(config.get("tests"), path, config.line):
        where = f"{test.path}:{test.line}"
        _only(test, _TEST, test.path, "a test")
        set_vars = {**_vars(default, path), **_vars(test, test.path)}
        asserts = [*_asserts(default, path), *_asserts(test, test.path)]
        lists = {name: value if isinstance(value, list) else [value] for name, value in set_vars.items()}
        made += len(prompts) * math.prod(map(len, lists.values()))
        if made > MOST_ROWS:
            raise UsageError(
                f"{where}: its prompts and list variables come to {made:,} samples with those before it, more than "
                f"{MOST_ROWS:,}: use fewer values"
            )
        for values in product(*lists.values()):
            chosen = dict(zip(lists, values, strict=True))
            metadata = {**_metadata(default, path), **_metadata(test, test.path), "vars": chosen}
            if test.get("description"):
                metadata["description"] = test["description"]
            checks = [
                check for place, item in asserts for check in assertions.checks(_rendered(item, chosen, place), place)
            ]
            group = {"group": where} if len(prompts) > 1 else {}
            for prompt in prompts:
                yield where, {"input": _filled(prompt, chosen, where), "checks": checks, "metadata": metadata, **group}


def _mapping(value: Any, where: str) -> Lined:
    if not isinstance(value, Lined):
        raise UsageError(f"{where}: expected a mapping of names to values, not {quote(str(value))}")
    return value


def _metadata(test: Lined, path: Path) -> dict[str, Any]:
    given = test.get("metadata") or {}
    if not isinstance(given, dict):
        raise UsageError(f"{path}:{test.line}: metadata must be a mapping, not {quote(str(given))}")
    return given


def _only(mapping: Lined, known: tuple[str, ...], path: Path, what: str) -> None:
    for key in mapping:
        if key not in known:
            raise UsageError(f'{path}:{mapping.line}: "{key}" of {what} is not supported{nearest(str(key), known)}')


# -- prompts and their variables


def _prompts(value: Any, path: Path, line: int) -> list[Any]:
    """Each prompt as a text or as chat messages, with unfilled slots."""
    listed = value if isinstance(value, list) else [value]
    found = [prompt for item in listed if item is not None for prompt in _prompt(item, path, line)]
    if not found:
        raise UsageError(f"{path}:{line}: no prompts: there is nothing to fill the tests into")
    return found


def _prompt(item: Any, path: Path, line: int) -> list[Any]:
    if isinstance(item, Lined):
        line = item.line
        _only(item, ("id", "label", "raw"), path, "a prompt")
        item = item.get("raw", item.get("id"))
    if not isinstance(item, str):
        raise UsageError(f"{path}:{line}: a prompt must be a text or a file, not {quote(str(item))}")
    files = _files(item, path, line, "a prompt", (*_PROMPT_FILES, ".csv"))
    return [_chat(item)] if files is None else [prompt for file in files for prompt in _read_prompts(file, path, line)]


def _read_prompts(file: Path, path: Path, line: int) -> list[Any]:
    """The prompts of one file. A .txt file may have several, separated by `---`; a .jsonl file has one per line."""
    match file.suffix.lower():
        case ".txt":
            texts = re.split(r"^---[ \t]*$", read_text(file), flags=re.MULTILINE)
            return [_chat(text.strip()) for text in texts if text.strip()]
        case ".jsonl":
            return [_chat(text) for text in read_text(file).split("\n") if text.strip()]
        case ".yaml" | ".yml":
            loaded = yaml12.load(file)
            return [loaded if isinstance(loaded, list) else read_text(file)]
        case suffix if suffix in _PROMPT_FILES:
            return [_chat(read_text(file))]
    supported = ", ".join(_PROMPT_FILES)
    raise UsageError(f"{path}:{line}: a prompt from {quote(file.name)} is not supported: only {supported} files are")


def _files(item: str, path: Path, line: int, what: str, suffixes: tuple[str, ...]) -> list[Path] | None:
    """The files that a text names by path or pattern, relative to the configuration, as in promptfoo.

    None if the text names no file. A text that can only mean a file must match one.
    """
    explicit = item.startswith("file://")
    name = item.removeprefix("file://").strip()
    if not explicit and ("\n" in name or "{{" in name or len(name) > 500):
        return None
    try:
        if (path.parent / name).is_file():
            return [path.parent / name]
        pattern = any(mark in name for mark in "*?[")
        found = sorted(file for file in path.parent.glob(name) if file.is_file()) if pattern else []
    except (OSError, ValueError, NotImplementedError):  # not a possible file name
        pattern, found = False, []
    if found:
        return found
    suffix = Path(name.split(":")[0]).suffix.lower()  # also of "prompt.py:function"
    if suffix in _PROGRAMS and (explicit or " " not in name):
        raise UsageError(f"{path}:{line}: {what} from {quote(item)} is not supported: it is a program")
    if explicit or (suffix in suffixes and " " not in name):
        problem = "no file fits the pattern" if pattern else "there is no file"
        raise UsageError(f"{path}:{line}: {what} is {quote(item)}, but {problem} {quote(name)} in {path.parent}")
    return None


def _chat(text: str) -> Any:
    """Chat messages if the prompt is a JSON list of them, else the text."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _tests(value: Any, path: Path, line: int, within: tuple[Path, ...] = ()) -> Iterator[Lined]:
    """Yield the tests of a list, and those in the files that it names. `within` are the files that led here."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Lined):
            item.path = path
            yield item
        elif isinstance(item, str) and (files := _files(item, path, line, "`tests`", _TEST_FILES)):
            for file in files:
                if file.resolve() in within:
                    raise UsageError(f"{path}:{line}: the tests of {file.name} name {file.name} itself")
                yield from _read_tests(file, path, line, (*within, file.resolve()))
        else:
            shown = "no tests" if item is None else f"tests from {quote(str(item))} are not supported"
            raise UsageError(
                f"{path}:{line}: {shown}: write them as a list, here or in a file: {', '.join(_TEST_FILES)}"
            )


def _read_tests(file: Path, path: Path, line: int, within: tuple[Path, ...]) -> Iterator[Lined]:
    match file.suffix.lower():
        case ".csv":
            for where, record in records(file, keep_empty=True):
                if isinstance(record, UsageError):
                    raise record
                yield _tabled(record, where, file)
        case ".jsonl":
            for number, text in enumerate(read_text(file).split("\n"), 1):
                if text.strip():
                    test = _mapping(yaml12.parse(text, f"{file}:{number}"), f"{file}:{number}")
                    test.line, test.path = number, file
                    yield test
        case ".yaml" | ".yml" | ".json":
            loaded = yaml12.load(file)
            yield from _tests(loaded if isinstance(loaded, list) else [loaded], file, 1, within)
        case _:
            supported = ", ".join(_TEST_FILES)
            raise UsageError(
                f"{path}:{line}: tests from {quote(file.name)} are not supported: only {supported} files are"
            )


def _tabled(record: Mapping[str, str], where: str, file: Path) -> Lined:
    """A test from a line of a table: columns are variables, `__expected…` are assertions."""
    test = Lined(int(where.rpartition(":")[2]))
    test.path = file
    test["vars"] = Lined(test.line)
    test["vars"].update({name: value for name, value in record.items() if not name.startswith("__")})
    test["assert"] = []
    metadata = {}
    for name, value in record.items():
        if not value:
            continue
        if name.startswith("__expected"):
            test["assert"].append(value)
        elif name == "__description":
            test["description"] = value
        elif name.startswith("__metadata:"):
            metadata[name.removeprefix("__metadata:").removesuffix("[]")] = value
        elif name.startswith("__") and name != "__metric":  # a name for promptfoo's own reports
            raise UsageError(f'{where}: the column "{name}" is not supported: skilltune would ignore it')
    test["metadata"] = metadata
    return test


def _vars(test: Lined, path: Path) -> dict[str, Any]:
    given = test.get("vars")
    if given is None:
        return {}
    for name, value in _mapping(given, f"{path}:{test.line}: vars").items():
        if isinstance(value, str) and value.startswith("file://"):
            raise UsageError(f"{path}:{given.line}: the variable {name!r} from {quote(value)} is not supported")
    return {str(name): value for name, value in given.items()}


def _filled(template: Any, values: Mapping[str, Any], where: str) -> Any:
    """The template with the `{{ name }}` slots in all its texts filled."""
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


def _asserts(test: Lined, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The assertions of a test, each with its place."""
    listed = test.get("assert") or []
    if not isinstance(listed, list):
        raise UsageError(f"{path}:{test.line}: assert must be a list, not {quote(str(listed))}")
    found: list[tuple[str, Mapping[str, Any]]] = []
    for item in listed:
        where = f"{path}:{test.line}"
        if isinstance(item, str):  # from a table
            found.append((where, assertions.parsed(item, where) or {"type": "equals", "value": item}))
        else:
            mapping = _mapping(item, f"{where}: assert")
            found.append((f"{path}:{mapping.line}", mapping))
    return found


def _rendered(assertion: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The assertion with the variables of its value filled in."""
    known = assertions.is_one(assertion.get("type"))  # otherwise it is refused anyway
    return {**assertion, "value": _filled(assertion.get("value"), values, where)} if known else dict(assertion)
