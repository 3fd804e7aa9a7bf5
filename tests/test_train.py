"""Training as a whole, on a simulated world: it learns, keeps splits apart, enforces its limits, writes its files."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import pytest

import skilltune as st
from skilltune.api import run_training
from skilltune.config import load_config, make_config
from skilltune.errors import BudgetExceeded, InfraStopped
from skilltune.finish.certify import Certificate
from skilltune.journal.run import Run
from skilltune.optimizer.model import SLOW_HEADING
from skilltune.report.card import READ
from skilltune.result import Result
from skilltune.rollouts.roller import Roller
from skilltune.skill import Skill
from skilltune.verdict import Verdict
from training import FRONT, START, Fated, events, prepare, small, train, train_at
from world import Call, Dice, Prompt, World, lognormal

pytestmark = pytest.mark.anyio
PRESETS = ("default", "paper")
Mode = Literal["normal", "useless", "harmful"]


# -- it learns, and says what it did


@pytest.mark.parametrize("preset", PRESETS)
async def test_training_raises_the_true_score(tmp_path: Path, preset: str) -> None:
    gains = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with small(seed=seed, q=0.8) as world:
            trained = await train(world, folder, preset=preset, seed=seed)
            best = world.true_score(trained.result.best.text)
        gains.append(best - world.true_score(START))
        assert trained.result.exit_code in (0, 1, 5)
        assert (trained.result.exit_code == 1) == (trained.result.best.text == START)
        assert trained.read("best_skill.md") == trained.result.best.text
        assert trained.result.best.text.startswith(FRONT)
    assert sum(gains) / 3 > 0.4
    assert min(gains) >= 0


async def test_both_sides_of_the_certificate_meet_the_same_endpoint(tmp_path: Path) -> None:
    """They share the slots evenly from the first call to the last, so a drift of the endpoint is no gain."""
    with small(q=1.0, p=0.0, test=48, latency=0.002) as world:
        trained = await train(world, tmp_path, {"target.workers": 4})
    assert trained.result.certificate is not None
    run = Run.read(trained.folder)
    split = run.recall("split")
    run.close()
    assert split is not None
    sides = [bool(world.held(seen.system)) for seen in world.requests if seen.sample in split[0]["test"]]
    assert len(sides) == 96
    for start in range(0, 96, 24):
        assert 8 <= sum(sides[start : start + 24]) <= 16


@pytest.mark.parametrize("preset", PRESETS)
async def test_the_files_of_the_run_agree_with_its_result(tmp_path: Path, preset: str) -> None:
    with small(q=0.9, p=0.05) as world:
        trained = await train(world, tmp_path, preset=preset)
        answered = sum(world.answered.values())
    result = trained.result
    assert len(result.versions) > 1
    for number, version in enumerate(result.versions):
        assert trained.read(f"versions/{number:04d}/SKILL.md") == version.text
        verdict = json.loads(trained.read(f"versions/{number:04d}/verdict.json"))
        assert 0 < verdict["score_sd"] < 0.3
        assert (verdict["version"], verdict["skill"]) == (number, version.hash)
        if number:
            diff = trained.read(f"versions/{number:04d}/diff.md").splitlines()
            added = {line for line in version.text.splitlines() if line not in result.versions[number - 1].text}
            assert {f"+{line}" for line in added} <= set(diff)
            assert verdict["accepted"]
    assert not (trained.folder / f"versions/{len(result.versions):04d}").exists()

    verdicts, rows = trained.verdicts, trained.rows("metrics.jsonl")
    assert [row["event"] for row in rows] == ["start", *["verdict"] * len(verdicts), "finish"]
    metrics = rows[1:-1]
    assert [row["accepted"] for row in metrics] == [verdict["accepted"] for verdict in verdicts]
    assert sum(row["accepted"] for row in metrics) == len(result.versions) - 1
    rollouts = trained.rows("rollouts.jsonl")
    assert len({(r["skill"], r["sample"], r["attempt"]) for r in rollouts}) == len(rollouts)
    assert len(rollouts) + len({(s.key) for s in world.requests if s.role == "optimizer"}) == answered
    test = {ticket.id for ticket in world.tickets.values() if ticket.split == "test"}
    of_test = [r for r in rollouts if r["sample"] in test]
    assert {r["skill"] for r in of_test} == {result.start.hash, result.versions[-1].hash}  # read once, for two skills
    after = [r["score"]["value"] for r in of_test if r["skill"] == result.versions[-1].hash]
    assert result.certificate is not None
    assert result.certificate.after == pytest.approx(sum(after) / len(after))
    assert str(result.certificate) in trained.read("card.md")
    assert READ in trained.read("card.md")
    finish = events(trained.folder, "finish")[-1]
    assert (finish["exit_code"], finish["versions"]) == (result.exit_code, trained.versions)
    assert (finish["name"], finish["best"]) == (result.best.name, result.best.hash)
    again, _ = load_config(trained.folder / "config.toml")
    assert again.preset == preset
    assert again.train.batch_size == 16


@pytest.mark.slow
async def test_a_locked_region_and_the_frontmatter_stay_byte_for_byte(tmp_path: Path) -> None:
    lock = "<!-- skilltune:lock -->\nSign  with\tthe desk's name.\n<!-- /skilltune:lock -->"
    front = "---\nname:   desk   # two   blanks\ndescription: 'Codes'\nmetadata: {b: 1, a: 2}\n---\n"
    (tmp_path / "SKILL.md").write_text(f"{front}\n{lock}\n\nAnswer each ticket.\n\n{lock}")
    with small(q=0.9, sloppy=1.0) as world:
        trained = await train(world, tmp_path)
        assert world.true_score(trained.result.best.text) > 0.4
    assert trained.result.best.text.startswith(front)
    assert trained.result.best.text.count(lock) == 2


@pytest.mark.slow
async def test_a_skill_folder_ships_whole(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    (folder / "scripts").mkdir(parents=True)
    (folder / "SKILL.md").write_text(START)
    (folder / "scripts" / "look.py").write_bytes(b"#!/usr/bin/env python\nprint('\xc3\xa9')\r\n")
    (folder / "logo.bin").write_bytes(bytes(range(256)))
    with small(q=0.9) as world:
        world.write(tmp_path / "samples.jsonl")
        cfg = make_config(
            {
                "skill": "desk",
                "env": {"samples": "samples.jsonl"},
                "target": {"model": f"openai@{world.url}/target"},
                "optimizer": {"model": f"openai@{world.url}/optimizer"},
                "train": {"epochs": 1, "batch_size": 16},
            }
        )
        result = await run_training(cfg, tmp_path)
    shipped = tmp_path / "runs" / "desk" / "best" / "desk"
    assert result.best.text != START
    assert (shipped / "SKILL.md").read_text() == result.best.text
    for name in ("scripts/look.py", "logo.bin"):
        assert (shipped / name).read_bytes() == (folder / name).read_bytes()
    assert (folder / "SKILL.md").read_text() == START  # the input itself is never written to


# -- pitfall 10: the firewall between the splits


@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_10_no_select_or_test_sample_reaches_the_optimizer(tmp_path: Path, preset: str) -> None:
    with small(q=0.5, classes=6) as world:
        one_rule_a_step(world)  # so that every epoch changes the skill, and all stages are asked
        trained = await train(world, tmp_path, {**SLOW, "train.epochs": 4}, preset=preset)
        stages = {seen.stage for seen in world.requests if seen.role == "optimizer"}
        assert {"reflect", "slow_update", "notes"} <= stages
        hidden = [ticket for ticket in world.tickets.values() if ticket.split != "train"]
        seen = [ticket for ticket in world.tickets.values() if ticket.split == "train"]
        assert not [t.id for t in hidden if world.optimizer_saw(t.id) or world.optimizer_saw(t.target)]
        assert sum(world.optimizer_saw(ticket.id) for ticket in seen) > len(seen) / 2  # so the search can find
        for ticket in hidden:
            assert ticket.id not in trained.result.best.text


@pytest.mark.slow
async def test_pitfall_10_the_target_never_sees_an_expected_answer(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        await train(world, tmp_path)
        targets = {ticket.target for ticket in world.tickets.values()}
        asked = [seen for seen in world.requests if seen.role == "target"]
        assert not [s for s in asked if any(target in s.user + s.system for target in targets)]


# -- determinism


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_workers_latencies_and_looking_ahead_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    outcomes, calls, begun_ahead = [], [], Counter[int]()
    slow, quietly = lognormal(0.003, 1.5), Roller._quietly

    def counted(*args: Any) -> Any:
        begun_ahead[len(outcomes)] += 1
        return quietly(*args)

    monkeypatch.setattr(Roller, "_quietly", counted)
    cases = [(1, 0.0, False), (1, slow, True), (7, 0.0, True), (32, slow, True), (32, slow, False)]
    for number, (workers, latency, ahead) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = {"target.workers": workers, "optimizer.workers": workers, "target.lookahead": ahead}
        with small(p=0.1, q=0.6, latency=latency) as world:
            trained = await train(world, folder, {**settings, "train.epochs": 1}, preset=preset)
        outcomes.append((trained.outcome, trained.verdicts))
        calls.append(world.calls["target"])
        assert world.peak["target"] <= workers
    assert outcomes[1:] == outcomes[:-1]
    assert calls[0] == calls[-1] <= min(calls)
    assert [begun_ahead[number] > 0 for number in range(len(cases))] == [ahead for *_, ahead in cases]


@pytest.mark.slow
async def test_another_seed_is_another_run(tmp_path: Path) -> None:
    with small(p=0.1, q=0.6) as world:
        runs = [
            await train(world, tmp_path, {"train.epochs": 1}, preset="paper", seed=seed, run=f"run{seed}")
            for seed in range(2)
        ]
    assert runs[0].verdicts != runs[1].verdicts


# -- pitfalls 1 and 8: what a gate may and may not do


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mode", ["useless", "harmful"])
async def test_pitfall_1_without_noise_nothing_useless_is_accepted(tmp_path: Path, preset: str, mode: Mode) -> None:
    with small(optimizer_mode=mode) as world:
        trained = await train(world, tmp_path, {"train.epochs": 1}, preset=preset)
        assert trained.result.exit_code == 1
        assert trained.result.certificate is None
        assert trained.read("best_skill.md") == START
        test = {ticket.id for ticket in world.tickets.values() if ticket.split == "test"}
        assert not [seen for seen in world.requests if seen.sample in test]  # identical texts are not rolled
    assert "unchanged" in trained.read("card.md")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, pytest.param(40, marks=pytest.mark.soak)])
async def test_pitfall_1_with_noise_the_default_gate_seldom_accepts_anything_useless(
    tmp_path: Path, seeds: int
) -> None:
    """One answer in ten is odd, as in the worlds in which the strict rule accepts edits that do nothing. Of runs with
    useless edits, about one in seven accepts some on so few samples."""
    fooled = []
    for mode, seed in product(("useless", "harmful"), range(40, 40 + seeds)):
        with small(optimizer_mode=mode, p=0.1, seed=seed) as world:
            trained = await train(world, tmp_path, seed=seed, run=f"{mode} {seed}")
        assert trained.verdicts
        if any(verdict["accepted"] for verdict in trained.verdicts):
            fooled.append((mode, seed))
        else:
            assert trained.result.exit_code == 1
            assert trained.read("best_skill.md") == START
    assert len(fooled) <= max(1, 2 * seeds / 10), fooled


@pytest.mark.slow
async def test_pitfall_1_the_strict_gate_accepts_noise_and_the_certificate_does_not(tmp_path: Path) -> None:
    accepted = 0
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with small(optimizer_mode="useless", p=0.3, seed=seed) as world:
            trained = await train(world, folder, preset="paper", seed=seed)
        result, certificate = trained.result, trained.result.certificate
        accepted += len(result.versions) - 1
        for verdict in trained.verdicts:
            assert verdict["accepted"] == (verdict["candidate"] is not None and verdict["after"] > verdict["before"])
        assert (certificate is None) == (len(result.versions) == 1)
        if certificate is not None and certificate.gain <= 0:
            assert result.exit_code == 1
            assert trained.read("best_skill.md") == START
        elif certificate is not None:
            assert result.exit_code == (0 if certificate.certified else 5)
            assert trained.read("best_skill.md") == result.versions[-1].text
    assert accepted > 0  # the published rule does accept edits that do nothing


@pytest.mark.slow
async def test_pitfall_8_no_pair_of_text_and_sample_is_paid_twice(tmp_path: Path) -> None:
    with small(p=0.1, q=0.5) as world:
        await train(world, tmp_path, {"gate.passes": 1, "train.confirm": False}, preset="default")
        asked = [(seen.system, seen.sample) for seen in world.requests if seen.role == "target"]
    assert len(asked) == len(set(asked))


@pytest.mark.slow
async def test_a_skill_that_is_not_better_on_test_is_not_shipped(tmp_path: Path) -> None:
    """`select` and `train` reward a rule that `test` punishes: an accept that does not carry over."""
    with small(q=1.0) as world:
        world.solves = lambda skill: frozenset(world.held(skill))  # type: ignore[method-assign]
        rows = [{**sample, "target": "wrong"} if sample["split"] == "test" else sample for sample in world.samples()]
        (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        trained = await train(world, tmp_path)
    assert len(trained.result.versions) > 1
    assert trained.result.certificate is not None
    assert trained.result.certificate.gain == 0
    assert trained.result.exit_code == 1
    assert trained.read("best_skill.md") == START


# -- pitfall 5: the slow update


def guide(world: World, *texts: str) -> None:
    """Let the slow updates say these texts in turn, the last one from then on."""
    said = iter(texts)
    last = [texts[-1]]

    def slow_update(prompt: Prompt, dice: Dice) -> dict[str, Any]:
        last[0] = next(said, last[0])
        return {"reasoning": "", "guidance": last[0]}

    world.optimizer.stages["slow_update"] = slow_update


def one_rule_a_step(world: World) -> None:
    """Let every reflection propose the first missing rule of the failed classes, and nothing else."""

    def reflect(prompt: Prompt, dice: Dice) -> dict[str, Any]:
        failed = [shown for shown in prompt.trajectories if shown.score < 1]
        kinds = {k: shown for shown in reversed(failed) if (k := world.recognise(shown.text)) is not None}
        missing = [kind for kind in sorted(kinds) if kind not in world.held(prompt.skill)][:1]
        evidence = [{"sample": kinds[kind].sample, "quote": world.names[kind]} for kind in missing]
        edit = {"op": "add", "after": None, "target": None, "why": "", "evidence": evidence}
        return {"diagnosis": [], "edits": [{**edit, "text": world.rule(kind)} for kind in missing]}

    world.optimizer.stages["reflect"] = reflect


SLOW = {"train.epochs": 3, "train.batch_size": 32, "train.lr": 1, "train.lr_min": 1, "slow.samples": 12}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_5_harmful_guidance_is_rejected_by_the_same_gate(tmp_path: Path, preset: str) -> None:
    with small(q=1.0, classes=6) as world:
        one_rule_a_step(world)
        guide(world, world.harmful(0), world.harmful(1))
        trained = await train(world, tmp_path, SLOW, preset=preset)
        assert [seen for seen in world.requests if seen.stage == "slow_update"]
        assert world.true_score(trained.result.best.text) > 0
    assert SLOW_HEADING not in trained.result.best.text
    assert [v for v in trained.verdicts if any(r["edit"]["why"] == "slow update" for r in v["rejected"])]
    for verdict in trained.verdicts:  # every accept rests on a measurement of that very text
        assert bool(verdict["differences"]) or not verdict["accepted"]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "newline"), [("default", "\n"), ("paper", "\n"), ("paper", "\r\n")])
async def test_pitfall_5_the_slow_section_is_replaced_and_bears_no_marker(
    tmp_path: Path, preset: str, newline: str
) -> None:
    (tmp_path / "SKILL.md").write_bytes(START.replace("\n", newline).encode())
    with small(q=1.0, classes=8, select=32, test=32) as world:
        one_rule_a_step(world)
        guide(world, *("\n".join(map(world.rule, range(7, low - 1, -1))) for low in (6, 4, 2)))
        trained = await train(world, tmp_path, {**SLOW, "train.epochs": 4}, preset=preset)
        best = trained.result.best.text
        accepted = [
            edit
            for verdict in trained.verdicts
            for edit in verdict["edits"]
            if verdict["accepted"] and edit["why"] == "slow update"
        ]
        assert [edit["op"] for edit in accepted] == ["add"] + ["replace"] * (len(accepted) - 1)
        assert len(accepted) > (preset == "paper")
        assert best.count(SLOW_HEADING) == 1
        assert best.count(world.rule(7)) == 1
        assert (accepted[-1]["text"] or "").replace("\n", newline) in best
    assert "skilltune" not in best
    assert "<!--" not in best


@pytest.mark.slow
async def test_pitfall_5_two_equal_skills_teach_nothing(tmp_path: Path) -> None:
    with small(optimizer_mode="useless") as world:
        trained = await train(world, tmp_path, {"train.epochs": 3, "train.batch_size": 32, "gate.screen": 0})
        stages = [seen.stage for seen in world.requests]
    assert "slow_update" not in stages
    assert "notes" not in stages
    assert [event["epoch"] for event in events(trained.folder, "slow")] == [2, 3]


# -- pitfall 9: the learning rate is what is applied, not what is asked for


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_9_no_step_applies_more_edits_than_its_rate(tmp_path: Path, preset: str) -> None:
    with small(classes=8) as world:

        def greedy(prompt: Prompt, dice: Dice) -> dict[str, Any]:
            """The rules of all that failed at once, whatever the budget."""
            edits: dict[int | None, dict[str, Any]] = {}
            for shown in prompt.trajectories:
                kind = world.recognise(shown.text)
                if shown.score < 1 and kind is not None:
                    edit = {"op": "add", "after": None, "target": None, "text": world.rule(kind), "why": ""}
                    evidence = edits.setdefault(kind, {**edit, "evidence": []})["evidence"]
                    evidence.append({"sample": shown.sample, "quote": world.names[kind]})
            asked.append(len(edits))
            return {"diagnosis": [], "edits": list(edits.values())}

        asked: list[int] = []
        world.optimizer.stages["reflect"] = greedy
        settings = {"train.lr": 3, "train.lr_min": 1, "train.minibatch_size": 16}
        trained = await train(world, tmp_path, settings, preset=preset)
        held = [len(world.held(version.text)) for version in trained.result.versions]
    assert len(held) > 1
    assert max(asked) > 3
    rates = []
    for verdict in trained.verdicts:
        assert sum(edit["status"] == "applied" for edit in verdict["edits"]) <= verdict["lr"]
        rates += [verdict["lr"]] * verdict["accepted"]
    assert all(new - old <= rate for (old, new), rate in zip(pairwise(held), rates, strict=True))


# -- pitfalls 6 and 18: documents as they are


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "text"),
    [
        ("default", "Use {braces}, {0}, {input} and {{two}} as they are. 100 % of %s stay.\n"),
        ("default", "# Desk\r\n\r\nAnswer each ticket.\r\n- one\r\n"),
        ("paper", "\ufeff---\r\nname: desk\r\ndescription: x\r\n---\r\nAnswer 🎫 each ticket."),
        ("default", "Answer each ticket"),
        ("paper", ""),
    ],
    ids=["braces", "crlf", "bom", "no final newline", "empty"],
)
async def test_pitfalls_6_and_18_any_document_trains_and_keeps_its_bytes(
    tmp_path: Path, preset: str, text: str
) -> None:
    (tmp_path / "SKILL.md").write_bytes(text.encode())
    with small(q=1.0) as world:
        trained = await train(world, tmp_path, {"train.epochs": 1}, preset=preset)
        assert world.true_score(trained.result.best.text) > world.true_score(text)
    shipped = (trained.folder / "best_skill.md").read_bytes()
    assert shipped.decode() == trained.result.best.text
    assert shipped.startswith(text.encode())  # only lines at the end were added
    if "\r\n" in text:
        assert shipped.count(b"\n") == shipped.count(b"\r\n")


# -- stopping early


@pytest.mark.slow
async def test_a_stop_file_ends_the_training_and_its_removal_goes_on(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "stop").touch()
        stopped = await train(world, tmp_path)
        assert stopped.versions == [Skill.parse(START).hash]
        assert stopped.result.exit_code == 4
        assert "delete it and run the same command" in str(stopped.result.stopped)
        assert world.calls["optimizer"] == 1  # its probe
        (tmp_path / "run" / "stop").unlink()
        resumed = await train(world, tmp_path)
    assert len(resumed.versions) > 1
    assert resumed.result.exit_code == 0


@pytest.mark.parametrize("when", [1, 3])
async def test_a_pause_never_reads_the_test_split(tmp_path: Path, when: int) -> None:
    """The file appears while the optimizer works, in the middle of the training or in its last step. The certificate of
    the run that goes on is then its first look."""
    stop = tmp_path / "run" / "stop"
    asked = 0

    def fate(call: Call, sample: str | None) -> None:
        nonlocal asked
        asked += call.stage == "reflect"
        if asked == when:
            stop.touch()

    settings = {"train.epochs": 1, "train.patience": 0, "train.minibatch_size": 8, "optimizer.workers": 1}
    with Fated(fate, q=1.0) as world:
        paused = await train(world, tmp_path, settings)
        assert paused.result.exit_code == 4
        assert paused.result.certificate is None
        assert paused.result.uncertified in (
            "the run was stopped before it",
            "the best skill is the input, so the test split was not read",
        )
        assert not events(paused.folder, "certify")
        assert not events(paused.folder, "reselection")
        with Run.read(paused.folder) as run:
            test = set((run.recall("split") or ({},))[0]["test"])
            assert test
            assert not test & {value["sample"] for _, value, _ in run.memos("rollout")}
        stop.unlink()
        asked = when + 1
        resumed = await train(world, tmp_path, settings)
    assert resumed.result.certificate is not None
    assert resumed.result.certificate.look == 1


async def test_a_budget_that_runs_out_is_still_certified(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        whole = await train(world, tmp_path)
        calls = whole.result.training.calls
        stopped = await train(world, tmp_path, budget={"calls": calls - 20}, run="less")
    assert stopped.result.exit_code == 4
    assert len(stopped.versions) > 1
    assert stopped.result.certificate is not None


@pytest.mark.slow
async def test_patience_counts_steps_without_an_accept(tmp_path: Path) -> None:
    with small(optimizer_mode="useless") as world:
        trained = await train(world, tmp_path, {"train.patience": 2, "train.epochs": 4, "gate.screen": 80})
    assert len(trained.verdicts) == 2
    [stopping] = events(trained.folder, "stopping")
    said, _, counted = stopping["reason"].partition(": ")
    assert said == "no accept in 2 steps (train.patience = 2)"
    assert "screen found no edit worth a race" in counted
    assert sum(int(part.split(" × ")[0]) for part in counted.split(", ")) == 2
    assert trained.result.exit_code == 1


@pytest.mark.slow
async def test_training_ends_when_too_few_tasks_fail_to_learn_from(tmp_path: Path) -> None:
    settings = {"train.epochs": 6, "train.batch_size": 32}
    with small(q=1.0) as world:
        trained = await train(world, tmp_path, settings)
        assert world.true_score(trained.result.best.text) == 1.0
    [stopping] = events(trained.folder, "stopping")
    assert re.match(r"\d % of the train tasks still fail, (\d) of \d steps helped: a further step", stopping["reason"])
    assert stopping["forecast"]["failing"] < 0.1
    after = len(trained.verdicts)
    (tmp_path / "patient").mkdir()
    with small(q=1.0) as world:  # patience 0 asks for every step, whatever the price of calls
        patient = await train(world, tmp_path / "patient", {**settings, "train.patience": 0})
    assert not events(patient.folder, "stopping")
    assert len(patient.verdicts) > after


@pytest.mark.parametrize("confirm", [True, False])
async def test_the_optimizer_is_not_asked_about_a_batch_that_leaves_nothing_to_learn_from(
    tmp_path: Path, confirm: bool
) -> None:
    def answered(sample: st.Sample, rollout: st.Rollout) -> float:
        return float(bool(rollout.answer))

    with small() as world:
        prepare(world, tmp_path)
        env = st.Env(world.samples(), answered)
        settings = {"train.epochs": 3, "train.batch_size": 32, "train.confirm": confirm}
        trained = await train_at(world.url, tmp_path, settings, env=env)
        assert world.calls["optimizer"] == 1  # the probe
    assert not trained.verdicts
    [stopping] = events(trained.folder, "stopping")
    assert stopping["reason"].startswith("0 % of the train tasks still fail: a further step of about")


@pytest.mark.slow
async def test_a_budget_of_minutes_ends_a_run_whatever_hangs(tmp_path: Path) -> None:
    """A target that says nothing and a scorer that never comes back: both end with the run."""
    opened = threading.Event()

    def hangs(sample: st.Sample, rollout: st.Rollout) -> float:
        if rollout.answer and rollout.answer != sample.target:
            opened.wait(60)
        return float(rollout.answer == sample.target)

    with small() as world:
        prepare(world, tmp_path)
        settings = {"budget.minutes": 0.01, "target.timeout_s": 0.5}
        began = time.monotonic()
        with pytest.raises(BudgetExceeded, match=r"0\.01 minutes is used up, .*raise it with budget\.minutes=0\.02"):
            await train_at(world.url, tmp_path, settings, env=st.Env(world.samples(), hangs))
        assert time.monotonic() - began < 20
    opened.set()


@pytest.mark.slow
async def test_a_reached_target_score_ends_the_training(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        trained = await train(
            world, tmp_path, {"train.target_score": 0.2, "train.epochs": 4, "train.lr": 1, "train.lr_min": 1}
        )
        assert 0.2 < world.true_score(trained.result.best.text) < 1
    assert [verdict["accepted"] for verdict in trained.verdicts][-1]
    assert sum(verdict["accepted"] for verdict in trained.verdicts) == 1
    assert trained.result.exit_code == 0


async def test_no_epochs_only_measure(tmp_path: Path) -> None:
    with small() as world:
        trained = await train(world, tmp_path, {"train.epochs": 0})
        assert world.calls["target"] == 16
    assert trained.result.exit_code == 1


# -- what a run ends with


def certificate(p: float) -> Certificate:
    return Certificate(0.2, 0.8, 10, 0.1, 0.9, p, p < 0.05, 1, 6, 0, 1, "by hand", 0.0, 0.0)


@pytest.mark.parametrize(
    ("made", "exit_code", "why"),
    [
        ({"best": "better", "test": 10, "certificate": certificate(0.01)}, 0, ""),
        ({"best": "better", "test": 10, "certificate": certificate(0.2)}, 5, ""),
        ({"best": "better", "test": 0}, 0, "there is no test split"),
        ({"best": "better", "test": 2}, 5, "no test sample was scored on both sides"),
        ({"best": "start", "test": 10}, 1, "the best skill is the input, so the test split was not read"),
        ({"best": "better", "test": 10, "stopped": BudgetExceeded("stop")}, 4, "the run was stopped before it"),
        ({"best": "better", "test": 10, "stopped": InfraStopped("stop")}, 3, "the run was stopped before it"),
    ],
)
def test_a_result_says_whether_it_is_certified_and_if_not_why(made: dict[str, Any], exit_code: int, why: str) -> None:
    start, best = Skill("start"), Skill(made["best"])
    result = Result(start, best, made.get("certificate"), (start, best), made["test"], Path("run"), made.get("stopped"))
    assert (result.exit_code, result.uncertified) == (exit_code, why)


# -- the Python front door


@pytest.mark.slow
async def test_the_python_call_takes_a_model_by_name_or_as_a_whole_table(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        prepare(world, tmp_path)
        paths = tmp_path / "SKILL.md", tmp_path / "samples.jsonl"
        models = {"model": f"openai@{world.url}/target", "workers": 3}, f"openai@{world.url}/optimizer"
        steps = {"epochs": 1, "batch_size": 16}
        result = await st.atrain(*paths, *models, run=tmp_path / "run", train=steps)
        assert result.exit_code == 0
        assert world.peak["target"] <= 3
        score = await st.aevaluate(result.best, paths[1], models[0], split="test")
        assert result.certificate is not None
        assert score.score == result.certificate.after


# -- target.attempts


@pytest.mark.slow
async def test_several_attempts_a_sample_are_distinct_draws(tmp_path: Path) -> None:
    with small(p=0.3, q=0.8) as world:
        trained = await train(world, tmp_path, {"target.attempts": 2, "train.epochs": 1})
        train_ids = {ticket.id for ticket in world.tickets.values() if ticket.split == "train"}
    first = [
        r for r in trained.rows("rollouts.jsonl") if r["skill"] == trained.versions[0] and r["sample"] in train_ids
    ]
    assert {r["attempt"] for r in first} == {0, 1}
    answers: dict[str, set[str]] = {}
    for rollout in first:
        answers.setdefault(rollout["sample"], set()).add(rollout["answer"])
    assert any(len(draws) == 2 for draws in answers.values())


# -- patience and the slow update


class Scripted:
    """A gate that accepts the steps with these names and, if `slow`, every slow update. Implements `Gate`."""

    def __init__(self, slow: bool, *names: str) -> None:
        self.slow, self.names = slow, names

    async def baseline(self, skill: Skill) -> float:
        return 0.0

    async def judge(self, skill: Skill, proposals: Any, *, name: str, alone: bool = False, **_: Any) -> Verdict:
        candidate = Skill(f"{skill.text}\n- {name}\n")
        if self.slow if alone else name in self.names:
            return Verdict(candidate, True, "", 0.0, candidate=candidate)
        return Verdict(skill, False, "", 0.0, candidate=candidate)


@pytest.mark.parametrize(("slow", "accepted", "last"), [(True, ("step 3",), 7), (False, ("step 3",), 6), (True, (), 3)])
async def test_an_accepted_slow_update_resets_patience_as_a_step_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool, accepted: tuple[str, ...], last: int
) -> None:
    """Two steps an epoch. The slow update of the second epoch follows step 4, if the epoch changed the skill."""
    monkeypatch.setattr("skilltune.build.build_gate", lambda arena: Scripted(slow, *accepted))
    with small() as world:
        trained = await train(world, tmp_path, {"train.patience": 3, "train.epochs": 5})
    assert max(verdict["step"] for verdict in trained.verdicts) == last
    assert sum(verdict["accepted"] for verdict in trained.verdicts) == len(accepted) * (1 + slow)
    [stop] = events(trained.folder, "stopping")
    assert stop["reason"].startswith("no accept in 3 steps (train.patience = 3)")
