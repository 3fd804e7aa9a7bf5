"""The YAML block of a SKILL.md as people write it, and as somebody writes it who wants to hold us up."""

import time

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skilltune.frontmatter import READERS, BadFrontmatter, read_block
from skilltune.skill import Skill

HEAD = "name: desk\ndescription: Sorts tickets."


def folder(text: str) -> Skill:
    return Skill(text, "desk", folder=True)


def problem(text: str) -> str:
    """The only problem of a skill folder with that SKILL.md."""
    (said,) = folder(text).check()
    return said


@pytest.mark.parametrize(
    "line",
    [
        "version: 2.0.1",
        "argument-hint: '[ticket]'",
        "user-invocable: false",
        "disable-model-invocation: true",
        "model: haiku",
        "context: fork",
        "agent: Explore",
        "hooks: {Stop: []}",
        "when_to_use: for tickets",
        "globs: '*.md'",
        "applyTo: '**'",
    ],
)
def test_keys_that_an_agent_documents_are_noted_with_their_reader(line: str) -> None:
    key = line.partition(":")[0]
    skill = folder(f"---\n{HEAD}\n{line}\n---\n# Desk\n")
    assert skill.check() == []
    (said,) = skill.notes()
    assert f"{key} ({READERS[key]})" in said


@pytest.mark.parametrize(
    "line", ["license: MIT", "compatibility: any", "metadata: {author: me}", "allowed-tools: Read"]
)
def test_the_standards_own_keys_need_no_note(line: str) -> None:
    skill = folder(f"---\n{HEAD}\n{line}\n---\n")
    assert (skill.check(), skill.notes()) == ([], [])


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("modell", "model"),
        ("argument_hint", "argument-hint"),
        ("licence", "license"),
        ("user-invokable", "user-invocable"),
    ],
)
def test_a_misspelt_key_is_a_problem_that_names_the_right_one(key: str, meant: str) -> None:
    assert problem(f"---\n{HEAD}\n{key}: x\n---\n").endswith(f"unknown key {key!r}: did you mean {meant}?")


@pytest.mark.slow
def test_keys_that_nobody_documents_are_one_problem_however_many() -> None:
    assert "unknown key 'rank'" in problem(f"---\n{HEAD}\nrank: 1\n---\n")
    began = time.process_time()
    said = problem(f"---\n{HEAD}\n" + "".join(f"k{n}: 1\n" for n in range(5000)) + "---\n")
    assert "unknown 5,000 keys 'k0', 'k1'" in said
    assert len(said) < 300
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"---\n{HEAD}\n\n# Desk\n", "begins in line 1 is never closed: put a line '---' after line 3"),
        (f"---\r\n{HEAD}\r\nmetadata:\r\n  a: b\r\n# Desk\r\n", "never closed: put a line '---' after line 5"),
        (f"---\n{HEAD}\n ---\n# Desk\n", "never closed: line 4 must be '---' and nothing else"),
        (f"---\n{HEAD}\n-----\n# Desk\n", "never closed: line 4 must be '---' and nothing else"),
        (f"---\n{HEAD}\n\n# Desk\n\nSort them.\n\n---\n", "closing '---' line"),
        (f"\n---\n{HEAD}\n---\n", "begins in line 2, but agents look for it in line 1"),
        (f"\ufeff\n\n---\n{HEAD}\n---\n", "begins in line 3"),
        (f"  ---\n{HEAD}\n---\n", "Line 1 holds blanks or invisible characters"),
        (f"\ufeff\u200b---\n{HEAD}\n---\n", "Line 1 holds blanks or invisible characters"),
    ],
)
def test_a_block_that_agents_do_not_find_says_which_line_to_mend(text: str, says: str) -> None:
    assert says in problem(text)
    assert says in " ".join(Skill(text).check())  # a document would be trained with the block as its text


def test_a_plain_document_may_begin_with_a_rule() -> None:
    assert Skill("---\n\nWelcome. Sort the tickets.\n").check() == []
    assert Skill("\n\n# Desk\n").check() == []


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            "name: desk\ndescription: Use when: a ticket comes",
            'line 3 holds a second ": ": put the value of description',
        ),
        ("name: desk\ndescription: x\nmetadata:\n\ta: b", "line 5 is indented by a tab: use blanks"),
        ("name: desk\ndescription: 'Sorts tickets", "the quote that opens in line 3 is never closed"),
        ("name: desk\ndescription: x\nargument-hint: [a] [b]", "line 4: expected <block end>"),
        ("name: desk\ndescription: @home", "put the value of description in quotes"),
        ("name: desk\ndescription: *stars*", "put the value of description in quotes"),
        ("name: desk\ndescription: x\nname: other", "the key 'name' twice, in line 2 and in line 4"),
        ("name: desk\ndescription: x\nmetadata: {a: 1, a: 2}", "the key 'a' twice"),
        ("name: desk\ndescription: a\x1b[31mb", "line 3 holds a control character (U+001B)"),
        ("name: desk\ndescription: !!bool perhaps", "put the value in quotes"),
        ("name: desk\ndescription: 2024-02-31", "not valid YAML"),
        ("name: desk\ndescription: !!python/name:os.system x", "could not determine a constructor"),
    ],
)
def test_a_block_that_is_no_yaml_says_the_line_and_the_remedy(lines: str, says: str) -> None:
    assert says in problem(f"---\n{lines}\n---\n# Desk\n")


def bomb() -> str:
    """Nine levels of nine aliases: 387 million values in 500 bytes."""
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    rows += [
        f"{name}: &{name} [{', '.join([f'*{former}'] * 9)}]"
        for former, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (bomb(), "more than 10 YAML aliases (*name, line 4)"),
        ("name: " + "[" * 50_000, "nested more than 20 levels deep in line 2"),
        ("\n".join(" " * n + "a:" for n in range(300)), "nested more than 20 levels deep in line 22"),
        ("? " * 30_000, "nested more than 20 levels"),
        ("description: " + "x" * 70_000, "more than the 65,536 that are read"),
        ("name: " + "9" * 60_000, "not valid YAML"),
        ("name: " + ":".join(["1"] * 5_000) + ".5", "not valid YAML"),
    ],
)
def test_a_block_that_costs_too_much_is_refused_soon(lines: str, says: str) -> None:
    began = time.process_time()
    assert says in problem(f"---\n{lines}\n---\n")
    assert time.process_time() - began < 3


def test_an_alias_that_holds_itself_is_read_as_any_other() -> None:
    assert "needs a name" in problem("---\nname: &a [*a]\ndescription: x\n---\n")


def test_a_byte_order_mark_is_noted() -> None:
    skill = folder(f"\ufeff---\r\n{HEAD}\r\n---\r\n# Desk\r\n".replace("desk\ndesc", "desk\r\ndesc"))
    assert skill.check() == []
    assert "byte order mark" in skill.notes()[0]


def test_an_empty_file_and_one_of_frontmatter_alone() -> None:
    assert "has no frontmatter" in problem("")
    assert folder(f"---\n{HEAD}\n---\n").check() == []
    assert Skill("").check() == []


@settings(max_examples=300)
@given(st.text(st.sampled_from("abn:-#'\"[]{}&*!|>%@,?\n\t 1.~\x00\u2028")))
@example("&a [*a]")
def test_any_block_is_read_or_refused_in_words(lines: str) -> None:
    block = Skill(f"---\n{lines}\n---\n").frontmatter
    try:
        data = read_block(block)
    except BadFrontmatter as error:
        assert str(error).startswith("The frontmatter ")
        assert "\n" not in str(error)
    else:
        assert data == (yaml.safe_load("\n".join(block.split("\n")[1:-2])) or {})
    Skill(block, "desk", folder=True).check()
