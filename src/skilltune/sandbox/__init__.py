"""Confines commands that nobody vouches for, as far as this machine allows, and says what holds.

- `none` confines nothing.
- `landlock`: the kernel grants paths and TCP ports. Processes outside cannot be traced or signalled. Names and sizes of
  hidden files can still be seen.
- `bwrap`: a view of the disk of its own, in which hidden paths are empty, and a view of the processes of its own. Ports
  are limited by Landlock; without a granted port there is no network at all.

A level is really tried once (`probe`) before it is used, and it is never weakened in silence. Time, processor, memory,
processes and output are bounded at each level (`process.Limits`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from skilltune.errors import CallConfigError, UsageError
from skilltune.sandbox import confine, trial
from skilltune.sandbox.levels import LEVELS, Holds, Level, Policy, wrapped
from skilltune.sandbox.process import Command, Exit, Limits, run_process

__all__ = [
    "LEVELS",
    "NONE",
    "Command",
    "Exit",
    "Holds",
    "Level",
    "Limits",
    "Policy",
    "Sandbox",
    "describe",
    "probe",
    "run_process",
]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A level that was tried on this machine."""

    level: Level
    holds: Holds

    def wrap(self, command: Command, policy: Policy, limits: Limits) -> Command:
        """The command line that confines a command. Raises CallConfigError if there is no such program, UsageError if
        the policy cannot be kept at this level."""
        return wrapped(self.level, command, policy)

    async def run(
        self,
        command: Command,
        policy: Policy,
        limits: Limits,
        *,
        on_line: Callable[[bytes], None] | None = None,
    ) -> Exit:
        """Run a confined command, see `process.run_process`. Raises CallConfigError also if it cannot be confined."""
        ended = await run_process(self.wrap(command, policy, limits), limits, on_line=on_line)
        if self.level != "none" and ended.code in _REFUSALS and ended.stderr.startswith(_REFUSALS[ended.code]):
            await self._require(command, policy)
        return ended

    async def _require(self, command: Command, policy: Policy) -> None:
        """Raise CallConfigError if the command cannot be confined and started. It is not run, because a command may
        print the message of a refusal itself."""
        tried = await run_process(wrapped(self.level, command, policy, trial=True), Limits(trial.TRIAL_S))
        if tried.code:
            raise CallConfigError(f"sandbox {self.level}: {tried.stderr.decode(errors='replace').strip()}")


_REFUSALS = {confine.REFUSED_CODE: confine.REFUSED.encode(), 1: b"bwrap: "}  # exit code → beginning of stderr
NONE = Sandbox("none", Holds(note="nothing is confined: commands can read and write all that this user can"))


def probe(wanted: str = "auto") -> Sandbox:
    """The sandbox of a level, tried once per process; "auto" takes the level that keeps most.

    A level holds if hidden files cannot be read and nothing is written outside. Raises UsageError, with the remedy,
    if the wanted level does not hold.
    """
    if wanted == "auto":
        found = [_tried(level) for level in ("bwrap", "landlock")]
        held = [sandbox for sandbox in found if isinstance(sandbox, Sandbox)]
        return max(held, key=_strength, default=NONE)
    if wanted == "none":
        return NONE
    if wanted not in LEVELS:
        raise UsageError(f'no sandbox is called "{wanted}"; there are: auto, {", ".join(LEVELS)}')
    found = _tried(wanted)
    if isinstance(found, str):
        raise UsageError(
            f"the sandbox {wanted} does not hold here: {found}; or choose sandbox auto, which takes the best that holds"
        )
    return found


def _strength(sandbox: Sandbox) -> int:
    holds = sandbox.holds
    return sum((holds.read, holds.write, holds.network, holds.processes))


def describe(sandbox: Sandbox) -> str:
    """One sentence for check, doctor, the plan and the card."""
    if sandbox.level == "none":
        return f"sandbox none: {sandbox.holds.note}"
    holds = sandbox.holds
    parts = [
        "hidden files cannot be read" if holds.read else "hidden files CAN BE READ",
        "nothing is written outside" if holds.write else "files outside CAN BE WRITTEN",
        "no connection but to granted ports" if holds.network else "the network is OPEN",
        "other processes are out of reach" if holds.processes else "other processes CAN BE REACHED",
    ]
    return f"sandbox {sandbox.level}: {', '.join(parts)}" + (f" ({holds.note})" if holds.note else "")


@functools.cache
def _tried(level: Level) -> Sandbox | str:
    held = trial.try_level(level)
    return held if isinstance(held, str) else Sandbox(level, held)
