"""What the optimizer is shown of a rollout, and whether an edit's evidence holds.

Both live here because they must agree: a quote counts only if it stands in the text that was shown. The optimizer is
shown train rollouts only; whoever calls `render_rollout` with another split has broken the firewall.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skilltune.edits import Edit
from skilltune.envs import Env
from skilltune.rollout import THINKING, Rollout
from skilltune.samples import Sample
from skilltune.scorers.judge import hidden
from skilltune.words import LETTER, SIGN, tokens

COPIED_WORDS = 8  # so many consecutive words of a sample's text in an edit are a copy, not a rule
COPIED_SIGNS = 16  # or so many ideographs and kana: eight of them are four or five words, as ordinary phrases have
COPIED_LETTERS = 24  # or so many letters of Thai and its like, whose words have three beside the vowel signs
COPIED_ANSWER = 20  # an expected answer or a check's text of so many characters must not stand in an edit
BARE_ANSWER = 10  # and not with other punctuation either, if so many of them are letters or digits
COPIED_PATTERN = 8  # nor a regular expression of so many: nobody writes one by accident
_PATTERN = re.compile(r"\\[AbBdDsSwWZ]|\[[^]]*\]|\(\?|[)\]}.\w][*+]|\{\d+(?:,\d*)?\}|^\^|\$$")
_RUN = math.lcm(COPIED_WORDS, COPIED_SIGNS, COPIED_LETTERS)
ANSWER, PATTERN = "the expected answer", "a check"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TAGS = re.compile(r"</?(?=(?:skill|edit_budget|notes|unfixed|rejected|trajectory|patch|edit|pair)\b)", re.IGNORECASE)


def tag(name: str, text: str, **attributes: object) -> str:
    """<name a="…">text</name>; text that looks like one of our tags is defused, attributes are escaped."""
    shown = "".join(f' {key}="{html.escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{shown}>\n{_defused(text)}\n</{name}>"


def _defused(text: str) -> str:
    return _TAGS.sub(lambda found: found[0].replace("<", "‹"), text)


def render_rollout(
    rollout: Rollout, sample: Sample, env: Env, *, chars: int, show_expected: bool, show_rubric: bool = False
) -> str:
    """What the agent did, its final answer, the scorer's reason; elided in the middle to `chars`, never at the end.
    The text of a judge's checks is hidden, but for `show_rubric`: a skill must not be written to please the judge."""
    assert rollout.score is not None
    shown = [turn for turn in rollout.trajectory.turns if turn.role != THINKING]  # long, and no part of the answer
    turns = "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in shown)
    expected, why = env.expected(sample), rollout.score.why
    ending = [f"Final answer: {rollout.answer}"]
    if rollout.trajectory.error:
        ending.append(f"Note: {rollout.trajectory.error}")
    if not show_expected:
        why = _hide(why, expected)
    if not show_rubric:
        why = hidden(why, env.lines(sample))
    if why:
        ending.append(f"Scorer: {why}")
    if expected and show_expected:
        ending.append(f"Expected: {expected}")
    end = elide("\n".join(ending), chars // 2)
    return f"{elide(turns, max(chars - len(end), 0))}\n\n{end}"


def _hide(why: str, expected: str) -> str:
    """A scorer's reason without what it quotes: the expected answer in whatever spelling, or a checker's pattern."""
    why = _QUOTED.sub("(hidden)", why)
    return re.sub(rf"(?<!\w){re.escape(expected)}(?!\w)", "(hidden)", why, flags=re.IGNORECASE) if expected else why


def elide(text: str, chars: int) -> str:
    """At most about `chars` characters of text: its beginning and its end, and how much is missing between."""
    if len(text) <= chars:
        return text
    head, tail = chars // 3, chars - chars // 3
    return f"{text[:head]}\n[… {len(text) - chars} characters left out …]\n{text[len(text) - tail :]}"


def trajectory_tag(rollout: Rollout, text: str) -> str:
    assert rollout.score is not None
    return tag(
        "trajectory",
        text,
        sample=rollout.sample,
        score=f"{rollout.score.value:.2f}",
        attempt=rollout.attempt,
        outcome=rollout.outcome,
    )


def support(edit: Edit, shown: Mapping[str, str]) -> tuple[str, ...]:
    """The samples whose citation holds: the quote is not empty and stands, up to white space, in what was shown."""
    texts = {sample: _squeeze(_defused(text)) for sample, text in shown.items()}
    return tuple(
        dict.fromkeys(
            cited.sample
            for cited in edit.evidence
            if (quote := _squeeze(_defused(cited.quote))) and quote in texts.get(cited.sample, "")
        )
    )


def copied(edit: Edit, skill_body: str, samples: Sequence[Sample], env: Env) -> str:
    """What the edit copies from a sample ("" if nothing): a long expected answer, a check's text, pattern or schema, or
    a long run of words of any of these or of the task, whatever the case, the spacing and the punctuation (of a
    pattern, whatever the case and the spacing).

    What the skill holds already may be kept, and plain text that most of the samples demand (a heading, a label) is
    what they have in common, not what gives one of them away.
    """
    text = edit.text or ""
    packed, packed_known = _packed(text), _packed(skill_body)
    bare, bare_known = _bare(text), _bare(skill_body)
    starts = {bare[i : i + COPIED_WORDS] for i in range(len(bare))}  # rules most runs out: none is shorter

    def repeats(secret: str) -> bool:
        return any(run[:COPIED_WORDS] in starts and run in bare and run not in bare_known for run in _runs(secret))

    secrets = [(sample, set(_secrets(sample, env))) for sample in samples]
    shared = Counter(itertools.chain.from_iterable(own for _, own in secrets))

    for sample, own in secrets:
        for what, secret in sorted(own):
            pattern = what == PATTERN and _PATTERN.search(secret)
            if not pattern and shared[what, secret] > max(1, len(samples) / 2):
                continue
            whole, new, old = _bare(secret), bare, bare_known
            if pattern or len(whole) < BARE_ANSWER:
                whole, new, old = _packed(secret), packed, packed_known
            long = len(_squeeze(secret)) >= (COPIED_PATTERN if pattern else COPIED_ANSWER)
            if long and whole in new and whole not in old:
                return f"it copies {what} of sample {sample.id}"
            if repeats(secret):
                return f"it copies {COPIED_WORDS} or more consecutive words of {what} of sample {sample.id}"
        if repeats(sample.text):
            return f"it copies {COPIED_WORDS} or more consecutive words of sample {sample.id}"
        if any(map(repeats, env.lines(sample))):
            return f"it copies {COPIED_WORDS} or more consecutive words of a check of sample {sample.id}"
    return ""


def _secrets(sample: Sample, env: Env) -> Iterator[tuple[str, str]]:
    """(what it is, text) of all that a sample's score is decided by."""
    expected = env.expected(sample)
    yield ANSWER, expected
    for text in _texts(sample.target):
        yield (ANSWER if expected else PATTERN), text  # a target that is no answer is what answers are matched with
    for spec in sample.checks:
        for key, value in spec.items():
            if key != "type":
                yield from ((PATTERN, text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """The strings in a JSON value, and what is not a string as JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        yield json.dumps(value, ensure_ascii=False, default=str)
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _squeeze(text: str) -> str:
    return " ".join(text.split()).casefold()


def _packed(text: str) -> str:
    return _squeeze(text).replace(" ", "")  # JSON is spaced in many ways


def _bare(text: str) -> str:
    """Letters and digits alone: no markup, hyphen or space hides a copy, or parts its words in another way."""
    return "".join(tokens(text, punctuation=False))


def _runs(text: str) -> Iterator[str]:
    """From each word on, the shortest run that is long enough to be a copy, bare."""
    words = tokens(text, punctuation=False)
    weights = [_weight(word) for word in words]
    end = total = size = 0
    for start, (weight, width) in enumerate(weights):
        while (total < _RUN or size < COPIED_ANSWER) and end < len(words):
            total, size = total + weights[end][0], size + weights[end][1]
            end += 1
        if total < _RUN or size < COPIED_ANSWER:
            return
        yield "".join(words[start:end])
        total, size = total - weight, size - width


def _weight(word: str) -> tuple[int, int]:
    """The part of a run that it is, so that a run may go over several scripts; and its letters, of which a run of short
    words needs enough too (1 2 3 4 5 6 7 8 is no copy). A sign counts as two."""
    enough = COPIED_LETTERS if LETTER.match(word) else COPIED_SIGNS if SIGN.match(word) else COPIED_WORDS
    return _RUN // enough, len(word) if enough == COPIED_WORDS else 2
