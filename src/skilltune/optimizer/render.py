"""Render rollouts for the optimizer, and check the evidence of its edits.

Both live here because they must agree: a quote counts only if the rendered text contains it. Call `render_rollout` for
train samples only, because the optimizer must not see `select` or `test`.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skilltune.edits import Edit
from skilltune.envs import Env
from skilltune.rollout import THINKING, Rollout
from skilltune.samples import Sample
from skilltune.scorers.judge import hidden
from skilltune.words import LETTER, SIGN, tokens

# From these lengths on, text that an edit shares with a sample is a copy, not a rule.
COPIED_WORDS = 8  # consecutive words
COPIED_SIGNS = 16  # consecutive ideographs or kana, about two to a word
COPIED_LETTERS = 24  # consecutive letters of a script without spaces, such as Thai: about three to a word
COPIED_ANSWER = 20  # characters of an expected answer or of a check's text
BARE_ANSWER = 10  # letters and digits of such an answer; punctuation is ignored from this number on
SHOWN_FILES = 20  # changed files that a rendered rollout names
COPIED_PATTERN = 8  # characters of a regular expression: nobody writes the same one by accident
_PATTERN = re.compile(r"\\[AbBdDsSwWZ]|\[[^]]*\]|\(\?|[)\]}.\w][*+]|\{\d+(?:,\d*)?\}|^\^|\$$")
_RUN = math.lcm(COPIED_WORDS, COPIED_SIGNS, COPIED_LETTERS)
ANSWER, PATTERN = "the expected answer", "a check"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TAGS = re.compile(r"</?(?=(?:skill|edit_budget|notes|unfixed|rejected|trajectory|patch|edit|pair)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a question. As text it is a tag with its attributes; without a name it is plain text.

    An attribute `sample` is the id of the sample that the part is about.
    """

    name: str
    text: str
    attributes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, name: str, text: str, **attributes: object) -> Part:
        return cls(name, text, tuple((key, str(value)) for key, value in attributes.items()))

    def __str__(self) -> str:
        return tag(self.name, self.text, **dict(self.attributes)) if self.name else self.text


def tag(name: str, text: str, **attributes: object) -> str:
    """<name a="…">text</name>. Attributes are escaped, and so are parts of the text that look like one of our tags."""
    shown = "".join(f' {key}="{html.escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{shown}>\n{_defused(text)}\n</{name}>"


def _defused(text: str) -> str:
    return _TAGS.sub(lambda found: found[0].replace("<", "‹"), text)


def render_rollout(
    rollout: Rollout, sample: Sample, env: Env, *, chars: int, show_expected: bool, show_rubric: bool = False
) -> str:
    """The turns, the final answer and the scorer's reason, in about `chars` characters; long text is cut in its middle.

    Without `show_expected` the expected answer is hidden. Without `show_rubric` the text of a judge's checks is hidden,
    so that the skill is not written to please the judge. The rollout must be scored.
    """
    assert rollout.score is not None
    shown = [turn for turn in rollout.trajectory.turns if turn.role != THINKING]  # reasoning is long and not scored
    turns = "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in shown)
    left = _files(rollout, chars // 4)
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
    end = left + elide("\n".join(ending), chars // 2)
    return f"{elide(turns, max(chars - len(end), 0))}\n\n{end}"


def render_case(
    rollout: Rollout, sample: Sample, env: Env, *, chars: int, show_expected: bool, show_rubric: bool = False
) -> str:
    """A failed task in three lines, for a small model: the task, the answer, and the right answer or else the scorer's
    reason. Hides what `render_rollout` hides. The rollout must be scored."""
    assert rollout.score is not None
    expected = env.expected(sample) if show_expected else ""
    lines = [
        f"Task: {elide(sample.text.strip(), chars // 2)}",
        f"Answer given: {elide(rollout.answer.strip(), chars // 4)}",
    ]
    if expected:
        lines.append(f"Right answer: {elide(expected, chars // 4)}")
    else:
        why = rollout.score.why if show_expected else _hide(rollout.score.why, env.expected(sample))
        why = why if show_rubric else hidden(why, env.lines(sample))
        lines.append(f"Wrong because: {elide(why, chars // 4)}" if why else "This answer is wrong.")
    return "\n".join(lines)


def _files(rollout: Rollout, chars: int) -> str:
    """The files that the target changed, with their sizes, and the diff; "" if there are none."""
    files, diff = rollout.artifacts, rollout.trajectory.diff
    if not files and not diff:
        return ""
    listed = [f"{path} ({file.size:,} bytes)" for path, file in itertools.islice(files.items(), SHOWN_FILES)]
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    named = elide(f"Changed files: {', '.join(listed) or 'none'}{more}", chars // 2)
    return f"{named}\n" + (f"{elide(diff.rstrip(), chars - len(named))}\n" if diff.strip() else "") + "\n"


def _hide(why: str, expected: str) -> str:
    """A scorer's reason without its quotes and without the expected answer, because they give the answer away."""
    why = _QUOTED.sub("(hidden)", why)
    return re.sub(rf"(?<!\w){re.escape(expected)}(?!\w)", "(hidden)", why, flags=re.IGNORECASE) if expected else why


def elide(text: str, chars: int) -> str:
    """At most about `chars` characters of text: its beginning, the number of characters left out, its end."""
    if len(text) <= chars:
        return text
    head, tail = chars // 3, chars - chars // 3
    return f"{text[:head]}\n[… {len(text) - chars} characters left out …]\n{text[len(text) - tail :]}"


def trajectory_part(rollout: Rollout, text: str) -> Part:
    assert rollout.score is not None
    return Part.of(
        "trajectory",
        text,
        sample=rollout.sample,
        score=f"{rollout.score.value:.2f}",
        attempt=rollout.attempt,
        outcome=rollout.outcome,
    )


def support(edit: Edit, shown: Mapping[str, str]) -> tuple[str, ...]:
    """The samples that the edit cites correctly: the text in `shown` contains the quote, which is not empty. White
    space and case are ignored."""
    texts = {sample: _squeeze(_defused(text)) for sample, text in shown.items()}
    return tuple(
        dict.fromkeys(
            cited.sample
            for cited in edit.evidence
            if (quote := _squeeze(_defused(cited.quote))) and quote in texts.get(cited.sample, "")
        )
    )


def copied(edit: Edit, skill_body: str, samples: Sequence[Sample], env: Env) -> str:
    """A message that says which text of a sample the edit copies; "" if it copies nothing.

    A copy is a long expected answer, a check's text, pattern or schema, or a long run of words from these or from the
    task. Case, spacing and punctuation are ignored; in a pattern, punctuation counts.

    Text that the skill contains already may stay. Plain text that most samples demand, such as a heading, is allowed
    too, because it gives no single sample away.
    """
    text = edit.text or ""
    packed, packed_known = _packed(text), _packed(skill_body)
    bare, bare_known = _bare(text), _bare(skill_body)
    starts = {bare[i : i + COPIED_WORDS] for i in range(len(bare))}  # a quick test; no run is shorter

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
    """Yield (kind, text) for each text that decides the sample's score."""
    expected = env.expected(sample)
    yield ANSWER, expected
    for text in _texts(sample.target):
        yield (ANSWER if expected else PATTERN), text  # a target that states no answer is a pattern for answers
    for spec in sample.checks:
        for key, value in spec.items():
            if key != "type":
                yield from ((PATTERN, text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """The strings in a JSON value, and each object and array as JSON text."""
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
    """Letters and digits alone, so that markup, hyphens and spaces cannot hide a copy."""
    return "".join(tokens(text, punctuation=False))


def _runs(text: str) -> Iterator[str]:
    """For each word, the shortest run from there that is long enough to be a copy; letters and digits alone."""
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
    """(share of a run, number of letters) of a token.

    Shares add up over several scripts; a run is complete at `_RUN`. The letters keep a run of very short words, such
    as single digits, from being a copy. A token of a script without spaces counts as two letters.
    """
    enough = COPIED_LETTERS if LETTER.match(word) else COPIED_SIGNS if SIGN.match(word) else COPIED_WORDS
    return _RUN // enough, len(word) if enough == COPIED_WORDS else 2
