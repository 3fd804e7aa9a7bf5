"""Show one sample: the target's messages and the scorer's checks, so that the user sees every default."""

from __future__ import annotations

from collections.abc import Sequence

from skilltune.envs import Env
from skilltune.models import Message
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets.chat import with_skill

SHOWN = 4000  # most characters of one message
SKILL = 200  # most characters of the skill; the reader has its file


def preview(env: Env, skill: Skill, sample: Sample) -> list[tuple[str, str]]:
    """Rows (label, text): every message, then the scoring of an answer."""
    rows = [("sample", f'"{sample.id}": the messages to the target, and the scoring of its answer:')]
    body = f"{_cut(skill.body.strip(), SKILL)}\n" if skill.body.strip() else ""
    rows += [(f"  {message.role}", _text(message)) for message in with_skill(body, env.messages(sample))]
    if not body:
        rows.append(("  system", "(the skill's text; it is empty now)"))
    return [*rows, ("  score", "\n".join([*_judged(env, sample)]))]


def _judged(env: Env, sample: Sample) -> Sequence[str]:
    said = env.judged(sample) or [env.scorer]
    reference = env.stated(sample)
    if env.lines(sample) and reference and not any(reference in line for line in env.lines(sample)):
        return [*said, f"the judge also sees the target as a reference: {_cut(reference, SKILL)}"]
    return said


def _text(message: Message) -> str:
    images = [f"[image: {image.media_type}, {len(image.data):,} bytes]" for image in message.images]
    return "\n".join(filter(None, (_cut(message.text.rstrip(), SHOWN), *images)))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"
