"""Create a skill folder for `init`: a skill, five example tasks to replace, and a commented config.

An existing SKILL.md or evals/evals.json is never replaced. The template's examples and a model's drafts are marked in
their metadata (`"template": true`, `"reviewed": false`). Training refuses marked samples, because a person must review
them first.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from skilltune.authoring.convert import to_jsonl
from skilltune.config import EVALS, FILE_NAME, make_config
from skilltune.envs import Env, load_samples
from skilltune.errors import UsageError
from skilltune.files import write_atomic
from skilltune.journal.run import scratch_run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.models import Reply, Request, Schema, system, user
from skilltune.models.build import build_model
from skilltune.models.structured import ask
from skilltune.names import AGENT_SCHEMES, MODEL_SCHEMES, parse_name
from skilltune.optimizer.render import tag
from skilltune.samples import Sample
from skilltune.scorers import build
from skilltune.skill import MAIN, Skill
from skilltune.usage import Usage

DESCRIPTION = "TODO: say what this skill does and when an agent should use it."
ANSWER_ONLY = "Answer the question, with nothing but the answer."
CHUNK = 6000  # characters of a document per call: enough context for a task, short enough for the model to read closely
PER_CHUNK = 5
WORKERS = 4
_EXAMPLES = {"number": "number", "choice": "choice", "json": "json", "regex": "regex", "checks": "checks"}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "samples": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"input": {"type": "string"}, "target": {"type": "string"}},
                "required": ["input", "target"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["samples"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of a new skill folder. Models and scorers are named as in the config. `description` and `task` fill
    in the template of SKILL.md; `task` also guides the drafts."""

    name: str
    description: str
    task: str
    score: str
    target: str
    optimizer: str
    key_env: str = ""  # the environment variable with the key of the optimizer's endpoint

    def samples(self, folder: Path, *, drafted: bool = False) -> str:
        """The name of the task file: existing evals, unless tasks were drafted."""
        evals = _kind(self.score) == "checks" or (folder / EVALS).is_file()
        return EVALS if evals and not drafted else "samples.jsonl"


class Draft(BaseModel):
    """One drafted task."""

    model_config = ConfigDict(extra="forbid")

    input: str = Field(min_length=1)
    target: str = Field(min_length=1)


class Drafts(BaseModel):
    """The answer to one drafting call."""

    samples: list[Draft]


def scaffold(folder: Path, plan: Plan, *, drafts: Iterable[Sample] = (), force: bool = False) -> list[Path]:
    """Write the folder and return the files written. `drafts` replace the examples.

    An existing SKILL.md or evals/evals.json is kept, even with `force`. Everything is checked before the first byte is
    written. Raises UsageError for an invalid name, model or scorer, and if another file exists (unless `force`).
    """
    files: dict[str, str] = {}
    if not (folder / MAIN).exists():
        files[MAIN] = filled("SKILL.md", name=plan.name, description=quoted(plan.description), task=plan.task)
        if problems := Skill(files[MAIN], plan.name, folder=True).check():
            raise UsageError(" ".join(problems))
    drafted = list(drafts)
    samples = plan.samples(folder, drafted=bool(drafted))
    values = {key: quoted(getattr(plan, key)) for key in ("score", "target", "optimizer")}
    key = f"key_env = {quoted(plan.key_env)}" if plan.key_env else '# key_env = "OPENROUTER_API_KEY"'
    options = target_options(plan.target)
    files[FILE_NAME] = filled("skilltune.toml", samples=quoted(samples), key_env=key, options=options, **values)
    models = {"target": {"model": plan.target}, "optimizer": {"model": plan.optimizer, "key_env": plan.key_env or None}}
    make_config({**models, "env": {"score": plan.score}}, source="init")
    if drafted:
        files[samples] = to_jsonl(drafted)
    elif not (samples == EVALS and (folder / EVALS).exists()):
        files[samples] = _examples(plan, samples)
    if scorer := re.fullmatch(r"python:(?P<file>[^:]+\.py):(?P<function>\w+)", plan.score):
        if not (folder / scorer["file"]).exists():
            files[scorer["file"]] = filled("scorer.txt", function=scorer["function"])
    else:
        build(plan.score, folder)
    return write_new(folder, files, force=force)


def write_new(folder: Path, files: Mapping[str, str], *, force: bool = False) -> list[Path]:
    """Write files into a folder and return their paths. Raises UsageError, before the first byte is written, if one of
    them exists (unless `force`)."""
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise UsageError(
            f"{folder} already has {', '.join(there)}; nothing was written: choose another folder, or --force"
        )
    try:
        for name, text in files.items():
            write_atomic(folder / name, text)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / name for name in files]


def propose(folder: Path, *, drafting: bool = False) -> dict[str, tuple[str, str]]:
    """The questions for a plan, each with its default. An existing SKILL.md answers some of them."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:64].strip("-") or "my-skill"
    new = not (folder / MAIN).exists()
    skill = {
        "name": ("Name of the skill", name),
        "description": ("What does the skill do, and when should an agent use it?", DESCRIPTION),
    }
    task = {"task": ("What does a task look like?", ANSWER_ONLY)}
    return {
        **(skill if new else {}),
        **(task if new or drafting else {}),
        "score": ("How is an answer scored? (exact, contains, number, choice, json, regex, f1, checks)", "exact"),
        "target": (
            "Which model or agent does the tasks? (for example openai/gpt-5.5 or claude-code/claude-opus-5)",
            "local/smollm2-135m",
        ),
        "optimizer": (
            "Which model or agent proposes edits? (examples: no model, it adds worked examples)",
            "examples",
        ),
    }


def describe_evals(path: Path) -> str:
    """A text on the tasks of an evals.json: their number, and if they need a judge. Raises UsageError if the file is
    broken."""
    samples = load_samples(path)
    prose = sum(any(check.get("type") == "judge" for check in sample.checks) for sample in samples)
    text = f"{len(samples)} tasks"
    if prose:
        text += f'; {prose} have expectations in prose: name a judge in {FILE_NAME}, score = {{judge = "MODEL"}}'
    return text


async def draft_with(plan: Plan, document: Path) -> list[Sample]:
    """`draft` with the plan's optimizer model. Raises UsageError if the optimizer is not a model."""
    name = parse_name(plan.optimizer)
    if name.scheme not in MODEL_SCHEMES:
        raise UsageError(
            f"--from needs a model for the drafts, and {plan.optimizer} is none: name one with --optimizer, e.g. "
            f"anthropic/claude-opus-5; afterwards set optimizer.model to {plan.optimizer} in {FILE_NAME}"
        )
    model = build_model(plan.optimizer, key_env=plan.key_env or None)
    try:
        with scratch_run(None) as run:
            client = Client(model, Meter(Endpoint(WORKERS), Budget(Limits(), Usage()), run, "optimizer"))
            return await draft(client, document, plan)
    finally:
        await model.aclose()


async def draft(call: Callable[[Request], Awaitable[Reply]], document: Path, plan: Plan) -> list[Sample]:
    """Samples drafted from a document, by one structured call per chunk, all marked as not reviewed.

    If the plan's scorer cannot score a task, the model is asked once more with the reason. Raises the errors of the
    calls, and UsageError for a document that cannot be read.
    """
    try:
        text = document.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {document}: {error}") from error
    if _kind(plan.score) == "checks":
        raise UsageError("drafts have one expected answer each: choose another --score than checks, e.g. exact")
    if not text.strip():
        raise UsageError(f"{document} is empty: samples cannot be drafted from it")

    async def one(line: int, chunk: str) -> list[Sample]:
        asked = [tag("kind", plan.task), tag("tasks", str(PER_CHUNK)), tag("document", chunk)]
        messages = (system(_template("draft.md").strip()), user("\n\n".join(asked)))

        def read(answer: Any) -> list[Draft]:
            found = Drafts.model_validate(answer).samples[:PER_CHUNK]
            for number, item in enumerate(found, 1):
                Env([Sample(id=f"samples[{number - 1}]", input=item.input, target=item.target)], plan.score)
            return found

        found = await ask(call, Request(messages, schema=Schema("draft", _SCHEMA)), read)
        metadata = {"reviewed": False, "source": f"{document.name}:{line}"}
        return [Sample(id=f"L{line}-{i}", metadata=metadata, **item.model_dump()) for i, item in enumerate(found, 1)]

    drafted = await asyncio.gather(*(one(line, chunk) for line, chunk in chunks(text)))
    known: dict[str, Sample] = {}
    for sample in (sample for part in drafted for sample in part):
        known.setdefault(sample.text.strip().casefold(), sample)
    return list(known.values())


def chunks(text: str, size: int = CHUNK) -> list[tuple[int, str]]:
    """Parts of the text as (number of the first line, part), each of at most about `size` characters.

    Parts are cut at blank lines if possible. Joined, they give the text.
    """
    parts: list[tuple[int, str]] = []
    place = 0
    while place < len(text):
        end = min(place + size, len(text))
        if end < len(text):
            breaks = [text.rfind(mark, place + size // 2, end) + len(mark) for mark in ("\n#", "\n\n", "\n", " ")]
            end = next((cut for cut in breaks if cut > place + size // 2), end)
            end -= text[end - 2 : end] == "\n#"  # a heading starts the next part
        if text[place:end].strip():
            parts.append((text.count("\n", 0, place) + 1, text[place:end]))
        place = end
    return parts


def _examples(plan: Plan, file: str) -> str:
    kind = _EXAMPLES.get(_kind(plan.score), "text")
    rows = [json.loads(line) for line in _template(f"examples/{kind}.jsonl").splitlines()]
    marked = [{"id": i, **row, "template": True} for i, row in enumerate(rows, 1)]
    if file.endswith(".json"):
        return json.dumps({"skill_name": plan.name, "evals": marked}, indent=2, ensure_ascii=False) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in marked)


def _target_kind(target: str) -> str:
    """model, agent, or command for an agent that is named by its command line."""
    scheme = parse_name(target).scheme
    if scheme in ("acp", "command"):
        return "command"
    return "agent" if scheme in AGENT_SCHEMES else "model"


def target_options(target: str) -> str:
    """The commented options of a target's kind, lines of TOML."""
    return _template(f"target_{_target_kind(target)}.txt").rstrip()


def _kind(score: str) -> str:
    return score.partition(":")[0]


def quoted(text: str) -> str:
    """A text in double quotes, valid in YAML and in TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def filled(template: str, **values: str) -> str:
    """A template of this package with its slots @NAME@ replaced."""
    slots: Mapping[str, str] = {f"@{key}@": value for key, value in values.items()}
    return re.sub("|".join(map(re.escape, slots)), lambda slot: slots[slot[0]], _template(template))


def _template(name: str) -> str:
    return resources.files("skilltune").joinpath("templates", *name.split("/")).read_text(encoding="utf-8")
