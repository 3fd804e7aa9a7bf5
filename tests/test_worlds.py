"""Each parameter of a family must do what it says, or a figure of `bench/worlds.py` means nothing."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random
from statistics import fmean
from typing import Any

import pytest

from skilltune.samples import Sample
from skilltune.scorers.f1 import f1
from world import HARMS, LEADS, TICKET, Dice, Json, Prompt, Ticket, World, uniform
from worlds import FAMILIES, LOCKED, TUNING, Family, FamilyWorld
from worlds.families import PAIRS, REFERENCE

QUIET = Family(harm="kinds", p=0.0)


def world_of(family: Family = QUIET, seed: int = 0, **changes: Any) -> FamilyWorld:
    return FamilyWorld(replace(family, **changes), seed)


def skill_of(world: FamilyWorld, kinds: Any = None, *lines: str) -> str:
    rules = [world.rule(kind) for kind in (range(world.classes) if kinds is None else kinds)]
    return "# Desk\n\n" + "".join(f"- {line}\n" for line in (*rules, *lines))


def by_kind(world: FamilyWorld, skill: str) -> list[float]:
    """The share of the test tickets of each kind that a skill solves, without noise."""
    values: dict[int, list[float]] = {kind: [] for kind in range(world.classes)}
    for ticket in tickets(world):
        values[ticket.kind].append(world.value(skill, ticket))
    return [fmean(values[kind]) for kind in range(world.classes)]


def tickets(world: World, split: str = "test") -> list[Ticket]:
    return [ticket for ticket in world.tickets.values() if ticket.split == split]


def request(skill: str, shown: list[Ticket], score: float = 0.0, rejected: str = "", budget: int = 12) -> str:
    """A reflect request in which the target answered the tickets wrongly, or with another score."""
    body = "\n".join(
        f'<trajectory sample="{t.id}" score="{score:.2f}" attempt="0" outcome="ok">\n[user] {t.input}\n'
        f"[assistant] no idea\n</trajectory>"
        for t in shown
    )
    head = f"<skill>\n{skill}\n</skill>\n<edit_budget>{budget}</edit_budget>\n"
    return f"{head}<rejected>{rejected}</rejected>\n{body}"


def dice(*salt: object) -> Dice:
    return lambda *what: uniform("test", *salt, *what)


def edits(world: World, skill: str, shown: list[Ticket], salt: object = 0, **options: Any) -> list[Json]:
    return world.optimizer.reflect(Prompt.read(request(skill, shown, **options)), dice(salt))["edits"]


def ideas(world: FamilyWorld, skill: str = "", salts: int = 40, **options: Any) -> list[Json]:
    """Edits of many independent requests that show one failure of each kind."""
    shown = list({t.kind: t for t in tickets(world, "train")}.values())
    return [edit for salt in range(salts) for edit in edits(world, skill, shown, salt, **options)]


def ask(world: World, body: Json, key: str | None = None) -> Json:
    headers = {"content-type": "application/json", **({"idempotency-key": key} if key else {})}
    sent = urllib.request.Request(f"{world.url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(sent, timeout=10) as response:
        return json.load(response)


def target(world: World, skill: str, ticket: Ticket, key: str) -> str:
    messages = [{"role": "system", "content": skill}, {"role": "user", "content": ticket.input}]
    return ask(world, {"model": "target", "messages": messages}, key)["choices"][0]["message"]["content"]


# the table


def test_half_of_the_families_are_locked_by_the_stated_rule_and_every_reference_is_for_tuning() -> None:
    assert len(TUNING) == len(LOCKED)
    assert not TUNING.keys() & LOCKED.keys()
    assert TUNING.keys() > REFERENCE.keys()
    assert all(FAMILIES[name].name == name for name in FAMILIES)
    assert len({replace(family, name="") for family in FAMILIES.values()}) == len(FAMILIES), "two are the same"
    for number, pair in enumerate(PAIRS):
        names = sorted(pair)
        assert names[number % 2] in TUNING
        assert names[1 - number % 2] in LOCKED


def test_every_parameter_is_varied_by_a_family() -> None:
    plain = Family()
    same = [field.name for field in fields(Family) if all(getattr(f, field.name) == getattr(plain, field.name) for f in
                                                            FAMILIES.values())]  # fmt: skip
    assert same == ["harm_share"], "a parameter that no family uses is not needed"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_and_a_seed_make_one_world_and_its_best_skill_cannot_be_improved(name: str) -> None:
    family = FAMILIES[name]
    one, same, other = FamilyWorld(family, 1), FamilyWorld(family, 1), FamilyWorld(family, 2)
    assert one.samples() == same.samples() != other.samples()
    assert one.start == same.start
    skill = skill_of(one, range(0, one.classes, 3), one.harmful(1), one.junk(2))
    assert one.true_score(skill) == same.true_score(skill)
    assert 0 <= one.true_score(one.start) < one.attainable <= 1
    assert one.attainable == 1 - family.contradict / one.classes
    shown = tickets(one, "train")[:8]
    assert edits(one, skill, shown) == edits(same, skill, shown)
    for sample in one.samples():
        Sample.model_validate(sample)


def test_the_family_without_changes_is_the_world_of_the_other_tests() -> None:
    world, family = World(p=0.1, seed=3), FamilyWorld(Family(), 3)
    assert world.samples() == family.samples()
    random, skill = Random(0), ""
    for _ in range(30):
        lines = [world.rule(kind) for kind in random.sample(range(12), random.randrange(12))]
        lines += [world.harmful(random.randrange(12))] * (random.random() < 0.3)
        skill = "\n".join(lines)
        assert world.true_score(skill) == family.true_score(skill)
        shown = random.sample(tickets(world, "train"), 8)
        assert edits(world, skill, shown) == edits(family, skill, shown)
    with world, family:
        for number, ticket in enumerate(tickets(world)[:30]):
            answers = [target(w, skill, ticket, str(number)) for w in (world, family)]
            assert answers[0] == answers[1]


# harm


def test_a_harmful_line_breaks_a_quarter_of_the_kinds_and_another_line_breaks_others() -> None:
    world = world_of()
    broken = []
    for number in range(12):
        values = by_kind(world, skill_of(world, None, world.harmful(number)))
        broken.append({kind for kind, value in enumerate(values) if value == 0})
        assert sorted(set(values)) == [0, 1]
    assert {len(kinds) for kinds in broken} == {3}
    assert len(set(map(frozenset, broken))) > 8
    both = skill_of(world, None, world.harmful(0), world.harmful(1))
    assert world.true_score(both) == pytest.approx(1 - len(broken[0] | broken[1]) / 12)


def test_harm_is_invisible_where_nothing_is_solved_and_visible_where_a_floor_is() -> None:
    bare, floor = world_of(), world_of(floor=0.5)
    assert bare.true_score("") == bare.true_score(bare.harmful(0)) == 0
    assert floor.true_score("") == pytest.approx(0.5, abs=0.12)
    assert floor.true_score(floor.harmful(0)) == pytest.approx(0.75 * floor.true_score(""), abs=0.08)


@pytest.mark.parametrize(("harm", "left"), [("global", 0.0), ("kinds", 0.75), ("fraction", 0.75), ("delayed", 0.75)])
def test_what_a_harmful_line_leaves_of_a_full_skill(harm: Any, left: float) -> None:
    world = world_of(harm=harm)
    values = by_kind(world, skill_of(world, None, world.harmful(2)))
    assert fmean(values) == pytest.approx(left, abs=0.1)
    if harm == "fraction":
        assert all(0.3 < value <= 1 for value in values), "every kind loses a part"
    assert world.true_score(skill_of(world)) == 1


def test_delayed_harm_shows_only_in_a_skill_with_a_third_of_the_rules() -> None:
    world = world_of(harm="delayed", floor=0.3)
    for kinds in ((), range(3)):
        bare = skill_of(world, kinds)
        assert world.true_score(f"{bare}\n{world.harmful(0)}") == world.true_score(bare)
    assert world.true_score(skill_of(world, range(4), world.harmful(0))) < world.true_score(skill_of(world, range(4)))


def test_a_masking_line_makes_its_kinds_rule_useless_while_it_stands() -> None:
    world = world_of(harm="masking", floor=0.2)
    whole, masked = by_kind(world, skill_of(world)), by_kind(world, skill_of(world, None, world.junk(4)))
    assert [a == b for a, b in zip(whole, masked, strict=True)] == [kind != 4 for kind in range(12)]
    assert world.true_score(world.junk(4)) == world.true_score(""), "alone it does nothing"
    assert world.lacks(skill_of(world, [4], world.junk(4)), 4) is False, "its rule stands, so nothing can be added"


# rules


def test_rules_that_overlap_solve_a_part_of_the_next_kind() -> None:
    world = world_of(overlap=0.5, test=1200)
    values = by_kind(world, skill_of(world, [3]))
    assert values[3] == 1
    assert values[4] == pytest.approx(0.5, abs=0.15)
    assert sum(values) == values[3] + values[4]
    assert by_kind(world, skill_of(world, [3, 4]))[4] == 1


def test_rules_that_need_each_other_and_their_order() -> None:
    needing, ordered = world_of(needs=True), world_of(needs=True, ordered=True)
    for world in (needing, ordered):
        assert by_kind(world, skill_of(world, [5]))[5] == 0
        assert by_kind(world, skill_of(world, [4, 5]))[4:6] == [1, 1]
        assert by_kind(world, skill_of(world, [4]))[4] == 1, "an even kind stands alone"
        assert (4, 0) in world.wanted(skill_of(world, [5]), 5)
    assert by_kind(needing, skill_of(needing, [5, 4]))[5] == 1
    assert by_kind(ordered, skill_of(ordered, [5, 4]))[5] == 0
    assert ordered.wanted(skill_of(ordered, [5, 4]), 5) == [(5, 0)], "said again below, it works"
    assert by_kind(ordered, skill_of(ordered, [5, 4], ordered.rule(5, wording=1)))[5] == 1


def test_of_rules_that_contradict_the_last_one_wins() -> None:
    world = world_of(contradict=2)
    assert by_kind(world, skill_of(world, [0, 1, 2, 3, 4, 5])) == [0, 1, 0, 1, 1, 1, *[0] * 6]
    assert by_kind(world, skill_of(world, [1, 0])) == [1, *[0] * 11]
    assert world.attainable == pytest.approx(10 / 12)


def test_hints_of_a_kind_add_less_and_less() -> None:
    world = world_of(hints=3, kinds=4, test=1200)
    levels = [world.true_score("\n".join(world.rule(1, hint) for hint in range(n))) * 4 for n in range(4)]
    assert levels == pytest.approx([0, 0.6 / 0.936, 0.84 / 0.936, 1], abs=0.05)
    assert world.true_score(world.rule(1, 0) + world.rule(1, 0)) == world.true_score(world.rule(1, 0))


def test_a_long_skill_loses_what_its_junk_costs() -> None:
    world = world_of(attention=12, test=1200)
    full = skill_of(world)
    assert world.true_score(full) == 1
    longer = skill_of(world, None, *(world.junk(kind) for kind in range(4)))
    assert world.true_score(longer) == pytest.approx(0.8, abs=0.04)


def test_every_wording_of_a_rule_counts_and_wrapped_lines_do_too() -> None:
    world = world_of(kinds=200)
    for kind in (1, 10, 100, 199):
        for wording in range(3):
            rule = world.rule(kind, wording=wording)
            assert world.held(rule) == {kind}
            assert world.held(rule.replace(" code", "\n  code")) == {kind}
            assert world.recognise(f"Ticket t-0001 {rule}") == kind


# scores, noise, samples, the input


def test_partial_scores_are_the_token_f1_of_the_answer() -> None:
    world = world_of(partial=True, hints=2, kinds=4)
    assert world.score == "f1"
    with world:
        for hints, value in ((0, 0.0), (1, 0.75), (2, 1.0)):
            skill = "\n".join(world.rule(0, hint) for hint in range(hints)) or "# Desk"
            ticket = next(ticket for ticket in tickets(world) if ticket.kind == 0)
            answer = target(world, skill, ticket, "key")
            sample = Sample(id=ticket.id, input=ticket.input, target=ticket.target)
            assert f1(sample, answer).value == world.value(skill, ticket) == value


@pytest.mark.parametrize("noise", ["coin", "sample", "lost", "heavy"])
def test_noise_turns_answers_around_as_often_as_its_kind_says(noise: Any) -> None:
    world = world_of(noise=noise, p=0.15, kinds=2)
    chosen, skill = tickets(world)[:60], skill_of(world, [0])
    rates, wrong = [], []
    for ticket in chosen:
        call: Any = type("Call", (), {"user": ticket.input, "system": skill, "sample": None})
        right = [world._solve(call, f"{draw}") == ticket.target for draw in range(100)]
        (rates if ticket.kind == 0 else wrong).append(fmean(right) if ticket.kind else 1 - fmean(right))
    assert fmean(rates) == pytest.approx(0.15, abs=0.06)
    assert fmean(wrong) == pytest.approx(0.0 if noise == "lost" else 0.15, abs=0.06)
    spread = {"coin": max(rates) < 0.3, "lost": max(rates) < 0.3, "sample": 0.2 < max(rates) < 0.45}
    assert spread.get(noise, {round(rate * 5) for rate in rates} <= {0, 2, 3})


def test_a_long_tail_has_the_same_shares_in_every_split() -> None:
    world = world_of(kinds=40, tail=1.0)
    counts = {split: Counter(t.kind for t in tickets(world, split)) for split in ("train", "select", "test")}
    assert counts["train"] == counts["test"]
    assert sum(counts["select"].values()) == 60
    assert [count for _, count in sorted(counts["train"].items())][:3] == [28, 14, 9]
    assert world.true_score(skill_of(world, [0])) == pytest.approx(28 / 120)


@pytest.mark.parametrize(("start", "score"), [("empty", 0), ("half", 0.5), ("good", 10 / 12)])
def test_the_input_skill(start: Any, score: float) -> None:
    world = world_of(start=start)
    assert world.true_score(world.start) == pytest.approx(score)


def test_an_input_full_of_junk_holds_rules_useless_lines_and_harm() -> None:
    reading = (world := world_of(start="junk")).read(world.start)
    assert (len(reading.rules), len(reading.junk), len(reading.harms)) == (3, 8, 3)
    assert world.true_score(world.start) < 3 / 12


# the optimizer


def is_rule(world: FamilyWorld, edit: Json) -> bool:
    return bool(world.held(edit["text"] or ""))


@pytest.mark.parametrize("q", [0.0, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("name", ["quarter", "optimizer-repeating", "optimizer-bundling", "text-order"])
def test_ideas_are_right_as_often_as_q_says_and_never_without_it(name: str, q: float) -> None:
    right = [
        is_rule(world, edit)
        for seed in range(6)
        for world in [world_of(FAMILIES[name], seed, q=q, bundle=0.0)]
        for edit in ideas(world, salts=6)
    ]
    assert len(right) > 300
    assert fmean(right) == (q if q in (0, 1) else pytest.approx(q, abs=0.12))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_optimizer_that_is_never_right_never_writes_a_rule(name: str) -> None:
    world = world_of(FAMILIES[name], q=0.0)
    for skill in ("", world.start, skill_of(world, [0], world.harmful(0))):
        held = world.held(skill)
        assert all(world.held(edit["text"] or "") <= held for edit in ideas(world, skill, salts=5, budget=4))


def test_harmful_ideas_are_their_share_of_the_wrong_ones() -> None:
    world = world_of(q=0.0, harmful=0.3)
    assert fmean(any(harm in edit["text"] for harm in HARMS) for edit in ideas(world, salts=60)) == pytest.approx(
        0.3, abs=0.07
    )


def test_a_repeating_optimizer_has_one_idea_for_each_kind_even_if_it_was_rejected() -> None:
    fresh, stuck = world_of(q=0.5), world_of(q=0.5, repeats=1.0)
    assert len({edit["text"] for edit in ideas(fresh)}) > 60
    texts = {edit["text"] for edit in ideas(stuck)}
    assert len(texts) <= 12
    assert {edit["text"] for edit in ideas(stuck, rejected="\n".join(texts))} >= {t for t in texts if stuck.held(t)} - {
        stuck.rule(k) for k in range(12)
    }
    wrong = next(text for text in texts if not stuck.held(text))
    assert wrong in {edit["text"] for edit in ideas(stuck, rejected=wrong)}
    assert wrong not in {edit["text"] for edit in edits(fresh, "", tickets(fresh, "train")[:8], rejected=wrong)}


def test_a_bundling_optimizer_joins_ideas_and_loses_none() -> None:
    shown = list({t.kind: t for t in tickets(world_of(), "train")}.values())
    alone = edits(world_of(q=1.0), "", shown)
    joined = edits(world_of(q=1.0, bundle=1.0), "", shown)
    assert len(joined) == math.ceil(len(alone) / 2)
    lines = [line for edit in joined for line in edit["text"].splitlines()]
    assert lines == [edit["text"] for edit in alone]
    cited = [item["sample"] for edit in joined for item in edit["evidence"]]
    assert sorted(cited) == sorted(item["sample"] for edit in alone for item in edit["evidence"])


def test_a_paraphrasing_optimizer_says_one_rule_in_several_ways() -> None:
    world = world_of(q=1.0, paraphrase=0.5)
    texts = [edit["text"] for edit in ideas(world) if is_rule(world, edit)]
    plain = [text for text in texts if text == world.rule(next(iter(world.held(text))))]
    assert 0.35 < len(plain) / len(texts) < 0.65
    assert len({text for text in texts if world.held(text) == {0}}) == 3


def test_a_misplacing_optimizer_names_lines_that_do_not_exist_or_tickets_of_other_kinds() -> None:
    def faults(world: FamilyWorld) -> tuple[float, float]:
        skill = skill_of(world, [0])
        made = [edit for edit in ideas(world, skill) if edit["op"] == "add"]
        lost = [bool(edit["after"]) and edit["after"] not in skill for edit in made]
        kinds = {t.id: t.kind for t in world.tickets.values()}
        about = [(world.held(e["text"]), {kinds[x["sample"]] for x in e["evidence"]}) for e in made]
        return fmean(lost), fmean(held != cited for held, cited in about if held)

    assert faults(world_of(q=1.0)) == (0, 0)
    lost, misled = faults(world_of(q=1.0, misplaces=0.6))
    assert lost == pytest.approx(0.3, abs=0.1)
    assert misled == pytest.approx(0.3, abs=0.1)


def test_deletions_are_proposed_as_often_as_said_and_hit_the_harmful_line_with_odds_q() -> None:
    for deletes in (0.0, 0.3, 1.0):
        world = world_of(deletes=deletes, q=0.6)
        skill = skill_of(world, None, world.harmful(0))
        shown = [t for t in tickets(world, "train") if not world.value(skill, t)][:4]
        made = [edits(world, skill, shown, salt) for salt in range(200)]
        cuts = [edit["target"] for found in made for edit in found if edit["op"] == "delete"]
        assert len(cuts) / 200 == pytest.approx(deletes, abs=0.1)
        if cuts:
            assert fmean(world.harmful(0) in cut for cut in cuts) == pytest.approx(0.6, abs=0.15)
    assert not [edit for edit in edits(world, "", shown) if edit["op"] == "delete"], "nothing stands there yet"


def test_an_optimizer_that_learns_is_right_more_often_after_rejections() -> None:
    world = world_of(q=0.2, learns=0.05)
    shares = [
        fmean(is_rule(world, edit) for edit in ideas(world, rejected="\n".join(f"- add: idea {i}" for i in range(n))))
        for n in (0, 5, 40)
    ]
    assert shares == pytest.approx([0.2, 0.45, 0.95], abs=0.08)


# a server that tells no more than a provider does


def body_of(skill: str, shown: list[Ticket]) -> Json:
    form = {"type": "json_schema", "json_schema": {"name": "reflect", "strict": True, "schema": {"type": "object"}}}
    messages = [{"role": "system", "content": "Improve."}, {"role": "user", "content": request(skill, shown)}]
    return {"model": "optimizer", "messages": messages, "response_format": form}


@pytest.mark.parametrize("name", ["quarter", "text-order", "score-partial", "optimizer-misplacing", "input-junk"])
def test_answers_hold_nothing_of_what_was_not_shown(name: str) -> None:
    with FamilyWorld(FAMILIES[name], 5) as world:
        skill = world.start or "# Desk"
        shown = tickets(world, "train")[:6]
        reply = ask(world, body_of(skill, shown), "key")
        text = json.dumps(reply)
        assert set(TICKET.findall(text)) <= {ticket.id for ticket in shown}
        assert not [t.id for t in world.tickets.values() if t.target in text], "an expected answer"
        named = set(
            re.findall(r"\b(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|sigma)-\d+", text)
        )
        allowed = {world.names[t.kind] for t in shown} | {world.names[k] for k in world.held(skill)}
        allowed |= {world.names[t.kind - 1] for t in shown if world.family.needs}
        assert named <= allowed
        answer = ask(world, {"model": "target", "messages": [{"role": "user", "content": shown[0].input}]}, "key")
        assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
        said = answer["choices"][0]["message"]["content"]
        assert not any(word in said for word in (*LEADS, "rule", "harm", "level"))


def test_the_optimizer_does_not_depend_on_tickets_that_it_was_not_shown() -> None:
    small, large = world_of(seed=2), world_of(seed=2, select=10, test=900)
    train = {t.input: t for t in tickets(small, "train")}
    shown = list(train.values())[:8]
    assert edits(small, "", shown) == edits(large, "", shown)


def test_answers_do_not_depend_on_the_order_of_the_calls() -> None:
    def answers(order: Callable[[list[Ticket]], list[Ticket]]) -> dict[str, str]:
        with world_of(p=0.4, noise="sample") as world:
            skill = skill_of(world, [0, 1, 2])
            return {t.id: target(world, skill, t, f"key {t.id}") for t in order(tickets(world)[:20])}

    assert answers(list) == answers(lambda items: items[::-1])
