"""The order for a training as the page sends it: a skill, tasks, models, and a few numbers.

A page can only name data. Commands, code and keys come from files and from the environment, so that whoever gets hold
of a session of the browser cannot run programs with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skilltune.config import EVALS, FILE_NAME, BudgetConfig, Config, load_config, make_config, to_toml
from skilltune.errors import UsageError
from skilltune.names import parse_name
from skilltune.scorers import BUILTIN

SCHEMES = ("openai", "anthropic", "local", "claude-code", "codex", "opencode", "examples")
"""Schemes of names that a page may give. Commands and plug-ins are named in a config file."""
START = "start.toml"  # the config of a run that the page started without one
_NAME = re.compile(r"\w[\w.-]{0,99}")
LIMITS = tuple(BudgetConfig.model_fields)
_Short = Annotated[str, Field(max_length=500)]


class Order(BaseModel):
    """The fields of the form. Paths are relative to the project."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    skill: Annotated[str, Field(min_length=1, max_length=500)]
    tasks: _Short = ""
    target: _Short = ""
    optimizer: _Short = ""
    score: _Short = ""
    preset: Literal["", "default", "paper"] = ""
    seed: int | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    budget: Mapping[str, Annotated[float, Field(gt=0, lt=1e15, strict=False)]] = {}
    run: _Short = ""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Order:
        """Raises `UsageError` for unknown fields and values of the wrong type."""
        try:
            order = cls.model_validate(dict(data))
        except ValidationError as error:
            first = error.errors()[0]
            fault = first["msg"]
            if first["type"] == "extra_forbidden":
                fault = f"unknown field; there are {', '.join(cls.model_fields)}"
            raise UsageError(f"{'.'.join(map(str, first['loc'])) or 'the order'}: {fault}") from error
        for role in ("target", "optimizer"):
            name = getattr(order, role)
            if name and (scheme := parse_name(name).scheme) not in SCHEMES:
                raise UsageError(
                    f"{role}: the page cannot name {scheme}: a program or a folder is named in {FILE_NAME} beside the "
                    "skill"
                )
        if order.score and order.score.partition(":")[0] not in BUILTIN:
            raise UsageError(
                f"score: the page can name {', '.join(BUILTIN)}; other scores are named in {FILE_NAME} beside the skill"
            )
        if unknown := sorted(order.budget.keys() - set(LIMITS)):
            raise UsageError(f"budget: unknown limit {unknown[0][:40]!r}; there are {', '.join(LIMITS)}")
        if order.run and not _NAME.fullmatch(order.run):
            raise UsageError("run: a name of letters, digits, hyphens and dots, at most 100")
        return order

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were given, by dotted key; without skill and tasks."""
        given = {
            "preset": self.preset,
            "seed": self.seed,
            "env.score": self.score,
            "target.model": self.target,
            "optimizer.model": self.optimizer,
            "train.epochs": self.epochs,
            "train.batch_size": self.batch_size,
            **{f"budget.{name}": int(n) if n == int(n) else n for name, n in self.budget.items()},
        }
        return {key: value for key, value in given.items() if value not in ("", None)}


@dataclass(frozen=True, slots=True)
class Plan:
    """An order with its paths found. `config` is the file or folder that holds the settings, None if there is none."""

    order: Order
    project: Path
    skill: Path
    tasks: Path | None
    config: Path | None

    @classmethod
    def of(cls, order: Order, project: Path) -> Plan:
        """Raises `UsageError` for a path outside of the project, and for tasks that are missing."""
        skill = inside(project, order.skill, "skill")
        tasks = inside(project, order.tasks, "tasks") if order.tasks else None
        if tasks is not None and not tasks.is_file():
            raise UsageError(f"tasks: there is no file {order.tasks} in {project}")
        has_config = skill.is_dir() and ((skill / FILE_NAME).is_file() or (skill / EVALS).is_file())
        config = skill if has_config or skill.suffix == ".toml" else None
        if config is None and tasks is None:
            raise UsageError(
                f"tasks: name a file with tasks, because {order.skill} holds neither {FILE_NAME} nor {EVALS}"
            )
        return cls(order, project, skill, tasks, config)

    @property
    def name(self) -> str:
        """The name of the run, if the order gives none."""
        named = self.skill.parent if self.skill.name in ("SKILL.md", FILE_NAME) else self.skill
        plain = re.sub(r"[^\w.-]+", "-", named.stem if named.suffix in (".md", ".toml") else named.name).strip("-.")
        return self.order.run or plain[:80] or "run"

    def config_in(self, folder: Path) -> tuple[Config, Path]:
        """The settings, and the folder at which their relative paths start: `folder` if there is no config file."""
        if self.config is not None:
            return load_config(self.config, self._overrides)
        tree: dict[str, Any] = {"skill": _relative(self.skill, folder)}
        for key, value in self.order.settings.items():
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = value
        assert self.tasks is not None
        tree.setdefault("env", {})["samples"] = _relative(self.tasks, folder)
        return make_config(tree, source="the form"), folder

    def words(self, folder: Path) -> list[str]:
        """The arguments of `skilltune train` for a run in `folder`, given in the project's folder. Without a config
        file, one is written there."""
        if self.config is not None:
            return [_relative(self.config, self.project), *self._overrides]
        cfg, _ = self.config_in(folder)
        path = folder / START
        path.write_text(to_toml(cfg), encoding="utf-8")
        return [_relative(path, self.project)]

    @property
    def _overrides(self) -> list[str]:
        assert self.config is not None
        root = self.config if self.config.is_dir() else self.config.parent
        given = dict(self.order.settings)
        if self.tasks is not None:
            given["env.samples"] = _relative(self.tasks, root)
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]


def inside(project: Path, text: str, field: str) -> Path:
    """The real path of a file or folder of the project. Raises `UsageError` if it lies outside, or in a hidden
    folder."""
    try:
        path = (project / text).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{field}: {text[:100]!r} is no path") from error
    if not path.is_relative_to(project):
        raise UsageError(
            f"{field}: {text[:200]} lies outside of {project}; start `skilltune ui` in a folder that holds it"
        )
    if any(part.startswith(".") for part in path.relative_to(project).parts):
        raise UsageError(f"{field}: {text[:200]} is hidden; the page reads no hidden files")
    return path


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
