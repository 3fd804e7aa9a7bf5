"""Show one sample: the target's messages or an agent's task, and the scorer's checks, so that the user sees every
default."""

from __future__ import annotations

from collections.abc import Sequence

from skilltune.config import TargetConfig
from skilltune.envs import Env
from skilltune.models import Message
from skilltune.names import AGENT_SCHEMES, parse_name
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets.agents.target import prompt_of
from skilltune.targets.chat import with_skill
from skilltune.targets.tools import with_names

SHOWN = 4000  # most characters of one message
SKILL = 200  # most characters of the skill; the reader has its file


LOADED = {
    "forced": "the agent loads this skill at the start",
    "native": "the agent sees name and description of this skill, and decides if it loads it",
    "inline": "this skill is a part of the agent's instructions",
}


def preview(env: Env, skill: Skill, sample: Sample, target: TargetConfig) -> list[tuple[str, str]]:
    """Rows (label, text): every message to the target, or the skill and the task of an agent, then the scoring of an
    answer."""
    if parse_name(target.model).scheme in AGENT_SCHEMES:
        return _agent_preview(env, skill, sample, target.activation or "forced")
    rows = [("sample", f'"{sample.id}": the messages to the target, and the scoring of its answer:')]
    body = f"{_cut(skill.body.strip(), SKILL)}\n" if skill.body.strip() else ""
    messages = with_names(env.task(sample)) if target.tools else env.messages(sample)
    rows += [(f"  {message.role}", _text(message)) for message in with_skill(body, messages)]
    if not body:
        rows.append(("  system", "(the skill's text; it is empty now)"))
    return [*rows, ("  score", "\n".join([*_judged(env, sample)]))]


def _agent_preview(env: Env, skill: Skill, sample: Sample, activation: str) -> list[tuple[str, str]]:
    """An agent has no message of its own for the skill: it gets the task, and the skill by its activation."""
    task = env.task(sample)
    text, images = prompt_of(task.messages)
    body = _cut(skill.body.strip(), SKILL) or "(its text is empty now)"
    rows = [
        ("sample", f'"{sample.id}": the task of the agent, and the scoring of its work:'),
        ("  skill", f"{LOADED[activation]} (activation={activation}):\n{body}"),
        ("  task", _cut(text.rstrip(), SHOWN)),
    ]
    if names := sorted({*task.files, *images}):
        rows.append(("  files", ", ".join(names)))
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
