"""Patterns from files mean what Python's `re` says, and end in time."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.errors import JudgeError, UsageError
from skilltune.rollout import Rollout, Trajectory
from skilltune.samples import Sample
from skilltune.scorers import build, evaluate
from skilltune.scorers.patterns import find_all

PARTS = [
    "a",
    "b",
    "x+",
    "{",
    "}",
    "{e}",
    "{1}",
    "{,2}",
    "{1,",
    "{e<=1}",
    "[ab]",
    "[^b]",
    "[[:alpha:]]",
    "[]a]",
    "[a[b]",
]
PARTS += [
    "(a|b)",
    "(?:ab)*",
    r"\{",
    r"\[",
    r"\d",
    r"\w",
    r"\bab\b",
    "^",
    "$",
    r"\N{DIGIT ONE}",
    "[a&&b]",
    "[a--b]",
    ".",
    "?",
]


def found(pattern: str, text: str) -> list[str]:
    return [match.group() for match in re.finditer(pattern, text)]


@given(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), st.text("ab1x{}[]:alph,e<=&-", max_size=12))
@settings(max_examples=300)
def test_a_pattern_means_what_re_says(pattern: str, text: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        try:
            expected = found(pattern, text)
        except re.error:
            with pytest.raises(re.error):
                find_all(pattern, text)
        else:
            assert find_all(pattern, text) == expected


def test_comments_of_a_pattern_are_no_part_of_it() -> None:
    pattern = "(?x) a # a list [ of {e}\n [b[] \\# # and the end ["
    assert find_all(pattern, "ab# a[#") == found(pattern, "ab# a[#") == ["ab#", "a[#"]


@pytest.mark.parametrize("pattern", [r"\p{L}", r"\X", "(?|a|b)", "(?R)", r"\L<words>", "(?V1)a", "(a", "*"])
def test_what_re_does_not_take_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="not a valid regular expression"):
        build({"type": "regex", "pattern": pattern}).check(Sample(id="s1", input="?"))


@pytest.mark.anyio
@pytest.mark.parametrize("pattern", ["(a|aa)+$", r"\A(?:a|aa)+\Z"])
async def test_pitfall_35_a_pattern_that_runs_out_of_time_names_itself_and_the_sample(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.scorers.patterns.LIMIT_S", 0.05)
    sample, began = Sample(id="s1", input="?", checks=({"type": "regex", "pattern": pattern},)), time.process_time()
    scorer = build("checks")

    def answered(text: str) -> Rollout:
        return Rollout("s1", "", 0, Trajectory(text), None)

    with pytest.raises(JudgeError, match=r'sample "s1": the pattern .* did not end within') as told:
        await evaluate(scorer, sample, answered("a" * 3_000 + "b"))
    assert repr(pattern) in str(told.value)
    assert "takes too long" in told.value.systemic
    assert time.process_time() - began < 5
    await evaluate(scorer, sample, answered("another answer is scored"))
