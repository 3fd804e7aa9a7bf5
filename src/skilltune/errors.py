"""Every error that skilltune raises on purpose, and what each one means for the run.

The split that matters: a `UsageError` is the user's to fix and is raised before anything is spent; a `CallError`
is what one call to a model or an agent suffered and is turned into a typed outcome, never into a score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from skilltune.usage import Usage

Outcome = Literal["ok", "agent_limit", "infra_error", "judge_error", "sample_error", "not_graded", "config_error"]


class SkilltuneError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what `skilltune train` ends with."""

    exit_code = 2


class UsageError(SkilltuneError, ValueError):
    """Something the user can fix: the message says what is wrong, where, and how to fix it. Nothing was spent."""


class CallError(SkilltuneError, RuntimeError):
    """One call failed. `outcome` types the failure; `retry_after` is the wait in seconds that the server asked for.

    `systemic` is a short text that is equal for all failures of one kind ("" if a failure says nothing of the next
    call): if it comes again and again, the endpoint or its settings are to blame, and the text says what to change.
    `attempts` is the number of equal failures in a row after which another attempt cannot help (None: the policy's).
    `usage` is what the failed attempt cost, as far as the server said so.
    """

    outcome: Outcome = "infra_error"
    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        systemic: str = "",
        attempts: int | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after, self.systemic, self.attempts, self.usage = retry_after, systemic, attempts, usage

    def reworded(self, message: str) -> Self:
        """The same failure with another message."""
        return type(self)(
            message,
            retry_after=self.retry_after,
            systemic=self.systemic,
            attempts=self.attempts,
            usage=self.usage,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.__dict__))


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


class SampleError(CallError):
    """This sample only: a filter refused it, or it is too long for the context. Not retried, never scored."""

    outcome: Outcome = "sample_error"


class CallConfigError(CallError):
    """401, 400, unknown model, missing CLI: retrying cannot help, the run stops at once."""

    outcome: Outcome = "config_error"


class Stopped(SkilltuneError):
    """The run ended early on purpose and can be resumed by the same command.

    `larger` is a setting without which the command would stop again, as the command line takes it ("" if the command
    needs none).
    """

    exit_code = 4
    larger = ""


class BudgetExceeded(Stopped):
    """The next call would pass a limit of the budget; it was not made. `larger` is a limit that is large enough, for
    example "budget.calls=240"."""

    def __init__(self, message: str, larger: str = "") -> None:
        super().__init__(message)
        self.larger = larger


class Paused(Stopped):
    """The user asked for a pause: nothing is chosen or certified, and the test split is not read."""


class InfraStopped(Stopped):
    """Too large a share of a batch could not be scored; what was paid is kept, the same command resumes."""

    exit_code = 3


class Unanswered(Stopped):
    """A question to a person or another agent is open, and the run was told not to wait: nothing is certified."""


class RunError(UsageError):
    """The run folder cannot be used: locked by another process, newer schema, damaged, other config."""


def _rebuild(cls: type[CallError], message: str, state: dict[str, object]) -> CallError:
    error = cls(message)
    error.__dict__.update(state)
    return error
