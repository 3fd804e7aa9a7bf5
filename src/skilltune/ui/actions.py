"""The actions of the page on a run. Each action has a text that states its effect before it is confirmed.

Every action calls the function of the command line. A training runs in a process of its own (`launch`).
"""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skilltune.authoring.review import decide, drafts_in
from skilltune.config import EVALS, FILE_NAME
from skilltune.errors import RunError, SkilltuneError, UsageError
from skilltune.export import KINDS, best_of, export
from skilltune.history.adopt import adoption
from skilltune.history.record import Record, affordable
from skilltune.history.shapes import to_json
from skilltune.journal.run import Run
from skilltune.preflight.check import check
from skilltune.report.terminal import check_rows, estimate_rows
from skilltune.skill import MAIN
from skilltune.ui.launch import launch
from skilltune.ui.order import LIMITS, Order, Plan, inside
from skilltune.ui.runs import Runs
from skilltune.usage import Usage, describe_usage

STOP = "stop"
TRAIN = ("skilltune", "train")
READ_ONLY = "this server was started with --read-only"
MOST_LISTED = 200  # skills, and files of tasks, that the form offers
MOST_SEEN = 20_000  # entries of folders that are looked at for them
DEPTH = 4


class Refused(UsageError):
    """An action that the state of the run does not allow, or that this server does not take."""


class ReadOnly(Refused):
    """An action on a server that only shows."""


@dataclass(frozen=True, slots=True)
class Action:
    """An action, and its effect in a sentence or two. `why_not` says why it is not enabled. `fields` are the fields of
    its form.

    Commands and paths come from the journal of a run, which others may have written. They are shown without hidden
    characters, so that what is confirmed is what is done.
    """

    name: str
    label: str
    effect: str
    why_not: str = ""
    fields: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**to_json(self), "enabled": not self.why_not}


@dataclass(eq=False)
class Actions:
    """The actions of one server. `project` is the folder in which it was started, where skills and tasks lie."""

    runs: Runs
    project: Path
    read_only: bool
    _busy: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _checking: threading.Lock = field(default_factory=threading.Lock)

    # -- what can be done

    def general(self) -> dict[str, Any]:
        """The actions that are not about a run, and what the form can offer."""
        why_not = READ_ONLY if self.read_only else ""
        actions = [
            Action(
                "check",
                "Check",
                "Tests skill, samples and scorer, and estimates the cost. No model is called.",
                why_not,
            ),
            Action(
                "start",
                "Start training",
                "Starts a training that calls the target and the optimizer and costs what the check estimates, up to "
                "the budget. It goes on if this page or the server is closed.",
                why_not,
            ),
        ]
        skills, tasks = ([], []) if self.read_only else self._offered()
        return {
            "read_only": self.read_only,
            "actions": [action.to_json() for action in actions],
            "skills": skills,
            "tasks": tasks,
        }

    def of_run(self, folder: Path) -> list[Action]:
        with Run.read(folder) as run, run.reading():
            actions = _actions(Record.of(run), self.project)
        if self.read_only:
            actions = [replace(action, why_not=READ_ONLY) for action in actions]
        return actions

    # -- before a run

    def check(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The findings of `skilltune check` on an order. It runs in this thread, one check at a time."""
        self._require_writable()
        plan = Plan.of(Order.of(data), self.project)
        cfg, root = plan.config_in(self.project)
        with self._checking:
            found = _apart(lambda: asyncio.run(check(cfg, root)))
        cost = estimate_rows(found.estimate) if found.estimate is not None else []
        rest = [row for row in check_rows(found) if row not in cost]
        return {
            "fine": not found.problems,
            "problems": found.problems,
            "rows": [*cost, ("limit", _describe_limits(cfg.budget.model_dump())), *rest],  # first what it may cost
            "preview": found.preview,
        }

    def start(self, data: Mapping[str, Any]) -> str:
        """Start a training and return the id of its run when it has begun. The same order is not taken a second time
        while the first one starts."""
        self._require_writable()
        plan = Plan.of(Order.of(data), self.project)
        with self._alone(f"start {plan.order.model_dump_json()}"):
            if plan.order.run and (self.runs.root / plan.order.run).exists():
                raise Refused(f"there is a folder {plan.order.run} in {self.runs.root}: choose another name")
            folder = self.runs.new(plan.name)
            try:
                words = plan.words(folder)
            except (SkilltuneError, OSError):
                with suppress(OSError):
                    folder.rmdir()
                raise
            launch(words, self.project, folder)
        return self.runs.id_of(folder)

    # -- during a run

    def act(self, name: str, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
        """Do an action of a run. Raises `Refused` if it is not enabled, and `UsageError` if it fails."""
        self._require_writable()
        with self._alone(f"run {folder}"):
            with Run.read(folder) as run, run.reading():
                record = Record.of(run)
                action = next((action for action in _actions(record, self.project) if action.name == name), None)
                if action is None:
                    raise Refused(f"there is no action {name[:40]!r}")
                if action.why_not:
                    raise Refused(f"{action.label}: {action.why_not}")
                do = self._prepared(name, record, data)
            return do()

    def _prepared(self, name: str, record: Record, data: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """The action as a function to call when the journal is closed."""
        folder = record.folder
        if name == "pause":
            return lambda: _pause(folder)
        if name == "export":
            return _prepare_export(record, data, self.project)
        if name == "adopt":
            change = adoption(record)
            if not change.path.is_relative_to(self.project):
                raise Refused(f"{change.path} lies outside of {self.project}: use `skilltune adopt {folder}`")
            return lambda: {"path": str(change.write())}
        larger = _larger(record, data) if name == "budget" else ""
        words, place = _command(record, larger)
        return lambda: _resume(words, place, folder)

    # -- drafts

    def drafts(self) -> dict[str, Any]:
        """The files of the project that hold drafts."""
        files = []
        for name in self._offered()[1]:
            with suppress(UsageError):
                drafts, samples = drafts_in(self.project / name)
                if drafts:
                    files.append({"file": name, "drafts": len(drafts), "samples": samples})
        return {"files": files}

    def drafts_of(self, name: str) -> dict[str, Any]:
        drafts, _ = drafts_in(self._draft_file(name))
        rows = [{"id": d.id, "digest": d.digest, "reviewed": False, "sample": d.row} for d in drafts]
        return {"file": name, "samples": rows}

    def review(self, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Decide on one draft, see `authoring.review.decide`."""
        self._require_writable()
        decision, digest, changed = data.get("decision"), data.get("digest"), data.get("sample")
        if decision not in ("keep", "edit", "delete") or not isinstance(digest, str):
            raise UsageError("name a draft by its digest, and the decision: keep, edit or delete")
        if changed is not None and not isinstance(changed, Mapping):
            raise UsageError("sample: the fields of the draft as an object")
        path = self._draft_file(name)
        with self._alone(f"drafts {path}"):
            return {"left": decide(path, digest, decision, changed if decision == "edit" else None)}

    def _draft_file(self, name: str) -> Path:
        path = inside(self.project, name, "file")
        if path.suffix != ".jsonl" or not path.is_file():
            raise UsageError(f"there is no file of drafts {name[:200]} in {self.project}: drafts are in .jsonl files")
        return path

    # -- parts

    def _require_writable(self) -> None:
        if self.read_only:
            raise ReadOnly(READ_ONLY)

    def _alone(self, what: str) -> _Alone:
        return _Alone(self, what)

    def _offered(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Skills and files of tasks in the project, by path. Links, hidden folders and runs are left out."""
        skills: list[dict[str, Any]] = []
        tasks: list[str] = []
        seen = 0
        for place, folders, files in os.walk(self.project):
            here = Path(place)
            depth = len(here.relative_to(self.project).parts)
            seen += len(files) + len(folders)
            if "run.db" in files or seen > MOST_SEEN:
                folders.clear()
                continue
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _NOT_OURS and depth < DEPTH)
            name = here.relative_to(self.project).as_posix()
            if MAIN in files or FILE_NAME in files:
                skills.append({"path": name, "config": FILE_NAME in files or (here / EVALS).is_file()})
            for file in sorted(files):
                if file.endswith(".jsonl") and not file.startswith(".") and not (here / file).is_symlink():
                    tasks.append((here / file).relative_to(self.project).as_posix())
        return skills[:MOST_LISTED], tasks[:MOST_LISTED]


_NOT_OURS = ("node_modules", "__pycache__", "venv", "site-packages")


class _Alone:
    """Nobody else does the same at the same time: two tabs, or a double click, do not start two trainings."""

    def __init__(self, actions: Actions, what: str) -> None:
        self._actions, self._what = actions, what

    def __enter__(self) -> None:
        with self._actions._lock:
            if self._what in self._actions._busy:
                raise Refused("the same is under way already: wait for it")
            self._actions._busy.add(self._what)

    def __exit__(self, *_: object) -> None:
        with self._actions._lock:
            self._actions._busy.discard(self._what)


def _actions(record: Record, project: Path) -> list[Action]:
    running, finished = record.state == "running", record.state == "finished"
    asked = (record.folder / STOP).exists()
    under_way = "" if not running else "the run is under way"
    no_way = under_way or ("the run has finished" if finished else "") or _no_command(record, project)
    again = "Goes on with the run."
    if (command := record.command) is not None:
        line = affordable(command["line"], record.larger)
        again = f"Runs `{line}` in {command['folder']}. Stored answers cost nothing again."
    again += f" This raises the limit that stopped it: {record.larger}." if record.larger else ""
    spent = describe_usage(sum(record.usage.values(), Usage()))
    state = f"Spent so far: {spent}. Limits: {_describe_limits(_limits(record))}."
    why_no_pause = "" if running else "the run is not under way"
    if running and asked:
        why_no_pause = "it is asked for already: the run stops before its next step"
    unfinished = "" if finished else under_way or "the run has not finished"
    return [
        Action(
            "pause",
            "Pause",
            "The run ends the step that it is in, then stops before the test split is read. Nothing that was paid is "
            "lost.",
            why_no_pause,
        ),
        Action("resume", "Resume", f"{again} {state}", no_way),
        Action(
            "budget",
            "Raise the budget",
            f"Goes on with a larger limit. {state}",
            no_way or ("" if _limits(record) else "the run has no limit, so Resume is enough"),
            _limit_fields(record),
        ),
        Action(
            "export",
            "Export",
            f"Writes the skill that ships into {project}. Nothing is overwritten.",
            unfinished,
            _EXPORT_FIELDS,
        ),
        _adopt(record, unfinished),
    ]


def _limit_fields(record: Record) -> tuple[Mapping[str, Any], ...]:
    amount = {"name": "amount", "label": "New limit", "type": "number", "min": "0", "step": "any", "required": True}
    return amount, {"name": "unit", "label": "of", "choices": list(_limits(record))}


_EXPORT_FIELDS = (
    {"name": "to", "label": "For", "choices": list(KINDS)},
    {"name": "name", "label": "Name, if the skill states none"},
    {"name": "description", "label": "Description, if the skill states none"},
)


def _adopt(record: Record, why_not: str) -> Action:
    effect = "Replaces the input skill by the skill that ships."
    if not why_not:
        try:
            change = adoption(record)
        except (UsageError, RunError) as error:
            why_not = str(error)
        else:
            proven = record.finish is not None and record.finish.exit_code == 0
            effect = f"Replaces {change.path}. " + (
                "The gain is certified." if proven else "The gain is not certified: no test excludes chance."
            )
    return Action("adopt", "Adopt", effect, why_not)


def _no_command(record: Record, project: Path) -> str:
    """The reason why the run cannot be resumed from here, or ""."""
    command = record.command
    if command is None:
        return "no command is recorded: it was started in Python, or ended too early; start it there again"
    try:
        words = shlex.split(command["line"])
    except ValueError:
        words = []
    if tuple(words[:2]) != TRAIN:
        return "its command is not known"
    folder = Path(command["folder"])
    if not folder.is_dir():
        return f"the folder {folder}, in which it was started, is gone"
    if not folder.resolve().is_relative_to(project):  # its config may name any program
        return f"it was started in {folder}, outside of {project}: start `skilltune ui` there, or use the command"
    return ""


def _command(record: Record, larger: str) -> tuple[list[str], Path]:
    """The arguments of `train` that resume the run, and the folder to give them in."""
    assert record.command is not None
    words = shlex.split(affordable(record.command["line"], larger or record.larger))[len(TRAIN) :]
    if "--run" in words:  # `launch` names the folder as it is called now
        place = words.index("--run")
        del words[place : place + 2]
    return [word for word in words if not word.startswith("--run=")], Path(record.command["folder"])


def _pause(folder: Path) -> dict[str, Any]:
    with suppress(FileExistsError):
        try:
            os.close(os.open(folder / STOP, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        except FileExistsError:
            raise
        except OSError as error:
            raise UsageError(f"cannot create {folder / STOP}: {error.strerror or error}") from error
    return {}


def _resume(words: list[str], place: Path, folder: Path) -> dict[str, Any]:
    (folder / STOP).unlink(missing_ok=True)
    launch(words, place, folder)
    return {}


def _limits(record: Record) -> dict[str, float]:
    """The limits of the run: those of its configuration, and later ones of its command."""
    limits = {name: value for name, value in (record.config.get("budget") or {}).items() if value is not None}
    with suppress(ValueError):
        for word in shlex.split(record.command["line"]) if record.command else ():
            key, _, value = word.partition("=")
            if key.removeprefix("budget.") in LIMITS and key.startswith("budget."):
                with suppress(ValueError):
                    limits[key.removeprefix("budget.")] = float(value)
    return limits


def _describe_limits(limits: Mapping[str, float | None]) -> str:
    return ", ".join(f"{value:,.12g} {name}" for name, value in limits.items() if value is not None) or "none"


def _larger(record: Record, data: Mapping[str, Any]) -> str:
    """The override for a larger limit. Raises `UsageError` if it is not larger."""
    if len(data) != 1 or (name := next(iter(data))) not in LIMITS:
        raise UsageError(f"budget: name one limit of {', '.join(LIMITS)} and its new value")
    value = data[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        raise UsageError(f"budget: {name} must be a number above 0")
    if name in ("calls", "tokens") and value != int(value):
        raise UsageError(f"budget: {name} must be a whole number")
    limit = _limits(record).get(name)
    if limit is None:
        raise UsageError(f"budget: {name} has no limit in this run, so there is nothing to raise")
    if value <= limit:
        raise UsageError(f"budget: {name} is {limit:,.12g} already; a limit can only be raised")
    return f"budget.{name}={value:.12g}"


def _prepare_export(record: Record, data: Mapping[str, Any], project: Path) -> Callable[[], dict[str, Any]]:
    kind, name, description = (data.get(key) or None for key in ("to", "name", "description"))
    if kind not in KINDS:
        raise UsageError(f"to: name one of {', '.join(KINDS)}")
    for key, value in (("name", name), ("description", description)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{key}: must be text")
    skill = best_of(record.run)
    return lambda: {"path": str(export(skill, kind, project, name=name, description=description).resolve())}


def _apart(work: Callable[[], Any]) -> Any:
    """The result of work that may run a user's scorer, which must not end the server."""
    try:
        return work()
    except SkilltuneError:
        raise
    except BaseException as error:
        raise UsageError(f"the check ended early: {type(error).__name__}: {error}") from error
