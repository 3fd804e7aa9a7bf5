"""The parameters of a simulated world, and the named families that the benches use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Harm = Literal["global", "kinds", "fraction", "delayed", "masking"]
Noise = Literal["coin", "sample", "lost", "heavy"]
Start = Literal["empty", "half", "good", "junk"]


@dataclass(frozen=True, slots=True)
class Family:
    """All parameters of a world but its seed. The defaults are the world of `tests/world.py` with 10 % noise.

    A *kind* is a class of tickets. Each kind has a rule; a skill that holds the rule solves the kind. A *level* is the
    share of a kind's tickets that is solved or, with `partial`, the score of each of them. Shares and odds are in
    [0, 1].
    """

    name: str = "desk"

    # the samples
    kinds: int = 12
    tail: float = 0.0  # exponent of the kinds' frequencies: kind number k is proportional to 1 / (k + 1) ** tail
    train: int = 120
    select: int = 60
    test: int = 120
    floor: float = 0.0  # share of the tickets that are solved without any rule

    # harmful lines
    # global: a line drops everything to 0.
    # kinds: it breaks `harm_share` of the kinds, rules and floor alike. Each line breaks others.
    # fraction: it breaks `harm_share` of the tickets of every kind.
    # delayed: like kinds, but only in a skill that holds a third of all rules.
    # masking: there are none, but a useless line about a kind makes that kind's rule useless while it stands.
    harm: Harm = "global"
    harm_share: float = 0.25

    # rules
    overlap: float = 0.0  # level that a rule also gives to the next kind
    needs: bool = False  # the rule of an odd kind works only beside the rule of the kind before
    ordered: bool = False  # … and only below it
    contradict: int = 0  # number of pairs of kinds whose rules contradict: the last one in the text wins
    hints: int = 1  # rules a kind; each one adds less than the one before
    attention: int = 0  # lines from which on each further line costs 5 % of the level; 0: no limit

    # scores
    partial: bool = False  # scores in quarters (token F1) instead of 0 or 1

    # noise: `p` is the mean odds that an answer is turned around
    # coin: at `p` in each call.
    # sample: at a rate between 0 and 2p that is the ticket's own.
    # heavy: a share 2p of the tickets is a toss of a coin, the others have no noise.
    # lost: a right answer is lost at `p`, a wrong one never becomes right.
    noise: Noise = "coin"
    p: float = 0.1

    # the optimizer
    q: float = 0.6  # odds that an idea is right
    harmful: float = 0.5  # share of the wrong ideas that are harmful; the rest is useless
    repeats: float = 0.0  # odds that an idea is always the same one for its kind, rejected or not
    bundle: float = 0.0  # odds that an edit is joined with the next one into a single edit
    paraphrase: float = 0.0  # odds that a rule is put in other words
    misplaces: float = 0.0  # odds that an edit hangs on a line that does not exist, or cites tickets of other kinds
    deletes: float = 0.3  # odds that a line is suspected if a kind fails whose rule stands (harm global: odds q)
    learns: float = 0.0  # what each rejected edit in the request adds to q, up to 0.95

    # the input skill. half, good: the rules of a half, of five sixths of the kinds. junk: of a quarter, between eight
    # useless and three harmful lines.
    start: Start = "empty"


QUARTER = Family(harm="kinds")  # the reference of the tables: a harmful line breaks a quarter of the kinds
REFERENCE = {  # all for tuning, so that their figures can be compared with earlier ones
    "desk": Family(),
    "quarter": QUARTER,
    "quarter-noisy": replace(QUARTER, p=0.2),
    "quarter-often-wrong": replace(QUARTER, q=0.4),
    "quarter-never-right": replace(QUARTER, q=0.0),
    "half-solved-never-right": replace(QUARTER, q=0.0, floor=0.5),
}
RELATIVES = {  # all locked: relatives of the reference
    "eight-kinds": replace(QUARTER, kinds=8, p=0.2, noise="sample"),
    "fraction": replace(QUARTER, harm="fraction", paraphrase=0.5),
    "desk-often-wrong": Family(q=0.4, p=0.2),
    "lost-answers": replace(QUARTER, noise="lost", p=0.15),
    "masking-never-right": replace(QUARTER, harm="masking", harmful=0.0, q=0.0, paraphrase=0.5, start="half"),
    "half-solved-misled": replace(QUARTER, q=0.0, harmful=0.2, floor=0.6, noise="sample", p=0.2, bundle=0.3),
}
PAIRS: tuple[dict[str, Family], ...] = (  # one axis each; the rule of the split is that of `split_pairs`
    {
        "harm-delayed": replace(QUARTER, harm="delayed"),
        "harm-masking": replace(QUARTER, harm="masking", harmful=0.0),
    },
    {
        "rules-needed": replace(QUARTER, needs=True),
        "rules-overlapping": replace(QUARTER, overlap=0.5),
    },
    {
        "rules-contradicting": replace(QUARTER, contradict=2, paraphrase=0.5),
        "rules-saturating": replace(QUARTER, kinds=8, hints=3),
    },
    {
        "text-length": replace(QUARTER, attention=12),
        "text-order": replace(QUARTER, needs=True, ordered=True, paraphrase=0.5),
    },
    {
        "score-heavy-noise": replace(QUARTER, noise="heavy", p=0.15),
        "score-partial": replace(QUARTER, partial=True, hints=2, kinds=8, noise="sample"),
    },
    {
        "kinds-many": replace(QUARTER, kinds=200, train=400, select=100, test=400, tail=1.0),
        "kinds-tail": replace(QUARTER, kinds=40, tail=1.0),
    },
    {
        "optimizer-bundling": replace(QUARTER, bundle=0.5, paraphrase=0.3),
        "optimizer-repeating": replace(QUARTER, repeats=0.5),
    },
    {
        "optimizer-learning": replace(QUARTER, q=0.3, learns=0.05),
        "optimizer-misplacing": replace(QUARTER, misplaces=0.4, deletes=0.05),
    },
    {
        "input-good": replace(QUARTER, start="good"),
        "input-junk": replace(QUARTER, start="junk"),
    },
)


def split_pairs() -> tuple[dict[str, Family], dict[str, Family]]:
    """The tuning and the locked families of `PAIRS`.

    In the first axis the alphabetically first family is for tuning, in the second axis the last one, and so on in turn.
    """
    tuning, locked = {}, {}
    for number, pair in enumerate(PAIRS):
        first, last = sorted(pair, reverse=number % 2 == 1)
        tuning[first], locked[last] = pair[first], pair[last]
    return tuning, locked


def _named(families: dict[str, Family]) -> dict[str, Family]:
    return {name: replace(family, name=name) for name, family in families.items()}


_TUNING, _LOCKED = split_pairs()
TUNING = _named(REFERENCE | _TUNING)
LOCKED = _named(RELATIVES | _LOCKED)
FAMILIES = TUNING | LOCKED
