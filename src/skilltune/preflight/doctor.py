"""What `skilltune doctor` looks at: does every role answer, and is this machine fit for a run?

Findings are collected, never raised, so that one look names all that is wrong. Nothing here prints a key, and the
programs that are asked for their version inherit none.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Literal

from skilltune.build import build_parts, default_folder, endpoint_key
from skilltune.config import Config, ModelConfig, load_config
from skilltune.errors import CallError, Stopped, UsageError
from skilltune.journal.run import scratch_run
from skilltune.keys import OWN, key_of, key_variable
from skilltune.names import parse_name
from skilltune.preflight.probe import PATIENCE_S, Probe, probe_roles
from skilltune.samples import Sample
from skilltune.scorers.judge import Reader
from skilltune.version import __version__

Level = Literal["ok", "warn", "fail"]

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that skilltune is tested with
PROGRAMS = ("git", "claude", "codex")
NEEDED_MB, SPARE_MB = 100, 1000  # free space without which a run cannot be kept, and with which nobody need worry
VERDICT = "judge's verdict"  # the role of the probe that asks for one
CLOCK_S = 60.0
VERSION_S = 10.0
SIGNS = "…·→±≥█"  # what the reports are drawn with


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and how to mend it ("" where nothing is to be mended)."""

    level: Level
    topic: str
    text: str
    fix: str = ""


async def examine(source: Path | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """All findings, in the order of the page. Without a config only the machine is looked at and no model called."""
    cfg, root, broken = None, Path(), []
    if source is not None:
        try:
            cfg, root = load_config(source, overrides)
        except UsageError as error:
            broken = [Finding("fail", "config", str(error), "mend the config and look again")]
    findings = [*_versions(), *broken, *_keys(cfg)]
    if cfg is not None:
        findings += await _roles(cfg, root)
    folder = default_folder(cfg, root) if cfg is not None else Path.cwd() / "runs"
    return [*findings, *_sandbox(cfg), *_disk(folder), *_clock(folder), *_terminal()]


async def _roles(cfg: Config, root: Path) -> list[Finding]:
    """One call to each model, and one verdict of a judge that answers. What keeps a session from being built keeps
    a run from starting."""
    try:
        with scratch_run(None) as run:
            session = build_parts(cfg, run, root)
            try:
                probes = await probe_roles(session)
                if session.judge is not None and not any("judge" in probe.role and probe.error for probe in probes):
                    probes.append(await _verdict(session.judge))
            finally:
                await session.aclose()
    except UsageError as error:
        return [Finding("fail", "config", str(error), "`skilltune check` names every problem of the input")]
    return [finding for probe in probes for finding in _answered(probe)]


def _answered(probe: Probe) -> Iterator[Finding]:
    """The result of a probe, and a warning for each thing that the endpoint does not know."""
    if probe.error:
        fix = f"nothing was scored; mend {_section(probe.role)}, then look again"
        yield Finding("fail", probe.role, probe.error, fix)
    else:
        yield Finding("ok", probe.role, f"{probe.model} answered in {probe.seconds:.2f} s")
    for what in probe.learned:
        yield Finding("warn", probe.role, what, "nothing to mend: it is done so in every call, and the card says it")


async def _verdict(judge: Reader) -> Probe:
    """Can the judge's model give a verdict in the form that is asked for? Many a model only talks."""
    started, error = time.monotonic(), ""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await judge(Sample(id="doctor", input="Greet me."), "Hello there!", ['Says "hello"'])
    except TimeoutError:
        error = f"`{judge.client.model.name}`: no verdict within {PATIENCE_S:g} s"
    except (CallError, Stopped) as failure:
        error = str(failure)
    return Probe(VERDICT, judge.client.model.name, time.monotonic() - started, error)


def _section(role: str) -> str:
    if role == VERDICT:
        return "the judge of env.score: name a model that answers in JSON, or raise judge.max_tokens"
    section = {"optimizer": "optimizer.model", "judge": "the judge of env.score"}.get(role, "target.model")
    return f"{section}, its key or its server"


# -- the machine


def _versions() -> Iterator[Finding]:
    yield Finding("ok", "skilltune", __version__)
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    tested = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    fix = "" if tested else f"use Python {oldest} to {newest}"
    yield Finding("ok" if tested else "warn", "python", f"{platform.python_version()} at {sys.executable}", fix)
    known = sys.platform.startswith(("linux", "darwin"))
    fix = "" if known else "use Linux or macOS (on Windows: WSL)"
    yield Finding("ok" if known else "warn", "system", f"{platform.system()} {platform.release()}", fix)
    yield Finding("ok", "sqlite", sqlite3.sqlite_version)
    for extra, packages in sorted(_extras().items()):
        state = ", ".join(f"{package} {_installed(package) or 'not installed'}" for package in packages)
        yield Finding("ok", f"extra {extra}", state)
    for program in PROGRAMS:
        yield _program(program)


def _extras() -> Mapping[str, list[str]]:
    """The packages of each extra that a user may install, as skilltune's own metadata lists them."""
    extras: dict[str, list[str]] = {}
    for requirement in metadata.requires("skilltune") or ():
        package, _, condition = requirement.partition(";")
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", condition)
        if named and named[1] != "dev":
            extras.setdefault(named[1], []).append(re.split(r"[^\w.-]", package.strip())[0])
    return extras


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _program(name: str) -> Finding:
    """A program on the PATH and what it says its version is; it needs a home and a path, and gets nothing else."""
    path = shutil.which(name)
    if path is None:
        return Finding("ok", name, "not on the PATH; this version needs it for nothing")
    bare = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    try:
        done = subprocess.run(
            [path, "--version"], env=bare, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=VERSION_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("warn", name, f"{path} does not say its version: {error}", f"try `{name} --version`")
    said = (done.stdout.strip() or done.stderr.strip() or "no word").splitlines()[0][:80]
    if done.returncode:
        return Finding("warn", name, f"{path} ended with {done.returncode}: {said}", f"try `{name} --version`")
    return Finding("ok", name, f"{said} at {path}")


def _models(cfg: Config) -> dict[str, ModelConfig]:
    """The models by role, as far as their names can be read; `_roles` tells of the others."""
    judge = cfg.env.score.get("judge") if isinstance(cfg.env.score, dict) else None
    options = cfg.judge.model_dump(exclude={"same_as_optimizer"})
    given = {
        "target": cfg.target,
        "optimizer": cfg.optimizer.model_copy(update={"model": cfg.optimizer.model or cfg.target.model}),
        "judge": ModelConfig(**options).model_copy(update={"model": judge or ""}),
    }
    found: dict[str, ModelConfig] = {}
    for role, section in given.items():
        try:
            parse_name(section.model)
        except (UsageError, AttributeError):
            continue
        found[role] = section
    return found


def _keys(cfg: Config | None) -> Iterator[Finding]:
    """Is each key that a role needs set? The value is never shown, nor anything made from it."""
    models = {} if cfg is None else _models(cfg)
    if not models:
        for scheme, (variable, _) in OWN.items():
            state = "set" if key_of(variable) else f"not set (needed for {scheme}/… models)"
            yield Finding("ok", "key", f"{variable} is {state}")
    for role, section in models.items():
        name, named = parse_name(section.model), endpoint_key(section, tuple(models.values()))
        try:
            variable = key_variable(name, named)
        except UsageError as error:
            yield Finding("fail", "key", str(error), f"mend {role}.model or {role}.key_env")
            continue
        if name.scheme not in OWN:
            yield Finding("ok", "key", f"the {role} needs none")
        elif variable is None:
            text = f"the {role}'s server is sent none; if it wants one, {role}.key_env names the variable that holds it"
            yield Finding("ok", "key", text)
        elif key_of(variable):
            yield Finding("ok", "key", f"{variable} is set (for the {role})")
        else:
            yield Finding("fail", "key", f"{variable} is not set; the {role} needs it", f"export {variable}=…")


def _sandbox(cfg: Config | None) -> Iterator[Finding]:
    """How user code is confined: as it is, not as one would wish."""
    spec = cfg.env.samples if cfg is not None else ""
    own = cfg is not None and (spec.rpartition(":")[0].endswith(".py") or "python:" in str(cfg.env.score))
    text = "Python scorers and env.py factories run inside skilltune, unconfined: your files, your keys, the network"
    yield Finding("warn" if own else "ok", "sandbox", text, "use only code that you trust" if own else "")
    path = shutil.which("bwrap")
    text = f"{path or 'not on the PATH'}; this version runs no command that it could confine"
    yield Finding("ok", "bubblewrap", text)


def _disk(folder: Path) -> Iterator[Finding]:
    """Space and write access where the run would be; its folder need not exist yet."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free // 2**20
    except OSError as error:
        fix = "choose another folder with `--run DIR`, or make this one writable"
        yield Finding("fail", "disk", f"cannot write to {place}: {error.strerror or error}", fix)
        return
    level: Level = "ok" if free >= SPARE_MB else "warn" if free >= NEEDED_MB else "fail"
    fix = "" if level == "ok" else "free some space, or choose another folder with `--run DIR`"
    yield Finding(level, "disk", f"{free:,} MB free in {place}", fix)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _clock(folder: Path) -> Iterator[Finding]:
    """Is the time believable, and is it the file system's too? Times are shown, budgets of minutes do not need them."""
    now, place = time.time(), _existing(folder)
    today = date.fromtimestamp(now).isoformat()
    if now < Path(__file__).stat().st_mtime - CLOCK_S:
        yield Finding("warn", "clock", f"it says {today}, before skilltune was installed", "set the system's clock")
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            apart = abs(os.fstat(file.fileno()).st_mtime - time.time())
    except OSError:  # `_disk` says so
        apart = 0.0
    if apart > CLOCK_S:
        text = f"the files in {place} get times that are {apart:,.0f} s off"
        yield Finding("warn", "clock", text, "set the clock of this machine or of its file server")
    else:
        yield Finding("ok", "clock", today)


def _terminal() -> Iterator[Finding]:
    encoding = sys.stdout.encoding or "ascii"
    try:
        codecs.encode(SIGNS, encoding)
    except (UnicodeEncodeError, LookupError):
        text = f"{encoding} cannot show every sign of the reports"
        yield Finding("warn", "terminal", text, "set PYTHONUTF8=1, or a UTF-8 locale such as LANG=C.UTF-8")
    else:
        yield Finding("ok", "terminal", encoding)
