"""An agent as a target: a lease at the gateway, a job, and both read together as one trajectory.

The gateway is the witness. Its limits, its faults and its trajectory decide; the agent's own output adds what only the
agent knows. If the two contradict each other, the attempt failed and is no score.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import shlex
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from skilltune.config import TargetConfig
from skilltune.envs.task import Task
from skilltune.envs.tools import Tools
from skilltune.errors import CallConfigError, CallError, InfraError, Stopped, UsageError
from skilltune.execute import HERE, Executor
from skilltune.execute.tls import trusting
from skilltune.frontmatter import BadFrontmatter, read_block
from skilltune.gateway import Activation, Gateway, Lease, RolloutLimits, Upstream, upstream_of
from skilltune.journal.keys import digest
from skilltune.journal.run import Run
from skilltune.metering.slots import Endpoint
from skilltune.models import Message
from skilltune.models.prices import price
from skilltune.models.redact import secrets_of, without
from skilltune.names import Name, parse_name
from skilltune.rollout import Artifact, Trajectory, Turn
from skilltune.sandbox import Sandbox, describe, probe
from skilltune.skill import MAIN, Skill
from skilltune.targets.agents import AGENTS, AgentJob, AgentResult, SkillFiles, run_job
from skilltune.targets.agents.command import split_command
from skilltune.targets.agents.commands import Commands
from skilltune.targets.agents.job import KEPT, Mode, gone, left_files, program_here, workspaces_of
from skilltune.targets.tools import no_tools, opened, with_notes
from skilltune.usage import Usage, minus
from skilltune.workspace import root_of

TIMEOUT_S = 900.0  # of a rollout, if target.timeout_s is not set
GUESS = Usage(calls=8, input_tokens=160_000, output_tokens=4_000)
"""Assumed cost of a rollout before the first one: 8 requests of 20,000 tokens, most of them the agent's own text."""
OWN_LOGIN = (
    "the agent uses a login of its own: only its own output is known, nothing proves that it saw the skill, and its "
    "calls are not free"
)
NO_UPSTREAM = "; if target.upstream names its model, its calls go through the gateway"
ALIASES = ("default", "best", "sonnet", "opus", "haiku", "opusplan", "inherit")
HUNG = 0.5  # share of a rollout's time; a call that waited so long at its end means that the endpoint hangs
STREAM_BYTES = 400_000  # of a command line's output that a rollout keeps
ROUTE_S = 10.0  # seconds to reach the gateway from another machine
VERSION_S = 60.0  # seconds for `--version`
_NUMBER = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}


@dataclass(slots=True)
class AgentTarget:
    """Implements `Target` with an agent of `AGENTS`.

    `version` and `content` identify the agent's program. `upstream` is the model behind the gateway; None means that
    the agent uses a login of its own, so that nothing proves that it saw the skill. `slots` schedules the calls of the
    model, and `spend` counts the cost of a failed attempt, whose exchanges are journaled already. `writable` limits
    where the agent writes, see `AgentJob`. `role` is the role in which it is paid, and `account` the name under which
    its exchanges are journaled, if it is not the role. `offers` returns the tools of the environment for one rollout:
    the agent reads the folder of tools that only read one, and works with others by commands in its workspace. Raises
    `UsageError` for a skill that the agent cannot load.
    """

    agent: str
    command: str
    version: str
    content: str
    upstream: Upstream | None
    own: Name | None  # the model that an agent with its own login asks
    activation: Mode
    limits: RolloutLimits
    timeout_s: float
    sandbox: Sandbox
    parent: Path
    env: Mapping[str, str] = field(repr=False)
    programs: tuple[Path, ...]
    hidden: tuple[Path, ...]
    run_journal: Run | None = None
    slots: Endpoint | None = None
    writable: tuple[str, ...] | None = None
    role: str = "target"
    account: str = ""
    spend: Callable[[Usage], None] = lambda _: None
    executor: Executor = HERE
    offers: Callable[[Task], Tools | None] = no_tools
    _gateway: Gateway | None = None
    _needs: Needs | None = None
    _started: bool = False
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences for `check`, `doctor` and the card: the program, its sandbox, and what proves that it saw the
        skill."""
        number = _NUMBER.search(self.version)  # without the program's name, which some print with it
        version = number[0] if number else self.version
        program = f"{self.agent} {version}" if version else f"{self.agent}:{self.command}"
        proof = "" if self.upstream else OWN_LOGIN if self.version else OWN_LOGIN + NO_UPSTREAM
        return tuple(filter(None, (f"the agent is {program}, in {describe(self.sandbox)}", proof)))

    @property
    def fingerprint(self) -> str:
        model = self.upstream.fingerprint if self.upstream else f"own login{f' {self.own}' if self.own else ''}"
        limits = self.limits.max_turns, self.limits.max_usd
        known = self.version, self.content, model, self.activation, limits, self.sandbox.level, sorted(self.env)
        return digest("agent", self.agent, *known)

    def guess(self, skill: Skill, task: Task) -> Usage:
        self.skill_files(skill)
        if self.upstream is None and self.own is None:
            return Usage(calls=1, usd=None)
        calls = min(GUESS.calls, self.limits.max_turns or GUESS.calls)
        guess = replace(GUESS, calls=calls, input_tokens=GUESS.input_tokens * calls // GUESS.calls)
        priced = replace(guess, usd=self.usd(guess))
        most = self.limits.max_usd
        return priced if most is None or priced.usd is None else replace(priced, usd=most)

    def skill_files(self, skill: Skill) -> SkillFiles | None:
        """The skill as it is installed; None if it has no text to load.

        Raises `UsageError` if the agent could not list it, because its frontmatter lacks name or description.
        """
        if not skill.body.strip():
            return None
        return named_skill(skill, self.activation, self.agent)

    def refuses(self, skill: Skill) -> str:
        """The reason why the agent cannot load a skill as it is; "" if it can."""
        try:
            self.skill_files(skill)
        except UsageError as error:
            return str(error)
        return ""

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        """Run one rollout. Nothing that it returns or raises shows a secret of `env`, because all of it is stored."""
        secrets = secrets_of(self.env)
        try:
            return _without_secrets(await self._run(skill, task, attempt), secrets)
        except CallError as failure:
            failure.args, failure.systemic = without(failure.args, secrets), without(failure.systemic, secrets)
            raise

    async def _run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        """A rollout with the tools that the environment offers."""
        tools = self.offers(task)
        if tools is None:
            return await self._work(skill, task, self._key(skill, task, attempt), ())
        if tools.folder is not None:
            note = f"The documents are in the folder {tools.folder}. Read them there; do not change them."
            asked = replace(task, messages=with_notes(task.messages, [note]))
            return await self._work(skill, asked, self._key(skill, asked, attempt), (tools.folder,))
        try:
            async with opened(tools, task):
                commands = Commands(tools)
                if twice := sorted(commands.files.keys() & task.files.keys()):
                    raise UsageError(f'sample "{task.id}": its file {twice[0]} has the name of a tool: rename it')
                notes = [commands.explained, *([tools.opening] if tools.opening else [])]
                asked = replace(task, messages=with_notes(task.messages, notes), files={**task.files, **commands.files})
                key = self._key(skill, asked, attempt)
                done = await commands.beside(self._work(skill, asked, key, ()), root_of(self.parent, key))
                left = {path: Artifact.of(data) for path, data in tools.left().items()}
        except CallError as failure:
            raise (_journaled(failure) if self.upstream is not None else failure) from failure.__cause__
        return replace(done, artifacts={**done.artifacts, **left})

    def _key(self, skill: Skill, task: Task, attempt: int) -> str:
        """Identifies a rollout, and so its workspace."""
        question = [(m.role, m.text, [i.base64 for i in m.images]) for m in task.messages]
        files = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(task.files.items())]
        return digest("agent rollout", self.fingerprint, skill.hash, task.id, question, files, attempt)

    async def _work(self, skill: Skill, task: Task, key: str, shown: tuple[Path, ...]) -> Trajectory:
        """One rollout in a fresh workspace. The agent may read the folders in `shown`."""
        installed = self.skill_files(skill)
        prompt, images = prompt_of(task.messages)
        job = AgentJob(
            agent=self.agent,
            command=self.command,
            prompt=prompt,
            skill=installed,
            activation=self.activation,
            files={**task.files, **images},
            url="",
            token="",
            model=self.upstream.model if self.upstream else self.own.model if self.own else "",
            timeout_s=self.timeout_s,
            sandbox=self.sandbox.level,
            parent=self.parent,
            key=key,
            env=self.env,
            programs=self.programs,
            hidden=self.hidden,
            shown=shown,
            writable=self.writable,
            role=self.role,
        )
        await self._start()
        if self.upstream is None:
            done = alone(job, await self._sent(job))
            listed = done.usage.usd if done.usage.usd is not None else self.usd(done.usage)
            return replace(done, usage=replace(done.usage, usd=listed))
        lease = self._lease(key, installed, task.id)
        try:
            result = await self._sent(replace(job, url=lease.url, token=lease.token, trust=self._trust))
            trajectory = witnessed(job, result, lease, waited=await lease.end())
        except BaseException as failure:  # also a cancelled rollout: its exchanges are paid
            await lease.end()
            self.spend(lease.paid)
            if not isinstance(failure, Exception):
                raise
            if isinstance(lease.fault, CallError | Stopped):  # the model's failure explains the agent's
                raise _journaled(lease.fault) from failure
            raise _journaled(failure) from failure
        finally:
            lease.close()
        self.spend(minus(lease.paid, lease.usage))  # the caller counts all, and the rest was paid before
        return trajectory

    async def _start(self) -> None:
        """Start the gateway and admit the machines that will run jobs. Raises `UsageError` before anything is spent."""
        async with self._starting:
            if self._started:
                return
            await self.executor.ready()
            if self.upstream is not None and self._gateway is None:
                gateway = Gateway(host=self.executor.host, tls=self.executor.tls, on_late=self._count_late)
                await gateway.start()
                self._gateway = gateway
            if self.executor is not HERE:
                await self._admit(self._gateway)
            self._started = True

    async def _admit(self, gateway: Gateway | None) -> None:
        """Raise `UsageError` if a machine could not run the agent as this one would."""
        place = gateway.address if gateway else None
        known = self.agent, self.command, self.version, self.content, self.programs, self.sandbox.level
        self._needs = Needs(*known, place, self._trust if gateway else b"")
        found = await self.executor.on_each(unfit, self._needs)
        if bad := [f"{name}: {reason}" for name, reason in found.items() if reason]:
            raise UsageError(
                f"workers.on={self.executor.name}: {len(bad)} of {len(found)} machines cannot run this agent: "
                f"{'; '.join(bad[:5])}"
            )

    async def _sent(self, job: AgentJob) -> AgentResult:
        """The result of a job, here or on a machine that is compared before its first one."""
        if self._needs is None:
            return await self.executor.run(run_job, job)
        return await self.executor.run(run_fit, Fit(self._needs, job))

    @property
    def _trust(self) -> bytes:
        return self.executor.tls.public if self.executor.tls else b""

    def _count_late(self) -> None:
        self.executor.counts.late += 1

    def _lease(self, key: str, skill: SkillFiles | None, sample: str) -> Lease:
        assert self.upstream is not None
        assert self._gateway is not None
        promised = None
        if skill is not None:
            promised = Activation(self.activation, skill.name, skill.description, skill.body)
        return self._gateway.lease(
            self.upstream,
            promised,
            self.limits,
            rollout_key=key,
            run=self.run_journal,
            slots=self.slots,
            role=self.role,
            account=self.account,
            sample=sample,
            secrets=secrets_of(self.env),
        )

    def usd(self, usage: Usage) -> float | None:
        """The price of a usage in dollars, or None if it is unknown. Without the gateway it is the list price."""
        if self.upstream is None:
            return price(self.own, usage) if self.own else None
        return self.upstream.priced(usage).usd

    async def aclose(self) -> None:
        if self._gateway is not None:
            await self._gateway.aclose()


# -- what the gateway saw, and what the agent says


def witnessed(job: AgentJob, result: AgentResult, lease: Lease, *, waited: float = 0.0) -> Trajectory:
    """The trajectory of a job behind the gateway. Raises the fault that ended it, and `InfraError` if agent and gateway
    contradict each other.

    `waited` is the time in seconds that an exchange under way at the end had waited. If that was `HUNG` of the whole
    time or more, the endpoint and not the agent used up the time, so there is no result.
    """
    end = result.end
    if lease.fault is not None:
        raise lease.fault
    if end.outcome == "agent_limit" and not lease.limit and lease.trouble is not None:
        raise lease.trouble  # its time ran out while the gateway tried a failed call again
    if end.outcome == "agent_limit" and not lease.limit and waited >= HUNG * job.timeout_s:
        raise InfraError(
            f"{job.agent} waited {waited:.0f} of its {job.timeout_s:g} s for one answer of its model: raise "
            f"{job.role}.timeout_s, or use fewer workers"
        )
    if not lease.exchanges:
        raise InfraError(
            f"{job.agent} had no answer of its model (it ended after {result.seconds:.0f} s): {_tail(result.stderr)}",
            systemic=f"{job.agent} has no answer of its model",
        )
    if lease.limit:
        outcome, answer, error = "agent_limit", lease.answer(), f"stopped by {job.role}.{lease.limit}"
    else:
        outcome, answer, error = end.outcome, end.answer, end.error
        if outcome == "ok" and job.agent != "command":
            _require_said(job, end.answer, lease)
        answer = answer or (lease.answer() if outcome == "agent_limit" else "")
    if end.denials:
        error = "; ".join(filter(None, (error, f"denied to the agent: {', '.join(dict.fromkeys(end.denials))}")))
    return Trajectory(
        answer=answer,
        turns=lease.turns(),
        outcome=outcome,
        error=error,
        usage=lease.usage,
        seconds=round(result.seconds, 4),
        skill_offered=lease.offered or job.skill is None,
        skill_loaded=lease.loaded or job.skill is None,
        artifacts=left_files(result.changes),
        deleted=gone(result.changes),
        diff=result.changes.diff,
        stream=_stream(result),
        journaled=True,
        timed_out=end.timed_out and not lease.limit,
    )


def alone(job: AgentJob, result: AgentResult) -> Trajectory:
    """The trajectory of an agent with a login of its own: nobody saw its exchanges."""
    end = result.end
    denied = f"denied to the agent: {', '.join(dict.fromkeys(end.denials))}" if end.denials else ""
    return Trajectory(
        answer=end.answer,
        turns=(Turn("user", job.prompt), Turn("assistant", end.answer)),
        outcome=end.outcome,
        error="; ".join(filter(None, (end.error, denied))),
        usage=end.usage or Usage(calls=1, usd=None),
        seconds=round(result.seconds, 4),
        artifacts=left_files(result.changes),
        deleted=gone(result.changes),
        diff=result.changes.diff,
        stream=_stream(result),
        timed_out=end.timed_out,
    )


def _without_secrets(done: Trajectory, secrets: tuple[str, ...]) -> Trajectory:
    if not secrets:
        return done
    return replace(
        done,
        answer=without(done.answer, secrets),
        turns=tuple(Turn(turn.role, without(turn.text, secrets)) for turn in done.turns),
        error=without(done.error, secrets),
        artifacts={
            without(path, secrets): Artifact.of(without(file.read(), secrets)) for path, file in done.artifacts.items()
        },
        deleted=without(done.deleted, secrets),
        diff=without(done.diff, secrets),
    )


def _stream(result: AgentResult) -> Artifact:
    """The output of the agent's command line; a long one without its middle."""
    kept, half = result.stream, STREAM_BYTES // 2
    if (left_out := len(kept) - STREAM_BYTES) > 0:
        kept = kept[:half] + f"\n[… {left_out:,} bytes left out …]\n".encode() + kept[-half:]
    return Artifact.of(kept)


def _require_said(job: AgentJob, answer: str, lease: Lease) -> None:
    """Raise `InfraError` if the agent reports an answer that its model never gave, or none although it gave one."""
    said = "".join("".join(turn.text.split()) for turn in lease.turns() if turn.role == "assistant")
    given = "".join(answer.split())
    if given not in said or (not given and lease.answer().strip()):
        raise InfraError(
            f"{job.agent} reports the answer {answer[:80]!r}, and the gateway saw {lease.answer()[:80]!r}",
            systemic=f"{job.agent} and the gateway disagree about the answer",
        )


def _journaled(failure: Exception) -> Exception:
    """The failure, with a cost of 0, because every exchange is journaled with its own."""
    if isinstance(failure, CallError):
        failure.usage = Usage()
    return failure


def _tail(output: bytes) -> str:
    text = output.decode("utf-8", "replace").strip()
    return text[-400:] if text else "it printed nothing"


# -- skill and prompt


def named_skill(skill: Skill, activation: Mode, agent: str) -> SkillFiles:
    """The skill with the name and the description under which an agent lists it.

    Raises `UsageError` if its frontmatter lacks one of them and the mode needs it, and if the agent would replace a
    part of its body.
    """
    try:
        block = read_block(skill.frontmatter)
    except BadFrontmatter as error:
        raise UsageError(f"the skill {skill.name!r}: {error}") from error
    name, description = block.get("name"), block.get("description")
    named = isinstance(name, str) and len(name) <= 64 and NAME.fullmatch(name)
    described = isinstance(description, str) and description.strip()
    if activation != "inline" and not (named and described):
        lacking = " and ".join(what for what, given in (("name", named), ("description", described)) if not given)
        slug = re.sub(r"[^a-z0-9]+", "-", skill.name.lower()).strip("-") or "my-skill"
        raise UsageError(
            f"the skill {skill.name!r} has no usable {lacking} in its frontmatter, so an agent cannot load it: begin "
            f"{MAIN} with the lines `---`, `name: {slug}`, `description: …when to use it…`, `---` (a name has small "
            "letters, digits and hyphens), or set target.activation=inline"
        )
    rewrites = AGENTS[agent].rewrites.get(activation)
    if rewrites is not None and (found := rewrites.search(skill.body)):
        raise UsageError(
            f'the skill {skill.name!r}: {agent} replaces "{found[0]}" in the body when it loads the skill, so that the '
            "agent reads another text than the one that is trained: write it in another way, or set "
            "target.activation=inline"
        )
    files = {**skill.files, MAIN: skill.text.encode("utf-8", "surrogatepass")}
    return SkillFiles(str(name) if named else "skill", str(description or ""), skill.body, files)


NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def prompt_of(messages: tuple[Message, ...]) -> tuple[str, dict[str, bytes]]:
    """(the task as one text, its images as files of the workspace). A conversation is written out with its speakers."""
    images: dict[str, bytes] = {}
    parts: list[str] = []
    for message in messages:
        text = message.text
        for image in message.images:
            name = f"attached/image-{len(images) + 1}.{IMAGES.get(image.media_type, 'png')}"
            images[name] = image.data
            text += f"\n\n(The image is in the file {name}.)"
        plain = message.role == "system" or sum(m.role != "system" for m in messages) == 1
        parts.append(text if plain else f"{message.role.capitalize()}: {text}")
    return "\n\n".join(parts), images


# -- from the config


def make_agent(
    cfg: TargetConfig,
    root: Path,
    *,
    run: Run | None = None,
    slots: Endpoint | None = None,
    writable: tuple[str, ...] | None = None,
    role: str = "target",
    key_env: str | None = None,
    spend: Callable[[Usage], None] = lambda _: None,
    executor: Executor = HERE,
    offers: Callable[[Task], Tools | None] = no_tools,
    hidden: tuple[Path, ...] = (),
) -> AgentTarget:
    """The agent that `cfg.model` names. A relative path in a command starts at `root`, whose files stay hidden from it,
    as do those in `hidden`.

    Raises `UsageError` if its program is missing, or if a setting does not fit it.
    """
    name = parse_name(cfg.model)
    command, programs = _program(name, root)
    model = name.inner.text if name.inner is not None else cfg.upstream
    _refuse_alias(name)
    asked = model if cfg.gateway else ""
    upstream = _upstream(cfg, asked, key_env or cfg.key_env, role) if asked else None
    if cfg.max_usd is not None and upstream is not None and upstream.priced(GUESS).usd is None:
        raise UsageError(
            f"{role}.max_usd cannot hold, because the price of `{upstream.known}` is unknown: set {role}.price, or use "
            f"{role}.max_turns instead"
        )
    folder = run.folder.resolve() if run is not None else root
    places = (root.resolve(), folder, *hidden, *([executor.tls.key.resolve()] if executor.tls else []))
    return AgentTarget(
        agent=name.scheme,
        command=command,
        version="" if programs else version_of(command),
        content=content_of(command, programs) if programs else "",
        upstream=upstream,
        own=None if cfg.gateway else name.inner,
        activation=cfg.activation or "forced",
        limits=RolloutLimits(cfg.max_turns, cfg.max_usd),
        timeout_s=cfg.timeout_s if "timeout_s" in cfg.model_fields_set else TIMEOUT_S,
        sandbox=probe(cfg.sandbox),
        parent=workspaces_of(folder),
        env=_passed(cfg),
        programs=programs,
        hidden=tuple(dict.fromkeys(places)),
        run_journal=run,
        slots=slots,
        writable=writable,
        role=role,
        spend=spend,
        executor=executor,
        offers=offers,
    )


def _refuse_alias(name: Name) -> None:
    if name.scheme == "claude-code" and name.model in ALIASES:
        raise UsageError(
            f"`{name}`: {name.model} is an alias that moves from model to model, and a run needs one model: "
            "write the model's full id, e.g. claude-code/claude-opus-5"
        )


def _upstream(cfg: TargetConfig, model: str, key_env: str | None, role: str) -> Upstream:
    try:
        return upstream_of(model, key_env=key_env, rate=cfg.price)
    except CallError as error:
        raise UsageError(f"{role}.model: {error}") from error


def _program(name: Name, root: Path) -> tuple[str, tuple[Path, ...]]:
    """(executable or command line, the files of a command line). Raises `UsageError` if the program is missing."""
    agent = AGENTS[name.scheme]
    if agent.executable:
        found = shutil.which(agent.executable)
        if found is None:
            raise UsageError(f"`{name}`: there is no command `{agent.executable}` on the PATH; {agent.needs}")
        if missing := [program for program in agent.beside if shutil.which(program) is None]:
            raise UsageError(
                f"`{name}`: there is no `{missing[0]}` on the PATH, which {agent.executable} needs and cannot download "
                "in the sandbox; install it (rg is the package ripgrep)"
            )
        return found, ()
    words, programs = split_command(name.model), list[Path]()
    for place, word in enumerate(words):
        path = root / Path(word).expanduser()
        if place == 0 and os.sep not in word:
            path = Path(shutil.which(word) or word)
        if (place == 0 or os.sep in word or path.suffix) and path.is_file():
            words[place] = os.path.abspath(path)
            programs.append(Path(words[place]))
        elif place == 0:
            raise UsageError(f"`{name}`: there is no command `{word}` ({path.absolute()}); {agent.needs}")
    return shlex.join(words), tuple(programs)


def content_of(command: str, programs: tuple[Path, ...]) -> str:
    """Hash of a command line and of the files that it names."""
    return digest("program", command, [_content(path) for path in programs])


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _passed(cfg: TargetConfig) -> dict[str, str]:
    """The variables that the agent gets by name."""
    if missing := [name for name in cfg.env if name not in os.environ]:
        raise UsageError(f"target.env names {missing[0]}, which is not set: set it, or take it out of target.env")
    return {name: os.environ[name] for name in cfg.env}


@cache
def version_of(executable: str) -> str:
    """The first line that `EXECUTABLE --version` prints, read once per process. Raises `UsageError` if it fails."""
    with tempfile.TemporaryDirectory() as home:
        env = {name: os.environ[name] for name in KEPT if name in os.environ} | {"HOME": home}
        try:
            shown = subprocess.run(
                [executable, "--version"],
                env=env,
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=VERSION_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", b"") or b"").decode(errors="replace")[-300:]
            raise UsageError(
                f"`{executable} --version` failed: {error}{': ' if said else ''}{said}; install the agent again"
            ) from error
    lines = shown.stdout.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else "unknown"


# -- on another machine


@dataclass(frozen=True, slots=True)
class Needs:
    """The properties that a machine must share with this one to run an agent's jobs, see `AgentTarget`. `gateway` is
    the address at which it must reach the gateway: (host, port), or None without one; `trust` as in `AgentJob`."""

    agent: str
    command: str
    version: str
    content: str
    programs: tuple[Path, ...]
    sandbox: str
    gateway: tuple[str, int] | None
    trust: bytes = b""


@dataclass(frozen=True, slots=True)
class Fit:
    """A job for a machine that fits."""

    needs: Needs
    job: AgentJob


_fits: set[Needs] = set()  # what this process has found to hold


async def run_fit(asked: Fit) -> AgentResult:
    """Run a job. Raises `CallConfigError` if this machine, which may have joined during the run, differs, and
    `InfraError` if it does not reach the gateway, which may be for a moment only."""
    if asked.needs not in _fits:
        for fault, reason in ((CallConfigError, await difference(asked.needs)), (InfraError, await gap(asked.needs))):
            if reason:
                raise fault(f"the machine {platform.node()} cannot run this agent: {reason}")
        _fits.add(asked.needs)
    return await run_job(asked.job)


async def unfit(needs: Needs) -> str:
    """The reason why this machine cannot run an agent as the driver would; "" if it can."""
    return await difference(needs) or await gap(needs)


async def difference(needs: Needs) -> str:
    """The difference of this machine's agent or sandbox from the driver's; "" if there is none."""
    try:
        probe(needs.sandbox)
        if needs.version:
            executable = AGENTS[needs.agent].executable
            own = await asyncio.to_thread(version_of, program_here(executable, needs.command))
            if own != needs.version:
                return f"it has {needs.agent} {own}, and {needs.version} is needed"
        elif content_of(needs.command, needs.programs) != needs.content:
            return f"its files of `{needs.command}` differ"
    except (UsageError, OSError) as error:
        return str(error)
    return ""


async def gap(needs: Needs) -> str:
    """The reason why this machine does not reach the gateway; "" if it does, or if there is none."""
    if needs.gateway is None:
        return ""
    host, port = needs.gateway
    try:
        async with asyncio.timeout(ROUTE_S):
            _, writer = await asyncio.open_connection(host, port, ssl=trusting(needs.trust) if needs.trust else None)
    except ssl.SSLError as error:
        return f"it does not trust the gateway at {host}:{port} ({error}): workers.tls_cert must be valid for {host}"
    except (OSError, TimeoutError) as error:
        said = str(error) or f"no answer in {ROUTE_S:g} s"
        return f"it does not reach the gateway at {host}:{port} ({said}); set workers.host, or open the port"
    writer.close()
    return ""
