"""Grades a ranking in the answer: the expected items should be listed, and listed early."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import Field

from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import alternatives, quote

_ITEM = re.compile(r"\w(?:[\w./:-]*\w)?")


def ndcg(sample: Sample, answer: str, *, k: Annotated[int, Field(ge=1)] = 10) -> Score:
    """nDCG@k with binary relevance (Järvelin & Kekäläinen 2002): 1 if the target's items come first, in any order.

    The ranking is the order in which the answer first names its items. Items are texts that look like a path
    (`people/ada`) or equal one of the target's items.
    """
    wanted = set(alternatives(sample))
    named = dict.fromkeys(item for item in _ITEM.findall(answer) if "/" in item or item in wanted)
    ranking = list(named)[:k]
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranking) if item in wanted)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), k)))
    missing = sorted(wanted - set(ranking))
    found = f"{len(wanted) - len(missing)} of {len(wanted)} expected items among the first {k}"
    return Score(min(1.0, gain / ideal), f"{found}; missing {quote(', '.join(missing))}" if missing else found)


def expected_ranking(sample: Sample) -> str:
    return "" if sample.target is None else "\n".join(alternatives(sample))
