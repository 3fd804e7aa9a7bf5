"""The files of one question, for an answerer who reads files: an agent in a workspace, or whoever answers a handoff.

README.md holds the instructions and one line per file. Everything else is a file of its own: the skill, the memory, the
schema of the answer, and one file per sample with its trajectories, scores and reasons.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence

from skilltune.optimizer.render import Part
from skilltune.optimizer.stage import Brief, as_json, load_prompt

README, SCHEMA, EXAMPLE, REFUSED = "README.md", "schema.json", "example.json", "refused.md"
ANSWERS = "answer"  # the folder of the answer, the only one that an agent can write to
ANSWER = f"{ANSWERS}/answer.json"
_BUDGET = "edit_budget"  # a number; it stands in the README
_KEPT = {"skill": "skill.md", "notes": "notes.md", "unfixed": "unfixed.jsonl", "rejected": "rejected.jsonl"}
_MEANING = {
    "skill": "the skill as it is now",
    "notes": "your own notes from earlier steps",
    "unfixed": "failures that no edit has fixed, one a line",
    "rejected": "edits that were tried and measured, one a line",
}
_SLUG = re.compile(r"[^\w.-]+", re.ASCII)
SLUG = 40  # characters of a sample's id in the name of its file


def layout(brief: Brief, answering: str) -> dict[str, bytes]:
    """The files of a question by path. `answering` says how the answer is to be given.

    The messages that follow the question in the request, an answer that could not be used and the reason, become one
    more file.
    """
    files: dict[str, str] = {}
    index: list[str] = []
    for name, file in _KEPT.items():
        if texts := [part.text for part in brief.parts if part.name == name]:
            files[file] = "\n".join(texts) + "\n"
            index.append(f"- `{file}`: {_MEANING[name]} (`<{name}>`)")
    evidence = [part for part in brief.parts if part.name not in (*_KEPT, _BUDGET)]
    for listed, made in (_samples(evidence), _patches(evidence), _edits(evidence), _more(evidence)):
        files |= made
        index += listed
    assert brief.request.schema is not None
    files[SCHEMA] = json.dumps(brief.request.schema.schema, indent=1) + "\n"
    example = json.loads(load_prompt("examples.json"))[brief.stage]
    files[EXAMPLE] = json.dumps(example, indent=1, ensure_ascii=False) + "\n"
    index.append(f"- `{SCHEMA}`: the JSON schema of the answer")
    index.append(f"- `{EXAMPLE}`: an answer about another skill; it shows the form only")
    if refused := brief.request.messages[2:]:
        files[REFUSED] = refusal(message.text for message in refused)
        index.insert(0, f"- `{REFUSED}`: your earlier answer, and the reason why it could not be used. Read it first.")
    files[README] = _readme(brief, answering, index)
    return {name: text.encode("utf-8", "backslashreplace") for name, text in files.items()}


def _readme(brief: Brief, answering: str, index: Iterable[str]) -> str:
    budget = [f"At most {part.text} edits (`<{_BUDGET}>`).\n" for part in brief.parts if part.name == _BUDGET]
    return "\n".join(
        [
            f"# Question: {brief.stage}\n",
            f"{answering}\n",
            f"## What to do\n\n{brief.instructions}\n",
            *budget,
            "## The files\n",
            load_prompt("files"),
            "",
            *index,
            "",
        ]
    )


def _samples(evidence: Sequence[Part]) -> tuple[list[str], dict[str, str]]:
    """One file and one line of the index per sample. A sample may have several trajectories."""
    of_sample: dict[str, list[tuple[str, Part]]] = {}
    for part in evidence:
        facts = dict(part.attributes)
        if (sample := facts.pop("sample", None)) is not None:
            shown = ", ".join(f"{name} {value}" for name, value in facts.items())
            of_sample.setdefault(sample, []).append((shown, part))
    index, files = list[str](), dict[str, str]()
    for number, (sample, parts) in enumerate(of_sample.items(), 1):
        slug = _SLUG.sub("-", sample).strip("-.")[:SLUG] or "sample"
        file = f"samples/{number:03}_{slug}.md"
        texts = [f"## {part.name}: {shown}\n\n{part.text}" for shown, part in parts]
        files[file] = "\n\n".join([f"# Sample {as_json(sample)}", *texts]) + "\n"
        index.append(f"- `{file}`: sample {as_json(sample)}: {'; '.join(shown for shown, _ in parts)}")
    return index, files


def _patches(evidence: Sequence[Part]) -> tuple[list[str], dict[str, str]]:
    made = {
        f"patches/{dict(part.attributes)['id']}.json": part.text + "\n" for part in evidence if part.name == "patch"
    }
    return [f"- `{file}`: a patch (`<patch>`)" for file in made], made


def _edits(evidence: Sequence[Part]) -> tuple[list[str], dict[str, str]]:
    edits = [(dict(part.attributes)["index"], part.text) for part in evidence if part.name == "edit"]
    if not edits:
        return [], {}
    lines = [f'{{"index": {number}, "edit": {text}}}' for number, text in edits]
    return [f"- `edits.jsonl`: {len(edits)} edits, one a line (`<edit>`)"], {"edits.jsonl": "\n".join(lines) + "\n"}


def _more(evidence: Sequence[Part]) -> tuple[list[str], dict[str, str]]:
    if not (texts := [part.text for part in evidence if not part.name]):
        return [], {}
    return ["- `more.md`: further instructions"], {"more.md": "\n\n".join(texts) + "\n"}


def refusal(texts: Iterable[str]) -> str:
    """The text of `REFUSED`: answers that could not be used, each followed by the reason."""
    names = itertools.cycle(("## Your answer", "## Why it could not be used"))
    return "\n\n".join(f"{name}\n\n{text}" for name, text in zip(names, texts, strict=False)) + "\n"
