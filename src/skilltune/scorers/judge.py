"""A judge is a model that reads an answer against a rubric. It decides line by line and quotes its evidence.

All lines of a sample go into one question, and the journal stores the verdicts under everything that they depend on. So
a line works like any other check (alone, weighted or negated): it looks up its verdict, and equal answers are read
once. A missing verdict is a `JudgeError` and never a 0. So is a verdict that passes with a quote that is not in the
answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from skilltune.errors import CallConfigError, InfraError, JudgeError, UsageError
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.metering.client import Client
from skilltune.models import Reply, Request, Schema, system, user
from skilltune.models.structured import ask
from skilltune.names import parse_name
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.reading import Mode, as_text, nearest, quote
from skilltune.usage import Usage

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "verdicts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "check": {"type": "string"},
                    "passed": {"type": "boolean"},
                    "evidence": {"type": "string"},
                },
                "required": ["check", "passed", "evidence"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["verdicts"],
    "additionalProperties": False,
}
_TAGS = re.compile(r"<(?=/?(?:task|reference|answer|check)\b)", re.IGNORECASE)
_NUMBER = re.compile(r"\s*(?:check\s*)?#?(\d+)\s*[.:)]?\s*", re.IGNORECASE)
_WORDS = {
    **dict.fromkeys(("true", "yes", "y", "pass", "passed", "passes", "met", "1"), True),
    **dict.fromkeys(("false", "no", "n", "fail", "failed", "fails", "not met", "not passed", "unmet", "0"), False),
}
MAX_QUOTED = 300  # characters of an answer that an error quotes
_QUOTES = str.maketrans("“”„‘’‹", '"""\'\'<')


class Options(BaseModel):
    """Options of `{judge = "MODEL", …}`.

    The lines of the rubric apply to every sample, in addition to its own checks. An entry is prose for the judge, or
    any other check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    rubric: tuple[str | dict[str, Any], ...] = ()
    mode: Mode = "all"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judge's decision on one line. `evidence` is a passage of the answer; it may be "" only if the line is not
    met."""

    check: str
    passed: bool
    evidence: str


Ask = Callable[[Sample, str, Sequence[str]], Awaitable[list[Verdict]]]
"""(sample, answer, lines) → one verdict per line, in order."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge's model, the rubric for every sample, and the function `ask` once a run has bound it."""

    model: str
    rubric: tuple[Mapping[str, Any], ...] = ()
    ask: Ask | None = None
    fingerprint: str = ""  # of the reader behind `ask`

    @classmethod
    def of(cls, options: Options) -> Judge:
        """Raises UsageError if the name is not a valid model name."""
        parse_name(options.judge)
        entries = ({"text": entry} if isinstance(entry, str) else entry for entry in options.rubric)
        return cls(options.judge, tuple({"type": "judge", **entry} for entry in entries))

    def checks(self, sample: Sample) -> tuple[Mapping[str, Any], ...]:
        """All checks of a sample: its own, then the rubric's."""
        return *sample.checks, *self.rubric

    def lines(self, sample: Sample) -> list[str]:
        """The distinct lines of a sample that the judge reads."""
        return list(dict.fromkeys(prose(self.checks(sample))))

    async def verdict(self, sample: Sample, answer: str, line: str) -> Verdict:
        if self.ask is None:
            raise JudgeError(
                f"the judge {self.model} can be asked only in a run, which has a budget and a journal: "
                "use train, evaluate or `skilltune check --judge`"
            )
        lines = self.lines(sample)
        return (await self.ask(sample, answer, lines))[lines.index(line)]


def line_of(options: Mapping[str, Any]) -> str:
    """The text of a check `{"type": "judge", "text": "…"}`. Raises UsageError for any other key or value."""
    for key in options:
        if key != "text":
            raise UsageError(f'scorer "judge" has no option "{key}"{nearest(key, ["text"])}; it has: text')
    text = options.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f'scorer "judge": text must say what the answer has to meet, not {quote(as_text(text))}')
    return text.strip()


def prose(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines for a judge in a list of checks, including nested checks."""
    for check in checks:
        match check.get("type"):
            case "judge":
                yield line_of({key: value for key, value in check.items() if key not in ("type", "weight")})
            case "not":
                yield from prose([check.get("check") or {}])
            case "checks":
                yield from prose(check.get("checks") or ())


async def read_line(sample: Sample, rollout: Rollout, judge: Judge, line: str) -> Score:
    """1 if the judge decides that the answer meets the line."""
    found = await judge.verdict(sample, rollout.answer, line)
    if found.passed:
        return Score(1.0, f"met: {named(line)}, see {quote(found.evidence)}")
    return Score(0.0, f"not met: {named(line)}")


def named(line: str) -> str:
    """A line as quoted in reasons."""
    return quote(line, 200)


def hidden(why: str, lines: Sequence[str]) -> str:
    """A reason with the text of the judge's lines removed."""
    for line in lines:
        why = why.replace(named(line), "(hidden)")
    return why


# -- asking the model


@dataclass(frozen=True, slots=True)
class Reader:
    """Asks the judge's model within the run's budget and journal; implements `Ask`."""

    client: Client
    run: Run
    task: Callable[[Sample], str]  # the text that the target is asked, see `Env.asked`
    temperature: float | None = None
    max_tokens: int | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a verdict, except the text that is read."""
        return digest(self.client.model.fingerprint, load_prompt(), self.temperature, self.max_tokens)

    def request(self, sample: Sample, answer: str, lines: Sequence[str]) -> Request:
        """The question: task, answer and numbered lines, with the sample's target as a reference."""
        reference = [] if sample.target is None else [_part("reference", as_text(sample.target))]
        checks = [_part("check", line, f' id="{number}"') for number, line in enumerate(lines, 1)]
        parts = [_part("task", self.task(sample)), *reference, _part("answer", answer), *checks]
        return Request(
            messages=(system(load_prompt()), user("\n\n".join(parts))),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            schema=Schema("judge", SCHEMA),
        )

    async def __call__(self, sample: Sample, answer: str, lines: Sequence[str]) -> list[Verdict]:
        """Raises `JudgeError` if there is no verdict, `CallConfigError` if there can never be one, and
        `BudgetExceeded`."""
        request = self.request(sample, answer, lines)

        async def pay() -> Paid:
            costs: list[Usage] = []
            said = ""

            async def call(request: Request) -> Reply:
                nonlocal said
                reply = await self.client(request)
                costs.append(reply.usage)
                said = reply.text
                return reply

            try:
                verdicts = await ask(call, request, lambda data: read_verdicts(data, answer, lines))
            except BaseException as error:
                if costs:  # unusable answers were paid for too
                    self.run.record_failure("judge", str(error), sum(costs, Usage()))
                if costs and isinstance(error, InfraError):
                    raise error.reworded(f"{error}; it said {quote(said, MAX_QUOTED)}") from error
                raise
            return Paid([asdict(verdict) for verdict in verdicts], sum(costs, Usage()))

        try:
            found = await self.run.memo(digest("judge", self.client.model.fingerprint, asdict(request)), "judge", pay)
        except CallConfigError as error:
            raise CallConfigError(f"the judge: {error}") from error
        except InfraError as error:
            why = f'the judge {self.client.model.name} gave no verdict on sample "{sample.id}": {error}'
            raise JudgeError(why, retry_after=error.retry_after, systemic=error.systemic) from error
        with self.run.reading():
            return [Verdict(**verdict) for verdict, _ in zip(found, lines, strict=True)]


def read_verdicts(data: Any, answer: str, lines: Sequence[str]) -> list[Verdict]:
    """One verdict per line, in order.

    Raises ValueError, with a message for the model, if a line has no verdict or two, or if it passes without evidence.
    Evidence must be in the answer (ignoring case, white space and quote marks).
    """
    given = data.get("verdicts")
    if not isinstance(given, list):
        raise ValueError('"verdicts" must be a list')
    found: dict[int, Verdict] = {}
    faults: list[str] = []
    for item in given:
        fields = item if isinstance(item, dict) else {}
        check, evidence = fields.get("check"), fields.get("evidence")
        passed = stated(fields.get("passed"))
        if passed is None or not isinstance(evidence or "", str):
            raise ValueError('each verdict needs "check", "passed" (true or false) and "evidence" (a text)')
        number = _numbered(str(check), lines)
        if number is None:
            faults.append(f"there is no check {quote(str(check))}: name each by its number, 1 to {len(lines)}")
        elif number in found:
            faults.append(f"check {number + 1} has two verdicts")
        else:
            found[number] = Verdict(lines[number], passed, evidence or "")
            if passed and not stands_in(evidence or "", answer):
                faults.append(
                    f"check {number + 1} passes, but its evidence {quote(evidence or '')} does not stand in the "
                    "answer: copy a passage verbatim, or fail the check"
                )
    faults += [f"check {number + 1} has no verdict" for number in range(len(lines)) if number not in found]
    if faults:
        raise ValueError("\n".join(faults))
    return [found[number] for number in range(len(lines))]


def stated(passed: Any) -> bool | None:
    """A verdict as a bool: true, false, or an unambiguous word or number such as "yes", "Pass" or 0. Else None."""
    if isinstance(passed, bool | int | float) and passed in (0, 1):
        return bool(passed)
    word = re.sub(r"[^a-z0-9]+", " ", passed.lower()).strip() if isinstance(passed, str) else ""
    return _WORDS.get(word)


def stands_in(evidence: str, answer: str) -> bool:
    """True if the quote is in the answer. If it omits words (… or ...), the pieces must appear in order."""
    text, place = _plain(answer), 0
    pieces = [piece.strip(" \"'") for piece in re.split(r"…|\.{3}|\[…\]|\[\.{3}\]", _plain(evidence))]
    for piece in (pieces := [piece for piece in pieces if piece]):
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return bool(pieces)


@cache
def load_prompt() -> str:
    return (resources.files("skilltune.scorers") / "prompts" / "judge.md").read_text(encoding="utf-8").strip()


def _numbered(check: str, lines: Sequence[str]) -> int | None:
    """The index of the line that a verdict names by number, or by text, as some models do."""
    if (number := _NUMBER.fullmatch(check)) and 1 <= int(number[1]) <= len(lines):
        return int(number[1]) - 1
    return next((index for index, line in enumerate(lines) if _plain(line) == _plain(check)), None)


def _part(name: str, text: str, attributes: str = "") -> str:
    """One part of the question. Text that looks like one of our tags is escaped."""
    return f"<{name}{attributes}>\n{_TAGS.sub('‹', text)}\n</{name}>"


def _plain(text: str) -> str:
    return " ".join(text.translate(_QUOTES).split()).casefold()
