"""A simulated world behind real HTTP: a target that a good skill really helps, and an imperfect optimizer.

Tests and benches train against it to see that training *works*, not that functions are called. A help desk has K
classes of tickets; the target gives a ticket's code iff the skill holds the rule of its class and nothing harmful.
The optimizer knows the rules but not the samples: it recognises classes only in what a request shows it.

The one decision to know: every draw (noise, faults, latency, ideas) is a hash of the seed and the request, told apart
by its `Idempotency-Key` header or, without one, by how often it was seen before. So results depend neither on the
number of workers nor on the order of arrival. `python tests/world.py --help` serves it from a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import math
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, Self

Json = dict[str, Any]
Dice = Callable[..., float]  # dice("what for", ...) in [0, 1), fixed for one request
Latency = (
    float | Callable[[float], float]
)  # seconds, or seconds as a function of a uniform number (a quantile function)

ROLES = ("target", "optimizer", "judge")  # the names of the models; any other is a 404
GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "sigma")
SUBJECTS = ("invoice", "refund", "parcel", "contract", "claim", "booking", "meter reading", "subscription", "warranty")
SENDERS = ("Marlow Traders", "a new customer", "the Bergen office", "Ito and Sons", "an old client", "the night shift")
FILINGS = (
    "is filed under",
    "was sorted into",
    "belongs to class",
    "came in marked",
    "was handed over as",
    "sits in tray",
)
DETAILS = (
    "The second page is missing.",
    "The amount was changed by hand.",
    "Nobody has called back so far.",
    "It arrived twice on one day.",
    "The signature is hard to read.",
    "A photo is attached.",
)
QUESTIONS = ("Which code does the desk enter?", "What should be entered?", "Enter what belongs in the code field.")

HARMS = ("Always answer UNKNOWN", "Never give a code", "Reply only with the word PENDING")
OCCASIONS = ("when a total is mentioned", "unless the sender insists", "to be on the safe side", "if pages are missing")
LEADS = ("Take care with", "Be precise about", "Think twice over", "Keep an eye on", "Be polite in", "Do not rush")
TAILS = ("", " at all times", " early in the day", " before moving on", " as far as possible", " and stay calm")

TICKET = re.compile(r"\bt-\d{4,}\b")
CLASS = re.compile(r"\b[a-z]+-\d{2,3}\b")
ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
PATHS = ("/v1/messages", "/v1/chat/completions")
OWN = (None, "refuse")  # faults of an answer that is the model's own all the same
REFUSAL = "I cannot help with that."
EVIDENCE = ("skill", "edit_budget", "notes", "unfixed", "rejected", "trajectory", "patch", "edit", "pair")  # tags


def digest(*parts: object) -> str:
    """Sixteen hex digits that are a pure function of the parts."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=8).hexdigest()


def uniform(*parts: object) -> float:
    """A number in [0, 1) that is a pure function of the parts."""
    return (int(digest(*parts), 16) >> 11) / 2**53


def lognormal(median: float, sigma: float) -> Callable[[float], float]:
    """Latency in seconds, log-normal: the `median`, and the standard deviation `sigma` of its logarithm."""
    normal = NormalDist(math.log(median), sigma)
    return lambda u: math.exp(normal.inv_cdf(min(max(u, 1e-9), 1 - 1e-9)))


def flat(text: str) -> str:
    """Text with every run of white space as one blank, so that wrapped lines still hold their phrases."""
    return " ".join(text.split())


# The task: what is true in this world.


@dataclass(frozen=True, slots=True)
class Ticket:
    id: str
    kind: int
    input: str
    target: str
    split: str


class Desk:
    """Classes of tickets, their rules, and the samples; classes are equally frequent in each split.

    `tests/worlds` varies this desk by overriding `kinds_of`, `answer_of`, `value`, `held`, `lacks` and `flip_rate`.
    """

    def __init__(self, classes: int = 12, train: int = 120, select: int = 60, test: int = 120, seed: int = 0) -> None:
        if not 1 <= classes <= 1000:
            raise ValueError(f"classes must lie in 1..1000, got {classes}")
        self.classes, self.seed = classes, seed
        self.names = [f"{GREEK[k % len(GREEK)]}-{k:02d}" for k in range(classes)]
        self._kinds = {name: k for k, name in enumerate(self.names)}
        self._rules = [flat(self.rule(k)) for k in range(classes)]
        self._held: dict[str, frozenset[int]] = {}
        self._solved: dict[str, frozenset[int]] = {}
        sizes = (("train", train), ("select", select), ("test", test))
        places = [(split, kind) for split, size in sizes for kind in self.kinds_of(size)]
        random.Random(seed).shuffle(places)  # so that an id tells neither split nor class
        self.tickets = {t.id: t for i, (split, kind) in enumerate(places) for t in [self._ticket(i, kind, split)]}

    def kinds_of(self, size: int) -> list[int]:
        """The class of each ticket of a split of `size` tickets."""
        return [i % self.classes for i in range(size)]

    def answer_of(self, name: str, kind: int) -> str:
        """The expected answer of the ticket called `name`."""
        return f"K{kind:02d}-{digest(self.seed, 'code', name)[:8]}"

    def _ticket(self, number: int, kind: int, split: str) -> Ticket:
        name = f"t-{number:04d}"

        def pick(options: tuple[str, ...]) -> str:
            return options[int(uniform(self.seed, name, options[0]) * len(options))]

        text = (
            f"Ticket {name}: the {pick(SUBJECTS)} from {pick(SENDERS)} {pick(FILINGS)} {self.names[kind]}. "
            f"{pick(DETAILS)} {pick(QUESTIONS)}"
        )
        return Ticket(name, kind, text, self.answer_of(name, kind), split)

    def samples(self) -> list[Json]:
        """All samples as plain data, in the form that `skilltune.samples.Sample` takes, splits given explicitly."""
        return [
            {
                "id": t.id,
                "input": t.input,
                "target": t.target,
                "split": t.split,
                "metadata": {"class": self.names[t.kind]},
            }
            for t in self.tickets.values()
        ]

    def write(self, path: Path | str) -> Path:
        """Write the samples as JSONL."""
        path = Path(path)
        path.write_text("".join(json.dumps(sample) + "\n" for sample in self.samples()), encoding="utf-8")
        return path

    def rule(self, kind: int) -> str:
        """The sentence that makes a skill solve all tickets of class number `kind`."""
        return f"For {self.names[kind]} cases, answer with code K{kind:02d} and the check letters that follow from it."

    def harmful(self, variant: int = 0) -> str:
        """A sentence that makes a skill solve nothing; there are `len(HARMS) * len(OCCASIONS)` variants."""
        return f"{HARMS[variant % len(HARMS)]} {OCCASIONS[variant // len(HARMS) % len(OCCASIONS)]}."

    def held(self, skill: str) -> frozenset[int]:
        """The classes whose rule stands in the skill, whether or not something harmful stands there too."""
        if (known := self._held.get(skill)) is None:
            text = flat(skill)
            known = self._held[skill] = frozenset(k for k, rule in enumerate(self._rules) if rule in text)
        return known

    def solves(self, skill: str) -> frozenset[int]:
        """The classes that a target with this skill solves."""
        if (known := self._solved.get(skill)) is None:
            text = flat(skill)
            spoiled = any(harm in text for harm in HARMS)
            known = self._solved[skill] = frozenset() if spoiled else self.held(skill)
        return known

    def true_score(self, skill: str, split: str = "test") -> float:
        """The share of the split's samples that this skill solves, without noise."""
        values = [self.value(skill, t) for t in self.tickets.values() if t.split == split]
        return math.fsum(values) / len(values)

    def value(self, skill: str, ticket: Ticket) -> float:
        """The score, 0 to 1, of the answer that a target with this skill gives to the ticket, without noise."""
        return float(ticket.kind in self.solves(skill))

    def lacks(self, skill: str, kind: int) -> bool:
        """True if the skill could still be given a rule of this class."""
        return kind not in self.held(skill)

    def flip_rate(self, ticket: Ticket, solved: bool) -> float:
        """The odds that the noise turns the answer to the ticket around."""
        return 0.0

    def recognise(self, text: str) -> int | None:
        """The first class named after the last ticket number (the skill may be shown first), else the first at all."""
        tickets = list(TICKET.finditer(text))
        named = [match for match in CLASS.finditer(text) if match[0] in self._kinds]
        after = [match for match in named if tickets and match.start() > tickets[-1].start()]
        return next((self._kinds[match[0]] for match in after or named), None)


# The optimizer: an imperfect reader of trajectories.


@dataclass(frozen=True, slots=True)
class Shown:
    """A trajectory or a pair as the request shows it; `score` is that of the newest attempt in it."""

    sample: str
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of an optimizer request, read from the tags of its user message."""

    text: str
    skill: str
    budget: int | None
    rejected: str
    trajectories: list[Shown]
    pairs: list[Shown]
    patches: list[Json]  # the edits of all patches, in order
    edits: list[tuple[int, Json]]

    @classmethod
    def read(cls, text: str) -> Prompt:
        def first(tag: str) -> str:
            return next((body for _, body in blocks(tag, text)), "")

        def shown(tag: str, score: str) -> list[Shown]:
            return [Shown(a.get("sample", ""), float(a.get(score) or 0), body) for a, body in blocks(tag, text)]

        patches = [_json(body) for _, body in blocks("patch", text)]
        budget = re.search(r"\d+", first("edit_budget"))
        return cls(
            text=text,
            skill=first("skill").strip("\n"),
            budget=int(budget[0]) if budget else None,
            rejected=first("rejected"),
            trajectories=shown("trajectory", "score"),
            pairs=shown("pair", "after"),
            patches=[e for patch in patches for e in (patch if isinstance(patch, list) else patch.get("edits", []))],
            edits=[(int(a.get("index", i)), _json(body)) for i, (a, body) in enumerate(blocks("edit", text))],
        )


def blocks(tag: str, text: str) -> Iterator[tuple[dict[str, str], str]]:
    """The attributes and the body of each `<tag …>…</tag>` in a text."""
    for match in re.finditer(rf"<{tag}\b([^>]*)>(.*?)</{tag}>", text, re.DOTALL):
        yield dict(ATTRIBUTE.findall(match[1])), match[2]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(html.unescape(text))


class Optimizer:
    """Answers each stage of contracts.md, "Optimizer requests".

    `q`: odds that an edit is right; a wrong one is harmful with odds `harmful`, else it has no effect. `sloppy`: share
    of edits that hang on an existing line (`replace`, or `add` after it) instead of going to the end. `misquote`:
    share of edits with a quote that stands in no trajectory.
    """

    def __init__(self, desk: Desk, q: float, harmful: float, sloppy: float, misquote: float) -> None:
        self.desk, self.q, self.harmful, self.sloppy, self.misquote = desk, q, harmful, sloppy, misquote
        self.stages: dict[str, Callable[[Prompt, Dice], Json | str]] = {
            "reflect": self.reflect,
            "rules": self.rules,
            "merge": self.merge,
            "rank": self.rank,
            "learning_rate": self.learning_rate,
            "rewrite": self.rewrite,
            "slow_update": self.slow_update,
            "notes": self.notes,
            "judge": self.judge,
        }

    def reflect(self, prompt: Prompt, dice: Dice) -> Json:
        """Missing rules of the failed classes, most frequent first, at most the budget, one edit for each."""
        budget = 4 if prompt.budget is None else prompt.budget
        failed = [t for t in prompt.trajectories if t.score < 1]
        groups = self._by_class(failed or prompt.trajectories)
        diagnosis = [
            {"pattern": f"{self.desk.names[k]} tickets fail", "samples": [t.sample for t in group]}
            for k, group in groups.items()
            if failed
        ]
        edits = self._cure(prompt, failed, dice)
        for kind in [k for k in groups if failed and self.desk.lacks(prompt.skill, k)]:
            text = self._idea(kind, prompt, dice, taken=" ".join(str(e["text"]) for e in edits))
            edits.append(self._place(prompt, text, groups[kind], dice))
        if not edits and groups and dice("idle") >= self.q:  # nothing to say, and says something
            kind, group = next(iter(groups.items()))
            edits.append(self._place(prompt, self._bad(kind, prompt, dice), group, dice))
        return {"diagnosis": diagnosis, "edits": edits[:budget]}

    def rules(self, prompt: Prompt, dice: Dice) -> str:
        """The additions of `reflect` as plain rules, one a line. The request has no tags."""
        skill, *tasks = re.split(r"^Task: ", prompt.text, flags=re.MULTILINE)
        tried = prompt.text.partition("Rules that were tried")[2]
        shown = [Shown(TICKET.findall(task)[0], 0.0, task) for task in tasks if TICKET.search(task)]
        prompt = replace(prompt, skill=skill, rejected=tried, trajectories=shown)
        return "\n".join(str(edit["text"]) for edit in self.reflect(prompt, dice)["edits"] if edit["op"] == "add")

    def _cure(self, prompt: Prompt, failed: list[Shown], dice: Dice) -> list[Json]:
        """The deletions that the failures call for: a harmful line, if everything fails."""
        everything = failed and len(failed) == len(prompt.trajectories)
        if everything and (line := self._harm_in(prompt)) and dice("cure") < self.q:
            return [self._edit("delete", None, failed, dice, target=line)]
        return []

    def merge(self, prompt: Prompt, dice: Dice) -> Json:
        """All edits of the patches in order, each once, cut to the budget if there is one."""
        unique = {tuple(e.get(part) for part in ("op", "after", "target", "text")): e for e in reversed(prompt.patches)}
        return {"edits": list(reversed(unique.values()))[: prompt.budget]}

    def rank(self, prompt: Prompt, dice: Dice) -> Json:
        """A shuffle, with odds `q` sorted so that the right edits come first."""
        order = sorted(prompt.edits, key=lambda item: dice("shuffle", item[0]))
        if dice("rank") < self.q:
            order.sort(key=lambda item: not self._is_right(item[1], prompt.skill))
        return {"order": [index for index, _ in order]}

    def learning_rate(self, prompt: Prompt, dice: Dice) -> Json:
        most = prompt.budget or len(prompt.edits) or len(prompt.patches) or 4
        return {"edits": 1 + int(dice("rate") * most), "reason": "As many as the evidence carries."}

    def rewrite(self, prompt: Prompt, dice: Dice) -> Json:
        """The skill with the suggested edits worked in; without suggestions, with those that reflection would make."""
        edits = [edit for _, edit in prompt.edits] or prompt.patches or self.reflect(prompt, dice)["edits"]
        skill = prompt.skill
        for edit in edits:
            text, target = edit.get("text") or "", edit.get("target")
            skill = skill.replace(target, text, 1) if target else f"{skill.rstrip()}\n\n{text}\n"
        return {"skill": skill, "summary": f"Worked in {len(edits)} suggestions."}

    def slow_update(self, prompt: Prompt, dice: Dice) -> Json:
        """Guidance for the class that still fails most often and whose rule is missing."""
        failing = self._by_class([pair for pair in prompt.pairs if pair.score < 1])
        missing = [k for k in failing if self.desk.lacks(prompt.skill, k)]
        if missing:
            guidance = self._idea(missing[0], prompt, dice)
        else:
            guidance = "" if dice("idle") < self.q else self._bad(0, prompt, dice)
        return {"reasoning": f"{len(missing)} classes still fail for want of a rule.", "guidance": guidance}

    def notes(self, prompt: Prompt, dice: Dice) -> Json:
        failing = sum(pair.score < 1 for pair in prompt.pairs)
        return {"notes": f"Rules for one class each help most; {failing} of {len(prompt.pairs)} pairs still fail."}

    def judge(self, prompt: Prompt, dice: Dice) -> Json:
        """A check passes iff what it puts in quotes (or else the whole of it) occurs in the answer."""

        def bodies(*tags: str) -> list[str]:
            return [body for tag in tags for _, body in blocks(tag, prompt.text)]

        lists = "\n".join(bodies("checks", "rubric"))
        checks = bodies("check") or re.findall(r"^\s*(?:[-*]|\d+[.)])\s*(.+?)\s*$", lists, re.MULTILINE)
        answer = "\n".join(bodies("answer", "output", "trajectory")).casefold()
        verdicts = []
        for check in map(str.strip, checks):
            phrases = re.findall(r'["“`]([^"”`]+)["”`]', check) or [check]
            passed = all(phrase.casefold() in answer for phrase in phrases)
            verdicts.append({"check": check, "passed": passed, "evidence": phrases[0] if passed else ""})
        return {"verdicts": verdicts}

    def _by_class(self, shown: list[Shown]) -> dict[int, list[Shown]]:
        groups: dict[int, list[Shown]] = {}
        for item in shown:
            if (kind := self.desk.recognise(item.text)) is not None:
                groups.setdefault(kind, []).append(item)
        return dict(sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0])))

    def _idea(self, kind: int, prompt: Prompt, dice: Dice, taken: str = "") -> str:
        rule = self.desk.rule(kind)
        right = dice("right", kind) < self.q and rule not in prompt.rejected
        return rule if right else self._bad(kind, prompt, dice, taken)

    def _bad(self, kind: int, prompt: Prompt, dice: Dice, taken: str = "") -> str:
        """A harmful or useless sentence that neither the skill nor the list of rejected edits holds already."""
        known = f"{prompt.skill}\n{prompt.rejected}\n{taken}"
        name = self.desk.names[kind]
        useless = [f"{lead} {name} tickets{tail}." for lead in LEADS for tail in TAILS]
        harmful = [self.desk.harmful(i) for i in range(len(HARMS) * len(OCCASIONS))]
        options = harmful if dice("harm", kind) < self.harmful else useless
        start = int(dice("wording", kind) * len(options))
        fresh = (text for text in (*options[start:], *options[:start], *useless) if text not in known)
        return next(fresh, f"Take care with {name} tickets, point {digest(dice('point', kind))[:4]}.")

    def _place(self, prompt: Prompt, text: str, support: list[Shown], dice: Dice) -> Json:
        lines = [line for line in prompt.skill.splitlines() if re.match(r"[\w*-]", line.strip()) and line.strip("- ")]
        anchors = [line for line in lines if prompt.skill.count(line) == 1 and not re.match(r"\w+:( |$)", line)]
        if not anchors or dice("sloppy", text) >= self.sloppy:
            return self._edit("add", text, support, dice)
        if dice("replace", text) < 0.5:
            return self._edit("replace", f"{anchors[-1]}\n{text}", support, dice, target=anchors[-1])
        return self._edit("add", text, support, dice, after=anchors[-1])

    def _edit(
        self,
        op: Literal["add", "replace", "delete"],
        text: str | None,
        support: list[Shown],
        dice: Dice,
        *,
        after: str | None = None,
        target: str | None = None,
    ) -> Json:
        evidence = [{"sample": item.sample, "quote": self._quote(item.text)} for item in support]
        if dice("misquote", op, text) < self.misquote:
            evidence = [{**item, "quote": f"clearly {item['quote']}, as everyone knows"} for item in evidence]
        why = "These tickets fail together." if text else "This line stands in the way of every answer."
        return {"op": op, "after": after, "target": target, "text": text, "why": why, "evidence": evidence}

    def _quote(self, text: str) -> str:
        """Up to nine words, verbatim, ending in the name of the class."""
        kind = self.desk.recognise(text)
        match = re.search(rf"(?:[\w-]+ ){{0,8}}{self.desk.names[kind]}\b", text) if kind is not None else None
        return match[0] if match else text.strip()[:60]

    def _harm_in(self, prompt: Prompt) -> str | None:
        lines = (line.strip() for line in prompt.skill.splitlines())
        return next((x for x in lines if any(harm in x for harm in HARMS) and x not in prompt.rejected), None)

    def _is_right(self, edit: Json, skill: str) -> bool:
        text, target = edit.get("text") or "", edit.get("target") or ""
        if any(harm in text for harm in HARMS):
            return False
        return bool(self.desk.held(text) - self.desk.held(skill)) or any(harm in target for harm in HARMS)


# The server.


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates in [0, 1] of what may go wrong with a request; at most one of them happens to it.

    Each is drawn anew per attempt, so that a retry may succeed. `outage` is a window in seconds since the world began.
    """

    error: float = 0.0  # 500
    limit: float = 0.0  # 429 with Retry-After
    drop: float = 0.0  # the connection is reset without an answer
    truncate: float = 0.0  # half the promised body, then the end
    malformed: float = 0.0  # a body that is not JSON, status 200
    empty: float = 0.0  # an answer without text
    no_choices: float = 0.0  # an answer without choices (OpenAI) or content (Anthropic)
    garbled: float = 0.0  # optimizer and judge: a message that is not the JSON asked for
    hang: float = 0.0  # silence for `hang_s`, then a reset
    refuse: float = 0.0  # the model refuses, in words: an answer in full, of its own
    filter: float = 0.0  # the provider's filter leaves no word of the answer (OpenAI; Anthropic has no such reason)
    overflow: float = 0.0  # 400: the request is longer than the model's context
    hang_s: float = 30.0
    retry_after: float = 0.05
    outage: tuple[float, float] | None = None  # 503

    def draw(self, u: float) -> str | None:
        for rate in fields(self)[:12]:
            if (u := u - getattr(self, rate.name)) < 0:
                return rate.name
        return None


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the server saw it. Times are seconds since the world began; `status` 0 is a reset connection."""

    role: str  # "target", "optimizer", "judge", or "" for an unknown model
    stage: str | None  # of an optimizer or judge request
    api: Literal["openai", "anthropic"]
    sample: str | None  # the ticket that a target was asked about
    digest: str  # of model, messages and stage
    key: str | None  # the Idempotency-Key header
    system: str  # at most 2,000 characters
    user: str  # at most 2,000 characters
    temperature: float | None
    status: int
    fault: str | None
    answer: str | None  # the text or the JSON that was to be sent, None where the status says what was
    began: float
    ended: float

    @property
    def whole(self) -> bool:
        """Did the client get the model's own answer, in full?"""
        return self.status == 200 and self.fault in OWN


@dataclass(slots=True)
class Call:
    """A request, parsed: what the two dialects have in common."""

    api: Literal["openai", "anthropic"]
    model: str
    system: str
    user: str
    stage: str | None
    structured: bool  # asks for structured output
    key: str | None
    body: Json
    digest: str
    began: float = 0.0
    attempt: int = 0  # how often this request with this key was seen before
    sample: str | None = None
    fault: str | None = None
    answer: str | None = None
    status: int = 0

    @classmethod
    def parse(cls, api: Literal["openai", "anthropic"], body: Json, key: str | None) -> Call:
        messages = [(m["role"], _text(m.get("content"))) for m in body["messages"]]
        if api == "anthropic":
            messages.insert(0, ("system", _text(body.get("system"))))
            structured, stage = "tools" in body, (body.get("tool_choice") or {}).get("name")
        else:
            form = body.get("response_format") or {}
            structured, stage = bool(form), (form.get("json_schema") or {}).get("name")
        model = str(body.get("model"))
        content = digest(model, stage, *(part for message in messages for part in message))
        system = "\n".join(text for role, text in messages if role in ("system", "developer") and text)
        user = "\n".join(text for role, text in messages if role == "user")
        return cls(api, model, system, user, stage, structured, key, body, content)

    @property
    def role(self) -> str:
        return self.model if self.model in ROLES else ""

    def seen(self, ended: float) -> Seen:
        return Seen(
            role=self.role,
            stage=self.stage,
            api=self.api,
            sample=self.sample,
            digest=self.digest,
            key=self.key,
            system=self.system[:2000],
            user=self.user[:2000],
            temperature=self.body.get("temperature"),
            status=self.status,
            fault=self.fault,
            answer=self.answer,
            began=self.began,
            ended=ended,
        )

    @property
    def max_chars(self) -> int | None:
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        return limit and 4 * limit


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def guess_stage(system: str, user: str) -> str | None:
    """The stage of a request whose schema stands in the prompt: told by the fields it names outside of the evidence."""
    asked = user
    for tag in EVIDENCE:
        asked = re.sub(rf"<{tag}\b[^>]*>.*?</{tag}>", "", asked, flags=re.DOTALL)
    asked = f"{system}\n{asked}"
    if "rules only, one a line" in system:
        return "rules"
    marks = {
        "reflect": ["diagnosis"],
        "slow_update": ["guidance"],
        "judge": ["verdicts"],
        "rank": ["order"],
        "rewrite": ["skill", "summary"],
        "learning_rate": ["edits", "reason"],
        "merge": ["edits"],
        "notes": ["notes"],
    }
    named = (stage for stage, names in marks.items() if all(f'"{name}"' in asked for name in names))
    tags = {"trajectory": "reflect", "patch": "merge", "edit": "rank", "pair": "slow_update", "check": "judge"}
    return next(named, None) or next((stage for tag, stage in tags.items() if f"<{tag} " in user), None)


class _Refused(Exception):
    def __init__(self, status: int, message: str, **headers: object) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class World(Desk):
    """The desk, served over HTTP on 127.0.0.1 by a thread with its own event loop. Use it as a context manager.

    Size of the task as in `Desk`, odds of the optimizer as in `Optimizer`. `p`: odds that the target's answer flips,
    right to wrong and wrong to right. `mode`: "useless" and "harmful" make every edit so. `latency` and `faults` hold
    for all roles or are a mapping from role; both may be replaced while the world runs. `structured=False` refuses
    structured output with 400. With `key`, any other bearer token (or x-api-key) is a 401.
    """

    def __init__(
        self,
        classes: int = 12,
        train: int = 120,
        select: int = 60,
        test: int = 120,
        *,
        p: float = 0.0,
        q: float = 0.6,
        seed: int = 0,
        harmful: float = 0.5,
        sloppy: float = 0.1,
        misquote: float = 0.0,
        optimizer_mode: Literal["normal", "useless", "harmful"] = "normal",
        structured: bool = True,
        key: str | None = None,
        latency: Latency | Mapping[str, Latency] = 0.0,
        faults: Faults | Mapping[str, Faults] | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(classes, train, select, test, seed)
        if optimizer_mode != "normal":
            q, harmful = 0.0, float(optimizer_mode == "harmful")
        self.p, self.structured, self.key, self.port = p, structured, key, port
        self.latency: Latency | Mapping[str, Latency] = latency
        self.faults: Faults | Mapping[str, Faults] = faults or Faults()
        self.optimizer = Optimizer(self, q, harmful, sloppy, misquote)
        self.requests: list[Seen] = []
        self.calls: Counter[str] = Counter()  # requests received, by role
        self.answered: Counter[str] = Counter()  # of those, the ones answered in full
        self.peak: Counter[str] = Counter()  # most requests in flight at one time, by role
        self._open: Counter[str] = Counter()
        self._attempts: Counter[tuple[str, str | None]] = Counter()
        self._draws: Counter[str] = Counter()
        self._optimizer_texts: list[str] = []
        self._began = time.monotonic()

    def flip_rate(self, ticket: Ticket, solved: bool) -> float:
        return self.p

    @property
    def url(self) -> str:
        """Base URL for OpenAI-style clients; Anthropic's take `root`."""
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def optimizer_saw(self, text: str) -> bool:
        """Whether a text (a sample's id, an expected answer) occurred anywhere in any optimizer request's body."""
        forms = {text, json.dumps(text)[1:-1], html.escape(text)}
        return any(form in seen for seen in self._optimizer_texts for form in forms)

    def shown(self) -> Iterator[tuple[str, str]]:
        """(sample, text) of every trajectory and pair that any optimizer request held."""
        for text in self._optimizer_texts:
            for tag in ("trajectory", "pair"):
                yield from ((attributes["sample"], body) for attributes, body in blocks(tag, text))

    def given(self) -> dict[str | None, tuple[str | None, str | None]]:
        """(sample, answer) of every call of the target that got its answer in full, by its key."""
        return {seen.key: (seen.sample, seen.answer) for seen in self.requests if seen.role == "target" and seen.whole}

    def __enter__(self) -> Self:
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="world", daemon=True)
        self._thread.start()
        self.port = ready.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, ready: Future[int]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        except OSError as error:
            ready.set_exception(error)
            return
        self._began = time.monotonic()
        ready.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()  # asyncio.run cancels the connections that are still open

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in head[1:] if x)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                keep = headers.get("connection", "").lower() != "close"
                if method != "POST":
                    writer.write(self._look(path))
                elif not await self._post(path, headers, body, writer):
                    return
                if not keep:
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client has gone, or the world ends
        finally:
            writer.close()

    def _look(self, path: str) -> bytes:
        if path.endswith("/models"):
            return _response(200, {"object": "list", "data": [{"id": role, "object": "model"} for role in ROLES]})
        if path.endswith("/stats"):
            counters = {"calls": self.calls, "answered": self.answered, "peak": self.peak}
            return _response(200, {**counters, "cpu_s": time.thread_time()})
        return _response(404, {"error": {"message": f"no such path: {path}", "type": "not_found_error"}})

    async def _post(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection was broken on purpose."""
        api = "anthropic" if path.endswith("/messages") else "openai"
        if path not in PATHS:
            writer.write(_refusal(api, _Refused(404, f"no such path: {path}")))
            return True
        try:
            call = Call.parse(api, json.loads(body), headers.get("idempotency-key"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            writer.write(_refusal(api, _Refused(400, f"not a request: {error!r}")))
            return True
        role = call.role
        call.began = time.monotonic() - self._began
        call.attempt = self._attempts[call.digest, call.key]
        self._attempts[call.digest, call.key] += 1
        if role == "optimizer":
            self._optimizer_texts.append("\n".join(_strings(call.body)))
        self.calls[role] += 1
        self._open[role] += 1
        self.peak[role] = max(self.peak[role], self._open[role])
        try:
            wire = await self._play(call, headers)
        finally:  # before anything is sent, so that who has the answer finds the record
            self._open[role] -= 1
            self.answered[role] += call.status == 200 and call.fault in OWN
            self.requests.append(call.seen(time.monotonic() - self._began))
        if wire is None:
            writer.transport.abort()
            return False
        writer.write(wire)
        return call.fault != "truncate"

    async def _play(self, call: Call, headers: dict[str, str]) -> bytes | None:
        """Decide what the request meets and wait as long as that takes: the bytes to send, or None for a reset."""
        faults = self.faults if isinstance(self.faults, Faults) else self.faults.get(call.role, Faults())
        latency = self.latency.get(call.role, 0.0) if isinstance(self.latency, Mapping) else self.latency
        try:
            self._check(call, headers, faults)
            status, wire = 200, _response(200, self._answer(call))
        except _Refused as refusal:
            status, wire = refusal.status, _refusal(call.api, refusal)
        seconds = latency if isinstance(latency, int | float) else latency(self._uniform("latency", call))
        seconds += faults.hang_s if call.fault == "hang" else 0.0
        if seconds > 0:
            await asyncio.sleep(seconds)
        if call.fault in ("drop", "hang"):
            return None
        call.status = status
        if call.fault == "malformed":
            return _response(200, b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess\xff')
        return wire[: -len(wire) // 3] if call.fault == "truncate" else wire

    def _uniform(self, purpose: str, call: Call) -> float:
        return uniform(self.seed, purpose, call.digest, call.key, call.attempt)

    def _check(self, call: Call, headers: dict[str, str], faults: Faults) -> None:
        """Raise what a server says instead of an answer; leave in `call.fault` what will befall the answer."""
        token = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and token != self.key:
            raise _Refused(401, "incorrect API key provided")
        if not call.role:
            raise _Refused(404, f"the model `{call.model}` does not exist")
        if faults.outage and faults.outage[0] <= call.began < faults.outage[1]:
            call.fault = "outage"
            raise _Refused(503, "the service is down")
        fault = faults.draw(self._uniform("fault", call))
        call.fault = None if fault == "garbled" and call.model == "target" else fault
        self._befall(call, faults)
        if call.structured and not self.structured:
            raise _Refused(400, "structured output (response_format, tools) is not supported by this endpoint")

    def _befall(self, call: Call, faults: Faults) -> None:
        """Raise the refusals among the faults; the others befall the answer."""
        if call.fault == "error":
            raise _Refused(500, "the server had an error")
        if call.fault == "limit":
            raise _Refused(429, "rate limit reached", **{"retry-after": faults.retry_after})
        if call.fault == "reject":
            raise _Refused(400, "this request is not accepted")
        if call.fault == "overflow":
            raise _Refused(400, "this model's context length is exceeded (context_length_exceeded)")

    def _answer(self, call: Call) -> Json:
        """The reply's body. A pure function of the request, its key, and its fault."""
        if call.key is None:
            draw = f"#{self._draws[call.digest]}"
            self._draws[call.digest] += not call.fault
        else:
            draw = call.key
        answer: Json | str
        if call.model == "target":
            answer = self._solve(call, draw)
        else:
            call.stage = call.stage or guess_stage(call.system, call.user)
            answer = self._think(call, draw)
        if call.fault == "garbled":
            answer = (
                {"garbled": True} if isinstance(answer, dict) and call.api == "anthropic" else "Nothing comes to mind."
            )
        if call.fault in ("empty", "filter", "refuse"):
            answer = REFUSAL if call.fault == "refuse" else ""
        call.answer = answer if isinstance(answer, str) else json.dumps(answer)
        return (_messages if call.api == "anthropic" else _completion)(call, answer)

    def _solve(self, call: Call, draw: str) -> str:
        known = [self.tickets[name] for name in TICKET.findall(call.user) if name in self.tickets]
        if not known:
            return "There is no ticket here."
        ticket = known[-1]
        call.sample = ticket.id
        value = self.value(call.system, ticket)
        if uniform(self.seed, "noise", call.system, ticket.id, draw) < self.flip_rate(ticket, value >= 0.5):
            value = 1 - value
        return self.reply(ticket, value, digest(self.seed, "wrong", call.system, ticket.id, draw)[:8])

    def reply(self, ticket: Ticket, value: float, salt: str) -> str:
        """An answer of this score; a wrong one differs by its salt."""
        return ticket.target if value >= 0.5 else f"wrong-{salt}"

    def _think(self, call: Call, draw: str) -> Json | str:
        if call.stage is None:
            return "Ready."
        if call.stage not in self.optimizer.stages:
            raise _Refused(400, f"no stage is called `{call.stage}`; known: {', '.join(self.optimizer.stages)}")
        try:
            thought = self.optimizer.stages[call.stage](
                Prompt.read(call.user), lambda *what: uniform(self.seed, "idea", call.digest, draw, *what)
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise _Refused(400, f"the tags of this {call.stage} request cannot be read: {error!r}") from None
        if isinstance(thought, str):
            return thought
        return thought if call.structured else f"Here it is.\n```json\n{json.dumps(thought, indent=1)}\n```"


REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
ERRORS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}


def _response(status: int, body: Json | bytes, headers: Mapping[str, object] | None = None) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\ncontent-type: application/json\r\n"
    return f"{head}{extra}content-length: {len(data)}\r\n\r\n".encode("latin-1") + data


def _refusal(api: str, refusal: _Refused) -> bytes:
    kind = ERRORS.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": str(refusal)}
    body = (
        {"type": "error", "error": error} if api == "anthropic" else {"error": {**error, "code": kind, "param": None}}
    )
    return _response(refusal.status, body, refusal.headers)


def _completion(call: Call, answer: Json | str) -> Json:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    kept = text[: call.max_chars]
    read, written = _tokens(call.system + call.user), _tokens(kept)
    refused = call.fault == "refuse"
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None if refused else kept, "refusal": kept if refused else None},
        "finish_reason": "content_filter" if call.fault == "filter" else "stop" if kept == text else "length",
    }
    return {
        "id": f"chatcmpl-{call.digest}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": call.model,
        "choices": [] if call.fault == "no_choices" else [choice],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def _messages(call: Call, answer: Json | str) -> Json:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    kept = text[: call.max_chars]
    if isinstance(answer, str):
        content, stop = {"type": "text", "text": kept}, "refusal" if call.fault == "refuse" else "end_turn"
    else:
        whole = answer if kept == text else {}
        content = {"type": "tool_use", "id": f"toolu_{call.digest}", "name": call.stage, "input": whole}
        stop = "tool_use"
    return {
        "id": f"msg_{call.digest}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [] if call.fault == "no_choices" else [content],
        "stop_reason": stop if kept == text else "max_tokens",
        "stop_sequence": None,
        "usage": {"input_tokens": _tokens(call.system + call.user), "output_tokens": _tokens(kept)},
    }


def _tokens(text: str) -> int:
    return math.ceil(len(text) / 4)


def main() -> None:
    """Serve a world until interrupted; the first line on stdout is JSON with its `url` and `root`."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default in {"port": 0, "classes": 12, "train": 120, "select": 60, "test": 120, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--p", type=float, default=0.0, help="odds that the target's answer flips")
    parser.add_argument("--q", type=float, default=0.6, help="odds that an edit is right")
    parser.add_argument("--mode", choices=["normal", "useless", "harmful"], default="normal", help="of the optimizer")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds (median)")
    parser.add_argument("--sigma", type=float, default=0.0, help="spread of the latency's logarithm")
    parser.add_argument("--faults", type=json.loads, default={}, help='JSON, for example {"error": 0.1, "limit": 0.05}')
    parser.add_argument("--key", default=None, help="the only bearer token that is let in")
    parser.add_argument("--write", type=Path, default=None, help="write the samples to this JSONL file")
    options = parser.parse_args()
    latency = lognormal(options.latency, options.sigma) if options.latency and options.sigma else options.latency
    world = World(
        options.classes,
        options.train,
        options.select,
        options.test,
        p=options.p,
        q=options.q,
        seed=options.seed,
        optimizer_mode=options.mode,
        latency=latency,
        faults=Faults(**options.faults),
        key=options.key,
        port=options.port,
    )
    if options.write:
        world.write(options.write)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with world:
        print(json.dumps({"url": world.url, "root": world.root}), flush=True)
        ended.wait()


if __name__ == "__main__":
    sys.exit(main())
