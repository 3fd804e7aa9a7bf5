"""Write reference.md, beside this file, from the code: commands, exit codes, configuration, built-in scorers.

Run `python docs/reference.py` to write it. A test compares the committed page with `page()`, so that it is never out of
date. Help texts are rendered here, because typer's layout changes from version to version.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from skilltune.cli.main import app
from skilltune.config import MAY_DIFFER, PRESETS, Config
from skilltune.scorers import BUILTIN, checks, judge, tests

PAGE = Path(__file__).with_name("reference.md")
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def page() -> str:
    """The text of the page."""
    parts = ["# Reference", "Written by `docs/reference.py` from the code; do not edit it by hand.", "## Commands"]
    commands = {c.name or c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
    for name, command in commands.items():
        parts += [f"### skilltune {name}", *_command(name, command)]
    parts += ["## Exit codes of train", _exit_codes(inspect.getdoc(commands["train"]) or "")]
    parts += ["## Configuration", *_configuration(), "## Built-in scorers", *_scorers()]
    return "\n\n".join(parts) + "\n"


# -- commands


def _command(name: str, function: Callable[..., Any]) -> Iterator[str]:
    parameters = [
        _Parameter(key, value) for key, value in inspect.signature(function, eval_str=True).parameters.items()
    ]
    yield f"`{' '.join(['skilltune', name, *(p.name for p in parameters if not p.is_option), '[OPTIONS]'])}`"
    for paragraph in inspect.cleandoc(function.__doc__ or "").replace("\b\n", "").split("\n\n"):
        title, _, block = paragraph.partition("\n")
        if title == "Exit codes:":
            if name != "train":  # its codes have their own section
                yield f"Exit codes of `{name}`:\n\n{_exit_codes(paragraph)}"
        elif title.endswith(":") and block.startswith("  "):
            yield ("" if title == "Examples:" else f"{title}\n\n") + f"```text\n{inspect.cleandoc(block)}\n```"
        else:
            yield paragraph
    yield _table(("argument or option", "meaning"), [(f"`{p.name}`", p.meaning) for p in parameters])


class _Parameter:
    """An argument or an option of a command, as its function declares it. `name` is its written form."""

    def __init__(self, name: str, parameter: inspect.Parameter) -> None:
        kind, info = get_args(parameter.annotation)
        self.is_option = isinstance(info, OptionInfo)
        required = parameter.default is inspect.Parameter.empty
        kind = next((part for part in get_args(kind) if part is not type(None)), kind) if not _many(kind) else kind
        choices = [choice.value for choice in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []
        if self.is_option:  # typer takes the first positional argument of `Option` for a default
            names = ", ".join(sorted((info.default, *(info.param_decls or ())), key=len))
            self.name = names if kind is bool else f"{names} {info.metavar or name.strip('_').upper()}"
        else:
            name = (info.metavar or name.upper()).strip("[]").replace("|", " or ")
            self.name = (name if required else f"[{name}]") + "..." * _many(kind)
        self.meaning = info.help
        if choices:
            self.meaning += f" One of {', '.join(choices)}."
        default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            self.meaning += f" [default: {default}]"


def _many(kind: Any) -> bool:
    """True for a list type, or for a list type or None."""
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _exit_codes(text: str) -> str:
    codes = re.findall(r"^ +(\d+) +(.+)$", text.partition("Exit codes:")[2], re.MULTILINE)
    return _table(("code", "meaning"), codes)


# -- configuration


def _configuration() -> Iterator[str]:
    yield (
        "A config is a TOML file of any name; in a skill folder it is `skilltune.toml`. `KEY=VALUE` on the command "
        "line overrides a key (`train.epochs=2`). In Python the tables are keyword arguments. An unknown key is an "
        "error that names the nearest known key. API keys are not part of the config: they are read from the "
        "environment."
    )
    yield (
        "The same command resumes a run. It refuses a changed configuration; only these keys may change: "
        + ", ".join(f"`{key}`" if not key.endswith(".") else f"all of `[{key[:-1]}]`" for key in MAY_DIFFER)
        + "."
    )
    sections = {name: field for name, field in Config.model_fields.items() if _is_section(field)}
    plain = [(name, field) for name, field in Config.model_fields.items() if name not in sections]
    yield from ("### Top level", _keys(plain, PRESETS["paper"]))
    for name, field in sections.items():
        model: type[BaseModel] = field.annotation  # type: ignore[assignment]
        yield f"### [{name}]"
        yield inspect.cleandoc(model.__doc__ or "")
        yield _keys(list(model.model_fields.items()), PRESETS["paper"].get(name, {}))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _keys(fields: Sequence[tuple[str, FieldInfo]], paper: dict[str, Any]) -> str:
    rows = []
    for name, field in fields:
        default = f"`{_value(field.default)}`"
        if name in paper:
            default += f", `paper`: `{_value(paper[name])}`"
        rows.append((f"`{name}`", _type(field.annotation) + _bounds(field), default, field.description or ""))
    return _table(("key", "value", "default", "meaning"), rows)


def _value(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(m, name):g}" for m in field.metadata for name, sign in BOUNDS.items() if hasattr(m, name)
    ]
    return " " + ", ".join(found) if found else ""


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_value(value)}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in inner if part is not type(None))
    if origin is tuple:
        return f"list of {_type(inner[0])}" if inner[-1] is Ellipsis else f"{len(inner)} × {_type(inner[0])}"
    if origin is dict or annotation is dict:
        return "table"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(annotation) or annotation.__name__


# -- scorers


def _scorers() -> Iterator[str]:
    yield (
        "Use these names as `env.score`, or as the `type` of a [check](formats.md#checks). `NAME:VALUE` sets the first "
        'option; a table sets any option: `score = {type = "number", tolerance = 0.01}`. An empty answer scores 0 '
        "without a call of the scorer. Your own scorer is `python:file.py:fn`, or a [plug-in](plugins.md)."
    )
    for name, compare in BUILTIN.items():
        yield from (f"### {name}", inspect.getdoc(compare) or "")
        if options := _options(compare):
            yield _table(("option", "value", "default"), options)
    for name, title, options in (
        ("checks", _first_line(checks), checks.Options),
        ("not", "The negation of a check.", checks.Negation),
        ("tests", f"{_first_line(tests)} See [The sandbox](sandbox.md#the-scorer-tests).", tests.Options),
        ("judge", f"{_first_line(judge)} See [A judge](judge.md).", judge.Options),
    ):
        yield from (f"### {name}", f"{title} {inspect.getdoc(options)}")
        fields = [(f"`{key}`", _type(field.annotation), _default(field)) for key, field in options.model_fields.items()]
        yield _table(("option", "value", "default"), fields)


def _first_line(module: types.ModuleType) -> str:
    return " ".join((inspect.getdoc(module) or "").partition("\n\n")[0].split())


def _options(compare: Callable[..., Any]) -> list[tuple[str, str, str]]:
    hints = get_type_hints(compare)
    parameters = [p for p in inspect.signature(compare).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return [(f"`{p.name}`", _type(hints[p.name]), f"`{_value(p.default)}`") for p in parameters]


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"


# -- Markdown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
