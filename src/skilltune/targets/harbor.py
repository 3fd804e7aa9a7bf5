"""An agent of Harbor as the frozen agent: one trial of one task, by Harbor's command line.

The agent runs in Harbor's container and calls its model itself, so the gateway does not see its calls. Tokens and cost
are those that the trial reports, and a trial that is killed is paid again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skilltune.config import TargetConfig
from skilltune.envs.harbor import HarborEnv, rewards_of
from skilltune.envs.task import Task
from skilltune.errors import CallConfigError, InfraError, JudgeError, UsageError
from skilltune.gateway.trajectory import CALL, TOOL
from skilltune.journal.keys import digest
from skilltune.metering.clients import Clients
from skilltune.models.prices import price
from skilltune.models.redact import redacted
from skilltune.names import VENDORS, Name, parse_name
from skilltune.processes import signal_group
from skilltune.rollout import THINKING, Artifact, Trajectory, Turn
from skilltune.skill import Skill
from skilltune.targets.agents.job import KEPT, write_skill
from skilltune.targets.agents.target import GUESS, named_skill, version_of
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage

TIMEOUT_S = 3600.0  # of a trial, if target.timeout_s is not set; its own limits stand in task.toml
END_S = 60.0  # Harbor removes its containers after SIGTERM; after this it is killed
ATTEMPTS = 3  # equal exceptions in a row; a trial is too expensive for more
SHOWN = 600  # characters of Harbor's output in a message
_ENVIRONMENT = (*KEPT, "HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
_LIMITS = (
    "AgentTimeoutError",
    "ContextWindowExceededError",
    "ContextLengthExceededError",
    "OutputTokenExceededError",
    "OutputLengthExceededError",
)
_REFUSALS = ("AgentSafetyRefusalError", "ContentPolicyViolationError")
_SETTINGS = (
    "AgentAuthenticationError",
    "AuthenticationError",
    "PermissionDeniedError",
    "ModelNotFoundError",
    "NotFoundError",
    "MissingExtraError",
)
_VERIFIER = ("VerifierTimeoutError", "RewardFileNotFoundError", "RewardFileEmptyError", "VerifierOutputParseError")


@dataclass(frozen=True, slots=True)
class HarborTarget:
    """Implements `Target` with an agent of Harbor. `env` holds the variables that Harbor gets; those in `passed` are
    the user's, and their values are shown nowhere."""

    name: Name
    model: str  # in Harbor's form, PROVIDER/MODEL
    folders: Mapping[str, Path]
    version: str
    timeout_s: float
    env: Mapping[str, str] = field(repr=False)
    passed: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return digest("harbor", self.name.scheme, self.model, self.version, sorted(self.env))

    @property
    def facts(self) -> tuple[str, ...]:
        told = "only its trials' results are known, nothing proves that the agent saw the skill, and its calls cost"
        return (f"the agent is {self.name.scheme} in Harbor {self.version}: {told}",)

    def guess(self, skill: Skill, task: Task) -> Usage:
        return replace(GUESS, usd=self.usd(GUESS))

    def usd(self, usage: Usage) -> float | None:
        """The list price of a usage in dollars, or None if it is unknown."""
        inner = self.name.inner
        return price(inner, usage) if inner is not None and usage.tokens else usage.usd

    def refuses(self, skill: Skill) -> str:
        """The reason why the agent cannot load a skill as it is; "" if it can."""
        try:
            if skill.body.strip():
                named_skill(skill, "native", self.name.scheme)
        except UsageError as error:
            return str(error)
        return ""

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="skilltune-harbor-") as name:
            folder = Path(name)
            installed: list[str] = []
            if skill.body.strip():
                files = named_skill(skill, "native", self.name.scheme)
                installed = ["--skill", str(write_skill(files, folder / "skills"))]
            (folder / "jobs").mkdir()
            said = await self._harbor(task.id, folder / "jobs", installed)
            trial = await asyncio.to_thread(read_trial, folder / "jobs", said, self._redacted)
            return trajectory_of(trial, time.monotonic() - started, self._priced)

    def _redacted(self, data: bytes) -> str:
        """Text of Harbor's without the values of the variables that the user passes on, because it is kept."""
        text = data.decode("utf-8", "replace")
        for variable in self.passed:
            text = redacted(text, self.env[variable])
        return text

    def _priced(self, usage: Usage) -> Usage:
        return usage if usage.usd is not None else replace(usage, usd=self.usd(usage))

    async def _harbor(self, task: str, jobs: Path, skills: Sequence[str]) -> bytes:
        """Run one trial, and return the end of its output. Raises `InfraError` if it takes too long."""
        command = ["harbor", "run", "--path", str(self.folders[task]), "--agent", self.name.scheme]
        command += ["--model", self.model, *skills, "--jobs-dir", str(jobs), "--job-name", "trial"]
        command += ["--n-attempts", "1", "--n-concurrent", "1", "--max-retries", "0", "--quiet", "--yes"]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=jobs,
            env=dict(self.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                return (await process.communicate())[0]
        except TimeoutError:
            raise InfraError(f"Harbor gives no result within {self.timeout_s:g} s (target.timeout_s)") from None
        finally:
            await asyncio.shield(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    """End Harbor if it still runs, so that it can remove its containers."""
    for sign, wait_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, None)):
        if process.returncode is not None:
            return
        signal_group(process.pid, sign)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), wait_s)


# -- the result of a trial


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial's `result.json`, and the steps of its agent's trajectory (empty if the agent writes none)."""

    result: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def read_trial(jobs: Path, said: bytes, text_of: Callable[[bytes], str] = _plain) -> Trial:
    """The only trial in a folder of jobs. `said` is Harbor's output, and `text_of` decodes everything.

    Raises `InfraError` if there is none.
    """
    for path in sorted(jobs.glob("*/*/result.json")):  # the job's own result stands one level higher
        try:
            result = json.loads(text_of(path.read_bytes()))
        except ValueError:
            continue
        if isinstance(result, dict) and "trial_name" in result:
            written = sorted(
                [*path.parent.glob("agent/trajectory.json"), *path.parent.glob("steps/*/agent/trajectory.json")]
            )
            return Trial(result, tuple(step for file in sorted(written) for step in _steps(file, text_of)))
    tail = text_of(said).strip()[-SHOWN:] or "it printed nothing"
    raise InfraError(f"Harbor left no result of the trial: {tail}", systemic="Harbor leaves no result of its trials")


def _steps(file: Path, text_of: Callable[[bytes], str]) -> list[Mapping[str, Any]]:
    try:
        steps = json.loads(text_of(file.read_bytes()))["steps"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [step for step in steps if isinstance(step, dict)]


def trajectory_of(trial: Trial, seconds: float, priced: Callable[[Usage], Usage] = lambda usage: usage) -> Trajectory:
    """The trajectory of a trial. An exception that a trial recorded is an error, unless the agent reached a limit or
    its model refused, and the verifier graded what was there. `priced` adds the list price to a usage without a price.

    Raises `InfraError`, `CallConfigError` or `JudgeError` with the cost of the trial.
    """
    result, usage = trial.result, priced(usage_of(trial.result))
    steps = [result, *(result.get("step_results") or ())]
    failures = [step["exception_info"] for step in steps if step.get("exception_info")]
    for failure in failures:
        kind, why = failure.get("exception_type", ""), str(failure.get("exception_message", ""))[:SHOWN]
        text = f"Harbor: {kind}: {why}"
        if kind in _SETTINGS:
            raise CallConfigError(f"{text}; check the model's name and the keys in target.env", usage=usage)
        if kind in _VERIFIER:
            raise JudgeError(text, systemic=f"Harbor's verifier fails with {kind}", usage=usage)
        if kind not in (*_LIMITS, *_REFUSALS) or not rewards_of(result):
            raise InfraError(text, systemic=f"Harbor's trials end with {kind}", attempts=ATTEMPTS, usage=usage)
    turns = tuple(turn for step in trial.steps for turn in _turns(step))
    limits = [failure["exception_type"] for failure in failures if failure["exception_type"] in _LIMITS]
    return Trajectory(
        answer=next((turn.text for turn in reversed(turns) if turn.role == "assistant"), ""),
        turns=turns,
        outcome="agent_limit" if limits else "ok",
        error="; ".join(failure["exception_type"] for failure in failures),
        usage=usage,
        seconds=round(seconds, 4),
        stream=Artifact.of(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace")),
    )


def usage_of(result: Mapping[str, Any]) -> Usage:
    """The cost that a trial reports; the price is unknown if it reports none."""
    parts = [result.get("agent_result"), *(step.get("agent_result") for step in result.get("step_results") or ())]
    known = [part for part in parts if part]

    def total(key: str) -> int:
        return sum(part.get(key) or 0 for part in known)

    costs = [part.get("cost_usd") for part in known]
    usd = sum(costs) if costs and None not in costs else None
    read, written = total("n_input_tokens"), total("n_output_tokens")
    return Usage(1, read, written, min(read, total("n_cache_tokens")), usd=usd)


def _turns(step: Mapping[str, Any]) -> Iterator[Turn]:
    """The turns of one step in Harbor's own format of trajectories."""
    source = step.get("source")
    if source not in ("user", "agent"):
        return
    if thought := step.get("reasoning_content"):
        yield Turn(THINKING, str(thought))
    if text := _text(step.get("message")):
        yield Turn("assistant" if source == "agent" else "user", text)
    for call in step.get("tool_calls") or ():
        arguments = call.get("arguments") or {}
        lines = [f"{key}: {v if isinstance(v, str) else json.dumps(v)}" for key, v in arguments.items()]
        yield Turn(CALL, "\n".join([str(call.get("function_name", "")), *lines]))
    for seen in (step.get("observation") or {}).get("results") or ():
        if text := _text(seen.get("content")):
            yield Turn(TOOL, text)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or f"[{part.get('type')}]") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


# -- from the config


def make_harbor(cfg: TargetConfig, env: HarborEnv, clients: Clients) -> MeteredTarget:
    """The target of Harbor tasks with the agent that `cfg.model` names. Raises `UsageError` for an agent that Harbor
    cannot run with a skill, and for options that it would ignore."""
    name = parse_name(cfg.model)
    if name.scheme not in VENDORS or name.inner is None or name.inner.url is not None:
        raise UsageError(
            f"target.model: `{name}` cannot do Harbor tasks; name claude-code/MODEL or codex/MODEL, with a model of "
            "the provider's own"
        )
    if cfg.gateway:
        raise UsageError(
            "target.gateway: the containers of Harbor cannot reach skilltune's gateway: set target.gateway=false, and "
            'name the variable with the key in target.env, e.g. target.env=["ANTHROPIC_API_KEY"]'
        )
    for option in ("activation", "sandbox", "key_env"):
        if getattr(cfg, option) != TargetConfig.model_fields[option].default and getattr(cfg, option) != "native":
            raise UsageError(f"target.{option}: Harbor installs skills and isolates agents its own way; leave it out")
    if missing := [variable for variable in cfg.env if variable not in os.environ]:
        raise UsageError(f"target.env names {missing[0]}, which is not set: set it, or take it out of target.env")
    passed = [*_ENVIRONMENT, *cfg.env, *(variable for variable in os.environ if variable.startswith("DOCKER_"))]
    target = HarborTarget(
        name=name,
        model=f"{name.inner.scheme}/{name.inner.model}",
        folders=env.folders,
        version=version_of(shutil.which("harbor") or "harbor"),
        timeout_s=cfg.timeout_s if "timeout_s" in cfg.model_fields_set else TIMEOUT_S,
        env={variable: os.environ[variable] for variable in passed if variable in os.environ},
        passed=cfg.env,
    )
    return MeteredTarget(cfg.model, target, clients.meter(cfg, "target"), cfg.price)
