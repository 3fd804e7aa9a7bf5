"""One generator for all families: the desk of `tests/world.py`, with a family's harm, rules, noise and optimizer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from world import (
    HARMS,
    LEADS,
    OCCASIONS,
    Dice,
    Json,
    Latency,
    Optimizer,
    Prompt,
    Shown,
    Ticket,
    World,
    digest,
    flat,
    uniform,
)
from worlds.families import Family

JUNK = re.compile(rf"\b(?:{'|'.join(LEADS)}) ([a-z]+-\d+) tickets")
VARIANTS = len(HARMS) * len(OCCASIONS)
WORDINGS = (
    "For {name} cases, answer with code {code} and the check letters that follow from it{step}.",  # that of the desk
    "The code of {name} cases is {code}, with the check letters that follow from it{step}.",
    "If a case is {name}, put down {code} and then its own check letters{step}.",
)
FIRST_HINT = 0.6  # share of what is missing that each hint of a kind adds
COST = 0.05  # of the level, for each line beyond the family's attention
BEST_Q = 0.95  # most that an optimizer learns
QUARTERS = 4  # words of an answer with partial scores


@dataclass(frozen=True, slots=True)
class Reading:
    """The sentences of this world that a skill holds. Positions are offsets in its text."""

    rules: dict[int, dict[int, tuple[int, int]]]  # kind → hint → first and last position
    harms: tuple[str, ...]
    junk: frozenset[int]  # the kinds that useless lines are about
    lines: int
    levels: tuple[float, ...]  # of each kind, before harm


class FamilyWorld(World):
    """A world of a family, served over HTTP like any `World`. The same family and seed make the same world.

    `score` is the scorer that its samples need; `start` the input skill; `attainable` the true score of the best skill.
    """

    def __init__(self, family: Family, seed: int = 0, *, latency: Latency = 0.0, port: int = 0) -> None:
        self.family = family
        self._readings: dict[str, Reading] = {}
        super().__init__(
            family.kinds,
            family.train,
            family.select,
            family.test,
            p=family.p,
            q=family.q,
            seed=seed,
            harmful=family.harmful,
            latency=latency,
            port=port,
        )
        self.optimizer = FamilyOptimizer(self, family)
        self.score = "f1" if family.partial else "exact"
        self._broken = {line: self._breaks(line) for line in map(self.harmful, range(VARIANTS))}

    # the samples

    def kinds_of(self, size: int) -> list[int]:
        """Equally frequent kinds, or the quantiles of a long tail, so that each split has the same shares."""
        if not self.family.tail:
            return super().kinds_of(size)
        weights = list(accumulate((k + 1) ** -self.family.tail for k in range(self.classes)))
        ends = [weight / weights[-1] for weight in weights]
        return [next(k for k, end in enumerate(ends) if (i + 0.5) / size <= end) for i in range(size)]

    def answer_of(self, name: str, kind: int) -> str:
        if not self.family.partial:
            return super().answer_of(name, kind)
        letters = digest(self.seed, "code", name)
        return f"K{kind:02d} {letters[:4]} {letters[4:8]} {letters[8:12]}"

    # the rules

    def rule(self, kind: int, hint: int = 0, wording: int = 0) -> str:
        step = f", step {hint + 1}" if hint else ""
        return WORDINGS[wording].format(name=self.names[kind], code=f"K{kind:02d}", step=step)

    def junk(self, kind: int) -> str:
        """A useless line about a kind, for an input skill full of junk."""
        return f"{LEADS[kind % len(LEADS)]} {self.names[kind]} tickets as far as possible."

    @property
    def start(self) -> str:
        """The input skill, "" if it is empty."""
        kind, kinds = self.family.start, range(self.classes)
        if kind == "empty":
            return ""
        if kind == "junk":
            lines = [self.rule(k) for k in kinds if k % 4 == 0]
            lines += [self.junk(k) for k in range(1, 9)] + [self.harmful(i) for i in range(3)]
            lines.sort(key=lambda line: uniform(self.seed, "start", line))
        else:
            lines = [self.rule(k) for k in kinds if (k % 2 == 0 if kind == "half" else k % 6 != 5)]
        return "# Help desk\n\n" + "".join(f"- {line}\n" for line in lines)

    @property
    def best(self) -> str:
        """A skill that nothing can improve. Of rules that contradict, the more frequent kind's stands last."""
        order = list(range(self.classes))
        for i in range(0, 2 * self.family.contradict, 2):
            order[i : i + 2] = [i + 1, i]
        lines = [self.rule(kind, hint) for kind in order for hint in range(self.family.hints)]
        return "".join(f"- {line}\n" for line in lines)

    @property
    def attainable(self) -> float:
        return self.true_score(self.best)

    def read(self, skill: str) -> Reading:
        if (known := self._readings.get(skill)) is None:
            known = self._readings[skill] = self._read(flat(skill))
        return known

    def _read(self, text: str) -> Reading:
        rules: dict[int, dict[int, tuple[int, int]]] = {}
        lines = 0
        for kind in (k for k, name in enumerate(self.names) if name in text):
            for hint in range(self.family.hints):
                said = [self.rule(kind, hint, wording) for wording in range(len(WORDINGS))]
                places = [(text.find(rule), text.rfind(rule)) for rule in said if rule in text]
                lines += sum(text.count(rule) for rule in said)
                if places:
                    rules.setdefault(kind, {})[hint] = min(a for a, _ in places), max(b for _, b in places)
        harms = tuple(line for line in map(self.harmful, range(VARIANTS)) if line in text)
        about = [self._kinds[name] for name in JUNK.findall(text) if name in self._kinds]
        lines += len(harms) + len(about)
        junk = frozenset(about)
        own = [self._own(kind, rules, junk) for kind in range(self.classes)]
        attention = self.family.attention
        cost = max(0.0, 1 - COST * (lines - attention)) if attention and lines > attention else 1.0
        levels = [max(level, self.family.overlap * own[kind - 1]) * cost for kind, level in enumerate(own)]
        return Reading(rules, harms, junk, lines, tuple(levels))

    def _own(self, kind: int, rules: dict[int, dict[int, tuple[int, int]]], junk: frozenset[int]) -> float:
        """The level that a kind's own rules give it."""
        family, held = self.family, rules.get(kind, {})
        if not held or (family.harm == "masking" and kind in junk):
            return 0.0
        last = max(end for _, end in held.values())
        if family.needs and kind % 2:
            parent = rules.get(kind - 1, {})
            if not parent or (family.ordered and min(first for first, _ in parent.values()) > last):
                return 0.0
        if kind < 2 * family.contradict:
            other = rules.get(kind ^ 1, {})
            if other and max(end for _, end in other.values()) > last:
                return 0.0
        return (1 - (1 - FIRST_HINT) ** len(held)) / (1 - (1 - FIRST_HINT) ** family.hints)

    def held(self, skill: str) -> frozenset[int]:
        return frozenset(self.read(skill).rules)

    def wanted(self, skill: str, kind: int) -> list[tuple[int, int]]:
        """The rules (kind, hint) that a kind lacks in a skill, or that stand there without effect."""
        reading = self.read(skill)
        held = reading.rules.get(kind, {})
        missing = [(kind, hint) for hint in range(self.family.hints) if hint not in held]
        if self.family.needs and kind % 2 and kind - 1 not in reading.rules:
            missing.append((kind - 1, 0))
        masked = self.family.harm == "masking" and kind in reading.junk
        if not missing and not masked and not self._own(kind, reading.rules, frozenset()):
            missing.append((kind, 0))  # it stands at the wrong place
        return missing

    def lacks(self, skill: str, kind: int) -> bool:
        return bool(self.wanted(skill, kind))

    # the truth

    def value(self, skill: str, ticket: Ticket) -> float:
        reading = self.read(skill)
        if any(self._breaks_ticket(line, ticket, reading) for line in reading.harms):
            return 0.0
        if uniform(self.seed, "floor", ticket.id) < self.family.floor:
            return 1.0
        level = reading.levels[ticket.kind]
        if self.family.partial:
            return round(QUARTERS * level) / QUARTERS
        return float(uniform(self.seed, "ease", ticket.id) < level)

    def solves(self, skill: str) -> frozenset[int]:
        reading = self.read(skill)
        spoiled = {k for line in reading.harms for k in self._broken.get(line, ()) if self._active(line, reading)}
        return frozenset(k for k, level in enumerate(reading.levels) if level >= 0.5 and k not in spoiled)

    def _breaks(self, line: str) -> frozenset[int]:
        """The kinds that a harmful line breaks, if it breaks whole kinds."""
        if self.family.harm == "global":
            return frozenset(range(self.classes))
        if self.family.harm in ("fraction", "masking"):
            return frozenset()
        order = sorted(range(self.classes), key=lambda kind: uniform(self.seed, "breaks", line, kind))
        return frozenset(order[: math.ceil(self.family.harm_share * self.classes)])

    def _active(self, line: str, reading: Reading) -> bool:
        return self.family.harm != "delayed" or 3 * len(reading.rules) >= self.classes

    def _breaks_ticket(self, line: str, ticket: Ticket, reading: Reading) -> bool:
        if self.family.harm == "fraction":
            return uniform(self.seed, "breaks", line, ticket.id) < self.family.harm_share
        return ticket.kind in self._broken[line] and self._active(line, reading)

    # the answers

    def flip_rate(self, ticket: Ticket, solved: bool) -> float:
        p, noise = self.family.p, self.family.noise
        if noise == "sample":
            return 2 * p * uniform(self.seed, "rate", ticket.id)
        if noise == "heavy":
            return 0.5 * (uniform(self.seed, "rate", ticket.id) < 2 * p)
        return p * solved if noise == "lost" else p

    def reply(self, ticket: Ticket, value: float, salt: str) -> str:
        if not self.family.partial:
            return super().reply(ticket, value, salt)
        words = ticket.target.split()
        right = round(QUARTERS * value)
        return " ".join([*words[:right], *(f"wrong{salt}{i}" for i in range(right, QUARTERS))])


class FamilyOptimizer(Optimizer):
    """The optimizer of `tests/world.py` with the habits of a family."""

    desk: FamilyWorld

    def __init__(self, world: FamilyWorld, family: Family) -> None:
        super().__init__(world, family.q, family.harmful, sloppy=0.1, misquote=0.0)
        self.family = family

    def reflect(self, prompt: Prompt, dice: Dice) -> Json:
        answer = super().reflect(prompt, dice)
        return {**answer, "edits": list(self._bundled(answer["edits"], dice))} if self.family.bundle else answer

    def _bundled(self, edits: list[Json], dice: Dice) -> Iterator[Json]:
        """The edits; some are joined with the one after them. Only plain additions can be joined."""
        waiting: Json | None = None
        for number, edit in enumerate(edits):
            plain = edit["op"] == "add" and edit["after"] is None
            if waiting is not None and plain:
                evidence = [*waiting["evidence"], *edit["evidence"]]
                yield {**edit, "text": f"{waiting['text']}\n{edit['text']}", "evidence": evidence}
                waiting = None
                continue
            if waiting is not None:
                yield waiting
            waiting = edit if plain and dice("bundle", number) < self.family.bundle else None
            if waiting is None:
                yield edit
        if waiting is not None:
            yield waiting

    def _idea(self, kind: int, prompt: Prompt, dice: Dice, taken: str = "") -> str:
        family, idea = self.family, dice
        if family.repeats and dice("habit", kind) < family.repeats:
            prompt, idea = replace(prompt, rejected=""), self._habit
        rejections = len([line for line in prompt.rejected.splitlines() if line.strip()])
        q = max(self.q, min(BEST_Q, self.q + family.learns * rejections)) if family.learns else self.q
        wanted = self.desk.wanted(prompt.skill, kind) or [(kind, 0)]
        which, hint = wanted[int(dice("which", kind) * len(wanted))]
        other = family.paraphrase and dice("paraphrase", kind) < family.paraphrase
        wording = 1 + int(dice("words", kind) * (len(WORDINGS) - 1)) if other else 0
        rule = self.desk.rule(which, hint, wording)
        if idea("right", kind) < q and rule not in prompt.rejected:
            return rule
        return self._bad(kind, prompt, idea, taken)

    def _habit(self, *what: Any) -> float:
        return uniform(self.desk.seed, "habit", *what)

    def _cure(self, prompt: Prompt, failed: list[Shown], dice: Dice) -> list[Json]:
        """With odds `deletes`, a deletion, if a kind fails whose rule stands: of a line that harms, or of any line."""
        if self.family.harm == "global":
            return super()._cure(prompt, failed, dice)
        odd = [item for item in failed if self._unexplained(item, prompt.skill)]
        if not odd or dice("cure") >= self.family.deletes:
            return []
        lines = [line.strip() for line in prompt.skill.splitlines() if self._is_own(line)]
        harms = [line for line in lines if self._harms(line) and line not in prompt.rejected]
        choice = harms if dice("right", "cure") < self.q else lines
        if not choice:
            return []
        target = choice[int(dice("suspect") * len(choice))]
        return [self._edit("delete", None, odd, dice, target=target)]

    def _unexplained(self, item: Shown, skill: str) -> bool:
        kind = self.desk.recognise(item.text)
        return kind is not None and kind in self.desk.held(skill) and not self.desk.lacks(skill, kind)

    def _is_own(self, line: str) -> bool:
        reading = self.desk.read(line)
        return bool(reading.rules or reading.harms or reading.junk)

    def _harms(self, line: str) -> bool:
        reading = self.desk.read(line)
        return bool(reading.harms or (self.family.harm == "masking" and reading.junk))

    def _place(self, prompt: Prompt, text: str, support: list[Shown], dice: Dice) -> Json:
        edit = super()._place(prompt, text, support, dice)
        if not self.family.misplaces or dice("misplace", text) >= self.family.misplaces:
            return edit
        if dice("where", text) < 0.5:
            nowhere = f"Section {int(dice('section', text) * 90) + 10}, as agreed"
            return {**edit, "op": "add", "target": None, "after": nowhere, "text": text}
        others = [item for item in prompt.trajectories if item not in support][: len(support)]
        return {**edit, "evidence": [{"sample": item.sample, "quote": self._quote(item.text)} for item in others]}
