"""Measure the agreement of a judge with a person, on answers with known verdicts.

Cohen's kappa removes agreement by chance, because a judge that passes everything agrees well if most answers are good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skilltune.aio import run_all
from skilltune.envs import Env
from skilltune.errors import InfraStopped, JudgeError, UsageError
from skilltune.samples import Sample
from skilltune.scorers.judge import Reader, Verdict, prose
from skilltune.scorers.reading import nearest, quote
from skilltune.stats import wilson
from skilltune.usage import Usage, describe_usage, minus

KEYS = ("id", "input", "answer", "checks", "passed")
SHOWN = 20  # most disagreements listed


@dataclass(frozen=True, slots=True)
class Label:
    """An answer with a person's verdict on each line that a judge reads. `where` is "FILE:LINE"."""

    where: str
    sample: Sample
    answer: str
    lines: tuple[str, ...]
    passed: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A verdict on which judge and person disagree."""

    label: Label
    verdict: Verdict

    def __str__(self) -> str:
        said, wanted = ("passes", "fails") if self.verdict.passed else ("fails", "passes")
        seen = f", seeing {quote(self.verdict.evidence)}" if self.verdict.evidence else ""
        return f"{self.label.where}: it {said} {quote(self.verdict.check, 200)}, you say it {wanted}{seen}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """The judge's agreement with a person.

    `counts` has the key (judge passes, person passes). `unread` names labels that got no verdict. `usage` is the cost.
    """

    model: str
    counts: Mapping[tuple[bool, bool], int]
    differences: tuple[Difference, ...]
    unread: tuple[str, ...]
    usage: Usage = field(default_factory=Usage)

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def accuracy(self) -> float:
        return (self.counts[True, True] + self.counts[False, False]) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson). It treats the lines of one answer as independent, which makes it
        too narrow."""
        return wilson(self.counts[True, True] + self.counts[False, False], self.n)

    @property
    def chance(self) -> float:
        """The expected agreement by chance: two independent readers with these pass rates."""
        judge = (self.counts[True, True] + self.counts[True, False]) / self.n
        person = (self.counts[True, True] + self.counts[False, True]) / self.n
        return judge * person + (1 - judge) * (1 - person)

    @property
    def kappa(self) -> tuple[float, float, float] | None:
        """Cohen's kappa with its 95 % interval; None if it is undefined, because both give one verdict everywhere.

        kappa = (accuracy - chance) / (1 - chance). The interval treats `chance` as known (Cohen 1960, section 3).
        """
        if self.chance == 1:
            return None
        value, low, high = ((share - self.chance) / (1 - self.chance) for share in (self.accuracy, *self.interval))
        return value, low, high

    def rows(self) -> list[tuple[str, str]]:
        """Rows (name, value) for a terminal."""
        low, high = (100 * bound for bound in self.interval)
        kappa = "kappa not defined: all verdicts are the same, label some answers that pass and some that fail"
        if self.kappa is not None:
            kappa = "kappa {:.2f} ({:.2f}…{:.2f})".format(*self.kappa)
        share = f"{100 * self.accuracy:.1f} % (95 % CI {low:.1f}…{high:.1f})"
        both, harsh, lenient, none = (
            self.counts[pair] for pair in ((True, True), (False, True), (True, False), (False, False))
        )
        rows = [
            ("judge", f"{self.model} agrees with you on {share} of {self.n} verdicts, {kappa}"),
            ("", f"both pass {both}, both fail {none}, only the judge passes {lenient}, only you pass {harsh}"),
            ("", f"it took {describe_usage(self.usage)}"),
        ]
        for name, texts in (("differs", [str(difference) for difference in self.differences]), ("unread", self.unread)):
            rows += [(name, text) for text in texts[:SHOWN]]
            if len(texts) > SHOWN:
                rows.append(("", f"… and {len(texts) - SHOWN} more"))
        return rows


def read_labels(path: Path, env: Env) -> list[Label]:
    """Read labels from JSONL: objects with "id" or "input", "answer", "passed" and optionally "checks".

    `id` names a sample of the environment; its checks are used if the label has none. `passed` has one verdict for each
    line that a judge reads, in order. Raises UsageError with one message per unreadable label, each with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels {path}: {error}") from error
    by_id = {sample.id: sample for sample in env.samples}
    rows = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise UsageError(f'{path} holds no labels: write one JSON object per line, with "id", "answer" and "passed"')
    labels, problems = list[Label](), list[str]()
    for where, line in rows:
        try:
            labels.append(_label(where, line, env, by_id))
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return labels


def _label(where: str, line: str, env: Env, by_id: Mapping[str, Sample]) -> Label:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a label is an object, not {quote(line)}")
    for key in row:
        if key not in KEYS:
            raise UsageError(f'{where}: unknown key "{key}"{nearest(key, KEYS)}; there are {", ".join(KEYS)}')
    sample = _sample(where, row, by_id)
    if "checks" in row:
        checks = row["checks"]
        if not isinstance(checks, list) or not all(isinstance(check, str | dict) for check in checks):
            raise UsageError(f"{where}: checks must be a list of texts or of checks")
        checks = [{"type": "judge", **({"text": check} if isinstance(check, str) else check)} for check in checks]
        lines = list(dict.fromkeys(prose(checks)))
    else:
        lines = env.lines(sample)
    if not lines:
        raise UsageError(f'{where}: the sample has no check for a judge: give the label "checks", a list of texts')
    answer, passed = row.get("answer"), row.get("passed")
    if not isinstance(answer, str) or not answer.strip():
        raise UsageError(f'{where}: "answer" must be the text of an answer')
    passed = [passed] if isinstance(passed, bool) else passed
    if not isinstance(passed, list) or not all(isinstance(each, bool) for each in passed):
        raise UsageError(f'{where}: "passed" must be a list of true and false')
    if len(passed) != len(lines):
        shown = ", ".join(quote(text) for text in lines)
        raise UsageError(f"{where}: {len(passed)} verdicts for {len(lines)} checks that the judge reads: {shown}")
    return Label(where, sample, answer, tuple(lines), tuple(passed))


def _sample(where: str, row: Mapping[str, Any], by_id: Mapping[str, Sample]) -> Sample:
    if ("id" in row) == ("input" in row):
        raise UsageError(f'{where}: a label needs either "id" (of a sample) or "input" (a new task)')
    if "input" in row:
        if not isinstance(row["input"], str):
            raise UsageError(f'{where}: "input" must be a text')
        return Sample(id=where, input=row["input"])
    if (sample := by_id.get(str(row["id"]))) is None:
        raise UsageError(f'{where}: no sample has the id "{row["id"]}"{nearest(str(row["id"]), by_id)}')
    return sample


def describe_cost(judge: Reader, labels: Sequence[Label]) -> str:
    """A text with the number of calls and an upper bound of their cost, without repeated calls."""
    bounds = [judge.client.bound(judge.request(label.sample, label.answer, label.lines)) for label in labels]
    total = sum(bounds, Usage())
    price = "price unknown" if total.usd is None else f"${total.usd:.2f}" if total.usd else "$0"
    return (
        f"asking {judge.client.model.name} {len(labels)} times: at most about {total.tokens:,} tokens, {price}; "
        "an answer without a verdict is asked for once more, at about the same cost"
    )


async def measure(judge: Reader, labels: Sequence[Label]) -> Agreement:
    """Let the judge read all labelled answers. Labels without a verdict are not counted, but named in the result.
    Raises `InfraStopped` if no label gets a verdict."""
    before = judge.client.meter.budget.spent

    async def one(label: Label) -> list[Verdict] | str:
        try:
            return await judge(label.sample, label.answer, label.lines)
        except JudgeError as error:
            return f"{label.where}: {error}"

    found: list[list[Verdict] | str] = await run_all([one(label) for label in labels])
    counts = dict.fromkeys([(a, b) for a in (True, False) for b in (True, False)], 0)
    differences = []
    for label, verdicts in zip(labels, found, strict=True):
        if isinstance(verdicts, str):
            continue
        for verdict, passed in zip(verdicts, label.passed, strict=True):
            counts[verdict.passed, passed] += 1
            if verdict.passed != passed:
                differences.append(Difference(label, verdict))
    unread = tuple(text for text in found if isinstance(text, str))
    usage, model = minus(judge.client.meter.budget.spent, before), judge.client.model.name
    if len(unread) == len(labels):
        raise InfraStopped(
            f"the judge {model} could not be measured: it gave no verdict on any of {len(labels)} labels "
            f"({describe_usage(usage)}). The first: {unread[0]}"
        )
    return Agreement(model, counts, tuple(differences), unread, usage)
