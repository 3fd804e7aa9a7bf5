"""All trials of a run in one model: each counts once, none is forgotten, and what claims are worth is learned."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from skilltune.edits import Edit, apply
from skilltune.gate.trials import Trials
from skilltune.optimizer import Proposal
from skilltune.skill import Skill
from skilltune.stats.effects import Draw, solved

SAMPLES = [f"t{i:02}" for i in range(24)]
FAILING = frozenset(SAMPLES[:18])
RULE = frozenset(SAMPLES[:6])
START = Skill("# Desk\n")
Scores = dict[tuple[str, str], list[float]]


def proposal(name: str) -> Proposal:
    return Proposal(Edit("add", text=f"- {name}"))


def key(name: str) -> str:
    return proposal(name).edit.key


def text(*names: str) -> Skill:
    return Skill(START.text + "".join(f"- {name}\n" for name in names))


class Tried:
    """An evidence with START as the incumbent, which fails three quarters of the samples, and the scores seen."""

    def __init__(self) -> None:
        self.evidence = Trials()
        self.evidence.set_incumbent(START)
        self.scores: Scores = {(START.hash, sample): [float(sample not in FAILING)] for sample in SAMPLES}

    def roll(self, names: str, scores: dict[str, float], incumbent: Skill = START) -> Skill:
        """Samples under an incumbent with some edits."""
        rolled = Skill(incumbent.text + "".join(f"- {name}\n" for name in names.split()))
        self.evidence.note(rolled, incumbent, [proposal(name) for name in names.split()])
        self.scores |= {(rolled.hash, sample): [score] for sample, score in scores.items()}
        return rolled

    def draws(self, pool: str, seed: int = 1, **options: object) -> list[Draw]:
        return self.evidence.draws(self.scores, [key(name) for name in pool.split()], Random(seed), **options)  # type: ignore[arg-type]


def chance(draws: list[Draw], edit: int) -> float:
    """P(an effect on claimed samples)."""
    return fmean(draw.claimed[edit] > 0 for draw in draws)


def level(draws: list[Draw], sample: str) -> float:
    return fmean(solved(draw.bases[sample]) for draw in draws)


def test_what_an_edit_did_is_known_after_it_left_the_pool():
    tried = Tried()
    tried.evidence.supports |= {key("a"): RULE, key("b"): frozenset(SAMPLES[6:12])}
    tried.roll("a", dict.fromkeys(RULE, 1.0))
    assert chance(tried.draws("a"), 0) > 0.9
    tried.roll("b", dict.fromkeys(SAMPLES[6:12], 0.0))
    assert chance(tried.draws("b", 2), 0) < 0.3
    assert chance(tried.draws("b a", 3), 1) > 0.9


def test_an_accepted_edit_is_part_of_what_the_next_incumbent_solves():
    """The new incumbent was not seen on some samples at all: the edit that led to it tells."""
    tried = Tried()
    tried.evidence.supports[key("a")] = RULE
    accepted = tried.roll("a", dict.fromkeys(sorted(RULE)[:4], 1.0))
    before = tried.draws("z")
    assert tried.evidence.set_incumbent(accepted) == (key("a"),)
    after = tried.draws("z")
    for sample in RULE:
        assert level(before, sample) < 0.3
        assert level(after, sample) > 0.7
    assert level(after, SAMPLES[20]) == pytest.approx(level(before, SAMPLES[20]), abs=0.1)


def test_an_edit_that_was_overwritten_is_held_no_more():
    tried = Tried()
    accepted = tried.roll("a", {})
    tried.evidence.set_incumbent(accepted)
    without, beside = text("b"), text("a", "b")
    tried.evidence.note(without, accepted, [proposal("b")])
    tried.evidence.note(beside, accepted, [proposal("b")])
    assert tried.evidence.texts[without.hash] == (key("b"),)
    assert tried.evidence.texts[beside.hash] == (key("a"), key("b"))


def test_a_text_that_comes_back_is_what_it_was():
    tried = Tried()
    accepted = tried.roll("a", {})
    tried.evidence.set_incumbent(accepted)
    tried.evidence.note(START, accepted, [Proposal(Edit("delete", target="- a"))])
    assert tried.evidence.texts[START.hash] == ()


def test_an_incumbent_that_may_be_luck_is_taken_apart():
    """The effect of a removal is that of the edit, reversed; a text with it does not hold the edit."""
    tried = Tried()
    tried.evidence.supports |= {key("a"): RULE, key("b"): frozenset(SAMPLES[6:12])}
    tried.roll("a", dict.fromkeys(sorted(RULE)[:2], 0.0))
    accepted = tried.roll("a b", {})
    tried.evidence.accept(apply(START, [proposal("a").edit, proposal("b").edit]).reports)
    tried.evidence.set_incumbent(accepted)
    tried.draws("z")
    removal_candidates = {p.edit.target: p for p in tried.evidence.removal_candidates()}
    assert list(removal_candidates) == ["- a", "- b"]  # the more doubtful first
    assert removal_candidates["- a"].support == tuple(sorted(RULE))
    without = text("b")
    tried.evidence.note(without, accepted, [removal_candidates["- a"]])
    assert tried.evidence.texts[without.hash] == (key("b"),)

    tried.scores |= {(accepted.hash, sample): [1.0] for sample in SAMPLES[6:12]}
    pool = [key("b"), *(p.edit.key for p in removal_candidates.values())]
    draws = tried.evidence.draws(tried.scores, pool, Random(2))
    for draw in draws:
        assert (draw.general[0], draw.claimed[0]) == (-draw.general[2], -draw.claimed[2])
    assert chance(draws, 0) > 0.9
    assert tried.evidence.removal_candidates() == []  # now something of it is known to help


def test_the_removal_of_a_replacement_brings_the_old_text_back():
    """What stood there, not what the model quoted; and an edit that stood there is held again."""
    evidence = Trials()
    evidence.set_incumbent(START)
    rule = proposal("Always answer in lower case letters, without a full stop")
    ruled = apply(START, [rule.edit])
    evidence.note(ruled.skill, START, [rule])
    evidence.accept(ruled.reports)
    evidence.set_incumbent(ruled.skill)
    misquoted = "- Always answer in lowercase letters, without a full stop"
    refined = Proposal(Edit("replace", target=misquoted, text="- Shout"))
    shouting = apply(ruled.skill, [refined.edit])
    assert shouting.reports[0].match == "similar"
    evidence.note(shouting.skill, ruled.skill, [refined])
    evidence.accept(shouting.reports)
    evidence.set_incumbent(shouting.skill)
    assert evidence.texts[shouting.skill.hash] == (refined.edit.key,)
    evidence.helps = {refined.edit.key: 0.5}
    [removal] = evidence.removal_candidates()
    beside = apply(shouting.skill, [removal.edit, proposal("z").edit]).skill
    assert "lower case letters" in beside.text
    evidence.note(beside, shouting.skill, [removal, proposal("z")])
    assert evidence.texts[beside.hash] == (rule.edit.key, key("z"))


def test_an_edit_inside_of_another_is_not_taken_out_of_it():
    tried = Tried()
    tried.evidence.note(text("a", "a and b"), START, [proposal("a"), proposal("a and b")])
    tried.evidence.accept(apply(START, [proposal("a").edit, proposal("a and b").edit]).reports)
    tried.evidence.set_incumbent(text("a", "a and b"))
    tried.evidence.helps = {key("a"): 0.5, key("a and b"): 0.5}
    assert [p.edit.target for p in tried.evidence.removal_candidates()] == ["- a and b"]


def test_a_doubtful_deletion_is_taken_back_beside_other_edits():
    evidence, start = Trials(), Skill("# Desk\n\n- old\n")
    edits = [Edit("delete", target="- old"), Edit("add", text="- new")]
    accepted = apply(start, edits)
    evidence.set_incumbent(start)
    evidence.note(accepted.skill, start, [Proposal(edit) for edit in edits])
    evidence.accept(accepted.reports)
    evidence.set_incumbent(accepted.skill)
    evidence.helps = {edit.key: 0.5 for edit in edits}
    assert [(p.edit.op, p.edit.text) for p in evidence.removal_candidates()] == [("add", "- old"), ("delete", None)]


@pytest.mark.parametrize("claims_are_true", [True, False])
def test_whether_claims_mean_anything_is_learned(claims_are_true: bool):
    """Eight edits, alone on what each claims: of these it solves all, or what the incumbent solves anyway."""
    tried, names = Tried(), [f"edit{i}" for i in range(8)]
    for i, name in enumerate(names):
        claimed = SAMPLES[2 * i : 2 * i + 2]
        tried.evidence.supports[key(name)] = frozenset(claimed)
        tried.roll(name, dict.fromkeys(claimed, float(claims_are_true)))
    draws = tried.draws(" ".join(names))
    assert tried.evidence.claims > 0.7 if claims_are_true else tried.evidence.claims < 0.3
    tried.evidence.supports[key("fresh")] = frozenset(SAMPLES[16:18])
    fresh = chance(tried.draws(" ".join([*names, "fresh"]), 2), 8)
    assert fresh > 0.6 if claims_are_true else fresh < 0.4
    assert len(draws[0].general) == len(draws[0].claimed) == 8


def test_where_next_to_nothing_is_solved_claims_are_not_given_up():
    """Beside a harmful edit no edit helps on what it claims either; many at once would hide the good ones for good."""
    for right, everywhere in ((6, True), (2, False)):
        tried = Tried()
        tried.scores |= {(START.hash, sample): [float(i < right)] for i, sample in enumerate(SAMPLES)}
        for i in range(8):
            claimed = SAMPLES[8 + 2 * i : 10 + 2 * i]
            tried.evidence.supports[key(f"edit{i}")] = frozenset(claimed)
            tried.roll(f"edit{i}", dict.fromkeys([*claimed, *SAMPLES[20:]], 0.0))
        tried.draws(" ".join(f"edit{i}" for i in range(8)))
        assert tried.evidence.claims < 0.2
        tried.evidence.claims = 0.0
        assert tried.evidence.diffuse == everywhere


def test_the_order_in_which_rollouts_came_in_changes_nothing():
    """Also of edits that left the pool: rollouts of one screen end in any order."""

    def drawn(order: list[str]) -> list[Draw]:
        tried = Tried()
        tried.evidence.supports |= {key("a"): RULE, key("b"): frozenset(SAMPLES[6:12])}
        for name in order:
            tried.roll(name, dict.fromkeys(tried.evidence.supports[key(name)], float(name == "a")))
        return [*tried.draws("z", draws=10), *tried.draws("z", 2)]

    assert drawn(["a", "b"]) == drawn(["b", "a"])


def test_repeats_of_a_failure_tell_bad_luck_from_a_lack():
    """Failed once and solved twice is a sample of even odds; failed three times is one that is not solved."""
    tried = Tried()
    tried.scores[START.hash, SAMPLES[0]] = [0.0, 0.0, 0.0]
    tried.scores[START.hash, SAMPLES[1]] = [0.0, 1.0, 1.0]
    draws = tried.draws("z", draws=400)
    assert level(draws, SAMPLES[0]) < level(draws, SAMPLES[2]) < level(draws, SAMPLES[1])


def test_a_sample_stands_as_the_last_version_left_it_that_was_seen_on_it():
    tried = Tried()
    accepted = tried.roll("a", {SAMPLES[0]: 1.0})
    tried.evidence.set_incumbent(accepted)
    standing = tried.evidence.baseline_scores(tried.scores, frozenset(SAMPLES[:3]))
    assert standing == {SAMPLES[0]: 1.0, SAMPLES[1]: 0.0, SAMPLES[2]: 0.0}


def test_an_edit_of_several_lines_stands_in_a_document_with_other_line_ends():
    """What is inserted takes over the document's line ends; the edit keeps its own."""
    start = Skill("# Desk\r\n\r\nAnswer.\r\n")
    edit = Proposal(Edit("add", text="Rules:\n- one\n- two"))
    evidence = Trials()
    evidence.set_incumbent(start)
    accepted = apply(start, [edit.edit]).skill
    assert "- one\r\n- two" in accepted.text
    evidence.note(accepted, start, [edit])
    evidence.set_incumbent(accepted)
    evidence.note(apply(accepted, [proposal("b").edit]).skill, accepted, [proposal("b")])
    assert list(evidence.texts.values())[-1] == (edit.edit.key, key("b"))


def test_an_edit_that_was_dropped_beside_a_line_that_has_gone_is_judged_anew():
    tried = Tried()
    accepted = tried.roll("harm", {})
    tried.evidence.set_incumbent(accepted)
    tried.roll("masked", {SAMPLES[0]: 0.0}, accepted)
    tried.evidence.drop(accepted, [proposal("masked")])
    grown = tried.roll("other", {}, accepted)
    assert tried.evidence.reopened(accepted, grown) == []
    tried.evidence.note(text("other"), grown, [])
    assert [p.edit.text for p in tried.evidence.reopened(grown, text("other"))] == ["- masked"]


def test_a_removal_answers_the_samples_on_which_the_incumbent_fails():
    """A line that breaks some samples only has hardly any effect on all of them together."""
    tried = Tried()
    rules = [f"rule{i}" for i in range(4)]
    for i, name in enumerate(rules):
        claimed = frozenset(SAMPLES[6 * i : 6 * i + 6])
        tried.evidence.supports[key(name)] = claimed
        tried.roll(name, dict.fromkeys(sorted(claimed)[:3], 1.0))
    accepted = tried.roll(" ".join([*rules, "harm"]), {s: float(s not in RULE) for s in SAMPLES})
    edits = [proposal(name).edit for name in (*rules, "harm")]
    tried.evidence.accept(apply(START, edits).reports)
    tried.evidence.set_incumbent(accepted)
    [removal] = [p for p in tried.evidence.removals_of_incumbent() if p.edit.target == "- harm"]
    tried.evidence.mend(tried.scores, [removal])
    assert tried.evidence.mends[removal.edit.key] == (RULE, len(SAMPLES))
    without = text(*rules)
    tried.evidence.note(without, accepted, [removal])
    tried.scores |= {(without.hash, sample): [1.0] for sample in sorted(RULE)[:4]}
    draws = tried.evidence.draws(tried.scores, [removal.edit.key], Random(1))
    assert len(draws[0].claimed) == 2  # what the edit itself claims, and what its removal may mend
    assert fmean(draw.claimed[1] > 0 for draw in draws) > 0.9
