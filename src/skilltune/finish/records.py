"""The first and the last record of a run: the events `start` and `finish`, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skilltune.finish.certify import Certificate


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a run: the hash of the input, its score on `select` with its standard error (None: not measured),
    and the number of `select` samples."""

    skill: str
    score: float | None
    score_sd: float | None
    select: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Start:
        """The record of a `start` event. Raises `KeyError` if a field is missing."""
        return cls(data["skill"], data["score"], data["score_sd"], data.get("select", 0))


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a run: the name of the skill, the hashes of input and shipped skill, the exit code, the certificate
    (None: there is none), the reason if the run was stopped, and the larger limit with which it would go on.
    `versions` holds the hashes of the accepted skills."""

    name: str
    start: str
    best: str
    exit_code: int
    certificate: Certificate | None = None
    stopped: str = ""
    larger: str = ""
    versions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data = {
            "name": self.name,
            "exit_code": self.exit_code,
            "start": self.start,
            "best": self.best,
            "versions": list(self.versions),
            "certificate": self.certificate.to_json() if self.certificate else None,
            "stopped": self.stopped or None,
        }
        return data | ({"larger": self.larger} if self.larger else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finish:
        """The record of a `finish` event. Raises `KeyError` if a field is missing."""
        return cls(
            name=data["name"],
            start=data["start"],
            best=data["best"],
            exit_code=data["exit_code"],
            certificate=Certificate.from_json(data["certificate"]) if data["certificate"] else None,
            stopped=data["stopped"] or "",
            larger=data.get("larger", ""),
            versions=tuple(data.get("versions", ())),
        )
