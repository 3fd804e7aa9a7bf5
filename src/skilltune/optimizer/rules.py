"""Proposals as plain rules, one a line, for models that are too weak to write edits as JSON.

A rule needs no citation: it becomes an addition to the skill, and its evidence is the failures that were shown. It may
name its samples in brackets at its end.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from skilltune.edits import Edit, says
from skilltune.models import Reply
from skilltune.models.reading import split_thinking
from skilltune.words import tokens

FEWEST_WORDS = 3  # a shorter line is an answer or a remark, not a rule
MOST_CHARS = 600  # a longer line is an essay
_BULLET = re.compile(r"^(?:[-*•+]\s+|\(?\d{1,2}[.)]\s+|rule\s*\d{0,2}\s*[:.]\s*)+", re.IGNORECASE)
_CITED = re.compile(r"\s*\[([^\[\]]+)\]\.?$")
_NO_RULE = ("#", "```")  # headings and code fences


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an answer: the edit that it proposes, and the samples that it names. `fault` is the reason why it is
    no proposal, "" if it is one; `edit` is then None."""

    line: str
    edit: Edit | None = None
    samples: tuple[str, ...] = ()
    fault: str = ""


def read_text(reply: Reply) -> str:
    """The text of a reply, without its thinking. The last line is left out if the token limit cut it.

    Raises ValueError if the model refused to answer.
    """
    if reply.finish == "refusal":
        raise ValueError(f"the model refused to answer: {reply.text[:200]}")
    text = split_thinking(reply.text).answer.strip()
    if reply.finish == "length" and "\n" in text:
        text = text.rpartition("\n")[0]
    return text


def read_rules(text: str, body: str, shown: Collection[str]) -> list[Rule]:
    """The rules in an answer, in order and each once. `shown` are the ids of the samples that the question showed.

    Headings, code fences and lines that end with a colon are left out.
    """
    found: dict[str, Rule] = {}
    for raw in text.splitlines():
        line = _BULLET.sub("", raw.strip()).replace("**", "").strip()
        if line and not line.endswith(":") and not line.startswith(_NO_RULE):
            found.setdefault(" ".join(line.lower().split()), _rule(line, body, shown))
    return list(found.values())


def _rule(line: str, body: str, shown: Collection[str]) -> Rule:
    text, samples = line, ()
    if cited := _CITED.search(line):
        named = tuple(name.strip() for name in cited[1].split(","))
        if all(name in shown for name in named):
            text, samples = line[: cited.start()].rstrip(), named
    if fault := _fault(text, body):
        return Rule(line, fault=fault)
    return Rule(line, Edit("add", text=f"- {text}", why="a rule for the failures that were shown"), samples)


def _fault(rule: str, body: str) -> str:
    """The reason why a line is no rule that can be added; "" if it is one."""
    if len(tokens(rule, punctuation=False)) < FEWEST_WORDS:
        return f"a rule has at least {FEWEST_WORDS} words"
    if len(rule) > MOST_CHARS:
        return f"a rule has at most {MOST_CHARS} characters"
    return "the skill says that already" if says(body, f"- {rule}") or says(body, rule) else ""
