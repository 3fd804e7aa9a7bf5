"""Every error that skilltune raises on purpose, and what each one means for the run.

The split that matters: a `UsageError` is the user's to fix and is raised before anything is spent; a `CallError`
is what one call to a model or an agent suffered and is turned into a typed outcome, never into a score.
"""

from __future__ import annotations

from typing import Literal

Outcome = Literal["ok", "agent_limit", "infra_error", "judge_error", "config_error"]


class SkilltuneError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what `skilltune train` ends with."""

    exit_code = 2


class UsageError(SkilltuneError, ValueError):
    """Something the user can fix: the message says what is wrong, where, and how to fix it. Nothing was spent."""


class CallError(SkilltuneError, RuntimeError):
    """One call failed. `outcome` types the failure; `retry_after` is the server's wish in seconds, if it stated one."""

    outcome: Outcome = "infra_error"
    exit_code = 3

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.retry_after))


class InfraError(CallError):
    """429, 5xx, dropped connection, malformed body, crashed CLI: retried, then excluded; never scored.

    `reached`: the attempt counts as a call. `billed`: the work may have been done and billed at a cost that nobody
    told, so it is counted at an estimate.
    """

    outcome: Outcome = "infra_error"
    reached = True
    billed = True


class UnreachableError(InfraError):
    """No connection was made: nothing can have been billed."""

    reached = billed = False


class JudgeError(CallError):
    """The scorer's own model or process failed: the rollout stands, its score does not exist."""

    outcome: Outcome = "judge_error"


class CallConfigError(CallError):
    """401, 400, unknown model, missing CLI: retrying cannot help, the run stops at once."""

    outcome: Outcome = "config_error"


class Stopped(SkilltuneError):
    """The run ended early on purpose and can be resumed by the same command."""

    exit_code = 4


class BudgetExceeded(Stopped):
    """The next call would pass a limit of the budget; it was not made."""


class InfraStopped(Stopped):
    """Too large a share of a batch could not be scored; what was paid is kept, the same command resumes."""

    exit_code = 3


class Unanswered(Stopped):
    """A question to a person or another agent is open, and the run was told not to wait: nothing is certified."""


class RunError(UsageError):
    """The run folder cannot be used: locked by another process, newer schema, damaged, other config."""


def _rebuild(cls: type[CallError], message: str, retry_after: float | None) -> CallError:
    return cls(message, retry_after=retry_after)
