"""Every error that skilltune raises on purpose, and its consequence for the run.

A `UsageError` can be fixed by the user and is raised before anything is spent. A `CallError` is a failure of one call
to a model or an agent; it becomes a typed outcome and never a score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from skilltune.usage import Usage

Outcome = Literal["ok", "agent_limit", "infra_error", "judge_error", "sample_error", "not_graded", "config_error"]


class SkilltuneError(Exception):
    """Base of all errors raised on purpose. `exit_code` is the exit code of `skilltune train`."""

    exit_code = 2


class UsageError(SkilltuneError, ValueError):
    """An error that the user can fix. The message says what is wrong, where, and how to fix it. Nothing was spent."""


class CallError(SkilltuneError, RuntimeError):
    """One call failed. `outcome` is the type of failure; `retry_after` is the wait in seconds that the server asked
    for.

    `systemic` is a short text that is equal for all failures of one kind, or "" if a failure predicts nothing about the
    next call. If it repeats, the endpoint or its settings are the cause, and the text says what to change. `attempts`
    is the number of equal failures in a row after which a retry cannot help (None: use the retry policy's). `usage` is
    the cost of the failed attempt, as far as the server reports it. `guess` estimates that cost if it is unknown; None
    means that the estimate of a whole unit of work counts.
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
        guess: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.guess = guess
        self.retry_after, self.systemic, self.attempts, self.usage = retry_after, systemic, attempts, usage

    def reworded(self, message: str) -> Self:
        """The same failure with another message."""
        return type(self)(
            message,
            retry_after=self.retry_after,
            systemic=self.systemic,
            attempts=self.attempts,
            usage=self.usage,
            guess=self.guess,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.__dict__))


class InfraError(CallError):
    """429, 5xx, dropped connection, malformed body, crashed CLI: retried, then excluded; never scored.

    `reached` is True if the attempt counts as a call. `billed` is True if the work may have been billed at an unknown
    cost, so that an estimate is counted.
    """

    outcome: Outcome = "infra_error"
    reached = True
    billed = True


class UnreachableError(InfraError):
    """No connection was made, so nothing can have been billed."""

    reached = billed = False


class CutShort(InfraError):
    """Both answers to one question were cut by the token limit before they could be read."""


class JudgeError(CallError):
    """The scorer's own model or process failed. The rollout is valid but has no score."""

    outcome: Outcome = "judge_error"


class SampleError(CallError):
    """Only this sample fails: a filter refused it, or it exceeds the context. It is not retried and never scored."""

    outcome: Outcome = "sample_error"


class NotGraded(JudgeError):
    """The answer cannot be graded: what the grader itself needs is missing or unreadable. Never a score."""

    outcome: Outcome = "not_graded"


class MissingArtifact(SkilltuneError, LookupError):
    """The target left no such file. The fault is the agent's, so a scorer that needs the file gives 0."""


class CallConfigError(CallError):
    """401, 400, unknown model, missing CLI: a retry cannot help, so the run stops at once."""

    outcome: Outcome = "config_error"


class RejectedError(CallConfigError):
    """400 or 422: the endpoint refuses this request as it is. Another sample's may be answered."""


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
    """The user asked for a pause. Nothing is chosen or certified, and the test split is not read."""


class InfraStopped(Stopped):
    """Too large a share of a batch could not be scored. All paid answers are kept, and the same command resumes the
    run."""

    exit_code = 3


class Unanswered(Stopped):
    """A question to a person or another agent is open, and the run does not wait for it. Nothing is certified."""


class RunError(UsageError):
    """The run folder cannot be used: locked by another process, newer schema, damaged, or another config."""


def _rebuild(cls: type[CallError], message: str, state: dict[str, object]) -> CallError:
    error = cls(message)
    error.__dict__.update(state)
    return error
