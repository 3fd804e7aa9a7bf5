"""Compares the last number of the answer as a decimal: 12.50 equals 12.5, and there are no rounding errors."""

from __future__ import annotations

import re
from decimal import Context, Decimal, localcontext
from typing import Annotated

from pydantic import Field

from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import best_of, final_answer, missed, quote, verdict

_MINUS, _CURRENCY = "-\u2212", "$€£¥₹"
_NUMBER = re.compile(  # a minus sign before or after the currency sign, but not the one in "5-3" or "GPT-4"
    rf"(?P<minus>(?<![\w)\]])[{_MINUS}])?(?:[{_CURRENCY}] ?)?(?P<minus2>(?<![\w)\]])[{_MINUS}])?"
    r"(?P<digits>[.]?[0-9][0-9.,]*)(?P<power>[eE][+-]?[0-9]{1,3}(?![0-9]))?"
)
_PLAIN = re.compile(r"[0-9]*(?:\.[0-9]+)?|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_IN_BRACKETS = re.compile(rf"[{_CURRENCY}]? ?\(([^()]*)\) ?%?")


def number(sample: Sample, answer: str, *, tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0) -> Score:
    """1 if the last number of the answer (inside the last `<answer>` tag, if any) is within `tolerance` of the target.

    The tolerance is absolute and 0 by default: 12.50 equals 12.5, but not 12.51. The target's last number counts too
    ("… #### 72"). Thousands commas and currency signs are dropped, and "%" is ignored. An answer that is only a number
    in brackets is negative, as in accounting: "(1,234)". A number with other commas ("12,50") is ambiguous and does not
    count as a number.
    """
    got = final_answer(answer)
    value = last_number(got)

    def compare(expected: str) -> Score:
        wanted = last_number(expected)
        if wanted is None:
            raise UsageError(f'sample "{sample.id}": the target {quote(expected)} holds no plain number')
        if value is None:
            return Score(0.0, f"{missed(_show(wanted), got)}, which does not end in a plain number")
        return verdict(_close(value, wanted, tolerance), _show(wanted), got)

    return best_of(sample, compare)


def last_number(text: str) -> Decimal | None:
    """The last number of a text. None if there is none, or if the last one is ambiguous."""
    bracketed = _IN_BRACKETS.fullmatch(text.strip())
    found = list(_NUMBER.finditer(bracketed[1] if bracketed else text))
    if not found:
        return None
    digits = found[-1]["digits"].rstrip(".,")
    if not _PLAIN.fullmatch(digits):
        return None
    value = Decimal(digits.replace(",", "") + (found[-1]["power"] or ""))
    negative = bracketed or found[-1]["minus"] or found[-1]["minus2"]
    return value.copy_negate() if negative else value  # unlike -value, this does not round


def _close(value: Decimal, wanted: Decimal, tolerance: float) -> bool:
    with localcontext(Context(prec=50, traps=[])):  # no traps: a number with a million digits is wrong, not an error
        return value == wanted or (bool(tolerance) and abs(value - wanted) <= Decimal(str(tolerance)))


def _show(value: Decimal) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{value:.6e}"
