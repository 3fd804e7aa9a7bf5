"""The scorers of SearchQA, DocVQA and OfficeQA against the published definitions, on generated answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from skilltune.benchmarks import docvqa, officeqa, searchqa
from skilltune.benchmarks.figures import figures, matches
from skilltune.samples import Sample

WORDS = st.text(alphabet=string.ascii_letters[:6] + "AaTthe n.,-'\"!$éß\t 012", max_size=24)


# -- SQuAD, whose script is written out here


def squad_normal(text: str) -> str:
    kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_f1(prediction: str, truth: str) -> float:
    left, right = squad_normal(prediction).split(), squad_normal(truth).split()
    same = sum((Counter(left) & Counter(right)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


LEFT = WORDS.filter(squad_normal)


@given(LEFT, st.lists(LEFT, min_size=1, max_size=3))
def test_searchqa_is_squads_script_wherever_words_are_left(got: str, accepted: list[str]) -> None:
    score = searchqa.grade(Sample(id="1", input="?", target=accepted), f"<answer>{got}</answer>")
    assert score.metrics["em"] == max(float(squad_normal(got) == squad_normal(text)) for text in accepted)
    assert score.metrics["f1"] == pytest.approx(max(squad_f1(got, text) for text in accepted))
    assert score.metrics["contains"] == max(float(squad_normal(text) in squad_normal(got)) for text in accepted)


@given(st.lists(st.sampled_from(["the", "A", "an", ".", "'", "!", "\t"])).map(" ".join), WORDS.filter(squad_normal))
def test_searchqa_never_counts_an_empty_text_as_equal(got: str, accepted: str) -> None:
    assert not squad_normal(got)
    score = searchqa.grade(Sample(id="1", input="?", target=[accepted]), f"<answer>{got}</answer>")
    assert (score.value, score.soft) == (0.0, 0.0)


# -- ANLS, by the textbook distance


def distance(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


SHORT = st.text(alphabet="abAB 1é", max_size=9)


@given(SHORT, st.lists(SHORT.filter(str.strip), min_size=1, max_size=3))
def test_docvqa_is_anls_and_exactly_one_half_is_nothing(got: str, accepted: list[str]) -> None:
    assume(got.strip())
    said, best = " ".join(got.lower().split()), Fraction(0)
    for text in (" ".join(text.lower().split()) for text in accepted):
        share = Fraction(distance(said, text), max(len(said), len(text)))
        best = max(best, 1 - share if share < Fraction(1, 2) else Fraction(0))
    score = docvqa.grade(Sample(id="1", input="?", target=accepted), f"<answer>{got}</answer>")
    assert score.partial == pytest.approx(float(best))
    assert score.value == float(best >= Fraction(999, 1000))


@pytest.mark.parametrize("length", [2, 4, 6, 10, 1000])
def test_a_distance_of_one_half_scores_nothing_and_one_edit_less_does(length: int) -> None:
    half = "a" * (length // 2)
    for changes, value in ((length // 2, 0.0), (length // 2 - 1, 1 - (length / 2 - 1) / length)):
        got = half + "b" * changes + "a" * (length // 2 - changes)
        score = docvqa.grade(Sample(id="1", input="?", target=["a" * length]), got)
        assert score.partial == pytest.approx(value), (length, changes)


# -- OfficeQA

NUMBERS = st.decimals(min_value=-(10**9), max_value=10**9, places=2).filter(lambda n: not 1900 <= n <= 2100)
SIGNS = ["", "$", "US$ ", "€"]
UNITS = {"thousand": ["thousand", "Thousands", "k"], "million": ["million", "mn", "M"], "billion": ["billion", "bn"]}


def written(number: Decimal) -> list[str]:
    """The ways to write a number that mean the same."""
    size = abs(number)
    plain = [f"{size}", f"{size:,}", f"{size:.4f}", *([f"{size:.0f}"] if size == int(size) else [])]
    signed = [f"{sign}{text}" for sign in SIGNS for text in plain]
    if number >= 0:
        return [*signed, *(f"{text}%" for text in plain), *(f"{text} percent" for text in plain)]
    ways = [f"{before}{text}{after}" for text in signed for before, after in (("-", ""), ("−", ""), ("(", ")"))]
    return [way for way in ways if not (way == f"({size:.0f})" and 1900 <= size <= 2100)]  # "(1950)" is a year


@given(NUMBERS | st.integers(-2100, -1900).map(Decimal), st.data())
def test_a_number_may_be_written_in_any_way_and_no_other_number_counts(number: Decimal, data: st.DataObject) -> None:
    ways = written(number)
    expected, got = data.draw(st.sampled_from(ways)), data.draw(st.sampled_from(ways))
    assert [figure.value for figure in figures(got)] == [number]
    assert matches(expected, got)
    assert matches(expected, f"In 1977 it was {got}.")
    other = data.draw(NUMBERS.filter(lambda found: found != number))
    assert not matches(expected, data.draw(st.sampled_from(written(other))))
    assert not matches(expected, f"{got} and {got}"), "the count must be the same"


@given(NUMBERS, st.sampled_from([0.0, 0.001, 0.01, 0.05]), st.sampled_from([-1, 1]))
def test_the_tolerance_is_relative_to_the_expected_number_and_includes_its_end(
    number: Decimal, tolerance: float, side: int
) -> None:
    end = number + side * Decimal(str(tolerance)) * abs(number)
    assume(not any(1900 <= value <= 2101 for value in (end, end + side)))
    assert matches(f"{number}", f"{end}", tolerance)
    assert not matches(f"{number}", f"{end + side * Decimal('0.00001')}", tolerance), "0 has no tolerance at all"


@given(st.lists(NUMBERS, min_size=2, max_size=4), st.sampled_from([", ", " and ", "; ", "\t", " / "]))
def test_a_list_is_compared_in_order(numbers: list[Decimal], between: str) -> None:
    expected = f"[{', '.join(map(str, numbers))}]"
    assert matches(expected, between.join(f"{number:,}" for number in numbers))
    assert matches(expected, between.join(map(str, numbers[::-1]))) == (numbers == numbers[::-1])
    assert not matches(expected, between.join(map(str, numbers[:-1])))
    assert not matches(expected, between.join(map(str, [*numbers, 5])))


@given(NUMBERS.filter(bool), st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.data())
def test_units_agree_if_both_are_stated_and_never_multiply(
    number: Decimal, unit: str, other: str, data: st.DataObject
) -> None:
    mine, theirs = (data.draw(st.sampled_from(UNITS[name])) for name in (unit, other))
    assert matches(f"{number} {mine}", f"{number} {theirs}") == (unit == other)
    assert matches(f"{number} {mine}", f"{number}")
    assert matches(f"{number}", f"{number}{theirs}")
    assert not matches(f"{number} {mine}", f"{number * 1000}")


@given(st.integers(1900, 2100), NUMBERS)
def test_years_are_dropped_unless_one_is_expected(year: int, number: Decimal) -> None:
    for got in (f"{number} in {year}", f"{year}: {number}", f"{number} ({year})", f"{year} - {year}: {number}"):
        assert matches(f"{number}", got), got
    assert matches(f"{year}", f"{year}")
    assert not matches(f"{year}", f"{year} and {year}")
    assert not matches(f"{year}", f"{number}")


@pytest.mark.parametrize(
    ("expected", "got", "equal"),
    [
        ("10-20", "10 - 20", True),
        ("10–20", "10 - 20", True),
        ("-20", "- 20", True),
        ("10, -20", "10 -20", True),
        ("10% - 20%", "10-20", True),
        ("5", "(5)", False),
        ("-5", "( 5 )", True),
        ("1,234", "1234", True),
        ("1, 234", "1,234", False),
        ("1899", "1900", False),
        ("2101", "2,101", True),
        ("-1,950 million", "In 1977 it was -1,950 million", True),
        ("(1,950)", "(1,950) (FY 1977)", True),
        ("-1950 million", "(1950) million", True),
        ("-1950 million", "$(1950) million", True),
        ("-1950", "$ (1950)", True),
        ("-1950", "(1950)%", True),
        ("5", "5 million (1950) (million is the unit)", True),
        ("5", "5 and -1950", False),
        ("7", "The loss was (2,000) and the answer is 7", False),
        ("12.5 (1977)", "12.5, 1977", True),
        ("1977", "(1977)", True),
        ("10-20", "10 million - 20 million", True),
        ("10-20", "$10 - $20", True),
        ("10-20", "$10 million - US$ 20 million", True),
        ("10, -20", "10 million, - 20 million", True),
        ("-20", "- $20", True),
    ],
)
def test_marks_between_and_before_numbers(expected: str, got: str, equal: bool) -> None:
    assert matches(expected, got) == equal


@given(st.text("0123456789.,-()$% mk\n<>/FINAL_ASWER", max_size=300), NUMBERS)
def test_any_answer_has_a_score_and_a_larger_tolerance_never_lowers_it(got: str, number: Decimal) -> None:
    score = officeqa.grade(Sample(id="1", input="?", target=f"{number}"), got)
    wider = [score.metrics[name] for name in officeqa.TOLERANCES]
    assert wider == sorted(wider)
    assert score.value == score.metrics["official"]
