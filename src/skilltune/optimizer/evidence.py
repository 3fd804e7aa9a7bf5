"""What the optimizer is shown of a rollout, and whether an edit's evidence holds.

Both live here because they must agree: a quote counts only if it stands in the text that was shown. The optimizer is
shown train rollouts only; whoever calls `render_rollout` with another split has broken the firewall.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from skilltune.edits import Edit
from skilltune.envs import Env
from skilltune.rollout import Rollout
from skilltune.samples import Sample

COPIED_WORDS = 8  # so many consecutive words of a sample's text in an edit are a copy, not a rule
COPIED_ANSWER = 20  # an expected answer of so many characters must not stand in an edit
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TAGS = re.compile(r"</?(?=(?:skill|edit_budget|notes|rejected|trajectory|patch|edit|pair)\b)", re.IGNORECASE)


def tag(name: str, text: str, **attributes: object) -> str:
    """<name a="…">text</name>; text that looks like one of our tags is defused, attributes are escaped."""
    shown = "".join(f' {key}="{html.escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{shown}>\n{_defused(text)}\n</{name}>"


def _defused(text: str) -> str:
    return _TAGS.sub(lambda found: found[0].replace("<", "‹"), text)


def render_rollout(rollout: Rollout, sample: Sample, env: Env, *, chars: int, show_expected: bool) -> str:
    """What the agent did, its final answer, the scorer's reason; elided in the middle to `chars`, never at the end."""
    assert rollout.score is not None
    turns = "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in rollout.trajectory.turns)
    expected, why = env.expected(sample), rollout.score.why
    ending = [f"Final answer: {rollout.answer}"]
    if not show_expected:
        why = _hide(why, expected)
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
    """What the edit copies from a sample ("" if nothing): a long expected answer, or a long run of a task's words."""
    text = _squeeze(edit.text or "")
    known = _squeeze(skill_body)
    grams = _grams(text) - _grams(known)
    for sample in samples:
        answer = _squeeze(env.expected(sample))
        if len(answer) >= COPIED_ANSWER and answer in text and answer not in known:
            return f"it copies the expected answer of sample {sample.id}"
        if grams & _grams(_squeeze(sample.text)):
            return f"it copies {COPIED_WORDS} or more consecutive words of sample {sample.id}"
    return ""


def _squeeze(text: str) -> str:
    return " ".join(text.split()).casefold()


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + COPIED_WORDS]) for i in range(len(words) - COPIED_WORDS + 1)}
