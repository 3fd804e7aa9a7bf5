import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.edits import (
    EDIT_SCHEMA,
    Applied,
    Citation,
    Edit,
    Malformed,
    Op,
    Report,
    addition,
    apply,
    conflict,
    inverse,
    parse_edits,
    says,
    undo,
)
from skilltune.skill import Skill

FRONT = "---\nname: totals\ndescription: Round numbers.\n---\n"
LOCK = "<!-- skilltune:lock -->\nNever {pay}.\n<!-- /skilltune:lock -->"


def one(text: str, edit: Edit, **options: Any) -> tuple[str, Report]:
    applied = apply(Skill.parse(text), [edit], **options)
    assert applied.changed == (applied.reports[0].status == "applied")
    return applied.skill.text, applied.reports[0]


def applied(text: str, edit: Edit, **options: Any) -> str:
    result, report = one(text, edit, **options)
    assert report.status == "applied", report.reason
    return result


def rejected(text: str, edit: Edit, **options: Any) -> str:
    result, report = one(text, edit, **options)
    assert (result, report.status, report.start) == (text, "rejected", -1)
    return report.reason


def test_edits_are_read_with_null_fields_and_upper_case_ops() -> None:
    sent = [
        {"op": "ADD", "after": None, "target": None, "text": "- a", "why": None, "evidence": None},
        {"op": " replace ", "target": "x", "text": "", "after": ""},
        {"op": "Delete", "target": "x", "text": None, "evidence": [{"sample": 7, "quote": "q"}]},
    ]
    assert parse_edits({"edits": sent}) == [
        Edit("add", text="- a"),
        Edit("replace", target="x", text=""),
        Edit("delete", target="x", evidence=(Citation("7", "q"),)),
    ]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"op": "insert", "text": "a"}, 'unknown op "insert"'),
        ({"op": "rewrite", "text": "a"}, 'unknown op "rewrite"'),
        ({"text": "a"}, "unknown op null"),
        ({"op": 3}, "op must be a text, not a number"),
        ({"op": "add", "text": " \n"}, "add needs text"),
        ({"op": "add", "text": ["a"]}, "text must be a text, not a list"),
        ({"op": "add", "target": "x", "text": "a"}, "add is placed by after"),
        ({"op": "add", "text": "\ud800"}, "text is not valid Unicode"),
        ({"op": "replace", "target": "x", "text": None}, "replace needs text"),
        ({"op": "replace", "text": "a"}, "replace needs target"),
        ({"op": "delete", "target": " "}, "delete needs target"),
        ({"op": "delete", "target": "x", "text": "y"}, "delete takes no text"),
        ({"op": "add", "text": "a", "evidence": "s1"}, "evidence must be a list"),
        ({"op": "add", "text": "a", "evidence": ["s1"]}, "evidence must hold objects"),
        ({"op": "add", "text": "a", "evidence": [{"sample": "s1"}]}, "both sample and quote"),
        ({"op": "add", "text": "a", "evidence": [{"sample": True, "quote": ""}]}, "sample must be a text"),
        ("add a", "an edit must be an object, not a text"),
        (None, "an edit must be an object, not null"),
    ],
)
def test_what_cannot_be_read_stays_with_its_reason(sent: object, reason: str) -> None:
    (malformed,) = parse_edits([sent])
    assert isinstance(malformed, Malformed)
    assert reason in malformed.reason


def test_an_answer_without_edits() -> None:
    assert parse_edits(None) == parse_edits([]) == parse_edits({"edits": None}) == []
    assert isinstance(parse_edits("edits")[0], Malformed)
    assert isinstance(parse_edits({"patch": []})[0], Malformed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["add", "REPLACE", "delete"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("edits", "op", "after", "target", "text", "why", "evidence", "sample"), inner)
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_reading_junk_never_raises(data: object) -> None:
    for edit in parse_edits(data):
        if isinstance(edit, Edit):
            assert parse_edits([edit.to_json()]) == [edit]
        else:
            assert edit.reason
            assert len(edit.raw) <= 300


def test_reading_hostile_junk_never_raises() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    cycle: dict[str, Any] = {"op": "add"}
    cycle["text"] = cycle
    for data in ([deep], [cycle], [{"op": 10**5000}], [{("a",): 1}], [{"op": "x" * 10**6}], [object()]):
        (malformed,) = parse_edits(data)
        assert isinstance(malformed, Malformed)
        assert len(malformed.raw) <= 300


def test_schema_is_strict_and_covers_the_contract() -> None:
    def objects(schema: Any) -> list[Any]:
        found = [schema] if schema.get("type") == "object" else []
        for child in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
            found += objects(child)
        return found

    assert len(objects(EDIT_SCHEMA)) == 2
    for schema in objects(EDIT_SCHEMA):
        assert schema["required"] == list(schema["properties"])
        assert schema["additionalProperties"] is False
    assert list(Edit("add", text="x").to_json()) == EDIT_SCHEMA["required"]
    json.dumps(EDIT_SCHEMA)


def test_key_joins_edits_that_differ_only_in_whitespace_and_evidence() -> None:
    edit = Edit("add", after="a b", text="- x\n", why="w")
    assert edit.key == Edit("add", after="a  b", text="- x", evidence=(Citation("s", "q"),)).key
    others = [Edit("add", text="- x"), Edit("add", after="a b", text="- y"), Edit("replace", target="a b", text="- x")]
    assert len({edit.key, *(other.key for other in others)}) == 4


def test_add_whose_anchor_is_missing_is_rejected_not_appended() -> None:
    assert rejected("# A\n\n- one\n", Edit("add", after="no such line", text="- two")).startswith("not found: ")


def test_ambiguous_anchor_is_rejected_with_the_count() -> None:
    text = "a dog\na cat\n"
    assert "occurs 2 times" in rejected(text, Edit("delete", target="a "))
    assert "occurs 2 times" in rejected("x  y\nx\ty\n", Edit("delete", target="x y"))
    assert "occurs 2 times" in rejected("aaa", Edit("replace", target="aa", text="b"))


def test_one_space_of_difference_does_not_lose_a_replace() -> None:
    result, report = one("- Round  to\n  two digits.\n", Edit("replace", target="Round to two digits.", text="Cut."))
    assert (result, report.match) == ("- Cut.\n", "whitespace")
    assert one("a\r\nb\r\nc", Edit("replace", target="a\nb", text="x\ny"))[0] == "x\r\ny\r\nc"


def test_similar_lines_are_taken_only_when_clearly_unique() -> None:
    text = "# Rules\n\n- Always round the total to two digits.\n- Write the currency first.\n"
    edit = Edit("replace", target="- Always round the totals to 2 digits.", text="- Never round.")
    result, report = one(text, edit)
    assert (report.match, "similarity" in report.reason) == ("similar", True)
    assert result == "# Rules\n\n- Never round.\n- Write the currency first.\n"
    twice = text + "- Always round the total to six digits.\n"
    assert "resembles 2 passages" in rejected(twice, edit)
    assert rejected(text, Edit("delete", target="- Write the sum last.")).startswith("not found: ")


def test_similar_windows_that_overlap_are_ambiguous_when_equally_good() -> None:
    text = "".join(f"- Round the amount of column {n} to two digits.\n" for n in (1, 2, 3))
    anchor = "- Round the amount of column 8 to two digits.\n- Round the amount of column 9 to two digits."
    assert "resembles 2 passages" in rejected(text, Edit("delete", target=anchor))


def test_similar_window_spans_lines() -> None:
    text = "One two three four.\n\nFive six seven eight nine ten.\n\nEnd of it.\n"
    edit = Edit("add", after="One two three four!\nFive six seven eight nine ten!", text="New.")
    assert applied(text, edit) == text.replace("\n\nEnd", "\n\nNew.\n\nEnd")


def test_replacing_an_indented_line_keeps_its_indentation_once() -> None:
    edit = Edit("replace", target="  - sub  item", text="  - other")
    assert applied("- a\n    - sub item\n", edit) == "- a\n    - other\n"


@pytest.mark.parametrize(
    ("before", "after", "text", "expected"),
    [
        ("- a\n- b\n", "- a", "- x", "- a\n- x\n- b\n"),
        ("1. a\n2. b", "2. b", "3. x\n", "1. a\n2. b\n3. x"),
        ("- a\n\nPara.\n", "- a", "- x", "- a\n- x\n\nPara.\n"),
        ("# H\n- a\n", "# H", "Para.", "# H\n\nPara.\n\n- a\n"),
        ("One.\nTwo.\n", "One", "New.", "One.\n\nNew.\n\nTwo.\n"),
        ("One.\n\nTwo.\n", "One.\n", "New.", "One.\n\nNew.\n\nTwo.\n"),
        ("One.\r\n\r\nTwo.\r\n", "One.", "a\nb", "One.\r\n\r\na\r\nb\r\n\r\nTwo.\r\n"),
        ("| a |\n|---|\n| 1 |\n\nEnd", "| 1 |", "| 2 |", "| a |\n|---|\n| 1 |\n| 2 |\n\nEnd"),
        ("```\nx = 1\ny = 2\n```\n", "x = 1", "z = 3", "```\nx = 1\nz = 3\ny = 2\n```\n"),
        ("```\nx\n```\nEnd\n", "x\n```", "New.", "```\nx\n```\n\nNew.\n\nEnd\n"),
        ("````\n```\nx\n```\ny\n````\n", "x", "z", "````\n```\nx\nz\n```\ny\n````\n"),
        ("- a\n  more\n- b\n", "more", "- x", "- a\n  more\n- x\n- b\n"),
        ("One.", None, "New.", "One.\n\nNew."),
        ("One.  \n\n", None, "New.", "One.  \n\nNew.\n\n"),
        ("- a\n", " ", "- b\n- c\n", "- a\n- b\n- c\n"),
        ("", None, "# New\n", "# New\n"),
        ("\ufeff", None, "# New", "\ufeff# New\n"),
        (FRONT, None, "# New", FRONT + "\n# New\n"),
        ("---\na: 1\n---", None, "New", "---\na: 1\n---\n\nNew"),
        (LOCK, None, "New.", LOCK + "\n\nNew."),
        ("Before.\n" + LOCK, "Before.", "New.", "Before.\n\nNew.\n\n" + LOCK),
        ("{a} 🎉 %s\n", "🎉", "{b}", "{a} 🎉 %s\n\n{b}\n"),
    ],
)
def test_added_text_is_a_block_of_its_own(before: str, after: str | None, text: str, expected: str) -> None:
    assert applied(before, Edit("add", after=after, text=text)) == expected


@pytest.mark.parametrize(
    ("before", "target", "expected"),
    [
        ("a\nb\nc\n", "b", "a\nc\n"),
        ("a\r\n  b \r\nc\r\n", "b", "a\r\nc\r\n"),
        ("a\nb\nc\n", "b\n", "a\nc\n"),
        ("a\nb", "b", "a\n"),
        ("a big dog\n", "big ", "a dog\n"),
        ("\ufeffa\nb\n", "a", "\ufeffb\n"),
        (FRONT + "a\nb\n", "a", FRONT + "b\n"),
    ],
)
def test_deleting_a_whole_line_takes_its_newline(before: str, target: str, expected: str) -> None:
    assert applied(before, Edit("delete", target=target)) == expected
    assert applied(before, Edit("replace", target=target, text="")) == expected


def test_replacement_with_sloppy_newlines_does_not_join_or_split_lines() -> None:
    assert applied("a\nb\nc\n", Edit("replace", target="b\n", text="x")) == "a\nx\nc\n"
    assert applied("a\nb\nc\n", Edit("replace", target="b", text="x\n")) == "a\nx\nc\n"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Edit("delete", target="{pay}"), "lies in a locked region"),
        (Edit("replace", target="Never {pay}.", text="Pay."), "lies in a locked region"),
        (Edit("delete", target="lock -->\nAfter"), "reaches into it"),
        (Edit("delete", target="Before.\n<!-- skilltune:lock -->"), "reaches into it"),
        (Edit("add", after="Never {pay}.", text="x"), "lies in a locked region"),
        (Edit("add", after="Never  {pay}", text="x"), "locked region"),
        (Edit("delete", target="Round numbers."), "lies in the frontmatter"),
        (Edit("add", after="name: totals", text="x"), "lies in the frontmatter"),
        (Edit("delete", target="Slow text."), "lies in protected text"),
        (Edit("add", text=LOCK), "contains a lock marker"),
        (Edit("add", text="<!--skilltune:lock-->"), "contains a lock marker"),
        (Edit("add", text="\ud800"), "not valid Unicode"),
        (Edit("add", text=" \n"), "no text"),
        (Edit("add"), "no text"),
        (Edit("delete"), "names no text"),
        (Edit("replace", target="After.", text="After."), "changes nothing"),
        (Edit("replace", target="After.", text=None), "no text"),
        (cast(Any, Edit)("append", text="x"), "unknown op 'append'"),
    ],
)
def test_what_is_protected_or_empty_is_rejected_with_the_reason(edit: Edit, reason: str) -> None:
    text = f"{FRONT}Before.\n{LOCK}\nAfter.\n\nSlow text.\n"
    assert reason in rejected(text, edit, protect=["Slow text.", "", "not in the document"])


def test_an_anchor_that_also_occurs_in_the_frontmatter_means_the_body() -> None:
    assert (
        applied(FRONT + "Round numbers.\n", Edit("replace", target="Round numbers.", text="Cut.")) == FRONT + "Cut.\n"
    )


def test_a_line_that_ends_inside_a_lock_takes_no_addition() -> None:
    text = "Before <!-- skilltune:lock --> a\nb <!-- /skilltune:lock -->\n"
    assert "ends inside a locked region" in rejected(text, Edit("add", after="Before", text="x"))


def test_an_open_lock_runs_to_the_end() -> None:
    text = "Before.\n<!-- skilltune:lock -->\nrest\n"
    assert "locked" in rejected(text, Edit("add", text="x"))
    assert applied(text, Edit("add", after="Before.", text="x")).endswith(text[8:])


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("", Edit("add", text="---\nname: x\n---\nbody")),
        ("---\nname: x\n", Edit("add", text="---\nbody")),
        ("x\n---\na: 1\n---\n", Edit("delete", target="x")),
    ],
)
def test_an_edit_cannot_make_frontmatter(text: str, edit: Edit) -> None:
    assert "frontmatter" in rejected(text, edit)


def test_an_edit_cannot_complete_a_lock_marker() -> None:
    text = "a <!-- skillXtune:lock --> b"
    assert "locked" in rejected(text, Edit("delete", target="X"))


def test_protected_text_at_the_end_can_be_followed() -> None:
    text = "a\n\n## Slow\ntext\n\n\n"
    assert applied(text, Edit("add", text="New."), protect=["## Slow\ntext\n\n\n"]) == text + "New.\n"


def test_deleting_a_line_leaves_a_newline_that_is_protected() -> None:
    assert applied("a\nSLOW\n", Edit("delete", target="a"), protect=["\nSLOW"]) == "\nSLOW\n"


def test_limit_is_enforced_on_what_is_applied() -> None:
    """Pitfall 9: 6 applied under a budget of 4. A rejected edit takes no place in the budget."""
    edits = [Edit("delete", target="nowhere"), *(Edit("add", text=f"- {i}") for i in range(4))]
    result = apply(Skill.parse("- a\n"), edits, limit=2)
    assert result.skill.text == "- a\n- 0\n- 1\n"
    assert [r.status for r in result.reports] == ["rejected", "applied", "applied", "rejected", "rejected"]
    assert "edit budget of 2" in result.reports[3].reason
    assert not apply(Skill.parse("a"), edits, limit=0).changed


def test_max_tokens_refuses_growth_but_never_shrinking() -> None:
    text = "x" * 400 + "\n\nlast line\n"
    assert "limit of 50" in rejected(text, Edit("add", text="more"), max_tokens=50)
    assert applied(text, Edit("delete", target="last line"), max_tokens=50) == "x" * 400 + "\n\n"
    assert "limit of 104" in rejected(text, Edit("add", text="more"), max_tokens=104)


def test_each_edit_sees_the_document_that_the_previous_one_left() -> None:
    edits = [
        Edit("add", after="a", text="- new rule"),
        Edit("replace", target="rule", text="law"),
        Edit("delete", target="- b"),
        Edit("add", text="- end"),
        Edit("delete", target="- new law\n- end"),
    ]
    result = apply(Skill.parse("- a\n- b\n"), edits)
    assert [r.status for r in result.reports] == ["applied"] * 5
    assert [r.overlaps for r in result.reports] == [(), (0,), (), (), (0, 1, 3)]
    assert result.skill.text == "- a\n"


def test_neighbours_are_not_overlaps() -> None:
    edits = [Edit("add", text="- b"), Edit("add", text="- c"), Edit("delete", target="- c")]
    assert [r.overlaps for r in apply(Skill.parse("- a\n"), edits).reports] == [(), (), (1,)]


def test_a_patch_that_cancels_itself_has_changed_nothing() -> None:
    result = apply(Skill.parse("a\n"), [Edit("add", text="b"), Edit("replace", target="a\n\nb", text="a")])
    assert [r.status for r in result.reports] == ["applied", "applied"]
    assert (result.skill.text, result.changed) == ("a\n", False)


def test_undo_refuses_another_document() -> None:
    result = apply(Skill.parse("a\n"), [Edit("add", text="b"), Edit("delete", target="zz")])
    assert undo(result.skill, result.reports[1]) == result.skill
    with pytest.raises(ValueError, match="cannot be undone"):
        undo(Skill.parse("other"), result.reports[0])


@given(
    st.sampled_from(["- a", "Two words.", "- x\n- y"]),
    st.sampled_from(["# Desk\n", "# Desk\n\n- last", "One.\r\n\r\nTwo.\r\n"]),
)
def test_an_edit_and_its_inverse_leave_the_same_lines(text: str, document: str) -> None:
    skill, first = Skill(document), document.split()[-1]
    for edit in (Edit("add", text=text), Edit("replace", target=first, text=text), Edit("delete", target=first)):
        done = apply(skill, [edit])
        [report] = done.reports
        back = inverse(edit.op, report.removed, report.inserted, "why")
        assert back
        assert back.why == "why"
        assert apply(done.skill, [back]).skill.text.split() == document.split()
    assert inverse("rewrite", document, text, "why") is None


def test_rewrite_replaces_the_body_and_nothing_else() -> None:
    text = f"{FRONT}Old.\r\n{LOCK}\n"
    skill = Skill.parse(text)
    new = f"New.\n\n{LOCK}\nMore."
    assert apply(skill, [Edit("rewrite", text=new)]).skill.text == f"{FRONT}{new}\n"
    assert apply(skill, [Edit("rewrite", text=FRONT + new)]).skill.text == f"{FRONT}{new}\n"
    assert applied("\ufeffa\r\nb", Edit("rewrite", text="c\nd\n")) == "\ufeffc\r\nd"


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("New.", "missing, changed or out of order"),
        (f"two {LOCK} one", "missing, changed or out of order"),
        (f"one {LOCK.replace('pay', 'sue')} two", "missing, changed or out of order"),
        (f"one {LOCK} two {LOCK}", "change what is locked"),
        (f"---\nname: other\n---\none {LOCK} two", "change the frontmatter"),
        ("", "empty"),
        (f"one {LOCK} two", "changes nothing"),
    ],
)
def test_rewrite_rechecks_what_is_protected(new: str, reason: str) -> None:
    assert reason in rejected(f"{FRONT}one {LOCK} two", Edit("rewrite", text=new), protect=["two"])


TEXT = "# Rules\n\n- Round the total.\n- Write the currency.\n- Sum the lines.\n"


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (Edit("add", text="- a"), Edit("add", text="-  a"), "the same edit"),
        (Edit("add", text="- a"), Edit("add", after="currency.", text="- a"), "same text"),
        (
            Edit("replace", target="- Round the total.", text="- Round the total.\n- a"),
            Edit("add", text="- a"),
            "same text",
        ),
        (Edit("add", after="# Rules", text="A."), Edit("add", after="# Rules\n", text="B."), "same anchor"),
        (Edit("delete", target="- Round the total."), Edit("replace", target="Round", text="Cut"), "change the same"),
        (Edit("delete", target="Write the currency."), Edit("add", after="currency", text="- b"), "anchored"),
        (Edit("add", text="- Sum the lines."), Edit("delete", target="Sum the lines."), "no longer applies"),
        (Edit("add", text="- a"), Edit("delete", target="nowhere"), "cannot be applied: not found"),
        (Edit("rewrite", text="New."), Edit("add", text="- a"), "rewrite stands alone"),
        (Edit("add", text="- a"), Edit("add", text="- b"), ""),
        (Edit("delete", target="- Sum the lines."), Edit("add", text="- b"), ""),
        (Edit("replace", target="total", text="sum"), Edit("delete", target="- Write the currency."), ""),
    ],
)
def test_conflicts_are_named_in_both_orders(a: Edit, b: Edit, reason: str) -> None:
    skill = Skill.parse(TEXT)
    for said in (conflict(skill, a, b), conflict(skill, b, a)):
        assert reason in said
        assert bool(said) == bool(reason)


@pytest.mark.parametrize(
    ("edit", "as_it_is"),
    [
        (Edit("replace", target="- a", text="- a\n- b"), Edit("add", after="- a", text="- b")),
        (Edit("replace", target="- a\n", text="\n- a\r\n\r\n- b\n"), Edit("add", after="- a\n", text="- b")),
        (Edit("replace", target="- a", text="- ab\n- c"), None),
        (Edit("replace", target="- a", text="- a and more"), None),
        (Edit("replace", target="- a", text="- b\n- a"), None),
        (Edit("add", after="- a", text="- a\n- b"), None),
        (Edit("delete", target="- a"), None),
    ],
)
def test_a_replacement_that_only_goes_on_below_is_an_addition(edit: Edit, as_it_is: Edit | None) -> None:
    assert addition(edit) == (as_it_is or edit)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("- a", True),
        ("  - a  \n\n-  b", True),
        ("- b\n- a", False),
        ("- a\n- c", False),
        ("a", False),
        ("", False),
        (" \n", False),
    ],
)
def test_a_text_says_what_stands_in_it_line_by_line(part: str, said: bool) -> None:
    assert says("# Head\r\n\r\n- a\r\n- b\n- cc", part) == said


PIECES = [
    "# Head\n",
    "- rule {x}\n",
    "- Always round the total to two digits.\n",
    "  nested\r\n",
    "Text 🎉 %s",
    "\n",
    "\r\n",
    " ",
    "```\n",
    "| a | b |\n",
    "---\n",
    "name: x\n",
    LOCK,
    "<!-- skilltune:lock -->",
    "<!-- /skilltune:lock -->",
    "SLOW\nsection\n",
    "\ufeff",
    "a",
]
fragments = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)
documents = st.builds(
    lambda bom, front, body: bom + front + body,
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["", FRONT, FRONT.replace("\n", "\r\n"), "---\nname: x\n---", "---\n"]),
    fragments,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[Edit]]:
    text = draw(documents)

    def anchor() -> str | None:
        start = draw(st.integers(0, len(text)))
        part = text[start : draw(st.integers(start, min(len(text), start + 40)))]
        return draw(
            st.sampled_from([part, part.replace("\r\n", "\n"), part.replace(" ", "  "), part + "x", part, None])
        )

    ops: st.SearchStrategy[Op] = st.sampled_from(["add", "replace", "delete", "rewrite"])
    new = st.lists(st.sampled_from([p for p in PIECES if "lock" not in p]), min_size=1, max_size=3).map("".join)
    new |= fragments | st.just(text) | st.just(text[len(Skill.parse(text).frontmatter) :] + "more")
    return text, [Edit(draw(ops), anchor(), anchor(), draw(new)) for _ in range(draw(st.integers(1, 4)))]


def replayed(skill: Skill, result: Applied) -> str:
    text = skill.text
    for report in result.reports:
        if report.status == "applied":
            assert text[report.start : report.start + len(report.removed)] == report.removed
            text = text[: report.start] + report.inserted + text[report.start + len(report.removed) :]
    return text


@given(cases(), st.none() | st.integers(0, 3), st.none() | st.integers(0, 40))
def test_any_edits_on_any_document_change_only_what_they_report(
    case: tuple[str, list[Edit]], limit: int | None, max_tokens: int | None
) -> None:
    text, edits = case
    skill, protect = Skill.parse(text), ["SLOW\nsection\n", "rule {x}"]
    result = apply(skill, edits, protect=protect, limit=limit, max_tokens=max_tokens)
    new = result.skill

    assert [report.edit for report in result.reports] == edits
    assert replayed(skill, result) == new.text
    assert result.changed == (new.text != text)
    assert all(bool(report.reason) for report in result.reports if report.status == "rejected")
    done = [report for report in result.reports if report.status == "applied"]
    assert all(report.removed != report.inserted for report in done)
    assert limit is None or len(done) <= limit
    assert max_tokens is None or new.tokens <= max(max_tokens, skill.tokens)

    assert new.text.startswith(skill.frontmatter)
    assert new.frontmatter.rstrip() == skill.frontmatter.rstrip()
    assert new.text.startswith("\ufeff") == text.startswith("\ufeff")
    assert [new.text[a:b] for a, b in new.locked] == [text[a:b] for a, b in skill.locked]
    assert all(new.text.count(part) >= min(1, text.count(part)) for part in protect)
    new.text.encode()

    for report in reversed(result.reports):
        new = undo(new, report)
    assert new.text == text


@given(cases())
def test_conflicts_agree_with_what_apply_does(case: tuple[str, list[Edit]]) -> None:
    text, edits = case
    skill = Skill.parse(text)
    for a in edits:
        for b in edits:
            said = conflict(skill, a, b)
            assert bool(said) == bool(conflict(skill, b, a))
            if not said:
                assert {report.status for report in apply(skill, [a, b]).reports} == {"applied"}


MEGABYTE = 10**6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "edit", "reason"),
    [
        ("a" * MEGABYTE, Edit("delete", target="a" * (MEGABYTE // 2)), "200 times or more"),
        ("a " * (MEGABYTE // 2), Edit("delete", target="a  a"), "200 times or more"),
        (
            "- Round amount 1 to two digits\n" * 30_000,
            Edit("delete", target="- Round amounts 1 to 2 digits"),
            "too many",
        ),
        ("- some line\n" * 80_000, Edit("delete", target="- other\n" * 99), "too long"),
        ("short", Edit("delete", target="long " * (MEGABYTE // 5)), "too long"),
        ("word " * (MEGABYTE // 5), Edit("delete", target="wrd " * 40), "not found"),
        ("---\n---" + " " * MEGABYTE + "x", Edit("add", text="<!--" + " " * MEGABYTE + "x"), ""),
    ],
    ids=["overlapping", "spaced", "alike", "many lines", "long anchor", "one line", "almost markers"],
)
def test_a_megabyte_is_decided_quickly(text: str, edit: Edit, reason: str) -> None:
    assert reason in one(text, edit)[1].reason
