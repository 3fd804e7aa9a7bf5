"""One rollout of an agent as a pure job: plain data in, plain data out.

A job needs no journal, no budget and no model object, so it can run in this process, in another one, or on another
machine. Its agent talks to the model through the gateway; the job knows only the address and the token.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import ssl
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from skilltune.execute.tls import TRUST
from skilltune.models.redact import secrets_of, without
from skilltune.rollout import Artifact
from skilltune.sandbox import Policy, probe
from skilltune.sandbox.process import Command, Exit, Limits
from skilltune.skill import MAIN
from skilltune.usage import Usage
from skilltune.workspace import Changes, Workspace, changes, close_workspace, open_workspace

Mode = Literal["inline", "forced", "native"]
Dialect = Literal["anthropic-messages", "openai-responses", "openai-chat"]

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""Variables that an agent inherits. Everything else of the environment stays outside, keys above all."""
SYSTEM = ("/bin", "/sbin", "/usr", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/proc", "/dev", "/sys", "/run", "/nix")


@dataclass(frozen=True, slots=True)
class SkillFiles:
    """A skill to install. `files` is the whole folder, SKILL.md included; `body` is SKILL.md without frontmatter."""

    name: str
    description: str
    body: str
    files: Mapping[str, bytes] = field(hash=False)


@dataclass(frozen=True, slots=True)
class AgentJob:
    """One rollout. All of it is plain data.

    `agent` is a name in `agents.AGENTS`, `command` its command line (`command:` and `acp:`) or its executable.
    `skill` None means that no skill is installed. `url` and `token` are those of the lease; "" means that the agent
    uses its own login. `env` holds the variables that the user passes on by name. The agent may read the files in
    `programs` and the folders in `shown`, and nothing else below `hidden`. `key` decides the paths, so a job that is
    run again asks the same questions. `trust` are the certificates of the gateway in PEM form, b"" if `url` is not
    encrypted. `writable` are the only folders of the workspace to which the agent may write;
    None means all of it. `role` is the section of the config that the agent's settings come from.
    """

    agent: str
    command: str
    prompt: str
    skill: SkillFiles | None
    activation: Mode
    files: Mapping[str, bytes] = field(hash=False)
    url: str
    token: str
    model: str
    timeout_s: float
    sandbox: str
    parent: Path
    key: str
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    programs: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    shown: tuple[Path, ...] = ()
    writable: tuple[str, ...] | None = None
    role: str = "target"
    trust: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class AgentExit:
    """The end of an agent as its own output tells it. `usage` is None if the agent does not report it. `timed_out` is
    True if our time limit ended it."""

    answer: str
    outcome: Literal["ok", "agent_limit"] = "ok"
    error: str = ""
    denials: tuple[str, ...] = ()
    usage: Usage | None = None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The result of a job. `stream` and `stderr` are the agent's output, bounded; `survivors` had to be killed."""

    end: AgentExit
    changes: Changes
    stream: bytes
    stderr: bytes
    seconds: float
    cpu_s: float
    survivors: int


class Agent(Protocol):
    """One kind of agent. A new kind is one class of this shape, registered in `agents.AGENTS`.

    `rewrites` finds, by mode, text of a skill's body that the agent replaces by something else when it loads the skill.
    `dialect` is the protocol of its model calls. `executable` is its program ("" if the user names a command line), and
    `beside` are programs that it needs on the PATH. `needs` says how to install it. `install` writes skill and settings
    into the private home. `command` is the command line; its environment is complete. `read` turns the end of the
    process into an `AgentExit`; it raises `InfraError` if the output proves no result, and `CallConfigError` if no
    other rollout can succeed either.
    """

    dialect: Dialect
    executable: str
    beside: tuple[str, ...]
    needs: str
    rewrites: Mapping[Mode, re.Pattern[str]]

    def install(self, job: AgentJob, ws: Workspace) -> None: ...

    def command(self, job: AgentJob, ws: Workspace) -> Command: ...

    def read(self, job: AgentJob, ws: Workspace, exit: Exit) -> AgentExit: ...


async def run_job(job: AgentJob) -> AgentResult:
    """Run one rollout in a fresh workspace and a private home, and remove both.

    Raises `InfraError` and `CallConfigError` as `Agent.read` does, and `UsageError` if the sandbox does not hold.
    """
    from skilltune.targets.agents import AGENTS

    agent, sandbox = AGENTS[job.agent], probe(job.sandbox)
    if agent.executable:
        job = replace(job, command=program_here(agent.executable, job.command))
    ws = await asyncio.to_thread(open_workspace, job.parent, job.key, job.files)
    try:
        await asyncio.to_thread(agent.install, job, ws)
        if job.trust:
            trusted(ws).write_bytes(job.trust + system_certificates())
        for name in job.writable or ():
            (ws.work / name).mkdir(exist_ok=True)
        command = agent.command(job, ws)
        exit = await sandbox.run(command, policy(job, ws, command), Limits(wall_s=job.timeout_s))
        secrets = secrets_of(job.env)
        kept = replace(exit, stdout=without(exit.stdout, secrets), stderr=without(exit.stderr, secrets))
        end = agent.read(job, ws, exit if job.url else kept)  # the gateway's account must hold the same answer
        changed = await asyncio.to_thread(changes, ws)
        return AgentResult(end, changed, kept.stdout, kept.stderr, exit.seconds, exit.cpu_s, exit.survivors)
    finally:
        await asyncio.to_thread(close_workspace, ws)


def program_here(executable: str, command: str) -> str:
    """The path of an agent's program on this machine: `command`, the path on the driver's, if it exists here too."""
    return command if os.path.exists(command) else shutil.which(executable) or command


def policy(job: AgentJob, ws: Workspace, command: Command) -> Policy:
    """The agent writes below its own root, reads that root and installed programs, and connects to the gateway only.

    If the job names its writable folders, the rest of the workspace is read-only. An agent with its own login (no
    gateway) may connect anywhere.
    """
    port = urlsplit(job.url).port
    write = (ws.root,)
    if job.writable is not None:
        write = (ws.home, ws.tmp, *(ws.work / name for name in job.writable))
    return reading(
        Policy(write, hidden=job.hidden, connect=(port,) if port else None),
        ws,
        (*readable(command, job.programs, job.hidden), *job.shown),
    )


def reading(policy: Policy, ws: Workspace, programs: tuple[Path, ...]) -> Policy:
    """The policy with the right to read the workspace and these programs, also inside a hidden folder, such as the
    project's own virtual environment. A folder that is hidden as a whole stays hidden, also if the PATH names it."""
    hidden = [os.path.realpath(path) for path in policy.hidden]
    allowed = [ws.root, *(path for path in programs if os.path.realpath(path) not in hidden)]
    inside = [path for path in allowed if any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in hidden)]
    return replace(policy, read=tuple(allowed), shown=(*policy.shown, *inside))


def readable(command: Command, programs: tuple[Path, ...] = (), hidden: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """Folders of installed programs: those of the system, of the PATH, of this Python, of the command's files and of
    `programs`.

    A folder `x/bin` of the PATH has its libraries in `x/lib` and `x/share`. Inside of a hidden folder this holds for an
    installation only, because a project's own `lib` and `share` are no libraries of its scripts in `bin`.
    """
    private = [os.path.realpath(folder) for folder in hidden]
    places = [*SYSTEM, sys.prefix, sys.base_prefix]
    for entry in command.env.get("PATH", "").split(os.pathsep):
        if entry:
            real = os.path.realpath(entry)
            places += [entry, real]
            prefix = Path(os.path.dirname(real))
            if not any(prefix.is_relative_to(folder) for folder in private) or _is_installation(prefix):
                places += [str(prefix / name) for name in ("lib", "lib64", "share")]
            if os.path.basename(real) == "shims":  # pyenv, asdf and others keep the programs beside them
                places.append(os.path.dirname(real))
    for word in (*command.argv, *map(str, programs)):
        file = os.path.realpath(os.path.join(command.cwd, word))
        if os.path.isabs(word) and os.path.isfile(file):
            places += [word, file, package_of(file)]
    folders = dict.fromkeys(Path(place) for place in places if os.path.isabs(place) and os.path.exists(place))
    return tuple(folder for folder in folders if not any(folder.is_relative_to(system) for system in SYSTEM[:8])) + (
        tuple(Path(system) for system in SYSTEM if os.path.exists(system))
    )


def _is_installation(prefix: Path) -> bool:
    """True for an environment of Python or conda, and for a prefix of npm."""
    return any((prefix / sign).exists() for sign in ("pyvenv.cfg", "conda-meta", "lib/node_modules"))


def package_of(file: str) -> str:
    """The outermost node_modules folder that holds a file, because npm packages load their neighbours; else the file
    itself."""
    head, found, _ = file.partition(f"{os.sep}node_modules{os.sep}")
    return f"{head}{os.sep}node_modules" if found else file


def left_files(changed: Changes) -> dict[str, Artifact]:
    """The files that an agent made or changed, by their paths in the workspace."""
    return {path: Artifact.of(data) for path, data in changed.files.items()}


def gone(changed: Changes) -> tuple[str, ...]:
    """The given files that are no longer there as they were given, and that are not among the files left."""
    return tuple(sorted({*changed.deleted, *changed.lost}))


def workspaces_of(folder: Path) -> Path:
    """The folder of the workspaces of a run; short, because some agents make Unix sockets there. It depends on the
    run's folder, so that two runs never share one."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"skilltune-{os.getuid()}" / name


def base_env(job: AgentJob, ws: Workspace) -> dict[str, str]:
    """The environment of every agent: what is kept of ours, the private home, what the user passes on by name, and the
    file of certificates that it must trust."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    trust = dict.fromkeys(TRUST, str(trusted(ws))) if job.trust else {}
    return {"LANG": "C.UTF-8", **kept, "HOME": str(ws.home), "TMPDIR": str(ws.tmp), **job.env, **trust}


def trusted(ws: Workspace) -> Path:
    """The file of the certificates that an agent trusts, in its private home."""
    return ws.home / "trusted.pem"


@cache
def system_certificates() -> bytes:
    """The certificates that this machine trusts, in PEM form. Most variables of `TRUST` replace them, and an agent's
    tools may still need them."""
    places = ssl.get_default_verify_paths()
    files = [Path(places.cafile)] if places.cafile else sorted(Path(places.capath or "/nowhere").glob("*.pem"))
    return b"".join(b"\n" + file.read_bytes() for file in files)


def write_skill(skill: SkillFiles, folder: Path, body: str | None = None) -> Path:
    """Write the skill's files to `folder`/NAME and return that path. A file that begins with `#!` is executable.

    `body` is written in place of the skill's own, for an agent that would replace parts of it.
    """
    root = folder / skill.name
    files = dict(skill.files)
    if body is not None:
        head = files[MAIN].removesuffix(skill.body.encode("utf-8", "surrogatepass"))
        files[MAIN] = head + body.encode("utf-8", "surrogatepass")
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if data.startswith(b"#!"):
            path.chmod(0o755)
    return root


def loaded_at_start(job: AgentJob) -> SkillFiles | None:
    """The skill if its body must stand in the first request (`forced`)."""
    return job.skill if job.skill and job.activation == "forced" and job.skill.body.strip() else None


def inlined(job: AgentJob) -> SkillFiles | None:
    """The skill if its body is part of the instructions (`inline`)."""
    return job.skill if job.skill and job.activation == "inline" and job.skill.body.strip() else None


def installed(job: AgentJob) -> SkillFiles | None:
    """The skill if it is installed as a folder (`forced` and `native`)."""
    return job.skill if job.activation != "inline" else None
