"""One attempt of the target at one sample, and its score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from skilltune.errors import MissingArtifact, Outcome, RunError
from skilltune.usage import Usage


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's verdict. `value` in [0, 1] is the score; `soft` is partial credit if it differs from `value`.

    `why` explains in one line what was right or wrong. The optimizer learns from it.
    """

    value: float
    why: str = ""
    soft: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, number in (("value", self.value), ("soft", self.soft)):
            if number is not None and not 0.0 <= number <= 1.0:  # also rejects NaN
                raise ValueError(f"Score.{name} must lie in [0, 1], got {number!r}")

    @property
    def hard(self) -> float:
        """1.0 if the sample is solved, else 0.0."""
        return 1.0 if self.value >= 1.0 else 0.0

    @property
    def partial(self) -> float:
        """Partial credit: `soft` if the scorer gave one, else `value`."""
        return self.value if self.soft is None else self.soft


THINKING = "thinking"  # role of a turn with the model's reasoning before its answer; it is not scored


@dataclass(frozen=True, slots=True)
class Turn:
    """One entry of a trajectory: the speaker ("user", "assistant", "tool", "thinking", …) and the text."""

    role: str
    text: str


DIFF_CHARS = 100_000  # characters of a diff that a rollout keeps
_BLOB = "artifact:"  # start of the journal's names of files that targets left behind
_NAMED = 5  # files that a message names


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that the target left behind. Its content is read from the journal when it is asked for.

    Two artifacts with the same content are equal.
    """

    hash: str
    size: int
    data: bytes | None = field(default=None, repr=False, compare=False)
    blob: Callable[[str], bytes | None] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, data: bytes) -> Artifact:
        return cls(hashlib.sha256(data).hexdigest(), len(data), data)

    @property
    def key(self) -> str:
        """The name of its blob in the journal."""
        return _BLOB + self.hash

    def read(self) -> bytes:
        """The content. Raises `RunError` if the journal no longer holds it."""
        data = self.data if self.data is not None or self.blob is None else self.blob(self.key)
        if data is None:
            raise RunError(f"the journal no longer holds the content of a file that the target wrote ({self.hash})")
        return data

    def loaded(self) -> Artifact:
        """The same artifact with its content in memory."""
        return Artifact(self.hash, self.size, self.read())


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The target's work on one sample, before scoring: its turns in order and the final answer.

    `artifacts` maps a path in the workspace to a file that the target made or changed. `deleted` are the given files
    that are no longer there, or whose new content is too large to keep. `diff` shows all changes of the
    workspace as text; it is for readers, and a long one is cut. `stream` is the raw output of an agent's command line,
    if the target keeps it; a long one is cut in its middle.
    `journaled` is True if the cost in `usage` is journaled already, exchange by exchange. `timed_out` is True if its
    time ran out, so that another attempt may go further. These two are not stored.
    """

    answer: str
    turns: tuple[Turn, ...] = ()
    outcome: Outcome = "ok"
    error: str = ""
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    skill_offered: bool = True
    skill_loaded: bool = True
    artifacts: Mapping[str, Artifact] = field(default_factory=dict, hash=False)
    deleted: tuple[str, ...] = ()
    diff: str = ""
    stream: Artifact | None = None
    journaled: bool = False
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt and its score. `score` is None if the outcome is not scored (an error is never a 0)."""

    sample: str  # sample id
    skill: str  # skill hash
    attempt: int
    trajectory: Trajectory
    score: Score | None

    @property
    def answer(self) -> str:
        return self.trajectory.answer

    @property
    def outcome(self) -> Outcome:
        return self.trajectory.outcome

    @property
    def scored(self) -> bool:
        return self.score is not None

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """The files that the target made or changed, by their paths in the workspace."""
        return self.trajectory.artifacts

    @property
    def deleted(self) -> tuple[str, ...]:
        """The sample's files that the target deleted, by their paths in the workspace."""
        return self.trajectory.deleted

    def artifact(self, path: str) -> bytes:
        """The content of a file that the target made or changed. Raises `MissingArtifact`, which scores 0."""
        if (found := self.artifacts.get(path)) is not None:
            return found.read()
        named = ", ".join(list(self.artifacts)[:_NAMED]) or "none"
        more = f" and {len(self.artifacts) - _NAMED} more" if len(self.artifacts) > _NAMED else ""
        raise MissingArtifact(f'the target wrote no file "{path}"; it wrote {named}{more}')

    @property
    def empty(self) -> bool:
        """True if there is nothing to score: a blank answer, and no file made, changed or deleted."""
        return not self.answer.strip() and not self.artifacts and not self.deleted


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON data, without the content of its artifacts."""
    trajectory, score = rollout.trajectory, rollout.score
    data: dict[str, Any] = {
        "sample": rollout.sample,
        "skill": rollout.skill,
        "attempt": rollout.attempt,
        "answer": trajectory.answer,
        "turns": [[turn.role, turn.text] for turn in trajectory.turns],
        "outcome": trajectory.outcome,
        "error": trajectory.error,
        "usage": trajectory.usage.to_json(),
        "seconds": trajectory.seconds,
        "offered": trajectory.skill_offered,
        "loaded": trajectory.skill_loaded,
    }
    if trajectory.artifacts:
        data["artifacts"] = {path: [file.hash, file.size] for path, file in trajectory.artifacts.items()}
    if trajectory.deleted:
        data["deleted"] = [*trajectory.deleted]
    if trajectory.stream is not None:
        data["stream"] = [trajectory.stream.hash, trajectory.stream.size]
    if trajectory.diff:
        data["diff"] = trajectory.diff
    if score is not None:
        data["score"] = {"value": score.value, "why": score.why, "soft": score.soft, "metrics": dict(score.metrics)}
    return data


def rollout_from_json(data: Mapping[str, Any], blob: Callable[[str], bytes | None] | None = None) -> Rollout:
    """The inverse of `rollout_to_json`. `blob` returns the content of an artifact by its key.

    Raises `KeyError`, `TypeError` or `ValueError` for JSON of another shape.
    """
    texts = [data["sample"], data["skill"], data["answer"], data["outcome"], data["error"]]
    texts += [part for turn in data["turns"] for part in turn]
    texts += [*data.get("artifacts", ()), *data.get("deleted", ()), data.get("diff", "")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(data["attempt"], int):
        raise TypeError("a rollout has a field that is not text")
    hash, size = data.get("stream", ("", 0))
    trajectory = Trajectory(
        answer=data["answer"],
        turns=tuple(Turn(role, text) for role, text in data["turns"]),
        outcome=data["outcome"],
        error=data["error"],
        usage=Usage(**data["usage"]),
        seconds=data["seconds"],
        skill_offered=data["offered"],
        skill_loaded=data["loaded"],
        artifacts={path: Artifact(hash, size, None, blob) for path, (hash, size) in data.get("artifacts", {}).items()},
        deleted=tuple(data.get("deleted", ())),
        diff=data.get("diff", ""),
        stream=Artifact(hash, size, None, blob) if hash else None,
    )
    score = Score(**data["score"]) if "score" in data else None
    return Rollout(data["sample"], data["skill"], data["attempt"], trajectory, score)
