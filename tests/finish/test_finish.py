"""The end of training: the choice among all versions, and the run that does not know enough to claim anything."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from arenas import arena, set_select
from skilltune.cli.main import app
from skilltune.finish.certify import FEWEST
from skilltune.finish.reselect import Contender, Reselection, reselect
from skilltune.history.record import Record
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.report.html import report
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import EProcessFigures, RaceFigures, Screen, ScreenRow, Verdict
from training import START, Trained, events, small, train

pytestmark = pytest.mark.anyio
INPUT = Skill("# Desk\n")
SELECT = [Sample(id=f"s{i}", input="q") for i in range(40)]


def longer(skill: Skill, line: str) -> Skill:
    return skill.with_text(f"{skill.text}{line}\n")


def verdict(
    incumbent: Skill,
    candidate: Skill,
    accepted: bool,
    prior: tuple[float, float] = (0.0, 0.0),
    screen: Screen | None = None,
) -> Verdict:
    kept = candidate if accepted else incumbent
    figures = RaceFigures("", prior, (), 0, 0.9, 0.0)
    return Verdict(kept, accepted, "", None, candidate=candidate, numbers=figures, screen=screen)


def screen(sd: float) -> Screen:
    return Screen((ScreenRow("key", "- one", 0.1, sd),), (0,))


def chosen(solved: dict[Skill, int | range], *verdicts: Verdict, **cfg: Any) -> Reselection | None:
    """The choice where each skill solves the first so many of 40 `select` samples, or these."""
    place = arena(**cfg)
    set_select(place, SELECT)
    for skill, of in solved.items():
        for i, sample in enumerate(SELECT):
            score = Score(float(i in (range(of) if isinstance(of, int) else of)))
            rollout = Rollout(sample.id, skill.hash, 0, Trajectory(""), score)
            place.scores.add(rollout)
    return reselect(place, INPUT, verdicts)


ONE, OTHER = longer(INPUT, "- one"), longer(INPUT, "- another")
TWO = longer(ONE, "- two")
ACCEPTED = (verdict(INPUT, ONE, True), verdict(ONE, TWO, True))


def test_the_last_version_is_chosen_where_it_is_the_best() -> None:
    choice = chosen({INPUT: 8, ONE: 18, TWO: 30}, *ACCEPTED)
    assert choice is not None
    assert (choice.best.version, choice.best.skill) == (2, TWO)
    assert [c.version for c in choice.contenders] == [0, 1, 2]
    assert [c.n for c in choice.contenders] == [40, 40, 40]
    assert 0.35 < choice.best.gain < 0.55  # 22 of 40, shrunk
    assert "version 2 of 2" in choice.reason


@pytest.mark.parametrize(("last", "stays"), [(34, True), (30, False), (22, False)])
def test_the_last_accepted_version_stays_unless_a_shorter_one_is_surely_no_worse(last: int, stays: bool) -> None:
    choice = chosen({INPUT: 8, ONE: 30, TWO: last}, *ACCEPTED)
    assert choice is not None
    assert choice.best.skill == (TWO if stays else ONE)
    assert ("no other is surely better" if stays else "shorter and no worse") in choice.reason


def test_a_mean_that_is_a_little_higher_is_no_reason_to_go_back() -> None:
    """The screen of the last accept predicted ten points, of which `select` saw five: luck alone does as much."""
    predicted = verdict(ONE, TWO, True, prior=(0.1, 0.03), screen=screen(0.03))
    choice = chosen({INPUT: 8, ONE: 30, TWO: 32}, ACCEPTED[0], predicted)
    assert choice is not None
    assert choice.best.skill == TWO


@pytest.mark.parametrize(("solved", "why"), [(24, "shorter and no worse"), (20, "better than the last accepted")])
def test_the_input_is_chosen_where_it_is_surely_no_worse(solved: int, why: str) -> None:
    choice = chosen({INPUT: 30, ONE: solved}, verdict(INPUT, ONE, True))
    assert choice is not None
    assert choice.best.skill == INPUT
    assert why in choice.reason


@pytest.mark.parametrize("solved", range(20, 31))
def test_no_version_is_shipped_that_is_not_expected_to_be_better_than_the_input(solved: int) -> None:
    for prior in ({}, {"prior": (0.1, 0.03), "screen": screen(0.03)}):
        choice = chosen({INPUT: 30, ONE: solved}, verdict(INPUT, ONE, True, **prior))
        assert choice is not None
        assert choice.best.version == 0 or choice.best.gain > 0


def test_the_input_is_chosen_where_less_is_expected_though_nothing_is_sure() -> None:
    predicted = verdict(INPUT, ONE, True, prior=(0.1, 0.03), screen=screen(0.03))
    choice = chosen({INPUT: range(20), ONE: range(26, 40)}, predicted)
    assert choice is not None
    assert choice.best.version == 0
    assert "no version is expected to be better" in choice.reason


def test_a_shorter_later_version_wins_a_tie() -> None:
    shorter = longer(INPUT, "- 1")
    choice = chosen({INPUT: 8, ONE: 30, shorter: 30}, verdict(INPUT, ONE, True), verdict(ONE, shorter, True))
    assert choice is not None
    assert choice.best.skill == shorter


def test_a_lucky_version_is_given_up_for_the_input() -> None:
    choice = chosen({INPUT: 30, ONE: 20}, verdict(INPUT, ONE, True))
    assert choice is not None
    assert (choice.best.version, choice.best.skill) == (0, INPUT)


@pytest.mark.parametrize(("solved", "wins"), [(12, False), (36, True)])
def test_a_rejected_candidate_wins_only_with_the_confidence_of_the_race(solved: int, wins: bool) -> None:
    rejected = verdict(INPUT, OTHER, False)
    choice = chosen({INPUT: 10, ONE: 11, OTHER: solved}, rejected, verdict(INPUT, ONE, True))
    assert choice is not None
    assert (choice.best.skill == OTHER) == wins
    assert choice.best.version is None if wins else choice.best.version is not None
    other_rule = replace(verdict(INPUT, OTHER, False), numbers=EProcessFigures("given up", 1, 0.03, 33.0, ()))
    kept = chosen({INPUT: 10, ONE: 11, OTHER: solved}, other_rule, verdict(INPUT, ONE, True))
    assert kept is not None
    assert kept.best.skill != OTHER  # another rule's promise would be broken


def test_what_a_screen_predicted_is_believed_where_select_says_little() -> None:
    believed = verdict(INPUT, ONE, True, prior=(0.1, 0.05), screen=screen(0.05))
    choices = [chosen({INPUT: 20, ONE: 22}, known) for known in (believed, verdict(INPUT, ONE, True))]
    gains = [choice.contenders[1].gain for choice in choices if choice]
    assert gains[0] > gains[1] + 0.005


def test_the_published_rule_keeps_its_last_version() -> None:
    assert chosen({INPUT: 30, ONE: 28}, verdict(INPUT, ONE, True), policy="strict") is None
    assert chosen({INPUT: 30}) is None


def test_a_text_that_returns_is_one_contender() -> None:
    choice = chosen({INPUT: 8, ONE: 30}, verdict(INPUT, ONE, True), verdict(ONE, INPUT, True))
    assert choice is not None
    assert [(c.skill, c.version) for c in choice.contenders] == [(INPUT, 0), (ONE, 1)]
    assert choice.best.skill == ONE


# -- a whole run


async def trained(folder: Path, settings: dict[str, Any] | None = None, **world: Any) -> Trained:
    with small(**{"p": 0.1, "q": 0.7, **world}) as there:
        return await train(there, folder, settings)


async def test_the_choice_is_recorded_and_certified(tmp_path: Path) -> None:
    done = await trained(tmp_path)
    (choice,) = events(done.folder, "reselection")
    by_hash = {version.hash: version for version in done.result.versions}
    shorter = [v["skill"] for v in done.verdicts if v["accepted"] and v["numbers"].get("rule") == "ablation"]
    shipped = shorter[0] if shorter else choice["best"]  # the ablation starts from the choice
    assert shipped == done.result.best.hash
    assert {c["skill"] for c in choice["contenders"]} >= set(by_hash).difference(shorter)
    assert shipped in {data["best"] for data in events(done.folder, "certify")}


@pytest.mark.slow
@pytest.mark.parametrize("helps", [True, False])
async def test_a_rejected_candidate_that_is_chosen_is_reported_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """A candidate that helps ships; the input ships if it does not, as always."""

    def revive(arena: Any, start: Skill, verdicts: Any) -> Reselection:
        """All rules of the world, as if a race had rejected them by bad luck."""
        candidate = Contender(start.with_text(start.text + rules), None, 0.4, 0.1, 16)
        return Reselection(candidate, (candidate,), "rejected once: +40.0 ± 10.0 points over the input")

    with small(optimizer_mode="useless") as world:
        rules = "".join(f"{world.rule(k)}\n" for k in range(4)) if helps else "- Be careful.\n"
        monkeypatch.setattr(sys.modules["skilltune.state"], "reselect", revive)
        done = await train(world, tmp_path, {"train.epochs": 1})
        with Run.read(done.folder) as run:
            again = await recompute(run)
            record = Record.of(run)
            page = report(run)
            number = len(done.result.versions) - 1
            chosen = record.versions[-1]
    assert again.exit_code == 0
    assert (chosen.number, chosen.revived, chosen.hash) == (number, True, done.result.versions[-1].hash)
    assert rules in (done.folder / f"versions/{number:04d}/SKILL.md").read_text(encoding="utf-8")
    assert (done.folder / f"versions/{number:04d}/diff.md").exists()
    shown = CliRunner().invoke(app, ["show", str(done.folder)]).stdout
    assert "chosen at the end: rejected once" in " ".join(shown.split())
    if helps:
        assert done.result.exit_code == 0
        assert "Its race had rejected it; it was chosen at the end by all evidence." in done.read("card.md")
        assert f"**{number}** (shipped)" in done.read("card.md")
        assert f"<h1>{record.claim}</h1>" in page
        assert record.claim == done.read("card.md").splitlines()[2]
        assert record.best == chosen
    else:
        assert done.result.best == done.result.start
        assert not done.result.revived


@pytest.mark.parametrize("test", [FEWEST - 1, FEWEST])
def test_too_few_test_samples_certify_nothing(tmp_path: Path, test: int) -> None:
    done = asyncio.run(trained(tmp_path, p=0.0, q=1.0, test=test))
    certificate = done.result.certificate
    assert certificate is not None
    assert certificate.p < 0.05
    assert certificate.certified == (test == FEWEST)
    assert done.result.exit_code == (0 if test == FEWEST else 5)
    assert done.result.best.text != START
    shown = CliRunner().invoke(app, ["show", str(done.folder)]).stdout
    for told in (done.read("card.md"), shown):
        assert ("9 test samples are too few" in told) == (test < FEWEST)
