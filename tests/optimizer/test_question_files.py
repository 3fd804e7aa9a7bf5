"""A question as files: complete, one file per sample, and safe whatever the samples are called."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.models import Message, Request, Schema, system, user
from skilltune.optimizer.files import EXAMPLE, README, REFUSED, SCHEMA, layout
from skilltune.optimizer.render import Part
from skilltune.optimizer.stage import SCHEMAS, Brief
from skilltune.workspace import checked_files


def brief(*parts: Part, stage: str = "reflect", later: tuple[Message, ...] = ()) -> Brief:
    request = Request(
        (system("Find the cause."), user("\n\n".join(map(str, parts))), *later), schema=Schema(stage, SCHEMAS[stage])
    )
    return Brief(request, parts)


def texts(question: Brief) -> dict[str, str]:
    return {name: data.decode() for name, data in layout(question, "Answer here.").items()}


def trajectory(sample: str, text: str = "x", **facts: object) -> Part:
    return Part.of("trajectory", text, sample=sample, **facts)


def test_a_question_is_laid_out_with_one_line_and_one_file_per_sample() -> None:
    found = texts(
        brief(
            Part("skill", "# Desk"),
            Part("edit_budget", "4"),
            Part("notes", "Be brief."),
            Part("rejected", '{"op": "add"}'),
            trajectory("a/1", "first", score="0.00", attempt=0),
            trajectory("b", "other", score="1.00", attempt=0),
            trajectory("a/1", "second", score="1.00", attempt=1),
        )
    )
    assert found["skill.md"] == "# Desk\n"
    assert found["notes.md"] == "Be brief.\n"
    assert found["rejected.jsonl"] == '{"op": "add"}\n'
    assert [name for name in found if name.startswith("samples/")] == ["samples/001_a-1.md", "samples/002_b.md"]
    assert found["samples/001_a-1.md"].startswith('# Sample "a/1"\n')
    assert found["samples/001_a-1.md"].index("first") < found["samples/001_a-1.md"].index("second")
    assert json.loads(found[SCHEMA]) == SCHEMAS["reflect"]
    assert "edits" in json.loads(found[EXAMPLE])
    readme = found[README]
    for line in (
        "Find the cause.",
        "Answer here.",
        "At most 4 edits",
        '- `samples/001_a-1.md`: sample "a/1": score 0.00, attempt 0; score 1.00, attempt 1',
        '- `samples/002_b.md`: sample "b": score 1.00, attempt 0',
    ):
        assert line in readme
    assert all(name in readme for name in found if name != README)


def test_patches_edits_and_further_instructions_are_files_as_well() -> None:
    patches = texts(brief(Part.of("patch", '{"edits": []}', id="failures"), stage="merge"))
    assert json.loads(patches["patches/failures.json"]) == {"edits": []}
    edits = texts(brief(*(Part.of("edit", f'{{"n": {i}}}', index=i) for i in range(2)), stage="rank"))
    assert [json.loads(line) for line in edits["edits.jsonl"].splitlines()] == [
        {"index": i, "edit": {"n": i}} for i in range(2)
    ]
    assert texts(brief(Part("", "Keep this."), stage="rewrite"))["more.md"] == "Keep this.\n"


def test_an_answer_that_could_not_be_used_is_a_file_with_its_reason() -> None:
    found = texts(brief(later=(Message("assistant", "no"), user("it is no JSON"))))
    assert found[REFUSED].index("no") < found[REFUSED].index("it is no JSON")
    assert found[README].index(REFUSED) < found[README].index(SCHEMA)
    assert REFUSED not in texts(brief())


@pytest.mark.parametrize("id", ["../../etc/passwd", ".git", "", "a\nb", "ü/ö", "x" * 300, "0001-reflect-1a2b3c4d"])
def test_no_name_of_a_sample_leads_out_of_the_folder(id: str) -> None:
    found = texts(brief(trajectory(id)))
    checked_files(dict.fromkeys(found, b""))
    file = next(name for name in found if name.startswith("samples/"))
    assert found[file].startswith(f"# Sample {json.dumps(id, ensure_ascii=False)}\n")
    assert len(file) < 60


@given(st.lists(st.text(), max_size=6, unique=True))
def test_every_sample_has_a_file_of_its_own(ids: list[str]) -> None:
    files = layout(brief(*(trajectory(id, score="0.00") for id in ids)), "")
    checked_files(files)
    assert sum(name.startswith("samples/") for name in files) == len(ids)
