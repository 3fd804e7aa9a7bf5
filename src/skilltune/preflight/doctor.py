"""The tests of `skilltune doctor`: each model answers a call, and the machine is fit for a run.

Findings are collected, never raised, so that one call names all faults. No key is ever printed. Programs that are asked
for their version inherit no key.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Literal

from skilltune.api_keys import OWN, key_of, key_variable
from skilltune.build import build_parts, default_folder
from skilltune.config import Config, ModelConfig, load_config
from skilltune.errors import CallError, Stopped, UsageError
from skilltune.execute import HERE, Executor
from skilltune.journal.run import scratch_run
from skilltune.metering.client import Client
from skilltune.metering.clients import endpoint_key
from skilltune.names import AGENT_SCHEMES, parse_name
from skilltune.preflight.probe import PATIENCE_S, Probe, probe_roles
from skilltune.samples import Sample
from skilltune.sandbox import describe, probe
from skilltune.scorers.judge import Reader
from skilltune.targets.agents import AGENTS
from skilltune.version import __version__

Level = Literal["ok", "warn", "fail"]

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest version that skilltune is tested with
AGENTS_BY_PROGRAM = {agent.executable: name for name, agent in AGENTS.items() if agent.executable}
PROGRAMS = ("git", *AGENTS_BY_PROGRAM, "rg")
NEEDED_MB, SPARE_MB = 100, 1000  # free space: below the first is a failure, below the second a warning
VERDICT = "judge's verdict"  # the role of the probe that asks the judge for a verdict
CLOCK_S = 60.0
VERSION_S = 10.0
SIGNS = "…·→±≥█"  # the special characters of the reports


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: the level, the subject, its state, and the fix ("" if nothing is wrong)."""

    level: Level
    topic: str
    text: str
    fix: str = ""


async def examine(
    source: Path | None = None,
    overrides: Sequence[str] = (),
    announce: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """All findings, in the order of the output. Without a config only the machine is tested and no model is called.
    `announce` hears of the rollout of an agent before it begins."""
    cfg, root, broken = None, Path(), []
    if source is not None:
        try:
            cfg, root = load_config(source, overrides)
        except UsageError as error:
            broken = [Finding("fail", "config", str(error), "fix the config, then run doctor again")]
    findings = [*_versions(), *broken, *_keys(cfg)]
    if cfg is not None:
        findings += await _roles(cfg, root, announce)
    folder = default_folder(cfg, root) if cfg is not None else Path.cwd() / "runs"
    return [*findings, *_sandbox(cfg), *_disk(folder), *_clock(folder), *_terminal()]


async def _roles(cfg: Config, root: Path, announce: Callable[[str], None]) -> list[Finding]:
    """One call to each model, and one verdict of the judge if it answers. A config that cannot be built is a failure,
    because no run could start with it."""
    try:
        with scratch_run(None) as run:
            session = build_parts(cfg, run, root)
            try:
                files = _model_files(getattr(session.target, "client", None), session.optimizer_client)
                targets = [("target", session.target)]
                targets += [("further target", other.roll.target) for other in session.arena.also]
                facts = [Finding("ok", role, fact) for role, target in targets for fact in getattr(target, "facts", ())]
                facts += await _workers(session.executor)
                probes = await probe_roles(session, announce)
                if session.judge is not None and not any("judge" in probe.role and probe.error for probe in probes):
                    probes.append(await _verdict(session.judge))
            finally:
                await session.aclose()
    except UsageError as error:
        return [Finding("fail", "config", str(error), "`skilltune check` names every problem of the input")]
    return [*files, *facts, *(finding for probe in probes for finding in _findings_of(probe))]


async def _workers(executor: Executor) -> list[Finding]:
    """The machines that run the jobs, if they are not this one. The probe of an agent then tries all of them."""
    if executor is HERE:
        return []
    try:
        places = await executor.places()
    except UsageError as error:
        return [Finding("fail", "workers", str(error), "fix this, or set workers.on=local to stay on this machine")]
    return [
        Finding("ok", "workers", f"{place.name}: {place.cpus:g} processors, Python {place.python}, {place.skilltune}")
        for place in places
    ]


def _model_files(*clients: Client | None) -> list[Finding]:
    """The facts that the file of an embedded model states, once per file."""
    models = {client.model.name: client.model for client in clients if client is not None}
    found = ((name, getattr(model, "header", None)) for name, model in models.items())
    return [Finding("ok", name, str(header)) for name, header in found if header is not None]


def _findings_of(probe: Probe) -> Iterator[Finding]:
    """The result of a probe, and a warning for each thing that the endpoint does not know."""
    if probe.error:
        fix = f"no sample was scored; fix {_section(probe.role)}, then run doctor again"
        yield Finding("fail", probe.role, probe.error, fix)
    else:
        note = f"; {probe.note}" if probe.note else ""
        yield Finding("ok", probe.role, f"{probe.model} answered in {probe.seconds:.2f} s{note}")
    for what in probe.learned:
        yield Finding("warn", probe.role, what, "no action needed: every call does so, and the model card says so")


async def _verdict(judge: Reader) -> Probe:
    """Ask the judge's model for one verdict, because some models answer but do not keep to the required form."""
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
    names = {"optimizer": "optimizer.model", "judge": "the judge of env.score", "further target": "gate.also"}
    section = names.get(role.partition(" and ")[0], "target.model")
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
    """The packages of each optional extra, from skilltune's own metadata."""
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
    """A program on the PATH with its version. It gets HOME and PATH, and no other variable."""
    path = shutil.which(name)
    if path is None:
        return Finding("ok", name, f"not on the PATH; {_use(name)}")
    bare = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    try:
        done = subprocess.run(
            [path, "--version"], env=bare, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=VERSION_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("warn", name, f"{path} does not tell its version: {error}", f"try `{name} --version`")
    said = (done.stdout.strip() or done.stderr.strip() or "no word").splitlines()[0][:80]
    if done.returncode:
        return Finding("warn", name, f"{path} ended with {done.returncode}: {said}", f"try `{name} --version`")
    return Finding("ok", name, f"{said} at {path}")


def _use(program: str) -> str:
    """The reason to install a program."""
    if agent := AGENTS_BY_PROGRAM.get(program):
        return f"targets {agent}/… need it: {AGENTS[agent].needs}"
    return "opencode needs it (the package ripgrep)" if program == "rg" else "the workspaces of agents need it"


def _models(cfg: Config) -> dict[str, ModelConfig]:
    """The models by role. A name that cannot be read is left out; `_roles` reports it."""
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
    """Report for each role if its key is set. The value is never shown, nor anything derived from it."""
    models = {} if cfg is None else _models(cfg)
    if not models:
        for scheme, (variable, _) in OWN.items():
            state = "set" if key_of(variable) else f"not set (needed for {scheme}/… models)"
            yield Finding("ok", "key", f"{variable} is {state}")
    for role, section in models.items():
        name, named = parse_name(section.model), endpoint_key(section, tuple(models.values()))
        if name.scheme in AGENT_SCHEMES:
            upstream = name.inner or (parse_name(cfg.target.upstream) if cfg and cfg.target.upstream else None)
            if upstream is None or (role == "target" and cfg is not None and not cfg.target.gateway):
                yield Finding("ok", "key", f"the {role} uses a login of its own")
                continue
            name = upstream
        try:
            variable = key_variable(name, named)
        except UsageError as error:
            yield Finding("fail", "key", str(error), f"fix {role}.model or {role}.key_env")
            continue
        if name.scheme not in OWN:
            yield Finding("ok", "key", f"the {role} needs no key")
        elif variable is None:
            text = f"the {role}'s server gets no key; if it needs one, set {role}.key_env to the variable's name"
            yield Finding("ok", "key", text)
        elif key_of(variable):
            yield Finding("ok", "key", f"{variable} is set (for the {role})")
        else:
            yield Finding("fail", "key", f"{variable} is not set; the {role} needs it", f"export {variable}=…")


def _sandbox(cfg: Config | None) -> Iterator[Finding]:
    """Report the confinement of the user's code, and of what a model writes."""
    spec = cfg.env.samples if cfg is not None else ""
    own = cfg is not None and (spec.rpartition(":")[0].endswith(".py") or "python:" in str(cfg.env.score))
    text = "Python scorers and env.py factories run inside skilltune, unconfined: your files, your keys, the network"
    yield Finding("warn" if own else "ok", "code", text, "use only code that you trust" if own else "")
    try:
        sandbox = probe(cfg.target.sandbox if cfg is not None else "auto")
    except UsageError as error:
        yield Finding("fail", "sandbox", str(error), "fix target.sandbox")
        return
    text = f"agents and the scorer tests: {describe(sandbox)}"
    install = "install bubblewrap (Debian, Ubuntu: apt install bubblewrap)"
    yield Finding(
        "warn" if sandbox.level == "none" else "ok", "sandbox", text, install if sandbox.level == "none" else ""
    )


def _disk(folder: Path) -> Iterator[Finding]:
    """Free space and write access at the run's folder, which need not exist yet."""
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
    """Compare the clock with skilltune's installation time and with the file system's clock. Only displayed times
    depend on it."""
    now, place = time.time(), _existing(folder)
    today = date.fromtimestamp(now).isoformat()
    if now < Path(__file__).stat().st_mtime - CLOCK_S:
        yield Finding("warn", "clock", f"it says {today}, before skilltune was installed", "set the system's clock")
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            apart = abs(os.fstat(file.fileno()).st_mtime - time.time())
    except OSError:  # `_disk` reports it
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
