"""The typed parts of the page of a run, and their JSON form (`history.page` fills them)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from skilltune.history.record import Measured
from skilltune.text import visible
from skilltune.usage import Usage

FORMAT = 1  # of the JSON; the front end refuses another

Health = Literal["running", "stopped", "finished", "died"]
Kind = Literal["yes", "no", "open", "running", "stopped"]


# -- the parts of a run's page


@dataclass(frozen=True, slots=True)
class Decision:
    """The claim of a run, and its figures. `source` says where `gain` comes from: the certificate on `test`, or the
    gate's estimate on `select`, which was selected for being high. Scores and gains are in [0, 1]. None: unknown."""

    kind: Kind
    claim: str
    source: Literal["test", "select", ""] = ""
    before: float | None = None
    after: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    p: float | None = None
    n: int = 0
    samples: str = ""
    method: str = ""
    attempts: int = 1
    look: int = 1
    fixed: int | None = None
    broken: int | None = None
    tokens: float | None = None
    usd: float | None = None
    notes: tuple[str, ...] = ()
    also: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class VersionRow:
    """An accepted skill. `estimate` is the gate's estimate on `select` with its 95 % interval; `scores` are plain means
    by split. `text` is None if it did not fit."""

    number: int
    hash: str
    step: int | None
    edits: int
    tokens: int | None
    reason: str
    revived: bool
    ships: bool
    estimate: tuple[float, float, float] | None
    scores: Mapping[str, Measured]
    text: str | None


@dataclass(frozen=True, slots=True)
class Column:
    """One text in the matrix: a version, or a candidate that was judged and rejected (an arm). `cells` has one string
    per attempt; each has one character per sample, in the order of `Samples.ids`."""

    label: str
    kind: Literal["version", "arm"]
    hash: str
    version: int | None
    verdict: int | None  # its place in `verdicts`
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples in the order of the matrix: `sizes` counts those of each split in that order, `all` those of the run.
    `inputs` are the beginnings of their inputs, None if they did not fit. `notes` has those that were left out."""

    ids: tuple[str, ...]
    sizes: Mapping[str, int]
    all: Mapping[str, int]
    inputs: tuple[str, ...] | None
    notes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EditRow:
    """A judged edit. `removed` and `inserted` are what it changed; `effect` and `sd` what the screen measured on
    train."""

    op: str
    after: str | None
    removed: str
    inserted: str
    why: str
    quotes: tuple[tuple[str, str], ...]  # (sample id, quote)
    fate: Literal["kept", "tried, not kept", "not applied", "measured, not tried"]
    reason: str
    effect: float | None
    sd: float | None


@dataclass(frozen=True, slots=True)
class Look:
    """An interim analysis. `better` is P(better) of a race, or the share of the bar that a bet has reached."""

    n: int
    gain: float
    sd: float | None
    better: float | None


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """A verdict of the gate. `fixed` and `broke` name select samples by their place in `Samples.ids`; `n_fixed` and
    `n_broke` count all of them."""

    step: int
    epoch: int
    kind: Literal["step", "slow", "compact", "ablation"]
    version: int
    accepted: bool
    reason: str
    rule: str
    before: float | None
    after: float | None
    n: int
    gain: float | None
    sd: float | None
    better: float | None
    needed: float | None
    prior: tuple[float, float] | None
    looks: tuple[Look, ...]
    fixed: tuple[int, ...]
    broke: tuple[int, ...]
    n_fixed: int
    n_broke: int
    edits: tuple[EditRow, ...]


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule of the best skill by the ledger, with its effect in scores; `together` counts the rules that the data
    cannot separate from it."""

    text: str
    op: str
    step: int
    version: int
    effect: float
    low: float
    high: float
    fixed: int
    broken: int
    known: int
    together: int


@dataclass(frozen=True, slots=True)
class Activation:
    """The rollouts of an agent in which the skill was offered and loaded. `unproven`: nobody saw its model calls."""

    agent: str
    rollouts: int
    offered: int
    loaded: int
    unproven: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one role in one phase."""

    role: str
    phase: str
    calls: int
    input: int
    cached: int
    output: int
    usd: float | None

    @classmethod
    def of(cls, role: str, phase: str, usage: Usage) -> Cost:
        return cls(role, phase, usage.calls, usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.usd)


@dataclass(frozen=True, slots=True)
class Money:
    """All costs. `budget` has the limits that were set. `forecast` is the total that is expected at the end, by the
    cost of the steps so far; None if the run is over or no step was paid for. `curve` is the cost over time: seconds
    since the epoch, calls, tokens, dollars."""

    rows: tuple[Cost, ...]
    total: Cost
    budget: Mapping[str, float]
    minutes: float
    forecast: Mapping[str, float] | None
    curve: tuple[tuple[float, int, int, float | None], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log."""

    at: float
    text: str
    tone: str


@dataclass(frozen=True, slots=True)
class Omitted:
    """A part that did not fit: its number of items, their kind, and the place that has them all."""

    n: int
    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Page:
    """All of a run but its transcripts. Times are seconds since the epoch."""

    id: str
    name: str
    state: Health
    pid: int | None
    program: str
    started: float | None
    updated: float | None
    setup: Mapping[str, Any]
    step: int
    steps: int
    stopped: str
    ending: str
    resume: str
    decision: Decision
    versions: tuple[VersionRow, ...]
    samples: Samples
    columns: tuple[Column, ...]
    verdicts: tuple[VerdictRow, ...]
    rules: tuple[RuleRow, ...]
    activation: tuple[Activation, ...]
    money: Money
    controls: Mapping[str, Any] | None
    log: tuple[Entry, ...]
    files: tuple[str, ...]
    omitted: tuple[Omitted, ...]
    live: Mapping[str, Any] | None
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the list of runs. `spark` is the incumbent's estimated score on `select` after each verdict."""

    id: str
    name: str
    state: Health
    kind: Kind
    claim: str
    source: Literal["test", "select", ""]
    gain: float | None
    low: float | None
    high: float | None
    calls: int
    tokens: int
    usd: float | None
    spark: tuple[float, ...]
    versions: int
    step: int
    steps: int
    samples: int
    started: float | None
    updated: float | None
    target: str
    optimizer: str

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A turn of a transcript. `cut` counts the characters in its middle that were left out."""

    role: str
    text: str
    cut: int


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file that the target left. `hash` names it in the journal (`artifact:HASH`). `image` is its media type if a
    browser can show it, else ""."""

    path: str
    size: int
    hash: str
    image: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """One rollout. `expected` is the target value of the sample, for a reader of the page only."""

    key: str
    sample: str
    split: str
    column: str
    hash: str
    attempt: int
    attempts: int
    outcome: str
    error: str
    score: float | None
    soft: float | None
    why: str
    metrics: Mapping[str, float]
    expected: str
    turns: tuple[TurnRow, ...]
    answer: TurnRow | None  # None: the last turn is the answer
    files: tuple[FileRow, ...]
    diff: TurnRow | None
    stream: FileRow | None
    offered: bool
    loaded: bool
    calls: int
    tokens: int
    usd: float | None
    seconds: float
    omitted: tuple[Omitted, ...]

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


# -- JSON


def to_json(value: Any) -> Any:
    """JSON data of dataclasses. Every text is made safe to show, and floats are rounded."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.4g}")
    if is_dataclass(value):
        return {part.name: to_json(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {visible(str(name)): to_json(each) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [to_json(each) for each in value]
    return value


def size_of(value: Any) -> int:
    """Bytes of the value as JSON in a page, where "<" is escaped."""
    text = json.dumps(to_json(value), ensure_ascii=False)
    return len(text.encode()) + 5 * text.count("<")
